package token_test

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/token"
)

// nothing is a cluster without objects.
type nothing struct{}

func (nothing) Peek(*resource.Resource, string, string) *cache.Entry { return nil }
func (nothing) Consistent(context.Context) (int64, error)            { return 1, nil }

func TestKeyFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state", "token-keys.pem")
	if _, err := token.Load(file); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("without a file: %v", err)
	}
	// Servers that start at the same time share one key: what one signs, all verify.
	all := make([]*token.Keys, 4)
	var group sync.WaitGroup
	for n := range all {
		group.Go(func() {
			var err error
			if all[n], err = token.LoadOrCreate(file); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if t.Failed() {
		t.FailNow()
	}
	w, clock := newWorld(t), newClock()
	w.put(account("builder", "sa-uid"))
	first := issuer(t, w.cache, clock, func(c *token.Config) { c.Keys = all[0] })
	raw := request(t, first, &authenticationv1.TokenRequest{})
	for n, keys := range all {
		other := issuer(t, w.cache, clock, func(c *token.Config) { c.Keys = keys })
		if _, _, err := verify(t, other, raw); err != nil {
			t.Errorf("server %d: %v", n, err)
		}
	}
	if err := os.Chmod(file, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := token.LoadOrCreate(file); err == nil || !strings.Contains(err.Error(), "chmod 600") {
		t.Errorf("a file that others can read: %v", err)
	}
}

// TestRotation follows the steps that the key file's header gives.
func TestRotation(t *testing.T) {
	w, clock := newWorld(t), newClock()
	w.put(account("builder", "sa-uid"))
	file := filepath.Join(t.TempDir(), "keys")
	load := func(blocks ...*pem.Block) *token.Issuer {
		text := "words before\n"
		for _, b := range blocks {
			text += string(pem.EncodeToMemory(b)) + "words between\n"
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		keys, err := token.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		return issuer(t, w.cache, clock, func(c *token.Config) { c.Keys = keys })
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ec := ecKey(t)
	ecDER, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	publicDER, err := x509.MarshalPKIXPublicKey(rsaKey.Public())
	if err != nil {
		t.Fatal(err)
	}
	old := &pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(rsaKey)}
	fresh := &pem.Block{Type: "EC PRIVATE KEY", Bytes: ecDER}
	public := &pem.Block{Type: "PUBLIC KEY", Bytes: publicDER}

	before, during, after, done := load(old), load(old, fresh), load(fresh, public), load(fresh)
	oldToken := request(t, before, &authenticationv1.TokenRequest{})
	newToken := request(t, after, &authenticationv1.TokenRequest{})
	for name, tc := range map[string]struct {
		issuer   *token.Issuer
		old, new bool
	}{"before": {before, true, false}, "during": {during, true, true}, "after": {after, true, true}, "done": {done, false, true}} {
		_, _, oldErr := verify(t, tc.issuer, oldToken)
		_, _, newErr := verify(t, tc.issuer, newToken)
		if (oldErr == nil) != tc.old || (newErr == nil) != tc.new {
			t.Errorf("%s: old token %v, new token %v", name, oldErr, newErr)
		}
	}

	// Others find all keys, and can verify what either signed.
	set := fetch[jose.JSONWebKeySet](t, after.JWKS(), "application/jwk-set+json")
	if len(set.Keys) != 2 {
		t.Fatalf("%d public keys", len(set.Keys))
	}
	for _, raw := range []string{oldToken, newToken} {
		parsed, err := jwt.ParseSigned(raw, []jose.SignatureAlgorithm{jose.RS256, jose.ES256})
		if err != nil {
			t.Fatal(err)
		}
		key := set.Key(parsed.Headers[0].KeyID)
		if len(key) != 1 || !key[0].IsPublic() || key[0].Use != "sig" || parsed.Claims(key[0], &jwt.Claims{}) != nil {
			t.Errorf("key %q of the set: %v", parsed.Headers[0].KeyID, key)
		}
	}
	configuration := fetch[map[string]any](t, after.Configuration(), "application/json")
	want := `{"id_token_signing_alg_values_supported":["ES256","RS256"],"issuer":"https://kubernetes.default.svc.cluster.local",` +
		`"jwks_uri":"https://kubernetes.default.svc.cluster.local/openid/v1/jwks","response_types_supported":["id_token"],"subject_types_supported":["public"]}`
	if got := mustJSON(t, configuration); got != want {
		t.Errorf("configuration %s", got)
	}
}

func fetch[T any](t *testing.T, handler http.Handler, contentType string) T {
	t.Helper()
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/", nil))
	body, err := io.ReadAll(w.Result().Body)
	if err != nil {
		t.Fatal(err)
	}
	var out T
	if err := json.Unmarshal(body, &out); err != nil || w.Code != http.StatusOK || w.Header().Get("Content-Type") != contentType {
		t.Fatalf("%d %s %s: %v", w.Code, w.Header().Get("Content-Type"), body, err)
	}
	refused := httptest.NewRecorder()
	if handler.ServeHTTP(refused, httptest.NewRequest(http.MethodPost, "/", nil)); refused.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", refused.Code)
	}
	return out
}

func TestBadKeys(t *testing.T) {
	small, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for name, keys := range map[string][]any{"none": {}, "public only": {ecKey(t).Public()}, "small": {small}, "no key": {"x"}} {
		if _, err := token.NewKeys(keys...); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	file := filepath.Join(t.TempDir(), "keys")
	for _, text := range []string{"", "no PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := token.Load(file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
