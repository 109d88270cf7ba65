package schema

import (
	"math/rand"
	"reflect"
	"strconv"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// zero sets every scalar in v to its zero value, and leaves the shape: pointers stay set, lists and maps keep their entries.
func zero(v reflect.Value) {
	switch v.Interface().(type) {
	case metav1.Time, metav1.MicroTime, resource.Quantity:
		v.SetZero()
		return
	case runtime.RawExtension:
		v.Set(reflect.ValueOf(runtime.RawExtension{Raw: []byte{}}))
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			zero(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				zero(v.Field(i))
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.Set(reflect.MakeSlice(v.Type(), 0, 0))
			return
		}
		for i := range v.Len() {
			zero(v.Index(i))
		}
	case reflect.Map:
		// One entry with the zero key: more would fall together.
		if v.Len() > 0 {
			value := reflect.New(v.Type().Elem()).Elem()
			value.Set(v.MapIndex(v.MapKeys()[0]))
			zero(value)
			v.Clear()
			v.SetMapIndex(reflect.Zero(v.Type().Key()), value)
		}
	case reflect.Interface:
	default:
		v.SetZero()
	}
}

// fill sets v to random values. Pointers, lists and maps are set with the given probability.
func fill(r *rand.Rand, v reflect.Value, probability float64) {
	switch v.Interface().(type) {
	case metav1.Time:
		// Kubernetes encodes whole seconds.
		v.Set(reflect.ValueOf(metav1.Unix(r.Int63n(4e9), 0)))
		return
	case metav1.MicroTime:
		v.Set(reflect.ValueOf(metav1.NewMicroTime(time.Unix(r.Int63n(4e9), r.Int63n(1e6)*1000))))
		return
	case resource.Quantity:
		v.Set(reflect.ValueOf(*resource.NewMilliQuantity(r.Int63n(1e9), resource.DecimalSI)))
		return
	case intstr.IntOrString:
		if r.Intn(2) == 0 {
			v.Set(reflect.ValueOf(intstr.FromInt32(r.Int31())))
		} else {
			v.Set(reflect.ValueOf(intstr.FromString(text(r))))
		}
		return
	case runtime.RawExtension:
		v.Set(reflect.ValueOf(runtime.RawExtension{Raw: []byte(text(r))}))
		return
	case metav1.TypeMeta:
		// Not part of an object's encoding; the envelope carries it.
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if r.Float64() < probability {
			v.Set(reflect.New(v.Type().Elem()))
			fill(r, v.Elem(), probability)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				fill(r, v.Field(i), probability)
			}
		}
	case reflect.Slice:
		if r.Float64() < probability {
			v.Set(reflect.MakeSlice(v.Type(), 1+r.Intn(2), 2))
			for i := range v.Len() {
				fill(r, v.Index(i), probability)
			}
		}
	case reflect.Map:
		if r.Float64() < probability {
			v.Set(reflect.MakeMap(v.Type()))
			for range 1 + r.Intn(3) {
				key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
				fill(r, key, probability)
				fill(r, value, probability)
				if value.Kind() == reflect.Slice && value.IsNil() {
					// Kubernetes leaves the value of such an entry out, and writes it empty after it has read it: not even its own bytes stay the same.
					value.Set(reflect.MakeSlice(value.Type(), 0, 0))
				}
				v.SetMapIndex(key, value)
			}
		}
	case reflect.String:
		v.SetString(text(r))
	case reflect.Bool:
		v.SetBool(r.Intn(2) == 0)
	case reflect.Int32, reflect.Int64:
		// Negative numbers, of which each takes ten bytes, among them.
		v.SetInt(int64(r.Int31()) - 1<<30)
	case reflect.Uint8:
		v.SetUint(uint64(r.Intn(256)))
	case reflect.Interface:
	default:
		panic("no random value for " + v.Type().String())
	}
}

func text(r *rand.Rand) string {
	return [...]string{"", "a", "ü-", "x/"}[r.Intn(4)] + strconv.Itoa(r.Intn(1000))
}
