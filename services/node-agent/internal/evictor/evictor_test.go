package evictor_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/evictor"
	"dhow.dev/services/node-agent/internal/podtest"
	"dhow.dev/services/node-agent/internal/status"
)

// node is a machine whose memory and disk tests set. A pod that is evicted gives back what it uses.
type node struct {
	*evictor.Evictor
	mu        sync.Mutex
	left      map[evictor.Signal]int64
	pods      []*corev1.Pod
	uses      map[string]evictor.Use
	evicted   []string
	ends      map[string]*status.End
	reclaims  int
	onReclaim func()
	changes   int
	stored    map[string]evictor.Stored
}

const capacity = 1000

func newNode(t *testing.T, hard, soft, graces, reclaim string) *node {
	t.Helper()
	thresholds, err := evictor.Parse(hard, soft, graces, reclaim)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{left: map[evictor.Signal]int64{}, uses: map[string]evictor.Use{}, ends: map[string]*status.End{}}
	n.Evictor = evictor.New(evictor.Config{
		Thresholds: thresholds, MaxGrace: 20 * time.Second, Transition: 5 * time.Minute, Logger: slog.New(slog.DiscardHandler),
		Observe: func(context.Context) (map[evictor.Signal]evictor.Observation, error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			seen := map[evictor.Signal]evictor.Observation{}
			for s, left := range n.left {
				seen[s] = evictor.Observation{Available: left, Capacity: capacity}
			}
			return seen, nil
		},
		Pods: func() []*corev1.Pod {
			n.mu.Lock()
			defer n.mu.Unlock()
			return slices.Clone(n.pods)
		},
		Uses: func(context.Context, evictor.Signal) (map[string]evictor.Use, error) { return n.uses, nil },
		Stored: func(context.Context, []*corev1.Pod) (map[string]evictor.Stored, error) {
			n.mu.Lock()
			defer n.mu.Unlock()
			return maps.Clone(n.stored), nil
		},
		Evict: func(uid string, end *status.End) bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.evicted, n.ends[uid] = append(n.evicted, uid), end
			n.pods = slices.DeleteFunc(n.pods, func(p *corev1.Pod) bool { return p.GetMetadata().GetUid() == uid })
			n.left[evictor.Memory] += n.uses[uid].Memory
			return true
		},
		Reclaim: func(context.Context) error {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.reclaims++
			if n.onReclaim != nil {
				n.onReclaim()
			}
			return nil
		},
		Changed: func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.changes++
		},
	})
	return n
}

func (n *node) pod(t *testing.T, name string, priority, request int, use evictor.Use) *corev1.Pod {
	resources := ""
	if request > 0 {
		resources = fmt.Sprintf(`, resources: {requests: {memory: "%d"}}`, request)
	}
	p := podtest.Pod(t, fmt.Sprintf(`{metadata: {name: %[1]s, uid: %[1]s}, spec: {priority: %d, containers: [{name: c%s}]}}`, name, priority, resources))
	use.Containers = map[string]int64{"c": use.Memory}
	n.pods, n.uses[name] = append(n.pods, p), use
	return p
}

func (n *node) set(signal evictor.Signal, left int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.left[signal] = left
}

// gone returns who was evicted, in order.
func (n *node) gone() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return strings.Join(n.evicted, " ")
}

func (n *node) end(uid string) *status.End {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ends[uid]
}

// counts returns how often disk was freed, and pressures changed.
func (n *node) counts() [2]int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return [2]int{n.reclaims, n.changes}
}

func (n *node) reclaimTo(left int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.onReclaim = func() { n.left[evictor.NodeDisk] = left }
}

func run(t *testing.T, n *node, f func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = n.Run(ctx) }()
	synctest.Wait()
	f()
	cancel()
	synctest.Wait()
}

