package apiserver_test

import (
	"net/http"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	coordinationv1 "dhow.dev/gen/go/dhow/coordination/v1"
	dhowcorev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
)

// TestUpdateCreates: of a few kinds, an update creates what is not there, at both doors; of the others, and of what the caller means to have read, it does not.
func TestUpdateCreates(t *testing.T) {
	k := newKubernetesCluster(t)
	web, err := rest.HTTPClientFor(k.root)
	if err != nil {
		t.Fatal(err)
	}
	const leases, endpoints = "/apis/coordination.k8s.io/v1/namespaces/default/leases/", "/api/v1/namespaces/default/endpoints/"
	for _, x := range []exchange{
		{method: "PUT", path: leases + "a?dryRun=All", body: `{"metadata":{"name":"a"}}`, code: 201},
		{method: "GET", path: leases + "a", code: 404},
		{method: "PUT", path: leases + "a", body: `{"metadata":{"name":"a"},"spec":{"holderIdentity":"x"}}`, code: 201, contains: []string{`"holderIdentity":"x"`, `"uid":"`}},
		{method: "PUT", path: leases + "a", body: `{"metadata":{"name":"a"},"spec":{"holderIdentity":"y"}}`, code: 200, contains: []string{`"holderIdentity":"y"`}},
		{method: "PUT", path: leases + "b", body: `{"metadata":{"name":"b","uid":"u"}}`, code: 409, reason: "Conflict", contains: []string{"Precondition failed: UID in precondition: u"}},
		{method: "PUT", path: leases + "b", body: `{"metadata":{"name":"b","resourceVersion":"5"}}`, code: 409, reason: "Conflict"},
		{method: "PUT", path: endpoints + "a", body: `{"subsets":[{"addresses":[{"ip":"not one"}]}]}`, code: 422, reason: "Invalid"},
		{method: "PUT", path: endpoints + "a", body: `{}`, code: 201},
		{method: "PUT", path: "/api/v1/namespaces/default/limitranges/a", body: `{"spec":{"limits":[]}}`, code: 201},
		{method: "PUT", path: "/api/v1/namespaces/default/services/a", body: `{"spec":{"ports":[{"port":80}]}}`, code: 201, contains: []string{`"clusterIP":"10.96.`}},
		{method: "PUT", path: "/api/v1/namespaces/default/services/b/status", body: `{"spec":{"ports":[{"port":80}]}}`, code: 404, reason: "NotFound"},
		{method: "PUT", path: "/apis/rbac.authorization.k8s.io/v1/clusterroles/a", body: `{}`, code: 201},
		{method: "PUT", path: "/apis/node.k8s.io/v1/runtimeclasses/a", body: `{"handler":"x"}`, code: 201},
		{
			method: "PUT", path: "/apis/events.k8s.io/v1/namespaces/default/events/a",
			body: `{"eventTime":"2026-01-01T00:00:00.000000Z","reportingController":"c.io/d","reportingInstance":"i","action":"b","reason":"r","type":"Normal","regarding":{"namespace":"default"}}`,
			code: 201, contains: []string{`"apiVersion":"events.k8s.io/v1"`},
		},
		{method: "PUT", path: "/api/v1/namespaces/absent/endpoints/a", body: `{}`, code: 404, reason: "NotFound", contains: []string{`namespaces \"absent\" not found`}},
		{method: "PUT", path: "/api/v1/namespaces/default/configmaps/a", body: `{}`, code: 404, reason: "NotFound"},
		{method: "PUT", path: "/api/v1/namespaces/default/secrets/a", body: `{}`, code: 404, reason: "NotFound"},
		{method: "PUT", path: "/api/v1/nodes/a", body: `{}`, code: 404, reason: "NotFound"},
	} {
		x.run(t, web, k.root.Host)
	}

	leasesByGRPC := client.For[*coordinationv1.Lease](k.admin())
	lease, err := leasesByGRPC.Update(within(t), coordinationv1.Lease_builder{Metadata: named("grpc", nil)}.Build(), nil)
	if err != nil || lease.GetMetadata().GetUid() == "" {
		t.Errorf("a lease by gRPC: %v, %v", lease, err)
	}
	if _, err := client.For[*dhowcorev1.ConfigMap](k.admin()).Update(within(t), dhowcorev1.ConfigMap_builder{Metadata: named("grpc", nil), Data: map[string]string{"x": "y"}}.Build(), nil); !apierrors.IsNotFound(err) {
		t.Errorf("a config map by gRPC: %v", err)
	}
}

