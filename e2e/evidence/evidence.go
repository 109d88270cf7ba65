// Package evidence asks the machine itself what is the case: the container runtime of each node, packet rules, HTTP answers, processes. Tests and the
// demo compare it with what the cluster's API claims; nothing here goes through Dhow.
package evidence

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels that the node agent gives to containers and sandboxes, the same that the kubelet gives.
const (
	labelPodName      = "io.kubernetes.pod.name"
	labelPodNamespace = "io.kubernetes.pod.namespace"
)

// Machine is what one cluster occupies of this machine, as `dhow up` writes it into cluster.json.
type Machine struct {
	ID      string `json:"id"`
	Subnet  string `json:"subnet"`
	Gateway string `json:"gateway"`
	Bridge  string `json:"bridge"`
	Nodes   Nodes  `json:"nodes"`
	// Hosts are those of the control plane, when it has its own. They have no container runtime.
	Hosts []Node `json:"hosts"`
}

// Nodes are a cluster's.
type Nodes []Node

// Node is one node.
type Node struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	// NetNS is the file of its network namespace, when it is one of this machine.
	NetNS string `json:"netns"`
	// CRI is the address of its container runtime, when that runs on this machine.
	CRI string `json:"cri"`
	// Data is the folder in which its agent keeps what belongs to pods, on the node's own machine.
	Data string `json:"-"`
	// Elsewhere is the way to a node that is not on this machine; nil: it is.
	Elsewhere Elsewhere `json:"-"`
}

// Elsewhere is the way to a node on another machine, past the cluster whose node it is.
type Elsewhere interface {
	// Runtime is a connection to the node's container runtime. It is shared, and stays open.
	Runtime() (grpc.ClientConnInterface, error)
	// Shell runs a script where the node's folders are, and returns what it printed.
	Shell(ctx context.Context, script string) (string, error)
}

// Read reads what a cluster's data directory says.
func Read(dataDir string) (Machine, error) {
	var m Machine
	content, err := os.ReadFile(filepath.Join(dataDir, "cluster.json"))
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(content, &m); err != nil {
		return m, fmt.Errorf("%s: %w", filepath.Join(dataDir, "cluster.json"), err)
	}
	for i, n := range m.Nodes {
		m.Nodes[i].Data = filepath.Join(dataDir, "nodes", n.Name, "data")
	}
	return m, nil
}

// Containers lists the running containers of a namespace on all nodes but those that are excluded.
func (m Machine) Containers(ctx context.Context, namespace string, excluded ...string) ([]Container, error) {
	return m.Nodes.Containers(ctx, namespace, excluded...)
}

// Node returns a node by name.
func (m Machine) Node(name string) (Node, error) {
	for _, n := range m.Nodes {
		if n.Name == name {
			return n, nil
		}
	}
	return Node{}, fmt.Errorf("the cluster has no node %q", name)
}

// Container is a container as its runtime sees it.
type Container struct {
	Node           Node
	ID             string
	Namespace, Pod string
	Name           string
	// Image is the reference that it was created with.
	Image   string
	Attempt uint32
	// Created is when, by the clock of its machine.
	Created time.Time
}

// Containers lists the running containers of a namespace on all nodes but those that are excluded.
func (nodes Nodes) Containers(ctx context.Context, namespace string, excluded ...string) ([]Container, error) {
	var all []Container
next:
	for _, n := range nodes {
		for _, name := range excluded {
			if n.Name == name {
				continue next
			}
		}
		found, err := n.Containers(ctx, namespace)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

func (n Node) runtime() (runtimeapi.RuntimeServiceClient, func() error, error) {
	if n.Elsewhere != nil {
		conn, err := n.Elsewhere.Runtime()
		if err != nil {
			return nil, nil, fmt.Errorf("container runtime of %s: %w", n.Name, err)
		}
		return runtimeapi.NewRuntimeServiceClient(conn), func() error { return nil }, nil
	}
	conn, err := grpc.NewClient(n.CRI, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, fmt.Errorf("container runtime of %s: %w", n.Name, err)
	}
	return runtimeapi.NewRuntimeServiceClient(conn), conn.Close, nil
}

// Containers lists the node's running containers of a namespace.
func (n Node) Containers(ctx context.Context, namespace string) ([]Container, error) {
	client, closeConn, err := n.runtime()
	if err != nil {
		return nil, err
	}
	defer closeConn()
	response, err := client.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State:         &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
		LabelSelector: map[string]string{labelPodNamespace: namespace},
	}})
	if err != nil {
		return nil, fmt.Errorf("container runtime of %s: %w", n.Name, err)
	}
	var found []Container
	for _, c := range response.GetContainers() {
		image := c.GetImage().GetUserSpecifiedImage()
		if image == "" {
			image = c.GetImage().GetImage()
		}
		found = append(found, Container{
			Node: n, ID: c.GetId(), Namespace: namespace, Pod: c.GetLabels()[labelPodName], Name: c.GetMetadata().GetName(), Image: image, Attempt: c.GetMetadata().GetAttempt(),
			Created: time.Unix(0, c.GetCreatedAt()),
		})
	}
	return found, nil
}

