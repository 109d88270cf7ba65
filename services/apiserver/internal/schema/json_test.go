package schema

import (
	"reflect"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// TestJSONNames compares with the names that Kubernetes' JSON has by its structs' tags: users know those, and generated.proto differs in one.
func TestJSONNames(t *testing.T) {
	w := jsonWalk{t: t, seen: map[reflect.Type]bool{}}
	for _, k := range kinds(t) {
		object, err := structs.New(k.gvk)
		if err != nil {
			t.Fatal(err)
		}
		w.compare(reflect.TypeOf(object).Elem(), k.message.Descriptor())
	}
	if w.fields < 1200 {
		t.Errorf("only %d fields were compared", w.fields)
	}
}

type jsonWalk struct {
	t      *testing.T
	seen   map[reflect.Type]bool
	fields int
}

// compare pairs fields by the number in the struct's protobuf tag.
func (w *jsonWalk) compare(structType reflect.Type, d protoreflect.MessageDescriptor) {
	if w.seen[structType] {
		return
	}
	w.seen[structType] = true
	for i := range structType.NumField() {
		f := structType.Field(i)
		tag := strings.Split(f.Tag.Get("protobuf"), ",")
		if len(tag) < 2 {
			continue
		}
		number, err := strconv.Atoi(tag[1])
		if err != nil {
			w.t.Fatalf("%s.%s: %v", structType, f.Name, err)
		}
		fd := d.Fields().ByNumber(protoreflect.FieldNumber(number))
		if fd == nil {
			w.t.Errorf("%s.%s: no field %d in %s", structType, f.Name, number, d.FullName())
			continue
		}
		// What JSON inlines or leaves out has no name there.
		if name, _, _ := strings.Cut(f.Tag.Get("json"), ","); name != "" && name != "-" {
			w.fields++
			if fd.JSONName() != name {
				w.t.Errorf("%s: %q in Kubernetes' JSON, %q here", fd.FullName(), name, fd.JSONName())
			}
		}
		elem, message := f.Type, fd.Message()
		for elem.Kind() == reflect.Pointer || elem.Kind() == reflect.Slice || elem.Kind() == reflect.Map {
			if elem.Kind() == reflect.Map {
				message = fd.MapValue().Message()
			}
			elem = elem.Elem()
		}
		if elem.Kind() == reflect.Struct && message != nil {
			w.compare(elem, message)
		}
	}
}
