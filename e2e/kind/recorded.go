package kind

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Record is what a recorded kind was asked for.
type Record struct{ dir string }

// Recorded puts a recorded kind (package recorded) first in PATH until the test ends: one that checks and writes down what it is asked for, and whose cluster is that of a
// `dhow up` with this data directory.
func Recorded(t *testing.T, dataDir string) Record {
	t.Helper()
	dir := t.TempDir()
	ctr, err := filepath.Abs(filepath.Join("..", "..", "bin", "runtime", "ctr"))
	if err != nil {
		t.Fatal(err)
	}
	settings, err := json.Marshal(map[string]string{"DataDir": dataDir, "Ctr": ctr})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "recorded.json"), settings, 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.CommandContext(t.Context(), "go", "build", "-o", filepath.Join(dir, "kind"), "dhow.dev/e2e/kind/recorded")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the recorded kind: %v: %s", err, out)
	}
	t.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH"))
	return Record{dir}
}

// Commands are the command lines so far, without the program.
func (r Record) Commands(t *testing.T) (lines [][]string) {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(r.dir, "record"))
	if err != nil {
		t.Fatal(err)
	}
	for s := bufio.NewScanner(bytes.NewReader(content)); s.Scan(); {
		var line []string
		if err := json.Unmarshal(s.Bytes(), &line); err != nil {
			t.Fatal(err)
		}
		lines = append(lines, line)
	}
	return lines
}
