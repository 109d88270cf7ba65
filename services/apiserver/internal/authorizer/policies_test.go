package authorizer

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/store"
)

// patience bounds waits for conditions; nothing measures it.
const patience = time.Minute

// world is a store in memory, a cache of it, and the authorizer on top.
type world struct {
	*Roles
	t        testing.TB
	store    storev1.StoreClient
	cache    *cache.Cache
	policies *Policies
}

// newWorld starts all of it. The policies are not followed: what is found is found by catching up.
func newWorld(t testing.TB) *world {
	t.Helper()
	memory := transport.NewMemory()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 2)
	go func() {
		ended <- store.Run(ctx, store.Config{Listener: memory.Listen("store"), Credentials: memory.ServerCredentials(), Memory: true})
	}()
	conn, err := memory.Dial("store", identity.Identity{Name: identity.APIServer})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, store: storev1.NewStoreClient(conn)}
	if w.cache, err = cache.New(cache.Config{Store: w.store}); err != nil {
		t.Fatal(err)
	}
	go func() { ended <- w.cache.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range 2 {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
		conn.Close()
	})
	select {
	case <-w.cache.Ready():
	case <-time.After(patience):
		t.Fatal("the cache is not ready")
	}
	w.policies = NewPolicies(w.cache, nil)
	w.Roles = New(Config{Pods: &fakePods{}, Policies: w.policies, Objects: w.cache})
	return w
}

func (w *world) put(r *resource.Resource, o codec.Object) {
	w.t.Helper()
	data, err := o.Marshal()
	if err != nil {
		w.t.Fatal(err)
	}
	w.commit(storev1.Operation_builder{Key: []byte(cache.Key(r, o.GetNamespace(), o.GetName())), Put: data}.Build())
}

func (w *world) drop(r *resource.Resource, namespace, name string) {
	w.t.Helper()
	deleted := true
	w.commit(storev1.Operation_builder{Key: []byte(cache.Key(r, namespace, name)), Delete: &deleted}.Build())
}

func (w *world) commit(op *storev1.Operation) {
	w.t.Helper()
	if _, err := w.store.Commit(w.t.Context(), storev1.CommitRequest_builder{Operations: []*storev1.Operation{op}}.Build()); err != nil {
		w.t.Fatal(err)
	}
}

func meta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: namespace, Name: name, UID: "u"}
}

func allow(verbs, groups, resources string, names ...string) rbacv1.PolicyRule {
	split := func(s string) []string { return strings.Split(s, ",") }
	return rbacv1.PolicyRule{Verbs: split(verbs), APIGroups: split(groups), Resources: split(resources), ResourceNames: names}
}

func paths(verbs string, urls ...string) rbacv1.PolicyRule {
	return rbacv1.PolicyRule{Verbs: strings.Split(verbs, ","), NonResourceURLs: urls}
}

func (w *world) clusterRole(name string, rules ...rbacv1.PolicyRule) {
	w.t.Helper()
	w.put(clusterRoles, &rbacv1.ClusterRole{ObjectMeta: meta("", name), Rules: rules})
}

func (w *world) role(namespace, name string, rules ...rbacv1.PolicyRule) {
	w.t.Helper()
	w.put(roles, &rbacv1.Role{ObjectMeta: meta(namespace, name), Rules: rules})
}

func ref(kind, name string) rbacv1.RoleRef {
	return rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: name}
}

func (w *world) bindCluster(name, role string, subjects ...rbacv1.Subject) {
	w.t.Helper()
	w.put(clusterRoleBindings, &rbacv1.ClusterRoleBinding{ObjectMeta: meta("", name), RoleRef: ref("ClusterRole", role), Subjects: subjects})
}

func (w *world) bind(namespace, name string, role rbacv1.RoleRef, subjects ...rbacv1.Subject) {
	w.t.Helper()
	w.put(roleBindings, &rbacv1.RoleBinding{ObjectMeta: meta(namespace, name), RoleRef: role, Subjects: subjects})
}

