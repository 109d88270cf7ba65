package authorizer_test

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver"
	"dhow.dev/services/store"
)

const patience = time.Minute

// door is an API server with a Kubernetes door.
type door struct {
	t         *testing.T
	authority *pki.Authority
	dir       string
	address   string
}

func newDoor(t *testing.T) *door {
	t.Helper()
	d := &door{t: t, dir: t.TempDir()}
	var err error
	if d.authority, err = pki.LoadOrCreate(d.dir); err != nil {
		t.Fatal(err)
	}
	server := d.issue("apiserver", pki.Request{Identity: identity.Identity{Name: identity.APIServer}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Server: true, Client: true})
	pair, err := pki.LoadKeyPair(server)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d.address = listener.Addr().String()
	memory := transport.NewMemory()
	storeListener, front := memory.Listen("store"), memory.Listen("apiserver")
	d.run("store", func(ctx context.Context) error {
		return store.Run(ctx, store.Config{Listener: storeListener, Credentials: memory.ServerCredentials(), Memory: true})
	})
	conn, err := memory.Dial("store", identity.Identity{Name: identity.APIServer})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	started := make(chan struct{})
	d.run("apiserver", func(ctx context.Context) error {
		return apiserver.Run(ctx, apiserver.Config{
			Listener: front, Credentials: memory.ServerCredentials(), Store: conn, KeyFile: filepath.Join(d.dir, "keys"), AdvertiseAddress: "apiserver",
			Kubernetes: listener, KubernetesTLS: pair, Started: func() { close(started) },
		})
	})
	select {
	case <-started:
	case <-time.After(patience):
		t.Fatal("the API server has not started")
	}
	return d
}

func (d *door) run(name string, f func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f(ctx) }()
	d.t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			d.t.Errorf("%s: %v", name, err)
		}
	})
}

func (d *door) issue(name string, request pki.Request) pki.Files {
	d.t.Helper()
	files := pki.FilesIn(d.dir, name)
	if _, err := d.authority.Ensure(files, request); err != nil {
		d.t.Fatal(err)
	}
	return files
}

// as is how a user connects.
func (d *door) as(user string, groups ...string) *rest.Config {
	d.t.Helper()
	files := d.issue(user, pki.Request{Identity: identity.Identity{Name: user, Groups: groups}, Client: true})
	return &rest.Config{Host: "https://" + d.address, QPS: -1, TLSClientConfig: rest.TLSClientConfig{
		CAData: d.authority.CertificatePEM(), CertFile: files.Certificate, KeyFile: files.Key,
	}}
}

func (d *door) client(config *rest.Config) *kubernetes.Clientset {
	d.t.Helper()
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		d.t.Fatal(err)
	}
	return c
}

func mayList(t *testing.T, c *kubernetes.Clientset) authorizationv1.SubjectAccessReviewStatus {
	t.Helper()
	review, err := c.AuthorizationV1().SelfSubjectAccessReviews().Create(t.Context(), &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods", Namespace: "default"},
	}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return review.Status
}

