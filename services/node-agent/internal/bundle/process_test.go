package bundle

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"dhow.dev/pkg/process"
)

// fakeRuntime starts a process that looks like a containerd with the configuration: a shell by that name that reads until it is ended.
func fakeRuntime(t *testing.T, cfg Config) *exec.Cmd {
	t.Helper()
	program := filepath.Join(t.TempDir(), "containerd")
	if err := os.Symlink("/bin/sh", program); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "-c", "read line", "containerd", "--config", configFile(cfg))
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return cmd
}

func TestARunningRuntimeIsFound(t *testing.T) {
	cfg := valid()
	cfg.Root = t.TempDir()
	if p, err := findProcess(cfg); p != nil || err != nil {
		t.Fatalf("found %v, %v where nothing runs", p, err)
	}
	// Without a record it is found by its command line, but what it was started with is unknown; a damaged record is as good as none, and so is one of
	// another process: this one stands for one that got the number of a containerd that ended.
	other, err := process.Start(process.Spec{File: recordFile(cfg), Note: "digest", Log: logFile(cfg), Path: "/bin/sh", Args: []string{"-c", "exec tail -f /dev/null"}})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Stop(t.Context(), stopGrace)
	if p, err := findProcess(cfg); p != nil || err != nil {
		t.Fatalf("took %+v, %v", p, err)
	}
	cmd := fakeRuntime(t, cfg)
	for _, record := range []string{"none", "another's", "{damaged"} {
		switch record {
		case "none":
			err = os.Rename(recordFile(cfg), recordFile(cfg)+".kept")
		case "another's":
			err = os.Rename(recordFile(cfg)+".kept", recordFile(cfg))
		default:
			err = os.WriteFile(recordFile(cfg), []byte(record), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		p, err := findProcess(cfg)
		if err != nil || p == nil || p.PID() != cmd.Process.Pid || p.Note() != "" {
			t.Fatalf("%s: %+v, %v", record, p, err)
		}
		p.Release()
	}
}

func TestARecordedRuntimeIsFound(t *testing.T) {
	cfg := valid()
	cfg.Root = t.TempDir()
	program := filepath.Join(t.TempDir(), "containerd")
	if err := os.Symlink("/bin/sh", program); err != nil {
		t.Fatal(err)
	}
	started, err := process.Start(process.Spec{
		File: recordFile(cfg), Note: "digest", Log: logFile(cfg), Path: program, Args: []string{"-c", "read line < " + fifo(t), program, "--config", configFile(cfg)},
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := findProcess(cfg)
	if err != nil || p == nil || p.PID() != started.PID() || p.Note() != "digest" {
		t.Fatalf("%+v, %v", p, err)
	}
	if err := p.Stop(t.Context(), stopGrace); err != nil {
		t.Fatal(err)
	}
	if p, err := findProcess(cfg); p != nil || err != nil {
		t.Errorf("after its end: %+v, %v", p, err)
	}
}

// fifo is what a program can read from for ever.
func fifo(t *testing.T) string {
	name := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestShimsAreKnownByTheirSocket(t *testing.T) {
	cfg, err := complete(valid())
	if err != nil {
		t.Fatal(err)
	}
	shim := func(address string) []string {
		return []string{"/opt/runtime/containerd-shim-runc-v2", "-namespace", "k8s.io", "-id", "x", "-address", address}
	}
	if !isShim(shim(cfg.Socket), cfg) {
		t.Error("own shim not known")
	}
	if isShim(shim("/run/containerd/containerd.sock"), cfg) || isShim([]string{"sh", "-address", cfg.Socket}, cfg) || isShim(nil, cfg) {
		t.Error("a foreign process was taken for a shim")
	}
}
