// Package policy holds the default roles and bindings of Kubernetes v1.36, and keeps them in the cluster.
//
// The tables are data: roles.go those of users and system components, controllers.go those of the controllers that Dhow has. Dhow's own services do not depend on
// any of them (package authorizer has their rules built in); they are there for what people bind them to, and for what looks at them.
package policy

import (
	"context"
	"maps"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	genrbacv1 "dhow.dev/gen/go/dhow/rbac/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authorizer/defaults"
)

const (
	autoUpdate    = "rbac.authorization.kubernetes.io/autoupdate"
	bootstrapping = "kubernetes.io/bootstrapping"
	isDefault     = "rbac-defaults"
	aggregateTo   = "rbac.authorization.k8s.io/aggregate-to-"
)

var (
	clusterRoles        = resource.For[*genrbacv1.ClusterRole]()
	clusterRoleBindings = resource.For[*genrbacv1.ClusterRoleBinding]()
	roles               = resource.For[*genrbacv1.Role]()
	roleBindings        = resource.For[*genrbacv1.RoleBinding]()
)

// Reconcile makes the default roles and bindings that are missing, and gives those that are there the rules and subjects that they lack, unless their
// annotation rbac.authorization.kubernetes.io/autoupdate is "false". What was added to them stays. The identity of ctx must be allowed to write them; their
// namespaces must exist.
func Reconcile(ctx context.Context, k defaults.Keeper) error {
	var tasks errgroup.Group
	// What is written together is committed together.
	tasks.SetLimit(32)
	for _, r := range ClusterRoles() {
		tasks.Go(func() error {
			return defaults.Ensure(ctx, k, clusterRoles, r, func(existing *rbacv1.ClusterRole) defaults.Verdict {
				if !updatable(&existing.ObjectMeta) {
					return defaults.Leave
				}
				changed := mergeMeta(&existing.ObjectMeta, &r.ObjectMeta)
				if r.AggregationRule == nil {
					changed = mergeRules(&existing.Rules, r.Rules) || changed
				} else {
					changed = mergeAggregation(existing, r.AggregationRule) || changed
				}
				return writeIf(changed)
			})
		})
	}
	for _, b := range ClusterRoleBindings() {
		tasks.Go(func() error {
			return defaults.Ensure(ctx, k, clusterRoleBindings, b, func(existing *rbacv1.ClusterRoleBinding) defaults.Verdict {
				return mergeBinding(&existing.ObjectMeta, &b.ObjectMeta, existing.RoleRef, b.RoleRef, &existing.Subjects, b.Subjects)
			})
		})
	}
	for _, r := range Roles() {
		tasks.Go(func() error {
			return defaults.Ensure(ctx, k, roles, r, func(existing *rbacv1.Role) defaults.Verdict {
				if !updatable(&existing.ObjectMeta) {
					return defaults.Leave
				}
				changed := mergeMeta(&existing.ObjectMeta, &r.ObjectMeta)
				return writeIf(mergeRules(&existing.Rules, r.Rules) || changed)
			})
		})
	}
	for _, b := range RoleBindings() {
		tasks.Go(func() error {
			return defaults.Ensure(ctx, k, roleBindings, b, func(existing *rbacv1.RoleBinding) defaults.Verdict {
				return mergeBinding(&existing.ObjectMeta, &b.ObjectMeta, existing.RoleRef, b.RoleRef, &existing.Subjects, b.Subjects)
			})
		})
	}
	return tasks.Wait()
}

func updatable(m *metav1.ObjectMeta) bool { return m.Annotations[autoUpdate] != "false" }

func writeIf(changed bool) defaults.Verdict {
	if changed {
		return defaults.Write
	}
	return defaults.Leave
}

// mergeMeta adds labels and annotations that are missing or differ.
func mergeMeta(m, wanted *metav1.ObjectMeta) bool {
	labels := mergeMap(&m.Labels, wanted.Labels)
	return mergeMap(&m.Annotations, wanted.Annotations) || labels
}

func mergeMap(m *map[string]string, wanted map[string]string) bool {
	changed := false
	for key, value := range wanted {
		if (*m)[key] == value {
			continue
		}
		if *m == nil {
			*m = map[string]string{}
		}
		(*m)[key], changed = value, true
	}
	return changed
}

// mergeRules adds the rules whose rights the others do not have.
func mergeRules(rules *[]rbacv1.PolicyRule, wanted []rbacv1.PolicyRule) bool {
	changed := false
	for _, w := range wanted {
		if !slices.ContainsFunc(*rules, func(r rbacv1.PolicyRule) bool { return includes(&r, &w) }) {
			*rules, changed = append(*rules, w), true
		}
	}
	return changed
}

