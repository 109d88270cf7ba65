package statefulset

import (
	"time"

	"google.golang.org/protobuf/proto"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/podstate"
)

// status returns the status of the set with these pods, and when it will change by itself because a pod then is ready for long enough (0: it will not).
// Pods that are about to go count as replicas, but not as of a revision.
func (s *situation) status(pods []*corev1.Pod, collisions int32) (*appsv1.StatefulSetStatus, time.Duration) {
	status := &appsv1.StatefulSetStatus{}
	if s.set.HasStatus() {
		status = proto.Clone(s.set.GetStatus()).(*appsv1.StatefulSetStatus)
	}
	var ready, available, current, updated int32
	var next time.Duration
	for _, p := range pods {
		if p.GetStatus().GetPhase() == podstate.Running && podstate.IsReady(p) {
			ready++
			switch ok, wait := s.available(p); {
			case ok:
				available++
			case wait > 0 && (next == 0 || wait < next):
				next = wait
			}
		}
		if object.IsDeleted(p) {
			continue
		}
		if revisionOf(p) == s.current.name {
			current++
		}
		if revisionOf(p) == s.update.name {
			updated++
		}
	}
	status.SetObservedGeneration(s.set.GetMetadata().GetGeneration())
	status.SetReplicas(int32(len(pods)))
	status.SetReadyReplicas(ready)
	status.SetAvailableReplicas(available)
	status.SetCurrentReplicas(current)
	status.SetUpdatedReplicas(updated)
	status.SetCurrentRevision(s.current.name)
	status.SetUpdateRevision(s.update.name)
	status.SetCollisionCount(collisions)
	want := s.set.GetSpec().GetReplicas()
	if s.set.GetSpec().GetUpdateStrategy().GetType() != onDelete && status.GetReplicas() == want && updated == want && ready == want {
		// The update is complete.
		status.SetCurrentReplicas(updated)
		status.SetCurrentRevision(s.update.name)
	}
	return status, next
}
