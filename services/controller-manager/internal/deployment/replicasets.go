package deployment

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"
	corek8s "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/event"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/ownership"
)

// This file writes replica sets.

// ensureCurrent brings the new replica set's annotations and the deployment's revision up to date, and makes the set when create is true. In a
// namespace that is going there may be none afterwards.
func (r *rollout) ensureCurrent(ctx context.Context, create bool) error {
	// A template that was rolled back to becomes the newest revision again.
	next := lastRevision(r.old()) + 1
	if r.current == nil {
		if !create {
			return nil
		}
		return r.createCurrent(ctx, next)
	}
	m := r.current.GetMetadata()
	annotations := annotationsOfNew(r.d, m.GetAnnotations(), next)
	minReady := r.d.GetSpec().GetMinReadySeconds()
	if !maps.Equal(annotations, m.GetAnnotations()) || r.current.GetSpec().GetMinReadySeconds() != minReady {
		updated := proto.Clone(r.current).(*appsv1.ReplicaSet)
		updated.GetMetadata().SetAnnotations(annotations)
		updated.GetSpec().SetMinReadySeconds(minReady)
		updated, err := r.updateSet(ctx, updated)
		if err != nil {
			return fmt.Errorf("update replica set %s: %w", object.KeyOf(r.current), err)
		}
		r.replace(r.current, updated)
	}
	if err := r.setRevision(ctx); err != nil {
		return err
	}
	if hasDeadline(r.d) && condition(r.d.GetStatus(), conditionProgressing) == nil {
		return r.progressing(ctx, statusTrue, reasonFound, fmt.Sprintf("Found new replica set %q", m.GetName()))
	}
	return nil
}

// progressing writes the condition Progressing.
func (r *rollout) progressing(ctx context.Context, value, reason, message string) error {
	status := proto.Clone(r.status()).(*appsv1.DeploymentStatus)
	r.situation().set(status, conditionProgressing, value, reason, message)
	return r.updateStatus(ctx, status)
}

// setRevision writes the new replica set's revision into the deployment.
func (r *rollout) setRevision(ctx context.Context) error {
	want := r.current.GetMetadata().GetAnnotations()[revisionAnnotation]
	if r.d.GetMetadata().GetAnnotations()[revisionAnnotation] == want {
		return nil
	}
	updated := proto.Clone(r.d).(*appsv1.Deployment)
	annotations := maps.Clone(updated.GetMetadata().GetAnnotations())
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[revisionAnnotation] = want
	updated.GetMetadata().SetAnnotations(annotations)
	updated, err := r.deployments.Update(ctx, updated, nil)
	if err != nil {
		return fmt.Errorf("revision of deployment %s: %w", r.turn.Key, err)
	}
	r.turn.Wrote(updated)
	r.d = updated
	return nil
}

// replicaSetOf returns the replica set of the deployment's template.
func (r *rollout) replicaSetOf(next int64) *appsv1.ReplicaSet {
	d := r.d
	hash := templateHash(d.GetSpec().GetTemplate(), d.GetStatus().GetCollisionCount())
	template := proto.Clone(d.GetSpec().GetTemplate()).(*corev1.PodTemplateSpec)
	labelled := maps.Clone(template.GetMetadata().GetLabels())
	if labelled == nil {
		labelled = map[string]string{}
	}
	labelled[hashLabel] = hash
	if !template.HasMetadata() {
		template.SetMetadata(&metav1.ObjectMeta{})
	}
	template.GetMetadata().SetLabels(labelled)
	selector := proto.Clone(d.GetSpec().GetSelector()).(*metav1.LabelSelector)
	match := maps.Clone(selector.GetMatchLabels())
	if match == nil {
		match = map[string]string{}
	}
	match[hashLabel] = hash
	selector.SetMatchLabels(match)

	surge, _ := fenceposts(d)
	annotations := annotationsOfNew(d, nil, next)
	annotations, _ = withReplicaAnnotations(annotations, d.GetSpec().GetReplicas(), d.GetSpec().GetReplicas()+surge)
	return appsv1.ReplicaSet_builder{
		Metadata: metav1.ObjectMeta_builder{
			Namespace: proto.String(d.GetMetadata().GetNamespace()), Name: proto.String(d.GetMetadata().GetName() + "-" + hash),
			Labels: maps.Clone(labelled), Annotations: annotations, OwnerReferences: []*metav1.OwnerReference{ownership.Reference(d)},
		}.Build(),
		Spec: appsv1.ReplicaSetSpec_builder{
			Replicas: proto.Int32(newReplicas(d, r.sets, 0)), MinReadySeconds: proto.Int32(d.GetSpec().GetMinReadySeconds()),
			Selector: selector, Template: template,
		}.Build(),
	}.Build()
}

