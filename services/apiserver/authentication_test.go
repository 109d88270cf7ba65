package apiserver_test

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	authenticationv1 "k8s.io/api/authentication/v1"
	kcorev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	authnv1 "dhow.dev/gen/go/dhow/authentication/v1"
	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver"
)

// doors is an API server with both doors on loopback.
type doors struct {
	t         *testing.T
	authority *pki.Authority
	// pair and files are an administrator's.
	pair  *pki.KeyPair
	files pki.Files
	// kubernetes and grpc are the doors' addresses.
	kubernetes, grpc string
	admin            *kubernetes.Clientset
}

const doorName = "apiserver.dhow"

func newDoors(t *testing.T) *doors {
	t.Helper()
	return newDoorsWith(t, nil)
}

// newDoorsWith is newDoors with a changed configuration of the API server.
func newDoorsWith(t *testing.T, change func(*apiserver.Config)) *doors {
	t.Helper()
	dir := t.TempDir()
	authority, err := pki.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Ensure(pki.FilesIn(dir, "apiserver"), pki.Request{
		Identity: identity.Identity{Name: identity.APIServer}, DNSNames: []string{doorName}, Server: true, Client: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	listen := func() net.Listener {
		l, err := transport.Listen(t.Context(), "127.0.0.1:0", slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	d := &doors{t: t, authority: authority}
	newClusterWith(t, func(c *apiserver.Config) {
		c.Listener.Close()
		c.Listener, c.Credentials = listen(), transport.TLSDoor(pair)
		c.Kubernetes, c.KubernetesTLS = listen(), pair
		d.grpc, d.kubernetes = c.Listener.Addr().String(), c.Kubernetes.Addr().String()
		if change != nil {
			change(c)
		}
	})
	files := pki.FilesIn(dir, "admin")
	d.files = files
	if d.pair, err = authority.Ensure(files, pki.Request{Identity: identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}}, Client: true}); err != nil {
		t.Fatal(err)
	}
	d.admin = d.connect(func(c *rest.Config) { c.CertFile, c.KeyFile = files.Certificate, files.Key })
	return d
}

// connect makes a client of the Kubernetes door.
func (d *doors) connect(credentials func(*rest.Config)) *kubernetes.Clientset {
	d.t.Helper()
	config := &rest.Config{
		Host: "https://" + d.kubernetes, TLSClientConfig: rest.TLSClientConfig{CAData: d.authority.CertificatePEM(), ServerName: doorName},
		ContentConfig: rest.ContentConfig{ContentType: runtime.ContentTypeProtobuf},
	}
	credentials(config)
	c, err := kubernetes.NewForConfig(config)
	if err != nil {
		d.t.Fatal(err)
	}
	return c
}

// TestTokensAtBothDoors takes a token from one door and shows it at both.
func TestTokensAtBothDoors(t *testing.T) {
	d := newDoors(t)
	ctx := within(t)
	accounts := d.admin.CoreV1().ServiceAccounts(kmetav1.NamespaceDefault)
	if _, err := accounts.Create(ctx, &kcorev1.ServiceAccount{ObjectMeta: kmetav1.ObjectMeta{Name: "builder"}}, kmetav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	issued, err := accounts.CreateToken(ctx, "builder", &authenticationv1.TokenRequest{}, kmetav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	token := issued.Status.Token

	pod := d.connect(func(c *rest.Config) { c.BearerToken = token })
	self, err := pod.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, kmetav1.CreateOptions{})
	if err != nil || self.Status.UserInfo.Username != identity.ServiceAccount("default", "builder") || self.Status.UserInfo.UID == "" {
		t.Fatalf("who am I: %+v, %v", self, err)
	}
	if _, err := pod.CoreV1().Pods("default").List(ctx, kmetav1.ListOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("pods without a role: %v", err)
	}
	for _, path := range []string{"/.well-known/openid-configuration", "/openid/v1/jwks"} {
		if _, err := pod.RESTClient().Get().AbsPath(path).DoRaw(ctx); err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	review, err := d.admin.AuthenticationV1().TokenReviews().Create(ctx, &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: token}}, kmetav1.CreateOptions{})
	if err != nil || !review.Status.Authenticated {
		t.Errorf("review: %+v, %v", review, err)
	}
	nobody := d.connect(func(*rest.Config) {})
	if _, err := nobody.RESTClient().Get().AbsPath("/livez").DoRaw(ctx); err != nil {
		t.Errorf("health without credentials: %v", err)
	}
	if _, err := nobody.CoreV1().Pods("default").List(ctx, kmetav1.ListOptions{}); !apierrors.IsUnauthorized(err) || err.Error() != "Unauthorized" {
		t.Errorf("pods without credentials: %v", err)
	}

	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(d.authority.CertificatePEM())
	conn, err := transport.Dial(d.grpc, credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: doorName}), grpc.WithPerRPCCredentials(transport.TokenFile(file)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := clusterv1.NewClusterClient(conn).Status(ctx, &clusterv1.StatusRequest{}); err != nil {
		t.Errorf("what everyone may who is known: %v", err)
	}
	if _, err := client.For[*corev1.Pod](conn).Get(ctx, "default", "p"); !apierrors.IsForbidden(err) {
		t.Errorf("pods without a role: %v", err)
	}

	// The kinds of authentication.k8s.io are the same at the gRPC door.
	root, err := transport.Dial(d.grpc, transport.TLSClient(d.pair, doorName))
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	requested, err := client.For[*authnv1.TokenRequest](root).Create(ctx, authnv1.TokenRequest_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String("builder")}.Build(),
		Spec:     authnv1.TokenRequestSpec_builder{Audiences: []string{"vault"}}.Build(),
	}.Build(), nil)
	if err != nil {
		t.Fatal(err)
	}
	short, err := corev1.NewServiceAccountsClient(root).Token(ctx, corev1.ServiceAccountTokenRequest_builder{Namespace: "default", Name: "builder", Audiences: []string{"vault"}}.Build())
	if err != nil {
		t.Fatal(err)
	}
	for _, raw := range []string{requested.GetStatus().GetToken(), short.GetToken()} {
		reviewed, err := client.For[*authnv1.TokenReview](root).Create(ctx, authnv1.TokenReview_builder{
			Spec: authnv1.TokenReviewSpec_builder{Token: proto.String(raw), Audiences: []string{"vault"}}.Build(),
		}.Build(), nil)
		if err != nil || !reviewed.GetStatus().GetAuthenticated() || reviewed.GetStatus().GetAudiences()[0] != "vault" {
			t.Errorf("review: %v, %v", reviewed, err)
		}
	}
	me, err := client.For[*authnv1.SelfSubjectReview](conn).Create(ctx, &authnv1.SelfSubjectReview{}, nil)
	if err != nil || me.GetStatus().GetUserInfo().GetUsername() != identity.ServiceAccount("default", "builder") {
		t.Errorf("who am I: %v, %v", me, err)
	}

	// The Secret of a token says when it was used last.
	secrets := d.admin.CoreV1().Secrets("default")
	kept, err := secrets.Create(ctx, &kcorev1.Secret{
		ObjectMeta: kmetav1.ObjectMeta{Name: "kept", Annotations: map[string]string{kcorev1.ServiceAccountNameKey: "builder"}}, Type: kcorev1.SecretTypeServiceAccountToken,
	}, kmetav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	inSecret, err := accounts.CreateToken(ctx, "builder", &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Secret", Name: kept.Name, UID: kept.UID},
	}}, kmetav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	old := d.connect(func(c *rest.Config) { c.BearerToken = inSecret.Status.Token })
	if _, err := old.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, kmetav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if kept, err = secrets.Get(ctx, kept.Name, kmetav1.GetOptions{}); err != nil || kept.Labels["kubernetes.io/legacy-token-last-used"] == "" {
		t.Errorf("%v %v", kept.Labels, err)
	}

	// Deleting the account ends its tokens at both doors.
	if err := accounts.Delete(ctx, "builder", kmetav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := d.admin.CoreV1().ServiceAccounts("default").List(ctx, kmetav1.ListOptions{}); err != nil {
		t.Fatal(err) // the cache has caught up
	}
	if _, err := pod.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authenticationv1.SelfSubjectReview{}, kmetav1.CreateOptions{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("after its account went: %v", err)
	}
	if _, err := clusterv1.NewClusterClient(conn).Status(ctx, &clusterv1.StatusRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("after its account went: %v", err)
	}
}
