package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/process"
	"dhow.dev/pkg/transport"
)

// Service is a service in a process of its own.
type Service struct {
	// Name is the process', as apiserver-c1, kind what it runs, and address where it listens.
	Name, kind, Address string
	file                string
}

// Services finds the running services of a kind, sorted by name; an empty kind is all.
func (c *Cluster) Services(t *testing.T, kind string) []Service {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(c.DataDir, "services", kind+"*.json"))
	if err != nil {
		t.Fatal(err)
	}
	var list []Service
	for _, file := range files {
		s := Service{Name: strings.TrimSuffix(filepath.Base(file), ".json"), file: file}
		running, err := process.Find(file)
		if err != nil || running == nil {
			t.Fatalf("%s does not run: %v", s.Name, err)
		}
		arguments := process.CommandLine(running.PID())
		running.Release()
		i := slices.Index(arguments, "--listen")
		if i < 0 {
			t.Fatalf("%s listens nowhere: %v", s.Name, arguments)
		}
		s.Address = arguments[i+1]
		s.kind = strings.TrimPrefix(filepath.Base(arguments[0]), "dhow-")
		list = append(list, s)
	}
	return list
}

// Signal sends a service's process a signal and waits until it has ended by it.
func (s Service) Signal(t *testing.T, signal syscall.Signal) {
	t.Helper()
	running, err := process.Find(s.file)
	if err != nil || running == nil {
		t.Fatalf("%s does not run: %v", s.Name, err)
	}
	defer running.Release()
	if err := running.Signal(signal); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), Deadline)
	defer cancel()
	if err := running.Wait(ctx); err != nil {
		t.Fatalf("%s does not end by %s: %v", s.Name, signal, err)
	}
}

// Serving waits until a service says of itself that it serves.
func (c *Cluster) Serving(t *testing.T, s Service) {
	t.Helper()
	conn := c.dial(t, s.kind, s.Address)
	defer conn.Close()
	Eventually(t, func(ctx context.Context) error {
		answer, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
		if err == nil && answer.GetStatus() != healthpb.HealthCheckResponse_SERVING {
			err = fmt.Errorf("%s answers %s", s.Name, answer.GetStatus())
		}
		return err
	})
}

// Hold keeps `dhow up` from starting again what ends, until the function that it returns is called: what takes over is then another process.
func (c *Cluster) Hold(t *testing.T) (release func()) {
	t.Helper()
	signal := func(s syscall.Signal) {
		if err := c.up.Process.Signal(s); err != nil {
			t.Error(err)
		}
	}
	signal(syscall.SIGSTOP)
	released := false
	release = func() {
		if !released {
			released = true
			signal(syscall.SIGCONT)
		}
	}
	t.Cleanup(release)
	return release
}

// Dial connects to API servers, to one that answers, as the cluster's administrator.
func (c *Cluster) Dial(t *testing.T, servers ...Service) *grpc.ClientConn {
	t.Helper()
	var addresses []string
	for _, s := range servers {
		addresses = append(addresses, s.Address)
	}
	conn := c.dial(t, "apiserver", strings.Join(addresses, ","))
	t.Cleanup(func() { conn.Close() })
	return conn
}

// dial connects to services of a kind as the administrator.
func (c *Cluster) dial(t *testing.T, kind, addresses string) *grpc.ClientConn {
	t.Helper()
	pair, err := pki.LoadKeyPair(pki.FilesIn(filepath.Join(c.DataDir, "pki"), "admin"))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := transport.Dial(addresses, transport.TLSClient(pair, kind+".dhow"))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// Kubernetes is client-go's configuration for all API servers at once: a new connection goes to one that takes it, as behind a load balancer of connections. Everything
// else is as client-go has it. An empty content type is its default.
func (c *Cluster) Kubernetes(t *testing.T, contentType string) *rest.Config {
	t.Helper()
	file := filepath.Join(c.DataDir, "kubeconfig")
	known, err := clientcmd.LoadFromFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var addresses []string
	for _, server := range known.Clusters {
		addresses = append(addresses, strings.TrimPrefix(server.Server, "https://"))
	}
	slices.Sort(addresses)
	config, err := clientcmd.BuildConfigFromFlags("", file)
	if err != nil {
		t.Fatal(err)
	}
	config.ContentType, config.QPS, config.Dial = contentType, -1, dialAny(addresses)
	return config
}

// dialTimeout is how long a server may take to take a connection before the next one is tried.
const dialTimeout = 2 * time.Second

// dialAny connects to the address that took the last connection, or else to the next one that does.
func dialAny(addresses []string) func(ctx context.Context, network, address string) (net.Conn, error) {
	var current atomic.Uint64
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		var failed []error
		for range addresses {
			at := current.Load()
			conn, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, addresses[at%uint64(len(addresses))])
			if err == nil {
				return conn, nil
			}
			failed = append(failed, err)
			current.CompareAndSwap(at, at+1)
		}
		return nil, errors.Join(failed...)
	}
}