func (r *rollout) createCurrent(ctx context.Context, next int64) error {
	wanted := r.replicaSetOf(next)
	name := wanted.GetMetadata().GetName()
	created, err := r.Controller.sets.Create(ctx, wanted, nil)
	switch {
	case apierrors.IsAlreadyExists(err):
		return r.resolveCollision(ctx, name)
	case apierrors.HasStatusCause(err, corek8s.NamespaceTerminatingCause):
		return nil // all of it will go
	case err != nil:
		message := fmt.Sprintf("Failed to create new replica set %q: %v", name, err)
		r.events.Report(r.d, event.Warning, reasonCreateFailed, "%s", message)
		if hasDeadline(r.d) {
			if statusErr := r.progressing(ctx, statusFalse, reasonCreateFailed, message); statusErr != nil {
				return statusErr
			}
		}
		return fmt.Errorf("create replica set %s/%s: %w", r.turn.Key.Namespace, name, err)
	}
	r.turn.Wrote(created)
	r.sets = append(r.sets, created)
	r.current = created
	if n := replicasOf(created); n > 0 {
		r.events.Report(r.d, event.Normal, "ScalingReplicaSet", "Scaled up replica set %s from 0 to %d", name, n)
	}
	if err := r.setRevision(ctx); err != nil {
		return err
	}
	if hasDeadline(r.d) {
		return r.progressing(ctx, statusTrue, reasonCreated, fmt.Sprintf("Created new replica set %q", name))
	}
	return nil
}

// resolveCollision looks at the replica set that has the name of the one to be made: it is ours and the cache does not know it yet, or it has
// another template and the name has to change, which the collision count does.
func (r *rollout) resolveCollision(ctx context.Context, name string) error {
	existing, err := r.Controller.sets.Get(ctx, r.turn.Key.Namespace, name)
	if err != nil {
		return fmt.Errorf("read replica set %s/%s, which exists already: %w", r.turn.Key.Namespace, name, err)
	}
	if ownership.ControllerUID(existing) == r.d.GetMetadata().GetUid() && sameTemplate(existing.GetSpec().GetTemplate(), r.d.GetSpec().GetTemplate()) {
		r.turn.Wrote(existing)
		r.sets = append(r.sets, existing)
		r.current = existing
		return r.setRevision(ctx)
	}
	status := proto.Clone(r.status()).(*appsv1.DeploymentStatus)
	status.SetCollisionCount(status.GetCollisionCount() + 1)
	if err := r.updateStatus(ctx, status); err != nil {
		return err
	}
	return fmt.Errorf("create replica set %s/%s: %w", r.turn.Key.Namespace, name, errCollision)
}

// errCollision repeats the turn, which then finds another name.
var errCollision = errors.New("the name belongs to another template, another is taken")

// apply gives replica sets their sizes, and says whether any has another number of replicas than before.
func (r *rollout) apply(ctx context.Context, sizes []size) (scaled bool, err error) {
	desired := r.d.GetSpec().GetReplicas()
	surge, _ := fenceposts(r.d)
	for _, s := range sizes {
		before := replicasOf(s.set)
		annotations, stale := withReplicaAnnotations(s.set.GetMetadata().GetAnnotations(), desired, desired+surge)
		if before == s.replicas && !stale {
			continue
		}
		updated := proto.Clone(s.set).(*appsv1.ReplicaSet)
		updated.GetMetadata().SetAnnotations(annotations)
		updated.GetSpec().SetReplicas(s.replicas)
		updated, err := r.updateSet(ctx, updated)
		if err != nil {
			return scaled, fmt.Errorf("scale replica set %s: %w", object.KeyOf(s.set), err)
		}
		r.replace(s.set, updated)
		if before == s.replicas {
			continue
		}
		scaled = true
		direction := "up"
		if s.replicas < before {
			direction = "down"
		}
		r.events.Report(r.d, event.Normal, "ScalingReplicaSet", "Scaled %s replica set %s from %d to %d", direction, updated.GetMetadata().GetName(), before, s.replicas)
	}
	return scaled, nil
}

func (r *rollout) updateSet(ctx context.Context, rs *appsv1.ReplicaSet) (*appsv1.ReplicaSet, error) {
	rs, err := r.Controller.sets.Update(ctx, rs, nil)
	if err == nil {
		r.turn.Wrote(rs)
	}
	return rs, err
}

// replace puts a replica set's new state in place of the one before.
func (r *rollout) replace(before, after *appsv1.ReplicaSet) {
	if i := slices.Index(r.sets, before); i >= 0 {
		r.sets[i] = after
	}
	if r.current == before {
		r.current = after
	}
}
