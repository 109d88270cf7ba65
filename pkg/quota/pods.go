package quota

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"dhow.dev/pkg/demand"
)

// Requests picks what is requested, for PodTotal.
func Requests(r *corev1.ResourceRequirements) corev1.ResourceList { return r.Requests }

// Limits picks what is limited, for PodTotal.
func Limits(r *corev1.ResourceRequirements) corev1.ResourceList { return r.Limits }

// PodTotal is what a pod needs at once. What the pod asks for as a whole replaces the sum of its parts. The runtime's overhead is not in it.
func PodTotal(spec *corev1.PodSpec, pick func(*corev1.ResourceRequirements) corev1.ResourceList) corev1.ResourceList {
	isSidecar := func(c corev1.Container) bool {
		return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	}
	total := demand.AtOnce(spec.Containers, spec.InitContainers, isSidecar, func(c corev1.Container) list {
		needs := list{}
		needs.Add(list(pick(&c.Resources)))
		return needs
	})
	if spec.Resources != nil {
		for name, q := range pick(spec.Resources) {
			total[name] = q.DeepCopy()
		}
	}
	return corev1.ResourceList(total)
}

// list is a list of quantities to sum up.
type list corev1.ResourceList

// Add implements demand.List.
func (l list) Add(more list) { Add(corev1.ResourceList(l), corev1.ResourceList(more)) }

// Raise implements demand.List.
func (l list) Raise(other list) {
	for name, q := range other {
		if was, ok := l[name]; !ok || q.Cmp(was) > 0 {
			l[name] = q.DeepCopy()
		}
	}
}

// Add adds to a sum.
func Add(sum, more corev1.ResourceList) {
	for name, q := range more {
		s := sum[name].DeepCopy()
		s.Add(q)
		sum[name] = s
	}
}

// compute are the resources that quotas know by their own name as well.
var compute = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage}

func isHugePages(name corev1.ResourceName) bool {
	return strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}

// isExtended says whether a resource is one that Kubernetes does not know.
func isExtended(name corev1.ResourceName) bool {
	return strings.Contains(string(name), "/") && !strings.HasPrefix(string(name), corev1.ResourceDefaultNamespacePrefix) && !strings.HasPrefix(string(name), corev1.DefaultResourceRequestsPrefix)
}

// needs names what is requested and limited as quotas do.
func needs(requests, limits corev1.ResourceList) corev1.ResourceList {
	all := corev1.ResourceList{}
	for name, q := range requests {
		switch {
		case slices.Contains(compute, name), isHugePages(name):
			all[name] = q
			all[corev1.DefaultResourceRequestsPrefix+name] = q
		case isExtended(name):
			all[corev1.DefaultResourceRequestsPrefix+name] = q
		}
	}
	for name, q := range limits {
		if slices.Contains(compute, name) {
			all["limits."+name] = q
		}
	}
	return all
}

// podUsage counts what a pod has; of one that has ended, that it exists.
func podUsage(pod *corev1.Pod) corev1.ResourceList {
	if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		return corev1.ResourceList{}
	}
	requests, limits := PodTotal(&pod.Spec, Requests), PodTotal(&pod.Spec, Limits)
	Add(requests, pod.Spec.Overhead)
	for name, q := range pod.Spec.Overhead {
		if limit, ok := limits[name]; ok {
			limit = limit.DeepCopy()
			limit.Add(q)
			limits[name] = limit
		}
	}
	used := needs(requests, limits)
	used[corev1.ResourcePods] = number(1)
	return used
}

// demanded are the resources that every container has to name when a quota is about them.
var demanded = []corev1.ResourceName{
	corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceRequestsCPU, corev1.ResourceRequestsMemory, corev1.ResourceLimitsCPU, corev1.ResourceLimitsMemory,
}

// Missing says what containers of a pod leave out although the quota counts it, in Kubernetes' words; empty when nothing.
func Missing(pod *corev1.Pod, hard corev1.ResourceList) string {
	var whole corev1.ResourceList
	if pod.Spec.Resources != nil {
		whole = needs(pod.Spec.Resources.Requests, pod.Spec.Resources.Limits)
	}
	var parts []string
	for _, name := range slices.Sorted(slices.Values(demanded)) {
		if _, counts := hard[name]; !counts {
			continue
		}
		if _, set := whole[name]; set {
			continue
		}
		var without []string
		for _, list := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
			for i := range list {
				if _, set := needs(list[i].Resources.Requests, list[i].Resources.Limits)[name]; !set {
					without = append(without, list[i].Name)
				}
			}
		}
		if len(without) > 0 {
			slices.Sort(without)
			parts = append(parts, string(name)+" for: "+strings.Join(without, ","))
		}
	}
	return strings.Join(parts, "; ")
}

// inScope says whether a pod is in one of a quota's scopes.
func inScope(pod *corev1.Pod, scope corev1.ScopedResourceSelectorRequirement) bool {
	switch scope.ScopeName {
	case corev1.ResourceQuotaScopeTerminating:
		return pod.Spec.ActiveDeadlineSeconds != nil
	case corev1.ResourceQuotaScopeNotTerminating:
		return pod.Spec.ActiveDeadlineSeconds == nil
	case corev1.ResourceQuotaScopeBestEffort:
		return pod.Status.QOSClass == corev1.PodQOSBestEffort
	case corev1.ResourceQuotaScopeNotBestEffort:
		return pod.Status.QOSClass != corev1.PodQOSBestEffort
	case corev1.ResourceQuotaScopePriorityClass:
		class := pod.Spec.PriorityClassName
		switch scope.Operator {
		case corev1.ScopeSelectorOpIn:
			return slices.Contains(scope.Values, class)
		case corev1.ScopeSelectorOpNotIn:
			return !slices.Contains(scope.Values, class)
		case corev1.ScopeSelectorOpDoesNotExist:
			return class == ""
		}
		return class != ""
	case corev1.ResourceQuotaScopeCrossNamespacePodAffinity:
		return crossesNamespaces(pod.Spec.Affinity)
	}
	return false
}

// crossesNamespaces says whether a pod's place depends on pods of other namespaces.
func crossesNamespaces(a *corev1.Affinity) bool {
	if a == nil {
		return false
	}
	var terms []corev1.PodAffinityTerm
	var weighted []corev1.WeightedPodAffinityTerm
	if a.PodAffinity != nil {
		terms, weighted = append(terms, a.PodAffinity.RequiredDuringSchedulingIgnoredDuringExecution...), append(weighted, a.PodAffinity.PreferredDuringSchedulingIgnoredDuringExecution...)
	}
	if a.PodAntiAffinity != nil {
		terms, weighted = append(terms, a.PodAntiAffinity.RequiredDuringSchedulingIgnoredDuringExecution...), append(weighted, a.PodAntiAffinity.PreferredDuringSchedulingIgnoredDuringExecution...)
	}
	for i := range weighted {
		terms = append(terms, weighted[i].PodAffinityTerm)
	}
	return slices.ContainsFunc(terms, func(t corev1.PodAffinityTerm) bool { return len(t.Namespaces) > 0 || t.NamespaceSelector != nil })
}
