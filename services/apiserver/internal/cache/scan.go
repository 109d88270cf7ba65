package cache

import (
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"

	"dhow.dev/pkg/rawcodec"
)

// Field numbers of ObjectMeta, OwnerReference and of map entries.
const (
	metaName            = 1
	metaNamespace       = 3
	metaUID             = 5
	metaDeletion        = 9
	metaLabels          = 11
	metaOwnerReferences = 13
	ownerUID            = 4
	mapKey              = 1
	mapValue            = 2
)

// scan fills the entry with what the server needs to know of an object that it only passes on, without decoding it. Like a decoder it lets the last of
// several values of a field win and merges repeated messages; unlike one it looks into nothing but the fields asked for.
func scan(e *Entry, set *fieldSet) error {
	if len(set.labels) > 0 {
		e.fields = make([]string, len(set.labels))
	}
	err := rawcodec.EachField(e.Object, func(number protowire.Number, kind protowire.Type, value []byte, scalar uint64) error {
		if number == metadataField && kind == protowire.BytesType {
			return scanMeta(e, value)
		}
		return scanField(e, set.root, number, kind, value, scalar)
	})
	if err != nil {
		return err
	}
	for i, fallback := range set.fallbacks {
		if e.fields[i] == "" && fallback >= 0 {
			e.fields[i] = e.fields[fallback]
		}
		if e.fields[i] == "" {
			e.fields[i] = set.zero[i]
		}
	}
	if len(e.Labels) > 1 {
		slices.SortStableFunc(e.Labels, func(a, b Label) int { return strings.Compare(a.Key, b.Key) })
		e.Labels = lastOfEach(e.Labels)
	}
	return nil
}

// NameOf returns what the metadata of an encoded object says about its name, without looking at the rest.
func NameOf(object []byte) (namespace, name string, err error) {
	var e Entry
	err = rawcodec.EachField(object, func(number protowire.Number, kind protowire.Type, value []byte, _ uint64) error {
		if number == metadataField && kind == protowire.BytesType {
			return scanMeta(&e, value)
		}
		return nil
	})
	return e.Namespace, e.Name, err
}

// lastOfEach drops all but the last of neighbours with the same key.
func lastOfEach(labels Labels) Labels {
	kept := labels[:0]
	for i, l := range labels {
		if i+1 == len(labels) || labels[i+1].Key != l.Key {
			kept = append(kept, l)
		}
	}
	return kept
}

func scanMeta(e *Entry, meta []byte) error {
	return rawcodec.EachField(meta, func(number protowire.Number, kind protowire.Type, value []byte, _ uint64) error {
		if kind != protowire.BytesType {
			return nil
		}
		switch number {
		case metaName:
			e.Name = view(value)
		case metaNamespace:
			e.Namespace = view(value)
		case metaUID:
			e.UID = view(value)
		case metaDeletion:
			e.Deleting = true
		case metaLabels:
			var label Label
			err := rawcodec.EachField(value, func(number protowire.Number, kind protowire.Type, value []byte, _ uint64) error {
				switch {
				case number == mapKey && kind == protowire.BytesType:
					label.Key = view(value)
				case number == mapValue && kind == protowire.BytesType:
					label.Value = view(value)
				}
				return nil
			})
			e.Labels = append(e.Labels, label)
			return err
		case metaOwnerReferences:
			return rawcodec.EachField(value, func(number protowire.Number, kind protowire.Type, value []byte, _ uint64) error {
				if number == ownerUID && kind == protowire.BytesType {
					e.Owners = append(e.Owners, view(value))
				}
				return nil
			})
		}
		return nil
	})
}

// scanField follows a field towards the selectable fields below it.
func scanField(e *Entry, node *pathNode, number protowire.Number, kind protowire.Type, value []byte, scalar uint64) error {
	child := node.children[number]
	if child == nil {
		return nil
	}
	if child.slot >= 0 {
		switch {
		case child.kind == protoreflect.StringKind && kind == protowire.BytesType:
			e.fields[child.slot] = view(value)
		case child.kind == protoreflect.BoolKind && kind == protowire.VarintType:
			e.fields[child.slot] = strconv.FormatBool(scalar != 0)
		case child.kind != protoreflect.StringKind && kind == protowire.VarintType:
			e.fields[child.slot] = strconv.FormatInt(int64(scalar), 10)
		}
		return nil
	}
	if kind != protowire.BytesType {
		return nil
	}
	return rawcodec.EachField(value, func(number protowire.Number, kind protowire.Type, value []byte, scalar uint64) error {
		return scanField(e, child, number, kind, value, scalar)
	})
}

// view is the bytes as a string, without a copy: an entry's bytes never change and live as long as its strings.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
