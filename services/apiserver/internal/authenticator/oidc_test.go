package authenticator_test

import (
	"crypto/ecdsa"
	"encoding/json"
	"encoding/pem"
	"flag"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/authenticator"
)

// openID is an OpenID issuer on loopback.
type openID struct {
	t      *testing.T
	server *httptest.Server
	key    *ecdsa.PrivateKey
	// down makes it answer nothing; asked counts questions for its configuration.
	down  atomic.Bool
	asked atomic.Int64
}

func newOpenID(t *testing.T) *openID {
	t.Helper()
	o := &openID{t: t, key: newKey(t)}
	mux := http.NewServeMux()
	answer := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(v); err != nil {
			t.Error(err)
		}
	}
	mux.HandleFunc("GET /.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		o.asked.Add(1)
		if o.down.Load() {
			http.Error(w, "down", http.StatusBadGateway)
			return
		}
		answer(w, map[string]any{"issuer": o.server.URL, "jwks_uri": o.server.URL + "/keys", "id_token_signing_alg_values_supported": []string{"ES256"}})
	})
	mux.HandleFunc("GET /keys", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: o.key.Public(), KeyID: "k", Algorithm: "ES256", Use: "sig"}}})
	})
	o.server = httptest.NewTLSServer(mux)
	t.Cleanup(o.server.Close)
	return o
}

func (o *openID) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.server.Certificate().Raw})
}

func (o *openID) config() authenticator.OIDC {
	return authenticator.OIDC{IssuerURL: o.server.URL, Audiences: []string{"client"}, CA: o.ca(), Algorithms: []string{"ES256"}}
}

// sign returns a token with the claims, and those that every token has. A nil value takes a claim away.
func (o *openID) sign(now time.Time, claims map[string]any) string {
	o.t.Helper()
	all := map[string]any{"iss": o.server.URL, "aud": "client", "sub": "42", "exp": now.Add(time.Minute).Unix(), "iat": now.Unix()}
	maps.Copy(all, claims)
	maps.DeleteFunc(all, func(_ string, v any) bool { return v == nil })
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: o.key, KeyID: "k"}}, nil)
	if err != nil {
		o.t.Fatal(err)
	}
	raw, err := jwt.Signed(signer).Claims(all).Serialize()
	if err != nil {
		o.t.Fatal(err)
	}
	return raw
}