func userSubject(name string) rbacv1.Subject {
	return rbacv1.Subject{Kind: "User", APIGroup: rbacv1.GroupName, Name: name}
}

func groupSubject(name string) rbacv1.Subject {
	return rbacv1.Subject{Kind: "Group", APIGroup: rbacv1.GroupName, Name: name}
}

func TestRBAC(t *testing.T) {
	w := newWorld(t)
	w.clusterRole("reader", allow("get,list", "", "pods,pods/log"))
	w.clusterRole("scaler", allow("update", "*", "*/scale"), allow("get", "apps", "deployments/*"))
	w.clusterRole("star", allow("*", "*", "*"))
	w.clusterRole("paths", paths("get", "/metrics", "/debug/*"))
	w.role("shop", "editor", allow("update,delete", "", "configmaps", "a", "b"))
	w.bindCluster("readers", "reader", groupSubject("devs"))
	w.bindCluster("paths", "paths", userSubject("jane"))
	w.bind("shop", "scalers", ref("ClusterRole", "scaler"), userSubject("jane"))
	w.bind("shop", "editors", ref("Role", "editor"), rbacv1.Subject{Kind: "ServiceAccount", Name: "robot"}, rbacv1.Subject{Kind: "ServiceAccount", Namespace: "other", Name: "robot"})
	w.bind("lab", "everything", ref("ClusterRole", "star"), userSubject("jane"))
	jane := identity.Identity{Name: "jane", Groups: []string{"devs", identity.AllAuthenticated}}
	robot := identity.Identity{Name: identity.ServiceAccount("shop", "robot")}
	foreign := identity.Identity{Name: identity.ServiceAccount("other", "robot")}
	for _, c := range []struct {
		a       Attributes
		allowed bool
	}{
		{Attributes{User: jane, Verb: "list", Resource: "pods"}, true},
		{Attributes{User: jane, Verb: "get", Resource: "pods", Subresource: "log", Namespace: "any", Name: "p"}, true},
		{Attributes{User: jane, Verb: "get", Resource: "pods", Subresource: "exec", Namespace: "any", Name: "p"}, false},
		{Attributes{User: jane, Verb: "watch", Resource: "pods"}, false},
		{Attributes{User: jane, Verb: "list", Group: "metrics.k8s.io", Resource: "pods"}, false},
		{Attributes{User: jane, Verb: "update", Group: "apps", Resource: "deployments", Subresource: "scale", Namespace: "shop", Name: "d"}, true},
		{Attributes{User: jane, Verb: "update", Group: "apps", Resource: "deployments", Subresource: "scale", Namespace: "elsewhere", Name: "d"}, false},
		{Attributes{User: jane, Verb: "update", Group: "apps", Resource: "deployments", Namespace: "shop", Name: "d"}, false},
		// RBAC knows `*/scale`, but not `deployments/*`.
		{Attributes{User: jane, Verb: "get", Group: "apps", Resource: "deployments", Subresource: "status", Namespace: "shop", Name: "d"}, false},
		{Attributes{User: jane, Verb: "get", Path: "/metrics"}, true},
		{Attributes{User: jane, Verb: "get", Path: "/debug/pprof"}, true},
		{Attributes{User: jane, Verb: "post", Path: "/metrics"}, false},
		{Attributes{User: jane, Verb: "get", Path: "/metrics/other"}, false},
		{Attributes{User: jane, Verb: "create", Resource: "pods", Subresource: "exec", Namespace: "lab", Name: "p"}, true},
		{Attributes{User: jane, Verb: "create", Resource: "nodes"}, false},
		{Attributes{User: robot, Verb: "update", Resource: "configmaps", Namespace: "shop", Name: "a"}, true},
		{Attributes{User: foreign, Verb: "update", Resource: "configmaps", Namespace: "shop", Name: "b"}, true},
		{Attributes{User: robot, Verb: "update", Resource: "configmaps", Namespace: "shop", Name: "c"}, false},
		{Attributes{User: robot, Verb: "deletecollection", Resource: "configmaps", Namespace: "shop"}, false},
		{Attributes{User: robot, Verb: "update", Resource: "configmaps", Namespace: "other", Name: "a"}, false},
		{Attributes{User: identity.Unauthenticated(), Verb: "get", Path: "/livez"}, true},
		{Attributes{User: identity.Unauthenticated(), Verb: "get", Path: "/version"}, false},
	} {
		err := w.Authorize(t.Context(), c.a)
		if (err == nil) != c.allowed || err != nil && !apierrors.IsForbidden(err) {
			t.Errorf("%s %s %s%s/%s %s/%s: %v", c.a.User, c.a.Verb, c.a.Path, c.a.Resource, c.a.Subresource, c.a.Namespace, c.a.Name, err)
		}
	}
}

