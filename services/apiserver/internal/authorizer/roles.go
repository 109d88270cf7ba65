package authorizer

import (
	"slices"

	"dhow.dev/pkg/identity"
)

// rule allows verbs on resources. Resources are written `resource` or `resource/subresource`; `*` is any resource without subresource, `*/*` any
// with one, `*/status` that subresource of any.
type rule struct {
	verbs     []string
	groups    []string
	resources []string
	// except takes away from resources.
	except []string
	// names limits the rule to objects of these names, when it is not empty.
	names []string
}

const all = "*"

var (
	read  = []string{"get", "list", "watch"}
	write = []string{"create", "update", "patch", "delete", "deletecollection"}
	event = rule{verbs: []string{"create", "patch", "update"}, groups: []string{"", "events.k8s.io"}, resources: []string{"events"}}
	// run is what reaches into containers. No component needs it but the API servers among themselves.
	run = []string{"pods/exec", "pods/attach", "pods/portforward", "pods/proxy", "nodes/proxy", "services/proxy"}
)

// rulesOf returns the rules of a caller's name and groups.
func rulesOf(user identity.Identity) []rule {
	var rules []rule
	switch user.Name {
	case identity.Scheduler:
		rules = append(rules, schedulerRules()...)
	case identity.ControllerManager:
		rules = append(rules, controllerRules()...)
	case identity.APIServer:
		rules = append(rules, peerRules()...)
	}
	if user.InGroup(identity.Masters) {
		rules = append(rules, rule{verbs: []string{all}, groups: []string{all}, resources: []string{all, "*/*"}})
	}
	if user.InGroup(identity.Readers) {
		rules = append(rules, rule{verbs: read, groups: []string{all}, resources: []string{all, "*/*"}, except: append([]string{"secrets"}, run...)})
	}
	return rules
}

func schedulerRules() []rule {
	return []rule{
		{verbs: read, groups: []string{all}, resources: []string{all}, except: []string{"secrets", "configmaps"}},
		{verbs: []string{"create"}, groups: []string{""}, resources: []string{"pods/binding", "bindings"}},
		{verbs: []string{"update", "patch"}, groups: []string{""}, resources: []string{"pods/status"}},
		// Preemption.
		{verbs: []string{"delete"}, groups: []string{""}, resources: []string{"pods"}},
		{verbs: []string{"create", "get", "update", "patch"}, groups: []string{"coordination.k8s.io"}, resources: []string{"leases"}},
		event,
	}
}

// controllerRules let the controllers reconcile all kinds, garbage collection and namespace deletion among them. They place no pods, reach into no
// containers, and write neither secrets nor roles.
func controllerRules() []rule {
	return []rule{
		{verbs: read, groups: []string{all}, resources: []string{all, "*/status", "*/scale"}},
		{verbs: write, groups: []string{all}, resources: []string{all}, except: []string{"secrets", "roles", "rolebindings", "clusterroles", "clusterrolebindings"}},
		// What an owner leaves behind goes, of whatever kind.
		{verbs: []string{"delete", "deletecollection", "patch"}, groups: []string{"", "rbac.authorization.k8s.io"}, resources: []string{"secrets", "roles", "rolebindings", "clusterroles", "clusterrolebindings"}},
		{verbs: []string{"update", "patch"}, groups: []string{all}, resources: []string{"*/status", "*/scale"}},
		{verbs: []string{"update"}, groups: []string{""}, resources: []string{"namespaces/finalize"}},
		{verbs: []string{"create"}, groups: []string{""}, resources: []string{"pods/eviction", "serviceaccounts/token"}},
	}
}

// peerRules let another API server pass on the calls that it has authorized itself, for nodes whose session is here.
func peerRules() []rule {
	return []rule{
		{verbs: []string{"get", "create"}, groups: []string{""}, resources: append([]string{"pods/log"}, run...)},
	}
}

func (r rule) allows(a Attributes) bool {
	if !slices.Contains(r.verbs, a.Verb) && !slices.Contains(r.verbs, all) {
		return false
	}
	if !slices.Contains(r.groups, a.Group) && !slices.Contains(r.groups, all) {
		return false
	}
	if len(r.names) > 0 && !slices.Contains(r.names, a.Name) {
		return false
	}
	return matches(r.resources, a) && !matches(r.except, a)
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