// PID is the process id, on the machine, of a container's first process.
func (c Container) PID(ctx context.Context) (int, error) {
	client, closeConn, err := c.Node.runtime()
	if err != nil {
		return 0, err
	}
	defer closeConn()
	response, err := client.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.ID, Verbose: true})
	if err != nil {
		return 0, fmt.Errorf("container runtime of %s: %w", c.Node.Name, err)
	}
	var info struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(response.GetInfo()["info"]), &info); err != nil || info.PID <= 1 {
		return 0, fmt.Errorf("container runtime of %s: container %s has pid %d: %w", c.Node.Name, c.ID, info.PID, err)
	}
	return info.PID, nil
}

// Kill has the runtime kill the container's first process, behind the back of the node's agent.
func (c Container) Kill(ctx context.Context) error {
	client, closeConn, err := c.Node.runtime()
	if err != nil {
		return err
	}
	defer closeConn()
	if _, err := client.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.ID, Timeout: 0}); err != nil {
		return fmt.Errorf("kill %s in %s: %w", c.Name, c.Pod, err)
	}
	return nil
}

// Exec runs a command in the container by the runtime and returns what it printed.
func (c Container) Exec(ctx context.Context, timeout time.Duration, command ...string) (string, error) {
	client, closeConn, err := c.Node.runtime()
	if err != nil {
		return "", err
	}
	defer closeConn()
	response, err := client.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.ID, Cmd: command, Timeout: int64(timeout.Seconds())})
	if err != nil {
		return "", fmt.Errorf("%s in %s: %w", strings.Join(command, " "), c.Pod, err)
	}
	if response.GetExitCode() != 0 {
		return "", fmt.Errorf("%s in %s: exit code %d: %s", strings.Join(command, " "), c.Pod, response.GetExitCode(), response.GetStderr())
	}
	return string(response.GetStdout()), nil
}

// Shell runs a script where the node's folders are, and returns what it printed.
func (n Node) Shell(ctx context.Context, script string) (string, error) {
	if n.Elsewhere != nil {
		out, err := n.Elsewhere.Shell(ctx, script)
		if err != nil {
			return "", fmt.Errorf("on %s: %s: %w", n.Name, script, err)
		}
		return out, nil
	}
	out, err := exec.CommandContext(ctx, "sh", "-c", script).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("on %s: %s: %w: %s", n.Name, script, err, out)
	}
	return string(out), nil
}

// Rules returns the node's packet rules as `nft list ruleset` prints them.
func (n Node) Rules(ctx context.Context) (string, error) {
	return n.Command(ctx, "nft", "list", "ruleset")
}

// Command runs a program of this machine in the node's network namespace and returns what it printed.
func (n Node) Command(ctx context.Context, program string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--net=" + n.NetNS, program}, args...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("on %s: %s: %w: %s", n.Name, program, err, out)
	}
	return string(out), nil
}

// HTTP asks once, over a connection of its own, and returns the body of a 2xx answer.
func HTTP(ctx context.Context, method, url, body string) (string, error) {
	transport := &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext}
	defer transport.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, method, url, strings.NewReader(body))
	if err != nil {
		return "", err
	}
	response, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	content, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return "", fmt.Errorf("%s %s: %w", method, url, err)
	}
	if response.StatusCode/100 != 2 {
		return "", fmt.Errorf("%s %s: %s: %s", method, url, response.Status, strings.TrimSpace(string(content)))
	}
	return string(content), nil
}

// Leftovers lists what a cluster that is gone has left on the machine: network namespaces, interfaces, mounts and processes that carry its id or data directory.
func (m Machine) Leftovers(dataDir string) ([]string, error) {
	var left []string
	for _, n := range append(slices.Clone(m.Nodes), m.Hosts...) {
		if _, err := os.Stat(n.NetNS); err == nil {
			left = append(left, "network namespace "+n.NetNS)
		}
	}
	if _, err := net.InterfaceByName(m.Bridge); err == nil {
		left = append(left, "bridge "+m.Bridge)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return nil, err
	}
	for _, line := range strings.Split(string(mounts), "\n") {
		if strings.Contains(line, dataDir) || strings.Contains(line, "/run/dhow/"+m.ID) {
			left = append(left, "mount "+line)
		}
	}
	processes, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	for _, p := range processes {
		// A process that ends meanwhile leaves nothing.
		line, err := os.ReadFile(p)
		if err != nil || p == fmt.Sprintf("/proc/%d/cmdline", os.Getpid()) {
			continue
		}
		if command := strings.ReplaceAll(string(line), "\x00", " "); strings.Contains(command, dataDir) || strings.Contains(command, "/run/dhow/"+m.ID) {
			left = append(left, "process "+filepath.Base(filepath.Dir(p))+": "+command)
		}
	}
	return left, nil
}