// includes says whether one rule has all of another's words.
func includes(r, w *rbacv1.PolicyRule) bool {
	all := func(list, of []string) bool {
		return !slices.ContainsFunc(of, func(s string) bool { return !slices.Contains(list, s) })
	}
	return all(r.Verbs, w.Verbs) && all(r.APIGroups, w.APIGroups) && all(r.Resources, w.Resources) && all(r.NonResourceURLs, w.NonResourceURLs) &&
		(len(r.ResourceNames) == 0 || len(w.ResourceNames) > 0 && all(r.ResourceNames, w.ResourceNames))
}

func mergeAggregation(existing *rbacv1.ClusterRole, wanted *rbacv1.AggregationRule) bool {
	if existing.AggregationRule == nil {
		existing.AggregationRule = wanted
		return true
	}
	changed := false
	for _, s := range wanted.ClusterRoleSelectors {
		has := slices.ContainsFunc(existing.AggregationRule.ClusterRoleSelectors, func(e metav1.LabelSelector) bool { return equality.Semantic.DeepEqual(e, s) })
		if !has {
			existing.AggregationRule.ClusterRoleSelectors = append(existing.AggregationRule.ClusterRoleSelectors, s)
			changed = true
		}
	}
	return changed
}

func mergeBinding(m, wanted *metav1.ObjectMeta, ref, wantedRef rbacv1.RoleRef, subjects *[]rbacv1.Subject, wantedSubjects []rbacv1.Subject) defaults.Verdict {
	switch {
	case !updatable(m):
		return defaults.Leave
	case ref != wantedRef:
		return defaults.Replace
	}
	changed := mergeMeta(m, wanted)
	for _, s := range wantedSubjects {
		if !slices.Contains(*subjects, s) {
			*subjects, changed = append(*subjects, s), true
		}
	}
	return writeIf(changed)
}

// meta is what every default object carries.
func meta(namespace, name string, labels map[string]string) metav1.ObjectMeta {
	own := map[string]string{bootstrapping: isDefault}
	maps.Copy(own, labels)
	return metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: own, Annotations: map[string]string{autoUpdate: "true"}}
}

// on is a rule on resources. All are lists of words; `core` is the group without a name.
func on(verbs, groups, resources string) rbacv1.PolicyRule {
	named := strings.Fields(groups)
	for i := range named {
		if named[i] == "core" {
			named[i] = ""
		}
	}
	return rbacv1.PolicyRule{Verbs: strings.Fields(verbs), APIGroups: named, Resources: strings.Fields(resources)}
}

// only limits a rule to names.
func only(r rbacv1.PolicyRule, names ...string) rbacv1.PolicyRule {
	r.ResourceNames = names
	return r
}

// get is a rule on paths that are no resources.
func get(paths string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: strings.Fields(paths)}
}

func user(name string) rbacv1.Subject {
	return rbacv1.Subject{Kind: rbacv1.UserKind, APIGroup: rbacv1.GroupName, Name: name}
}

func group(name string) rbacv1.Subject {
	return rbacv1.Subject{Kind: rbacv1.GroupKind, APIGroup: rbacv1.GroupName, Name: name}
}

func account(namespace, name string) rbacv1.Subject {
	return rbacv1.Subject{Kind: rbacv1.ServiceAccountKind, Namespace: namespace, Name: name}
}

func clusterRole(name string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{ObjectMeta: meta("", name, nil), Rules: rules}
}

// part is a role whose rules go into the role that it is aggregated to.
func part(to, name string, rules ...rbacv1.PolicyRule) *rbacv1.ClusterRole {
	return &rbacv1.ClusterRole{ObjectMeta: meta("", name, map[string]string{aggregateTo + to: "true"}), Rules: rules}
}

// whole is a role that the controller fills from its parts; it may be a part itself.
func whole(name, partOf string) *rbacv1.ClusterRole {
	r := clusterRole(name)
	if partOf != "" {
		r.Labels[aggregateTo+partOf] = "true"
	}
	r.AggregationRule = &rbacv1.AggregationRule{ClusterRoleSelectors: []metav1.LabelSelector{{MatchLabels: map[string]string{aggregateTo + name: "true"}}}}
	return r
}

func clusterBinding(name, role string, subjects ...rbacv1.Subject) *rbacv1.ClusterRoleBinding {
	return &rbacv1.ClusterRoleBinding{
		ObjectMeta: meta("", name, nil), RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role}, Subjects: subjects,
	}
}

func namespaced(namespace, name string, rules ...rbacv1.PolicyRule) *rbacv1.Role {
	return &rbacv1.Role{ObjectMeta: meta(namespace, name, nil), Rules: rules}
}

func binding(namespace, role string, subjects ...rbacv1.Subject) *rbacv1.RoleBinding {
	return &rbacv1.RoleBinding{
		ObjectMeta: meta(namespace, role, nil), RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: role}, Subjects: subjects,
	}
}
