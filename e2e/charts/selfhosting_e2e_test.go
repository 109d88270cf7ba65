//go:build e2e

package charts

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
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
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
)

const (
	// name is the release's.
	name = "plane"
	// The inner clusters' networks.
	serviceCIDR, podCIDR, dnsAddress = "10.98.0.0/16", "10.54.0.0/16", "10.98.0.10"
	// evictionHard is that of dhow up: the disk of a machine that runs tests may be fuller than a server's.
	evictionHard = "memory.available<100Mi,nodefs.available<5%,nodefs.inodesFree<5%,imagefs.available<5%,imagefs.inodesFree<5%"
)

// TestSelfHosting: real helm installs control planes on a cluster of Dhow's own. They answer, are upgraded and rolled back under load, renew their certificates, have a machine
// join, and lose no write while their stores are replaced.
func TestSelfHosting(t *testing.T) {
	outer := cluster.Start(t, cluster.Options{Nodes: 2})
	serveImages(t, outer)
	for _, one := range []struct {
		plane plane
		steps []step
	}{
		{plane{namespace: "one-store", stores: 1, grpcPort: 31443, kubernetesPort: 31643}, []step{
			{"answers", answers},
			{"upgrade under load", upgradeUnderLoad},
			{"certificates are renewed", renewal},
			{"a machine joins", joining},
			{"agents in pods", agents},
			{"uninstall", uninstall},
		}},
		{plane{namespace: "three-stores", stores: 3, grpcPort: 32443, kubernetesPort: 32643}, []step{
			{"answers", answers},
			{"stores are replaced under load", replaceStores},
			{"another number of stores is refused", otherStores},
			{"uninstall", uninstall},
		}},
	} {
		t.Run(one.plane.namespace, func(t *testing.T) {
			p := &one.plane
			outer.Namespace(t, p.namespace)
			p.outer, p.dir, p.address = outer, t.TempDir(), outer.Nodes[0].Address
			p.values(t)
			p.helm(t, "install", name, archive("dhow"), "--values", p.file("values.yaml"), "--wait", "--timeout", "5m")
			p.ready(t, map[string]int{"store": p.stores, "apiserver": 2, "scheduler": 2, "controller-manager": 2})
			p.administrate(t)
			for _, s := range one.steps {
				if !t.Run(s.name, func(t *testing.T) { s.run(t, p) }) {
					p.tell(t)
					return // the next one would fail for the same reason
				}
			}
		})
	}
}

// step is what is done with a control plane.
type step struct {
	name string
	run  func(*testing.T, *plane)
}

// plane is an inner control plane.
type plane struct {
	namespace string
	stores    int
	// Ports on every node of the outer cluster, at which the inner one's API servers are reached.
	grpcPort, kubernetesPort int

	outer   *cluster.Cluster
	dir     string
	address string // of a node of the outer cluster
	inner   *kubernetes.Clientset
}

