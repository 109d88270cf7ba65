package cluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"dhow.dev/e2e/images"
)

// The networks of inner clusters. The one that they are installed on has others: its pods may be their machines.
const (
	innerServiceCIDR = "10.98.0.0/16"
	innerPodCIDR     = "10.54.0.0/16"
	innerDNS         = "10.98.0.10"
)

// release is a release's name.
const release = "plane"

// ReleaseConfig says where the umbrella chart is installed, and how.
type ReleaseConfig struct {
	// Kubeconfig is the file of any Kubernetes cluster, the outer one.
	Kubeconfig string
	// Address, where the outer cluster's node ports answer this machine and the inner cluster's nodes; empty: that of a node.
	Address string
	// Namespace is made, and deleted when the test ends.
	Namespace string
	// Chart is the archive of the umbrella chart. Registry and Tag are those of the images, also of the image images.Carrier; empty: as the archives that `make images` makes.
	Chart, Registry, Tag string
	Stores               int
	// Ports on every node of the outer cluster: of the inner one's API servers, and of the images that its pods run.
	GRPCPort, KubernetesPort, ImagesPort int
}

// Release is a control plane that real helm has installed on another cluster, and the cluster that it makes: the outer and the inner one.
type Release struct {
	ReleaseConfig
	// Name is the release's.
	Name string
	// Inner is the cluster whose control plane it is. It has no nodes before Agents, or before machines Join it.
	Inner *Any

	dir, kubectlProgram string
}

