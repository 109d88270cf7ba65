package up

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"dhow.dev/pkg/hosts"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/process"
)

const (
	// sockets is where runtimes have their state and sockets: short, because a socket's path may have 107 characters.
	sockets = "/run/dhow"
	// agentGrace is how long an agent may take to end when its node is taken down.
	agentGrace = 20 * time.Second
	// agentRestart is the least time between two starts of one agent.
	agentRestart = time.Second
)

// network is the cluster's private bridge.
func (m machine) network() (*hosts.Network, error) {
	return hosts.New(hosts.Config{Name: m.ID, Subnet: m.Subnet})
}

// makeHosts makes the bridge and a network namespace for each node and each host of the control plane, or finds them.
func (m *machine) makeHosts(count, controlPlane int) error {
	network, err := m.network()
	if err != nil {
		return err
	}
	if err := network.Up(); err != nil {
		return err
	}
	m.Gateway, m.Bridge = network.Gateway(), network.Bridge()
	for i := len(m.Nodes); i < count; i++ {
		m.Nodes = append(m.Nodes, node{Name: fmt.Sprintf("n%d", i+1)})
	}
	for i := range m.Nodes {
		n := &m.Nodes[i]
		if n.Address, err = network.Address(i + 1); err != nil {
			return err
		}
		host, err := network.Add(m.ID+"-"+n.Name, n.Address)
		if err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
		n.NetNS = host.NetNS
		n.CRI = "unix://" + filepath.Join(m.state(n.Name), "containerd.sock")
	}
	return m.makeControlPlaneHosts(network, controlPlane)
}

// state is the folder of a node's runtime state.
func (m machine) state(nodeName string) string { return filepath.Join(sockets, m.ID, nodeName) }

func (m machine) cgroup(nodeName string) string { return "/dhow/" + m.ID + "/" + nodeName }

// agent is what is needed to run one node's agent.
type agent struct {
	dir        directory
	machine    machine
	node       node
	program    string
	runtimeDir string
	servers    []string
	registries []string
	logLevel   string
	otlp       string
	metrics    []string
}

func (a agent) file() string { return a.dir.node(a.node.Name, "agent.json") }

// arguments are those of the hidden command `dhow node-agent`, which the node-agent's own binary has too.
func (a agent) arguments() []string {
	files := pki.FilesIn(a.dir.pki(), "node-"+a.node.Name)
	args := []string{
		"node-agent",
		"--node-name", a.node.Name,
		"--address", a.node.Address.String(),
		// The nodes share the machine.
		"--fraction", strconv.FormatFloat(1/float64(len(a.machine.Nodes)), 'f', 4, 64),
		"--apiserver", strings.Join(a.servers, ","),
		// The machine is somebody's own: its disk may be fuller than a server's before pods have to go for it.
		"--eviction-hard", "memory.available<100Mi,nodefs.available<5%,nodefs.inodesFree<5%,imagefs.available<5%,imagefs.inodesFree<5%",
		"--tls-cacert", files.Authority, "--tls-cert", files.Certificate, "--tls-key", files.Key,
		"--data-dir", a.dir.node(a.node.Name, "data"),
		"--runtime-dir", a.runtimeDir,
		"--runtime-state", a.machine.state(a.node.Name),
		"--cgroup-root", a.machine.cgroup(a.node.Name),
		"--log-level", a.logLevel,
	}
	if a.otlp != "" {
		args = append(args, "--otlp-endpoint", a.otlp)
	}
	args = append(args, a.metrics...)
	for _, r := range a.registries {
		args = append(args, "--plain-registry", r)
	}
	return args
}

// request is the certificate of a node.
func (a agent) request() pki.Request {
	return pki.Request{Identity: identity.Node(a.node.Name), Client: true}
}

// keep runs the agent until ctx ends, and then leaves it running. One that runs already is taken over; one that dies is started again.
func (a agent) keep(ctx context.Context, logger *slog.Logger) error {
	for ctx.Err() == nil {
		running, err := process.Find(a.file())
		if err != nil {
			return err
		}
		if running == nil {
			running, err = process.Start(process.Spec{
				File: a.file(), Log: a.dir.node(a.node.Name, "agent.log"), NetNS: a.node.NetNS, Path: a.program, Args: a.arguments(),
			})
			if err != nil {
				return fmt.Errorf("node %s: %w", a.node.Name, err)
			}
		}
		if err := running.Wait(ctx); err != nil {
			continue // ctx has ended
		}
		logger.WarnContext(ctx, "node agent ended, starting it again", "node", a.node.Name, "log", a.dir.node(a.node.Name, "agent.log"))
		select {
		case <-ctx.Done():
		case <-time.After(agentRestart):
		}
	}
	return nil
}

// restartIfChanged stops an agent that runs with other arguments than it should, for example another address of the API. Its pods run on.
func (a agent) restartIfChanged(ctx context.Context) error {
	running, err := process.Find(a.file())
	if running == nil || err != nil {
		return err
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", running.PID()))
	if err != nil {
		return nil // it has just ended
	}
	if strings.HasSuffix(strings.TrimSuffix(string(line), "\x00"), strings.Join(a.arguments(), "\x00")) {
		return nil
	}
	return running.Stop(ctx, agentGrace)
}
