// Package resource is the table of all served kinds: their names, their scope, their message type and their gRPC service.
// Servers, clients and the command line read what they need to know of a kind from here.
package resource

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/pkg/object"
)

// Resource describes one kind. Values are shared and must not be changed.
type Resource struct {
	// Group is Kubernetes' API group, empty for core.
	Group, Version, Kind string
	// Plural is the name that selects the resource, in lower case.
	Plural     string
	ShortNames []string
	Namespaced bool
	// HasStatus says that status is written through the subresource of this name alone.
	HasStatus bool
	// InAll says that the word `all` of the command line includes the kind.
	InAll bool

	message object.Object
	// service is the full name of the kind's gRPC service, filled by index.
	service protoreflect.ServiceDescriptor
}

var (
	byPlural  = map[schema.GroupResource]*Resource{}
	byKind    = map[schema.GroupKind]*Resource{}
	byMessage = map[protoreflect.FullName]*Resource{}
	byWord    = index()
)

// index fills the maps from the table; a word that two kinds share belongs to the first, as in Kubernetes (events: core).
func index() map[string]*Resource {
	words := map[string]*Resource{}
	for i := range table {
		r := &table[i]
		r.service = serviceOf(r.message)
		byPlural[r.GroupResource()] = r
		byKind[schema.GroupKind{Group: r.Group, Kind: r.Kind}] = r
		byMessage[r.message.ProtoReflect().Descriptor().FullName()] = r
		for _, w := range append([]string{r.Plural, r.Singular(), strings.ToLower(r.Kind)}, r.ShortNames...) {
			if words[w] == nil {
				words[w] = r
			}
			if r.Group != "" {
				words[w+"."+r.Group] = r
				words[w+"."+r.Version+"."+r.Group] = r
				if short, _, found := strings.Cut(r.Group, "."); found && words[w+"."+short] == nil {
					words[w+"."+short] = r
				}
			}
		}
	}
	return words
}

// All returns every kind, core first.
func All() []*Resource {
	all := make([]*Resource, len(table))
	for i := range table {
		all[i] = &table[i]
	}
	return all
}

// Lookup returns the resource of a group (empty for core) and plural, or nil.
func Lookup(group, plural string) *Resource {
	return byPlural[schema.GroupResource{Group: group, Resource: plural}]
}

// ByKind returns the resource of a group and kind, or nil.
func ByKind(group, kind string) *Resource {
	return byKind[schema.GroupKind{Group: group, Kind: kind}]
}

// ByMessage returns the resource whose objects are of m's type, or nil.
func ByMessage(m proto.Message) *Resource {
	return byMessage[m.ProtoReflect().Descriptor().FullName()]
}

// For returns the resource of T. It panics when T is no served kind, which is a mistake in the program.
func For[T object.Object]() *Resource {
	var zero T
	r := ByMessage(zero)
	if r == nil {
		panic(fmt.Sprintf("resource: %T is not in the table", zero))
	}
	return r
}

// Find returns the resource that a user means by a word: plural, singular, kind or short name, also with `.group` behind it.
func Find(word string) (*Resource, error) {
	if r := byWord[strings.ToLower(word)]; r != nil {
		return r, nil
	}
	return nil, fmt.Errorf("the server doesn't have a resource type %q", word)
}

// Singular returns the singular name in lower case.
func (r *Resource) Singular() string { return strings.ToLower(r.Kind) }

// APIVersion returns group/version, or the version alone for core.
func (r *Resource) APIVersion() string { return r.GroupVersionKind().GroupVersion().String() }

// GroupVersionKind returns Kubernetes' name of the kind.
func (r *Resource) GroupVersionKind() schema.GroupVersionKind {
	return schema.GroupVersionKind{Group: r.Group, Version: r.Version, Kind: r.Kind}
}

// GroupResource returns Kubernetes' name of the resource.
func (r *Resource) GroupResource() schema.GroupResource {
	return schema.GroupResource{Group: r.Group, Resource: r.Plural}
}

// String returns plural.group, or the plural alone for core.
func (r *Resource) String() string { return r.GroupResource().String() }

// Descriptor returns the message descriptor of the kind.
func (r *Resource) Descriptor() protoreflect.MessageDescriptor {
	return r.message.ProtoReflect().Descriptor()
}

// Service returns the descriptor of the kind's gRPC service, the one that its proto file declares.
func (r *Resource) Service() protoreflect.ServiceDescriptor { return r.service }

func serviceOf(m object.Object) protoreflect.ServiceDescriptor {
	kind := m.ProtoReflect().Descriptor()
	services := kind.ParentFile().Services()
	for i := range services.Len() {
		if get := services.Get(i).Methods().ByName("Get"); get != nil && get.Output() == kind {
			return services.Get(i)
		}
	}
	panic(fmt.Sprintf("resource: no service for %s in %s", kind.FullName(), kind.ParentFile().Path()))
}

// Method returns the full gRPC name of one of the service's methods, for example `/dhow.core.v1.Pods/Get`.
func (r *Resource) Method(name string) string {
	return "/" + string(r.service.FullName()) + "/" + name
}

// New returns an empty object of the kind.
func (r *Resource) New() object.Object {
	return r.message.ProtoReflect().New().Interface().(object.Object)
}