func TestOIDC(t *testing.T) {
	o := newOpenID(t)
	none, prefix := "", "corp:"
	for name, tc := range map[string]struct {
		change func(*authenticator.OIDC)
		claims map[string]any
		who    string
		groups []string
		uid    string
		words  string
	}{
		"subject": {who: o.server.URL + "#42"},
		"prefix":  {change: func(c *authenticator.OIDC) { c.UsernamePrefix = &prefix }, who: "corp:42"},
		"no prefix, groups, uid": {
			change: func(c *authenticator.OIDC) {
				c.UsernameClaim, c.UsernamePrefix, c.GroupsClaim, c.GroupsPrefix, c.UIDClaim = "name", &none, "groups", "oidc:", "uid"
			},
			claims: map[string]any{"name": "jane", "groups": []string{"a", "b"}, "uid": "7", "jti": "id"}, who: "jane", groups: []string{"oidc:a", "oidc:b"}, uid: "7",
		},
		"one group":            {change: func(c *authenticator.OIDC) { c.GroupsClaim = "groups" }, claims: map[string]any{"groups": "a"}, who: o.server.URL + "#42", groups: []string{"a"}},
		"groups of other kind": {change: func(c *authenticator.OIDC) { c.GroupsClaim = "groups" }, claims: map[string]any{"groups": 1}, words: `claim "groups" is neither`},
		"email":                {change: func(c *authenticator.OIDC) { c.UsernameClaim = "email" }, claims: map[string]any{"email": "j@x", "email_verified": true}, who: "j@x"},
		"email not verified":   {change: func(c *authenticator.OIDC) { c.UsernameClaim = "email" }, claims: map[string]any{"email": "j@x", "email_verified": false}, words: "email not verified"},
		"no name":              {change: func(c *authenticator.OIDC) { c.UsernameClaim = "name" }, words: `parse username claims "name": claim not present`},
		"name of other kind":   {claims: map[string]any{"sub": 42}, words: "oidc: "},
		"no uid":               {change: func(c *authenticator.OIDC) { c.UIDClaim = "uid" }, words: `parse uid claim "uid"`},
		"required":             {change: func(c *authenticator.OIDC) { c.RequiredClaims = map[string]string{"hd": "x"} }, claims: map[string]any{"hd": "x"}, who: o.server.URL + "#42"},
		"required is other":    {change: func(c *authenticator.OIDC) { c.RequiredClaims = map[string]string{"hd": "x"} }, claims: map[string]any{"hd": "y"}, words: "required claim hd value does not match"},
		"required is missing":  {change: func(c *authenticator.OIDC) { c.RequiredClaims = map[string]string{"hd": "x"} }, words: "required claim hd not present"},
		"other audience":       {claims: map[string]any{"aud": []string{"x", "y"}}, words: `expected audience in ["client"] got ["x" "y"]`},
		"several audiences":    {claims: map[string]any{"aud": []string{"x", "client"}}, who: o.server.URL + "#42"},
		"over":                 {claims: map[string]any{"exp": time.Now().Add(-time.Hour).Unix()}, words: "token is expired"},
		"without end":          {claims: map[string]any{"exp": nil}, words: "token is expired"},
		"other algorithm":      {change: func(c *authenticator.OIDC) { c.Algorithms = nil }, words: "oidc: verify token"},
	} {
		t.Run(name, func(t *testing.T) {
			config := o.config()
			if tc.change != nil {
				tc.change(&config)
			}
			w := newWorld(t, func(c *authenticator.Config) { c.OIDC = []authenticator.OIDC{config} })
			raw := o.sign(w.now, tc.claims)
			id, audiences, err := w.verifier.AuthenticateToken(t.Context(), raw, nil)
			if tc.words != "" {
				if err == nil || !strings.Contains(err.Error(), tc.words) {
					t.Errorf("%+v, %v; want %q", id, err, tc.words)
				}
				return
			}
			if err != nil || id.Name != tc.who || id.UID != tc.uid || !slices.Equal(id.Groups, append(tc.groups, "system:authenticated")) || !slices.Equal(audiences, w.issuer.Audiences()) {
				t.Fatalf("%+v for %v, %v", id, audiences, err)
			}
			if jti := tc.claims["jti"]; jti != nil && id.Extra[identity.ExtraCredentialID][0] != "JTI=id" {
				t.Errorf("extra %v", id.Extra)
			}
			if _, _, err := w.verifier.AuthenticateToken(t.Context(), raw, []string{"vault"}); err == nil {
				t.Error("taken for another audience")
			}
			w.now = w.now.Add(time.Minute + time.Second)
			if _, _, err := w.verifier.AuthenticateToken(t.Context(), raw, nil); err == nil {
				t.Error("taken after its end")
			}
		})
	}
}

// TestOIDCIssuerIsAway starts while the issuer does not answer.
func TestOIDCIssuerIsAway(t *testing.T) {
	o := newOpenID(t)
	o.down.Store(true)
	w := newWorld(t, func(c *authenticator.Config) { c.OIDC = []authenticator.OIDC{o.config()} })
	w.put(builder())
	raw := o.sign(w.now, nil)
	for range 3 {
		if _, _, err := w.verifier.AuthenticateToken(t.Context(), raw, nil); err == nil || !strings.Contains(err.Error(), "is not initialized") {
			t.Fatalf("%v", err)
		}
	}
	if n := o.asked.Load(); n != 1 {
		t.Errorf("an issuer that is down was asked %d times", n)
	}
	if _, err := w.verifier.Token(t.Context(), w.issue("")); err != nil {
		t.Errorf("the cluster's own tokens: %v", err)
	}
	o.down.Store(false)
	w.now = w.now.Add(10 * time.Second)
	if _, _, err := w.verifier.AuthenticateToken(t.Context(), raw, nil); err != nil {
		t.Errorf("after it came back: %v", err)
	}
	forged := o.sign(w.now, nil)
	o.key = newKey(t)
	if _, _, err := w.verifier.AuthenticateToken(t.Context(), o.sign(w.now, map[string]any{"sub": "admin"})[:20]+forged[20:]+"A", nil); err == nil {
		t.Error("a changed token is taken")
	}
	// The issuer's new key is fetched when a token of it comes.
	if _, _, err := w.verifier.AuthenticateToken(t.Context(), o.sign(w.now, nil), nil); err != nil {
		t.Errorf("after its key changed: %v", err)
	}
}

