package schema

import (
	"bytes"
	"math/rand"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// TestGoldenObjects drives k8s.io/api's own test objects, in which every field is set, through both encoders.
func TestGoldenObjects(t *testing.T) {
	seen := 0
	for _, k := range kinds(t) {
		if k.golden == nil {
			continue
		}
		seen++
		t.Run(k.gvk.String(), func(t *testing.T) { sameBytes(t, k, k.golden) })
	}
	if seen < 55 {
		t.Errorf("only %d golden objects were found", seen)
	}
}

// TestZeroedObjects is the same with every scalar zero: what a schema without presence loses.
func TestZeroedObjects(t *testing.T) {
	for _, k := range kinds(t) {
		if k.golden == nil {
			continue
		}
		t.Run(k.gvk.String(), func(t *testing.T) {
			object := k.newStruct(t)
			if err := object.Unmarshal(k.golden); err != nil {
				t.Fatal(err)
			}
			zero(reflect.ValueOf(object).Elem())
			b, err := object.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			sameBytes(t, k, b)
		})
	}
}

// TestRandomObjects fills structs of every kind, lists too, from sparse to full.
func TestRandomObjects(t *testing.T) {
	for _, k := range kinds(t) {
		t.Run(k.gvk.String(), func(t *testing.T) {
			for seed := range int64(12) {
				object := k.newStruct(t)
				fill(rand.New(rand.NewSource(seed)), reflect.ValueOf(object).Elem(), []float64{0, 0.3, 0.8}[seed%3])
				b, err := object.Marshal()
				if err != nil {
					t.Fatal(err)
				}
				sameBytes(t, k, b)
			}
		})
	}
}

// sameBytes takes bytes that a k8s.io/api struct wrote through Dhow's type, eager and lazy, and back through the struct.
func sameBytes(t *testing.T, k kind, b []byte) {
	t.Helper()
	if again := encode(t, decode(t, k.message, b)); !bytes.Equal(b, again) {
		t.Errorf("Dhow wrote other bytes than Kubernetes:\n%x\n%x", b, again)
	}
	untouched := k.message.New().Interface()
	if err := proto.Unmarshal(b, untouched); err != nil {
		t.Fatal(err)
	}
	if again := encode(t, untouched); !bytes.Equal(b, again) {
		t.Errorf("Dhow wrote other bytes than it read lazily:\n%x\n%x", b, again)
	}
	sameFromStruct(t, k, b)
}

// sameFromStruct takes bytes through the k8s.io/api struct.
func sameFromStruct(t *testing.T, k kind, b []byte) {
	t.Helper()
	object := k.newStruct(t)
	if err := object.Unmarshal(b); err != nil {
		t.Fatalf("Kubernetes cannot read what Dhow wrote: %v", err)
	}
	again, err := object.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, again) {
		t.Errorf("Kubernetes wrote other bytes than Dhow:\n%x\n%x", b, again)
	}
}

// TestBuiltHere builds Dhow's types with every field set, once to zero and once to a value, and takes them through the structs.
func TestBuiltHere(t *testing.T) {
	for _, k := range kinds(t) {
		for _, full := range []bool{false, true} {
			name := map[bool]string{false: "zero", true: "set"}[full]
			t.Run(k.gvk.String()+"/"+name, func(t *testing.T) {
				m := k.message.New()
				build(m, full)
				b := encode(t, m.Interface())
				sameFromStruct(t, k, b)
				if again := decode(t, k.message, b); !proto.Equal(again, m.Interface()) {
					t.Error("Dhow read another object than it wrote")
				}
			})
		}
	}
}

// build sets every field of m: scalars to zero or to a value, lists and maps to one entry. Messages with a canonical form get that.
func build(m protoreflect.Message, full bool) {
	set := func(name protoreflect.Name, v any) {
		m.Set(m.Descriptor().Fields().ByName(name), protoreflect.ValueOf(v))
	}
	switch m.Descriptor().FullName() {
	case "dhow.meta.v1.Quantity":
		set("string", map[bool]string{false: "0", true: "1500m"}[full])
		return
	case "dhow.meta.v1.Time", "dhow.meta.v1.MicroTime":
		set("seconds", map[bool]int64{true: 1700000000}[full])
		set("nanos", int32(0))
		return
	case "dhow.meta.v1.FieldsV1":
		// Kubernetes does not tell an empty set from none.
		if full {
			set("raw", []byte(`{"f:spec":{}}`))
		}
		return
	}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		switch {
		case fd.IsMap():
			value := m.NewField(fd).Map().NewValue()
			if fd.MapValue().Message() != nil {
				build(value.Message(), full)
			} else {
				value = scalar(fd.MapValue(), full)
			}
			m.Mutable(fd).Map().Set(scalar(fd.MapKey(), full).MapKey(), value)
		case fd.IsList() && fd.Message() != nil:
			build(m.Mutable(fd).List().AppendMutable().Message(), full)
		case fd.IsList():
			m.Mutable(fd).List().Append(scalar(fd, full))
		case fd.Message() != nil:
			build(m.Mutable(fd).Message(), full)
		default:
			m.Set(fd, scalar(fd, full))
		}
	}
}

func scalar(fd protoreflect.FieldDescriptor, full bool) protoreflect.Value {
	number := int64(fd.Number())
	name := strings.ToUpper(string(fd.Name()))
	if !full {
		number, name = 0, ""
	}
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(name)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte(name))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(full)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(int32(-number))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(number << 33)
	default:
		panic("no value for kind " + fd.Kind().String())
	}
}

// TestAppendedMetadataWins proves what replies are spliced from: a second metadata field that holds just the resource version is merged into
// the first by both decoders, and changes nothing else.
func TestAppendedMetadataWins(t *testing.T) {
	for _, k := range kinds(t) {
		metadata := k.message.Descriptor().Fields().ByName("metadata")
		if k.golden == nil || metadata == nil || metadata.Message().Name() != "ObjectMeta" {
			continue
		}
		t.Run(k.gvk.String(), func(t *testing.T) {
			version := metadata.Message().Fields().ByName("resource_version")
			suffix := protowire.AppendTag(nil, version.Number(), protowire.BytesType)
			suffix = protowire.AppendString(suffix, "4242")
			spliced := protowire.AppendTag(bytes.Clone(k.golden), metadata.Number(), protowire.BytesType)
			spliced = protowire.AppendBytes(spliced, suffix)

			want := decode(t, k.message, k.golden)
			want.ProtoReflect().Mutable(metadata).Message().Set(version, protoreflect.ValueOfString("4242"))
			if got := decode(t, k.message, spliced); !proto.Equal(got, want) {
				t.Errorf("Dhow reads the spliced object as %v", got)
			}
			object := k.newStruct(t)
			if err := object.Unmarshal(spliced); err != nil {
				t.Fatal(err)
			}
			if b, err := object.Marshal(); err != nil || !bytes.Equal(b, encode(t, want)) {
				t.Errorf("Kubernetes reads the spliced object otherwise: %v\n%x", err, b)
			}
		})
	}
}
