// Package resource is the table of all served kinds: their names, their scope, their verbs, their message type and their gRPC service.
// Servers, clients and the command line read what they need to know of a kind from here.
//
// Most rows are stored kinds. Others are another version of a stored kind (Storage), virtual (answered, never stored), or known only as what a
// subresource of other kinds takes or gives (Subresource). All, Stored and Kinds return the rows that fit a use.
package resource

import (
	"fmt"
	"slices"
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
	// Categories are words that stand for several kinds; Kubernetes has `all` and `api-extensions`.
	Categories []string
	// Verbs are the verbs that discovery names for the resource itself, sorted. Empty when the kind has no path of its own.
	Verbs []string
	// Virtual says that no objects of the kind are stored: what a request asks is answered from elsewhere.
	Virtual bool
	// Subresource is set when the kind has no path of its own but is what a subresource of this name takes, on one or several other kinds.
	Subresource string
	// Storage is the row whose objects are stored, when that is not this one: objects of this kind are another version of those.
	Storage *Resource

	message object.Object
	// storedAs names Storage.
	storedAs schema.GroupVersionKind
	// nameless says that discovery has no singular name for the resource.
	nameless bool
	// service is the full name of the kind's gRPC service, filled by index.
	service protoreflect.ServiceDescriptor
}

var (
	byVersion = map[schema.GroupVersionResource]*Resource{}
	byPlural  = map[schema.GroupResource]*Resource{}
	byGVK     = map[schema.GroupVersionKind]*Resource{}
	byKind    = map[schema.GroupKind]*Resource{}
	byMessage = map[protoreflect.FullName]*Resource{}
	byWord    = index()
)

// verbs are those of a kind that is stored and says nothing else.
var verbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"}

// index fills the maps from the table. A word, group or kind that several rows share belongs to the first of them: words as in Kubernetes (events: core), groups
// with several versions to the preferred one.
func index() map[string]*Resource {
	words := map[string]*Resource{}
	for i := range table {
		r := &table[i]
		if r.service = serviceOf(r.message); r.service == nil && r.Subresource == "" {
			panic(fmt.Sprintf("resource: no service for %s", r.GroupVersionKind()))
		}
		if r.Verbs == nil && r.Subresource == "" {
			r.Verbs = verbs
		}
		byVersion[schema.GroupVersionResource{Group: r.Group, Version: r.Version, Resource: r.Plural}] = r
		first(byPlural, r.GroupResource(), r)
		byGVK[r.GroupVersionKind()] = r
		first(byKind, schema.GroupKind{Group: r.Group, Kind: r.Kind}, r)
		byMessage[r.message.ProtoReflect().Descriptor().FullName()] = r
		if r.Subresource != "" {
			continue
		}
		own := append([]string{r.Plural, r.Singular(), strings.ToLower(r.Kind)}, r.ShortNames...)
		for _, w := range slices.DeleteFunc(own, func(w string) bool { return w == "" }) {
			first(words, w, r)
			if r.Group != "" {
				first(words, w+"."+r.Group, r)
				words[w+"."+r.Version+"."+r.Group] = r
				if short, _, found := strings.Cut(r.Group, "."); found {
					first(words, w+"."+short, r)
				}
			}
		}
	}
	for i := range table {
		r := &table[i]
		if r.storedAs.Kind == "" {
			continue
		}
		if r.Storage = byGVK[r.storedAs]; r.Storage == nil || r.Storage.Storage != nil || r.Storage.Virtual {
			panic(fmt.Sprintf("resource: %s is stored as %s, which is not stored", r.GroupVersionKind(), r.storedAs))
		}
	}
	return words
}

func first[K comparable](m map[K]*Resource, key K, r *Resource) {
	if m[key] == nil {
		m[key] = r
	}
}

// All returns every resource with a path of its own, core first: what discovery shows.
func All() []*Resource {
	return rows(func(r *Resource) bool { return r.Subresource == "" })
}

// Stored returns every kind whose objects are stored, each once: not those that are virtual or another version of one.
func Stored() []*Resource {
	return rows((*Resource).IsStored)
}

// Kinds returns every kind that requests carry, those that only subresources take included.
func Kinds() []*Resource { return rows(func(*Resource) bool { return true }) }

func rows(wanted func(*Resource) bool) []*Resource {
	all := make([]*Resource, 0, len(table))
	for i := range table {
		if wanted(&table[i]) {
			all = append(all, &table[i])
		}
	}
	return all
}

// Lookup returns the resource of a group (empty for core) and plural in the group's preferred version, or nil.
func Lookup(group, plural string) *Resource {
	return byPlural[schema.GroupResource{Group: group, Resource: plural}]
}

// LookupVersion returns the resource of a group (empty for core), version and plural, or nil.
func LookupVersion(group, version, plural string) *Resource {
	return byVersion[schema.GroupVersionResource{Group: group, Version: version, Resource: plural}]
}

// ByKind returns the resource of a group and kind in the group's preferred version, or nil.
func ByKind(group, kind string) *Resource {
	return byKind[schema.GroupKind{Group: group, Kind: kind}]
}

// ByGVK returns the resource of a kind in one version, or nil.
func ByGVK(gvk schema.GroupVersionKind) *Resource { return byGVK[gvk] }

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

// Singular returns the singular name in lower case, empty for resources that have none.
func (r *Resource) Singular() string {
	if r.nameless {
		return ""
	}
	return strings.ToLower(r.Kind)
}

// IsStored says that objects of the kind are stored as they are.
func (r *Resource) IsStored() bool { return !r.Virtual && r.Storage == nil }

// StoredAs returns the row whose objects are stored: Storage, or the resource itself.
func (r *Resource) StoredAs() *Resource {
	if r.Storage != nil {
		return r.Storage
	}
	return r
}

// In says whether a category such as `all` includes the kind.
func (r *Resource) In(category string) bool { return slices.Contains(r.Categories, category) }

// Allows says whether the resource itself has a verb, in Kubernetes' words.
func (r *Resource) Allows(verb string) bool { return slices.Contains(r.Verbs, verb) }

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

// Service returns the descriptor of the kind's gRPC service, the one that its proto file declares. Nil for a kind that only methods of other kinds'
// services carry, such as Scale.
func (r *Resource) Service() protoreflect.ServiceDescriptor { return r.service }

func serviceOf(m object.Object) protoreflect.ServiceDescriptor {
	kind := m.ProtoReflect().Descriptor()
	services := kind.ParentFile().Services()
	for i := range services.Len() {
		for _, name := range []protoreflect.Name{"Get", "Create"} {
			if m := services.Get(i).Methods().ByName(name); m != nil && m.Output() == kind {
				return services.Get(i)
			}
		}
	}
	// What a subresource takes may be served by the services of the kinds that have the subresource, as Scale is.
	return nil
}

// Method returns the full gRPC name of one of the service's methods, for example `/dhow.core.v1.Pods/Get`.
func (r *Resource) Method(name string) string {
	return "/" + string(r.service.FullName()) + "/" + name
}

// New returns an empty object of the kind.
func (r *Resource) New() object.Object {
	return r.message.ProtoReflect().New().Interface().(object.Object)
}
