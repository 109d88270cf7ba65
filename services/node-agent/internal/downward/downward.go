// Package downward answers what a pod may ask about itself: Kubernetes' downward API, for environment variables and files.
package downward

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

// Facts is what is known of a pod's place beyond the pod itself.
type Facts struct {
	NodeName string
	HostIPs  []string
	PodIPs   []string
	// Allocatable of the node stands in for limits that a container does not set.
	Allocatable map[string]*metav1.Quantity
}

// Field returns the value of a fieldRef's path.
func Field(pod *corev1.Pod, path string, facts Facts) (string, error) {
	m := pod.GetMetadata()
	if base, key, ok := subscript(path); ok {
		switch base {
		case "metadata.labels":
			return m.GetLabels()[key], nil
		case "metadata.annotations":
			return m.GetAnnotations()[key], nil
		}
		return "", fmt.Errorf("fieldPath %q: only metadata.labels and metadata.annotations have keys", path)
	}
	switch path {
	case "metadata.name":
		return m.GetName(), nil
	case "metadata.namespace":
		return m.GetNamespace(), nil
	case "metadata.uid":
		return m.GetUid(), nil
	case "metadata.labels":
		return lines(m.GetLabels()), nil
	case "metadata.annotations":
		return lines(m.GetAnnotations()), nil
	case "spec.nodeName":
		return facts.NodeName, nil
	case "spec.serviceAccountName":
		return pod.GetSpec().GetServiceAccountName(), nil
	case "status.hostIP":
		return first(facts.HostIPs), nil
	case "status.hostIPs":
		return strings.Join(facts.HostIPs, ","), nil
	case "status.podIP":
		return first(facts.PodIPs), nil
	case "status.podIPs":
		return strings.Join(facts.PodIPs, ","), nil
	}
	return "", fmt.Errorf("fieldPath %q is not supported; see the downward API's list of fields", path)
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// subscript splits metadata.labels['key'].
func subscript(path string) (base, key string, ok bool) {
	if !strings.HasSuffix(path, "']") {
		return "", "", false
	}
	base, key, ok = strings.Cut(strings.TrimSuffix(path, "']"), "['")
	return base, key, ok
}

// lines renders a map as one key="value" a line, sorted, as Kubernetes does.
func lines(m map[string]string) string {
	list := make([]string, 0, len(m))
	for _, k := range slices.Sorted(maps.Keys(m)) {
		list = append(list, k+"="+strconv.Quote(m[k]))
	}
	return strings.Join(list, "\n")
}

// Resource returns the value of a resourceFieldRef. Container is the one that asks, for references that name none.
func Resource(pod *corev1.Pod, container string, ref *corev1.ResourceFieldSelector, facts Facts) (string, error) {
	name := container
	if ref.GetContainerName() != "" {
		name = ref.GetContainerName()
	}
	var resources *corev1.ResourceRequirements
	found := false
	for _, c := range slices.Concat(pod.GetSpec().GetContainers(), pod.GetSpec().GetInitContainers()) {
		if c.GetName() == name {
			resources, found = c.GetResources(), true
		}
	}
	if !found {
		return "", fmt.Errorf("resourceFieldRef: the pod has no container %q", name)
	}
	kind, what, ok := strings.Cut(ref.GetResource(), ".")
	if !ok {
		return "", fmt.Errorf("resourceFieldRef: resource %q: want limits.NAME or requests.NAME", ref.GetResource())
	}
	var value *metav1.Quantity
	switch kind {
	case "limits":
		value = resources.GetLimits()[what]
		if value == nil && (what == "cpu" || what == "memory" || what == "ephemeral-storage") {
			value = facts.Allocatable[what]
		}
	case "requests":
		value = resources.GetRequests()[what]
		if value == nil {
			value = resources.GetLimits()[what]
		}
	default:
		return "", fmt.Errorf("resourceFieldRef: resource %q: want limits.NAME or requests.NAME", ref.GetResource())
	}
	if value == nil {
		return "0", nil
	}
	quantity, err := resource.ParseQuantity(value.GetString())
	if err != nil {
		return "", fmt.Errorf("resourceFieldRef: %s of container %q is %q: %w", ref.GetResource(), name, value.GetString(), err)
	}
	divisor := resource.MustParse("1")
	if text := ref.GetDivisor().GetString(); text != "" && text != "0" {
		if divisor, err = resource.ParseQuantity(text); err != nil {
			return "", fmt.Errorf("resourceFieldRef: divisor %q: %w", text, err)
		}
	}
	return divide(quantity, divisor, what == "cpu"), nil
}

// divide rounds up. CPU is counted in thousandths, so that a divisor of 1m works.
func divide(value, divisor resource.Quantity, milli bool) string {
	a, b := value.Value(), divisor.Value()
	if milli {
		a, b = value.MilliValue(), divisor.MilliValue()
	}
	if b == 0 {
		return "0"
	}
	q := a / b
	if a%b > 0 {
		q++
	}
	return strconv.FormatInt(q, 10)
}
