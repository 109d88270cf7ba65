// Package etcdprocess runs etcd as a process of its own, for tests of the store on an external cluster.
package etcdprocess

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// patience is how long etcd may take to answer.
const patience = 60 * time.Second

// Process is an etcd of one member that a test may kill and start again on the same data.
type Process struct {
	// Endpoint is a Unix socket.
	Endpoint string

	dir, binary string
	log         bytes.Buffer
	command     *exec.Cmd
	ended       chan struct{}
}

// Start starts an etcd that runs until the test ends and returns its endpoint.
func Start(t testing.TB) (endpoint string) {
	t.Helper()
	return New(t).Endpoint
}

// New builds etcd's server from the module that the store embeds and starts it with its default limits. It ends with the test.
func New(t testing.TB) *Process {
	t.Helper()
	// Not t.TempDir: the path of a socket may have 107 bytes.
	dir, err := os.MkdirTemp("", "etcd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &Process{dir: dir, binary: filepath.Join(dir, "etcd"), Endpoint: "unix://" + filepath.Join(dir, "s")}
	if output, err := exec.Command("go", "build", "-o", p.binary, "go.etcd.io/etcd/server/v3").CombinedOutput(); err != nil {
		t.Fatalf("build etcd: %v\n%s", err, output)
	}
	t.Cleanup(func() {
		p.Kill()
		if t.Failed() {
			t.Logf("etcd's log:\n%s", p.log.String())
		}
	})
	p.Start(t)
	return p
}

// Start starts the process and waits until it listens.
func (p *Process) Start(t testing.TB) {
	t.Helper()
	p.command = exec.Command(p.binary, "--name=external", "--data-dir="+filepath.Join(p.dir, "data"), "--log-level=warn",
		"--listen-client-urls="+p.Endpoint, "--advertise-client-urls="+p.Endpoint,
		// A socket too, in the working folder: no port is taken.
		"--listen-peer-urls=unix://peer:1", "--initial-advertise-peer-urls=unix://peer:1", "--initial-cluster=external=unix://peer:1")
	p.command.Dir, p.command.Stdout, p.command.Stderr = p.dir, &p.log, &p.log
	// It must not outlive a test process that is killed.
	p.command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.command.Start(); err != nil {
		t.Fatalf("start etcd: %v", err)
	}
	p.ended = make(chan struct{})
	go func() {
		defer close(p.ended)
		p.command.Wait()
	}()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", filepath.Join(p.dir, "s"))
		if err == nil {
			conn.Close()
			return
		}
		select {
		case <-again.C:
		case <-p.ended:
			t.Fatalf("etcd ended:\n%s", p.log.String())
		case <-ctx.Done():
			t.Fatalf("etcd does not listen: %v", err)
		}
	}
}

// Kill ends the process with kill -9.
func (p *Process) Kill() {
	p.command.Process.Kill()
	<-p.ended
}
