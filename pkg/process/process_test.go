package process

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

func spec(t *testing.T, script string) Spec {
	dir := t.TempDir()
	return Spec{File: filepath.Join(dir, "p.json"), Log: filepath.Join(dir, "p.log"), Path: "/bin/sh", Args: []string{"-c", script}, Env: []string{"WORD=hello"}}
}

func TestFoundAgainAndStopped(t *testing.T) {
	// The program says through a pipe that it has spoken.
	pipe := filepath.Join(t.TempDir(), "spoken")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	s := spec(t, `echo $WORD; echo > `+pipe+`; exec tail -f /dev/null`)
	p, err := Start(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(pipe); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(s); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("second start: %v", err)
	}
	found, err := Find(s.File)
	if err != nil || found == nil || found.PID() != p.PID() {
		t.Fatalf("found %v, %v", found, err)
	}
	sid, err := syscall.Getpgid(p.PID())
	if err != nil || sid != p.PID() {
		t.Errorf("process group %d, %v: not a session of its own", sid, err)
	}
	if err := found.Stop(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	if again, err := Find(s.File); again != nil || err != nil {
		t.Errorf("after the stop: %v, %v", again, err)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if log, _ := os.ReadFile(s.Log); string(log) != "hello\n" {
		t.Errorf("log %q", log)
	}
}

func TestKilledAfterTheGrace(t *testing.T) {
	s := spec(t, `trap '' TERM; echo ready; while :; do read line; done < /dev/zero`)
	p, err := Start(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Stop(t.Context(), 100*time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if p.Alive() {
		t.Error("alive")
	}
}

func TestReusedPIDIsAnotherProcess(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p.json")
	id, err := identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	id.Start--
	if err := writeFile(file, id); err != nil {
		t.Fatal(err)
	}
	if p, err := Find(file); p != nil || err != nil {
		t.Errorf("%v, %v", p, err)
	}
	stale := &Process{identity: id, file: file}
	if err := stale.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
}
