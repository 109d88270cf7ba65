package transport

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/rawcodec"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// startDoor serves with tokens: `good` is a service account's, `broken` one that cannot be looked up.
func startDoor(t *testing.T) (s *server, roots *tls.Config) {
	t.Helper()
	dir := t.TempDir()
	authority, err := pki.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Ensure(pki.FilesIn(dir, "probe"), pki.Request{Identity: identity.Identity{Name: "probe"}, DNSNames: []string{"probe.dhow"}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := Listen(t.Context(), "127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	s = startWith(t, TLSDoor(pair), listener, func(_ context.Context, token string) (identity.Identity, error) {
		switch token {
		case "good":
			return identity.Identity{Name: identity.ServiceAccount("default", "builder"), UID: "u", Groups: []string{identity.ServiceAccounts}}, nil
		case "broken":
			return identity.Identity{}, errors.New("secret reason")
		case "nobody":
			return identity.Identity{}, nil
		}
		return identity.Identity{}, apierrors.NewUnauthorized("Unauthorized")
	})
	s.dial = func(id identity.Identity) (*grpc.ClientConn, error) {
		client, err := authority.Ensure(pki.FilesIn(filepath.Join(dir, "clients"), id.Name), pki.Request{Identity: id, Client: true})
		if err != nil {
			return nil, err
		}
		return Dial(listener.Addr().String(), TLSClient(client, "probe.dhow"))
	}
	s.address = listener.Addr().String()
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(authority.CertificatePEM())
	return s, &tls.Config{RootCAs: pool, ServerName: "probe.dhow"}
}

func TestTokens(t *testing.T) {
	s, roots := startDoor(t)
	conn, err := Dial(s.address, credentials.NewTLS(roots))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	call := func(conn *grpc.ClientConn, values ...string) (string, error) {
		ctx := t.Context()
		for _, value := range values {
			ctx = metadata.AppendToOutgoingContext(ctx, "authorization", value)
		}
		var reply rawcodec.Frame
		err := conn.Invoke(ctx, "/test.Probe/Echo", rawcodec.New(), &reply)
		return string(reply.Clone()), err
	}
	const account = "system:serviceaccount:default:builder|system:serviceaccounts,system:authenticated|"
	for _, value := range []string{"Bearer good", "bearer  good "} {
		if got, err := call(conn, value); err != nil || got != account {
			t.Errorf("%q: %q, %v", value, got, err)
		}
	}
	for value, want := range map[string]codes.Code{
		"": codes.Unauthenticated, "Bearer": codes.Unauthenticated, "Bearer ": codes.Unauthenticated, "Basic good": codes.Unauthenticated,
		"Bearer good good": codes.Unauthenticated, "Bearer bad": codes.Unauthenticated, "Bearer nobody": codes.Unauthenticated, "Bearer broken": codes.Internal,
	} {
		if got, err := call(conn, value); status.Code(err) != want || strings.Contains(status.Convert(err).Message(), "secret") {
			t.Errorf("%q: %q, %v; want %s", value, got, err, want)
		}
	}
	if _, err := call(conn); status.Code(err) != codes.Unauthenticated {
		t.Errorf("no credentials: %v", err)
	}
	if _, err := call(conn, "Bearer good", "Bearer good"); status.Code(err) != codes.Unauthenticated {
		t.Errorf("two tokens: %v", err)
	}
	if reply, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil || reply.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("health without credentials: %v, %v", reply, err)
	}
	// A certificate says who calls, whatever token comes with it.
	own := s.connect(t, identity.Node("n1"))
	if got, err := call(own, "Bearer good"); err != nil || !strings.HasPrefix(got, "system:node:n1|system:nodes,system:authenticated|") {
		t.Errorf("certificate and token: %q, %v", got, err)
	}
}

func TestTokenFile(t *testing.T) {
	s, roots := startDoor(t)
	file := filepath.Join(t.TempDir(), "token")
	conn, err := Dial(s.address, credentials.NewTLS(roots), grpc.WithPerRPCCredentials(TokenFile(file)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for _, step := range []struct{ content, want string }{{"good\n", "system:serviceaccount:default:builder|"}, {"bad", ""}} {
		if err := os.WriteFile(file, []byte(step.content), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := echo(t, conn, ""); (err == nil) != (step.want != "") || !strings.HasPrefix(got, step.want) {
			t.Errorf("%q: %q, %v", step.content, got, err)
		}
	}
}

func FuzzBearerToken(f *testing.F) {
	for _, seed := range []string{"Bearer x", "bearer x.y.z", "Bearer", " Bearer  x ", "Bearer x y", "Basic eA==", "Bearer\tx", ""} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, header string) {
		token, ok := BearerToken(header)
		if !ok {
			return
		}
		if token == "" || strings.ContainsAny(token, " \t") || !strings.Contains(header, token) {
			t.Fatalf("%q: token %q", header, token)
		}
		if again, ok := BearerToken("Bearer " + token); !ok || again != token {
			t.Fatalf("%q: token %q is not read back", header, token)
		}
	})
}
