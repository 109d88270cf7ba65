//go:build e2e

package nodeagent_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/image"
	"dhow.dev/services/node-agent/internal/apitest"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/machine"
)

// TestANodeUnderPressure has a node with little memory and small logs, and pods from its folder; and then one with few process IDs.
func TestANodeUnderPressure(t *testing.T) {
	c := newCluster(t)
	// As a part of its machine the node's memory is what its own cgroup uses: containerd and the quiet pod stay far below 600 MiB, the greedy one does not.
	c.arguments = []string{"--fraction=0.9", "--capacity=memory=2Gi", "--eviction-hard=memory.available<1400Mi", "--container-log-max-size=20000", "--container-log-max-files=3"}
	folder := filepath.Join(c.config.DataDir, "static-pods")
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	manifest := func(command string) {
		t.Helper()
		text := `{apiVersion: v1, kind: Pod, metadata: {name: own}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "dhow.test/busybox:1", command: [` + command + `]}]}}`
		if err := os.WriteFile(filepath.Join(folder, "own.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	manifest(`sleep, "1000000"`)
	stop := c.start()
	defer func() { stop(syscall.SIGTERM) }()
	c.awaitNode()
	c.run(`{metadata: {name: chatty}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "dhow.test/busybox:1", command: [sh, -c, "while true; do echo a line that is neither long nor short; usleep 2000; done"],
		resources: {requests: {memory: 16Mi}}}]}}`)
	c.run(`{metadata: {name: quiet}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], resources: {requests: {memory: 64Mi}, limits: {memory: 64Mi}}}]}}`)

	t.Run("pods from the folder", func(t *testing.T) {
		c.t = t
		c.await("the folder's pod is shown", func() bool { return ready(c.pod("own-n1")) })
		first := c.pod("own-n1")
		if first.GetMetadata().GetAnnotations()["kubernetes.io/config.mirror"] == "" {
			t.Errorf("%v", first.GetMetadata())
		}
		if out, errs, code := c.exec("own-n1", "", "hostname"); code != 0 || strings.TrimSpace(out) != "own-n1" {
			t.Errorf("%q %q %d", out, errs, code)
		}
		c.api.DeletePod("default", "own-n1", 30)
		c.await("a deleted mirror comes back", func() bool {
			p := c.pod("own-n1")
			return ready(p) && p.GetMetadata().GetUid() != first.GetMetadata().GetUid()
		})
		if a, b := first.GetStatus().GetContainerStatuses()[0], c.pod("own-n1").GetStatus().GetContainerStatuses()[0]; a.GetContainerId() != b.GetContainerId() {
			t.Errorf("the container was touched: %v, %v", a, b)
		}
		manifest(`sleep, "2000000"`)
		c.await("a changed file is another pod", func() bool {
			p := c.pod("own-n1")
			return ready(p) && p.GetSpec().GetContainers()[0].GetCommand()[1] == "2000000"
		})
		// The agent finds it again, as it is.
		before := c.pod("own-n1").GetStatus().GetContainerStatuses()[0].GetContainerId()
		stop(syscall.SIGKILL)
		stop = c.start()
		c.run(`{metadata: {name: proof}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"]}]}}`)
		c.await("the agent is at work again", func() bool { return ready(c.pod("proof")) })
		if now := c.pod("own-n1").GetStatus().GetContainerStatuses()[0]; now.GetContainerId() != before || now.GetRestartCount() != 0 {
			t.Errorf("before %s, after %v", before, now)
		}
		if err := os.Remove(filepath.Join(folder, "own.yaml")); err != nil {
			t.Fatal(err)
		}
		c.await("without its file it is gone", func() bool { return c.pod("own-n1") == nil })
	})
	t.Run("images of archives stay", func(t *testing.T) {
		runtime, err := cri.Dial(filepath.Join(c.state, "containerd.sock"))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = runtime.Close() }()
		images, err := runtime.Images(t.Context())
		if err != nil || len(images) == 0 || slices.ContainsFunc(images, func(i cri.Image) bool { return !i.Pinned }) {
			t.Errorf("%+v, %v", images, err)
		}
		if dir, err := runtime.ImageDir(t.Context()); err != nil || dir == "" {
			t.Errorf("%q, %v", dir, err)
		}
	})
	t.Run("who takes more than was promised has to go", func(t *testing.T) {
		c.t = t
		c.run(`{metadata: {name: greedy}, spec: {terminationGracePeriodSeconds: 60, volumes: [{name: m, emptyDir: {medium: Memory}}], containers: [{name: c, image: "dhow.test/busybox:1",
			command: [sh, -c, "head -c 800000000 /dev/zero > /m/x; sleep 1000000"], volumeMounts: [{name: m, mountPath: /m}], resources: {requests: {memory: 32Mi}}}]}}`)
		c.await("greedy is evicted", func() bool { return c.pod("greedy").GetStatus().GetPhase() == "Failed" })
		s := c.pod("greedy").GetStatus()
		disrupted := slices.ContainsFunc(s.GetConditions(), func(c *corev1.PodCondition) bool {
			return c.GetType() == "DisruptionTarget" && c.GetStatus() == "True" && c.GetReason() == "TerminationByKubelet"
		})
		if s.GetReason() != "Evicted" || !strings.HasPrefix(s.GetMessage(), "The node was low on resource: memory. ") || !disrupted {
			t.Errorf("%v", s)
		}
		if !ready(c.pod("quiet")) {
			t.Errorf("quiet: %v", c.pod("quiet").GetStatus())
		}
		c.await("the node says so", func() bool {
			n, _ := apitest.Get[*corev1.Node](c.api, "", "n1")
			return slices.ContainsFunc(n.GetStatus().GetConditions(), func(c *corev1.NodeCondition) bool {
				return c.GetType() == "MemoryPressure" && c.GetStatus() == "True"
			})
		})
		c.run(`{metadata: {name: late}, spec: {containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"]}]}}`)
		c.await("late is not taken", func() bool { return c.pod("late").GetStatus().GetReason() == "Evicted" })
	})
	t.Run("logs stay small", func(t *testing.T) {
		dir := filepath.Join(c.config.DataDir, "logs", "default_chatty_uid-of-chatty", "c")
		// Files have no watch of the API; the log is looked at until it was begun anew twice.
		deadline := time.Now().Add(limit)
		for {
			packed, err := filepath.Glob(filepath.Join(dir, "0.log.*.gz"))
			if err != nil {
				t.Fatal(err)
			}
			if len(packed) > 0 {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("no log was compressed")
			}
			<-time.After(100 * time.Millisecond)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 4 {
			t.Errorf("%v, %v", entries, err)
		}
	})
	t.Run("who takes the process IDs of others has to go", func(t *testing.T) {
		c.t = t
		for _, name := range []string{"chatty", "greedy", "late", "proof"} {
			c.api.DeletePod("default", name, 0)
		}
		c.await("they are gone", func() bool {
			return !slices.ContainsFunc(apitest.List[*corev1.Pod](c.api), func(p *corev1.Pod) bool { return p.GetMetadata().GetName() != "quiet" })
		})
		crowd := func(name string, priority, first, then int) {
			c.run(fmt.Sprintf(`{metadata: {name: %s}, spec: {terminationGracePeriodSeconds: 60, priority: %d, containers: [{name: c, image: "dhow.test/busybox:1", resources: {requests: {memory: 16Mi}},
			  command: [sh, -c, "many() { i=0; while [ $i -lt $1 ]; do sleep 1000000 & i=$((i+1)); done; }; many %d; touch /ready; until [ -e /go ]; do usleep 100000; done; many %d; wait"],
			  readinessProbe: {exec: {command: [test, -e, /ready]}, periodSeconds: 1}}]}}`, name, priority, first, then))
			c.await(name+" is there", func() bool { return ready(c.pod(name)) })
		}
		crowd("valued", 1000, 60, 0)
		crowd("crowd", 0, 20, 300)
		// The node comes to its threshold with 120 more, of which the agent that starts and the next pod need some, but by no means all. What else the machine runs does not count: its
		// part of the process IDs is less near.
		own := int64(-1)
		for _, dir := range []string{"/sys/fs/cgroup/pids", "/sys/fs/cgroup"} {
			if text, err := os.ReadFile(filepath.Join(dir, c.config.Runtime.CgroupParent, "pids.current")); err == nil {
				if own, err = strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err != nil {
					t.Fatal(err)
				}
				break
			}
		}
		_, all, err := machine.Processes()
		if err != nil || own < 80 {
			t.Fatalf("the node has %d processes, of %d (%v)", own, all, err)
		}
		threshold := int64(0.9*float64(all)) - own - 120
		stop(syscall.SIGTERM)
		c.arguments = []string{"--fraction=0.9", fmt.Sprintf("--eviction-hard=pid.available<%d", threshold)}
		stop = c.start()
		crowd("least", -10, 2, 0)
		if n, _ := apitest.Get[*corev1.Node](c.api, "", "n1"); slices.ContainsFunc(n.GetStatus().GetConditions(), pidPressure) {
			t.Errorf("%v", n.GetStatus().GetConditions())
		}
		if out, errs, code := c.exec("crowd", "", "touch", "/go"); code != 0 {
			t.Fatalf("%q %q %d", out, errs, code)
		}
		// First the pod of the lowest priority, few as its processes are; of those of the next one the pod that has the most.
		evicted := func(name string) bool { return c.pod(name).GetStatus().GetPhase() == "Failed" }
		c.await("crowd is evicted, after least", func() bool {
			if evicted("crowd") && !evicted("least") {
				t.Error("crowd went before least")
			}
			return evicted("crowd")
		})
		for _, name := range []string{"least", "crowd"} {
			s := c.pod(name).GetStatus()
			if s.GetReason() != "Evicted" || !strings.HasPrefix(s.GetMessage(), fmt.Sprintf("The node was low on resource: pids. Threshold quantity: %d, available: ", threshold)) {
				t.Errorf("%s: %v", name, s)
			}
		}
		c.await("the node says so", func() bool {
			n, _ := apitest.Get[*corev1.Node](c.api, "", "n1")
			return slices.ContainsFunc(n.GetStatus().GetConditions(), pidPressure)
		})
		// To whom all is promised is refused, too: nobody is promised processes.
		c.run(`{metadata: {name: later}, spec: {priority: 1000, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], resources: {limits: {cpu: 10m, memory: 16Mi}, requests: {cpu: 10m, memory: 16Mi}}}]}}`)
		c.await("later is not taken", func() bool {
			s := c.pod("later").GetStatus()
			return s.GetReason() == "Evicted" && s.GetMessage() == "The node had condition: [PIDPressure]. "
		})
		for _, name := range []string{"quiet", "valued"} {
			if !ready(c.pod(name)) {
				t.Errorf("%s: %v", name, c.pod(name).GetStatus())
			}
		}
	})
	c.t = t
	for _, p := range apitest.List[*corev1.Pod](c.api) {
		c.api.DeletePod("default", p.GetMetadata().GetName(), 0)
	}
	c.await("all pods are gone", func() bool { return len(apitest.List[*corev1.Pod](c.api)) == 0 })
}

func pidPressure(c *corev1.NodeCondition) bool {
	return c.GetType() == "PIDPressure" && c.GetStatus() == "True" && c.GetReason() == "KubeletHasInsufficientPID"
}

// TestANodeShortOfDisk has pods that fill more of the disk than they may, and then a node with less free disk than it is told to keep, whatever it does: images that nobody needs go
// first, and then the pods, in order.
func TestANodeShortOfDisk(t *testing.T) {
	c := newCluster(t)
	visited := c.registry("dhow.test/visitor:v1")
	c.arguments = append(c.arguments, "--plain-registry=dhow.test=http://"+visited)
	stop := c.start()
	defer func() { stop(syscall.SIGTERM) }()
	c.awaitNode()
	runtime, err := cri.Dial(filepath.Join(c.state, "containerd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = runtime.Close() }()
	has := func(name string) bool {
		images, err := runtime.Images(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(images, func(i cri.Image) bool { return slices.Contains(i.Names, name) })
	}

	t.Run("who fills more than the limit has to go", func(t *testing.T) {
		c.t = t
		c.run(`{metadata: {name: wide}, spec: {terminationGracePeriodSeconds: 60, volumes: [{name: v, emptyDir: {}}], containers: [
		  {name: c, image: "dhow.test/busybox:1", command: [sh, -c, "head -c 4000000 /dev/zero > /v/x; sleep 1000000"], volumeMounts: [{name: v, mountPath: /v}], resources: {limits: {ephemeral-storage: 2Mi}}}]}}`)
		c.run(`{metadata: {name: layer}, spec: {terminationGracePeriodSeconds: 60, containers: [
		  {name: c, image: "dhow.test/busybox:1", command: [sh, -c, "head -c 4000000 /dev/zero > /x; sleep 1000000"], resources: {limits: {ephemeral-storage: 2Mi}}},
		  {name: d, image: "dhow.test/busybox:1", command: [sleep, "1000000"], resources: {limits: {ephemeral-storage: 1Gi}}}]}}`)
		c.run(`{metadata: {name: narrow}, spec: {terminationGracePeriodSeconds: 0, containers: [
		  {name: c, image: "dhow.test/busybox:1", command: [sh, -c, "head -c 4000000 /dev/zero > /x; sleep 1000000"], resources: {limits: {ephemeral-storage: 64Mi}}}]}}`)
		for name, message := range map[string]string{
			"wide":  "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ",
			"layer": `Container c exceeded its local ephemeral storage limit "2Mi". `,
		} {
			c.await(name+" is evicted", func() bool {
				s := c.pod(name).GetStatus()
				return s.GetPhase() == "Failed" && s.GetReason() == "Evicted" && s.GetMessage() == message
			})
		}
		c.await("narrow runs", func() bool { return ready(c.pod("narrow")) })
	})

	c.t = t
	c.run(`{metadata: {name: visitor}, spec: {restartPolicy: Never, containers: [{name: c, image: "dhow.test/visitor:v1", imagePullPolicy: Always}]}}`)
	c.await("visitor was there", func() bool { return c.pod("visitor").GetStatus().GetPhase() == "Succeeded" })
	if !has("dhow.test/visitor:v1") {
		t.Fatal("the visitor's image is not there")
	}
	c.run(`{metadata: {name: hog}, spec: {terminationGracePeriodSeconds: 0, volumes: [{name: v, emptyDir: {}}], containers: [
	  {name: c, image: "dhow.test/busybox:1", command: [sh, -c, "head -c 20000000 /dev/zero > /v/x; touch /full; sleep 1000000"], volumeMounts: [{name: v, mountPath: /v}],
	   readinessProbe: {exec: {command: [test, -e, /full]}, periodSeconds: 1}}]}}`)
	c.await("hog has filled its volume", func() bool { return ready(c.pod("hog")) })
	for _, name := range []string{"visitor", "wide", "layer"} {
		c.api.DeletePod("default", name, 0)
	}
	c.await("they are gone", func() bool { return c.pod("visitor") == nil && c.pod("wide") == nil && c.pod("layer") == nil })
	stop(syscall.SIGTERM)
	c.arguments = append(c.arguments, "--eviction-hard=nodefs.available<1Ei")
	stop = c.start()

	t.Run("pods go in order, the largest first", func(t *testing.T) {
		c.t = t
		evicted := func(name string) bool { return c.pod(name).GetStatus().GetReason() == "Evicted" }
		c.await("both are evicted", func() bool {
			if evicted("narrow") && !evicted("hog") {
				t.Error("narrow went before hog")
			}
			return evicted("narrow") && evicted("hog")
		})
		if m := c.pod("hog").GetStatus().GetMessage(); !strings.HasPrefix(m, "The node was low on resource: ephemeral-storage. Threshold quantity: 1Ei, available: ") {
			t.Errorf("message %q", m)
		}
		c.run(`{metadata: {name: late}, spec: {containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], resources: {requests: {memory: 16Mi}}}]}}`)
		c.await("late is not taken", func() bool {
			return c.pod("late").GetStatus().GetMessage() == "The node had condition: [DiskPressure]. "
		})
	})
	t.Run("images that nobody needs are gone, those of archives are not", func(t *testing.T) {
		// The runtime tells of no change of images. The node is short of disk all the time, and goes on removing them.
		deadline := time.Now().Add(limit)
		for has("dhow.test/visitor:v1") {
			if time.Now().After(deadline) {
				t.Fatal("the visitor's image stays")
			}
			<-time.After(100 * time.Millisecond)
		}
		if !has(busybox) {
			t.Error("the archive's image is gone")
		}
	})
	c.t = t
	for _, p := range apitest.List[*corev1.Pod](c.api) {
		c.api.DeletePod("default", p.GetMetadata().GetName(), 0)
	}
	c.await("all pods are gone", func() bool { return len(apitest.List[*corev1.Pod](c.api)) == 0 })
}

// registry serves an image that does nothing on the API server's address, and returns host and port.
func (c *cluster) registry(name string) string {
	c.t.Helper()
	found, err := image.FindBusybox()
	if err != nil {
		c.t.Fatal(err)
	}
	img, err := image.Build(image.Spec{Busybox: found, Cmd: []string{"true"}})
	if err != nil {
		c.t.Fatal(err)
	}
	registry, err := image.NewRegistry(image.RegistryConfig{Dir: c.t.TempDir()})
	if err != nil {
		c.t.Fatal(err)
	}
	_, reference, _ := strings.Cut(name, "/")
	if err := registry.Add(c.t.Context(), reference, img); err != nil {
		c.t.Fatal(err)
	}
	host, _, err := net.SplitHostPort(c.address)
	if err != nil {
		c.t.Fatal(err)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- registry.Serve(ctx, listener) }()
	c.t.Cleanup(func() {
		cancel()
		if err := <-served; err != nil {
			c.t.Error(err)
		}
	})
	return listener.Addr().String()
}
