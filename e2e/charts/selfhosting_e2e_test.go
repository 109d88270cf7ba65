//go:build e2e

package charts

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"dhow.dev/e2e/cluster"
	"dhow.dev/pkg/hosts"
)

const (
	name      = "plane"
	namespace = "inner"
	// Ports on every node of the outer cluster, at which the inner one's API servers are reached.
	grpcPort, kubernetesPort = "31443", "31643"
)

// TestSelfHosting: real helm installs a control plane on a cluster of Dhow's own, which then answers, is upgraded and rolled back under load, renews its certificates, and has a
// machine of its own join.
func TestSelfHosting(t *testing.T) {
	outer := cluster.Start(t, cluster.Options{Nodes: 2})
	serveImages(t, outer)
	outer.Namespace(t, namespace)
	p := &plane{outer: outer, dir: t.TempDir(), address: outer.Nodes[0].Address}
	p.values(t)
	p.helm(t, "install", name, archive("dhow"), "--values", p.file("values.yaml"), "--wait", "--timeout", "5m")
	p.ready(t, map[string]int{"store": 1, "apiserver": 2, "scheduler": 2, "controller-manager": 2})
	p.administrate(t)
	for _, s := range []struct {
		name string
		run  func(*testing.T, *plane)
	}{
		{"answers", answers},
		{"upgrade under load", upgradeUnderLoad},
		{"certificates are renewed", renewal},
		{"a machine joins", joining},
		{"uninstall", uninstall},
	} {
		if !t.Run(s.name, func(t *testing.T) { s.run(t, p) }) {
			p.tell(t)
			return // the next one would fail for the same reason
		}
	}
}

// plane is the inner control plane.
type plane struct {
	outer   *cluster.Cluster
	dir     string
	address string // of a node of the outer cluster
	inner   *kubernetes.Clientset
}

func (p *plane) file(name string) string { return filepath.Join(p.dir, name) }

