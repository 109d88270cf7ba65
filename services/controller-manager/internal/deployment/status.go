package deployment

import (
	"fmt"
	"math"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	"dhow.dev/services/controller-manager/internal/apitime"
)

// Conditions of deployments and their reasons, as Kubernetes names them.
const (
	conditionAvailable      = "Available"
	conditionProgressing    = "Progressing"
	conditionReplicaFailure = "ReplicaFailure"

	statusTrue    = "True"
	statusFalse   = "False"
	statusUnknown = "Unknown"

	reasonAvailable    = "MinimumReplicasAvailable"
	reasonUnavailable  = "MinimumReplicasUnavailable"
	reasonCreated      = "NewReplicaSetCreated"
	reasonFound        = "FoundNewReplicaSet"
	reasonUpdated      = "ReplicaSetUpdated"
	reasonComplete     = "NewReplicaSetAvailable"
	reasonTimedOut     = "ProgressDeadlineExceeded"
	reasonPaused       = "DeploymentPaused"
	reasonResumed      = "DeploymentResumed"
	reasonCreateFailed = "ReplicaSetCreateError"
)

// situation is what a deployment's status is made of.
type situation struct {
	d       *appsv1.Deployment
	all     []*appsv1.ReplicaSet
	current *appsv1.ReplicaSet
	now     time.Time
}

// counts returns the status with its numbers and the condition Available, conditions being those that the deployment has.
func (s situation) counts() *appsv1.DeploymentStatus {
	d := s.d
	status := &appsv1.DeploymentStatus{}
	status.SetObservedGeneration(d.GetMetadata().GetGeneration())
	total := sum(s.all, func(rs *appsv1.ReplicaSet) int32 { return rs.GetStatus().GetReplicas() })
	availableNow := sum(s.all, func(rs *appsv1.ReplicaSet) int32 { return rs.GetStatus().GetAvailableReplicas() })
	status.SetReplicas(total)
	status.SetUpdatedReplicas(s.current.GetStatus().GetReplicas())
	status.SetReadyReplicas(sum(s.all, func(rs *appsv1.ReplicaSet) int32 { return rs.GetStatus().GetReadyReplicas() }))
	status.SetAvailableReplicas(availableNow)
	status.SetUnavailableReplicas(max(0, total-availableNow))
	status.SetTerminatingReplicas(sum(s.all, func(rs *appsv1.ReplicaSet) int32 { return rs.GetStatus().GetTerminatingReplicas() }))
	if d.GetStatus().HasCollisionCount() {
		status.SetCollisionCount(d.GetStatus().GetCollisionCount())
	}
	for _, c := range d.GetStatus().GetConditions() {
		status.SetConditions(append(status.GetConditions(), proto.Clone(c).(*appsv1.DeploymentCondition)))
	}
	_, unavailable := fenceposts(d)
	if availableNow >= d.GetSpec().GetReplicas()-unavailable {
		s.set(status, conditionAvailable, statusTrue, reasonAvailable, "Deployment has minimum availability.")
	} else {
		s.set(status, conditionAvailable, statusFalse, reasonUnavailable, "Deployment does not have minimum availability.")
	}
	return status
}

// rollout returns the status of a deployment that rolls out: counts, and how the rollout goes.
func (s situation) rollout() *appsv1.DeploymentStatus {
	d, status := s.d, s.counts()
	before := condition(d.GetStatus(), conditionProgressing)
	if !hasDeadline(d) {
		remove(status, conditionProgressing)
	}
	// A rollout that was complete stays so: pods that fail later are no lack of progress.
	wasComplete := status.GetReplicas() == status.GetUpdatedReplicas() && before.GetReason() == reasonComplete
	if hasDeadline(d) && !wasComplete {
		what := fmt.Sprintf("Deployment %q", d.GetMetadata().GetName())
		if s.current != nil {
			what = fmt.Sprintf("ReplicaSet %q", s.current.GetMetadata().GetName())
		}
		switch {
		case complete(d, status):
			s.set(status, conditionProgressing, statusTrue, reasonComplete, what+" has successfully progressed.")
		case progressed(d.GetStatus(), status):
			since := apitime.Of(s.now)
			if before.GetStatus() == statusTrue {
				since = before.GetLastTransitionTime()
			}
			// Removed first, so that the time of the last update moves with each step.
			remove(status, conditionProgressing)
			s.set(status, conditionProgressing, statusTrue, reasonUpdated, what+" is progressing.")
			condition(status, conditionProgressing).SetLastTransitionTime(since)
		case timedOut(d, status, s.now):
			s.set(status, conditionProgressing, statusFalse, reasonTimedOut, what+" has timed out progressing.")
		}
	}
	if f := replicaFailure(s.current, s.all); f != nil {
		s.set(status, conditionReplicaFailure, f.GetStatus(), f.GetReason(), f.GetMessage())
	} else {
		remove(status, conditionReplicaFailure)
	}
	return status
}

