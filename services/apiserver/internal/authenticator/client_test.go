package authenticator_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
	"dhow.dev/services/apiserver/internal/token"
)

// door is the part of the Kubernetes door that tokens need: authentication and four paths. Everyone who is known may do everything.
func door(w *world) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("POST /api/v1/namespaces/{namespace}/serviceaccounts/{name}/token", token.Issue(w.issuer.Request).Handler())
	mux.Handle("POST /apis/authentication.k8s.io/v1/tokenreviews", w.verifier.ReviewHandler())
	mux.Handle("POST /apis/authentication.k8s.io/v1/selfsubjectreviews", w.verifier.SelfHandler())
	mux.Handle("GET "+token.ConfigurationPath, w.issuer.Configuration())
	mux.Handle("GET "+token.JWKSPath, w.issuer.JWKS())
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		info, err := request.Parse(r)
		if err != nil {
			respond.Error(rw, r, err)
			return
		}
		who, ok, err := w.verifier.Authenticate(r)
		if err == nil && !ok {
			err = apierrors.NewUnauthorized("Unauthorized")
		}
		if err != nil {
			respond.Error(rw, r, err)
			return
		}
		ctx := identity.NewContext(request.NewContext(r.Context(), info), who)
		mux.ServeHTTP(rw, r.WithContext(ctx))
	})
}

// authority makes certificates for a test.
type authority struct {
	t   *testing.T
	dir string
	*pki.Authority
}

func newAuthority(t *testing.T) authority {
	t.Helper()
	dir := t.TempDir()
	a, err := pki.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	return authority{t, dir, a}
}

func (a authority) pair(name string, r pki.Request) *pki.KeyPair {
	a.t.Helper()
	pair, err := a.Ensure(pki.FilesIn(a.dir, name), r)
	if err != nil {
		a.t.Fatal(err)
	}
	return pair
}

// TestClientGo asks for tokens, reviews and uses them with Kubernetes' own client, over TLS, in JSON and protobuf.
func TestClientGo(t *testing.T) {
	w, a := newWorld(t, nil), newAuthority(t)
	w.put(builder())
	secret := &corev1.Secret{ObjectMeta: meta("default", "s", "secret-uid")}
	w.put(secret)
	pair := a.pair("apiserver", pki.Request{Identity: identity.Identity{Name: identity.APIServer}, DNSNames: []string{"apiserver.dhow"}, Server: true})
	server := httptest.NewUnstartedServer(pki.VerifyClients(pair, door(w)))
	server.TLS = pki.DoorTLS(pair, "h2", "http/1.1")
	server.StartTLS()
	defer server.Close()
	certificate, key, err := a.Issue(pki.Request{Identity: identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}}, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	connect := func(contentType string, change func(*rest.Config)) *kubernetes.Clientset {
		t.Helper()
		config := &rest.Config{
			Host: server.URL, TLSClientConfig: rest.TLSClientConfig{CAData: a.CertificatePEM(), ServerName: "apiserver.dhow"},
			ContentConfig: rest.ContentConfig{ContentType: contentType, AcceptContentTypes: contentType},
		}
		change(config)
		client, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		return client
	}
	for _, contentType := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		t.Run(contentType, func(t *testing.T) {
			admin := connect(contentType, func(c *rest.Config) { c.CertData, c.KeyData = certificate, key })
			issued, err := admin.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "builder", &authenticationv1.TokenRequest{
				Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Secret", Name: "s"}},
			}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if issued.Kind != "" || issued.Name != "builder" || issued.Status.Token == "" || *issued.Spec.ExpirationSeconds != 3600 {
				t.Errorf("issued %+v", issued)
			}
			if _, err := admin.CoreV1().ServiceAccounts("default").CreateToken(t.Context(), "missing", &authenticationv1.TokenRequest{}, metav1.CreateOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("of a missing account: %v", err)
			}
			review, err := admin.AuthenticationV1().TokenReviews().Create(t.Context(), &authenticationv1.TokenReview{
				Spec: authenticationv1.TokenReviewSpec{Token: issued.Status.Token},
			}, metav1.CreateOptions{})
			if err != nil || !review.Status.Authenticated || review.Status.User.UID != "sa-uid" || len(review.Status.Audiences) != 1 {
				t.Errorf("review %+v, %v", review, err)
			}
			who := func(client *kubernetes.Clientset) (string, error) {
				self, err := client.AuthenticationV1().SelfSubjectReviews().Create(t.Context(), &authenticationv1.SelfSubjectReview{}, metav1.CreateOptions{})
				if err != nil {
					return "", err
				}
				return self.Status.UserInfo.Username, nil
			}
			pod := connect(contentType, func(c *rest.Config) { c.BearerToken = issued.Status.Token })
			if name, err := who(pod); err != nil || name != "system:serviceaccount:default:builder" {
				t.Errorf("with the token: %q, %v", name, err)
			}
			if name, err := who(admin); err != nil || name != identity.Admin {
				t.Errorf("with the certificate: %q, %v", name, err)
			}
			if name, err := who(connect(contentType, func(*rest.Config) {})); !apierrors.IsUnauthorized(err) {
				t.Errorf("with nothing: %q, %v", name, err)
			}
			w.remove(secret)
			if name, err := who(pod); !apierrors.IsUnauthorized(err) {
				t.Errorf("with the token, its Secret gone: %q, %v", name, err)
			}
			w.put(secret)
			if _, err := pod.RESTClient().Get().AbsPath(token.ConfigurationPath).DoRaw(t.Context()); err != nil {
				t.Errorf("configuration: %v", err)
			}
		})
	}
}

