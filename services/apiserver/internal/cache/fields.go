package cache

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"dhow.dev/pkg/resource"
)

// Fields that select and are indexed although Kubernetes has no such selector or no such index.
const (
	nameField  = "metadata.name"
	spaceField = "metadata.namespace"
	// ownerField selects the dependents of an object by the UID in their owner references. It is Dhow's own.
	ownerField = "metadata.ownerReferences.uid"
)

// selectable is a field that field selectors may name, beside the metadata fields of every kind.
type selectable struct {
	label string
	// path holds JSON names; it differs from the label where Kubernetes names a field otherwise.
	path string
	// fallback is used when path is unset or empty.
	fallback string
	indexed  bool
}

// selectables are Kubernetes' (pkg/apis/*/v1/conversion.go and the strategies' SelectableFields of v1.36), by plural and group.
var selectables = map[string][]selectable{
	"pods": {
		{label: "spec.nodeName", indexed: true},
		{label: "status.phase", indexed: true},
		{label: "spec.restartPolicy"},
		{label: "spec.schedulerName"},
		{label: "spec.serviceAccountName"},
		{label: "spec.hostNetwork"},
		{label: "status.podIP"},
		{label: "status.nominatedNodeName"},
	},
	"events": {
		{label: "involvedObject.uid", indexed: true},
		{label: "involvedObject.kind"},
		{label: "involvedObject.namespace"},
		{label: "involvedObject.name"},
		{label: "involvedObject.apiVersion"},
		{label: "involvedObject.resourceVersion"},
		{label: "involvedObject.fieldPath"},
		{label: "reason"},
		{label: "reportingComponent"},
		{label: "source", path: "source.component", fallback: "reportingComponent"},
		{label: "type"},
	},
	"events.events.k8s.io": {
		{label: "regarding.uid", indexed: true},
		{label: "regarding.kind"},
		{label: "regarding.namespace"},
		{label: "regarding.name"},
		{label: "regarding.apiVersion"},
		{label: "regarding.resourceVersion"},
		{label: "regarding.fieldPath"},
		{label: "reason"},
		{label: "reportingController"},
		{label: "type"},
	},
	"secrets":                {{label: "type"}},
	"namespaces":             {{label: "status.phase"}},
	"nodes":                  {{label: "spec.unschedulable"}},
	"services":               {{label: "spec.clusterIP"}, {label: "spec.type"}},
	"replicasets.apps":       {{label: "status.replicas"}},
	"replicationcontrollers": {{label: "status.replicas"}},
	"jobs.batch":             {{label: "status.successful", path: "status.succeeded"}},

	"certificatesigningrequests.certificates.k8s.io": {{label: "spec.signerName"}},
	"clustertrustbundles.certificates.k8s.io":        {{label: "spec.signerName"}},
	"resourceslices.resource.k8s.io":                 {{label: "spec.nodeName", indexed: true}, {label: "spec.driver"}},
}

// fieldSet is what the scanner looks for in objects of one kind.
type fieldSet struct {
	labels  []string
	indexed []bool
	// zero are the values of unset fields: "false" and "0" for booleans and numbers, as Kubernetes prints them.
	zero []string
	// fallbacks are indices of the field to use for an empty one, or -1.
	fallbacks []int
	root      *pathNode
}

// pathNode is one field number on the way to selectable fields.
type pathNode struct {
	children map[protowire.Number]*pathNode
	// slot is the index of the selectable field that ends here, or -1.
	slot int
	kind protoreflect.Kind
}

var fieldSets = func() map[*resource.Resource]*fieldSet {
	sets := map[*resource.Resource]*fieldSet{}
	for _, r := range resource.All() {
		if r.Virtual {
			continue
		}
		sets[r] = newFieldSet(r.Descriptor(), selectables[r.String()])
	}
	return sets
}()

func fieldsOf(r *resource.Resource) *fieldSet { return fieldSets[r] }

// newFieldSet resolves the paths. A path that the message does not have is a mistake in the table above.
func newFieldSet(message protoreflect.MessageDescriptor, list []selectable) *fieldSet {
	set := &fieldSet{root: &pathNode{slot: -1}}
	for i, s := range list {
		set.labels = append(set.labels, s.label)
		set.indexed = append(set.indexed, s.indexed)
		fallback := -1
		if s.fallback != "" {
			fallback = slices.IndexFunc(list, func(other selectable) bool { return other.label == s.fallback })
		}
		set.fallbacks = append(set.fallbacks, fallback)
		path := s.path
		if path == "" {
			path = s.label
		}
		node, within := set.root, message
		for name := range strings.SplitSeq(path, ".") {
			field := within.Fields().ByJSONName(name)
			if field == nil {
				panic(fmt.Sprintf("cache: %s has no field %s (%s)", message.FullName(), path, name))
			}
			if node.children == nil {
				node.children = map[protowire.Number]*pathNode{}
			}
			child := node.children[field.Number()]
			if child == nil {
				child = &pathNode{slot: -1, kind: field.Kind()}
				node.children[field.Number()] = child
			}
			node, within = child, field.Message()
		}
		node.slot = i
		switch node.kind {
		case protoreflect.StringKind:
			set.zero = append(set.zero, "")
		case protoreflect.BoolKind:
			set.zero = append(set.zero, "false")
		case protoreflect.Int32Kind, protoreflect.Int64Kind:
			set.zero = append(set.zero, "0")
		default:
			panic(fmt.Sprintf("cache: %s: %s is a %s, which no selector can compare", message.FullName(), path, node.kind))
		}
	}
	return set
}

func (s *fieldSet) index(label string) int { return slices.Index(s.labels, label) }
