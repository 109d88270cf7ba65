package registry

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/admission"
	"dhow.dev/services/apiserver/internal/codec"
)

var budgets = resource.Lookup(policyv1.GroupName, "poddisruptionbudgets")

const (
	overBudget = "Cannot evict pod as it would violate the pod's disruption budget."
	// maxDisrupted is Kubernetes' limit on evictions that a budget's controller has not seen yet.
	maxDisrupted = 2000
	// unseenBudgetDelay is when to try again, in seconds, while the controller has not looked at a budget.
	unseenBudgetDelay = 10
)

// Evict deletes a pod if its disruption budget allows: the subresource `eviction` of pods. What the budget still allows is counted in the commit
// that deletes the pod. The warnings are admission's.
func (r *Registry) Evict(ctx context.Context, namespace, name string, eviction *policyv1.Eviction, dryRun bool) (warnings []string, err error) {
	if eviction.Name != "" && eviction.Name != name {
		return nil, apierrors.NewBadRequest("name in URL does not match name in Eviction object")
	}
	options := deletionOf(eviction.DeleteOptions)
	dryRun = dryRun || eviction.DeleteOptions != nil && len(eviction.DeleteOptions.DryRun) > 0
	plan := func(ctx context.Context, tx *txn) (*outcome, error) {
		entry, old, err := r.current(ctx, tx, pods, namespace, name)
		if err != nil {
			if tx.uncertain() && apierrors.IsNotFound(err) {
				return &outcome{}, nil // the attempt that was not answered has done it
			}
			return nil, err
		}
		if o := tx.done(Key(pods, namespace, name), entry, nil); o != nil {
			return o, nil
		}
		q := &admission.Request{Operation: admission.Create, Resource: pods, Subresource: "eviction", Namespace: namespace, Name: name, Object: eviction, View: tx}
		if err := r.admitted(ctx, q); err != nil {
			return nil, err
		}
		warnings = q.Warnings
		old.SetResourceVersion(version(entry.Revision))
		if err := preconditions(pods, old, options); err != nil {
			return nil, err
		}
		pod, ok := old.(*corev1.Pod)
		if !ok {
			return nil, fmt.Errorf("pod %s/%s is a %T", namespace, name, old)
		}
		if !unbudgeted(pod) {
			if err := r.spend(ctx, tx, pod); err != nil {
				return nil, err
			}
			r.target(pod)
		}
		return r.delete(ctx, tx, pods, entry, pod, options)
	}
	_, _, err = r.run(ctx, dryRun, []step{plan})
	return warnings, err
}

func deletionOf(o *metav1.DeleteOptions) DeleteOptions {
	if o == nil {
		return DeleteOptions{}
	}
	options := DeleteOptions{GracePeriodSeconds: o.GracePeriodSeconds}
	if o.Preconditions != nil && o.Preconditions.UID != nil {
		options.UID = string(*o.Preconditions.UID)
	}
	if o.Preconditions != nil && o.Preconditions.ResourceVersion != nil {
		options.ResourceVersion = *o.Preconditions.ResourceVersion
	}
	return options
}

// unbudgeted says whether a pod can go without being missed: it has ended, ends, or has not begun.
func unbudgeted(pod *corev1.Pod) bool {
	switch pod.Status.Phase {
	case corev1.PodSucceeded, corev1.PodFailed, corev1.PodPending:
		return true
	}
	return pod.DeletionTimestamp != nil
}

// target notes in the pod why it ends.
func (r *Registry) target(pod *corev1.Pod) {
	next := corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI", Message: "Eviction API: evicting",
		ObservedGeneration: pod.Generation, LastTransitionTime: metav1.NewTime(r.now()).Rfc3339Copy(),
	}
	for i := range pod.Status.Conditions {
		if pod.Status.Conditions[i].Type == next.Type {
			pod.Status.Conditions[i] = next
			return
		}
	}
	pod.Status.Conditions = append(pod.Status.Conditions, next)
}

