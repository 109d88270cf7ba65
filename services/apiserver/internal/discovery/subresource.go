package discovery

import (
	"slices"
	"strings"
	"sync"

	autoscalingv1 "k8s.io/api/autoscaling/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/pkg/resource"
)

// Subresource is a part of a resource that has a path, a kind and verbs of its own, for example pods/log.
type Subresource struct {
	// Group and Resource name the resource, as resource.Resource does.
	Group, Resource string
	// Name is the last part of the path.
	Name string
	// Kind is what the subresource takes or gives.
	Kind schema.GroupVersionKind
	// Verbs are Kubernetes' names of what can be done with it, sorted.
	Verbs []string
}

// Allows says whether the subresource has a verb.
func (s *Subresource) Allows(verb string) bool { return slices.Contains(s.Verbs, verb) }

var (
	readWrite = []string{"get", "patch", "update"}
	// connect are the verbs of what becomes a stream: GET and POST both begin it.
	connect = []string{"create", "get"}
	// proxied requests have every method.
	proxied = []string{"create", "delete", "get", "patch", "update"}
)

// table holds the subresources of Kubernetes v1.36's discovery, beside status, which the resource table knows.
func table() []Subresource {
	scale := autoscalingv1.SchemeGroupVersion.WithKind("Scale")
	core := func(kind string) schema.GroupVersionKind { return schema.GroupVersionKind{Version: "v1", Kind: kind} }
	return []Subresource{
		{"", "namespaces", "finalize", core("Namespace"), []string{"update"}},
		{"", "nodes", "proxy", core("NodeProxyOptions"), proxied},
		{"", "pods", "attach", core("PodAttachOptions"), connect},
		{"", "pods", "binding", core("Binding"), []string{"create"}},
		{"", "pods", "ephemeralcontainers", core("Pod"), readWrite},
		{"", "pods", "eviction", schema.GroupVersionKind{Group: "policy", Version: "v1", Kind: "Eviction"}, []string{"create"}},
		{"", "pods", "exec", core("PodExecOptions"), connect},
		{"", "pods", "log", core("Pod"), []string{"get"}},
		{"", "pods", "portforward", core("PodPortForwardOptions"), connect},
		{"", "pods", "proxy", core("PodProxyOptions"), proxied},
		{"", "pods", "resize", core("Pod"), readWrite},
		{"", "replicationcontrollers", "scale", scale, readWrite},
		{"", "serviceaccounts", "token", schema.GroupVersionKind{Group: "authentication.k8s.io", Version: "v1", Kind: "TokenRequest"}, []string{"create"}},
		{"", "services", "proxy", core("ServiceProxyOptions"), proxied},
		{"apps", "deployments", "scale", scale, readWrite},
		{"apps", "replicasets", "scale", scale, readWrite},
		{"apps", "statefulsets", "scale", scale, readWrite},
		{"certificates.k8s.io", "certificatesigningrequests", "approval", schema.GroupVersionKind{Group: "certificates.k8s.io", Version: "v1", Kind: "CertificateSigningRequest"}, readWrite},
	}
}

// Subresources returns the subresources of a kind, by name.
func Subresources(r *resource.Resource) []Subresource {
	var list []Subresource
	for _, s := range table() {
		if s.Group == r.Group && s.Resource == r.Plural {
			list = append(list, s)
		}
	}
	if r.HasStatus {
		list = append(list, Subresource{r.Group, r.Plural, "status", r.GroupVersionKind(), readWrite})
	}
	slices.SortFunc(list, func(a, b Subresource) int { return strings.Compare(a.Name, b.Name) })
	return list
}

// part names a subresource. Versions of one kind have the same ones, of their own kinds.
type part struct {
	of   schema.GroupVersionResource
	name string
}

// parts has the subresources of all kinds: requests look them up.
var parts = sync.OnceValue(func() map[part]*Subresource {
	all := map[part]*Subresource{}
	for _, r := range resource.All() {
		for _, s := range Subresources(r) {
			all[part{r.GroupResource().WithVersion(r.Version), s.Name}] = &s
		}
	}
	return all
})

// Lookup returns one subresource of a kind, or nil. It is shared and must not be changed.
func Lookup(r *resource.Resource, name string) *Subresource {
	return parts()[part{r.GroupResource().WithVersion(r.Version), name}]
}