// set replaces a condition. One that already has the status and the reason stays as it is, message and times included.
func (s situation) set(status *appsv1.DeploymentStatus, kind, value, reason, message string) {
	now := apitime.Of(s.now)
	since := now
	if c := condition(status, kind); c != nil {
		if c.GetStatus() == value && c.GetReason() == reason {
			return
		}
		if c.GetStatus() == value {
			since = c.GetLastTransitionTime()
		}
	}
	remove(status, kind)
	status.SetConditions(append(status.GetConditions(), appsv1.DeploymentCondition_builder{
		Type: proto.String(kind), Status: proto.String(value), Reason: proto.String(reason), Message: proto.String(message),
		LastUpdateTime: now, LastTransitionTime: since,
	}.Build()))
}

func condition(status *appsv1.DeploymentStatus, kind string) *appsv1.DeploymentCondition {
	for _, c := range status.GetConditions() {
		if c.GetType() == kind {
			return c
		}
	}
	return nil
}

func remove(status *appsv1.DeploymentStatus, kind string) {
	status.SetConditions(slices.DeleteFunc(slices.Clone(status.GetConditions()), func(c *appsv1.DeploymentCondition) bool { return c.GetType() == kind }))
}

// replicaFailure returns why the new replica set cannot make its pods, or else why an old one cannot.
func replicaFailure(current *appsv1.ReplicaSet, all []*appsv1.ReplicaSet) *appsv1.ReplicaSetCondition {
	for _, rs := range append([]*appsv1.ReplicaSet{current}, all...) {
		for _, c := range rs.GetStatus().GetConditions() {
			if c.GetType() == conditionReplicaFailure {
				return c
			}
		}
	}
	return nil
}

// complete says that all pods are new and available and no old one runs.
func complete(d *appsv1.Deployment, status *appsv1.DeploymentStatus) bool {
	desired := d.GetSpec().GetReplicas()
	return status.GetUpdatedReplicas() == desired && status.GetReplicas() == desired && status.GetAvailableReplicas() == desired &&
		status.GetObservedGeneration() >= d.GetMetadata().GetGeneration()
}

// progressed says that something moved in the right direction.
func progressed(old, status *appsv1.DeploymentStatus) bool {
	return status.GetUpdatedReplicas() > old.GetUpdatedReplicas() ||
		status.GetReplicas()-status.GetUpdatedReplicas() < old.GetReplicas()-old.GetUpdatedReplicas() ||
		status.GetReadyReplicas() > old.GetReadyReplicas() || status.GetAvailableReplicas() > old.GetAvailableReplicas()
}

// hasDeadline says that lack of progress is to be reported; the largest number means never.
func hasDeadline(d *appsv1.Deployment) bool {
	return d.GetSpec().HasProgressDeadlineSeconds() && d.GetSpec().GetProgressDeadlineSeconds() != math.MaxInt32
}

func deadline(d *appsv1.Deployment, since *appsv1.DeploymentCondition) time.Time {
	return apitime.Go(since.GetLastUpdateTime()).Add(time.Duration(d.GetSpec().GetProgressDeadlineSeconds()) * time.Second)
}

// timedOut says that nothing has moved for the deadline.
func timedOut(d *appsv1.Deployment, status *appsv1.DeploymentStatus, now time.Time) bool {
	c := condition(status, conditionProgressing)
	switch {
	case c == nil, c.GetReason() == reasonComplete:
		return false
	case c.GetReason() == reasonTimedOut:
		return true
	}
	return deadline(d, c).Before(now)
}

// deadlineIn returns when to look whether a rollout is stuck, and false when there is nothing to look for.
func deadlineIn(d *appsv1.Deployment, status *appsv1.DeploymentStatus, now time.Time) (time.Duration, bool) {
	c := condition(status, conditionProgressing)
	if !hasDeadline(d) || c == nil || c.GetReason() == reasonTimedOut || c.GetReason() == reasonComplete || complete(d, status) {
		return 0, false
	}
	// Times of conditions are cut to the second: one more, and the deadline has passed for sure.
	return max(0, deadline(d, c).Sub(now)) + time.Second, true
}
