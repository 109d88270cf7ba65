//go:build e2e

package volume_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// programs are scripts that stand in for programs of the machine. They note how they were called.
type programs struct {
	t   *testing.T
	dir string
}

// newPrograms puts scripts before the machine's programs. In a script $DIR is a folder for what it has to remember, and $REAL the machine's program of its name.
func newPrograms(t *testing.T, scripts map[string]string) *programs {
	t.Helper()
	p := &programs{t: t, dir: t.TempDir()}
	for name, body := range scripts {
		real, err := exec.LookPath(name)
		if err != nil {
			real = "false" // this machine has none
		}
		text := fmt.Sprintf("#!/bin/sh\nDIR=%s\nREAL=%s\necho \"%s $*\" >> $DIR/calls\n%s", p.dir, real, name, body)
		p.write(name, text, 0o755)
	}
	t.Setenv("PATH", p.dir+":"+os.Getenv("PATH"))
	return p
}

func (p *programs) write(name, text string, mode os.FileMode) {
	p.t.Helper()
	name = filepath.Join(p.dir, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		p.t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		p.t.Fatal(err)
	}
}

func (p *programs) remove(name string) {
	p.t.Helper()
	if err := os.Remove(filepath.Join(p.dir, name)); err != nil {
		p.t.Fatal(err)
	}
}

// calls returns the calls so far that begin with some words, without what is before them.
func (p *programs) calls(of ...string) []string {
	p.t.Helper()
	text, err := os.ReadFile(filepath.Join(p.dir, "calls"))
	if err != nil && !os.IsNotExist(err) {
		p.t.Fatal(err)
	}
	var all []string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if len(of) == 0 || slices.ContainsFunc(of, func(prefix string) bool { return strings.HasPrefix(line, prefix) }) {
			all = append(all, line)
		}
	}
	return all
}

// forget empties the list of calls.
func (p *programs) forget() {
	p.t.Helper()
	p.write("calls", "", 0o644)
}

func (p *programs) expect(got []string, want ...string) {
	p.t.Helper()
	if !slices.Equal(got, want) {
		p.t.Errorf("called:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// loopDevice makes a block device of 64 MB that is a file.
func loopDevice(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 64<<20); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", file).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	device := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if out, err := exec.Command("losetup", "--detach", device).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return device
}

// mountsAt returns the lines of the table of mounts about a path.
func mountsAt(t *testing.T, path string) []string {
	t.Helper()
	return regexp.MustCompile(`(?m)^.* `+regexp.QuoteMeta(path)+` .*$`).FindAllString(read(t, "/proc/self/mountinfo"), -1)
}

func writeFile(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// unmounted unmounts what is mounted at a path.
func unmounted(t *testing.T, path string) {
	t.Helper()
	if err := syscall.Unmount(path, 0); err != nil {
		t.Fatal(err)
	}
}
