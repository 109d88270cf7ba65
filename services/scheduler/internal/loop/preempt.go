package loop

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/scheduler/internal/plan"
	"dhow.dev/services/scheduler/internal/preemption"
	"dhow.dev/services/scheduler/internal/queue"
	"dhow.dev/services/scheduler/internal/snapshot"
)

// What victims are told, in Kubernetes' words.
const (
	reasonPreempted     = "Preempted"
	conditionDisruption = "DisruptionTarget"
	reasonByScheduler   = "PreemptionByScheduler"
)

const (
	policyNever = "Never"
	// maxWrites bounds the attempts to mark a victim that others are changing.
	maxWrites       = 5
	evictionTimeout = 30 * time.Second
)

// prey is a pod that no node can take as things are.
type prey struct {
	item    *queue.Item
	pod     plan.Pod
	failure *plan.Failure
	// verdict says why nobody is asked to leave; empty where that is looked into, and once somebody is.
	verdict string
	// untold says that there is no verdict to tell.
	untold bool
	choice *preemption.Choice
	// awaits says that others are leaving already.
	awaits bool
}

// hunt is the search of one batch.
type hunt struct {
	preys    []prey
	world    *preemption.World
	reserved []plan.Reserved
}

// hunt prepares the search. The mutex is held.
func (l *Loop) hunt(items []*queue.Item, pods []plan.Pod, decisions []plan.Decision, reserved []plan.Reserved) *hunt {
	h := &hunt{reserved: reserved}
	lowest, highest := l.cluster.Lowest(), int32(0)
	search := false
	for i, d := range decisions {
		if d.Slot >= 0 {
			continue
		}
		p := prey{item: items[i], pod: pods[i], failure: d.Failure}
		switch known, ok := l.cluster.Pod(items[i].Key); {
		case !ok || known.Class() != pods[i].Class || d.Failure.Nodes == 0:
			p.untold = true
		case known.Object.GetSpec().GetPreemptionPolicy() == policyNever:
			p.verdict = preemption.NeverPreempts
		case l.cluster.Awaits(known):
			p.verdict, p.awaits = preemption.Terminating, true
		case pods[i].Priority <= lowest || d.Failure.Helpless == d.Failure.Nodes:
			p.verdict = plan.Message(d.Failure.Nodes, hopeless(d.Failure))
		default:
			if !search || pods[i].Priority > highest {
				highest = pods[i].Priority
			}
			search = true
		}
		h.preys = append(h.preys, p)
	}
	if search {
		h.world = &preemption.World{Snapshot: l.cluster.Snapshot(), Seed: l.config.Seed}
		h.world.Residents, h.world.Allowed = l.cluster.Residents(highest, l.config.Budgets.List())
	}
	return h
}

// hopeless is each node's reason where nobody is less important.
func hopeless(f *plan.Failure) map[string]int {
	out := map[string]int{}
	if f.Helpless > 0 {
		out[preemption.NotHelpful] = f.Helpless
	}
	if f.Nodes > f.Helpless {
		out[preemption.NoVictims] = f.Nodes - f.Helpless
	}
	return out
}

// run searches, for the most important first: what it takes the others do not find.
func (h *hunt) run() {
	if h.world == nil {
		return
	}
	type kind struct {
		class    *snapshot.Class
		priority int32
	}
	vain := map[kind]string{}
	for i := range h.preys {
		p := &h.preys[i]
		for len(h.reserved) > 0 && h.reserved[0].Priority >= p.pod.Priority {
			h.hold(h.reserved[0].Slot, h.reserved[0].Pod)
			h.reserved = h.reserved[1:]
		}
		if p.awaits {
			h.hold(h.world.Snapshot.Find(p.pod.Nominated), p.pod)
		}
		if p.verdict != "" || p.untold {
			continue
		}
		k := kind{p.pod.Class, p.pod.Priority}
		if p.verdict = vain[k]; p.verdict != "" {
			continue
		}
		outcome := h.world.Find(p.pod.Key, p.pod.Class, p.pod.Priority)
		if outcome.Choice == nil {
			p.verdict = plan.Message(outcome.Nodes, outcome.Reasons)
			vain[k] = p.verdict
			continue
		}
		p.choice = outcome.Choice
		h.world.Carry(p.choice, p.pod.Key, p.pod.Class)
	}
}

func (h *hunt) hold(slot int, pod plan.Pod) {
	if slot >= 0 {
		h.world.Snapshot.AddPod(slot, pod.Class, pod.Key)
		h.world.Snapshot.Count(slot, pod.Class, 1)
	}
}

// message says why the pod has no node, and why nobody leaves one for it.
func (p *prey) message() string {
	message := p.failure.Message()
	if p.verdict == "" {
		return message
	}
	return message + " preemption: " + p.verdict
}

// eviction is what has to be written for one choice.
type eviction struct {
	key     object.Key
	uid     string
	node    string
	victims []*corev1.Pod
	// cleared are less important pods that had been nominated to the node.
	cleared []object.Key
}

// nominate remembers a choice, and appends what is to be written for it. The mutex is held.
func (l *Loop) nominate(evictions []eviction, p *prey) []eviction {
	known, ok := l.cluster.Pod(p.item.Key)
	if !ok || p.choice == nil && (p.awaits || known.Nominated == "") {
		return evictions
	}
	e := eviction{key: p.item.Key, uid: p.item.UID}
	if p.choice != nil {
		e.node = p.choice.Node
		for _, v := range p.choice.Victims {
			namespace, name, _ := strings.Cut(v.Key, "/")
			victim, ok := l.cluster.Pod(object.Key{Namespace: namespace, Name: name})
			if ok && victim.UID == v.UID && !victim.Terminating() && !victim.Leaving {
				e.victims = append(e.victims, victim.Object)
			}
		}
		for _, other := range l.cluster.NominatedTo(e.node, p.pod.Priority) {
			e.cleared = append(e.cleared, other.Key)
			l.cluster.Nominate(other.Key, other.UID, "")
		}
	}
	// Without a choice the nomination that it had leads nowhere any more.
	if !l.cluster.Nominate(p.item.Key, p.item.UID, e.node) {
		return evictions
	}
	// From now on nobody looks for further victims because these are still there.
	l.leaving(e.victims, true)
	return append(evictions, e)
}

