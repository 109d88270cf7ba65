// Package structs converts between Dhow's messages and the structs of k8s.io/api, which print and parse exactly as Kubernetes does. Both have the
// same encoding, so a conversion is an encode and a decode.
package structs

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

// Object is a struct of k8s.io/api.
type Object interface {
	runtime.Object
	metav1.Object
}

// encoded is what the structs' generated code has.
type encoded interface {
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

var scheme = newScheme()

func newScheme() *runtime.Scheme {
	s := runtime.NewScheme()
	builder := runtime.SchemeBuilder{
		corev1.AddToScheme, appsv1.AddToScheme, batchv1.AddToScheme, autoscalingv2.AddToScheme, policyv1.AddToScheme, networkingv1.AddToScheme,
		discoveryv1.AddToScheme, coordinationv1.AddToScheme, schedulingv1.AddToScheme, storagev1.AddToScheme, rbacv1.AddToScheme, eventsv1.AddToScheme,
		authenticationv1.AddToScheme, authorizationv1.AddToScheme, autoscalingv1.AddToScheme, certificatesv1.AddToScheme, certificatesv1beta1.AddToScheme, flowcontrolv1.AddToScheme,
		nodev1.AddToScheme, resourcev1.AddToScheme, metricsv1beta1.AddToScheme,
	}
	if err := builder.AddToScheme(s); err != nil {
		panic(fmt.Sprintf("structs: %v", err)) // two kinds of one name: a mistake in the program
	}
	return s
}

// New returns an empty struct of a kind, with kind and apiVersion set.
func New(r *resource.Resource) (Object, error) {
	o, err := scheme.New(r.GroupVersionKind())
	if err != nil {
		return nil, err
	}
	o.GetObjectKind().SetGroupVersionKind(r.GroupVersionKind())
	return o.(Object), nil
}

// From returns the struct of a message of a kind, with kind and apiVersion set.
func From(m object.Object) (Object, error) {
	r := resource.ByMessage(m)
	if r == nil {
		return nil, fmt.Errorf("%T is no kind", m)
	}
	bytes, err := proto.Marshal(m)
	if err != nil {
		return nil, err
	}
	return Decode(r, bytes)
}

// Decode returns the struct of an encoded object.
func Decode(r *resource.Resource, bytes []byte) (Object, error) {
	o, err := New(r)
	if err != nil {
		return nil, err
	}
	if err := o.(encoded).Unmarshal(bytes); err != nil {
		return nil, fmt.Errorf("decode %s: %w", r.Kind, err)
	}
	return o, nil
}

// To returns the message of a struct.
func To(o Object, r *resource.Resource) (object.Object, error) {
	bytes, err := o.(encoded).Marshal()
	if err != nil {
		return nil, err
	}
	m := r.New()
	if err := proto.Unmarshal(bytes, m); err != nil {
		return nil, fmt.Errorf("encode %s: %w", r.Kind, err)
	}
	return m, nil
}
