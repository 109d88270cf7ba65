package authorizer

import (
	"fmt"
	"slices"
	"strings"

	rbacv1 "k8s.io/api/rbac/v1"
)

// ruleAllows says whether a rule of a role allows what is asked, as Kubernetes matches them: `*` as a resource is any with any subresource, `*/scale` that
// subresource of any; a path may end in `*`.
func ruleAllows(r *rbacv1.PolicyRule, a *Attributes) bool {
	if !has(r.Verbs, a.Verb) {
		return false
	}
	if a.Path != "" {
		return slices.ContainsFunc(r.NonResourceURLs, func(pattern string) bool { return pathMatches(pattern, a.Path) })
	}
	return has(r.APIGroups, a.Group) && resourceMatches(r.Resources, a.Resource, a.Subresource) &&
		(len(r.ResourceNames) == 0 || slices.Contains(r.ResourceNames, a.Name))
}

// has says whether a list holds a word or `*`.
func has(list []string, word string) bool {
	for _, s := range list {
		if s == all || s == word {
			return true
		}
	}
	return false
}

func pathMatches(pattern, path string) bool {
	if pattern == all || pattern == path {
		return true
	}
	prefix, open := strings.CutSuffix(pattern, all)
	return open && strings.HasPrefix(path, strings.TrimRight(prefix, all))
}

func resourceMatches(list []string, resource, subresource string) bool {
	for _, s := range list {
		switch {
		case s == all:
			return true
		case subresource == "":
			if s == resource {
				return true
			}
		default:
			// Without making resource/subresource: this is on the way of every request.
			if first, second, ok := strings.Cut(s, "/"); ok && second == subresource && (first == all || first == resource) {
				return true
			}
		}
	}
	return false
}

// missingFrom returns those of the wanted rights, one by one, that no rule of the owner's covers. One right must be covered by one rule.
func missingFrom(owned, wanted []rbacv1.PolicyRule) []rbacv1.PolicyRule {
	var missing []rbacv1.PolicyRule
	for i := range wanted {
		for right := range rightsOf(&wanted[i]) {
			if !slices.ContainsFunc(owned, func(o rbacv1.PolicyRule) bool { return covers(&o, &right) }) {
				missing = append(missing, right)
			}
		}
	}
	return missing
}

// rightsOf yields the single rights of a rule: one verb on one resource of one group, of one name if the rule has names, or on one path.
func rightsOf(r *rbacv1.PolicyRule) func(yield func(rbacv1.PolicyRule) bool) {
	return func(yield func(rbacv1.PolicyRule) bool) {
		for _, verb := range r.Verbs {
			for _, group := range r.APIGroups {
				for _, resource := range r.Resources {
					right := rbacv1.PolicyRule{Verbs: []string{verb}, APIGroups: []string{group}, Resources: []string{resource}}
					if len(r.ResourceNames) == 0 {
						if !yield(right) {
							return
						}
						continue
					}
					for _, name := range r.ResourceNames {
						right.ResourceNames = []string{name}
						if !yield(right) {
							return
						}
					}
				}
			}
			for _, path := range r.NonResourceURLs {
				if !yield(rbacv1.PolicyRule{Verbs: []string{verb}, NonResourceURLs: []string{path}}) {
					return
				}
			}
		}
	}
}

// covers says whether a rule includes a single right.
func covers(owner, right *rbacv1.PolicyRule) bool {
	if !has(owner.Verbs, right.Verbs[0]) {
		return false
	}
	if len(right.NonResourceURLs) > 0 {
		return slices.ContainsFunc(owner.NonResourceURLs, func(pattern string) bool { return pathMatches(pattern, right.NonResourceURLs[0]) })
	}
	resource, subresource, _ := strings.Cut(right.Resources[0], "/")
	if !has(owner.APIGroups, right.APIGroups[0]) || !resourceMatches(owner.Resources, resource, subresource) {
		return false
	}
	if len(owner.ResourceNames) == 0 {
		return true
	}
	return len(right.ResourceNames) > 0 && slices.Contains(owner.ResourceNames, right.ResourceNames[0])
}

// describeRights writes rights as Kubernetes' refusals do: those that differ in verbs alone together, sorted.
func describeRights(rights []rbacv1.PolicyRule) string {
	verbs := map[string][]string{}
	byText := map[string]rbacv1.PolicyRule{}
	for _, r := range rights {
		verb := r.Verbs[0]
		r.Verbs = nil
		text := describeRule(&r)
		byText[text] = r
		if !slices.Contains(verbs[text], verb) {
			verbs[text] = append(verbs[text], verb)
		}
	}
	lines := make([]string, 0, len(byText))
	for text, r := range byText {
		r.Verbs = verbs[text]
		lines = append(lines, describeRule(&r))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func describeRule(r *rbacv1.PolicyRule) string {
	var parts []string
	for _, field := range []struct {
		name   string
		values []string
	}{
		{"APIGroups", r.APIGroups}, {"Resources", r.Resources}, {"NonResourceURLs", r.NonResourceURLs}, {"ResourceNames", r.ResourceNames}, {"Verbs", r.Verbs},
	} {
		if len(field.values) > 0 {
			parts = append(parts, fmt.Sprintf("%s:%q", field.name, field.values))
		}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}
