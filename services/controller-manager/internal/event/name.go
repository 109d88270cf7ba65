package event

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
)

// maxObjectName keeps the event's name, with the dot and up to 16 hexadecimal digits, below the 253 characters that a name may have.
const maxObjectName = 236

// metadata names an event after its object and its time, as Kubernetes does. Events about objects without namespace live in `default`.
func metadata(r report) *metav1.ObjectMeta {
	namespace, name := r.regarding.GetNamespace(), r.regarding.GetName()
	if namespace == "" {
		namespace = "default"
	}
	if len(name) > maxObjectName {
		name = name[:maxObjectName]
	}
	return metav1.ObjectMeta_builder{
		Namespace: proto.String(namespace), Name: proto.String(fmt.Sprintf("%s.%x", name, r.at.UnixNano())),
	}.Build()
}
