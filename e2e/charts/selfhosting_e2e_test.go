//go:build e2e

package charts

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"

	"dhow.dev/e2e/cluster"
	"dhow.dev/e2e/evidence"
	"dhow.dev/e2e/kind"
	"dhow.dev/e2e/scenarios"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
)

// TestSelfHosting: kind's way to a cluster, with a recorded kind that leads to one of Dhow's own, on which real helm installs control planes. They answer, are upgraded and rolled back
// under load, renew their certificates, have machines join that pass the scenarios, and lose no write while their stores are replaced.
func TestSelfHosting(t *testing.T) {
	outer := cluster.Start(t, cluster.Options{Nodes: 2})
	record := kind.Recorded(t, outer.DataDir)
	t.Run("kind", func(t *testing.T) { onKind(t, outer, kind.Create(t, "dhow-e2e")) })
	var said []string
	for _, line := range record.Commands(t) {
		said = append(said, strings.Join(line[:2], " "))
	}
	if want := []string{"create cluster", "load image-archive", "delete cluster"}; !slices.Equal(said, want) {
		t.Errorf("kind was asked to %q, want %q", said, want)
	}
}

func onKind(t *testing.T, outer *cluster.Cluster, given *kind.Cluster) {
	given.Load(t, archives(t)...)
	for _, one := range []struct {
		config cluster.ReleaseConfig
		steps  []step
	}{
		{cluster.ReleaseConfig{Namespace: "one-store", Stores: 1, GRPCPort: 31443, KubernetesPort: 31643, ImagesPort: 31500}, []step{
			{"answers", answers},
			{"upgrade under load", upgradeUnderLoad},
			{"certificates are renewed", renewal},
			{"images", serve},
			{"machines join and pass the scenarios", joining},
			{"agents in pods", agents},
			{"uninstall", uninstall},
		}},
		{cluster.ReleaseConfig{Namespace: "three-stores", Stores: 3, GRPCPort: 32443, KubernetesPort: 32643}, []step{
			{"answers", answers},
			{"stores are replaced under load", replaceStores},
			{"another number of stores is refused", otherStores},
			{"uninstall", uninstall},
		}},
	} {
		t.Run(one.config.Namespace, func(t *testing.T) {
			config := one.config
			config.Kubeconfig, config.Chart, config.Tag = given.Kubeconfig, archive("dhow"), tag
			p := &plane{Release: cluster.Install(t, config), outer: outer}
			access, err := clientcmd.BuildConfigFromFlags("", p.Inner.Kubeconfig())
			if err != nil {
				t.Fatal(err)
			}
			access.QPS = -1
			if p.inner, err = kubernetes.NewForConfig(access); err != nil {
				t.Fatal(err)
			}
			for _, s := range one.steps {
				if !t.Run(s.name, func(t *testing.T) { s.run(t, p) }) {
					p.Tell(t)
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

// plane is an inner control plane, on a cluster of Dhow's own.
type plane struct {
	*cluster.Release
	outer *cluster.Cluster
	inner *kubernetes.Clientset
	// registry is where machines find the images that pods run.
	registry string
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
	return run(t, exec.CommandContext(t.Context(), filepath.Join("..", "..", "bin", "dhow-kubectl"), append([]string{"--kubeconfig", p.Inner.Kubeconfig()}, args...)...))
}

// answers: the inner cluster is one of its own: it has no nodes yet, its services are well, and a pod waits for a node.
func answers(t *testing.T, p *plane) {
	if out := p.kubectl(t, "get", "namespaces", "-o", "name"); !strings.Contains(out, "namespace/kube-system") || strings.Contains(out, p.Namespace) {
		t.Errorf("namespaces of the inner cluster:\n%s", out)
	}
	// It fails until the API server has reached the scheduler and the controllers, which came up after it.
	cluster.Eventually(t, func(ctx context.Context) error {
		if out, err := p.Inner.Command(ctx, "status").CombinedOutput(); err != nil {
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
	p.Upgrade(t, "--set", "apiserver.replicas=3,apiserver.log.level=debug,scheduler.log.level=debug,controller-manager.log.level=debug")
	p.Ready(t, map[string]int{"store": 1, "apiserver": 3, "scheduler": 2, "controller-manager": 2})
	second := p.replaced(t, "apiserver", first, 3)
	l.goesOn(t)
	p.Helm(t, "rollback", p.Name, "1", "--wait", "--timeout", "5m")
	p.Ready(t, map[string]int{"store": 1, "apiserver": 2, "scheduler": 2, "controller-manager": 2})
	p.replaced(t, "apiserver", second, 2)
	l.goesOn(t)
	l.end(t)
}

// pods are a service's, those that are ending too.
func (p *plane) pods(t *testing.T, service string) []corev1.Pod {
	t.Helper()
	var list corev1.PodList
	out := p.outer.Dhow(t, "get", "pods", "-n", p.Namespace, "-l", "app.kubernetes.io/name="+service, "-o", "yaml")
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
	p.Outer(t, "rollout", "restart", "statefulset/"+p.Name+"-store")
	p.replaced(t, "store", before, p.Stores)
	l.goesOn(t)
	l.end(t)
}

// otherStores: who asks for another number of stores is told, before anything is changed.
func otherStores(t *testing.T, p *plane) {
	out, err := p.TryHelm(t, "upgrade", p.Name, p.Chart, "--values", p.File("values.yaml"), "--set", "global.stores=1")
	if err == nil || !strings.Contains(out, "this database was made for 3 stores") {
		t.Errorf("helm upgrade to one store: %v: %s", err, out)
	}
}

// renewal: the job that the CronJob makes has the rights that it needs, and leaves alone what is good. A certificate that is issued anew is shown by the API servers, which are
// not restarted for it.
func renewal(t *testing.T, p *plane) {
	before := p.outer.Dhow(t, "get", "secret", p.Name+"-apiserver", "-n", p.Namespace, "-o", "yaml")
	p.Outer(t, "create", "job", "now", "--from", "cronjob/"+p.Name+"-certificates")
	p.outer.Dhow(t, "wait", "--for=condition=Complete", "job/now", "-n", p.Namespace, "--timeout", cluster.Deadline.String())
	if after := p.outer.Dhow(t, "get", "secret", p.Name+"-apiserver", "-n", p.Namespace, "-o", "yaml"); after != before {
		t.Errorf("a certificate that is good was changed:\n%s\n%s", before, after)
	}
	p.outer.Dhow(t, "delete", "job", "now", "-n", p.Namespace)

	pods := p.pods(t, "apiserver")
	p.Upgrade(t, "--set", "certificates.apiserverNames={api.example.com}")
	cluster.Eventually(t, func(ctx context.Context) error {
		// Each connection may lead to another API server.
		for range 10 {
			dialer := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true}} // what it shows is looked at below
			conn, err := dialer.DialContext(ctx, "tcp", p.At(p.KubernetesPort))
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

// serve: a pod of the outer cluster has the images that pods of the inner one run.
func serve(t *testing.T, p *plane) { p.registry = p.Images(t) }

// joining: machines outside of the outer cluster become nodes of the inner one, over a port of a node of the outer one, and the inner cluster does what any cluster does.
func joining(t *testing.T, p *plane) {
	token := p.Inner.Token(t, "")
	if token.Server != p.At(p.GRPCPort) {
		t.Errorf("machines are told to join %s", token.Server)
	}
	var nodes evidence.Nodes
	for _, name := range []string{"m1", "m2"} {
		nodes = append(nodes, p.outer.Machine(t, name).Join(t, p.Inner, token, p.registry, p.Networks()...))
	}
	// Where something else runs the agent, as in the DaemonSet of the chart node-agent, the certificate alone is made.
	alone := p.outer.Machine(t, "another")
	join := []string{"join", token.Server, "--token", token.Token, "--ca-cert-hash", token.Hash, "--certificate-only", "--node-name", "another", "--data-dir", alone.Dir}
	if out, err := alone.Command(t.Context(), join...).CombinedOutput(); err != nil {
		t.Errorf("dhow join --certificate-only: %v: %s", err, out)
	}
	if pair, err := pki.LoadKeyPair(pki.FilesIn(filepath.Join(alone.Dir, "pki"), "node")); err != nil {
		t.Error(err)
	} else if id, err := identity.FromCertificate(pair.Certificate()); err != nil || id.Name != "system:node:another" {
		t.Errorf("a certificate of %s: %v", id.Name, err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the inner cluster:\n%s", p.kubectl(t, "describe", "nodes"))
		}
	})
	inner := *p.Inner
	inner.Nodes = nodes
	t.Run("scenarios", func(t *testing.T) { scenarios.Run(t, &inner) })
}

// agents: a pod of the chart node-agent makes its certificate, is a node of the inner cluster with the container runtime that its image carries, and runs a pod.
func agents(t *testing.T, p *plane) {
	c := p.outer
	m := &agentMachine{t: t, plane: p, dir: shared(t, p.File("agents")), state: shared(t, "/run/dhow/"+c.ID+"/p") + "/s"}
	defer m.leave()
	nodes := p.Agents(t, cluster.AgentsConfig{
		NodeName: "in-a-pod", Data: m.dataDir(), State: m.state, Selector: map[string]string{"kubernetes.io/hostname": c.Nodes[1].Name},
		// The machine's network belongs to the outer agent.
		OwnNetwork: true,
	}, p.registry)
	p.kubectl(t, "run", "nested", "--image", "registry.dhow:5000/tools:v1", "--overrides", `{"spec":{"nodeName":"in-a-pod","terminationGracePeriodSeconds":1}}`, "--", "-c", "exec sleep 1000000")
	p.kubectl(t, "wait", "--for=condition=Ready", "pod/nested", "--timeout", cluster.Deadline.String())
	if out := p.kubectl(t, "exec", "nested", "--", "echo", "here"); out != "here\n" {
		t.Errorf("exec in a pod of a node that is a pod: %q", out)
	}
	// The runtime itself says so too.
	found, err := nodes.Containers(t.Context(), "default")
	if err != nil || len(found) != 1 || found[0].Pod != "nested" || found[0].Node.Name != "in-a-pod" {
		t.Errorf("the node's runtime runs %v, %v", found, err)
	} else if out, err := found[0].Exec(t.Context(), cluster.Deadline, "hostname"); err != nil || out != "nested\n" {
		t.Errorf("exec by the runtime: %q, %v", out, err)
	}
	if out, err := nodes[0].Shell(t.Context(), "ls "+nodes[0].Data+"/logs"); err != nil || !strings.Contains(out, "nested") {
		t.Errorf("logs in the node's folder: %q, %v", out, err)
	}
	// The runtime outlives its container, so what it remembers of networks is on the machine.
	if out, err := nodes[0].Shell(t.Context(), "ls "+nodes[0].Data+"/cni-cache/results"); err != nil || !strings.Contains(out, "eth0") {
		t.Errorf("the network's records in the node's folder: %q, %v", out, err)
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
	m.plane.Outer(m.t, "delete", "daemonset", "observer", "--cascade=foreground", "--ignore-not-found")
	m.plane.Upgrade(m.t)
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
	p.Outer(t, "delete", "deployment,service", "images", "--ignore-not-found") // those are no part of the release
	p.Helm(t, "uninstall", p.Name, "--wait", "--timeout", "5m")
	if left := p.outer.Dhow(t, "get", "deployments,statefulsets,cronjobs,jobs,services,roles,rolebindings,networkpolicies,poddisruptionbudgets", "-n", p.Namespace, "-o", "name"); left != "" {
		t.Errorf("helm uninstall left %s", left)
	}
	for _, secret := range []string{"ca", "keys", "admin", "apiserver"} {
		p.outer.Dhow(t, "get", "secret", p.Name+"-"+secret, "-n", p.Namespace)
	}
	for i := range p.Stores {
		p.outer.Dhow(t, "get", "persistentvolumeclaim", fmt.Sprintf("data-%s-store-%d", p.Name, i), "-n", p.Namespace)
	}
}
