// Package cni writes the configuration with which the container runtime connects pods: the bridge plugin with addresses of the node's pod
// network from the host-local plugin. It says when the node's pods can have a network and gives back addresses that a crash left reserved.
package cni

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/informer"
)

const (
	// NetworkName is the name of the pod network, and of host-local's folder in the data folder.
	NetworkName = "dhow"
	// FileName sorts before what distributions install, because runtimes take the first file.
	FileName = "05-dhow.conflist"
	// specVersion is the CNI version of the file: the newest that all runtimes with CRI v1 understand.
	specVersion = "1.0.0"
	maxBridge   = 15 // IFNAMSIZ without its terminator
)

// Source tells all nodes and every change. *informer.Store is one.
type Source interface {
	OnChangeTraced(func(old, new *corev1.Node, trace *informer.Trace))
}

// Config is where a node keeps its network configuration.
type Config struct {
	NodeName string
	// ConfDir is the runtime's CNI configuration folder, DataDir the folder for reserved addresses. Nodes that share a machine must not share them.
	ConfDir, DataDir string
	// MTU of the pods' interfaces; 0 leaves the kernel's default.
	MTU    int
	Nodes  Source
	Logger *slog.Logger
}

// Network keeps the configuration file of one node.
type Network struct {
	config Config
	ready  chan struct{}
	notify chan struct{}

	mu     sync.Mutex
	subnet netip.Prefix
}

// New registers with the source; call it before that runs.
func New(config Config) (*Network, error) {
	if config.NodeName == "" || config.ConfDir == "" || config.DataDir == "" || config.Nodes == nil {
		return nil, errors.New("cni: NodeName, ConfDir, DataDir and Nodes are required")
	}
	n := &Network{config: config, ready: make(chan struct{}), notify: make(chan struct{}, 1)}
	config.Nodes.OnChangeTraced(n.node)
	return n, nil
}

// BridgeName is the name of a node's bridge: its own, so that two agents in one network namespace do not share one.
func BridgeName(node string) string {
	sum := sha256.Sum256([]byte(node))
	return ("dhow-" + hex.EncodeToString(sum[:]))[:maxBridge]
}

// Ready is closed when the configuration is in place: the node has a pod network. Until then the node is NotReady with reason NetworkPluginNotReady.
func (n *Network) Ready() <-chan struct{} { return n.ready }

func (n *Network) node(_, new *corev1.Node, _ *informer.Trace) {
	if new == nil || new.GetMetadata().GetName() != n.config.NodeName {
		return
	}
	subnet, ok := PodCIDR(new)
	if !ok {
		return
	}
	n.mu.Lock()
	changed := n.subnet != subnet
	n.subnet = subnet
	n.mu.Unlock()
	if changed {
		select {
		case n.notify <- struct{}{}:
		default:
		}
	}
}

// PodCIDR returns a node's IPv4 pod network.
func PodCIDR(node *corev1.Node) (netip.Prefix, bool) {
	given := node.GetSpec().GetPodCidrs()
	if len(given) == 0 {
		given = []string{node.GetSpec().GetPodCidr()}
	}
	for _, s := range given {
		if p, err := netip.ParsePrefix(s); err == nil && p.Addr().Is4() {
			return p.Masked(), true
		}
	}
	return netip.Prefix{}, false
}

// Run writes the file whenever the node's pod network becomes known or changes, until ctx ends. The file stays: pods can start while the
// agent or the control plane is away.
func (n *Network) Run(ctx context.Context) error {
	if err := n.adopt(); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-n.notify:
		}
		n.mu.Lock()
		subnet := n.subnet
		n.mu.Unlock()
		if err := n.write(ctx, subnet); err != nil {
			return err
		}
		n.markReady()
	}
}

func (n *Network) markReady() {
	select {
	case <-n.ready:
	default:
		close(n.ready)
	}
}

// adopt takes the file of an earlier run as good, so that a node that starts while it is cut off can run its pods.
func (n *Network) adopt() error {
	content, err := os.ReadFile(n.path())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the CNI configuration: %w", err)
	}
	subnet, ok := subnetOf(content)
	if !ok {
		return nil
	}
	wanted, err := n.render(subnet)
	if err != nil {
		return err
	}
	if bytes.Equal(content, wanted) {
		n.markReady()
	}
	return nil
}

