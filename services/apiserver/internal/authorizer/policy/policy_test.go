package policy_test

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"time"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/authorizer/defaults"
	"dhow.dev/services/apiserver/internal/authorizer/policy"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/encryption"
	flowdefaults "dhow.dev/services/apiserver/internal/fairness/bootstrap"
	"dhow.dev/services/apiserver/internal/registry"
	"dhow.dev/services/apiserver/internal/strategy"
	"dhow.dev/services/store"
)

const patience = time.Minute

// known is the cache as the registry sees it.
type known struct{ cache *cache.Cache }

func (k known) Current(r *resource.Resource, namespace, name string) (registry.Entry, bool) {
	e := k.cache.Peek(r, namespace, name)
	if e == nil {
		return registry.Entry{}, false
	}
	return registry.Entry{Object: e.Object, Revision: e.Revision}, true
}

func (k known) WaitFor(ctx context.Context, revision int64) error {
	return k.cache.WaitFor(ctx, revision)
}

func (k known) Select(context.Context, *resource.Resource, string, string, string) ([]registry.Name, error) {
	return nil, nil
}

func (k known) Each(*resource.Resource, string, func(registry.Name, registry.Entry) bool) error {
	return nil
}

// cluster is a store in memory with the write path of an API server.
type cluster struct {
	t      *testing.T
	cache  *cache.Cache
	keeper defaults.Keeper
	ctx    context.Context
}

