package cluster

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"dhow.dev/e2e/evidence"
	"dhow.dev/e2e/images"
	"dhow.dev/pkg/hosts"
)

// EvictionHard is that of `dhow up`, for agents that it does not start: the disk of a machine that runs tests may be fuller than a server's.
const EvictionHard = "memory.available<100Mi,nodefs.available<5%,nodefs.inodesFree<5%,imagefs.available<5%,imagefs.inodesFree<5%"

// Machine is a machine beside a cluster's nodes that knows nothing of any cluster: a network namespace on the cluster's bridge.
type Machine struct {
	Name    string
	Address netip.Addr
	// Dir is where a node agent on it keeps everything.
	Dir string

	host    hosts.Host
	cluster *Cluster
	log     said
	leave   func()
}

// Machine makes a machine, which is removed when the test ends. Join makes it a node.
func (c *Cluster) Machine(t *testing.T, name string) *Machine {
	t.Helper()
	subnet, err := netip.ParsePrefix(c.Subnet)
	if err != nil {
		t.Fatal(err)
	}
	network, err := hosts.New(hosts.Config{Name: c.ID, Subnet: subnet})
	if err != nil {
		t.Fatal(err)
	}
	number := c.number()
	t.Cleanup(func() { c.free(number) })
	address, err := network.Address(len(c.Nodes) + 1 + number)
	if err != nil {
		t.Fatal(err)
	}
	host, err := network.Add(c.ID+"-"+name, address)
	if err != nil {
		t.Fatal(err)
	}
	// Not t.TempDir, whose name is as long as the test's.
	dir, err := os.MkdirTemp("", "dhow-e2e-"+name+"-")
	if err != nil {
		t.Fatal(err)
	}
	m := &Machine{Name: name, Address: address, Dir: filepath.Join(dir, "node"), host: host, cluster: c}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("dhow join on %s said:\n%s", m.Name, m.log.String())
		}
		if err := errors.Join(network.Remove(host.Name), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	m.leave = sync.OnceFunc(func() {
		if out, err := m.Command(context.Background(), "leave", "--purge", "--data-dir", m.Dir).CombinedOutput(); err != nil {
			t.Errorf("dhow leave on %s: %v: %s", m.Name, err, out)
		}
	})
	return m
}

// number is the least that no machine has.
func (c *Cluster) number() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := slices.Index(c.machines, false)
	if n < 0 {
		n, c.machines = len(c.machines), append(c.machines, false)
	}
	c.machines[n] = true
	return n
}

func (c *Cluster) free(number int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.machines[number] = false
}

// state is the folder of the sockets and mounts of the machine's container runtime, which needs a short name.
func (m *Machine) state() string { return "/run/dhow/" + m.cluster.ID + "/" + m.Name }

// Command prepares a dhow command line on the machine.
func (m *Machine) Command(ctx context.Context, args ...string) *exec.Cmd {
	return m.host.Command(ctx, m.cluster.dhow, args...)
}

// Settings are arguments of `dhow join` for this machine, behind the server and the token; registry is where it finds images.Name, and agent is for the node agent.
func (m *Machine) Settings(registry string, agent ...string) []string {
	return append([]string{
		"--data-dir", m.Dir, "--node-name", m.Name, "--", "--address", m.Address.String(), "--fraction", "0.25",
		"--runtime-state", m.state(), "--cgroup-root", "/dhow/" + m.cluster.ID + "/" + m.Name, "--plain-registry", images.Name + "=http://" + registry,
		"--eviction-hard", EvictionHard,
	}, agent...)
}

// Registry is where nodes and machines find the images that Images serves.
func (c *Cluster) Registry() string { return c.Gateway + ":" + images.Port }

// Run runs `dhow join` with arguments until stop is called, or the test ends, which leaves pods running.
func (m *Machine) Run(t *testing.T, arguments ...string) (stop func()) {
	t.Helper()
	command := m.Command(context.Background(), append([]string{"join"}, arguments...)...)
	command.Stdout, command.Stderr = &m.log, &m.log
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		if err := command.Process.Signal(syscall.SIGINT); err != nil {
			t.Error(err)
		}
		if err := command.Wait(); err != nil {
			t.Errorf("dhow join on %s ended with %v:\n%s", m.Name, err, m.log.String())
		}
	})
	t.Cleanup(stop)
	return stop
}

// Leave ends what `dhow join` has left running, and deletes it.
func (m *Machine) Leave() { m.leave() }

// Join makes the machine a node of a cluster until the test ends, with what Token has printed, and waits until it is ready.
func (m *Machine) Join(t *testing.T, c *Any, token Token, registry string, agent ...string) evidence.Node {
	t.Helper()
	t.Cleanup(m.Leave) // after what Run does at the test's end
	m.Run(t, append([]string{token.Server, "--token", token.Token, "--ca-cert-hash", token.Hash}, m.Settings(registry, agent...)...)...)
	c.Known(t, m.Name)
	c.Dhow(t, "wait", "--for=condition=Ready", "node/"+m.Name, "--timeout", Deadline.String())
	return evidence.Node{Name: m.Name, Address: m.Address.String(), NetNS: m.host.NetNS, CRI: "unix://" + m.state() + "/containerd.sock", Data: m.Dir}
}

// Token is what `dhow token create` prints: how a machine joins.
type Token struct{ Server, Token, Hash string }

// Token makes a token; a server that is not empty is where machines reach the cluster.
func (a *Any) Token(t *testing.T, server string) Token {
	t.Helper()
	args := []string{"token", "create", "--ttl", "10m"}
	if server != "" {
		args = append(args, "--server", server)
	}
	words := strings.Fields(a.Dhow(t, args...))
	if len(words) != 7 || words[0] != "dhow" || words[1] != "join" || words[3] != "--token" || words[5] != "--ca-cert-hash" || server != "" && words[2] != server {
		t.Fatalf("dhow token create: %q", words)
	}
	return Token{Server: words[2], Token: words[4], Hash: words[6]}
}

// ID is the part of the token that is no secret.
func (k Token) ID() string {
	id, _, _ := strings.Cut(k.Token, ".")
	return id
}

// said is what a process has written so far.
type said struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (s *said) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(b)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}