func (n *Network) write(ctx context.Context, subnet netip.Prefix) error {
	content, err := n.render(subnet)
	if err != nil {
		return err
	}
	current, err := os.ReadFile(n.path())
	if err == nil && bytes.Equal(current, content) {
		return nil
	}
	if before, ok := subnetOf(current); ok && before != subnet {
		n.config.Logger.WarnContext(ctx, "the node's pod network changed; pods that run keep their old addresses until they are replaced", "before", before, "now", subnet)
	}
	for _, dir := range []string{n.config.ConfDir, n.config.DataDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("CNI configuration: %w", err)
		}
	}
	// Runtimes watch the folder, so they must never read half a file. They ignore names that do not end in .conf, .conflist or .json.
	temporary := n.path() + ".tmp"
	if err := os.WriteFile(temporary, content, 0o644); err != nil {
		return fmt.Errorf("write the CNI configuration: %w", err)
	}
	if err := os.Rename(temporary, n.path()); err != nil {
		return fmt.Errorf("write the CNI configuration: %w", err)
	}
	n.config.Logger.InfoContext(ctx, "pod network configured", "subnet", subnet, "file", n.path())
	return nil
}

func (n *Network) path() string { return filepath.Join(n.config.ConfDir, FileName) }

// The file's format: CNI specification 1.0.0, section 1; keys of the bridge and host-local plugins.
type (
	list struct {
		CNIVersion string   `json:"cniVersion"`
		Name       string   `json:"name"`
		Plugins    []bridge `json:"plugins"`
	}
	bridge struct {
		Type             string `json:"type"`
		Bridge           string `json:"bridge"`
		IsGateway        bool   `json:"isGateway"`
		IsDefaultGateway bool   `json:"isDefaultGateway"`
		ForceAddress     bool   `json:"forceAddress"`
		IPMasq           bool   `json:"ipMasq"`
		HairpinMode      bool   `json:"hairpinMode"`
		MTU              int    `json:"mtu,omitempty"`
		IPAM             ipam   `json:"ipam"`
	}
	ipam struct {
		Type    string           `json:"type"`
		DataDir string           `json:"dataDir"`
		Ranges  [][]addressRange `json:"ranges"`
	}
	addressRange struct {
		Subnet string `json:"subnet"`
	}
)

// render makes the file. Sources are not masqueraded here: pods of the cluster see each other's addresses, and package routes hides them
// from the rest of the world. The loopback interface is the runtime's own business, and host ports are package proxy's.
func (n *Network) render(subnet netip.Prefix) ([]byte, error) {
	content, err := json.MarshalIndent(list{
		CNIVersion: specVersion, Name: NetworkName,
		Plugins: []bridge{{
			Type: "bridge", Bridge: BridgeName(n.config.NodeName), IsGateway: true, IsDefaultGateway: true, HairpinMode: true, MTU: n.config.MTU,
			// The bridge outlives a change of the pod network; its address then follows.
			ForceAddress: true,
			IPAM:         ipam{Type: "host-local", DataDir: n.config.DataDir, Ranges: [][]addressRange{{{Subnet: subnet.String()}}}},
		}},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("CNI configuration: %w", err)
	}
	return append(content, '\n'), nil
}

func subnetOf(content []byte) (netip.Prefix, bool) {
	var l list
	if json.Unmarshal(content, &l) != nil || len(l.Plugins) != 1 {
		return netip.Prefix{}, false
	}
	ranges := l.Plugins[0].IPAM.Ranges
	if len(ranges) != 1 || len(ranges[0]) != 1 {
		return netip.Prefix{}, false
	}
	subnet, err := netip.ParsePrefix(ranges[0][0].Subnet)
	return subnet, err == nil
}

// Reclaim frees the addresses of sandboxes that no longer exist, as after a power failure, and returns how many. sandboxes are the ids of all
// sandboxes of the runtime, and no sandbox may be made meanwhile: call it before the first pod is started.
func (n *Network) Reclaim(sandboxes map[string]bool) (int, error) {
	dir := filepath.Join(n.config.DataDir, NetworkName)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("reserved pod addresses: %w", err)
	}
	// host-local holds this lock while it changes the folder.
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return 0, fmt.Errorf("reserved pod addresses: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return 0, fmt.Errorf("lock the reserved pod addresses: %w", err)
	}
	freed := 0
	for _, e := range entries {
		// A reservation is a file named by its address that holds the sandbox id and, on the next line, the interface.
		if _, err := netip.ParseAddr(e.Name()); err != nil {
			continue
		}
		path := filepath.Join(dir, e.Name())
		content, err := os.ReadFile(path)
		if err != nil {
			return freed, fmt.Errorf("reserved pod address: %w", err)
		}
		id, _, _ := strings.Cut(string(content), "\n")
		if sandboxes[strings.TrimSpace(id)] {
			continue
		}
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return freed, fmt.Errorf("free a reserved pod address: %w", err)
		}
		freed++
	}
	return freed, nil
}
