package replicaset

import (
	"time"

	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/labels"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/podstate"
)

const conditionReplicaFailure = "ReplicaFailure"

// status returns the status of a replica set with these pods, and when it will change by itself because a pod then is ready for long enough
// (0: it will not). Failure is why replicas could not be made or deleted, nil when they could.
func status(rs *appsv1.ReplicaSet, active []*corev1.Pod, terminating int, failure *failure, now time.Time) (*appsv1.ReplicaSetStatus, time.Duration) {
	s := &appsv1.ReplicaSetStatus{}
	if rs.HasStatus() {
		s = proto.Clone(rs.GetStatus()).(*appsv1.ReplicaSetStatus)
	}
	template := labels.Set(rs.GetSpec().GetTemplate().GetMetadata().GetLabels()).AsSelectorPreValidated()
	var labelled, ready, available int32
	var next time.Duration
	for _, p := range active {
		if template.Matches(labels.Set(p.GetMetadata().GetLabels())) {
			labelled++
		}
		if !podstate.IsReady(p) {
			continue
		}
		ready++
		ok, wait := podstate.Available(p, rs.GetSpec().GetMinReadySeconds(), now)
		switch {
		case ok:
			available++
		case wait > 0 && (next == 0 || wait < next):
			next = wait
		}
	}
	s.SetReplicas(int32(len(active)))
	s.SetFullyLabeledReplicas(labelled)
	s.SetReadyReplicas(ready)
	s.SetAvailableReplicas(available)
	s.SetTerminatingReplicas(int32(terminating))
	s.SetObservedGeneration(rs.GetMetadata().GetGeneration())

	var current *appsv1.ReplicaSetCondition
	others := make([]*appsv1.ReplicaSetCondition, 0, len(s.GetConditions()))
	for _, c := range s.GetConditions() {
		if c.GetType() == conditionReplicaFailure {
			current = c
			continue
		}
		others = append(others, c)
	}
	switch {
	case failure == nil:
		if current != nil {
			s.SetConditions(others)
		}
	case current == nil:
		s.SetConditions(append(others, appsv1.ReplicaSetCondition_builder{
			Type: proto.String(conditionReplicaFailure), Status: proto.String(podstate.True), LastTransitionTime: apitime.Of(now),
			Reason: proto.String(failure.reason), Message: proto.String(failure.err.Error()),
		}.Build()))
	}
	return s, next
}

// failure is why the number of replicas is not what it should be.
type failure struct {
	reason string
	err    error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }
