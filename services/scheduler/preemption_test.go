package scheduler_test

import (
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	schedulingv1 "dhow.dev/gen/go/dhow/scheduling/v1"
	"dhow.dev/pkg/client"
)

// priority makes a PriorityClass.
func (w *world) priority(name string, value int32, policy string) {
	w.t.Helper()
	class := schedulingv1.PriorityClass_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String(name)}.Build(), Value: proto.Int32(value), PreemptionPolicy: proto.String(policy),
	}.Build()
	if _, err := client.For[*schedulingv1.PriorityClass](w.admin).Create(w.ctx, class, nil); err != nil {
		w.t.Fatal(err)
	}
}

func cores(class, cpu string) string {
	return fmt.Sprintf(`{"priorityClassName":%q,"containers":[{"name":"app","image":"app","resources":{"requests":{"cpu":%q}}}]}`, class, cpu)
}

func condition(p *corev1.Pod, kind string) *corev1.PodCondition {
	for _, c := range p.GetStatus().GetConditions() {
		if c.GetType() == kind {
			return c
		}
	}
	return nil
}

// kill ends a pod as its node would.
func (w *world) kill(name string) {
	w.t.Helper()
	if _, err := w.pods.Delete(w.ctx, "default", name, metav1.DeletionOptions_builder{GracePeriodSeconds: proto.Int64(0)}.Build()); err != nil {
		w.t.Fatal(err)
	}
}

func TestImportantPodsPreempt(t *testing.T) {
	w := newWorld(t)
	w.schedule(nil)
	w.priority("low", 1, "PreemptLowerPriority")
	w.priority("middle", 5, "PreemptLowerPriority")
	w.priority("high", 10, "PreemptLowerPriority")
	w.node("node-1", "2")
	w.pod("victim", cores("low", "1"))
	w.until("victim", bound)
	w.pod("stays", cores("high", "1"))
	w.until("stays", bound)
	w.pod("important", cores("high", "1"))

	victim := w.until("victim", func(p *corev1.Pod) bool { return p.GetMetadata().HasDeletionTimestamp() })
	c := condition(victim, "DisruptionTarget")
	if c.GetStatus() != "True" || c.GetReason() != "PreemptionByScheduler" || c.GetMessage() != "default-scheduler: preempting to accommodate a higher priority pod" {
		t.Errorf("the victim's condition: %v", c)
	}
	if victim.GetMetadata().GetDeletionGracePeriodSeconds() != 30 {
		t.Errorf("the victim has %d s to end", victim.GetMetadata().GetDeletionGracePeriodSeconds())
	}
	important := w.until("important", func(p *corev1.Pod) bool { return p.GetStatus().GetNominatedNodeName() != "" })
	if node := important.GetStatus().GetNominatedNodeName(); node != "node-1" || bound(important) {
		t.Errorf("nominated to %q, bound to %q", node, important.GetSpec().GetNodeName())
	}
	preempted := w.event("victim", "Preempted")
	if want := fmt.Sprintf("Preempted by pod %s on node node-1", important.GetMetadata().GetUid()); preempted.GetMessage() != want {
		t.Errorf("event %q, want %q", preempted.GetMessage(), want)
	}
	// What becomes free is not for those that are less important, though they would fit and came while the important one waits.
	w.pod("less", cores("middle", "1"))
	w.until("less", func(p *corev1.Pod) bool { return scheduled(p).GetReason() == "Unschedulable" })
	w.kill("victim")
	if p := w.until("important", bound); p.GetStatus().GetNominatedNodeName() != "" {
		t.Errorf("bound, and still nominated to %s", p.GetStatus().GetNominatedNodeName())
	}
	if p, err := w.pods.Get(w.ctx, "default", "less"); err != nil || bound(p) {
		t.Errorf("the less important pod: %v, %v", p.GetSpec().GetNodeName(), err)
	}
	if p, err := w.pods.Get(w.ctx, "default", "stays"); err != nil || p.GetMetadata().HasDeletionTimestamp() {
		t.Errorf("the equally important pod: %v, %v", p, err)
	}
}

func TestPodsThatNeverPreemptWait(t *testing.T) {
	w := newWorld(t)
	w.schedule(nil)
	w.priority("high", 10, "Never")
	w.node("node-1", "1")
	w.pod("placed", cores("", "1"))
	w.until("placed", bound)
	w.pod("polite", cores("high", "1"))
	p := w.until("polite", func(p *corev1.Pod) bool { return scheduled(p).GetReason() == "Unschedulable" })
	const want = "0/1 nodes are available: 1 Insufficient cpu. preemption: not eligible due to preemptionPolicy=Never."
	if got := scheduled(p).GetMessage(); got != want {
		t.Errorf("message %q, want %q", got, want)
	}
	if p, err := w.pods.Get(w.ctx, "default", "placed"); err != nil || p.GetMetadata().HasDeletionTimestamp() {
		t.Errorf("the placed pod: %v, %v", p, err)
	}
}

// A nomination outlives the scheduler that made it.
func TestNominationsAreFoundAgain(t *testing.T) {
	w := newWorld(t)
	w.priority("high", 10, "PreemptLowerPriority")
	w.priority("middle", 5, "PreemptLowerPriority")
	w.node("node-1", "1")
	stop := w.schedule(nil)
	w.pod("victim", cores("", "1"))
	w.until("victim", bound)
	w.pod("important", cores("high", "1"))
	w.until("important", func(p *corev1.Pod) bool { return p.GetStatus().GetNominatedNodeName() == "node-1" })
	stop()
	w.pod("less", cores("middle", "1"))
	w.kill("victim")
	w.schedule(nil)
	w.until("important", bound)
}