func TestMemoryGoesInOrderUntilThereIsEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, "memory.available<100", "", "", "")
		n.set(evictor.Memory, 500)
		n.pod(t, "within", 0, 300, evictor.Use{Memory: 200})
		n.pod(t, "important", 10, 0, evictor.Use{Memory: 200})
		n.pod(t, "over", 0, 100, evictor.Use{Memory: 140})
		n.pod(t, "far-over", 0, 10, evictor.Use{Memory: 60})
		n.pod(t, "critical", 2_000_000_000, 0, evictor.Use{Memory: 900})
		run(t, n, func() {
			if n.gone() != "" || n.Pressures() != (evictor.Pressures{}) {
				t.Fatalf("%v, %+v", n.gone(), n.Pressures())
			}
			n.set(evictor.Memory, 10)
			time.Sleep(time.Minute)
			synctest.Wait()
			// 10 + 60 is not enough, with another 40 over its request it is.
			if got := n.gone(); got != "far-over over" {
				t.Errorf("evicted %q", got)
			}
			end := n.end("far-over")
			if want := "The node was low on resource: memory. Threshold quantity: 100, available: 10. Container c was using 60, request is 10, has larger consumption of memory. "; end.Reason != "Evicted" || end.Message != want || !end.Disrupted || *end.Grace != time.Second {
				t.Errorf("%+v", end)
			}
			if !n.Pressures().Memory || n.counts()[1] != 1 {
				t.Errorf("%+v after %d changes", n.Pressures(), n.counts()[1])
			}
			time.Sleep(6 * time.Minute)
			synctest.Wait()
			if n.Pressures().Memory || n.counts()[1] != 2 {
				t.Errorf("later: %+v after %d changes", n.Pressures(), n.counts()[1])
			}
		})
	})
}

func TestASoftThresholdIsPatient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, "", "memory.available<20%", "memory.available=1m", "")
		n.pod(t, "a", 0, 0, evictor.Use{Memory: 500})
		n.set(evictor.Memory, 150)
		run(t, n, func() {
			time.Sleep(45 * time.Second)
			synctest.Wait()
			if n.gone() != "" || !n.Pressures().Memory {
				t.Fatalf("%v, %+v", n.gone(), n.Pressures())
			}
			// A moment with enough, and the minute begins anew.
			n.set(evictor.Memory, 300)
			time.Sleep(11 * time.Second)
			n.set(evictor.Memory, 150)
			time.Sleep(30 * time.Second)
			synctest.Wait()
			if n.gone() != "" {
				t.Fatal(n.gone())
			}
			time.Sleep(time.Minute)
			synctest.Wait()
			if end := n.end("a"); end == nil || *end.Grace != 20*time.Second {
				t.Errorf("%v, %+v", n.gone(), end)
			}
		})
	})
}

func TestDiskIsFreedBeforePodsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, "nodefs.available<10%,nodefs.inodesFree<5%", "", "", "nodefs.available=50")
		n.pod(t, "a", 0, 0, evictor.Use{Disk: 10})
		n.pod(t, "b", 0, 0, evictor.Use{Disk: 20})
		n.set(evictor.NodeDisk, 50)
		n.reclaimTo(200)
		run(t, n, func() {
			if n.counts()[0] != 1 || n.gone() != "" || !n.Pressures().Disk {
				t.Fatalf("%d, %v, %+v", n.counts()[0], n.gone(), n.Pressures())
			}
			// 120 is more than the threshold, but once crossed it takes 50 more.
			n.reclaimTo(120)
			n.set(evictor.NodeDisk, 50)
			time.Sleep(11 * time.Second)
			synctest.Wait()
			if !strings.HasPrefix(n.gone(), "b") {
				t.Errorf("%v", n.gone())
			}
		})
	})
}

func TestProcessesGoByPriority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, "pid.available<100", "", "", "")
		n.pod(t, "many", 5, 0, evictor.Use{Processes: 800})
		n.pod(t, "some", 0, 0, evictor.Use{Processes: 50})
		n.pod(t, "few", 0, 0, evictor.Use{Processes: 5})
		n.set(evictor.PIDs, 20)
		run(t, n, func() {
			time.Sleep(time.Second)
			synctest.Wait()
			if got := n.gone(); got != "some few many" || !n.Pressures().PIDs {
				t.Errorf("%q, %+v", got, n.Pressures())
			}
		})
	})
}

func TestWhoIsTakenUnderPressure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, "memory.available<100,nodefs.available<100", "", "", "")
		n.set(evictor.Memory, 10)
		n.set(evictor.NodeDisk, 500)
		effort, promised := n.pod(t, "effort", 0, 0, evictor.Use{}), n.pod(t, "promised", 0, 50, evictor.Use{})
		critical := n.pod(t, "critical", 2_000_000_000, 0, evictor.Use{})
		tolerant := podtest.Pod(t, `{metadata: {name: t}, spec: {tolerations: [{key: node.kubernetes.io/memory-pressure, operator: Exists, effect: NoSchedule}], containers: [{name: c}]}}`)
		n.pods = nil
		run(t, n, func() {
			for p, taken := range map[*corev1.Pod]bool{effort: false, promised: true, critical: true, tolerant: true} {
				if end := n.Admit(p); (end == nil) != taken {
					t.Errorf("memory, %s: %+v", p.GetMetadata().GetName(), end)
				}
			}
			n.set(evictor.NodeDisk, 10)
			time.Sleep(11 * time.Second)
			synctest.Wait()
			for p, taken := range map[*corev1.Pod]bool{effort: false, promised: false, critical: true, tolerant: false} {
				if end := n.Admit(p); (end == nil) != taken || end != nil && (end.Reason != "Evicted" || end.Message != "The node had condition: [DiskPressure, MemoryPressure]. ") {
					t.Errorf("disk, %s: %+v", p.GetMetadata().GetName(), end)
				}
			}
		})
	})
}