// spend takes the pod's disruption off its budget, or says why it cannot.
func (r *Registry) spend(ctx context.Context, tx *txn, pod *corev1.Pod) error {
	// Consistent with the store: a budget that was made a moment ago, on whichever API server, counts.
	names, err := r.cache.Select(ctx, budgets, pod.Namespace, "", "")
	if err != nil || len(names) == 0 {
		return err
	}
	var matching []string
	err = tx.List(ctx, budgets, pod.Namespace, func(o codec.Object) bool {
		budget, ok := o.(*policyv1.PodDisruptionBudget)
		if !ok {
			return true
		}
		selector, err := metav1.LabelSelectorAsSelector(budget.Spec.Selector)
		if err == nil && selector.Matches(labels.Set(pod.Labels)) {
			matching = append(matching, budget.Name)
		}
		return true
	})
	switch {
	case err != nil:
		return err
	case len(matching) == 0:
		return nil
	case len(matching) > 1:
		return apierrors.NewInternalError(errors.New("This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.")) //nolint:staticcheck,revive // Kubernetes' words
	}
	return tx.Amend(ctx, budgets, pod.Namespace, matching[0], func(o codec.Object) error {
		budget, ok := o.(*policyv1.PodDisruptionBudget)
		if !ok {
			return fmt.Errorf("disruption budget %s is a %T", matching[0], o)
		}
		return r.disrupt(budget, pod)
	})
}

// disrupt counts one more disruption.
func (r *Registry) disrupt(budget *policyv1.PodDisruptionBudget, pod *corev1.Pod) error {
	policy := budget.Spec.UnhealthyPodEvictionPolicy
	if !isReady(pod) {
		if policy != nil && *policy == policyv1.AlwaysAllow {
			return nil
		}
		if budget.Status.CurrentHealthy >= budget.Status.DesiredHealthy && budget.Status.DesiredHealthy > 0 {
			return nil // the healthy ones suffice, and this one is not among them
		}
	}
	status := &budget.Status
	switch {
	case status.ObservedGeneration < budget.Generation:
		return refusal(unseenBudgetDelay, "The disruption budget %s is still being processed by the server.", budget.Name)
	case status.DisruptionsAllowed < 0:
		return apierrors.NewForbidden(budgets.GroupResource(), budget.Name, errors.New("pdb disruptions allowed is negative"))
	case len(status.DisruptedPods) > maxDisrupted:
		return apierrors.NewForbidden(budgets.GroupResource(), budget.Name, errors.New("DisruptedPods map too big - too many evictions not confirmed by PDB controller"))
	case status.DisruptionsAllowed == 0:
		c := meta.FindStatusCondition(status.Conditions, policyv1.DisruptionAllowedCondition)
		if c != nil && c.Status == metav1.ConditionFalse && c.Reason == policyv1.SyncFailedReason {
			return refusal(0, "The disruption budget %s does not allow evicting pods currently because it failed sync: %v", budget.Name, c.Message)
		}
		return refusal(0, "The disruption budget %s needs %d healthy pods and has %d currently", budget.Name, status.DesiredHealthy, status.CurrentHealthy)
	}
	status.DisruptionsAllowed--
	if status.DisruptionsAllowed == 0 {
		meta.SetStatusCondition(&status.Conditions, metav1.Condition{
			Type: policyv1.DisruptionAllowedCondition, Reason: policyv1.InsufficientPodsReason, Status: metav1.ConditionFalse, ObservedGeneration: status.ObservedGeneration,
		})
	}
	if status.DisruptedPods == nil {
		status.DisruptedPods = map[string]metav1.Time{}
	}
	status.DisruptedPods[pod.Name] = metav1.NewTime(r.now()).Rfc3339Copy()
	return nil
}

func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue })
}

// refusal is Kubernetes' answer to an eviction that the budget does not allow now.
func refusal(retryAfter int, format string, args ...any) error {
	err := apierrors.NewTooManyRequests(overBudget, retryAfter)
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: policyv1.DisruptionBudgetCause, Message: fmt.Sprintf(format, args...)})
	return err
}