// leaving says of pods whether they were asked to leave. The mutex is held.
func (l *Loop) leaving(pods []*corev1.Pod, leaving bool) {
	for _, o := range pods {
		if p, ok := l.cluster.Pod(object.KeyOf(o)); ok && p.UID == o.GetMetadata().GetUid() {
			p.Leaving = leaving
		}
	}
}

// evict writes, off the loop.
func (l *Loop) evict(ctx context.Context, evictions []eviction) {
	for _, e := range evictions {
		l.working.Go(func() {
			// What was begun ends, also when the service stops.
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), evictionTimeout)
			defer cancel()
			if err := l.carry(ctx, e); err != nil {
				l.config.Logger.WarnContext(ctx, "preemption failed", logkey.Pod(e.key.Namespace, e.key.Name), logkey.Node(e.node), logkey.Err(err))
				l.giveUp(e)
			}
		})
	}
}

// giveUp takes a nomination back that could not be made good, so that the pod is looked at again.
func (l *Loop) giveUp(e eviction) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cluster.Nominate(e.key, e.uid, "")
	l.leaving(e.victims, false)
	if item, queued := l.queue.Get(e.key); queued && item.UID == e.uid {
		l.queue.Add(item, l.config.Now())
	}
	l.poke()
}

// carry asks the victims to leave, and says in the pod's status where it is to go.
func (l *Loop) carry(ctx context.Context, e eviction) error {
	for _, victim := range e.victims {
		if err := l.preempt(ctx, e, victim); err != nil {
			return err
		}
	}
	for _, key := range e.cleared {
		if err := l.writeNomination(ctx, key, "", ""); err != nil {
			return err
		}
	}
	return l.writeNomination(ctx, e.key, e.uid, e.node)
}

func (l *Loop) preempt(ctx context.Context, e eviction, victim *corev1.Pod) error {
	key := object.KeyOf(victim)
	gone, err := l.mark(ctx, victim)
	if gone || err != nil {
		return err
	}
	_, err = l.pods.Delete(ctx, key.Namespace, key.Name, metav1.DeletionOptions_builder{Uid: victim.GetMetadata().GetUid()}.Build())
	switch {
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err):
		return nil
	case err != nil:
		return fmt.Errorf("delete pod %s: %w", key, err)
	}
	l.config.Events.Report(victim, event.Normal, reasonPreempted, "Preempted by pod %s on node %s", e.uid, e.node)
	return nil
}

// mark says in the victim why it goes, for those who replace it. Gone: it is already.
func (l *Loop) mark(ctx context.Context, victim *corev1.Pod) (gone bool, err error) {
	key := object.KeyOf(victim)
	for range maxWrites {
		marked := proto.CloneOf(victim)
		if !marked.HasStatus() {
			marked.SetStatus(&corev1.PodStatus{})
		}
		now := &metav1.Time{}
		now.SetSeconds(l.config.Now().Unix())
		condition := corev1.PodCondition_builder{
			Type: proto.String(conditionDisruption), Status: proto.String("True"), Reason: proto.String(reasonByScheduler), LastTransitionTime: now,
			ObservedGeneration: proto.Int64(marked.GetMetadata().GetGeneration()),
			Message:            proto.String(l.config.SchedulerName + ": preempting to accommodate a higher priority pod"),
		}.Build()
		others := slices.DeleteFunc(marked.GetStatus().GetConditions(), func(c *corev1.PodCondition) bool { return c.GetType() == conditionDisruption })
		marked.GetStatus().SetConditions(append(others, condition))
		_, err = l.pods.UpdateStatus(ctx, marked)
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		if !apierrors.IsConflict(err) {
			break
		}
		newer, getErr := l.pods.Get(ctx, key.Namespace, key.Name)
		if apierrors.IsNotFound(getErr) || getErr == nil && newer.GetMetadata().GetUid() != victim.GetMetadata().GetUid() {
			return true, nil
		}
		if getErr != nil {
			return false, fmt.Errorf("read pod %s: %w", key, getErr)
		}
		victim = newer
	}
	if err != nil {
		return false, fmt.Errorf("mark pod %s: %w", key, err)
	}
	return false, nil
}

// writeNomination sets status.nominatedNodeName. A pod that is gone, or another by now, needs none.
func (l *Loop) writeNomination(ctx context.Context, key object.Key, uid, node string) error {
	var name any
	if node != "" {
		name = node
	}
	content := map[string]any{"status": map[string]any{"nominatedNodeName": name}}
	if uid != "" {
		content["metadata"] = map[string]any{"uid": uid}
	}
	patch, err := json.Marshal(content)
	if err != nil {
		return err
	}
	_, err = l.pods.Patch(ctx, metav1.PatchRequest_builder{
		Namespace: key.Namespace, Name: key.Name, Type: metav1.PatchType_PATCH_TYPE_MERGE, Patch: patch,
		Options: metav1.WriteOptions_builder{Subresource: "status"}.Build(),
	}.Build())
	switch {
	case apierrors.IsNotFound(err) || apierrors.IsConflict(err) || apierrors.IsInvalid(err):
		return nil
	case err != nil:
		return fmt.Errorf("nominate pod %s: %w", key, err)
	}
	return nil
}
