package clusterrole

import (
	"context"
	"log/slog"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	rbacv1 "dhow.dev/gen/go/dhow/rbac/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver"
	"dhow.dev/services/store"
)

// patience bounds waits for conditions; nothing measures it.
const patience = time.Minute

func rule(resource string) *rbacv1.PolicyRule {
	return rbacv1.PolicyRule_builder{Verbs: []string{"get"}, ApiGroups: []string{""}, Resources: []string{resource}}.Build()
}

func role(name string, labels map[string]string, selects map[string]string, rules ...*rbacv1.PolicyRule) *rbacv1.ClusterRole {
	r := rbacv1.ClusterRole_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String(name), Labels: labels}.Build(), Rules: rules}.Build()
	if selects != nil {
		r.SetAggregationRule(rbacv1.AggregationRule_builder{ClusterRoleSelectors: []*metav1.LabelSelector{
			metav1.LabelSelector_builder{MatchLabels: selects}.Build(),
		}}.Build())
	}
	return r
}

func resources(rules []*rbacv1.PolicyRule) (all []string) {
	for _, r := range rules {
		all = append(all, r.GetResources()...)
	}
	return all
}

func TestAggregate(t *testing.T) {
	x, y := map[string]string{"x": "1"}, map[string]string{"y": "1"}
	whole := role("whole", x, x, rule("own"))
	whole.GetAggregationRule().SetClusterRoleSelectors(append(whole.GetAggregationRule().GetClusterRoleSelectors(), metav1.LabelSelector_builder{MatchLabels: y}.Build()))
	got, err := aggregate(whole, []*rbacv1.ClusterRole{
		whole, role("c", y, nil, rule("four"), rule("one")), role("b", x, nil, rule("three"), rule("one")), role("a", x, nil, rule("one"), rule("two")), role("d", nil, nil, rule("no")),
	})
	if err != nil || !slices.Equal(resources(got), []string{"one", "two", "three", "four"}) {
		t.Errorf("%v %v", resources(got), err)
	}
	// Nothing is selected: nothing is allowed.
	if got, err := aggregate(role("empty", nil, map[string]string{"z": "1"}, rule("old")), nil); err != nil || len(got) != 0 {
		t.Errorf("%v %v", got, err)
	}
}

// TestRolesAreFilled runs the controller, with its own identity, against an API server that has the default roles.
func TestRolesAreFilled(t *testing.T) {
	memory := transport.NewMemory()
	run := func(name string, f func(context.Context) error) {
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan error, 1)
		go func() { ended <- f(ctx) }()
		t.Cleanup(func() {
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("%s: %v", name, err)
			}
		})
	}
	dial := func(name string, who identity.Identity) *grpc.ClientConn {
		conn, err := memory.Dial(name, who)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	storeListener, listener := memory.Listen("store"), memory.Listen("apiserver")
	run("store", func(ctx context.Context) error {
		return store.Run(ctx, store.Config{Listener: storeListener, Credentials: memory.ServerCredentials(), Memory: true})
	})
	started := make(chan struct{})
	storeConn, keys := dial("store", identity.Identity{Name: identity.APIServer}), filepath.Join(t.TempDir(), "keys")
	run("apiserver", func(ctx context.Context) error {
		return apiserver.Run(ctx, apiserver.Config{
			Listener: listener, Credentials: memory.ServerCredentials(), Store: storeConn, KeyFile: keys, AdvertiseAddress: "apiserver", Started: func() { close(started) },
		})
	})
	select {
	case <-started:
	case <-time.After(patience):
		t.Fatal("the API server has not started")
	}
	controller := New(Config{Conn: dial("apiserver", identity.Identity{Name: identity.ControllerManager}), Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Workers: 2})
	run("controller", controller.Run)

	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	roles := client.For[*rbacv1.ClusterRole](dial("apiserver", identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}}))
	// Whatever was there before, the watch begins with the state: no change is missed.
	until := func(name string, done func(*rbacv1.ClusterRole) bool) {
		t.Helper()
		watching, stop := context.WithCancel(ctx)
		defer stop()
		watch, err := roles.Watch(watching, metav1.WatchRequest_builder{FieldSelector: "metadata.name=" + name}.Build())
		if err != nil {
			t.Fatal(err)
		}
		for {
			batch, err := watch.Next()
			if err != nil {
				t.Fatalf("%s does not come to what is awaited: %v", name, err)
			}
			for _, change := range batch.Changes {
				if done(change.Object) {
					return
				}
			}
		}
	}
	has := func(resource string) func(*rbacv1.ClusterRole) bool {
		return func(r *rbacv1.ClusterRole) bool { return slices.Contains(resources(r.GetRules()), resource) }
	}
	aggregateToView := map[string]string{"rbac.authorization.k8s.io/aggregate-to-view": "true"}
	mine := role("mine", aggregateToView, nil, rule("crontabs"))
	if _, err := roles.Create(ctx, mine, nil); err != nil {
		t.Fatal(err)
	}
	// From a part through view and edit into admin.
	until("view", has("crontabs"))
	until("edit", has("crontabs"))
	until("admin", has("crontabs"))
	until("admin", has("rolebindings"))
	if _, err := roles.Delete(ctx, "", "mine", nil); err != nil {
		t.Fatal(err)
	}
	until("admin", func(r *rbacv1.ClusterRole) bool { return !has("crontabs")(r) && has("rolebindings")(r) })
}
