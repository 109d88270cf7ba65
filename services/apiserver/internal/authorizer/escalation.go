package authorizer

import (
	"context"
	"errors"
	"fmt"

	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
)

// everythingRules are what an aggregated role may come to hold.
var everythingRules = []rbacv1.PolicyRule{
	{Verbs: []string{all}, APIGroups: []string{all}, Resources: []string{all}},
	{Verbs: []string{all}, NonResourceURLs: []string{all}},
}

// CheckEscalation refuses a role or binding that would give rights which the caller of ctx does not hold, as Kubernetes' API server does: a role may be written by
// who holds all its rights or has the verb `escalate` on it, a binding by who holds all rights of its role or has the verb `bind` on the role. Old is nil
// when the object is created; objects of other kinds pass. Errors are API errors.
func (r *Roles) CheckEscalation(ctx context.Context, obj, old runtime.Object) error {
	switch o := obj.(type) {
	case *rbacv1.Role:
		return r.checkRole(ctx, roles, o, old, o.Rules, false)
	case *rbacv1.ClusterRole:
		before, _ := old.(*rbacv1.ClusterRole)
		return r.checkRole(ctx, clusterRoles, o, old, o.Rules, o.AggregationRule != nil || before != nil && before.AggregationRule != nil)
	case *rbacv1.RoleBinding:
		return r.checkBinding(ctx, roleBindings, o, old, o.RoleRef)
	case *rbacv1.ClusterRoleBinding:
		return r.checkBinding(ctx, clusterRoleBindings, o, old, o.RoleRef)
	}
	return nil
}

// metaObject is what roles and bindings have in common.
type metaObject interface {
	runtime.Object
	metav1.Object
}

func (r *Roles) checkRole(ctx context.Context, kind *resource.Resource, obj metaObject, old runtime.Object, rules []rbacv1.PolicyRule, aggregates bool) error {
	a := Attributes{
		Verb: "escalate", Group: kind.Group, Version: kind.Version, Resource: kind.Plural, Namespace: obj.GetNamespace(), Name: obj.GetName(),
	}
	exempt, err := r.exempt(ctx, &a, obj, old)
	if err != nil || exempt {
		return err
	}
	if aggregates && r.confirm(ctx, a.User, "", everythingRules) != nil {
		return apierrors.NewForbidden(kind.GroupResource(), obj.GetName(), errors.New("must have cluster-admin privileges to use the aggregationRule"))
	}
	if err := r.confirm(ctx, a.User, obj.GetNamespace(), rules); err != nil {
		return apierrors.NewForbidden(kind.GroupResource(), obj.GetName(), err)
	}
	return nil
}

func (r *Roles) checkBinding(ctx context.Context, kind *resource.Resource, obj metaObject, old runtime.Object, ref rbacv1.RoleRef) error {
	a := Attributes{Verb: "bind", Group: ref.APIGroup, Version: kind.Version, Resource: clusterRoles.Plural, Namespace: obj.GetNamespace(), Name: ref.Name}
	if ref.Kind == "Role" {
		a.Resource = roles.Plural
	}
	exempt, err := r.exempt(ctx, &a, obj, old)
	if err != nil || exempt {
		return err
	}
	if r.policies == nil {
		return apierrors.NewForbidden(kind.GroupResource(), obj.GetName(), errors.New("there are no roles to bind"))
	}
	rules, err := r.policies.referred(ref, obj.GetNamespace())
	if err != nil {
		// The role may have been written a moment ago.
		if err := r.policies.catchUp(ctx); err != nil {
			return err
		}
		if rules, err = r.policies.referred(ref, obj.GetNamespace()); err != nil {
			return err
		}
	}
	if err := r.confirm(ctx, a.User, obj.GetNamespace(), rules); err != nil {
		return apierrors.NewForbidden(kind.GroupResource(), obj.GetName(), err)
	}
	return nil
}

// exempt says whether the caller, whom it puts into the attributes, need not hold the rights: an administrator, who has the verb, or who changes only what garbage
// collection needs.
func (r *Roles) exempt(ctx context.Context, a *Attributes, obj metaObject, old runtime.Object) (bool, error) {
	user, ok := identity.FromContext(ctx)
	if !ok {
		return false, apierrors.NewUnauthorized("the caller is not known")
	}
	a.User = user
	if user.InGroup(identity.Masters) {
		return true, nil
	}
	if before, ok := old.(metaObject); ok && onlyForCollection(obj, before) {
		return true, nil
	}
	decision, err := r.Decide(ctx, *a)
	return decision.Allowed, err
}

// onlyForCollection says whether two versions differ in owners and finalizers alone.
func onlyForCollection(obj, old metaObject) bool {
	same := obj.DeepCopyObject().(metaObject)
	same.SetOwnerReferences(old.GetOwnerReferences())
	same.SetFinalizers(old.GetFinalizers())
	same.SetManagedFields(old.GetManagedFields())
	same.SetResourceVersion(old.GetResourceVersion())
	same.SetGeneration(old.GetGeneration())
	same.GetObjectKind().SetGroupVersionKind(old.GetObjectKind().GroupVersionKind())
	return equality.Semantic.DeepEqual(same, old)
}

// confirm returns nil when the user holds the rights in the namespace (empty: everywhere).
func (r *Roles) confirm(ctx context.Context, user identity.Identity, namespace string, wanted []rbacv1.PolicyRule) error {
	owned, unresolved := r.rulesOf(user, namespace)
	missing := missingFrom(owned, wanted)
	if len(missing) > 0 && r.policies != nil {
		if err := r.policies.catchUp(ctx); err != nil {
			return err
		}
		owned, unresolved = r.rulesOf(user, namespace)
		missing = missingFrom(owned, wanted)
	}
	if len(missing) == 0 {
		return nil
	}
	message := fmt.Sprintf("user %q (groups=%q) is attempting to grant RBAC permissions not currently held:\n%s", user.Name, user.Groups, describeRights(missing))
	if unresolved != nil {
		message += fmt.Sprintf("; resolution errors: %v", []error{unresolved})
	}
	return errors.New(message)
}

// rulesOf returns what a user holds by RBAC and by those built-in rules that RBAC can express: the ones that except nothing.
func (r *Roles) rulesOf(user identity.Identity, namespace string) (owned []rbacv1.PolicyRule, unresolved error) {
	if r.policies != nil {
		owned, unresolved = r.policies.rulesFor(user, namespace)
	}
	for role := range builtInRoles(user) {
		for i := range role.rules {
			owned = append(owned, role.rules[i].expressed()...)
		}
	}
	return owned, unresolved
}

// expressed returns a built-in rule in RBAC's words, nothing when RBAC has none for it.
func (r *rule) expressed() []rbacv1.PolicyRule {
	var rules []rbacv1.PolicyRule
	if len(r.resources) > 0 && len(r.except) == 0 {
		resources := r.resources
		if len(resources) == 2 && resources[0] == all && resources[1] == "*/*" {
			resources = resources[:1]
		}
		rules = append(rules, rbacv1.PolicyRule{Verbs: r.verbs, APIGroups: r.groups, Resources: resources, ResourceNames: r.names})
	}
	if len(r.paths) > 0 {
		rules = append(rules, rbacv1.PolicyRule{Verbs: r.verbs, NonResourceURLs: r.paths})
	}
	return rules
}
