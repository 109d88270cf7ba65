package process

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
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
	if err := (record{identity: id}).write(file); err != nil {
		t.Fatal(err)
	}
	if p, err := Find(file); p != nil || err != nil {
		t.Errorf("%v, %v", p, err)
	}
}

func TestFoundByOthersThanItsParent(t *testing.T) {
	s := spec(t, `exec tail -f /dev/null`)
	s.Note = "version 7"
	p, err := Start(s)
	if err != nil {
		t.Fatal(err)
	}
	found, err := Find(s.File)
	if err != nil || found == nil || found.Note() != "version 7" {
		t.Fatalf("%+v, %v", found, err)
	}
	ended := found.Done()
	select {
	case <-ended:
		t.Error("it has ended before it did")
	default:
	}
	if err := p.Stop(t.Context(), time.Minute); err != nil {
		t.Fatal(err)
	}
	<-ended
	if err := found.Signal(syscall.SIGKILL); err != nil {
		t.Errorf("a signal after its end: %v", err)
	}
	if _, err := os.Stat(s.File); !os.IsNotExist(err) {
		t.Errorf("the file: %v", err)
	}
}

func TestReleased(t *testing.T) {
	s := spec(t, `exec tail -f /dev/null`)
	p, err := Start(s)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop(t.Context(), time.Minute)
	found, err := Find(s.File)
	if err != nil || found == nil {
		t.Fatalf("%+v, %v", found, err)
	}
	ended := found.Done()
	found.Release()
	if err := found.Signal(syscall.SIGKILL); err == nil {
		t.Error("one that was released can still be killed")
	}
	select {
	case <-ended:
		t.Error("released is not ended")
	default:
	}
	if !p.Alive() {
		t.Error("it has ended")
	}
}

func TestSearch(t *testing.T) {
	followed := filepath.Join(t.TempDir(), "followed")
	if err := os.WriteFile(followed, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	s := spec(t, "")
	s.Path, s.Args = "/usr/bin/tail", []string{"-f", followed}
	p, err := Start(s)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Stop(t.Context(), time.Minute)
	found, err := Search(func(args []string) bool { return len(args) == 3 && args[2] == followed })
	if err != nil || len(found) != 1 || found[0].PID() != p.PID() {
		t.Fatalf("%v, %v", found, err)
	}
	found[0].Release()
}

func TestBareEnvironment(t *testing.T) {
	t.Setenv("OWN", "1")
	for bare, want := range map[bool]string{false: "hello 1 /\n", true: "hello  /\n"} {
		s := spec(t, `echo "$WORD $OWN $PWD"`)
		s.Bare, s.Dir = bare, "/"
		p, err := Start(s)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Wait(t.Context()); err != nil {
			t.Fatal(err)
		}
		if log, _ := os.ReadFile(s.Log); string(log) != want {
			t.Errorf("bare %t: %q, want %q", bare, log, want)
		}
	}
}

func TestDamagedFile(t *testing.T) {
	s := spec(t, `exit`)
	for _, content := range []string{"{damaged", "{}", ""} {
		if err := os.WriteFile(s.File, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if p, err := Find(s.File); p != nil || !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), s.File) {
			t.Errorf("%q: %v, %v", content, p, err)
		}
	}
}

func TestTimersOfProgramsAreAsLateAsUsual(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread ends with the test
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(time.Millisecond), 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	s := spec(t, `exec cat /proc/self/timerslack_ns`)
	p, err := Start(s)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Wait(t.Context()); err != nil {
		t.Error(err)
	}
	if log, _ := os.ReadFile(s.Log); string(log) != "50000\n" {
		t.Errorf("slack %q, want 50000", log)
	}
}