// Install installs the umbrella chart and waits until the control plane is ready.
func Install(t *testing.T, config ReleaseConfig) *Release {
	t.Helper()
	r := &Release{ReleaseConfig: config, Name: release, dir: t.TempDir(), kubectlProgram: program(t, "dhow-kubectl")}
	if r.Address == "" {
		r.Address = r.nodeAddress(t)
	}
	// Agents are privileged, which a cluster may refuse where a namespace does not say it.
	r.apply(t, "apiVersion: v1\nkind: Namespace\nmetadata: {name: "+r.Namespace+", labels: {pod-security.kubernetes.io/enforce: privileged}}\n")
	t.Cleanup(func() {
		if t.Failed() {
			r.Tell(t)
		}
		if out, err := r.kubectl("delete", "namespace", r.Namespace, "--timeout", Deadline.String()); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	r.Write(t, "values.yaml", r.values())
	r.Helm(t, "install", r.Name, r.Chart, "--values", r.File("values.yaml"), "--wait", "--timeout", "5m")
	r.Ready(t, map[string]int{"store": r.Stores, "apiserver": 2, "scheduler": 2, "controller-manager": 2})
	r.administrate(t)
	return r
}

// At is a port of the outer cluster's nodes.
func (r *Release) At(port int) string { return net.JoinHostPort(r.Address, strconv.Itoa(port)) }

// File is a file of the release, as values.yaml, and those of the administrator's configuration.
func (r *Release) File(name string) string { return filepath.Join(r.dir, name) }

// Write writes a file of the release: bytes as they are, anything else as YAML.
func (r *Release) Write(t *testing.T, name string, content any) {
	t.Helper()
	bytes, ok := content.([]byte)
	if !ok {
		var err error
		if bytes, err = yaml.Marshal(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(r.File(name), bytes, 0o600); err != nil {
		t.Fatal(err)
	}
}

// nodeAddress is the address of a node of the outer cluster that runs pods.
func (r *Release) nodeAddress(t *testing.T) string {
	t.Helper()
	var nodes corev1.NodeList
	r.get(t, &nodes, "nodes")
	for _, n := range nodes.Items {
		for _, address := range n.Status.Addresses {
			if parsed, err := netip.ParseAddr(address.Address); err == nil && parsed.Is4() && address.Type == corev1.NodeInternalIP && !n.Spec.Unschedulable {
				return address.Address
			}
		}
	}
	t.Fatalf("no node of %s has an IPv4 address", r.Kubeconfig)
	return ""
}

// small are the resources of what runs on a machine that runs tests.
var small = map[string]any{"requests": map[string]any{"cpu": "20m", "memory": "32Mi"}}

func (r *Release) values() map[string]any {
	service := map[string]any{"resources": small}
	return map[string]any{
		"global":       map[string]any{"image": map[string]any{"registry": r.Registry, "tag": r.Tag}, "stores": r.Stores},
		"access":       map[string]any{"server": r.At(r.GRPCPort), "kubernetesServer": r.At(r.KubernetesPort)},
		"certificates": service, "scheduler": service, "controller-manager": service,
		"store": map[string]any{"resources": small, "persistence": map[string]any{"size": "1Gi"}},
		"apiserver": map[string]any{
			"network":   map[string]any{"serviceCIDR": innerServiceCIDR, "podCIDR": innerPodCIDR},
			"resources": small, "kubernetesAdvertiseAddress": r.At(r.KubernetesPort),
			"service": map[string]any{"type": "NodePort", "nodePorts": map[string]any{"grpc": r.GRPCPort, "kubernetes": r.KubernetesPort}},
		},
	}
}

// Networks are arguments of a node agent for the inner cluster's networks.
func (r *Release) Networks() []string {
	return []string{"--service-cidr", innerServiceCIDR, "--cluster-cidr", innerPodCIDR, "--cluster-dns", innerDNS}
}

// Helm runs helm on the outer cluster, in the release's namespace. It must succeed.
func (r *Release) Helm(t *testing.T, args ...string) {
	t.Helper()
	if out, err := r.TryHelm(t, args...); err != nil {
		r.Tell(t)
		t.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// TryHelm runs helm and returns what it said.
func (r *Release) TryHelm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*Deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, program(t, "helm4"), append(args, "--namespace", r.Namespace)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+r.Kubeconfig, "HOME="+r.dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Upgrade upgrades the release with the values that it was installed with and further arguments.
func (r *Release) Upgrade(t *testing.T, args ...string) {
	t.Helper()
	r.Helm(t, append([]string{"upgrade", r.Name, r.Chart, "--values", r.File("values.yaml"), "--wait", "--timeout", "5m"}, args...)...)
}

// Outer runs kubectl on the outer cluster, in the release's namespace. It must succeed.
func (r *Release) Outer(t *testing.T, args ...string) string {
	t.Helper()
	out, err := r.kubectl(args...)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return out
}

func (r *Release) kubectlCommand(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, r.kubectlProgram, append([]string{"--kubeconfig", r.Kubeconfig, "--namespace", r.Namespace, "--cache-dir", r.File("cache")}, args...)...)
}

func (r *Release) kubectl(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Deadline)
	defer cancel()
	out, err := r.kubectlCommand(ctx, args...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return string(out), err
}

// get reads objects of the outer cluster.
func (r *Release) get(t *testing.T, into any, args ...string) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(r.Outer(t, append([]string{"get", "-o", "yaml"}, args...)...)), into); err != nil {
		t.Fatal(err)
	}
}

// apply applies a manifest to the outer cluster.
func (r *Release) apply(t *testing.T, manifest string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Deadline)
	defer cancel()
	cmd := r.kubectlCommand(ctx, "apply", "-f", "-")
	cmd.Stdin = strings.NewReader(manifest)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("kubectl apply: %v: %s\n%s", err, out, manifest)
	}
}

// Tell logs how the pods of the control plane are.
func (r *Release) Tell(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{{"get", "pods,jobs,pvc", "-o", "wide"}, {"describe", "pods"}} {
		out, err := r.kubectl(args...)
		t.Logf("%s%v", out, err)
	}
	pods, _ := r.kubectl("get", "pods", "-o", "name")
	for pod := range strings.FieldsSeq(pods) {
		out, err := r.kubectl("logs", pod, "--tail", "30", "--all-containers")
		t.Logf("%s:\n%s%v", pod, out, err)
	}
}

// Ready checks, as soon as helm has said that it waited, that so many pods of each service are.
func (r *Release) Ready(t *testing.T, want map[string]int) {
	t.Helper()
	for service, n := range want {
		kind := "deployment"
		if service == "store" {
			kind = "statefulset"
		}
		out := r.Outer(t, "get", kind, r.Name+"-"+service)
		if !strings.Contains(out, fmt.Sprintf("%d/%d", n, n)) {
			t.Errorf("helm did not wait for %d of %s:\n%s", n, service, out)
		}
	}
}

// administrate reads the administrator's configuration as the notes of the chart say.
func (r *Release) administrate(t *testing.T) {
	t.Helper()
	var secret corev1.Secret
	r.get(t, &secret, "secret", r.Name+"-admin")
	for _, file := range []string{"ca.crt", "tls.crt", "tls.key", "kubeconfig", "client.yaml"} {
		r.Write(t, file, secret.Data[file])
	}
	r.Inner = &Any{
		PodNetwork: netip.MustParsePrefix(innerPodCIDR), dhow: program(t, "dhow"), config: r.File("client.yaml"), kubeconfig: r.File("kubeconfig"), address: r.At(r.GRPCPort),
		administrator: Administrator{Authority: r.File("ca.crt"), Certificate: r.File("tls.crt"), Key: r.File("tls.key")},
	}
}

// image is the reference of one of the images that are in the outer cluster's nodes or in the registry.
func (r *Release) image(name string) string {
	registry := r.Registry
	if registry == "" {
		registry = "dhow.dev"
	}
	return registry + "/" + name + ":" + r.Tag
}

const imagesManifest = `
apiVersion: v1
kind: Service
metadata: {name: images}
spec:
  type: NodePort
  selector: {app: images}
  ports: [{port: 5000, nodePort: PORT}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: images}
spec:
  selector: {matchLabels: {app: images}}
  template:
    metadata: {labels: {app: images}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: images
        image: IMAGE
        args: [serve, ":5000"]
        readinessProbe: {tcpSocket: {port: 5000}, periodSeconds: 1}
`

// Images serves the images of package images in the outer cluster, and returns where the inner cluster's nodes find them.
func (r *Release) Images(t *testing.T) (registry string) {
	t.Helper()
	r.apply(t, strings.NewReplacer("IMAGE", r.image(images.Carrier), "PORT", strconv.Itoa(r.ImagesPort)).Replace(imagesManifest))
	r.Outer(t, "rollout", "status", "deployment/images", "--timeout", Deadline.String())
	return r.At(r.ImagesPort)
}
