package deployment

import (
	"hash"
	"hash/fnv"
	"math"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/rand"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

// hashLabel tells the pods of a deployment's replica sets apart.
const hashLabel = "pod-template-hash"

var quantityName = (*metav1.Quantity)(nil).ProtoReflect().Descriptor().FullName()

// templateHash returns the suffix of the name of a replica set with this template. It only names: whether a replica set has a template is
// decided by comparing them, so another version of this function costs nothing but a new name at the next change.
func templateHash(template *corev1.PodTemplateSpec, collisions int32) string {
	h := fnv.New32a()
	hashMessage(h, template.ProtoReflect())
	if collisions > 0 {
		h.Write([]byte(strconv.Itoa(int(collisions))))
	}
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}

// hashMessage writes a message in a form of its own, because protobuf promises no stable encoding between versions: fields by number, map
// entries by key, each value with its length.
func hashMessage(h hash.Hash, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	order := make([]protoreflect.FieldDescriptor, fields.Len())
	for i := range order {
		order[i] = fields.Get(i)
	}
	slices.SortFunc(order, func(a, b protoreflect.FieldDescriptor) int { return int(a.Number()) - int(b.Number()) })
	for _, f := range order {
		if !m.Has(f) {
			continue
		}
		write(h, "f", strconv.Itoa(int(f.Number())))
		switch v := m.Get(f); {
		case f.IsMap():
			var keys []protoreflect.MapKey
			v.Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
				keys = append(keys, k)
				return true
			})
			slices.SortFunc(keys, func(a, b protoreflect.MapKey) int {
				if a.String() < b.String() {
					return -1
				}
				return 1
			})
			for _, k := range keys {
				write(h, "k", k.String())
				hashValue(h, f.MapValue(), v.Map().Get(k))
			}
		case f.IsList():
			for i := range v.List().Len() {
				hashValue(h, f, v.List().Get(i))
			}
		default:
			hashValue(h, f, v)
		}
	}
	write(h, "e", "")
}

func hashValue(h hash.Hash, f protoreflect.FieldDescriptor, v protoreflect.Value) {
	switch f.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		write(h, "m", "")
		hashMessage(h, v.Message())
	case protoreflect.BytesKind:
		write(h, "v", string(v.Bytes()))
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		write(h, "v", strconv.FormatUint(math.Float64bits(v.Float()), 16))
	default:
		write(h, "v", v.String())
	}
}

// write puts a tagged, length-prefixed text, so that no two messages are written alike. Hashes never fail to write.
func write(h hash.Hash, tag, text string) {
	h.Write([]byte(tag + strconv.Itoa(len(text)) + ":" + text))
}

// sameTemplate says that two templates make the same pods, whatever hash they are labelled with.
func sameTemplate(a, b *corev1.PodTemplateSpec) bool {
	return equal(withoutHash(a).ProtoReflect(), withoutHash(b).ProtoReflect())
}

func withoutHash(t *corev1.PodTemplateSpec) *corev1.PodTemplateSpec {
	if _, ok := t.GetMetadata().GetLabels()[hashLabel]; !ok {
		return t
	}
	t = proto.Clone(t).(*corev1.PodTemplateSpec)
	delete(t.GetMetadata().GetLabels(), hashLabel)
	return t
}

// equal is proto.Equal, with quantities compared by value: 1 and 1000m ask for the same, and an edit of one to the other rolls nothing out.
func equal(a, b protoreflect.Message) bool {
	if proto.Equal(a.Interface(), b.Interface()) {
		return true
	}
	if a.Descriptor() != b.Descriptor() || a.IsValid() != b.IsValid() {
		return false
	}
	if a.Descriptor().FullName() == quantityName {
		x, errX := resource.ParseQuantity(a.Interface().(*metav1.Quantity).GetString())
		y, errY := resource.ParseQuantity(b.Interface().(*metav1.Quantity).GetString())
		return errX == nil && errY == nil && x.Cmp(y) == 0
	}
	same := string(a.GetUnknown()) == string(b.GetUnknown())
	present := 0
	a.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		present++
		same = same && b.Has(f) && equalField(f, v, b.Get(f))
		return same
	})
	b.Range(func(protoreflect.FieldDescriptor, protoreflect.Value) bool {
		present--
		return true
	})
	return same && present == 0
}

func equalField(f protoreflect.FieldDescriptor, a, b protoreflect.Value) bool {
	one := func(f protoreflect.FieldDescriptor, a, b protoreflect.Value) bool {
		if f.Message() != nil {
			return equal(a.Message(), b.Message())
		}
		return a.Equal(b)
	}
	switch {
	case f.IsMap():
		same := a.Map().Len() == b.Map().Len()
		a.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
			same = same && b.Map().Has(k) && one(f.MapValue(), v, b.Map().Get(k))
			return same
		})
		return same
	case f.IsList():
		if a.List().Len() != b.List().Len() {
			return false
		}
		for i := range a.List().Len() {
			if !one(f, a.List().Get(i), b.List().Get(i)) {
				return false
			}
		}
		return true
	}
	return one(f, a, b)
}

// findNew returns the oldest replica set with the deployment's template, or nil.
func findNew(d *appsv1.Deployment, sets []*appsv1.ReplicaSet) *appsv1.ReplicaSet {
	for _, rs := range byAge(sets) {
		if sameTemplate(rs.GetSpec().GetTemplate(), d.GetSpec().GetTemplate()) {
			return rs
		}
	}
	return nil
}