func (p *plane) write(t *testing.T, name string, content []byte) {
	t.Helper()
	if err := os.WriteFile(p.file(name), content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// values are those of a small machine.
func (p *plane) values(t *testing.T) {
	t.Helper()
	small := map[string]any{"requests": map[string]any{"cpu": "20m", "memory": "32Mi"}}
	service := map[string]any{"resources": small}
	content, err := yaml.Marshal(map[string]any{
		"global":       map[string]any{"image": map[string]any{"registry": "registry.dhow:5000/dhow", "tag": tag}},
		"access":       map[string]any{"server": net.JoinHostPort(p.address, grpcPort), "kubernetesServer": net.JoinHostPort(p.address, kubernetesPort)},
		"certificates": service, "scheduler": service, "controller-manager": service,
		"store": map[string]any{"resources": small, "persistence": map[string]any{"size": "1Gi"}},
		"apiserver": map[string]any{
			"resources": small, "kubernetesAdvertiseAddress": net.JoinHostPort(p.address, kubernetesPort),
			"service": map[string]any{"type": "NodePort", "nodePorts": map[string]any{"grpc": 31443, "kubernetes": 31643}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, "values.yaml", content)
}

// helm runs helm on the outer cluster.
func (p *plane) helm(t *testing.T, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*cluster.Deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, helmProgram(t), append(args, "--namespace", namespace)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(p.outer.DataDir, "kubeconfig"), "HOME="+p.dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		p.tell(t)
		t.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// tell logs how the pods of the control plane are.
func (p *plane) tell(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{{"get", "pods,jobs,pvc", "-n", namespace, "-o", "wide"}, {"describe", "pods", "-n", namespace}} {
		out, problems, _ := p.outer.Try("", args...)
		t.Logf("%s%s", out, problems)
	}
	pods, _, _ := p.outer.Try("", "get", "pods", "-n", namespace, "-o", "name")
	for pod := range strings.FieldsSeq(pods) {
		out, problems, _ := p.outer.Try("", "logs", strings.TrimPrefix(pod, "pod/"), "-n", namespace, "--tail", "30")
		t.Logf("%s:\n%s%s", pod, out, problems)
	}
}

// ready checks, as soon as helm has said that it waited, that so many pods of each service are.
func (p *plane) ready(t *testing.T, want map[string]int) {
	t.Helper()
	for service, n := range want {
		kind := "deployment"
		if service == "store" {
			kind = "statefulset"
		}
		out := p.outer.Dhow(t, "get", kind, name+"-"+service, "-n", namespace)
		if !strings.Contains(out, fmt.Sprintf("%d/%d", n, n)) {
			t.Errorf("helm did not wait for %d of %s:\n%s", n, service, out)
		}
	}
}

// administrate reads the administrator's configuration as the notes of the chart say.
func (p *plane) administrate(t *testing.T) {
	t.Helper()
	var secret corev1.Secret
	if err := yaml.Unmarshal([]byte(p.outer.Dhow(t, "get", "secret", name+"-admin", "-n", namespace, "-o", "yaml")), &secret); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{"ca.crt", "tls.crt", "tls.key", "kubeconfig", "client.yaml"} {
		p.write(t, file, secret.Data[file])
	}
	config, err := clientcmd.BuildConfigFromFlags("", p.file("kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	config.QPS = -1
	if p.inner, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
}

func run(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v: %s%s", strings.Join(cmd.Args, " "), err, out.String(), problems.String())
	}
	return out.String()
}

// kubectl runs kubectl on the inner cluster with the release's kubeconfig.
func (p *plane) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, exec.CommandContext(t.Context(), filepath.Join("..", "..", "bin", "dhow-kubectl"), append([]string{"--kubeconfig", p.file("kubeconfig")}, args...)...))
}

// dhow runs dhow on the inner cluster.
func (p *plane) dhow(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, exec.CommandContext(t.Context(), filepath.Join("..", "..", "bin", "dhow"), append([]string{"--config", p.file("client.yaml")}, args...)...))
}

// answers: the inner cluster is one of its own: it has no nodes yet, its services are well, and a pod waits for a node.
func answers(t *testing.T, p *plane) {
	if out := p.kubectl(t, "get", "namespaces", "-o", "name"); !strings.Contains(out, "namespace/kube-system") || strings.Contains(out, namespace) {
		t.Errorf("namespaces of the inner cluster:\n%s", out)
	}
	// It fails until the API server has reached the scheduler and the controllers, which came up after it.
	cluster.Eventually(t, func(ctx context.Context) error {
		status := exec.CommandContext(ctx, filepath.Join("..", "..", "bin", "dhow"), "--config", p.file("client.yaml"), "status")
		if out, err := status.CombinedOutput(); err != nil {
			return fmt.Errorf("dhow status: %w: %s", err, out)
		}
		return nil
	})
	p.kubectl(t, "run", "waiting", "--image", "registry.dhow:5000/tools:v1", "--restart", "Never")
	cluster.Eventually(t, func(ctx context.Context) error {
		pod, err := p.inner.CoreV1().Pods("default").Get(ctx, "waiting", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range pod.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Reason == corev1.PodReasonUnschedulable {
				return nil
			}
		}
		return fmt.Errorf("the inner scheduler has not looked at the pod: %+v", pod.Status.Conditions)
	})
	p.kubectl(t, "delete", "pod", "waiting")
}

// upgradeUnderLoad: a third API server and another log level, and back, each of which replaces every pod but the store's, while a client reads and writes without a failure.
func upgradeUnderLoad(t *testing.T, p *plane) {
	l := startLoad(t, p.inner)
	l.goesOn(t)
	p.helm(t, "upgrade", name, archive("dhow"), "--values", p.file("values.yaml"), "--wait", "--timeout", "5m",
		"--set", "apiserver.replicas=3,apiserver.log.level=debug,scheduler.log.level=debug,controller-manager.log.level=debug")
	p.ready(t, map[string]int{"store": 1, "apiserver": 3, "scheduler": 2, "controller-manager": 2})
	l.goesOn(t)
	p.helm(t, "rollback", name, "1", "--wait", "--timeout", "5m")
	p.ready(t, map[string]int{"store": 1, "apiserver": 2, "scheduler": 2, "controller-manager": 2})
	l.goesOn(t)
	l.end(t)
}

// renewal: the job that the CronJob makes has the rights that it needs, and leaves alone what is good.
func renewal(t *testing.T, p *plane) {
	before := p.outer.Dhow(t, "get", "secret", name+"-apiserver", "-n", namespace, "-o", "yaml")
	kubectl := exec.CommandContext(t.Context(), filepath.Join("..", "..", "bin", "dhow-kubectl"), "--kubeconfig", filepath.Join(p.outer.DataDir, "kubeconfig"), "-n", namespace,
		"create", "job", "now", "--from", "cronjob/"+name+"-certificates")
	run(t, kubectl)
	p.outer.Dhow(t, "wait", "--for=condition=Complete", "job/now", "-n", namespace, "--timeout", cluster.Deadline.String())
	if after := p.outer.Dhow(t, "get", "secret", name+"-apiserver", "-n", namespace, "-o", "yaml"); after != before {
		t.Errorf("a certificate that is good was changed:\n%s\n%s", before, after)
	}
	p.outer.Dhow(t, "delete", "job", "now", "-n", namespace)
}

// joining: a machine outside of the outer cluster becomes a node of the inner one, over a port of a node of the outer one, and runs a pod.
func joining(t *testing.T, p *plane) {
	c := p.outer
	subnet, err := netip.ParsePrefix(c.Subnet)
	if err != nil {
		t.Fatal(err)
	}
	network, err := hosts.New(hosts.Config{Name: c.ID, Subnet: subnet})
	if err != nil {
		t.Fatal(err)
	}
	address, err := network.Address(len(c.Nodes) + 1)
	if err != nil {
		t.Fatal(err)
	}
	machine, err := network.Add(c.ID+"-inner", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Remove(machine.Name); err != nil {
			t.Error(err)
		}
	})
	printed := strings.Fields(p.dhow(t, "token", "create", "--ttl", "10m"))
	if len(printed) != 7 || printed[2] != net.JoinHostPort(p.address, grpcPort) {
		t.Fatalf("dhow token create: %q", printed)
	}
	dhow := c.Command(t.Context()).Path
	dir := p.file("node")
	log, err := os.Create(p.file("join.log"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	join := machine.Command(context.Background(), dhow, append(printed[1:],
		"--data-dir", dir, "--node-name", "outside", "--", "--address", address.String(), "--fraction", "0.25",
		"--runtime-state", "/run/dhow/"+c.ID+"/inner", "--cgroup-root", "/dhow/"+c.ID+"/inner", "--plain-registry", "registry.dhow:5000=http://"+c.Gateway+":5000")...)
	join.Stdout, join.Stderr = log, log
	if err := join.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(join.Process.Signal(syscall.SIGINT), join.Wait()); err != nil {
			t.Errorf("dhow join ended with %v", err)
		}
		if out, err := machine.Command(context.Background(), dhow, "leave", "--purge", "--data-dir", dir).CombinedOutput(); err != nil {
			t.Errorf("dhow leave: %v: %s", err, out)
		}
		if t.Failed() {
			t.Logf("dhow join said:\n%s", read(t, log.Name()))
		}
	})
	cluster.Eventually(t, func(ctx context.Context) error {
		node, err := p.inner.CoreV1().Nodes().Get(ctx, "outside", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, c := range node.Status.Conditions {
			if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("the node is not ready: %+v", node.Status.Conditions)
	})
	p.kubectl(t, "create", "deployment", "guest", "--image", "registry.dhow:5000/tools:v1", "--", "sleep", "1000000")
	p.kubectl(t, "rollout", "status", "deployment/guest", "--timeout", cluster.Deadline.String())
	// A stream from outside, over an inner API server, to a machine that only dials.
	if out := p.kubectl(t, "exec", "deployment/guest", "--", "echo", "here"); out != "here\n" {
		t.Errorf("exec in the inner cluster: %q", out)
	}
	p.kubectl(t, "delete", "deployment", "guest", "--cascade=foreground", "--timeout", cluster.Deadline.String())
}

// uninstall: what cannot be made again stays.
func uninstall(t *testing.T, p *plane) {
	p.helm(t, "uninstall", name, "--wait", "--timeout", "5m")
	if left := p.outer.Dhow(t, "get", "deployments,statefulsets,cronjobs,jobs,services,roles,rolebindings,networkpolicies,poddisruptionbudgets", "-n", namespace, "-o", "name"); left != "" {
		t.Errorf("helm uninstall left %s", left)
	}
	for _, secret := range []string{"ca", "keys", "admin", "apiserver"} {
		p.outer.Dhow(t, "get", "secret", name+"-"+secret, "-n", namespace)
	}
	p.outer.Dhow(t, "get", "persistentvolumeclaim", "data-"+name+"-store-0", "-n", namespace)
}