func TestForbiddenInKubernetesWords(t *testing.T) {
	w := newWorld(t)
	w.bind("shop", "lost", ref("Role", "gone"), userSubject("jane"))
	jane := identity.Identity{Name: "jane"}
	for want, a := range map[string]Attributes{
		`forbidden: User "jane" cannot get path "/foo"`: {Verb: "get", Path: "/foo"},
		`pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "shop": RBAC: role.rbac.authorization.k8s.io "gone" not found`: {
			Verb: "list", Resource: "pods", Namespace: "shop"},
		`nodes "n" is forbidden: User "jane" cannot get resource "nodes" in API group "" at the cluster scope`: {Verb: "get", Resource: "nodes", Name: "n"},
	} {
		a.User = jane
		if err := w.Authorize(t.Context(), a); err == nil || err.Error() != want {
			t.Errorf("got  %v\nwant %s", err, want)
		}
	}
	w.role("shop", "lister", allow("list", "", "pods"))
	w.bind("shop", "listers", ref("Role", "lister"), userSubject("jane"))
	decision, err := w.Decide(t.Context(), Attributes{User: jane, Verb: "list", Resource: "pods", Namespace: "shop"})
	if want := `RBAC: allowed by RoleBinding "listers/shop" of Role "lister" to User "jane"`; err != nil || decision.Reason != want {
		t.Errorf("got  %v %v\nwant %s", decision.Reason, err, want)
	}
}

