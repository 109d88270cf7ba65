package authorizer

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"sync"

	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	genrbacv1 "dhow.dev/gen/go/dhow/rbac/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authorizer/mirror"
	"dhow.dev/services/apiserver/internal/cache"
)

var (
	clusterRoles        = resource.For[*genrbacv1.ClusterRole]()
	clusterRoleBindings = resource.For[*genrbacv1.ClusterRoleBinding]()
	roles               = resource.For[*genrbacv1.Role]()
	roleBindings        = resource.For[*genrbacv1.RoleBinding]()

	policyKinds = []*resource.Resource{clusterRoles, roles, clusterRoleBindings, roleBindings}
)

// Policies are the objects of RBAC, decoded once per version and indexed by the subjects that bindings name: a question costs what matches, not
// what there is.
type Policies struct {
	objects mirror.Cache
	logger  *slog.Logger

	// refreshing orders refreshes: what an older one saw must not replace what a newer one did. Taken before mu.
	refreshing sync.Mutex
	// synced is the revision that a refresh of all kinds has seen at least, last what it has seen of each kind. Guarded by refreshing.
	synced int64
	last   map[*resource.Resource][]*cache.Entry

	mu       sync.RWMutex
	roles    map[roleKey]*role
	bindings map[roleKey]*binding
	// subjects finds bindings by whom they name.
	subjects map[subject][]grant
}

// roleKey names a role or a binding; those of the cluster have no namespace.
type roleKey struct {
	cluster bool
	object.Key
}

type role struct {
	revision int64
	rules    []rbacv1.PolicyRule
}

type binding struct {
	key      roleKey
	revision int64
	role     rbacv1.RoleRef
	grants   []subjectGrant
}

// grant is one subject's part in a binding. By says what allows what it allows, in Kubernetes' words: made once, since it is asked for with every request.
type grant struct {
	*binding
	by string
}

type subjectGrant struct {
	subject subject
	by      string
}

// subject is a user or a group, for bindings of the cluster or of one namespace. A service account is the user that it is.
type subject struct {
	cluster   bool
	namespace string
	group     bool
	name      string
}

// NewPolicies returns policies that Run fills. A nil logger discards.
func NewPolicies(objects mirror.Cache, logger *slog.Logger) *Policies {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Policies{objects: objects, logger: logger, last: map[*resource.Resource][]*cache.Entry{}, roles: map[roleKey]*role{}, bindings: map[roleKey]*binding{}, subjects: map[subject][]grant{}}
}

// Run follows the objects until ctx ends.
func (p *Policies) Run(ctx context.Context) error {
	return mirror.Follow(ctx, p.objects, policyKinds, p.logger, func(changed []*resource.Resource) {
		p.refreshing.Lock()
		defer p.refreshing.Unlock()
		p.refresh(changed)
	})
}

// catchUp returns when the policies hold all that was written before the call.
func (p *Policies) catchUp(ctx context.Context) error {
	revision, err := p.objects.Consistent(ctx)
	if err != nil {
		return err
	}
	p.refreshing.Lock()
	defer p.refreshing.Unlock()
	if p.synced >= revision {
		return nil
	}
	seen := p.objects.Revision()
	p.refresh(policyKinds)
	p.synced = seen
	return nil
}

// refresh takes over what has changed since the last time. The caller holds refreshing.
func (p *Policies) refresh(kinds []*resource.Resource) {
	for _, r := range kinds {
		entries := mirror.Entries(p.objects, r)
		// Entries are never changed: the same ones say the same. This is what denials find nearly always.
		if slices.Equal(entries, p.last[r]) {
			continue
		}
		p.last[r] = entries
		if r == roles || r == clusterRoles {
			p.setRoles(r == clusterRoles, entries)
		} else {
			p.setBindings(r == clusterRoleBindings, entries)
		}
	}
}

