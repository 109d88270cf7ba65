//go:build e2e

package nodeagent_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/apitest"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/machine"
)

// hugePage is the size of the pages that the test sets aside.
const hugePage = 2 << 20

// reserveHugePages sets pages of 2 MiB aside beside those that the machine has already, until the test ends. On a kernel without huge pages it does nothing.
func reserveHugePages(t *testing.T, pages int) (has bool) {
	t.Helper()
	const file = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"
	before, err := os.ReadFile(file)
	if os.IsNotExist(err) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(before)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.WriteFile(file, before, 0o644); err != nil {
			t.Error(err)
		}
	})
	if err := os.WriteFile(file, []byte(strconv.Itoa(n+pages)), 0o644); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(file); err != nil || strings.TrimSpace(string(after)) != strconv.Itoa(n+pages) {
		t.Fatalf("the kernel has set %s huge pages aside (%v), %d were asked for", after, err, n+pages)
	}
	return true
}

// TestWhoMayRunAndWhatIsLeft has a small node with huge pages: pods that it refuses, pods that others have to go for, and what ended containers leave.
func TestWhoMayRunAndWhatIsLeft(t *testing.T) {
	hasHuge := reserveHugePages(t, 8)
	c := newCluster(t)
	c.arguments = append(c.arguments, "--capacity=cpu=2")
	folder := filepath.Join(c.config.DataDir, "static-pods")
	programs := t.TempDir()
	build := exec.Command("go", "build", "-o", filepath.Join(programs, "mapper"), "./testdata/mapper")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	stop := c.start()
	defer func() { stop(syscall.SIGTERM) }()
	c.awaitNode()
	runtime, err := cri.Dial(filepath.Join(c.state, "containerd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = runtime.Close() }()

	// All that need time are started at once.
	c.run(`{metadata: {name: flaky}, spec: {terminationGracePeriodSeconds: 0, volumes: [{name: v, emptyDir: {}}], containers: [{name: c, image: "dhow.test/busybox:1", volumeMounts: [{name: v, mountPath: /v}],
	  command: [sh, -c, "n=$(cat /v/n || echo 0); echo run $n; echo $((n+1)) > /v/n; test $n -lt 2 && exit 1; sleep 1000000"]}]}}`)
	// The pod's own policy starts nothing again, the container's does.
	c.run(`{metadata: {name: looping}, spec: {restartPolicy: Never, terminationGracePeriodSeconds: 0, volumes: [{name: v, emptyDir: {}}], containers: [{name: c, image: "dhow.test/busybox:1", restartPolicy: Always,
	  volumeMounts: [{name: v, mountPath: /v}], command: [sh, -c, "n=$(cat /v/n || echo 0); echo run $n; echo $((n+1)) > /v/n; exit 1"]}, {name: d, image: "dhow.test/busybox:1", command: [sleep, "1000000"]}]}}`)
	c.run(`{metadata: {name: brief}, spec: {restartPolicy: Never, containers: [{name: c, image: "dhow.test/busybox:1", command: [echo, "was here"]}]}}`)
	c.run(`{metadata: {name: confined}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], securityContext: {appArmorProfile: {type: RuntimeDefault}}}]}}`)
	c.run(`{metadata: {name: unconfined}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], securityContext: {appArmorProfile: {type: Unconfined}}}]}}`)

	t.Run("profiles of AppArmor", func(t *testing.T) {
		c.t = t
		c.await("a pod that asks for none runs", func() bool { return ready(c.pod("unconfined")) })
		if machine.AppArmor() {
			c.await("confined runs", func() bool { return ready(c.pod("confined")) })
			if out, errs, code := c.exec("confined", "", "cat", "/proc/1/attr/current"); code != 0 || !strings.Contains(out, "(enforce)") {
				t.Errorf("%q %q %d", out, errs, code)
			}
			return
		}
		c.await("confined is refused", func() bool {
			s := c.pod("confined").GetStatus()
			return s.GetPhase() == "Failed" && s.GetReason() == "AppArmor" && strings.Contains(s.GetMessage(), "Cannot enforce AppArmor: AppArmor is not enabled on the host")
		})
	})
	t.Run("huge pages", func(t *testing.T) {
		c.t = t
		node, _ := apitest.Get[*corev1.Node](c.api, "", "n1")
		reported, has := node.GetStatus().GetAllocatable()["hugepages-2Mi"]
		if has != hasHuge {
			t.Fatalf("huge pages of the kernel: %v, of the node: %v", hasHuge, node.GetStatus().GetAllocatable())
		}
		var all int64
		if has {
			q, err := resource.ParseQuantity(reported.GetString())
			if all = q.Value(); err != nil || all < 8*hugePage {
				t.Errorf("the node reports %s (%v)", reported.GetString(), err)
			}
		}
		ask := func(name string, bytes int64) {
			c.run(fmt.Sprintf(`{metadata: {name: %s}, spec: {terminationGracePeriodSeconds: 0, volumes: [{name: h, emptyDir: {medium: HugePages}}, {name: p, hostPath: {path: %s}}], containers: [{name: c,
			  image: "dhow.test/busybox:1", command: [sleep, "1000000"], volumeMounts: [{name: h, mountPath: /huge}, {name: p, mountPath: /programs}],
			  resources: {requests: {memory: 32Mi, hugepages-2Mi: "%[3]d"}, limits: {memory: 32Mi, hugepages-2Mi: "%[3]d"}}}]}}`, name, programs, bytes))
		}
		if has {
			ask("paged", 2*hugePage)
			c.await("paged is ready", func() bool { return ready(c.pod("paged")) })
			if out, errs, code := c.exec("paged", "", "/programs/mapper", "/huge/x", strconv.Itoa(2*hugePage)); code != 0 || out != "mapped\n" {
				t.Errorf("mapping what was asked for: %q %q, code %d", out, errs, code)
			}
			// The kernel counts them in one of the hierarchies, and gives no more than the limit.
			pod := filepath.Join(c.config.Runtime.CgroupParent, "kubepods", "burstable", "poduid-of-paged")
			var limits []string
			for _, file := range []string{filepath.Join("hugetlb", pod, "hugetlb.2MB.limit_in_bytes"), filepath.Join("unified", pod, "hugetlb.2MB.max"), filepath.Join(pod, "hugetlb.2MB.max")} {
				if limit, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", file)); err == nil {
					limits = append(limits, strings.TrimSpace(string(limit)))
				}
			}
			if !slices.Equal(limits, []string{strconv.Itoa(2 * hugePage)}) {
				t.Errorf("limits of the pod's cgroup: %q", limits)
			}
			if out, _, code := c.exec("paged", "", "/programs/mapper", "/huge/x", strconv.Itoa(3*hugePage)); code == 0 {
				t.Errorf("a page more than was asked for: %q", out)
			}
		}
		ask("hungry", all+hugePage)
		c.await("hungry is refused", func() bool {
			s := c.pod("hungry").GetStatus()
			return s.GetReason() == "OutOfhugepages-2Mi" && strings.HasSuffix(s.GetMessage(), fmt.Sprintf("capacity: %d", all))
		})
	})
	t.Run("a critical pod of the node's own takes the room of others", func(t *testing.T) {
		c.t = t
		// Of 2 CPUs 0.3 are free, 0.7 are needed. Whom nothing was promised leaves nothing, whom all was promised goes last, and of the others big comes closest: their priorities do not count.
		for _, text := range []string{
			`{metadata: {name: sure}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], resources: {limits: {cpu: 500m, memory: 32Mi}, requests: {cpu: 500m, memory: 32Mi}}}]}}`,
			`{metadata: {name: little}, spec: {terminationGracePeriodSeconds: 0, priority: -10, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], resources: {requests: {cpu: 300m}}}]}}`,
			`{metadata: {name: big}, spec: {terminationGracePeriodSeconds: 0, priority: 1000, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], resources: {requests: {cpu: 900m}}}]}}`,
		} {
			c.run(text)
		}
		c.await("all run", func() bool { return ready(c.pod("sure")) && ready(c.pod("little")) && ready(c.pod("big")) })
		text := `{apiVersion: v1, kind: Pod, metadata: {name: vital}, spec: {priorityClassName: system-node-critical, priority: 2000001000, terminationGracePeriodSeconds: 0,
		  containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], resources: {requests: {cpu: 700m}}}]}}`
		if err := os.WriteFile(filepath.Join(folder, "vital.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c.await("big has to go", func() bool {
			s := c.pod("big").GetStatus()
			return s.GetPhase() == "Failed" && s.GetReason() == "Preempting" && s.GetMessage() == "Preempted in order to admit critical pod" && c.event("big", "Preempting", "critical pod")
		})
		c.await("vital runs", func() bool { return ready(c.pod("vital-n1")) })
		for _, name := range []string{"sure", "little", "unconfined"} {
			if p := c.pod(name); !ready(p) || p.GetStatus().GetContainerStatuses()[0].GetRestartCount() != 0 {
				t.Errorf("%s: %v", name, p.GetStatus())
			}
		}
		// Not all others together have room for this one: nobody goes.
		c.run(`{metadata: {name: huge}, spec: {priority: 2000000000, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], resources: {requests: {cpu: 1900m}}}]}}`)
		c.await("huge is refused", func() bool { return c.pod("huge").GetStatus().GetReason() == "UnexpectedAdmissionError" })
		// 0.5 CPUs are free, and sure and little would leave 0.8.
		if m := c.pod("huge").GetStatus().GetMessage(); !strings.HasSuffix(m, "no set of running pods found to reclaim resources: [(res: cpu, q: 600), ]") {
			t.Errorf("message %q", m)
		}
		for _, name := range []string{"sure", "little", "vital-n1"} {
			if !ready(c.pod(name)) {
				t.Errorf("%s: %v", name, c.pod(name).GetStatus())
			}
		}
	})
	runs := func(t *testing.T, pod string) string {
		t.Helper()
		state, err := runtime.Pod(t.Context(), "uid-of-"+pod)
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, r := range state.Containers {
			list = append(list, fmt.Sprintf("%d %v", r.Attempt, r.State == cri.StateRunning))
		}
		slices.Sort(list)
		entries, err := os.ReadDir(filepath.Join(c.config.DataDir, "logs", "default_"+pod+"_uid-of-"+pod, "c"))
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		for _, e := range entries {
			list = append(list, e.Name())
		}
		return strings.Join(list, ", ")
	}
	// The runtime's containers have no watch.
	look := func(t *testing.T, pod, want string) {
		t.Helper()
		for deadline := time.Now().Add(limit); runs(t, pod) != want; <-time.After(100 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("of %s there are %q, want %q", pod, runs(t, pod), want)
			}
		}
	}
	t.Run("of each container the last ended run stays, and its log", func(t *testing.T) {
		c.t = t
		c.await("flaky has settled", func() bool {
			s := c.pod("flaky").GetStatus().GetContainerStatuses()
			return len(s) == 1 && s[0].GetRestartCount() == 2 && s[0].GetState().HasRunning()
		})
		look(t, "flaky", "1 false, 2 true, 1.log, 2.log")
		if got := c.log(corev1.PodLogRequest_builder{Namespace: "default", Name: "flaky", Previous: true}.Build()); got != "run 1\n" {
			t.Errorf("the log of the run before is %q", got)
		}
		c.await("brief has ended", func() bool { return c.pod("brief").GetStatus().GetPhase() == "Succeeded" })
		look(t, "brief", "0 false, 0.log")
		if got := c.log(corev1.PodLogRequest_builder{Namespace: "default", Name: "brief"}.Build()); got != "was here\n" {
			t.Errorf("the log of what has ended is %q", got)
		}
	})
	t.Run("of a container that waits one ended run stays, which is the previous one", func(t *testing.T) {
		c.t = t
		c.await("looping waits for its third run or a later one", func() bool {
			s := c.pod("looping").GetStatus().GetContainerStatuses()
			return len(s) == 2 && s[0].GetRestartCount() >= 2 && s[0].GetState().GetWaiting().GetReason() == "CrashLoopBackOff"
		})
		// It goes on running while this looks, so that any of its runs will do.
		for deadline := time.Now().Add(limit); ; <-time.After(100 * time.Millisecond) {
			before := c.log(corev1.PodLogRequest_builder{Namespace: "default", Name: "looping", Container: "c", Previous: true}.Build())
			newest := c.log(corev1.PodLogRequest_builder{Namespace: "default", Name: "looping", Container: "c"}.Build())
			number := strings.TrimSuffix(strings.TrimPrefix(newest, "run "), "\n")
			if left := runs(t, "looping"); before == newest && left == "0 true, "+number+" false, "+number+".log" {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("there are %q, the previous run said %q and the newest %q", left, before, newest)
			}
		}
	})
	t.Run("of a pod that was deleted while the agent was away nothing stays", func(t *testing.T) {
		c.t = t
		stop(syscall.SIGKILL)
		for _, name := range []string{"flaky", "brief"} {
			c.api.Delete(c.pod(name))
		}
		stop = c.start()
		look(t, "flaky", "")
		look(t, "brief", "")
		for _, name := range []string{"flaky", "brief"} {
			dir := filepath.Join(c.config.DataDir, "logs", "default_"+name+"_uid-of-"+name)
			for deadline := time.Now().Add(limit); ; <-time.After(100 * time.Millisecond) {
				if _, err := os.Stat(dir); os.IsNotExist(err) {
					break
				}
				if time.Now().After(deadline) {
					t.Fatalf("%s is still there", dir)
				}
			}
		}
		if !ready(c.pod("sure")) {
			t.Errorf("sure: %v", c.pod("sure").GetStatus())
		}
	})
	c.t = t
	if err := os.Remove(filepath.Join(folder, "vital.yaml")); err != nil {
		t.Fatal(err)
	}
	for _, p := range apitest.List[*corev1.Pod](c.api) {
		c.api.DeletePod("default", p.GetMetadata().GetName(), 0)
	}
	c.await("all pods are gone", func() bool { return len(apitest.List[*corev1.Pod](c.api)) == 0 })
	// Nor do their cgroups stay, in any hierarchy.
	for deadline := time.Now().Add(limit); ; <-time.After(100 * time.Millisecond) {
		var left []string
		for _, base := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			for _, pods := range []string{"pod*", "*/pod*"} {
				found, err := filepath.Glob(filepath.Join(base, c.config.Runtime.CgroupParent, "kubepods", pods))
				if err != nil {
					t.Fatal(err)
				}
				left = append(left, found...)
			}
		}
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("cgroups are left: %q", left)
		}
	}
}