func TestThresholds(t *testing.T) {
	for _, c := range []struct{ hard, soft, graces, reclaims, wrong string }{
		{hard: evictor.Defaults},
		{hard: "memory.available<0%,pid.available<5%"},
		{hard: "memory<1Gi", wrong: "no eviction signal"},
		{hard: "memory.available>1Gi", wrong: "want SIGNAL<QUANTITY"},
		{hard: "memory.available<1Gi,memory.available<2Gi", wrong: "twice"},
		{hard: "memory.available<120%", wrong: "percentage"},
		{soft: "memory.available<1Gi", wrong: "no grace"},
		{soft: "memory.available<1Gi", graces: "memory.available=soon", wrong: "duration"},
		{hard: "memory.available<1Gi", reclaims: "memory.available=x", wrong: "quantity"},
	} {
		_, err := evictor.Parse(c.hard, c.soft, c.graces, c.reclaims)
		if (err == nil) != (c.wrong == "") || err != nil && !strings.Contains(err.Error(), c.wrong) {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

// TestLimitsOnTheDisk has pods with limits: what a container and its logs take, and what all of the pod takes, its volumes too, against the sum of the limits.
func TestLimitsOnTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t, "memory.available<100", "", "", "")
		n.set(evictor.Memory, 500)
		limited := func(name, priority, first, second string) {
			limit := func(bytes string) string {
				if bytes == "" {
					return ""
				}
				return ", resources: {limits: {ephemeral-storage: " + bytes + "}}"
			}
			n.pods = append(n.pods, podtest.Pod(t, fmt.Sprintf(`{metadata: {name: %[1]s, uid: %[1]s}, spec: {priority: %[2]s, containers: [{name: c%[3]s}, {name: d%[4]s}]}}`, name, priority, limit(first), limit(second))))
		}
		limited("within", "0", "1Ki", "1Ki")
		limited("container", "0", "1Ki", "4Ki")
		limited("volumes", "0", "1Ki", "1Ki")
		limited("one-limit", "0", "2Ki", "")
		limited("no-limit", "0", "", "")
		limited("critical", "2000000000", "1Ki", "")
		run(t, n, func() {
			if n.gone() != "" {
				t.Fatal(n.gone())
			}
			n.mu.Lock()
			n.stored = map[string]evictor.Stored{
				"within":    {Pod: 2048, Containers: map[string]int64{"c": 1024, "d": 1024}},
				"container": {Pod: 2000, Containers: map[string]int64{"c": 1025, "d": 975}},
				"volumes":   {Pod: 2049, Containers: map[string]int64{"c": 1025, "d": 0}},
				"one-limit": {Pod: 2049, Containers: map[string]int64{"c": 0, "d": 2049}},
				"no-limit":  {Pod: 1 << 40, Containers: map[string]int64{"c": 1 << 40}},
				"critical":  {Pod: 1 << 40, Containers: map[string]int64{"c": 1 << 40}},
			}
			n.mu.Unlock()
			time.Sleep(time.Minute)
			synctest.Wait()
			if got := n.gone(); got != "container volumes one-limit" {
				t.Errorf("evicted %q", got)
			}
			for name, want := range map[string]string{
				"container": `Container c exceeded its local ephemeral storage limit "1Ki". `,
				"volumes":   "Pod ephemeral local storage usage exceeds the total limit of containers 2Ki. ",
				"one-limit": "Pod ephemeral local storage usage exceeds the total limit of containers 2Ki. ",
			} {
				if end := n.end(name); end == nil || end.Reason != "Evicted" || end.Message != want || end.Disrupted || *end.Grace != time.Second {
					t.Errorf("%s: %+v", name, end)
				}
			}
		})
	})
}
