// Package codec decodes and encodes objects of every served kind as the structs of k8s.io/api, on which the write path works: protobuf as
// it is stored, JSON and YAML as users send them, with Kubernetes' complaints about unknown and duplicate fields.
package codec

import (
	"bytes"
	stdjson "encoding/json"
	"fmt"

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
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"dhow.dev/pkg/resource"
)

// Object is a pointer to a struct of k8s.io/api.
type Object interface {
	runtime.Object
	metav1.Object
	Marshal() ([]byte, error)
	Unmarshal([]byte) error
}

// FieldValidation says what happens to unknown and duplicate fields of JSON and YAML. The values are Kubernetes'.
type FieldValidation string

// The three ways of field validation; the zero value is Strict.
const (
	Strict FieldValidation = metav1.FieldValidationStrict
	Warn   FieldValidation = metav1.FieldValidationWarn
	Ignore FieldValidation = metav1.FieldValidationIgnore
)

// Codec decodes and encodes. It is safe for concurrent use.
type Codec struct {
	scheme *runtime.Scheme
	// json also encodes; yaml would decode JSON too, but some twenty times slower.
	json, yaml runtime.Serializer
}

// New returns a codec for every kind of the resource table. It fails when a kind has no struct in k8s.io/api, which is a mistake in the program.
func New() (*Codec, error) {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{
		corev1.AddToScheme, appsv1.AddToScheme, batchv1.AddToScheme, autoscalingv2.AddToScheme, policyv1.AddToScheme, discoveryv1.AddToScheme,
		coordinationv1.AddToScheme, rbacv1.AddToScheme, schedulingv1.AddToScheme, storagev1.AddToScheme, networkingv1.AddToScheme, eventsv1.AddToScheme,
		authenticationv1.AddToScheme, authorizationv1.AddToScheme, autoscalingv1.AddToScheme, certificatesv1.AddToScheme, certificatesv1beta1.AddToScheme, flowcontrolv1.AddToScheme, nodev1.AddToScheme,
		resourcev1.AddToScheme, metricsv1beta1.AddToScheme,
	} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("register the kinds of k8s.io/api: %w", err)
		}
	}
	c := &Codec{
		scheme: scheme,
		json:   json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Strict: true}),
		yaml:   json.NewSerializerWithOptions(json.DefaultMetaFactory, scheme, scheme, json.SerializerOptions{Yaml: true, Strict: true}),
	}
	for _, res := range resource.Kinds() {
		o, err := scheme.New(res.GroupVersionKind())
		if err != nil {
			return nil, fmt.Errorf("the struct of %s: %w", res, err)
		}
		if _, ok := o.(Object); !ok {
			return nil, fmt.Errorf("the struct of %s, %T, cannot be encoded as protobuf", res, o)
		}
	}
	return c, nil
}

// Scheme returns the types that the codec knows. It must not be changed.
func (c *Codec) Scheme() *runtime.Scheme { return c.scheme }

// New returns an empty object of the kind.
func (c *Codec) New(res *resource.Resource) Object {
	o, err := c.scheme.New(res.GroupVersionKind())
	if err != nil {
		panic(fmt.Sprintf("codec: %v", err)) // New has tried every kind of the table
	}
	return o.(Object)
}

// DecodeProto decodes protobuf, as clients send it and as it is stored. An error is the client's fault in the first case only: it has no status.
func (c *Codec) DecodeProto(res *resource.Resource, data []byte) (Object, error) {
	o := c.New(res)
	if err := o.Unmarshal(data); err != nil {
		return nil, fmt.Errorf("%s in version %q cannot be decoded as protobuf: %w", res.Kind, res.Version, err)
	}
	return o, nil
}

// EncodeProto encodes an object as it is stored: without kind, version and resourceVersion, which the key and the revision say.
func (c *Codec) EncodeProto(o Object) ([]byte, error) {
	version := o.GetResourceVersion()
	o.SetResourceVersion("")
	data, err := o.Marshal()
	o.SetResourceVersion(version)
	if err != nil {
		return nil, fmt.Errorf("encode %T %s/%s: %w", o, o.GetNamespace(), o.GetName(), err)
	}
	return data, nil
}

// DecodeText decodes JSON or YAML. Unknown and duplicate fields are an error, warnings or nothing, as asked. Errors are BadRequest, worded as Kubernetes does.
func (c *Codec) DecodeText(res *resource.Resource, data []byte, validation FieldValidation) (Object, []string, error) {
	o, strict, err := c.DecodeTextStrict(res, data)
	if err != nil {
		return nil, nil, err
	}
	if strict == nil || validation == Ignore {
		return o, nil, nil
	}
	if validation == Warn {
		problems, _ := runtime.AsStrictDecodingError(strict)
		warnings := make([]string, 0, len(problems.Errors()))
		for _, p := range problems.Errors() {
			warnings = append(warnings, p.Error())
		}
		return o, warnings, nil
	}
	return nil, nil, cannotHandle(res, strict)
}

// DecodeTextStrict decodes JSON or YAML and returns what is wrong with its fields apart, as a strict decoding error, together with the object.
func (c *Codec) DecodeTextStrict(res *resource.Resource, data []byte) (o Object, strict, err error) {
	gvk := res.GroupVersionKind()
	into := c.New(res)
	decoder := c.yaml
	if stdjson.Valid(data) {
		decoder = c.json
	}
	got, gotKind, err := decoder.Decode(data, &gvk, into)
	if err != nil && !runtime.IsStrictDecodingError(err) {
		return nil, nil, cannotHandle(res, err)
	}
	if *gotKind != gvk {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("the kind in the data (%s) does not match the expected kind (%s)", gotKind, gvk))
	}
	o, ok := got.(Object)
	if !ok {
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("the data is no %s", gvk))
	}
	ClearKind(o)
	return o, err, nil
}

// EncodeJSON encodes an object as JSON with its kind and version.
func (c *Codec) EncodeJSON(res *resource.Resource, o Object) ([]byte, error) {
	SetKind(res, o)
	defer ClearKind(o)
	var b bytes.Buffer
	if err := c.json.Encode(o, &b); err != nil {
		return nil, fmt.Errorf("encode %T %s/%s as JSON: %w", o, o.GetNamespace(), o.GetName(), err)
	}
	return b.Bytes(), nil
}

// SetKind writes kind and version into the object, for what looks at them there.
func SetKind(res *resource.Resource, o Object) {
	o.GetObjectKind().SetGroupVersionKind(res.GroupVersionKind())
}

// ClearKind empties kind and version: inside the server the resource says them.
func ClearKind(o Object) { o.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{}) }

func cannotHandle(res *resource.Resource, err error) error {
	return apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be handled as a %s: %v", res.Kind, res.Version, res.Kind, err))
}
