package statefulset

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/controller-manager/internal/history"
	"dhow.dev/services/controller-manager/internal/ownership"
)

// This file is who a pod of a set is: its name, what it is labelled with and called in DNS, and which volume claims are its own.

const (
	nameLabel  = "statefulset.kubernetes.io/pod-name"
	indexLabel = "apps.kubernetes.io/pod-index"
)

// podName returns the name of the pod with an ordinal.
func podName(set *appsv1.StatefulSet, ordinal int) string {
	return set.GetMetadata().GetName() + "-" + strconv.Itoa(ordinal)
}

// parse returns the set's name and the ordinal in a pod's name; ok is false for a name without.
func parse(pod string) (set string, ordinal int, ok bool) {
	i := strings.LastIndexByte(pod, '-')
	if i < 0 {
		return "", 0, false
	}
	n, err := strconv.ParseInt(pod[i+1:], 10, 32)
	if err != nil || n < 0 || pod[i+1] == '+' {
		return "", 0, false
	}
	return pod[:i], int(n), true
}

// ordinalOf returns the ordinal of a pod of the set; ok is false for a pod with a name that is none of the set's.
func ordinalOf(set *appsv1.StatefulSet, p *corev1.Pod) (ordinal int, ok bool) {
	name, ordinal, ok := parse(p.GetMetadata().GetName())
	return ordinal, ok && name == set.GetMetadata().GetName() && podName(set, ordinal) == p.GetMetadata().GetName()
}

// start is the ordinal of the first pod.
func start(set *appsv1.StatefulSet) int { return int(set.GetSpec().GetOrdinals().GetStart()) }

// index is the place of an ordinal in the set; ok is false outside of it.
func index(set *appsv1.StatefulSet, ordinal int) (i int, ok bool) {
	i = ordinal - start(set)
	return i, i >= 0 && i < int(set.GetSpec().GetReplicas())
}

// podOf returns a new pod of the set with an ordinal, of a revision.
func podOf(set *appsv1.StatefulSet, ordinal int, template *corev1.PodTemplateSpec, revision string) *corev1.Pod {
	m := &metav1.ObjectMeta{}
	m.SetNamespace(set.GetMetadata().GetNamespace())
	m.SetName(podName(set, ordinal))
	labelled := maps.Clone(template.GetMetadata().GetLabels())
	if labelled == nil {
		labelled = map[string]string{}
	}
	labelled[history.PodLabel] = revision
	m.SetLabels(labelled)
	m.SetAnnotations(maps.Clone(template.GetMetadata().GetAnnotations()))
	m.SetFinalizers(slices.Clone(template.GetMetadata().GetFinalizers()))
	m.SetOwnerReferences([]*metav1.OwnerReference{ownership.Reference(set)})
	pod := &corev1.Pod{}
	pod.SetMetadata(m)
	spec := &corev1.PodSpec{}
	if template.HasSpec() {
		spec = proto.Clone(template.GetSpec()).(*corev1.PodSpec)
	}
	pod.SetSpec(spec)
	spec.SetHostname(m.GetName())
	if service := set.GetSpec().GetServiceName(); service != "" {
		spec.SetSubdomain(service)
	}
	spec.SetVolumes(volumes(set, ordinal, spec.GetVolumes()))
	identify(set, pod, ordinal)
	return pod
}

// identify labels a pod with who it is.
func identify(set *appsv1.StatefulSet, p *corev1.Pod, ordinal int) {
	labelled := maps.Clone(p.GetMetadata().GetLabels())
	if labelled == nil {
		labelled = map[string]string{}
	}
	labelled[nameLabel] = podName(set, ordinal)
	labelled[indexLabel] = strconv.Itoa(ordinal)
	p.GetMetadata().SetLabels(labelled)
}

// identified says that the pod's labels say who it is.
func identified(set *appsv1.StatefulSet, p *corev1.Pod, ordinal int) bool {
	l := p.GetMetadata().GetLabels()
	return l[nameLabel] == podName(set, ordinal) && l[indexLabel] == strconv.Itoa(ordinal)
}

// revisionOf returns the name of a pod's revision.
func revisionOf(p *corev1.Pod) string { return p.GetMetadata().GetLabels()[history.PodLabel] }

// claimName returns the name of a pod's claim.
func claimName(set *appsv1.StatefulSet, template *corev1.PersistentVolumeClaim, ordinal int) string {
	return fmt.Sprintf("%s-%s-%d", template.GetMetadata().GetName(), set.GetMetadata().GetName(), ordinal)
}

// volumes returns the pod's volumes: its claims take the place of what the template has under their names.
func volumes(set *appsv1.StatefulSet, ordinal int, of []*corev1.Volume) []*corev1.Volume {
	var all []*corev1.Volume
	claimed := map[string]bool{}
	for _, t := range set.GetSpec().GetVolumeClaimTemplates() {
		name := t.GetMetadata().GetName()
		claimed[name] = true
		all = append(all, corev1.Volume_builder{
			Name: proto.String(name),
			VolumeSource: corev1.VolumeSource_builder{PersistentVolumeClaim: corev1.PersistentVolumeClaimVolumeSource_builder{
				ClaimName: proto.String(claimName(set, t, ordinal)),
			}.Build()}.Build(),
		}.Build())
	}
	for _, v := range of {
		if !claimed[v.GetName()] {
			all = append(all, v)
		}
	}
	return all
}

// claimsOf returns the claims that a pod should have, as new ones.
func claimsOf(set *appsv1.StatefulSet, ordinal int) []*corev1.PersistentVolumeClaim {
	var claims []*corev1.PersistentVolumeClaim
	for _, t := range set.GetSpec().GetVolumeClaimTemplates() {
		claim := proto.Clone(t).(*corev1.PersistentVolumeClaim)
		claim.ClearStatus()
		labelled := maps.Clone(t.GetMetadata().GetLabels())
		if labelled == nil {
			labelled = map[string]string{}
		}
		maps.Copy(labelled, set.GetSpec().GetSelector().GetMatchLabels())
		m := &metav1.ObjectMeta{}
		m.SetNamespace(set.GetMetadata().GetNamespace())
		m.SetName(claimName(set, t, ordinal))
		m.SetLabels(labelled)
		m.SetAnnotations(maps.Clone(t.GetMetadata().GetAnnotations()))
		m.SetFinalizers(slices.Clone(t.GetMetadata().GetFinalizers()))
		claim.SetMetadata(m)
		claims = append(claims, claim)
	}
	return claims
}
