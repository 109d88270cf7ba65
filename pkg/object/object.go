// Package object has what all kinds have in common: metadata, keys, revisions and owners.
package object

import (
	"strconv"

	"google.golang.org/protobuf/proto"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

// Object is a generated message of a kind.
type Object interface {
	proto.Message
	GetMetadata() *metav1.ObjectMeta
	SetMetadata(*metav1.ObjectMeta)
	HasMetadata() bool
}

// Key names an object among those of its kind. Namespace is empty for kinds without namespaces.
type Key struct {
	Namespace, Name string
}

// String returns namespace/name, or the name alone.
func (k Key) String() string {
	if k.Namespace == "" {
		return k.Name
	}
	return k.Namespace + "/" + k.Name
}

// KeyOf returns an object's key.
func KeyOf(o Object) Key {
	m := o.GetMetadata()
	return Key{Namespace: m.GetNamespace(), Name: m.GetName()}
}

// Revision returns the object's resource version, or 0 when it has none.
func Revision(o Object) int64 {
	r, err := strconv.ParseInt(o.GetMetadata().GetResourceVersion(), 10, 64)
	if err != nil {
		return 0
	}
	return r
}

// IsDeleted says whether the object waits for its finalizers or its grace period.
func IsDeleted(o Object) bool {
	return o.GetMetadata().HasDeletionTimestamp()
}

// ControllerOf returns the owner that controls the object, or nil.
func ControllerOf(o Object) *metav1.OwnerReference {
	for _, r := range o.GetMetadata().GetOwnerReferences() {
		if r.GetController() {
			return r
		}
	}
	return nil
}
