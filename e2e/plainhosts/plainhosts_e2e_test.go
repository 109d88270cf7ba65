//go:build e2e

package plainhosts

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dhow.dev/e2e/cluster"
	"dhow.dev/pkg/image"
)

// nodePort is where each node answers for the Service web.
const nodePort = "30180"

// answerTimeout bounds one request.
const answerTimeout = 10 * time.Second

// web is a Deployment that says which pod answers, one on each node first of all, behind a port of every node.
const web = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: %d
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers:
      - name: web
        image: dhow.test/web:1
        command: [sh, -c, "mkdir -p /tmp/www; hostname >/tmp/www/name; exec httpd -f -p 8080 -h /tmp/www"]
        ports: [{name: http, containerPort: 8080}]
        readinessProbe: {tcpSocket: {port: http}, periodSeconds: 1}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  type: NodePort
  selector: {app: web}
  ports: [{port: 80, targetPort: http, nodePort: ` + nodePort + `}]
`

// prepare gives the machines the image of the test's pods, and their agents what they need because they share one machine's memory and disk.
func (d *desk) prepare() {
	d.t.Helper()
	busybox, err := image.FindBusybox()
	if err != nil {
		d.t.Fatal(err)
	}
	made, err := image.Build(image.Spec{Busybox: busybox, Cmd: []string{"sh"}})
	if err != nil {
		d.t.Fatal(err)
	}
	for _, m := range d.machines {
		// Where an agent in a container sees it too.
		if err := os.MkdirAll(m.disk("dhow", "node"), 0o755); err != nil {
			d.t.Fatal(err)
		}
		if err := image.WriteArchive(m.disk("dhow", "node", "web.tar"), "dhow.test/web:1", made); err != nil {
			d.t.Fatal(err)
		}
		local := "DHOW_NODE_AGENT_ARGS=--fraction=0.25 --image-archive=/var/lib/dhow/node/web.tar --eviction-hard=memory.available<100Mi,nodefs.available<2%,imagefs.available<2%\n"
		if err := os.WriteFile(filepath.Join(d.dir, "cluster", "hosts", m.name, "local.env"), []byte(local), 0o644); err != nil {
			d.t.Fatal(err)
		}
	}
}

// deploy applies the Deployment and waits until it runs.
func (d *desk) deploy(replicas int) {
	d.t.Helper()
	d.must(fmt.Sprintf(web, replicas), "apply", "-f", "-")
	d.must("", "rollout", "status", "deploy/web", "--timeout="+cluster.Deadline.String())
}

// pods are the names of the Deployment's pods.
func (d *desk) pods() []string {
	d.t.Helper()
	var names []string
	for line := range strings.Lines(d.must("", "get", "pods", "-l", "app=web", "-o", "name")) {
		names = append(names, strings.TrimSpace(line[strings.LastIndexByte(line, '/')+1:]))
	}
	slices.Sort(names)
	return names
}

// reachable asks at a machine's port until all pods have answered: it leads to those on other machines too.
func reachable(t *testing.T, m *machine, pods []string) {
	t.Helper()
	// A connection each: who answers is decided for a connection.
	client := http.Client{Timeout: answerTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	seen := map[string]bool{}
	cluster.Eventually(t, func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+net.JoinHostPort(m.address.String(), nodePort)+"/name", nil)
		if err != nil {
			return err
		}
		answer, err := client.Do(request)
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		name, err := io.ReadAll(answer.Body)
		if err != nil {
			return err
		}
		seen[strings.TrimSpace(string(name))] = true
		for _, pod := range pods {
			if !seen[pod] {
				return fmt.Errorf("at %s pod %s has not answered, but %v have", m.name, pod, seen)
			}
		}
		return nil
	})
}

// containers are the test's containers on a machine, as its processes tell: their numbers, sorted.
func (m *machine) containers() string {
	m.t.Helper()
	return m.run("pgrep -f '^httpd -f -p 8080' | sort; true")
}

// TestSystemd: three machines become a cluster by the document's commands; it outlives a control plane that is stopped, a machine without power, and agents that are restarted.
func TestSystemd(t *testing.T) {
	n := newNetwork(t)
	var machines []*machine
	for i, name := range []string{"c1", "c2", "c3"} {
		machines = append(machines, n.machine(t, i+1, name))
	}
	c1, c2, c3 := machines[0], machines[1], machines[2]
	d := newDesk(t, machines...)
	files, rest := commands(t, "The files of the hosts"), commands(t, "Three hosts with systemd")
	if len(files) != 1 || len(rest) != 2 {
		t.Fatalf("%s has %d and %d blocks of commands", document, len(files), len(rest))
	}
	d.do(files[0])
	d.prepare()
	d.do(rest[0])
	d.do(rest[1])

	t.Run("units", func(t *testing.T) {
		// Whatever systemd knows to complain about, it says.
		if out, err := c1.try("systemd-analyze verify --man=no /etc/systemd/system/dhow-*"); err != nil || strings.Contains(out, "dhow-") {
			t.Errorf("systemd-analyze verify: %v: %s", err, out)
		}
		for _, unit := range []string{"store", "apiserver", "scheduler", "controller-manager"} {
			// The threshold is in tenths; systemd calls what is below 2.0 well confined.
			if out, err := c1.try("systemd-analyze security --no-pager --offline=yes --threshold=20 /etc/systemd/system/dhow-" + unit + ".service"); err != nil {
				t.Errorf("dhow-%s is less confined than it was: %v: %s", unit, err, out)
			}
			status := c1.run("cat /proc/$(systemctl show --property=MainPID --value dhow-" + unit + ")/status")
			if !strings.Contains(status, "NoNewPrivs:\t1") || !strings.Contains(status, "CapBnd:\t0000000000000000") || strings.Contains(status, "Uid:\t0") {
				t.Errorf("dhow-%s runs as\n%s", unit, status)
			}
		}
		// None reads another's keys.
		for unit, key := range map[string]string{"scheduler": "/etc/dhow/apiserver/encryption.key", "store": "/etc/dhow/controller-manager/ca.key"} {
			if out, err := c1.try("setpriv --reuid=dhow-" + unit + " --clear-groups cat " + key); err == nil || !strings.Contains(out, "Permission denied") {
				t.Errorf("dhow-%s reads %s: %v", unit, key, err)
			}
		}
	})

	d.deploy(3)
	pods := d.pods()
	for _, m := range machines {
		if len(strings.Fields(m.containers())) != 1 {
			t.Errorf("%s runs %q, want one of %v", m.name, m.containers(), pods)
		}
		reachable(t, m, pods)
	}
	// The agent's first thread, which is the Go runtime's monitor, may wake up late; the runtime and the containers may not, which inherit from whoever starts them.
	for process, want := range map[string]string{"$(ls /proc/$(systemctl show --property=MainPID --value dhow-node-agent)/task | sort -n | sed -n 2p)": "1000000\n",
		"$(pgrep -o -x containerd)": "50000\n", "$(pgrep -f '^httpd -f -p 8080')": "50000\n"} {
		if slack := c2.run("cat /proc/" + process + "/timerslack_ns"); slack != want {
			t.Errorf("timers of %s may be %q ns late, want %q", process, slack, want)
		}
	}

	// What ends is started again.
	before := c2.run("systemctl show --property=MainPID --value dhow-controller-manager")
	c2.run("systemctl kill --signal=KILL dhow-controller-manager")
	cluster.Eventually(t, func(context.Context) error {
		if now := c2.run("systemctl show --property=MainPID --value dhow-controller-manager"); now == before || now == "0\n" {
			return fmt.Errorf("dhow-controller-manager is process %s", now)
		}
		return nil
	})

	// The agent and the runtime's containers part company without harm.
	containers := c2.containers()
	c2.run("systemctl restart dhow-node-agent")
	d.answers("c2")
	if after := c2.containers(); after != containers {
		t.Errorf("after systemctl restart dhow-node-agent processes %q run, before %q", after, containers)
	}

	// One host's control plane is stopped: the others' do all that there is to do, and pods run on.
	c1.run("systemctl stop dhow-control-plane.target")
	cluster.Eventually(t, func(context.Context) error {
		if out, _ := c1.try("systemctl is-active dhow-store dhow-apiserver dhow-scheduler dhow-controller-manager"); strings.Count(out, "inactive") != 4 {
			return fmt.Errorf("after systemctl stop dhow-control-plane.target: %s", out)
		}
		return nil
	})
	d.deploy(4)
	if now := d.pods(); len(now) != 4 || !slices.ContainsFunc(now, func(p string) bool { return !slices.Contains(pods, p) }) {
		t.Errorf("pods %v, before %v", now, pods)
	}
	reachable(t, c1, d.pods())
	c1.run("systemctl start dhow-control-plane.target")
	d.serves(c1)

	// A host loses its power: two of three are enough. It comes back with what it had, without anybody's help.
	c3.off()
	cluster.Eventually(t, func(context.Context) error {
		out, err := d.dhow("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: meanwhile}\n", "apply", "-f", "-")
		if err != nil {
			return fmt.Errorf("without c3: %w: %s", err, out)
		}
		return nil
	})
	c3.on()
	d.reach()
	d.serves(c3)
	d.must("", "wait", "--for=condition=Ready", "node/c3", "--timeout="+cluster.Deadline.String())
	d.deploy(5)
	for _, m := range machines {
		reachable(t, m, d.pods())
	}

	// A node that leaves leaves nothing running.
	c2.run("systemctl disable --now dhow-node-agent && dhow leave --purge")
	if left := c2.run("for name in containerd httpd pause; do pgrep -a $name || true; done"); left != "" {
		t.Errorf("after dhow leave: %s", left)
	}
}

// answers waits until a node's agent leads to its containers.
func (d *desk) answers(node string) {
	d.t.Helper()
	pods := strings.Fields(d.must("", "get", "pods", "-l", "app=web", "--field-selector", "spec.nodeName="+node, "-o", "name"))
	if len(pods) == 0 {
		d.t.Fatalf("no pod on %s", node)
	}
	pod := pods[0][strings.LastIndexByte(pods[0], '/')+1:]
	cluster.Eventually(d.t, func(context.Context) error {
		if out, err := d.dhow("", "exec", pod, "--", "hostname"); err != nil || strings.TrimSpace(out) != pod {
			return fmt.Errorf("exec in %s: %w: %s", pod, err, out)
		}
		return nil
	})
}

// serves waits until a machine's own API server answers with what is in its own store's reach.
func (d *desk) serves(m *machine) {
	d.t.Helper()
	own := filepath.Join(d.dir, "cluster", "admin", m.name+".yaml")
	config := fmt.Sprintf("servers: [%s:7443]\ncertificateAuthority: ca.crt\ncertificate: tls.crt\nkey: tls.key\n", m.address)
	if err := os.WriteFile(own, []byte(config), 0o600); err != nil {
		d.t.Fatal(err)
	}
	cluster.Eventually(d.t, func(context.Context) error {
		out, err := d.dhow("", "--config", own, "get", "deploy", "web")
		if err != nil {
			return fmt.Errorf("%s: %w: %s", m.name, err, out)
		}
		return nil
	})
}

// TestDocker: three machines that have docker become a cluster by the document's commands; containers of pods outlive the agent's, and the API one machine's services.
func TestDocker(t *testing.T) {
	n := newNetwork(t)
	c1, c2, c3 := n.machine(t, 1, "c1"), n.machine(t, 2, "c2"), n.machine(t, 3, "c3")
	d := newDesk(t, c1, c2, c3)
	d.instead = append(d.instead, "v0.1.0", imageTag)
	d.images()
	for _, m := range d.machines {
		m.docker()
	}
	blocks := commands(t, "Hosts with docker")
	if len(blocks) != 3 {
		t.Fatalf("%s has %d blocks of commands", document, len(blocks))
	}
	d.do(blocks[0])
	d.prepare()
	d.do(blocks[1])
	d.do(blocks[2])
	d.deploy(6)
	pods := d.pods()
	for _, m := range d.machines {
		reachable(t, m, pods)
	}

	containers := c1.containers()
	if len(strings.Fields(containers)) == 0 {
		t.Error("of six pods none runs on c1")
	}
	c1.run("cd /etc/dhow && docker-compose --profile node up -d --force-recreate node-agent")
	d.answers("c1")
	if after := c1.containers(); after != containers {
		t.Errorf("after the agent's container was replaced processes %q run, before %q", after, containers)
	}

	// What was stored is in a volume, services find each other again in any order, and pods did not notice.
	c1.run("cd /etc/dhow && docker-compose --profile node down && docker-compose --profile node up -d")
	d.serves(c1)
	d.answers("c1")
	if after := c1.containers(); after != containers {
		t.Errorf("after all containers were replaced processes %q run, before %q", after, containers)
	}
	// One machine's services are away: the others' go on.
	c3.run("cd /etc/dhow && docker-compose --profile node stop store apiserver scheduler controller-manager")
	d.deploy(7)
	reachable(t, c1, d.pods())
	if after := c1.run("cd /etc/dhow && docker-compose --profile node ps --services --filter status=running"); strings.Count(after, "\n") != 5 {
		t.Errorf("services that run:\n%s", after)
	}
}