func (p *plane) at(port int) string { return net.JoinHostPort(p.address, strconv.Itoa(port)) }

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
		"global":       map[string]any{"image": map[string]any{"registry": "registry.dhow:5000/dhow", "tag": tag}, "stores": p.stores},
		"access":       map[string]any{"server": p.at(p.grpcPort), "kubernetesServer": p.at(p.kubernetesPort)},
		"certificates": service, "scheduler": service, "controller-manager": service,
		"store": map[string]any{"resources": small, "persistence": map[string]any{"size": "1Gi"}},
		"apiserver": map[string]any{
			// Machines of the inner cluster may be pods of the outer one, so it has other addresses.
			"network":   map[string]any{"serviceCIDR": serviceCIDR, "podCIDR": podCIDR},
			"resources": small, "kubernetesAdvertiseAddress": p.at(p.kubernetesPort),
			"service": map[string]any{"type": "NodePort", "nodePorts": map[string]any{"grpc": p.grpcPort, "kubernetes": p.kubernetesPort}},
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
	if out, err := p.tryHelm(t, args...); err != nil {
		p.tell(t)
		t.Fatalf("helm %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func (p *plane) tryHelm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 4*cluster.Deadline)
	defer cancel()
	cmd := exec.CommandContext(ctx, helmProgram(t, "helm4"), append(args, "--namespace", p.namespace)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+filepath.Join(p.outer.DataDir, "kubeconfig"), "HOME="+p.dir)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// tell logs how the pods of the control plane are.
func (p *plane) tell(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{{"get", "pods,jobs,pvc", "-n", p.namespace, "-o", "wide"}, {"describe", "pods", "-n", p.namespace}} {
		out, problems, _ := p.outer.Try("", args...)
		t.Logf("%s%s", out, problems)
	}
	pods, _, _ := p.outer.Try("", "get", "pods", "-n", p.namespace, "-o", "name")
	for pod := range strings.FieldsSeq(pods) {
		out, problems, _ := p.outer.Try("", "logs", strings.TrimPrefix(pod, "pod/"), "-n", p.namespace, "--tail", "30")
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
		out := p.outer.Dhow(t, "get", kind, name+"-"+service, "-n", p.namespace)
		if !strings.Contains(out, fmt.Sprintf("%d/%d", n, n)) {
			t.Errorf("helm did not wait for %d of %s:\n%s", n, service, out)
		}
	}
}

// administrate reads the administrator's configuration as the notes of the chart say.
func (p *plane) administrate(t *testing.T) {
	t.Helper()
	var secret corev1.Secret
	if err := yaml.Unmarshal([]byte(p.outer.Dhow(t, "get", "secret", name+"-admin", "-n", p.namespace, "-o", "yaml")), &secret); err != nil {
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

// outerKubectl runs kubectl on the outer cluster, in the release's namespace.
func (p *plane) outerKubectl(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, exec.CommandContext(t.Context(), filepath.Join("..", "..", "bin", "dhow-kubectl"), append([]string{"--kubeconfig", filepath.Join(p.outer.DataDir, "kubeconfig"), "-n", p.namespace}, args...)...))
}

// dhow runs dhow on the inner cluster.
func (p *plane) dhow(t *testing.T, args ...string) string {
	t.Helper()
	return run(t, exec.CommandContext(t.Context(), filepath.Join("..", "..", "bin", "dhow"), append([]string{"--config", p.file("client.yaml")}, args...)...))
}

// answers: the inner cluster is one of its own: it has no nodes yet, its services are well, and a pod waits for a node.
func answers(t *testing.T, p *plane) {
	if out := p.kubectl(t, "get", "namespaces", "-o", "name"); !strings.Contains(out, "namespace/kube-system") || strings.Contains(out, p.namespace) {
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
	first := p.pods(t, "apiserver")
	p.helm(t, "upgrade", name, archive("dhow"), "--values", p.file("values.yaml"), "--wait", "--timeout", "5m",
		"--set", "apiserver.replicas=3,apiserver.log.level=debug,scheduler.log.level=debug,controller-manager.log.level=debug")
	p.ready(t, map[string]int{"store": 1, "apiserver": 3, "scheduler": 2, "controller-manager": 2})
	second := p.replaced(t, "apiserver", first, 3)
	l.goesOn(t)
	p.helm(t, "rollback", name, "1", "--wait", "--timeout", "5m")
	p.ready(t, map[string]int{"store": 1, "apiserver": 2, "scheduler": 2, "controller-manager": 2})
	p.replaced(t, "apiserver", second, 2)
	l.goesOn(t)
	l.end(t)
}

// pods are a service's, those that are ending too.
func (p *plane) pods(t *testing.T, service string) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	out := p.outer.Dhow(t, "get", "pods", "-n", p.namespace, "-l", "app.kubernetes.io/name="+service, "-o", "yaml")
	if err := yaml.Unmarshal([]byte(out), &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// replaced waits until none of a service's pods is left, and so many others are ready.
func (p *plane) replaced(t *testing.T, service string, before []corev1.Pod, n int) (now []corev1.Pod) {
	t.Helper()
	cluster.Eventually(t, func(context.Context) error {
		now = p.pods(t, service)
		for _, pod := range now {
			if slices.ContainsFunc(before, func(old corev1.Pod) bool { return old.UID == pod.UID }) {
				return fmt.Errorf("%s is still there", pod.Name)
			}
			if !slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue }) {
				return fmt.Errorf("%s is not ready: %+v", pod.Name, pod.Status.Conditions)
			}
		}
		if len(now) != n {
			return fmt.Errorf("%d pods of %s, not %d", len(now), service, n)
		}
		return nil
	})
	return now
}

// replaceStores: each store is replaced in its turn, two of three are there at any time, and a client notices nothing.
func replaceStores(t *testing.T, p *plane) {
	l := startLoad(t, p.inner)
	l.goesOn(t)
	before := p.pods(t, "store")
	p.outerKubectl(t, "rollout", "restart", "statefulset/"+name+"-store")
	p.replaced(t, "store", before, p.stores)
	l.goesOn(t)
	l.end(t)
}

// otherStores: who asks for another number of stores is told, before anything is changed.
func otherStores(t *testing.T, p *plane) {
	out, err := p.tryHelm(t, "upgrade", name, archive("dhow"), "--values", p.file("values.yaml"), "--set", "global.stores=1")
	if err == nil || !strings.Contains(out, "this database was made for 3 stores") {
		t.Errorf("helm upgrade to one store: %v: %s", err, out)
	}
}

// renewal: the job that the CronJob makes has the rights that it needs, and leaves alone what is good. A certificate that is issued anew is shown by the API servers, which are
// not restarted for it.
func renewal(t *testing.T, p *plane) {
	before := p.outer.Dhow(t, "get", "secret", name+"-apiserver", "-n", p.namespace, "-o", "yaml")
	p.outerKubectl(t, "create", "job", "now", "--from", "cronjob/"+name+"-certificates")
	p.outer.Dhow(t, "wait", "--for=condition=Complete", "job/now", "-n", p.namespace, "--timeout", cluster.Deadline.String())
	if after := p.outer.Dhow(t, "get", "secret", name+"-apiserver", "-n", p.namespace, "-o", "yaml"); after != before {
		t.Errorf("a certificate that is good was changed:\n%s\n%s", before, after)
	}
	p.outer.Dhow(t, "delete", "job", "now", "-n", p.namespace)

	pods := p.pods(t, "apiserver")
	p.helm(t, "upgrade", name, archive("dhow"), "--values", p.file("values.yaml"), "--set", "certificates.apiserverNames={api.example.com}", "--wait", "--timeout", "5m")
	cluster.Eventually(t, func(ctx context.Context) error {
		// Each connection may lead to another API server.
		for range 10 {
			dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // what it shows is looked at below
			conn, err := dialer.DialContext(ctx, "tcp", p.at(p.kubernetesPort))
			if err != nil {
				return err
			}
			shown := conn.(*tls.Conn).ConnectionState().PeerCertificates[0]
			conn.Close()
			if err := shown.VerifyHostname("api.example.com"); err != nil {
				return err
			}
		}
		return nil
	})
	now := p.pods(t, "apiserver")
	for _, pod := range now {
		if pod.Status.ContainerStatuses[0].RestartCount > 0 || !slices.ContainsFunc(pods, func(old corev1.Pod) bool { return old.UID == pod.UID }) {
			t.Errorf("%s is another one, or was started again: %+v", pod.Name, pod.Status.ContainerStatuses)
		}
	}
	if len(now) != len(pods) {
		t.Errorf("%d API servers, %d before", len(now), len(pods))
	}
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
	if len(printed) != 7 || printed[2] != p.at(p.grpcPort) {
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
		"--runtime-state", "/run/dhow/"+c.ID+"/inner", "--cgroup-root", "/dhow/"+c.ID+"/inner", "--plain-registry", "registry.dhow:5000=http://"+c.Gateway+":5000",
		"--service-cidr", serviceCIDR, "--cluster-cidr", podCIDR, "--cluster-dns", dnsAddress,
		"--eviction-hard", evictionHard)...)
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
	// Where something else runs the agent, as in the DaemonSet of the chart node-agent, the certificate alone is made.
	alone := machine.Command(t.Context(), dhow, append(printed[1:], "--certificate-only", "--node-name", "another", "--data-dir", p.file("another"))...)
	if out, err := alone.CombinedOutput(); err != nil {
		t.Errorf("dhow join --certificate-only: %v: %s", err, out)
	}
	if pair, err := pki.LoadKeyPair(pki.FilesIn(filepath.Join(p.file("another"), "pki"), "node")); err != nil {
		t.Error(err)
	} else if id, err := identity.FromCertificate(pair.Certificate()); err != nil || id.Name != "system:node:another" {
		t.Errorf("a certificate of %s: %v", id.Name, err)
	}
	p.kubectl(t, "create", "deployment", "guest", "--image", "registry.dhow:5000/tools:v1", "--", "sleep", "1000000")
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the inner cluster:\n%s", p.kubectl(t, "describe", "nodes,pods"))
		}
	})
	p.kubectl(t, "rollout", "status", "deployment/guest", "--timeout", cluster.Deadline.String())
	// A stream from outside, over an inner API server, to a machine that only dials.
	if out := p.kubectl(t, "exec", "deployment/guest", "--", "echo", "here"); out != "here\n" {
		t.Errorf("exec in the inner cluster: %q", out)
	}
	p.kubectl(t, "delete", "deployment", "guest", "--cascade=foreground", "--timeout", cluster.Deadline.String())
}

