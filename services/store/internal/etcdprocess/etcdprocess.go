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

// Start builds etcd's server from the module that the store embeds, starts it with its default limits and returns its endpoint, a
// Unix socket. It ends with the test.
func Start(t testing.TB) (endpoint string) {
	t.Helper()
	// Not t.TempDir: the path of a socket may have 107 bytes.
	dir, err := os.MkdirTemp("", "etcd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	binary := filepath.Join(dir, "etcd")
	if output, err := exec.Command("go", "build", "-o", binary, "go.etcd.io/etcd/server/v3").CombinedOutput(); err != nil {
		t.Fatalf("build etcd: %v\n%s", err, output)
	}
	socket := filepath.Join(dir, "s")
	endpoint = "unix://" + socket
	var log bytes.Buffer
	process := exec.Command(binary, "--name=external", "--data-dir="+filepath.Join(dir, "data"), "--log-level=warn",
		"--listen-client-urls="+endpoint, "--advertise-client-urls="+endpoint,
		// A socket too, in the working folder: no port is taken.
		"--listen-peer-urls=unix://peer:1", "--initial-advertise-peer-urls=unix://peer:1", "--initial-cluster=external=unix://peer:1")
	process.Dir, process.Stdout, process.Stderr = dir, &log, &log
	// It must not outlive a test process that is killed.
	process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := process.Start(); err != nil {
		t.Fatalf("start etcd: %v", err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		process.Wait()
	}()
	t.Cleanup(func() {
		process.Process.Kill()
		<-ended
		if t.Failed() {
			t.Logf("etcd's log:\n%s", log.String())
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	again := time.NewTicker(20 * time.Millisecond)
	defer again.Stop()
	for {
		conn, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
		if err == nil {
			conn.Close()
			return endpoint
		}
		select {
		case <-again.C:
		case <-ended:
			t.Fatalf("etcd ended:\n%s", log.String())
		case <-ctx.Done():
			t.Fatalf("etcd does not listen: %v", err)
		}
	}
}