// news returns the entries that are not known in this version, and the known ones that are gone.
func news[T any](p *Policies, known map[roleKey]T, cluster bool, entries []*cache.Entry, revision func(T) int64) (changed []*cache.Entry, gone []roleKey) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	present := make(map[roleKey]struct{}, len(entries))
	for _, e := range entries {
		key := keyOf(cluster, e)
		present[key] = struct{}{}
		if k, ok := known[key]; !ok || revision(k) != e.Revision {
			changed = append(changed, e)
		}
	}
	for key := range known {
		if _, ok := present[key]; !ok && key.cluster == cluster {
			gone = append(gone, key)
		}
	}
	return changed, gone
}

func keyOf(cluster bool, e *cache.Entry) roleKey {
	return roleKey{cluster: cluster, Key: object.Key{Namespace: e.Namespace, Name: e.Name}}
}

func (p *Policies) setRoles(cluster bool, entries []*cache.Entry) {
	changed, gone := news(p, p.roles, cluster, entries, func(r *role) int64 { return r.revision })
	decoded := make([]*role, len(changed))
	for i, e := range changed {
		decoded[i] = &role{revision: e.Revision, rules: p.decodeRules(cluster, e)}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, e := range changed {
		p.roles[keyOf(cluster, e)] = decoded[i]
	}
	for _, key := range gone {
		delete(p.roles, key)
	}
}

// decodeRules returns the rules of a role. One that cannot be decoded allows nothing.
func (p *Policies) decodeRules(cluster bool, e *cache.Entry) []rbacv1.PolicyRule {
	if cluster {
		var r rbacv1.ClusterRole
		if err := r.Unmarshal(e.Object); err != nil {
			p.unreadable(e, err)
			return nil
		}
		return r.Rules
	}
	var r rbacv1.Role
	if err := r.Unmarshal(e.Object); err != nil {
		p.unreadable(e, err)
		return nil
	}
	return r.Rules
}

func (p *Policies) setBindings(cluster bool, entries []*cache.Entry) {
	changed, gone := news(p, p.bindings, cluster, entries, func(b *binding) int64 { return b.revision })
	decoded := make([]*binding, len(changed))
	for i, e := range changed {
		decoded[i] = p.decodeBinding(cluster, e)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, key := range gone {
		p.unbind(key)
	}
	for _, b := range decoded {
		p.unbind(b.key)
		p.bindings[b.key] = b
		for _, g := range b.grants {
			p.subjects[g.subject] = append(p.subjects[g.subject], grant{b, g.by})
		}
	}
}

// unbind forgets a binding. The caller holds mu.
func (p *Policies) unbind(key roleKey) {
	b := p.bindings[key]
	if b == nil {
		return
	}
	delete(p.bindings, key)
	for _, g := range b.grants {
		kept := slices.DeleteFunc(p.subjects[g.subject], func(other grant) bool { return other.binding == b })
		if len(kept) == 0 {
			delete(p.subjects, g.subject)
		} else {
			p.subjects[g.subject] = kept
		}
	}
}

// decodeBinding returns a binding. One that cannot be decoded binds nobody.
func (p *Policies) decodeBinding(cluster bool, e *cache.Entry) *binding {
	b := &binding{key: keyOf(cluster, e), revision: e.Revision}
	var named []rbacv1.Subject
	if cluster {
		var o rbacv1.ClusterRoleBinding
		if err := o.Unmarshal(e.Object); err != nil {
			p.unreadable(e, err)
			return b
		}
		b.role, named = o.RoleRef, o.Subjects
	} else {
		var o rbacv1.RoleBinding
		if err := o.Unmarshal(e.Object); err != nil {
			p.unreadable(e, err)
			return b
		}
		b.role, named = o.RoleRef, o.Subjects
	}
	for i := range named {
		if s, ok := subjectOf(b.key, &named[i]); ok {
			b.grants = append(b.grants, subjectGrant{s, b.describe(s, &named[i])})
		}
	}
	return b
}

// subjectOf returns the subject of the index. A service account without a namespace is of the binding's.
func subjectOf(key roleKey, s *rbacv1.Subject) (subject, bool) {
	found := subject{cluster: key.cluster, namespace: key.Namespace, name: s.Name}
	switch s.Kind {
	case rbacv1.UserKind:
	case rbacv1.GroupKind:
		found.group = true
	case rbacv1.ServiceAccountKind:
		namespace := s.Namespace
		if namespace == "" {
			namespace = key.Namespace
		}
		if namespace == "" {
			return found, false
		}
		found.name = identity.ServiceAccount(namespace, s.Name)
	default:
		return found, false
	}
	return found, true
}

func (p *Policies) unreadable(e *cache.Entry, err error) {
	p.logger.Error("object of RBAC cannot be decoded and allows nothing", slog.String("key", e.Key), slog.String("error", err.Error()))
}

// bound yields the grants of a user that count in a namespace (empty: those of the cluster alone). The caller holds mu for reading.
func (p *Policies) bound(user identity.Identity, namespace string) iter.Seq[grant] {
	return func(yield func(grant) bool) {
		each := func(s subject) bool {
			for _, g := range p.subjects[s] {
				if !yield(g) {
					return false
				}
			}
			return true
		}
		for _, cluster := range []bool{true, false} {
			s := subject{cluster: cluster}
			if !cluster {
				if namespace == "" {
					return
				}
				s.namespace = namespace
			}
			s.name = user.Name
			if !each(s) {
				return
			}
			s.group = true
			for _, s.name = range user.Groups {
				if !each(s) {
					return
				}
			}
		}
	}
}

// rulesOf returns the rules of a binding's role. The caller holds mu for reading.
func (p *Policies) rulesOf(b *binding) ([]rbacv1.PolicyRule, error) {
	key := roleKey{cluster: true, Key: object.Key{Name: b.role.Name}}
	if b.role.Kind == "Role" {
		key = roleKey{Key: object.Key{Namespace: b.key.Namespace, Name: b.role.Name}}
	}
	if r := p.roles[key]; r != nil {
		return r.rules, nil
	}
	kind := clusterRoles
	if !key.cluster {
		kind = roles
	}
	return nil, notFound(kind, b.role.Name)
}

// notFound says that a role is missing, as Kubernetes does: with the singular.
func notFound(kind *resource.Resource, name string) error {
	return apierrors.NewNotFound(schema.GroupResource{Group: kind.Group, Resource: kind.Singular()}, name)
}

// allows returns what allows it, in Kubernetes' words, or empty; and the roles that are bound but missing.
func (p *Policies) allows(a Attributes) (by string, err error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var missing []error
	for g := range p.bound(a.User, a.Namespace) {
		rules, err := p.rulesOf(g.binding)
		if err != nil {
			missing = append(missing, err)
			continue
		}
		for i := range rules {
			if ruleAllows(&rules[i], &a) {
				return g.by, nil
			}
		}
	}
	return "", utilerrors.NewAggregate(missing)
}

// describe names a binding, its role and a subject as Kubernetes' reasons do.
func (b *binding) describe(s subject, named *rbacv1.Subject) string {
	kind, name := "ClusterRoleBinding", b.key.Name
	if !b.key.cluster {
		kind, name = "RoleBinding", b.key.Name+"/"+b.key.Namespace
	}
	who := named.Name
	if named.Kind == rbacv1.ServiceAccountKind {
		namespace, account, _ := identity.Identity{Name: s.name}.ServiceAccountName()
		who = account + "/" + namespace
	}
	return fmt.Sprintf("RBAC: allowed by %s %q of %s %q to %s %q", kind, name, b.role.Kind, b.role.Name, named.Kind, who)
}

// rulesFor returns the rules of all of a user's roles that count in a namespace, and the roles that are missing.
func (p *Policies) rulesFor(user identity.Identity, namespace string) ([]rbacv1.PolicyRule, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var all []rbacv1.PolicyRule
	var missing []error
	for g := range p.bound(user, namespace) {
		rules, err := p.rulesOf(g.binding)
		if err != nil {
			missing = append(missing, err)
		}
		all = append(all, rules...)
	}
	return all, errors.Join(missing...)
}

// referred returns the rules of a role that a binding in a namespace refers to, or NotFound.
func (p *Policies) referred(ref rbacv1.RoleRef, namespace string) ([]rbacv1.PolicyRule, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.rulesOf(&binding{key: roleKey{cluster: namespace == "", Key: object.Key{Namespace: namespace}}, role: ref})
}
