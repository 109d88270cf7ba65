package snapshot

import (
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/demand"
	"dhow.dev/pkg/object"
)

// ClassKey returns what names a pod's class: pods with equal keys compile to equal classes. It must mention everything that Compile reads. The
// node's name is no part of it: a pod keeps its class when it is bound.
func ClassKey(pod *corev1.Pod, services []*corev1.Service) string {
	m, spec := pod.GetMetadata(), pod.GetSpec()
	b := make([]byte, 0, 512)
	b = appendString(b, m.GetNamespace())
	b = appendMap(b, m.GetLabels())
	owner := object.ControllerOf(pod)
	b = appendString(b, owner.GetUid())
	b = appendString(b, owner.GetKind())
	b = appendMap(b, spec.GetNodeSelector())
	held := demand.HeldBy(pod)
	b = appendContainers(b, &held, spec.GetContainers())
	b = appendContainers(b, &held, spec.GetInitContainers())
	b = appendQuantities(b, held.Whole())
	b = appendQuantities(b, spec.GetOverhead())
	// Nested structures go in as their deterministic encoding, which is stable within a process.
	b = appendMessage(b, spec.GetAffinity())
	for _, t := range spec.GetTolerations() {
		b = appendString(b, t.GetKey())
		b = appendString(b, t.GetOperator())
		b = appendString(b, t.GetValue())
		b = appendString(b, t.GetEffect())
	}
	b = append(b, ';')
	for _, t := range spec.GetTopologySpreadConstraints() {
		b = appendMessage(b, t)
	}
	b = append(b, ';')
	for _, c := range claimRefs(m, spec) {
		b = appendString(b, c.Key)
		b = appendString(b, c.Owner)
	}
	b = append(b, ';')
	b = appendDisks(b, disksOf(spec))
	b = appendServed(b, spec)
	for _, g := range spec.GetSchedulingGates() {
		b = appendString(b, g.GetName())
	}
	if len(spec.GetTopologySpreadConstraints()) == 0 && !slices.Contains(spreadOwners, owner.GetKind()) {
		for _, s := range services {
			b = append(b, ';')
			b = appendMap(b, s.GetSpec().GetSelector())
		}
	}
	return string(b)
}

func appendContainers(b []byte, held *demand.Held, containers []*corev1.Container) []byte {
	b = strconv.AppendInt(b, int64(len(containers)), 10)
	for _, c := range containers {
		b = append(b, '{')
		b = appendQuantities(b, held.Of(c))
		b = appendString(b, c.GetRestartPolicy())
		b = appendString(b, c.GetImage())
		for _, p := range c.GetPorts() {
			if p.GetHostPort() <= 0 {
				continue
			}
			b = appendString(b, p.GetProtocol())
			b = appendString(b, p.GetHostIp())
			b = strconv.AppendInt(b, int64(p.GetHostPort()), 10)
		}
	}
	return append(b, ';')
}

func appendQuantities(b []byte, quantities map[string]*metav1.Quantity) []byte {
	b = strconv.AppendInt(b, int64(len(quantities)), 10)
	b = append(b, '(')
	for _, name := range sortedKeys(quantities) {
		b = appendString(b, name)
		b = appendString(b, quantities[name].GetString())
	}
	return b
}

func appendMap(b []byte, labels map[string]string) []byte {
	b = strconv.AppendInt(b, int64(len(labels)), 10)
	b = append(b, '(')
	for _, k := range sortedKeys(labels) {
		b = appendString(b, k)
		b = appendString(b, labels[k])
	}
	return b
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func appendMessage(b []byte, m proto.Message) []byte {
	encoded, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		// Invalid UTF-8, which the API does not let in: a class of its own is always right.
		return strconv.AppendQuote(b, err.Error())
	}
	return appendString(b, string(encoded))
}