func newCluster(t *testing.T) *cluster {
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
	objects, err := cache.New(cache.Config{Store: storev1.NewStoreClient(conn)})
	if err != nil {
		t.Fatal(err)
	}
	go func() { ended <- objects.Run(ctx) }()
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
	case <-objects.Ready():
	case <-time.After(patience):
		t.Fatal("the cache is not ready")
	}
	structs, err := codec.New()
	if err != nil {
		t.Fatal(err)
	}
	ring, err := encryption.NewRing([]encryption.Key{{ID: 1}})
	if err != nil {
		t.Fatal(err)
	}
	writes, err := registry.New(registry.Config{
		Store: storev1.NewStoreClient(conn), Cache: known{objects}, Codec: structs, Encryption: ring, Strategies: strategy.New(strategy.Config{TolerationSeconds: 300}),
	})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{
		t: t, cache: objects, keeper: defaults.Keeper{Cache: objects, Registry: writes, Codec: structs},
		ctx: identity.NewContext(t.Context(), identity.Identity{Name: identity.APIServer, Groups: []string{identity.Masters}}),
	}
	for _, name := range []string{metav1.NamespaceSystem, metav1.NamespacePublic} {
		_, err := writes.Create(c.ctx, resource.Lookup("", "namespaces"), registry.Input{Text: true, Data: []byte(`{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"` + name + `"}}`)}, registry.WriteOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	return c
}

func (c *cluster) reconcile() {
	c.t.Helper()
	// As at a start, when the cache has been filled a moment ago.
	if _, err := c.cache.Consistent(c.ctx); err != nil {
		c.t.Fatal(err)
	}
	if err := policy.Reconcile(c.ctx, c.keeper); err != nil {
		c.t.Fatal(err)
	}
	if err := flowdefaults.Reconcile(c.ctx, c.keeper); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) get(r *resource.Resource, name string, into codec.Object) {
	c.t.Helper()
	e, err := c.cache.Get(c.ctx, r, "", name, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	if err := into.Unmarshal(e.Encoded()); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) update(r *resource.Resource, o codec.Object) {
	c.t.Helper()
	data, err := o.Marshal()
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.keeper.Registry.Update(c.ctx, r, registry.Input{Data: data}, registry.WriteOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

var (
	clusterRoles = resource.Lookup(rbacv1.GroupName, "clusterroles")
	bindings     = resource.Lookup(rbacv1.GroupName, "clusterrolebindings")
	levels       = resource.Lookup(flowcontrolv1.GroupName, "prioritylevelconfigurations")
)

func TestDefaultsAreMadeAndRepaired(t *testing.T) {
	c := newCluster(t)
	c.reconcile()
	before, err := c.cache.Consistent(c.ctx)
	if err != nil {
		t.Fatal(err)
	}
	c.reconcile()
	if after, err := c.cache.Consistent(c.ctx); err != nil || after != before {
		t.Fatalf("another start has written: revision %d, then %d (%v)", before, after, err)
	}

	// What is taken away comes back, what is added stays.
	var role rbacv1.ClusterRole
	c.get(clusterRoles, "system:discovery", &role)
	mine := rbacv1.PolicyRule{Verbs: []string{"get"}, NonResourceURLs: []string{"/mine"}}
	role.Rules, role.Labels = []rbacv1.PolicyRule{mine}, nil
	c.update(clusterRoles, &role)
	// One that says so is left alone.
	var alone rbacv1.ClusterRole
	c.get(clusterRoles, "system:monitoring", &alone)
	alone.Rules, alone.Annotations["rbac.authorization.kubernetes.io/autoupdate"] = nil, "false"
	c.update(clusterRoles, &alone)
	var bound rbacv1.ClusterRoleBinding
	c.get(bindings, "system:basic-user", &bound)
	bound.Subjects = nil
	c.update(bindings, &bound)
	var level flowcontrolv1.PriorityLevelConfiguration
	c.get(levels, "workload-low", &level)
	*level.Spec.Limited.NominalConcurrencyShares = 1
	c.update(levels, &level)
	c.reconcile()

	role = rbacv1.ClusterRole{}
	c.get(clusterRoles, "system:discovery", &role)
	if len(role.Rules) != 2 || !slices.Equal(role.Rules[0].NonResourceURLs, mine.NonResourceURLs) || role.Labels["kubernetes.io/bootstrapping"] != "rbac-defaults" {
		t.Errorf("system:discovery: %+v", role)
	}
	alone = rbacv1.ClusterRole{}
	c.get(clusterRoles, "system:monitoring", &alone)
	if len(alone.Rules) != 0 {
		t.Errorf("system:monitoring was written although it says no: %+v", alone.Rules)
	}
	bound = rbacv1.ClusterRoleBinding{}
	c.get(bindings, "system:basic-user", &bound)
	if len(bound.Subjects) != 1 || bound.Subjects[0].Name != identity.AllAuthenticated {
		t.Errorf("system:basic-user: %+v", bound.Subjects)
	}
	level = flowcontrolv1.PriorityLevelConfiguration{}
	c.get(levels, "workload-low", &level)
	if *level.Spec.Limited.NominalConcurrencyShares != 100 {
		t.Errorf("workload-low: %+v", level.Spec.Limited)
	}
}

// TestDanglingSchemasSaySo takes a level away and brings it back.
func TestDanglingSchemasSaySo(t *testing.T) {
	c := newCluster(t)
	c.reconcile()
	ctx, cancel := context.WithTimeout(c.ctx, patience)
	defer cancel()
	ended := make(chan error, 1)
	go func() {
		ended <- flowdefaults.Conditions{Cache: c.cache, Keeper: c.keeper, Now: metav1.Now, Logger: slog.New(slog.DiscardHandler)}.Run(ctx)
	}()
	schemas := resource.Lookup(flowcontrolv1.GroupName, "flowschemas")
	selection, err := cache.Select(schemas, "", "", "metadata.name=service-accounts")
	if err != nil {
		t.Fatal(err)
	}
	until := func(wanted flowcontrolv1.ConditionStatus) {
		t.Helper()
		watch, err := c.cache.Watch(ctx, []cache.Watched{{Selection: selection}}, cache.WatchOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer watch.Close()
		for {
			batch, err := watch.Next(ctx)
			if err != nil {
				t.Fatalf("the condition does not become %s: %v", wanted, err)
			}
			for _, change := range batch.Changes {
				var schema flowcontrolv1.FlowSchema
				if err := schema.Unmarshal(change.Object.Encoded()); err != nil {
					t.Fatal(err)
				}
				if len(schema.Status.Conditions) == 1 && schema.Status.Conditions[0].Status == wanted {
					return
				}
			}
		}
	}
	until(flowcontrolv1.ConditionFalse)
	if _, err := c.keeper.Registry.Delete(ctx, levels, "", "workload-low", registry.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	until(flowcontrolv1.ConditionTrue)
	c.reconcile()
	until(flowcontrolv1.ConditionFalse)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestDefaultsAllowWhatKubernetesAllows asks the authorizer on the default objects.
func TestDefaultsAllowWhatKubernetesAllows(t *testing.T) {
	c := newCluster(t)
	c.reconcile()
	roles := authorizer.New(authorizer.Config{Policies: authorizer.NewPolicies(c.cache, nil)})
	jane := identity.Identity{Name: "jane"}.Authenticated()
	robot := identity.Identity{Name: identity.ServiceAccount("kube-system", "replicaset-controller"), Groups: []string{identity.ServiceAccounts}}.Authenticated()
	for _, a := range []struct {
		authorizer.Attributes
		allowed bool
	}{
		{authorizer.Attributes{User: jane, Verb: "get", Path: "/apis/apps/v1"}, true},
		{authorizer.Attributes{User: jane, Verb: "get", Path: "/openapi/v3"}, true},
		{authorizer.Attributes{User: jane, Verb: "get", Path: "/metrics"}, false},
		{authorizer.Attributes{User: jane, Verb: "get", Path: "/livez/ping"}, false},
		{authorizer.Attributes{User: jane, Verb: "create", Group: "authorization.k8s.io", Resource: "selfsubjectaccessreviews"}, true},
		{authorizer.Attributes{User: jane, Verb: "create", Group: "authentication.k8s.io", Resource: "selfsubjectreviews"}, true},
		{authorizer.Attributes{User: jane, Verb: "create", Group: "authorization.k8s.io", Resource: "subjectaccessreviews"}, false},
		{authorizer.Attributes{User: jane, Verb: "list", Resource: "pods", Namespace: "default"}, false},
		{authorizer.Attributes{User: identity.Unauthenticated(), Verb: "get", Path: "/version"}, true},
		{authorizer.Attributes{User: identity.Unauthenticated(), Verb: "get", Path: "/api"}, false},
		{authorizer.Attributes{User: identity.Identity{Name: "m", Groups: []string{"system:monitoring"}}, Verb: "get", Path: "/metrics"}, true},
		{authorizer.Attributes{User: robot, Verb: "get", Path: "/openid/v1/jwks"}, true},
		{authorizer.Attributes{User: robot, Verb: "create", Resource: "pods", Namespace: "default"}, true},
		{authorizer.Attributes{User: robot, Verb: "create", Resource: "secrets", Namespace: "default"}, false},
	} {
		decision, err := roles.Decide(t.Context(), a.Attributes)
		if err != nil || decision.Allowed != a.allowed {
			t.Errorf("%s %s %s%s: %+v %v", a.User, a.Verb, a.Path, a.Resource, decision, err)
		}
	}
}

// TestNamesAreUnique: two objects of one name would be written over one another at every start.
func TestNamesAreUnique(t *testing.T) {
	seen := map[string]bool{}
	check := func(kind string, o metav1.Object) {
		key := kind + "/" + o.GetNamespace() + "/" + o.GetName()
		if seen[key] {
			t.Errorf("%s is there twice", key)
		}
		seen[key] = true
	}
	for _, o := range policy.ClusterRoles() {
		check("clusterrole", o)
	}
	for _, o := range policy.ClusterRoleBindings() {
		check("clusterrolebinding", o)
		if !seen["clusterrole//"+o.RoleRef.Name] {
			t.Errorf("%s refers to %s, which there is not", o.Name, o.RoleRef.Name)
		}
	}
	for _, o := range policy.Roles() {
		check("role", o)
	}
	for _, o := range policy.RoleBindings() {
		check("rolebinding", o)
		if !seen["role/"+o.Namespace+"/"+o.RoleRef.Name] {
			t.Errorf("%s refers to %s, which there is not", o.Name, o.RoleRef.Name)
		}
	}
}

// create writes a new object.
func (c *cluster) create(r *resource.Resource, o codec.Object) {
	c.t.Helper()
	data, err := o.Marshal()
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.keeper.Registry.Create(c.ctx, r, registry.Input{Data: data}, registry.WriteOptions{}); err != nil {
		c.t.Fatal(err)
	}
}
