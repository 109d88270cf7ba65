//go:build e2e

package cgroup

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"
)

func TestCreateKillRemove(t *testing.T) {
	h, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	t.Run(h.version.String(), func(t *testing.T) { createKillRemove(t, h) })
	// A machine with version 1 mounts version 2 beside it, without controllers: enough to run that version's code too.
	for _, m := range h.mounts {
		if m.version != h.version {
			second := &Hierarchies{version: m.version, mounts: []mount{m}}
			t.Run(m.version.String(), func(t *testing.T) { createKillRemove(t, second) })
		}
	}
}

func createKillRemove(t *testing.T, h *Hierarchies) {
	top := fmt.Sprintf("/dhow-test-%d", os.Getpid())
	path := top + "/node/runtime"
	for range 2 {
		if err := h.Create(path); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { _ = h.Remove(top) })

	cmd := exec.Command("cat")
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for _, m := range h.mounts {
		if m.version != h.version {
			continue
		}
		if err := os.WriteFile(filepath.Join(m.dir, path, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if pids, err := h.Processes(top); err != nil || !slices.Equal(pids, []int{pid}) {
		t.Fatalf("processes: %v, %v; want %d", pids, err, pid)
	}
	if err := h.Remove(top); err == nil {
		t.Fatal("a group with a process was removed")
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := h.Kill(ctx, top); err != nil {
		t.Fatal(err)
	}
	<-ended
	if err := h.Remove(path); err != nil {
		t.Fatal(err)
	}
	for _, m := range h.mounts {
		if _, err := os.Stat(filepath.Join(m.dir, top)); !os.IsNotExist(err) {
			t.Errorf("%s is left in %s: %v", top, m.dir, err)
		}
	}
}
