package command

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
)

// This file is rollouts of StatefulSets and DaemonSets, whose templates are kept in ControllerRevisions.

const rolling = "RollingUpdate"

// statefulSetProgress says in kubectl's words how far a rollout is.
func statefulSetProgress(set *appsv1.StatefulSet) (message string, done bool, err error) {
	spec, status := set.GetSpec(), set.GetStatus()
	if spec.GetUpdateStrategy().GetType() != rolling {
		return "", false, fmt.Errorf("rollout status is only available for %s strategy type", rolling)
	}
	replicas, partition := spec.GetReplicas(), spec.GetUpdateStrategy().GetRollingUpdate().GetPartition()
	switch {
	case status.GetObservedGeneration() == 0 || set.GetMetadata().GetGeneration() > status.GetObservedGeneration():
		return "Waiting for statefulset spec update to be observed...", false, nil
	case status.GetReadyReplicas() < replicas:
		return fmt.Sprintf("Waiting for %d pods to be ready...", replicas-status.GetReadyReplicas()), false, nil
	case partition > 0 && status.GetUpdatedReplicas() < replicas-partition:
		return fmt.Sprintf("Waiting for partitioned roll out to finish: %d out of %d new pods have been updated...", status.GetUpdatedReplicas(), replicas-partition), false, nil
	case partition > 0:
		return fmt.Sprintf("partitioned roll out complete: %d new pods have been updated...", status.GetUpdatedReplicas()), true, nil
	case status.GetUpdateRevision() != status.GetCurrentRevision():
		return fmt.Sprintf("waiting for statefulset rolling update to complete %d pods at revision %s...", status.GetUpdatedReplicas(), status.GetUpdateRevision()), false, nil
	}
	return fmt.Sprintf("statefulset rolling update complete %d pods at revision %s...", status.GetCurrentReplicas(), status.GetCurrentRevision()), true, nil
}

// daemonSetProgress says in kubectl's words how far a rollout is.
func daemonSetProgress(ds *appsv1.DaemonSet) (message string, done bool, err error) {
	status, name := ds.GetStatus(), ds.GetMetadata().GetName()
	if ds.GetSpec().GetUpdateStrategy().GetType() != rolling {
		return "", false, fmt.Errorf("rollout status is only available for %s strategy type", rolling)
	}
	desired := status.GetDesiredNumberScheduled()
	switch {
	case ds.GetMetadata().GetGeneration() > status.GetObservedGeneration():
		return "Waiting for daemon set spec update to be observed...", false, nil
	case status.GetUpdatedNumberScheduled() < desired:
		return fmt.Sprintf("Waiting for daemon set %q rollout to finish: %d out of %d new pods have been updated...", name, status.GetUpdatedNumberScheduled(), desired), false, nil
	case status.GetNumberAvailable() < desired:
		return fmt.Sprintf("Waiting for daemon set %q rollout to finish: %d of %d updated pods are available...", name, status.GetNumberAvailable(), desired), false, nil
	}
	return fmt.Sprintf("daemon set %q successfully rolled out", name), true, nil
}

// revisionUndo applies an earlier ControllerRevision, whose data is the patch that puts its template back.
func (s *session) revisionUndo(ctx context.Context, t target, to int64) error {
	objects := client.Dynamic(s.conn, t.resource)
	o, err := objects.Get(ctx, s.namespace, t.name)
	if err != nil {
		return err
	}
	all, err := client.For[*appsv1.ControllerRevision](s.conn).List(ctx, metav1.ListRequest_builder{Namespace: s.namespace}.Build())
	if err != nil {
		return err
	}
	chosen, err := earlierRevision(o, all.Items, to)
	if err != nil {
		return err
	}
	header, warn := s.warn(t)
	defer warn()
	patched, err := objects.Patch(ctx, metav1.PatchRequest_builder{
		Namespace: s.namespace, Name: t.name, Type: metav1.PatchType_PATCH_TYPE_STRATEGIC_MERGE, Patch: chosen.GetData().GetRaw(),
		Options: metav1.WriteOptions_builder{FieldManager: rolloutManager}.Build(),
	}.Build(), header)
	if err != nil {
		return err
	}
	// A patch that changes nothing is no new generation.
	if patched.GetMetadata().GetGeneration() == o.GetMetadata().GetGeneration() {
		fmt.Fprintf(s.Out, "%s skipped rollback (current template already matches revision %d)\n", t, chosen.GetRevision())
		return nil
	}
	fmt.Fprintf(s.Out, "%s rolled back\n", t)
	return nil
}

// earlierRevision picks the revision of a number, or the one before the newest.
func earlierRevision(o object.Object, all []*appsv1.ControllerRevision, to int64) (*appsv1.ControllerRevision, error) {
	var own []*appsv1.ControllerRevision
	for _, r := range all {
		if c := object.ControllerOf(r); c != nil && c.GetUid() == o.GetMetadata().GetUid() {
			own = append(own, r)
		}
	}
	slices.SortFunc(own, func(a, b *appsv1.ControllerRevision) int { return int(b.GetRevision() - a.GetRevision()) })
	if to == 0 {
		if len(own) < 2 {
			return nil, fmt.Errorf("no last revision to roll back to: %q has no earlier one", o.GetMetadata().GetName())
		}
		return own[1], nil
	}
	var known []string
	for _, r := range own {
		if r.GetRevision() == to {
			return r, nil
		}
		known = append(known, strconv.FormatInt(r.GetRevision(), 10))
	}
	return nil, fmt.Errorf("unable to find specified revision %d in history: there are %s", to, strings.Join(known, ", "))
}
