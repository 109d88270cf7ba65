package codec

import "reflect"

// Status returns the object's status field for reading and writing, and false when its kind has none.
func Status(o Object) (reflect.Value, bool) { return part(o, "Status") }

// Spec returns the object's spec field, and false when its kind has none.
func Spec(o Object) (reflect.Value, bool) { return part(o, "Spec") }

func part(o Object, name string) (reflect.Value, bool) {
	v := reflect.ValueOf(o).Elem().FieldByName(name)
	return v, v.IsValid() && v.Kind() == reflect.Struct
}
