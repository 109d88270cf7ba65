package defaulting

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// DefaultServiceAccount is the account of pods that name none; every namespace has it.
const DefaultServiceAccount = "default"

// Pod completes a pod: what every template gets, and what only the pod itself does.
func Pod(pod *corev1.Pod) {
	spec := &pod.Spec
	PodSpec(spec)
	orPointer(&spec.EnableServiceLinks, true)
	requestLimits(spec)
	if spec.HostNetwork {
		hostPorts(spec.Containers)
		hostPorts(spec.InitContainers)
	}
	// Kubernetes keeps both names of the account in step; the new one wins.
	if spec.ServiceAccountName == "" {
		spec.ServiceAccountName = spec.DeprecatedServiceAccount
	}
	orDefault(&spec.ServiceAccountName, DefaultServiceAccount)
	spec.DeprecatedServiceAccount = spec.ServiceAccountName
}

// PodTemplate completes the pod that a template describes. What Pod adds waits until a pod is made of it.
func PodTemplate(template *corev1.PodTemplateSpec) {
	PodSpec(&template.Spec)
	spec := &template.Spec
	if spec.ServiceAccountName == "" {
		spec.ServiceAccountName = spec.DeprecatedServiceAccount
	}
	spec.DeprecatedServiceAccount = spec.ServiceAccountName
}

// StoredTemplate completes a template that is an object by itself.
func StoredTemplate(t *corev1.PodTemplate) { PodTemplate(&t.Template) }

// PodSpec completes what pods and templates have in common.
func PodSpec(spec *corev1.PodSpec) {
	orDefault(&spec.DNSPolicy, corev1.DNSClusterFirst)
	orDefault(&spec.RestartPolicy, corev1.RestartPolicyAlways)
	orPointer(&spec.SecurityContext, corev1.PodSecurityContext{})
	orPointer(&spec.TerminationGracePeriodSeconds, corev1.DefaultTerminationGracePeriodSeconds)
	orDefault(&spec.SchedulerName, corev1.DefaultSchedulerName)
	for i := range spec.Volumes {
		volume(&spec.Volumes[i])
	}
	for i := range spec.InitContainers {
		container(&spec.InitContainers[i])
	}
	for i := range spec.Containers {
		container(&spec.Containers[i])
	}
	for i := range spec.EphemeralContainers {
		c := corev1.Container(spec.EphemeralContainers[i].EphemeralContainerCommon)
		container(&c)
		spec.EphemeralContainers[i].EphemeralContainerCommon = corev1.EphemeralContainerCommon(c)
	}
}

// requestLimits requests what is limited and not requested: for each container, then for the pod as a whole.
func requestLimits(spec *corev1.PodSpec) {
	for _, list := range [][]corev1.Container{spec.Containers, spec.InitContainers} {
		for i := range list {
			r := &list[i].Resources
			fillRequests(&r.Requests, r.Limits, nil)
		}
	}
	if spec.Resources != nil {
		fillRequests(&spec.Resources.Requests, spec.Resources.Limits, Sum(spec, Requests))
	}
}

// fillRequests requests the limits of what is not requested, or what is known as the sum of its parts.
func fillRequests(requests *corev1.ResourceList, limits, sums corev1.ResourceList) {
	for name, limit := range limits {
		if _, requested := (*requests)[name]; requested {
			continue
		}
		if *requests == nil {
			*requests = make(corev1.ResourceList, len(limits))
		}
		if sum, ok := sums[name]; ok {
			limit = sum
		}
		(*requests)[name] = limit.DeepCopy()
	}
}

// Sum sums what of says of each of a pod's containers: those that run together are added, those that run before them count when larger.
func Sum(spec *corev1.PodSpec, of func(*corev1.ResourceRequirements) corev1.ResourceList) corev1.ResourceList {
	sums := corev1.ResourceList{}
	for _, c := range spec.Containers {
		for name, q := range of(&c.Resources) {
			add(sums, name, q)
		}
	}
	sidecars, peak := corev1.ResourceList{}, corev1.ResourceList{}
	for _, c := range spec.InitContainers {
		sidecar := c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
		for name, q := range of(&c.Resources) {
			if sidecar {
				add(sums, name, q)
				add(sidecars, name, q)
				q = sidecars[name].DeepCopy()
			} else if running, ok := sidecars[name]; ok {
				q = q.DeepCopy()
				q.Add(running)
			}
			if p, ok := peak[name]; !ok || q.Cmp(p) > 0 {
				peak[name] = q
			}
		}
	}
	for name, q := range peak {
		if s, ok := sums[name]; !ok || q.Cmp(s) > 0 {
			sums[name] = q
		}
	}
	return sums
}

// Requests are what is requested.
func Requests(r *corev1.ResourceRequirements) corev1.ResourceList { return r.Requests }

// Limits are what is limited.
func Limits(r *corev1.ResourceRequirements) corev1.ResourceList { return r.Limits }

func add(list corev1.ResourceList, name corev1.ResourceName, q resource.Quantity) {
	sum := list[name].DeepCopy()
	sum.Add(q)
	list[name] = sum
}

// hostPorts opens every port of a pod on the host's network on the host, where it is anyway.
func hostPorts(containers []corev1.Container) {
	for i := range containers {
		for j := range containers[i].Ports {
			p := &containers[i].Ports[j]
			orDefault(&p.HostPort, p.ContainerPort)
		}
	}
}

// Tolerations lets a pod stay for the given time on a node that is not ready or not reachable, unless it says itself for how long.
func Tolerations(pod *corev1.Pod, seconds int64) {
	for _, key := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		if !slices.ContainsFunc(pod.Spec.Tolerations, func(t corev1.Toleration) bool {
			return (t.Key == key || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "")
		}) {
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{
				Key: key, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds,
			})
		}
	}
}
