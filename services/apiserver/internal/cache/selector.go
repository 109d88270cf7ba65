package cache

import (
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/conversion"
)

// Selection selects objects of one kind. Make it with Select.
type Selection struct {
	// Resource is the row whose objects are stored.
	Resource  *resource.Resource
	Namespace string

	// view is the row whose version the objects are shown in, nil when that is Resource.
	view *resource.Resource

	labels labels.Selector
	fields []requirement
	// found is where objects of the selection are looked up, and events that may matter to it.
	found bucketKey
}

// requirement is one term of a field selector.
type requirement struct {
	// slot is an index of the kind's field set, or one of the slots below.
	slot   int
	value  string
	differ bool
}

const (
	slotName  = -1
	slotSpace = -2
	slotOwner = -3
)

// dimension says which property of an object an index is about.
type dimension int8

const (
	byAll dimension = iota
	byNamespace
	byOwner
	byField // value's field is bucketKey.slot
	byName
)

// bucketKey names one bucket of a kind's index.
type bucketKey struct {
	dimension dimension
	slot      int8
	// namespace is used by byName, and value by all but byAll.
	namespace, value string
}

// Select makes a selection of the objects of a kind. An empty namespace selects all. Selectors have Kubernetes' syntax; errors are BadRequest.
func Select(r *resource.Resource, namespace, labelSelector, fieldSelector string) (Selection, error) {
	s := Selection{Resource: r.StoredAs(), Namespace: namespace}
	if s.Resource != r {
		s.view = r
	}
	if namespace != "" && !r.Namespaced {
		return s, apierrors.NewBadRequest(fmt.Sprintf("%s have no namespaces: leave the namespace empty", r))
	}
	if labelSelector != "" {
		parsed, err := labels.Parse(labelSelector)
		if err != nil {
			return s, apierrors.NewBadRequest(err.Error())
		}
		s.labels = parsed
	}
	set := fieldsOf(s.Resource)
	s.found = bucketKey{dimension: byAll}
	if namespace != "" {
		s.found = bucketKey{dimension: byNamespace, value: namespace}
	}
	if fieldSelector == "" {
		return s, nil
	}
	parsed, err := fields.ParseSelector(fieldSelector)
	if err != nil {
		return s, apierrors.NewBadRequest(err.Error())
	}
	for _, term := range parsed.Requirements() {
		q := requirement{value: term.Value, differ: term.Operator == selection.NotEquals}
		switch term.Field {
		case nameField:
			q.slot = slotName
		case spaceField:
			q.slot = slotSpace
		case ownerField:
			q.slot = slotOwner
		default:
			label, ok := term.Field, true
			if s.view != nil {
				label, ok = conversion.FieldLabel(r, label)
			}
			if q.slot = set.index(label); !ok || q.slot < 0 {
				return s, apierrors.NewBadRequest("field label not supported: " + term.Field)
			}
		}
		s.fields = append(s.fields, q)
		if !q.differ {
			s.narrow(q, set)
		}
	}
	return s, nil
}

// OnNode selects the pods of a node, whatever its name looks like.
func OnNode(node string) Selection {
	r := resource.Lookup("", "pods")
	slot := fieldsOf(r).index("spec.nodeName")
	return Selection{
		Resource: r, fields: []requirement{{slot: slot, value: node}}, found: bucketKey{dimension: byField, slot: int8(slot), value: node},
	}
}

// narrow moves the selection to the bucket of an equality if that one holds fewer objects: dimensions are declared in that order.
func (s *Selection) narrow(q requirement, set *fieldSet) {
	key := bucketKey{value: q.value}
	switch {
	case q.slot == slotName && (s.Namespace != "" || !s.Resource.Namespaced):
		key.dimension, key.namespace = byName, s.Namespace
	case q.slot == slotOwner:
		key.dimension = byOwner
	case q.slot == slotSpace && s.Resource.Namespaced:
		key.dimension = byNamespace
	case q.slot >= 0 && set.indexed[q.slot]:
		key.dimension, key.slot = byField, int8(q.slot)
	default:
		return
	}
	// The first of a kind's indexed fields is the narrower one: a node's pods before the running pods.
	if key.dimension > s.found.dimension || key.dimension == byField && key.slot < s.found.slot {
		s.found = key
	}
}

// everything says that the selection holds all objects of its kind.
func (s *Selection) everything() bool {
	return s.Namespace == "" && s.labels == nil && len(s.fields) == 0
}

// Matches says whether an object is selected. A nil entry is not.
func (s *Selection) Matches(e *Entry) bool {
	if e == nil || s.Namespace != "" && e.Namespace != s.Namespace {
		return false
	}
	for _, q := range s.fields {
		var equal bool
		switch q.slot {
		case slotName:
			equal = e.Name == q.value
		case slotSpace:
			equal = e.Namespace == q.value
		case slotOwner:
			equal = slices.Contains(e.Owners, q.value)
		default:
			equal = e.fields[q.slot] == q.value
		}
		if equal == q.differ {
			return false
		}
	}
	return s.labels == nil || s.labels.Matches(&e.Labels)
}

// eachBucket calls f with every bucket key that an object is found under, byAll excepted.
func eachBucket(e *Entry, set *fieldSet, f func(bucketKey)) {
	if e == nil {
		return
	}
	f(bucketKey{dimension: byName, namespace: e.Namespace, value: e.Name})
	if e.Namespace != "" {
		f(bucketKey{dimension: byNamespace, value: e.Namespace})
	}
	for _, uid := range e.Owners {
		f(bucketKey{dimension: byOwner, value: uid})
	}
	for i, indexed := range set.indexed {
		if indexed {
			f(bucketKey{dimension: byField, slot: int8(i), value: e.fields[i]})
		}
	}
}