// TestWhatIsGrantedCountsAtOnce: a denial waits for what was written before; what is taken away goes when the policies follow.
func TestWhatIsGrantedCountsAtOnce(t *testing.T) {
	w := newWorld(t)
	a := Attributes{User: identity.Identity{Name: "jane"}, Verb: "get", Resource: "pods", Namespace: "shop", Name: "p"}
	for i := range 20 {
		name := fmt.Sprintf("b%d", i)
		if err := w.Authorize(t.Context(), a); !apierrors.IsForbidden(err) {
			t.Fatalf("before: %v", err)
		}
		w.clusterRole(name, allow("get", "", "pods"))
		w.bind("shop", name, ref("ClusterRole", name), userSubject("jane"))
		if err := w.Authorize(t.Context(), a); err != nil {
			t.Fatalf("after: %v", err)
		}
		w.drop(roleBindings, "shop", name)
		if err := w.policies.catchUp(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPoliciesFollow(t *testing.T) {
	w := newWorld(t)
	w.clusterRole("r", allow("get", "", "pods"))
	w.bindCluster("b", "r", userSubject("jane"))
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.policies.Run(ctx) }()
	a := Attributes{User: identity.Identity{Name: "jane"}, Verb: "get", Resource: "pods", Name: "p"}
	until := func(allowed bool) {
		t.Helper()
		deadline := time.Now().Add(patience)
		for w.look(a).Allowed != allowed {
			if time.Now().After(deadline) {
				t.Fatalf("the policies do not come to allowed=%v", allowed)
			}
			// Nothing here asks the store: the change comes by itself.
			select {
			case <-time.After(time.Millisecond):
			case <-ended:
				t.Fatal("the policies have ended")
			}
		}
	}
	until(true)
	w.clusterRole("r", allow("list", "", "pods"))
	until(false)
	w.clusterRole("r", allow("get,list", "", "pods"))
	until(true)
	w.bindCluster("b", "r", userSubject("joe"))
	until(false)
	w.bindCluster("b2", "r", userSubject("jane"))
	until(true)
	w.drop(clusterRoles, "", "r")
	until(false)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if n := len(w.policies.subjects); n != 2 {
		t.Errorf("%d subjects are known, 2 are bound", n)
	}
}

func TestEscalation(t *testing.T) {
	w := newWorld(t)
	w.clusterRole("reader", allow("get,list", "", "pods"))
	w.clusterRole("strong", allow("*", "*", "*"), paths("*", "*"))
	w.clusterRole("rbac", allow("*", "rbac.authorization.k8s.io", "*"))
	w.clusterRole("binder", allow("bind", "rbac.authorization.k8s.io", "clusterroles", "strong"))
	w.bind("shop", "readers", ref("ClusterRole", "reader"), userSubject("jane"))
	w.bindCluster("rbac", "rbac", userSubject("root"))
	w.bindCluster("strong", "strong", userSubject("almighty"))
	w.bindCluster("binders", "binder", userSubject("binder"))
	role := func(namespace string, rules ...rbacv1.PolicyRule) *rbacv1.Role {
		return &rbacv1.Role{ObjectMeta: meta(namespace, "new"), Rules: rules}
	}
	aggregating := &rbacv1.ClusterRole{ObjectMeta: meta("", "new"), AggregationRule: &rbacv1.AggregationRule{}}
	binding := func(role string) *rbacv1.ClusterRoleBinding {
		return &rbacv1.ClusterRoleBinding{ObjectMeta: meta("", "new"), RoleRef: ref("ClusterRole", role), Subjects: []rbacv1.Subject{userSubject("x")}}
	}
	owned := role("shop", allow("delete", "", "secrets"))
	disowned := owned.DeepCopy()
	disowned.Finalizers = []string{"x"}
	relabelled := owned.DeepCopy()
	relabelled.Labels = map[string]string{"aggregate": "true"}
	const refusal = `roles.rbac.authorization.k8s.io "new" is forbidden: user "jane" (groups=[]) is attempting to grant RBAC permissions not currently held:` + "\n"
	for name, c := range map[string]struct {
		user     string
		groups   []string
		obj, old codec.Object
		want     string
	}{
		"what one has":                     {user: "jane", obj: role("shop", allow("get", "", "pods"))},
		"one name of what one has":         {user: "jane", obj: role("shop", allow("get", "", "pods", "a"))},
		"in another namespace":             {user: "jane", obj: role("lab", allow("get", "", "pods")), want: refusal + `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`},
		"more than one has":                {user: "jane", obj: role("shop", allow("get,delete,watch", "", "pods,secrets")), want: refusal + `{APIGroups:[""], Resources:["pods"], Verbs:["delete" "watch"]}` + "\n" + `{APIGroups:[""], Resources:["secrets"], Verbs:["get" "delete" "watch"]}`},
		"a star":                           {user: "jane", obj: role("shop", allow("*", "", "pods")), want: refusal + `{APIGroups:[""], Resources:["pods"], Verbs:["*"]}`},
		"an update for the collector":      {user: "jane", obj: disowned, old: owned},
		"labels may aggregate":             {user: "jane", obj: relabelled, old: owned, want: refusal + `{APIGroups:[""], Resources:["secrets"], Verbs:["delete"]}`},
		"the verb escalate":                {user: "root", obj: role("shop", allow("*", "*", "*"))},
		"aggregation with escalate":        {user: "root", obj: aggregating},
		"aggregation":                      {user: "jane", obj: aggregating, want: `clusterroles.rbac.authorization.k8s.io "new" is forbidden: must have cluster-admin privileges to use the aggregationRule`},
		"aggregation by the strong":        {user: "almighty", obj: aggregating},
		"administrators":                   {user: "x", groups: []string{identity.Masters}, obj: role("shop", allow("*", "*", "*"))},
		"the controllers aggregate":        {user: identity.ControllerManager, obj: &rbacv1.ClusterRole{ObjectMeta: meta("", "new"), Rules: []rbacv1.PolicyRule{allow("*", "*", "*")}}},
		"a binding of what one lacks":      {user: "jane", obj: binding("strong"), want: `clusterrolebindings.rbac.authorization.k8s.io "new" is forbidden: user "jane" (groups=[]) is attempting to grant RBAC permissions not currently held:` + "\n" + `{APIGroups:["*"], Resources:["*"], Verbs:["*"]}` + "\n" + `{NonResourceURLs:["*"], Verbs:["*"]}`},
		"a binding of nothing":             {user: "jane", obj: binding("none"), want: `clusterrole.rbac.authorization.k8s.io "none" not found`},
		"the verb bind":                    {user: "binder", obj: binding("strong")},
		"the verb bind on another":         {user: "binder", obj: binding("reader"), want: `clusterrolebindings.rbac.authorization.k8s.io "new" is forbidden: user "binder" (groups=[]) is attempting to grant RBAC permissions not currently held:` + "\n" + `{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}`},
		"a binding of what one has":        {user: "almighty", obj: binding("reader")},
		"a namespace's binding of one's":   {user: "jane", obj: &rbacv1.RoleBinding{ObjectMeta: meta("shop", "new"), RoleRef: ref("ClusterRole", "reader")}},
		"another namespace's, not of hers": {user: "jane", obj: &rbacv1.RoleBinding{ObjectMeta: meta("lab", "new"), RoleRef: ref("ClusterRole", "reader")}, want: `rolebindings.rbac.authorization.k8s.io "new" is forbidden: user "jane" (groups=[]) is attempting to grant RBAC permissions not currently held:` + "\n" + `{APIGroups:[""], Resources:["pods"], Verbs:["get" "list"]}`},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := identity.NewContext(t.Context(), identity.Identity{Name: c.user, Groups: c.groups})
			var err error
			if c.old == nil {
				err = w.CheckEscalation(ctx, c.obj, nil)
			} else {
				err = w.CheckEscalation(ctx, c.obj, c.old)
			}
			got := ""
			if err != nil {
				got = err.Error()
			}
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

func BenchmarkAuthorize(b *testing.B) {
	w := newWorld(b)
	for i := range 1000 {
		name := fmt.Sprintf("team-%d", i)
		w.role(name, "r", allow("get,list,watch", "", "pods,services"), allow("*", "apps", "deployments"))
		w.bind(name, "b", ref("Role", "r"), groupSubject(name))
	}
	if err := w.policies.catchUp(b.Context()); err != nil {
		b.Fatal(err)
	}
	a := Attributes{User: identity.Identity{Name: "jane", Groups: []string{"team-7", identity.AllAuthenticated}}, Verb: "update", Group: "apps", Resource: "deployments", Namespace: "team-7", Name: "d"}
	b.ReportAllocs()
	for b.Loop() {
		if err := w.Authorize(b.Context(), a); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDenial is a request that nothing allows, while something else is written each time, among 5,000 bindings.
func BenchmarkDenial(b *testing.B) {
	w := newWorld(b)
	for i := range 5000 {
		name := fmt.Sprintf("team-%d", i)
		w.bind(name, "b", ref("ClusterRole", "r"), groupSubject(name))
	}
	a := Attributes{User: identity.Identity{Name: "jane", Groups: []string{"team-7"}}, Verb: "update", Group: "apps", Resource: "deployments", Namespace: "team-7", Name: "d"}
	if err := w.policies.catchUp(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		w.put(claims, &corev1.PersistentVolumeClaim{ObjectMeta: meta("shop", "x")})
		b.StartTimer()
		if err := w.Authorize(b.Context(), a); !apierrors.IsForbidden(err) {
			b.Fatal(err)
		}
	}
}
