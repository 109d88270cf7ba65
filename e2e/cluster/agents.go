package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"dhow.dev/e2e/evidence"
	"dhow.dev/e2e/images"
)

// AgentsConfig says how the chart's DaemonSet makes machines of the outer cluster nodes of the inner one.
type AgentsConfig struct {
	// NodeName is that of the only node; empty: each has its machine's name.
	NodeName string
	// Data and State are folders of the machines: what belongs to pods, and the sockets and mounts of the container runtime.
	Data, State string
	// Selector are labels of the machines.
	Selector map[string]string
	// OwnNetwork gives nodes the network of their agent's pod and not that of the machine, where an agent of the outer cluster owns that.
	OwnNetwork bool
}

// Agents has the chart run node agents on machines of the outer cluster, and adds them to the nodes of the inner one when they are ready. Registry is where they find images.Name.
func (r *Release) Agents(t *testing.T, config AgentsConfig, registry string) evidence.Nodes {
	t.Helper()
	token := r.Inner.Token(t, "")
	r.apply(t, fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: join}\nstringData: {token: %q, ca-cert-hash: %q}\n", token.Token, token.Hash))
	selector := map[string]any{"dhow.dev/node-agent": nil}
	for name, value := range config.Selector {
		selector[name] = value
	}
	r.Write(t, "agents.yaml", map[string]any{
		"install": map[string]any{"nodeAgent": true},
		"node-agent": map[string]any{
			"join": map[string]any{"tokenSecret": "join"}, "nodeName": config.NodeName, "dataDir": config.Data, "nodeSelector": selector, "hostNetwork": !config.OwnNetwork,
			"runtime":   map[string]any{"state": config.State, "plainRegistries": []string{images.Name + "=http://" + registry}},
			"network":   map[string]any{"serviceCIDR": innerServiceCIDR, "podCIDR": innerPodCIDR, "dnsAddress": innerDNS},
			"resources": small, "extraArgs": []string{"--eviction-hard=" + EvictionHard},
		},
	})
	r.Upgrade(t, "--values", r.File("agents.yaml"))
	nodes := r.observers(t, config)
	for i := range nodes {
		r.Inner.Known(t, nodes[i].Name)
		r.Inner.Dhow(t, "wait", "--for=condition=Ready", "node/"+nodes[i].Name, "--timeout", Deadline.String())
		var node corev1.Node
		if err := yaml.Unmarshal([]byte(r.Inner.Dhow(t, "get", "node", nodes[i].Name, "-o", "yaml")), &node); err != nil {
			t.Fatal(err)
		}
		for _, address := range node.Status.Addresses {
			if address.Type == corev1.NodeInternalIP {
				nodes[i].Address = address.Address
			}
		}
	}
	return nodes
}

const observersManifest = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: observer}
spec:
  selector: {matchLabels: {app: observer}}
  template:
    metadata: {labels: {app: observer}}
    spec:
      terminationGracePeriodSeconds: 0
      nodeSelector: SELECTOR
      containers:
      - name: observer
        image: IMAGE
        command: [/bin/sh, -c, "trap 'exit 0' TERM; while :; do sleep 3600 & wait $!; done"]
        securityContext: {privileged: true}
        volumeMounts:
        - {name: data, mountPath: "DATA", mountPropagation: HostToContainer}
        - {name: state, mountPath: "STATE", mountPropagation: HostToContainer}
      volumes:
      - {name: data, hostPath: {path: "DATA", type: DirectoryOrCreate}}
      - {name: state, hostPath: {path: "STATE", type: DirectoryOrCreate}}
`

// observers runs, beside each agent, a pod of the outer cluster by which one sees what the agent's container runtime runs and what is in its folders: evidence that does not go
// through the inner cluster.
func (r *Release) observers(t *testing.T, config AgentsConfig) evidence.Nodes {
	t.Helper()
	selector, err := json.Marshal(config.Selector)
	if err != nil {
		t.Fatal(err)
	}
	r.apply(t, strings.NewReplacer("IMAGE", r.image(images.Carrier), "DATA", config.Data, "STATE", config.State, "SELECTOR", string(selector)).Replace(observersManifest))
	r.Outer(t, "rollout", "status", "daemonset/observer", "--timeout", Deadline.String())
	var pods corev1.PodList
	r.get(t, &pods, "pods", "-l", "app=observer")
	var nodes evidence.Nodes
	for _, pod := range pods.Items {
		name := pod.Spec.NodeName
		if config.NodeName != "" {
			name = config.NodeName
		}
		o := &observer{release: r, pod: pod.Name, socket: config.State + "/containerd.sock"}
		t.Cleanup(o.close)
		nodes = append(nodes, evidence.Node{Name: name, Data: config.Data, Elsewhere: o})
	}
	if len(nodes) == 0 {
		t.Fatal("no machine of the outer cluster is a node of the inner one")
	}
	return nodes
}

// observer sees a node through a pod of the outer cluster.
type observer struct {
	release     *Release
	pod, socket string

	mu   sync.Mutex
	conn *grpc.ClientConn
}

// Shell implements evidence.Elsewhere.
func (o *observer) Shell(_ context.Context, script string) (string, error) {
	return o.release.kubectl("exec", o.pod, "--", "sh", "-c", script)
}

// Runtime implements evidence.Elsewhere.
func (o *observer) Runtime() (grpc.ClientConnInterface, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conn == nil {
		conn, err := grpc.NewClient("passthrough:///runtime", grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(o.dial))
		if err != nil {
			return nil, err
		}
		o.conn = conn
	}
	return o.conn, nil
}

func (o *observer) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.conn != nil {
		o.conn.Close()
		o.conn = nil
	}
}

// dial makes a connection of the standard streams of a program in the pod, which passes them on to the runtime's socket. It outlives the context.
func (o *observer) dial(context.Context, string) (net.Conn, error) {
	cmd := o.release.kubectlCommand(context.Background(), "exec", "--stdin", o.pod, "--", images.CarrierProgram, "dial", o.socket)
	ours, theirs := net.Pipe()
	var problems said
	cmd.Stdout, cmd.Stderr = theirs, &problems
	// Not cmd.Stdin, for whose end Wait would wait.
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		_, _ = io.Copy(in, theirs)
		in.Close()
	}()
	c := &execConn{Conn: ours, cmd: cmd, ended: make(chan struct{})}
	go func() {
		c.end = cmd.Wait()
		if text := problems.String(); text != "" {
			c.end = errors.Join(c.end, errors.New(strings.TrimSpace(text)))
		}
		close(c.ended)
		theirs.Close()
	}()
	return c, nil
}

// execConn ends its program when it is closed.
type execConn struct {
	net.Conn
	cmd   *exec.Cmd
	ended chan struct{}
	end   error // once ended is closed
}

func (c *execConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.because(err)
}

func (c *execConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.because(err)
}

// because says why there is nothing at the other end any more: the program has ended, or Close ends it.
func (c *execConn) because(err error) error {
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	<-c.ended
	return errors.Join(c.end, err)
}

func (c *execConn) Close() error {
	err := c.Conn.Close()
	// It may have ended by itself.
	_ = c.cmd.Process.Kill()
	<-c.ended
	return err
}
