package loop

import (
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/scheduler/internal/binder"
	"dhow.dev/services/scheduler/internal/filter"
	"dhow.dev/services/scheduler/internal/queue"
	"dhow.dev/services/scheduler/internal/snapshot"
)

// onNode takes in a change of a node.
func (l *Loop) onNode(old, new *corev1.Node) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var helps filter.Event
	if new == nil {
		helps = l.cluster.DeleteNode(old.GetMetadata().GetName())
	} else {
		helps = l.cluster.SetNode(new)
	}
	l.changes(helps)
}

// onNamespace takes in a change of a namespace's labels.
func (l *Loop) onNamespace(old, new *corev1.Namespace) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var helps filter.Event
	if new == nil {
		helps = l.cluster.SetNamespace(old.GetMetadata().GetName(), nil)
	} else {
		helps = l.cluster.SetNamespace(new.GetMetadata().GetName(), new.GetMetadata().GetLabels())
	}
	if helps != 0 {
		l.changes(helps)
	}
}

// onPod takes in a change of a pod.
func (l *Loop) onPod(old, new *corev1.Pod, trace *informer.Trace) {
	now := l.config.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if new == nil {
		key := object.KeyOf(old)
		l.queue.Remove(key)
		delete(l.tell, key)
		l.changes(l.cluster.DeletePod(key))
		l.wakeVolumes()
		return
	}
	p, respecified, helps, err := l.cluster.SetPod(new)
	key := object.KeyOf(new)
	delete(l.tell, key)
	if p != nil {
		// What was read from is large; the store's own copy is small until somebody reads it.
		if kept, ok := l.config.Pods.Get(key.Namespace, key.Name); ok {
			p.Object = kept
		}
	}
	switch {
	case err != nil:
		l.config.Logger.Error("pod cannot be read", logkey.Pod(key.Namespace, key.Name), logkey.Err(err))
		l.queue.Remove(key)
	case p == nil || p.NodeName != "" && !p.Assumed || p.Terminating() || !l.mine(new):
		l.queue.Remove(key)
		if p != nil && p.Terminating() {
			l.wakeVolumes()
		}
	case len(p.Class().Gates) > 0:
		l.queue.Remove(key)
		l.gated(new, trace)
	case p.Assumed:
	default:
		item, queued := l.queue.Get(key)
		if queued && item.UID == p.UID {
			if respecified {
				l.queue.Add(item, now)
			}
			break
		}
		l.queue.Remove(key)
		item = &queue.Item{
			Key: key, UID: p.UID, Priority: new.GetSpec().GetPriority(),
			Created: time.Unix(new.GetMetadata().GetCreationTimestamp().GetSeconds(), 0),
		}
		if trace != nil {
			item.Traceparent = trace.Traceparent
		}
		l.queue.Add(item, now)
	}
	l.changes(helps)
}

// changes lets pods that wait know what happened. The mutex is held.
func (l *Loop) changes(helps filter.Event) {
	l.queue.Help(helps, l.config.Now())
	l.broadcast()
	l.poke()
}

// mine says whether the pod asks for this scheduler.
func (l *Loop) mine(pod *corev1.Pod) bool {
	name := pod.GetSpec().GetSchedulerName()
	return name == l.config.SchedulerName || name == "" && l.config.SchedulerName == DefaultSchedulerName
}

// DefaultSchedulerName is who decides about pods that name nobody.
const DefaultSchedulerName = "default-scheduler"

// gated tells a pod that its gates keep it, once.
func (l *Loop) gated(pod *corev1.Pod, trace *informer.Trace) {
	if told(pod, reasonGated, messageGated) {
		return
	}
	b := binder.Binding{Key: object.KeyOf(pod), UID: pod.GetMetadata().GetUid(), Reason: reasonGated, Message: messageGated}
	if trace != nil {
		b.Traceparent = trace.Traceparent
	}
	l.tell[b.Key] = b
}

// View is the picture of one pod at one moment, for explaining.
type View struct {
	// Pod is nil when there is no such pod.
	Pod *corev1.Pod
	// Class is the pod's; nil when it is finished.
	Class *snapshot.Class
	// Mine says that this scheduler decides about it.
	Mine bool
	// NodeName is where it is or is about to be.
	NodeName string
	// Nominated is the node that others are leaving for it.
	Nominated string
	// Snapshot has, beside the pods with a node, those that hold a place before this one.
	Snapshot *snapshot.Snapshot
	Services []*corev1.Service
	Revision int64
	// Changed is closed when the picture is no longer the newest.
	Changed <-chan struct{}
}

// View returns the picture of a pod.
func (l *Loop) View(key object.Key) View {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.changed == nil {
		l.changed = make(chan struct{})
	}
	v := View{Changed: l.changed, Revision: l.config.Informer.Revision()}
	var ok bool
	if v.Pod, ok = l.config.Pods.Get(key.Namespace, key.Name); !ok {
		return v
	}
	v.Mine, v.NodeName = l.mine(v.Pod), v.Pod.GetSpec().GetNodeName()
	if p, ok := l.cluster.Pod(key); ok {
		v.Pod, v.Class, v.NodeName = p.Object, p.Class(), p.NodeName
		v.Snapshot, v.Services = l.cluster.Snapshot(), l.services(key.Namespace)
		v.Nominated = p.Nominated
		for _, r := range l.cluster.Reserved(map[object.Key]bool{key: true}) {
			if r.Priority >= p.Priority() && p.NodeName == "" {
				v.Snapshot.AddPod(r.Slot, r.Class, r.Key)
				v.Snapshot.Count(r.Slot, r.Class, 1)
			}
		}
	}
	return v
}
