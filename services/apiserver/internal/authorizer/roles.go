package authorizer

import (
	"iter"
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"

	"dhow.dev/pkg/identity"
)

// rule is one of a built-in role. It allows verbs on resources. Resources are written `resource` or `resource/subresource`; `*` is any resource without subresource, `*/*` any
// with one, `*/status` that subresource of any.
type rule struct {
	verbs     []string
	groups    []string
	resources []string
	// except takes away from resources.
	except []string
	// names are the objects that it is about; none means all.
	names []string
	// paths are what is no resource; as in RBAC they may end in `*`.
	paths []string
}

// builtInRole is a role that exists without objects.
type builtInRole struct {
	name  string
	rules []rule
}

const all = "*"

var (
	read  = []string{"get", "list", "watch"}
	write = []string{"create", "update", "patch", "delete", "deletecollection"}
	event = rule{verbs: []string{"create", "patch", "update"}, groups: []string{"", "events.k8s.io"}, resources: []string{"events"}}
	// run is what reaches into containers. No component needs it but the API servers among themselves.
	run = []string{"pods/exec", "pods/attach", "pods/portforward", "pods/proxy", "nodes/proxy", "services/proxy"}
)

// These are made once: they are asked for every request.
var (
	schedulerRole  = &builtInRole{"built-in role of the scheduler", schedulerRules()}
	controllerRole = &builtInRole{"built-in role of the controller-manager", controllerRules()}
	peerRole       = &builtInRole{"built-in role of API servers", peerRules()}
	adminRole      = &builtInRole{"built-in role of system:masters", []rule{{verbs: []string{all}, groups: []string{all}, resources: []string{all, "*/*"}, paths: []string{all}}}}
	readerRole     = &builtInRole{"built-in role of dhow:readers", []rule{
		{verbs: read, groups: []string{all}, resources: []string{all, "*/*"}, except: append([]string{"secrets"}, run...)},
		{verbs: []string{"get"}, paths: []string{all}},
	}}
)

// builtInRoles are those of a caller's name and groups.
func builtInRoles(user identity.Identity) iter.Seq[*builtInRole] {
	return func(yield func(*builtInRole) bool) {
		var own *builtInRole
		switch user.Name {
		case identity.Scheduler:
			own = schedulerRole
		case identity.ControllerManager:
			own = controllerRole
		case identity.APIServer:
			own = peerRole
		}
		if own != nil && !yield(own) || user.InGroup(identity.Masters) && !yield(adminRole) {
			return
		}
		if user.InGroup(identity.Readers) {
			yield(readerRole)
		}
	}
}

// builtIn says which built-in role allows it, empty when none does.
func builtIn(a Attributes) string {
	for role := range builtInRoles(a.User) {
		for i := range role.rules {
			if role.rules[i].allows(a) {
				return role.name
			}
		}
	}
	return ""
}

func schedulerRules() []rule {
	return []rule{
		{verbs: read, groups: []string{all}, resources: []string{all}, except: []string{"secrets", "configmaps"}},
		{verbs: []string{"create"}, groups: []string{""}, resources: []string{"pods/binding", "bindings"}},
		{verbs: []string{"update", "patch"}, groups: []string{""}, resources: []string{"pods/status"}},
		// Preemption.
		{verbs: []string{"delete"}, groups: []string{""}, resources: []string{"pods"}},
		// Volumes that are chosen together with a pod's node.
		{verbs: []string{"update", "patch"}, groups: []string{""}, resources: []string{"persistentvolumes", "persistentvolumeclaims"}},
		{verbs: []string{"create", "get", "update", "patch"}, groups: []string{"coordination.k8s.io"}, resources: []string{"leases"}},
		event,
	}
}

// controllerRules let the controllers reconcile all kinds, garbage collection and namespace deletion among them. They place no pods, reach into no
// containers, and write neither secrets nor roles, but for the rules that cluster roles aggregate.
func controllerRules() []rule {
	return []rule{
		{verbs: read, groups: []string{all}, resources: []string{all, "*/status", "*/scale"}},
		{verbs: write, groups: []string{all}, resources: []string{all}, except: []string{"secrets", "roles", "rolebindings", "clusterroles", "clusterrolebindings"}},
		// To aggregate is to write what others may do.
		{verbs: []string{"update", "escalate"}, groups: []string{"rbac.authorization.k8s.io"}, resources: []string{"clusterroles"}},
		{verbs: []string{"create"}, groups: []string{"authentication.k8s.io", "authorization.k8s.io"}, resources: []string{"tokenreviews", "subjectaccessreviews"}},
		// What an owner leaves behind goes, of whatever kind.
		{verbs: []string{"delete", "deletecollection", "patch"}, groups: []string{"", "rbac.authorization.k8s.io"}, resources: []string{"secrets", "roles", "rolebindings", "clusterroles", "clusterrolebindings"}},
		{verbs: []string{"update", "patch"}, groups: []string{all}, resources: []string{"*/status", "*/scale"}},
		{verbs: []string{"update"}, groups: []string{""}, resources: []string{"namespaces/finalize"}},
		{verbs: []string{"create"}, groups: []string{""}, resources: []string{"pods/eviction", "serviceaccounts/token"}},
		{verbs: []string{"update"}, groups: []string{certificatesv1.GroupName}, resources: []string{"certificatesigningrequests/approval"}},
		// Nodes' own requests are approved, when whoever makes them may have them.
		{verbs: []string{"approve"}, groups: []string{certificatesv1.GroupName}, resources: []string{"signers"}, names: []string{certificatesv1.KubeAPIServerClientKubeletSignerName}},
		{verbs: []string{"sign"}, groups: []string{certificatesv1.GroupName}, resources: []string{"signers"}, names: []string{
			certificatesv1.KubeAPIServerClientSignerName, certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.KubeletServingSignerName,
		}},
	}
}

// peerRules let another API server pass on the calls that it has authorized itself, for nodes whose session is here, and ask what those nodes use.
func peerRules() []rule {
	return []rule{
		{verbs: []string{"get", "create"}, groups: []string{""}, resources: append([]string{"pods/log"}, run...)},
		{verbs: []string{"get"}, groups: []string{""}, resources: []string{"nodes/usage"}},
	}
}

func (r *rule) allows(a Attributes) bool {
	if !has(r.verbs, a.Verb) {
		return false
	}
	if a.Path != "" {
		return slices.ContainsFunc(r.paths, func(pattern string) bool { return pathMatches(pattern, a.Path) })
	}
	return has(r.groups, a.Group) && matches(r.resources, a) && !matches(r.except, a) && (len(r.names) == 0 || slices.Contains(r.names, a.Name))
}

func matches(patterns []string, a Attributes) bool {
	for _, p := range patterns {
		if a.Subresource == "" {
			if p == all || p == a.Resource {
				return true
			}
			continue
		}
		if p == "*/*" || p == "*/"+a.Subresource || p == a.Resource+"/"+a.Subresource {
			return true
		}
	}
	return false
}
