// Package discovery tells clients which kinds there are, with their verbs and names: /api, /apis, /apis/GROUP and /apis/GROUP/VERSION, and all of
// them in one document for clients that ask for it (https://kubernetes.io/docs/concepts/overview/kubernetes-api/#discovery-api). What it tells comes
// from the resource table and the table of subresources, which the door checks verbs with as well.
package discovery

import (
	"crypto/sha256"
	"encoding/base64"
	"net/http"
	"slices"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/pkg/resource"
)

// Config says what is told.
type Config struct {
	// Resources are the kinds with a path of their own; nil means all of the resource table.
	Resources []*resource.Resource
	// Address is the host and port that clients within the cluster reach the door at; it may be empty.
	Address string
}

// New returns a handler for each path of discovery.
func New(config Config) map[string]http.Handler {
	if config.Resources == nil {
		config.Resources = resource.All()
	}
	groups := groupsOf(config.Resources)
	addresses := []metav1.ServerAddressByClientCIDR{}
	if config.Address != "" {
		addresses = []metav1.ServerAddressByClientCIDR{{ClientCIDR: "0.0.0.0/0", ServerAddress: config.Address}}
	}
	paths := map[string]http.Handler{}
	legacy, named := &apidiscoveryv2.APIGroupDiscoveryList{}, &apidiscoveryv2.APIGroupDiscoveryList{}
	list := &metav1.APIGroupList{Groups: []metav1.APIGroup{}}
	for _, g := range groups {
		if g.name == "" {
			legacy.Items = append(legacy.Items, g.aggregated())
			var versions []string
			for _, v := range g.versions {
				versions = append(versions, v.version)
				paths["/api/"+v.version] = newDocument(v.list(), nil)
			}
			paths["/api"] = newDocument(&metav1.APIVersions{Versions: versions, ServerAddressByClientCIDRs: addresses}, legacy)
			continue
		}
		named.Items = append(named.Items, g.aggregated())
		described := g.describe()
		list.Groups = append(list.Groups, described)
		paths["/apis/"+g.name] = newDocument(&described, nil)
		for _, v := range g.versions {
			paths["/apis/"+g.name+"/"+v.version] = newDocument(v.list(), nil)
		}
	}
	paths["/apis"] = newDocument(list, named)
	return paths
}

// group is an API group with its versions, the preferred one first.
type group struct {
	name     string
	versions []*groupVersion
}

type groupVersion struct {
	group, version string
	resources      []*resource.Resource
}

// order is that of Kubernetes' groups: a word that two groups know belongs to the first. Groups that it does not name follow by name.
var order = []string{
	"", "apps", "events.k8s.io", "authentication.k8s.io", "authorization.k8s.io", "autoscaling", "batch", "certificates.k8s.io", "networking.k8s.io", "policy",
	"rbac.authorization.k8s.io", "storage.k8s.io", "scheduling.k8s.io", "coordination.k8s.io", "node.k8s.io", "discovery.k8s.io", "resource.k8s.io",
	"flowcontrol.apiserver.k8s.io", "metrics.k8s.io",
}

func groupsOf(resources []*resource.Resource) []*group {
	var groups []*group
	for _, r := range resources {
		at := slices.IndexFunc(groups, func(g *group) bool { return g.name == r.Group })
		if at < 0 {
			at = len(groups)
			groups = append(groups, &group{name: r.Group})
		}
		g := groups[at]
		in := slices.IndexFunc(g.versions, func(v *groupVersion) bool { return v.version == r.Version })
		if in < 0 {
			in = len(g.versions)
			g.versions = append(g.versions, &groupVersion{group: r.Group, version: r.Version})
		}
		g.versions[in].resources = append(g.versions[in].resources, r)
	}
	rank := func(name string) int {
		if at := slices.Index(order, name); at >= 0 {
			return at
		}
		return len(order)
	}
	slices.SortFunc(groups, func(a, b *group) int {
		if d := rank(a.name) - rank(b.name); d != 0 {
			return d
		}
		return strings.Compare(a.name, b.name)
	})
	for _, g := range groups {
		for _, v := range g.versions {
			slices.SortFunc(v.resources, func(a, b *resource.Resource) int { return strings.Compare(a.Plural, b.Plural) })
		}
	}
	return groups
}

func (g *group) describe() metav1.APIGroup {
	described := metav1.APIGroup{Name: g.name}
	for _, v := range g.versions {
		described.Versions = append(described.Versions, metav1.GroupVersionForDiscovery{GroupVersion: v.String(), Version: v.version})
	}
	described.PreferredVersion = described.Versions[0]
	return described
}

func (v *groupVersion) String() string {
	return schema.GroupVersion{Group: v.group, Version: v.version}.String()
}

// list is the document of one version.
func (v *groupVersion) list() *metav1.APIResourceList {
	list := &metav1.APIResourceList{GroupVersion: v.String()}
	for _, r := range v.resources {
		list.APIResources = append(list.APIResources, metav1.APIResource{
			Name: r.Plural, SingularName: r.Singular(), Namespaced: r.Namespaced, Kind: r.Kind, Verbs: r.Verbs,
			ShortNames: r.ShortNames, Categories: r.Categories, StorageVersionHash: storageVersionHash(r),
		})
		for _, s := range Subresources(r) {
			described := metav1.APIResource{Name: r.Plural + "/" + s.Name, Namespaced: r.Namespaced, Kind: s.Kind.Kind, Verbs: s.Verbs}
			// Kubernetes names the group and version of a kind where they are not those of the list.
			if s.Kind.GroupVersion() != r.GroupVersionKind().GroupVersion() {
				described.Group, described.Version = s.Kind.Group, s.Kind.Version
			}
			list.APIResources = append(list.APIResources, described)
		}
	}
	return list
}

// storageVersionHash changes when the version changes that objects are stored in; clients that migrate storage watch it.
func storageVersionHash(r *resource.Resource) string {
	if r.Virtual {
		return ""
	}
	stored := r.StoredAs()
	sum := sha256.Sum256([]byte(stored.Group + "/" + stored.Version + "/" + stored.Kind))
	return base64.StdEncoding.EncodeToString(sum[:8])
}

// aggregated is the group in the document of all groups.
func (g *group) aggregated() apidiscoveryv2.APIGroupDiscovery {
	described := apidiscoveryv2.APIGroupDiscovery{ObjectMeta: metav1.ObjectMeta{Name: g.name}}
	for _, v := range g.versions {
		version := apidiscoveryv2.APIVersionDiscovery{Version: v.version, Freshness: apidiscoveryv2.DiscoveryFreshnessCurrent}
		for _, r := range v.resources {
			scope := apidiscoveryv2.ScopeCluster
			if r.Namespaced {
				scope = apidiscoveryv2.ScopeNamespace
			}
			entry := apidiscoveryv2.APIResourceDiscovery{
				Resource: r.Plural, ResponseKind: responseKind(r.GroupVersionKind()), Scope: scope, SingularResource: r.Singular(),
				Verbs: r.Verbs, ShortNames: r.ShortNames, Categories: r.Categories,
			}
			for _, s := range Subresources(r) {
				entry.Subresources = append(entry.Subresources, apidiscoveryv2.APISubresourceDiscovery{Subresource: s.Name, ResponseKind: responseKind(s.Kind), Verbs: s.Verbs})
			}
			version.Resources = append(version.Resources, entry)
		}
		described.Versions = append(described.Versions, version)
	}
	return described
}

func responseKind(gvk schema.GroupVersionKind) *metav1.GroupVersionKind {
	return &metav1.GroupVersionKind{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind}
}
