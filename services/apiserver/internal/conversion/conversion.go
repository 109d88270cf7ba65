// Package conversion turns objects of one version of a kind into another: of those that the resource table stores as another row (resource.Resource.Storage), into
// what is stored and back.
//
// The rules are Kubernetes' own (pkg/apis/autoscaling/v1 and pkg/apis/events/v1), so that what a client of one version writes looks to clients of the
// other as it does there: what autoscaling/v1 has no fields for travels in annotations, and comes back from there.
package conversion

import (
	"fmt"
	"reflect"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/pkg/resource"
)

// rule converts between two versions of a kind.
type rule struct {
	from, to schema.GroupVersionKind
	empty    func() encodable
	convert  func(runtime.Object) (encodable, error)
}

// encodable is a struct of k8s.io/api.
type encodable interface {
	runtime.Object
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

var (
	hpaV1      = autoscalingv1.SchemeGroupVersion.WithKind("HorizontalPodAutoscaler")
	hpaV2      = autoscalingv2.SchemeGroupVersion.WithKind("HorizontalPodAutoscaler")
	coreEvent  = corev1.SchemeGroupVersion.WithKind("Event")
	groupEvent = eventsv1.SchemeGroupVersion.WithKind("Event")
)

// rules has both directions of every pair.
var rules = []rule{
	of(hpaV1, hpaV2, autoscalerToV2), of(hpaV2, hpaV1, autoscalerToV1),
	of(coreEvent, groupEvent, eventToGroup), of(groupEvent, coreEvent, eventToCore),
}

// of makes a rule of a function between structs.
func of[From, To any, F interface {
	*From
	encodable
}, T interface {
	*To
	encodable
}](from, to schema.GroupVersionKind, convert func(F) (T, error)) rule {
	return rule{
		from: from, to: to,
		empty: func() encodable { return F(new(From)) },
		convert: func(obj runtime.Object) (encodable, error) {
			in, ok := obj.(F)
			if !ok {
				return nil, fmt.Errorf("a %T is no %s", obj, from)
			}
			return convert(in)
		},
	}
}

// Convert returns obj, a pointer to a struct of k8s.io/api, as an object of another version of its kind: a new object, which may share with obj what neither may
// change afterwards. An object that is of the version already is returned as it is. Errors are BadRequest: annotations can hold what cannot be read.
func Convert(obj runtime.Object, to *resource.Resource) (runtime.Object, error) {
	for _, r := range rules {
		switch t := reflect.TypeOf(obj); {
		case r.from == to.GroupVersionKind() && reflect.TypeOf(r.empty()) == t:
			return obj, nil
		case r.to == to.GroupVersionKind() && reflect.TypeOf(r.empty()) == t:
			out, err := r.convert(obj)
			if err != nil {
				return nil, apierrors.NewBadRequest(fmt.Sprintf("conversion to %s: %v", r.to, err))
			}
			return out, nil
		}
	}
	return nil, apierrors.NewBadRequest(fmt.Sprintf("a %T cannot be converted to %s", obj, to.GroupVersionKind()))
}

// Encoded converts an encoded object, of the version of from, and returns it encoded.
func Encoded(data []byte, from, to *resource.Resource) ([]byte, error) {
	for _, r := range rules {
		if r.from != from.GroupVersionKind() || r.to != to.GroupVersionKind() {
			continue
		}
		in := r.empty()
		if err := in.Unmarshal(data); err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("%s cannot be decoded as protobuf: %v", from.GroupVersionKind(), err))
		}
		out, err := r.convert(in)
		if err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("conversion of %s to %s: %v", from.GroupVersionKind(), to.GroupVersionKind(), err))
		}
		return out.Marshal()
	}
	return nil, apierrors.NewBadRequest(fmt.Sprintf("%s cannot be converted to %s", from.GroupVersionKind(), to.GroupVersionKind()))
}

// labels are the field labels of rows that are stored as another, with the label there that selects the same.
var labels = map[schema.GroupVersionKind]map[string]string{
	groupEvent: {
		"regarding.uid": "involvedObject.uid", "regarding.kind": "involvedObject.kind", "regarding.namespace": "involvedObject.namespace",
		"regarding.name": "involvedObject.name", "regarding.apiVersion": "involvedObject.apiVersion",
		"regarding.resourceVersion": "involvedObject.resourceVersion", "regarding.fieldPath": "involvedObject.fieldPath",
		"reason": "reason", "reportingController": "reportingComponent", "type": "type",
	},
}

// FieldLabel returns the label by which objects of r are selected where they are stored, and false when r has no such label. Labels of metadata are the
// same everywhere.
func FieldLabel(r *resource.Resource, label string) (string, bool) {
	stored, ok := labels[r.GroupVersionKind()][label]
	return stored, ok
}
