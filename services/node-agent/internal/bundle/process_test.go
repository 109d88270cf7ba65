package bundle

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
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
	if p, _, err := findProcess(cfg); p != nil || err != nil {
		t.Fatalf("found %v, %v where nothing runs", p, err)
	}
	cmd := fakeRuntime(t, cfg)

	// Without a record it is found by its command line, but what it was started with is unknown.
	p, digest, err := findProcess(cfg)
	if err != nil || p == nil || p.pid != cmd.Process.Pid || digest != "" {
		t.Fatalf("by command line: %+v, %q, %v", p, digest, err)
	}
	p.release()

	if err := writeRecord(cfg, cmd.Process.Pid, "digest"); err != nil {
		t.Fatal(err)
	}
	p, digest, err = findProcess(cfg)
	if err != nil || p == nil || digest != "digest" {
		t.Fatalf("by record: %+v, %q, %v", p, digest, err)
	}
	defer p.release()
	if err := p.signal(unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-p.done
	if err := p.signal(unix.SIGKILL); err != nil {
		t.Errorf("signal after its end: %v", err)
	}
}

func TestAReusedNumberIsNotTaken(t *testing.T) {
	cfg := valid()
	cfg.Root = t.TempDir()
	// This process stands for one that got the number of a containerd that ended.
	if err := writeRecord(cfg, os.Getpid(), "digest"); err != nil {
		t.Fatal(err)
	}
	if p, _, err := findProcess(cfg); p != nil || err != nil {
		t.Fatalf("took %+v, %v", p, err)
	}
	// The right command line under another start time is another process too.
	cmd := fakeRuntime(t, cfg)
	if p, err := verified(cmd.Process.Pid, startTime(cmd.Process.Pid)+1); p != nil || err != nil {
		t.Fatalf("took %+v, %v", p, err)
	}
	if err := os.WriteFile(recordFile(cfg), []byte("{damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	p, digest, err := findProcess(cfg)
	if err != nil || p == nil || digest != "" {
		t.Fatalf("with a damaged record: %+v, %q, %v", p, digest, err)
	}
	p.release()
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

func TestStartedProcessHasItsOwnSession(t *testing.T) {
	output, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer output.Close()
	p, err := startProcess([]string{"/bin/sleep", "1000000"}, nil, output)
	if err != nil {
		t.Fatal(err)
	}
	defer p.release()
	session, err := unix.Getsid(p.pid)
	if err != nil || session != p.pid {
		t.Errorf("session %d, %v; want %d", session, err, p.pid)
	}
	if err := end(t.Context(), p); err != nil {
		t.Fatal(err)
	}
}
