package patch

import (
	"encoding/base64"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/json"

	dhowresource "dhow.dev/pkg/resource"
)

// ParseProto reads a configuration from a protobuf message: the fields that are present are the configuration, zero values too, which JSON made
// from a struct would lose.
func (p *Patcher) ParseProto(res *dhowresource.Resource, data []byte) (Configuration, error) {
	message := res.New()
	if err := proto.Unmarshal(data, message); err != nil {
		return Configuration{}, apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be decoded as protobuf: %v", res.Kind, res.Version, err))
	}
	tree := map[string]any{}
	if err := p.present(message.ProtoReflect(), reflect.TypeOf(p.codec.New(res)).Elem(), tree); err != nil {
		return Configuration{}, apierrors.NewBadRequest(fmt.Sprintf("%s in version %q cannot be applied: %v", res.Kind, res.Version, err))
	}
	return newConfiguration(res, tree, nil), nil
}

// present writes the present fields of a message into a JSON tree. JSON's names, and which messages JSON spreads into their parent, are read from the
// tags of the struct of k8s.io/api that encodes alike.
func (p *Patcher) present(m protoreflect.Message, t reflect.Type, tree map[string]any) error {
	names := p.namesOf(t)
	var failed error
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		name, ok := names[int(fd.Number())]
		if !ok {
			failed = fmt.Errorf("field %s has no counterpart in %s", fd.FullName(), t)
			return false
		}
		if name.inline {
			failed = p.present(v.Message(), name.typ, tree)
			return failed == nil
		}
		value, err := p.fieldValue(fd, v, name.typ)
		if err != nil {
			failed = err
			return false
		}
		tree[name.json] = value
		return true
	})
	return failed
}

func (p *Patcher) fieldValue(fd protoreflect.FieldDescriptor, v protoreflect.Value, t reflect.Type) (any, error) {
	switch {
	case fd.IsMap():
		object := make(map[string]any, v.Map().Len())
		var failed error
		v.Map().Range(func(k protoreflect.MapKey, item protoreflect.Value) bool {
			value, err := p.singleValue(fd.MapValue(), item, element(t.Elem()))
			failed = err
			object[k.String()] = value
			return err == nil
		})
		return object, failed
	case fd.IsList():
		list := make([]any, 0, v.List().Len())
		for i := range v.List().Len() {
			value, err := p.singleValue(fd, v.List().Get(i), element(t.Elem()))
			if err != nil {
				return nil, err
			}
			list = append(list, value)
		}
		return list, nil
	default:
		return p.singleValue(fd, v, t)
	}
}

func (p *Patcher) singleValue(fd protoreflect.FieldDescriptor, v protoreflect.Value, t reflect.Type) (any, error) {
	switch fd.Kind() {
	case protoreflect.MessageKind:
		return p.messageValue(v.Message(), t)
	case protoreflect.BytesKind:
		return base64.StdEncoding.EncodeToString(v.Bytes()), nil
	case protoreflect.StringKind:
		return v.String(), nil
	case protoreflect.BoolKind:
		return v.Bool(), nil
	case protoreflect.Int32Kind, protoreflect.Int64Kind:
		return v.Int(), nil
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		return v.Float(), nil
	default:
		return nil, fmt.Errorf("field %s: kind %s does not occur in Kubernetes' schema", fd.FullName(), fd.Kind())
	}
}

// messageValue converts a message. Those that JSON writes as something else than an object are decoded by their own struct, which knows how.
func (p *Patcher) messageValue(m protoreflect.Message, t reflect.Type) (any, error) {
	switch t {
	case reflect.TypeFor[metav1.Time]():
		return timeValue(m, time.RFC3339), nil
	case reflect.TypeFor[metav1.MicroTime]():
		return timeValue(m, metav1.RFC3339Micro), nil
	case reflect.TypeFor[resource.Quantity](), reflect.TypeFor[intstr.IntOrString](), reflect.TypeFor[metav1.Duration](), reflect.TypeFor[metav1.FieldsV1]():
		return viaStruct(m, t)
	}
	if t.Kind() == reflect.Slice {
		// A list inside a message of its own (ExtraValue and its like): JSON has the list.
		return viaStruct(m, t)
	}
	if t.Kind() != reflect.Struct {
		return nil, fmt.Errorf("message %s is a %s in k8s.io/api", m.Descriptor().FullName(), t)
	}
	if t.Implements(jsonMarshaler) || reflect.PointerTo(t).Implements(jsonMarshaler) {
		return viaStruct(m, t)
	}
	tree := map[string]any{}
	return tree, p.present(m, t, tree)
}

var jsonMarshaler = reflect.TypeFor[interface{ MarshalJSON() ([]byte, error) }]()

// timeValue is a time as JSON has it: null for an empty message, which is how Kubernetes encodes no time.
func timeValue(m protoreflect.Message, layout string) any {
	fields := m.Descriptor().Fields()
	if !m.Has(fields.ByName("seconds")) && !m.Has(fields.ByName("nanos")) {
		return nil
	}
	seconds := m.Get(fields.ByName("seconds")).Int()
	nanos := m.Get(fields.ByName("nanos")).Int()
	return time.Unix(seconds, nanos).UTC().Format(layout)
}

func viaStruct(m protoreflect.Message, t reflect.Type) (any, error) {
	data, err := proto.Marshal(m.Interface())
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.Descriptor().FullName(), err)
	}
	value := reflect.New(t)
	decoder, ok := value.Interface().(interface{ Unmarshal([]byte) error })
	if !ok {
		return nil, fmt.Errorf("%s cannot be decoded from protobuf", t)
	}
	if err := decoder.Unmarshal(data); err != nil {
		return nil, fmt.Errorf("decode %s: %w", m.Descriptor().FullName(), err)
	}
	text, err := json.Marshal(value.Interface())
	if err != nil {
		return nil, fmt.Errorf("encode %s as JSON: %w", t, err)
	}
	var tree any
	if err := json.Unmarshal(text, &tree); err != nil {
		return nil, fmt.Errorf("decode %s from JSON: %w", t, err)
	}
	return tree, nil
}

// fieldName is how a field is found in JSON.
type fieldName struct {
	json   string
	inline bool
	// typ is the field's type without pointer.
	typ reflect.Type
}

// namesOf returns the field numbers and JSON names of a struct, read from its tags once.
func (p *Patcher) namesOf(t reflect.Type) map[int]fieldName {
	if known, ok := p.names.Load(t); ok {
		return known.(map[int]fieldName)
	}
	names := make(map[int]fieldName, t.NumField())
	for i := range t.NumField() {
		f := t.Field(i)
		// bytes,3,opt,name=status
		parts := strings.Split(f.Tag.Get("protobuf"), ",")
		if len(parts) < 2 {
			continue
		}
		number, err := strconv.Atoi(parts[1])
		if err != nil {
			continue
		}
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		names[number] = fieldName{json: name, inline: name == "" && strings.Contains(options, "inline"), typ: element(f.Type)}
	}
	p.names.Store(t, names)
	return names
}

func element(t reflect.Type) reflect.Type {
	if t.Kind() == reflect.Pointer {
		return t.Elem()
	}
	return t
}