// agents: a pod of the chart node-agent makes its certificate, is a node of the inner cluster with the container runtime that its image carries, and runs a pod.
func agents(t *testing.T, p *plane) {
	c := p.outer
	m := &agentMachine{t: t, plane: p, dir: shared(t, p.file("agents")), state: shared(t, "/run/dhow/"+c.ID+"/p") + "/s"}
	printed := strings.Fields(p.dhow(t, "token", "create", "--ttl", "10m"))
	c.Apply(t, fmt.Sprintf("apiVersion: v1\nkind: Secret\nmetadata: {name: join, namespace: %s}\nstringData: {token: %q, ca-cert-hash: %q}\n", p.namespace, printed[4], printed[6]))
	values, err := yaml.Marshal(map[string]any{
		"install": map[string]any{"nodeAgent": true},
		"node-agent": map[string]any{
			"join": map[string]any{"tokenSecret": "join"}, "nodeName": "in-a-pod", "dataDir": m.dataDir(),
			"nodeSelector": map[string]any{"dhow.dev/node-agent": nil, "kubernetes.io/hostname": c.Nodes[1].Name},
			// The pod's own network is the node's: the machine's belongs to the outer agent.
			"hostNetwork": false,
			"runtime":     map[string]any{"state": m.state, "plainRegistries": []string{"registry.dhow:5000=http://" + c.Gateway + ":5000"}},
			"network":     map[string]any{"serviceCIDR": serviceCIDR, "podCIDR": podCIDR, "dnsAddress": dnsAddress},
			"resources":   map[string]any{"requests": map[string]any{"cpu": "20m", "memory": "32Mi"}},
			"extraArgs":   []string{"--eviction-hard=" + evictionHard},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	p.write(t, "agents.yaml", values)
	defer m.leave()
	p.helm(t, "upgrade", name, archive("dhow"), "--values", p.file("values.yaml"), "--values", p.file("agents.yaml"), "--wait", "--timeout", "5m")
	cluster.Eventually(t, func(ctx context.Context) error {
		node, err := p.inner.CoreV1().Nodes().Get(ctx, "in-a-pod", metav1.GetOptions{})
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
	p.kubectl(t, "run", "nested", "--image", "registry.dhow:5000/tools:v1", "--overrides", `{"spec":{"nodeName":"in-a-pod"}}`, "--", "sleep", "1000000")
	p.kubectl(t, "wait", "--for=condition=Ready", "pod/nested", "--timeout", cluster.Deadline.String())
	if out := p.kubectl(t, "exec", "nested", "--", "echo", "here"); out != "here\n" {
		t.Errorf("exec in a pod of a node that is a pod: %q", out)
	}
	p.kubectl(t, "delete", "pod", "nested", "--wait", "--timeout", cluster.Deadline.String())
}

// shared makes a folder whose mounts containers see, as everything is on a machine that systemd has started.
func shared(t *testing.T, dir string) string {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount(dir, dir, "", syscall.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(syscall.Unmount(dir, syscall.MNT_DETACH), os.RemoveAll(dir)); err != nil {
			t.Error(err)
		}
	})
	if err := syscall.Mount("", dir, "", syscall.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	return dir
}

// agentMachine is what an agent in a pod leaves on its machine.
type agentMachine struct {
	t          *testing.T
	plane      *plane
	dir, state string
}

func (m *agentMachine) dataDir() string { return m.dir + "/node" }

// leave takes the agent away, and then what it leaves running: pods and their runtime outlive it.
func (m *agentMachine) leave() {
	m.t.Helper()
	m.plane.helm(m.t, "upgrade", name, archive("dhow"), "--values", m.plane.file("values.yaml"), "--wait", "--timeout", "5m")
	m.plane.replaced(m.t, "node-agent", nil, 0)
	// What dhow join remembers for dhow leave.
	joined, err := json.Marshal(map[string]any{"node": "in-a-pod", "arguments": []string{
		"--node-name", "in-a-pod", "--data-dir", m.dataDir(), "--runtime-state", m.state, "--cgroup-root", "/dhow/in-a-pod",
		"--tls-cacert", m.dataDir() + "/pki/ca.crt", "--tls-cert", m.dataDir() + "/pki/node.crt", "--tls-key", m.dataDir() + "/pki/node.key",
	}})
	if err != nil {
		m.t.Fatal(err)
	}
	if err := os.WriteFile(m.dataDir()+"/join.json", joined, 0o600); err != nil {
		m.t.Fatal(err)
	}
	if out, err := m.plane.outer.Command(m.t.Context(), "leave", "--purge", "--data-dir", m.dataDir()).CombinedOutput(); err != nil {
		m.t.Errorf("dhow leave: %v: %s", err, out)
	}
}

// uninstall: what cannot be made again stays.
func uninstall(t *testing.T, p *plane) {
	p.helm(t, "uninstall", name, "--wait", "--timeout", "5m")
	if left := p.outer.Dhow(t, "get", "deployments,statefulsets,cronjobs,jobs,services,roles,rolebindings,networkpolicies,poddisruptionbudgets", "-n", p.namespace, "-o", "name"); left != "" {
		t.Errorf("helm uninstall left %s", left)
	}
	for _, secret := range []string{"ca", "keys", "admin", "apiserver"} {
		p.outer.Dhow(t, "get", "secret", name+"-"+secret, "-n", p.namespace)
	}
	for i := range p.stores {
		p.outer.Dhow(t, "get", "persistentvolumeclaim", fmt.Sprintf("data-%s-store-%d", name, i), "-n", p.namespace)
	}
}