// TestGRPC uses a token at the gRPC door, where the same verifier answers.
func TestGRPC(t *testing.T) {
	w, a := newWorld(t, nil), newAuthority(t)
	w.put(builder())
	pair := a.pair("apiserver", pki.Request{Identity: identity.Identity{Name: identity.APIServer}, DNSNames: []string{"apiserver.dhow"}, Server: true})
	listener, err := transport.Listen(t.Context(), "127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan identity.Identity, 8)
	front := transport.NewServer(transport.ServerConfig{
		Credentials: transport.TLSDoor(pair), Tokens: w.verifier.Token,
		Interceptors: []transport.Interceptor{{
			Unary: func(ctx context.Context, request any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
				return handler(ctx, request)
			},
			Stream: func(service any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
				who, _ := identity.FromContext(stream.Context())
				seen <- who
				return handler(service, stream)
			},
		}},
	})
	served := make(chan error, 1)
	go func() { served <- transport.Serve(t.Context(), front, listener) }()
	t.Cleanup(func() {
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(a.CertificatePEM())
	conn, err := transport.Dial(listener.Addr().String(), credentials.NewTLS(&tls.Config{RootCAs: roots, ServerName: "apiserver.dhow"}))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
		t.Errorf("health without credentials: %v", err)
	}
	reflect := func(authorization string) error {
		ctx := metadata.AppendToOutgoingContext(t.Context(), "authorization", authorization)
		stream, err := reflectionpb.NewServerReflectionClient(conn).ServerReflectionInfo(ctx)
		if err != nil {
			return err
		}
		if err := stream.CloseSend(); err != nil {
			return err
		}
		if _, err := stream.Recv(); status.Code(err) != codes.OK && err.Error() != "EOF" {
			return err
		}
		return nil
	}
	if err := reflect("Bearer " + w.issue("")); err != nil {
		t.Fatal(err)
	}
	if who := <-seen; who.Name != "system:serviceaccount:default:builder" || who.UID != "sa-uid" || !slices.Contains(who.Groups, identity.AllAuthenticated) {
		t.Errorf("%+v", who)
	}
	for _, bad := range []string{"Bearer x", "Bearer " + w.issue("", "vault"), ""} {
		if err := reflect(bad); status.Code(err) != codes.Unauthenticated {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