// TestUpdateNeedsTheRightToCreate holds who updates or applies what is not there to the right to create it, at both doors.
func TestUpdateNeedsTheRightToCreate(t *testing.T) {
	k := newKubernetesCluster(t)
	admin := clientset(t, k.root)
	role := &rbacv1.Role{
		ObjectMeta: kmetav1.ObjectMeta{Name: "updaters", Namespace: "default"},
		Rules:      []rbacv1.PolicyRule{{APIGroups: []string{"", "coordination.k8s.io"}, Resources: []string{"leases", "configmaps"}, Verbs: []string{"get", "update", "patch"}}},
	}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: kmetav1.ObjectMeta{Name: "updaters", Namespace: "default"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "updaters"},
		Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: "upd"}},
	}
	if _, err := admin.RbacV1().Roles("default").Create(within(t), role, kmetav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.RbacV1().RoleBindings("default").Create(within(t), binding, kmetav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.CoreV1().ConfigMaps("default").Create(within(t), &corev1.ConfigMap{ObjectMeta: kmetav1.ObjectMeta{Name: "there"}}, kmetav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	k.issue(t, "upd", pki.Request{Identity: identity.Identity{Name: "upd"}, Client: true})
	web, err := rest.HTTPClientFor(k.as("upd", strings.TrimPrefix(k.root.Host, "https://")))
	if err != nil {
		t.Fatal(err)
	}
	const maps, apply = "/api/v1/namespaces/default/configmaps/", "application/apply-patch+yaml"
	k.granted(t, web, maps+"there")
	for _, x := range []exchange{
		{method: "PUT", path: "/apis/coordination.k8s.io/v1/namespaces/default/leases/a", body: `{}`, code: 403, reason: "Forbidden", contains: []string{`cannot create resource \"leases\"`}},
		{method: "PATCH", path: maps + "new?fieldManager=m", header: map[string]string{"Content-Type": apply}, body: `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"new"}}`, code: 403, reason: "Forbidden", contains: []string{`cannot create resource \"configmaps\"`}},
		{method: "PATCH", path: maps + "there?fieldManager=m", header: map[string]string{"Content-Type": apply}, body: `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"there"},"data":{"a":"b"}}`, code: 200},
	} {
		x.run(t, web, k.root.Host)
	}
	conn := k.dial("apiserver", identity.Identity{Name: "upd"})
	if _, err := client.For[*coordinationv1.Lease](conn).Update(within(t), coordinationv1.Lease_builder{Metadata: named("a", nil)}.Build(), nil); !apierrors.IsForbidden(err) {
		t.Errorf("a lease by gRPC: %v", err)
	}
	there := dhowcorev1.ConfigMap_builder{Metadata: named("there", nil), Immutable: proto.Bool(false)}.Build()
	if _, err := client.For[*dhowcorev1.ConfigMap](conn).Update(within(t), there, nil); err != nil {
		t.Errorf("a config map that is there, by gRPC: %v", err)
	}
}

// granted waits until the authorizer has seen the roles that allow a get.
func (k *kubernetesCluster) granted(t *testing.T, web *http.Client, path string) {
	t.Helper()
	for {
		r, err := http.NewRequestWithContext(within(t), http.MethodGet, k.root.Host+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		w, err := web.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		w.Body.Close()
		if w.StatusCode != http.StatusForbidden {
			return
		}
	}
}