func TestOIDCIsRefused(t *testing.T) {
	good := authenticator.OIDC{IssuerURL: "https://x", Audiences: []string{"client"}}
	for name, change := range map[string]func(*authenticator.OIDC){
		"http":               func(o *authenticator.OIDC) { o.IssuerURL = "http://x" },
		"query":              func(o *authenticator.OIDC) { o.IssuerURL = "https://x?y" },
		"no audience":        func(o *authenticator.OIDC) { o.Audiences = nil },
		"algorithm":          func(o *authenticator.OIDC) { o.Algorithms = []string{"none"} },
		"CA":                 func(o *authenticator.OIDC) { o.CA = []byte("x") },
		"prefix of nothing":  func(o *authenticator.OIDC) { o.GroupsPrefix = "x" },
		"discovery":          func(o *authenticator.OIDC) { o.DiscoveryURL = "https://x/y" },
		"the cluster's name": func(o *authenticator.OIDC) { o.IssuerURL = "https://kubernetes.default.svc.cluster.local" },
	} {
		w := newWorld(t, nil)
		config := good
		change(&config)
		if _, err := authenticator.New(authenticator.Config{Issuer: w.issuer, Objects: w.cache, Rules: authenticator.Rules{OIDC: []authenticator.OIDC{config}}}); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
	w := newWorld(t, nil)
	if _, err := authenticator.New(authenticator.Config{Issuer: w.issuer, Objects: w.cache, Rules: authenticator.Rules{OIDC: []authenticator.OIDC{good, good}}}); err == nil {
		t.Error("twice the same issuer: taken")
	}
}

func options(t *testing.T, arguments ...string) (*authenticator.Options, error) {
	t.Helper()
	set := flag.NewFlagSet("test", flag.ContinueOnError)
	set.SetOutput(io.Discard)
	o := &authenticator.Options{}
	o.Flags(set)
	if err := set.Parse(arguments); err != nil {
		return nil, err
	}
	return o, o.Complete()
}

func TestFlags(t *testing.T) {
	w, o := newWorld(t, nil), newOpenID(t)
	dir := t.TempDir()
	ca, keys := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "keys.pem")
	if err := os.WriteFile(ca, o.ca(), 0o600); err != nil {
		t.Fatal(err)
	}
	chosen, err := options(t, "--oidc-issuer-url", o.server.URL, "--oidc-client-id", "client", "--oidc-ca-file", ca, "--oidc-username-claim=email", "--oidc-username-prefix=-",
		"--oidc-groups-claim=groups", "--oidc-groups-prefix=g:", "--oidc-required-claim=hd=x", "--oidc-required-claim=k=v=w", "--oidc-signing-algs=RS256,ES256",
		"--service-account-issuer=https://a", "--service-account-issuer=https://b", "--api-audiences=api,https://b", "--service-account-jwks-uri=https://keys/x",
		"--service-account-signing-key-file", keys, "--anonymous-auth=false")
	if err != nil {
		t.Fatal(err)
	}
	issuer, verifier, err := chosen.Build(w.cache, filepath.Join(dir, "unused"), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(keys); err != nil || !slices.Equal(issuer.Audiences(), []string{"api", "https://b"}) || !issuer.Issued("https://a") || !issuer.Issued("https://b") {
		t.Errorf("audiences %v, %v", issuer.Audiences(), err)
	}
	raw := o.sign(time.Now(), map[string]any{"email": "j@x", "groups": "a", "hd": "x", "k": "v=w"})
	if id, err := verifier.Token(t.Context(), raw); err != nil || id.Name != "j@x" || id.Groups[0] != "g:a" {
		t.Errorf("%+v, %v", id, err)
	}
	if _, ok, _ := verifier.Authenticate(ask("/healthz", "")); ok {
		t.Error("anonymous is allowed")
	}
	for _, bad := range [][]string{
		{"--oidc-client-id=x"}, {"--oidc-required-claim=x"}, {"--anonymous-auth=perhaps"}, {"--api-audiences=a,,b"}, {"--oidc-issuer-url=https://x", "--oidc-ca-file=/no/such/file"},
		{"--authentication-config=/no/such/file"}, {"--authentication-config=x", "--anonymous-auth=true"},
	} {
		if _, err := options(t, bad...); err == nil {
			t.Errorf("%v: taken", bad)
		}
	}
	// Without flags everything has a default.
	plain, err := options(t)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := plain.Build(w.cache, filepath.Join(dir, "made"), nil, nil); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "made")); err != nil {
		t.Error(err)
	}
}
