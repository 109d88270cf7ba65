package strategy

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/strategy/defaulting"
	"dhow.dev/services/apiserver/internal/strategy/validation"
)

var podRules = rules[*corev1.Pod]{
	defaults: defaulting.Pod, create: newPod, validate: validation.Pod,
	update: keepPod, validateNext: validation.PodUpdate, status: keepPodStatus, validateState: validation.PodStatusUpdate,
}

// newPod begins a pod's life: not placed, and in the class of service that its resources say.
func newPod(p *corev1.Pod) {
	p.Status = corev1.PodStatus{Phase: corev1.PodPending, QOSClass: QOSClass(&p.Spec)}
	if len(p.Spec.SchedulingGates) > 0 {
		p.Status.Conditions = []corev1.PodCondition{{
			Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonSchedulingGated,
			Message: "Scheduling is blocked due to non-empty scheduling gates", ObservedGeneration: p.Generation,
		}}
	}
}

// keepPod takes from the old pod what admission and the controllers gave it, when a client that never read the pod leaves it out.
func keepPod(p, old *corev1.Pod) {
	if p.Spec.Priority == nil {
		p.Spec.Priority = old.Spec.Priority
	}
	if p.Spec.PreemptionPolicy == nil {
		p.Spec.PreemptionPolicy = old.Spec.PreemptionPolicy
	}
	if p.Spec.NodeName == "" {
		p.Spec.NodeName = old.Spec.NodeName
	}
}

// keepPodStatus keeps what a pod's resources say about its class.
func keepPodStatus(p, old *corev1.Pod) { p.Status.QOSClass = old.Status.QOSClass }

// podStrategy adds to the rules what hangs on the cluster.
type podStrategy struct {
	rules[*corev1.Pod]
	config Config
}

// Admit gives a pod its priority and its tolerations of lost nodes. What else depends on other objects is package admission's.
func (s podStrategy) Admit(_ context.Context, obj, old runtime.Object) error {
	p := obj.(*corev1.Pod)
	if old == nil {
		if err := s.prioritize(p); err != nil {
			return err
		}
	}
	defaulting.Tolerations(p, s.config.TolerationSeconds)
	return nil
}

var (
	pods            = resource.Lookup("", "pods")
	priorityClasses = resource.Lookup("scheduling.k8s.io", "priorityclasses")
)

// prioritize resolves the pod's class, or the cluster's default one.
func (s podStrategy) prioritize(p *corev1.Pod) error {
	var priority int32
	policy := corev1.PreemptLowerPriority
	if p.Spec.PriorityClassName == "" {
		class, err := s.defaultClass()
		if err != nil {
			return err
		}
		if class != nil {
			p.Spec.PriorityClassName = class.Name
			priority, policy = class.Value, orPolicy(class.PreemptionPolicy, policy)
		}
	} else {
		class := &schedulingv1.PriorityClass{}
		found, err := s.get(priorityClasses, "", p.Spec.PriorityClassName, class)
		if err != nil {
			return err
		}
		value, system := validation.SystemPriorities[p.Spec.PriorityClassName]
		switch {
		case found:
			priority, policy = class.Value, orPolicy(class.PreemptionPolicy, policy)
		case system:
			priority = value
		default:
			return apierrors.NewForbidden(pods.GroupResource(), p.Name, fmt.Errorf("no PriorityClass with name %v was found", p.Spec.PriorityClassName))
		}
	}
	if p.Spec.Priority != nil && *p.Spec.Priority != priority {
		return apierrors.NewForbidden(pods.GroupResource(), p.Name,
			fmt.Errorf("the integer value of priority (%d) must not be provided in pod spec; priority admission controller computed %d from the given PriorityClass name", *p.Spec.Priority, priority))
	}
	p.Spec.Priority = &priority
	if p.Spec.PreemptionPolicy != nil && *p.Spec.PreemptionPolicy != policy {
		return apierrors.NewForbidden(pods.GroupResource(), p.Name,
			fmt.Errorf("the string value of PreemptionPolicy (%s) must not be provided in pod spec; priority admission controller computed %s from the given PriorityClass name", *p.Spec.PreemptionPolicy, policy))
	}
	p.Spec.PreemptionPolicy = &policy
	return nil
}

func orPolicy(p *corev1.PreemptionPolicy, otherwise corev1.PreemptionPolicy) corev1.PreemptionPolicy {
	if p == nil {
		return otherwise
	}
	return *p
}

// defaultClass finds the class of pods that name none; of several, the one of the lowest value.
func (s podStrategy) defaultClass() (*schedulingv1.PriorityClass, error) {
	if s.config.Lookup == nil {
		return nil, nil
	}
	var lowest *schedulingv1.PriorityClass
	err := s.config.Lookup.List(priorityClasses, "", func(obj runtime.Object) bool {
		class := obj.(*schedulingv1.PriorityClass)
		if class.GlobalDefault && (lowest == nil || class.Value < lowest.Value) {
			lowest = class
		}
		return true
	})
	return lowest, err
}

func (s podStrategy) get(res *resource.Resource, namespace, name string, obj runtime.Object) (bool, error) {
	if s.config.Lookup == nil {
		return false, nil
	}
	return s.config.Lookup.Get(res, namespace, name, obj)
}

// QOSClass says how a pod fares when a node runs short: all is limited to what is requested, something is requested, or nothing.
func QOSClass(spec *corev1.PodSpec) corev1.PodQOSClass {
	guaranteed, something := true, false
	look := func(r *corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := r.Requests[name], r.Limits[name]
			something = something || request.Sign() > 0 || limit.Sign() > 0
			guaranteed = guaranteed && limit.Sign() > 0 && request.Cmp(limit) == 0
		}
	}
	if spec.Resources != nil {
		look(spec.Resources)
	} else {
		for _, list := range [][]corev1.Container{spec.Containers, spec.InitContainers} {
			for i := range list {
				look(&list[i].Resources)
			}
		}
	}
	switch {
	case !something:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	}
	return corev1.PodQOSBurstable
}