// TestRBACOverTheDoor grants and uses with client-go, as users and administrators do.
func TestRBACOverTheDoor(t *testing.T) {
	d := newDoor(t)
	admin, jane := d.client(d.as(identity.Admin, identity.Masters)), d.client(d.as("jane", "devs"))
	ctx := t.Context()

	if _, err := jane.CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) ||
		err.Error() != `pods is forbidden: User "jane" cannot list resource "pods" in API group "" in the namespace "default"` {
		t.Errorf("before: %v", err)
	}
	if status := mayList(t, jane); status.Allowed {
		t.Errorf("before: %+v", status)
	}
	err := jane.RESTClient().Get().AbsPath("/foo").Do(ctx).Error()
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `forbidden: User "jane" cannot get path "/foo"`) {
		t.Errorf("a path that is no resource: %v", err)
	}

	// Each time what is granted counts for the very next request.
	for _, name := range []string{"a", "b", "c"} {
		role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Name: name}, Rules: []rbacv1.PolicyRule{{Verbs: []string{"list"}, APIGroups: []string{""}, Resources: []string{"pods"}}}}
		if _, err := admin.RbacV1().Roles("default").Create(ctx, role, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		binding := &rbacv1.RoleBinding{
			ObjectMeta: metav1.ObjectMeta{Name: name}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: name},
			Subjects: []rbacv1.Subject{{Kind: "Group", APIGroup: rbacv1.GroupName, Name: name}},
		}
		if _, err := admin.RbacV1().RoleBindings("default").Create(ctx, binding, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		member := d.client(d.as("member-of-"+name, name))
		if _, err := member.CoreV1().Pods("default").List(ctx, metav1.ListOptions{}); err != nil {
			t.Errorf("after: %v", err)
		}
		if status := mayList(t, member); !status.Allowed || status.Reason != `RBAC: allowed by RoleBinding "`+name+`/default" of Role "`+name+`" to Group "`+name+`"` {
			t.Errorf("after: %+v", status)
		}
		if _, err := member.CoreV1().Pods("kube-system").List(ctx, metav1.ListOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("another namespace: %v", err)
		}
	}

	rules, err := d.client(d.as("member-of-a", "a")).AuthorizationV1().SelfSubjectRulesReviews().Create(ctx, &authorizationv1.SelfSubjectRulesReview{
		Spec: authorizationv1.SelfSubjectRulesReviewSpec{Namespace: "default"},
	}, metav1.CreateOptions{})
	if err != nil || rules.Status.Incomplete || len(rules.Status.ResourceRules) < 3 || len(rules.Status.NonResourceRules) == 0 {
		t.Errorf("rules: %+v %v", rules, err)
	}
	sar, err := admin.AuthorizationV1().LocalSubjectAccessReviews("default").Create(ctx, &authorizationv1.LocalSubjectAccessReview{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default"},
		Spec: authorizationv1.SubjectAccessReviewSpec{Groups: []string{"b"}, ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: "default", Verb: "list", Resource: "pods",
		}},
	}, metav1.CreateOptions{})
	if err != nil || !sar.Status.Allowed {
		t.Errorf("review of another: %+v %v", sar, err)
	}
	if _, err := jane.AuthorizationV1().SubjectAccessReviews().Create(ctx, &authorizationv1.SubjectAccessReview{
		Spec: authorizationv1.SubjectAccessReviewSpec{User: "x", ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: "list", Resource: "pods"}},
	}, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("reviews of others are not for everyone: %v", err)
	}
}

// TestImpersonationOverTheDoor acts as others: what counts is what they may do.
func TestImpersonationOverTheDoor(t *testing.T) {
	d := newDoor(t)
	as := func(config *rest.Config, who rest.ImpersonationConfig) *kubernetes.Clientset {
		config.Impersonate = who
		return d.client(config)
	}
	admin := func() *rest.Config { return d.as(identity.Admin, identity.Masters) }
	configMap := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "x"}}
	if _, err := as(admin(), rest.ImpersonationConfig{UserName: "joe"}).CoreV1().ConfigMaps("default").Create(t.Context(), configMap, metav1.CreateOptions{}); !apierrors.IsForbidden(err) ||
		!strings.Contains(err.Error(), `User "joe" cannot create`) {
		t.Errorf("as joe: %v", err)
	}
	if _, err := as(admin(), rest.ImpersonationConfig{UserName: "joe", Groups: []string{identity.Masters}}).CoreV1().ConfigMaps("default").Create(t.Context(), configMap, metav1.CreateOptions{}); err != nil {
		t.Errorf("as joe of %s: %v", identity.Masters, err)
	}
	_, err := as(d.as("jane"), rest.ImpersonationConfig{UserName: "joe"}).CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{})
	if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), `users "joe" is forbidden: User "jane" cannot impersonate resource "users" in API group "" at the cluster scope`) {
		t.Errorf("jane as joe: %v", err)
	}
}
