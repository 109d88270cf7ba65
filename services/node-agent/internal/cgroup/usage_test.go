package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadingNumbers(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if n, err := numberOf(write("memory.current", "4096\n")); n != 4096 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := numberOf(write("memory.max", "max\n")); err == nil || !strings.Contains(err.Error(), "memory.max") {
		t.Errorf("a word for a number: %v", err)
	}
	var many strings.Builder
	for i := range 1000 {
		fmt.Fprintf(&many, "name_%d %d\n", i, i)
	}
	stat := write("memory.stat", "inactive_file_x 1\n"+many.String()+"inactive_file 77\n")
	for name, want := range map[string]uint64{"inactive_file": 77, "name_999": 999, "name": 0} {
		if n, err := field(stat, name); n != want || err != nil {
			t.Errorf("%s: %d, %v, want %d", name, n, err, want)
		}
	}
	if n, err := field(write("meminfo", "MemTotal:       24576 kB\n"), "MemTotal:"); n != 24576 || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if _, err := field(write("broken", "a b\n"), "a"); err == nil {
		t.Error("a word for a number is no error")
	}
	if _, err := field(filepath.Join(dir, "none"), "a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}
