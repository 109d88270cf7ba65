package authenticator_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authenticator"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/token"
)

// issue returns a token of the account builder, bound to a Secret unless its name is empty.
func (w *world) issue(secret string, audiences ...string) string {
	w.t.Helper()
	r := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: audiences}}
	if secret != "" {
		r.Spec.BoundObjectRef = &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Secret", Name: secret}
	}
	answer, err := w.issuer.Request(w.t.Context(), "default", "builder", r)
	if err != nil {
		w.t.Fatal(err)
	}
	return answer.Status.Token
}

func ask(path, authorization string) *http.Request {
	r := httptest.NewRequest(http.MethodGet, path, nil)
	if authorization != "" {
		r.Header.Set("Authorization", authorization)
	}
	return r
}

// shown returns a request on a connection with a client certificate.
func shown(verified bool, subject pkix.Name) *http.Request {
	r := ask("/api", "Bearer of-somebody-else")
	certificate := &x509.Certificate{Raw: []byte("der"), Subject: subject}
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{certificate}}
	if verified {
		r.TLS.VerifiedChains = [][]*x509.Certificate{{certificate}}
	}
	return r
}

func subprotocols(values ...string) *http.Request {
	r := ask("/api", "")
	for _, value := range values {
		r.Header.Add("Sec-WebSocket-Protocol", value)
	}
	return r
}

func TestAuthenticate(t *testing.T) {
	w := newWorld(t, nil)
	w.put(builder())
	raw := w.issue("")
	protocol := "base64url.bearer.authorization.k8s.io." + base64.RawURLEncoding.EncodeToString([]byte(raw))
	const account = "system:serviceaccount:default:builder"
	for name, tc := range map[string]struct {
		request *http.Request
		who     string
		groups  []string
		refused bool
	}{
		"certificate":                {request: shown(true, pkix.Name{CommonName: "jane", Organization: []string{"devs"}}), who: "jane", groups: []string{"devs", "system:authenticated"}},
		"certificate not verified":   {request: shown(false, pkix.Name{CommonName: "jane"}), refused: true},
		"certificate without name":   {request: shown(true, pkix.Name{}), refused: true},
		"token":                      {request: ask("/api", "Bearer "+raw), who: account, groups: []string{"system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"}},
		"token of nobody":            {request: ask("/api", "Bearer x"), refused: true},
		"token of nobody for health": {request: ask("/healthz", "Bearer x"), refused: true},
		"token for others":           {request: ask("/api", "Bearer "+w.issue("", "vault")), refused: true},
		"long token":                 {request: ask("/api", "Bearer "+strings.Repeat("x", 1<<20)), refused: true},
		"protocol":                   {request: subprotocols("v5.channel.k8s.io, "+protocol, "v4.channel.k8s.io"), who: account},
		"protocol alone":             {request: subprotocols(protocol), refused: true},
		"two protocols":              {request: subprotocols("x", protocol, protocol), refused: true},
		"protocol not encoded":       {request: subprotocols("x", "base64url.bearer.authorization.k8s.io.%%"), refused: true},
		"protocols without token":    {request: subprotocols("x")},
		"nothing":                    {request: ask("/api", "")},
		"password":                   {request: ask("/api", "Basic eDp5")},
		"empty token":                {request: ask("/api", "Bearer ")},
		"health":                     {request: ask("/healthz", ""), who: "system:anonymous", groups: []string{"system:unauthenticated"}},
		"readiness":                  {request: ask("/readyz?verbose", ""), who: "system:anonymous"},
		"below health":               {request: ask("/healthz/etcd", "")},
	} {
		t.Run(name, func(t *testing.T) {
			who, ok, err := w.verifier.Authenticate(tc.request)
			switch {
			case tc.refused:
				if !apierrors.IsUnauthorized(err) || err.Error() != "Unauthorized" || ok {
					t.Errorf("%+v, %v, %v; want Unauthorized", who, ok, err)
				}
			case err != nil || ok != (tc.who != "") || who.Name != tc.who || tc.groups != nil && !slices.Equal(who.Groups, tc.groups):
				t.Errorf("%+v, %v, %v; want %q %v", who, ok, err, tc.who, tc.groups)
			}
			if ok && who.Name == account {
				if tc.request.Header.Get("Authorization") != "" || strings.Contains(tc.request.Header.Get("Sec-WebSocket-Protocol"), "bearer") {
					t.Errorf("the token is still in %v", tc.request.Header)
				}
			}
		})
	}
	if got := subprotocols("v5.channel.k8s.io, "+protocol, "v4.channel.k8s.io"); true {
		if _, _, err := w.verifier.Authenticate(got); err != nil || got.Header.Get("Sec-WebSocket-Protocol") != "v5.channel.k8s.io,v4.channel.k8s.io" {
			t.Errorf("%v, %v", got.Header, err)
		}
	}
}

func TestAnonymous(t *testing.T) {
	for name, tc := range map[string]struct {
		anonymous *authenticator.Anonymous
		path      string
		want      bool
	}{
		"off":        {&authenticator.Anonymous{}, "/healthz", false},
		"everywhere": {&authenticator.Anonymous{Enabled: true}, "/api", true},
		"one path":   {&authenticator.Anonymous{Enabled: true, Paths: []string{"/version"}}, "/version", true},
		"other path": {&authenticator.Anonymous{Enabled: true, Paths: []string{"/version"}}, "/healthz", false},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, func(c *authenticator.Config) { c.Anonymous = tc.anonymous })
			if who, ok, err := w.verifier.Authenticate(ask(tc.path, "")); ok != tc.want || err != nil {
				t.Errorf("%+v, %v, %v", who, ok, err)
			}
		})
	}
}

// TestRememberedTokens shows that a token which was just verified is refused as soon as what it is bound to is gone, or its time is over.
func TestRememberedTokens(t *testing.T) {
	w := newWorld(t, nil)
	secret := &corev1.Secret{ObjectMeta: meta("default", "s", "secret-uid")}
	w.put(builder())
	w.put(secret)
	bound, free := w.issue("s"), w.issue("")
	known := func(raw string) bool {
		id, err := w.verifier.Token(t.Context(), raw)
		if err != nil && !apierrors.IsUnauthorized(err) || err == nil && id.Name == "" {
			t.Errorf("%+v, %v", id, err)
		}
		return err == nil
	}
	if !known(bound) || !known(free) || !known(bound) {
		t.Fatal("good tokens are refused")
	}
	w.remove(secret)
	if known(bound) || !known(free) {
		t.Error("after its Secret went: taken")
	}
	w.put(secret)
	if !known(bound) {
		t.Error("with its Secret back: refused")
	}
	w.remove(builder())
	if known(bound) || known(free) {
		t.Error("after their account went: taken")
	}
	w.put(builder())
	w.now = w.now.Add(time.Hour + 2*time.Minute)
	if known(free) {
		t.Error("after its end: taken")
	}
}

// away is a cluster whose store does not answer.
type away struct{}

func (away) Peek(*resource.Resource, string, string) *cache.Entry { return nil }
func (away) Consistent(context.Context) (int64, error)            { return 0, errors.New("the store is away") }

func TestStoreIsAway(t *testing.T) {
	w := newWorld(t, nil)
	w.put(builder())
	foreign := w.issue("")
	keys, err := token.NewKeys(newKey(t))
	if err != nil {
		t.Fatal(err)
	}
	lost, err := token.New(token.Config{Keys: keys, Objects: away{}})
	if err != nil {
		t.Fatal(err)
	}
	known, err := token.New(token.Config{Keys: keys, Objects: w.cache})
	if err != nil {
		t.Fatal(err)
	}
	v, err := authenticator.New(authenticator.Config{Issuer: lost, Objects: away{}})
	if err != nil {
		t.Fatal(err)
	}
	w.issuer = known
	for name, raw := range map[string]string{"bootstrap": "abcdef.0123456789abcdef", "account": w.issue("")} {
		if _, err := v.Token(t.Context(), raw); !apierrors.IsServiceUnavailable(err) {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := v.Review(t.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: raw}}); !apierrors.IsServiceUnavailable(err) {
			t.Errorf("review of %s: %v", name, err)
		}
	}
	if _, err := v.Token(t.Context(), foreign); !apierrors.IsUnauthorized(err) {
		t.Errorf("a token of another cluster: %v", err)
	}
}

func bootstrapSecret(change func(map[string][]byte)) *corev1.Secret {
	data := map[string][]byte{
		"token-id": []byte("abcdef"), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-authentication": []byte("true"),
		"auth-extra-groups": []byte("system:bootstrappers:workers, system:bootstrappers:a-b:c"),
	}
	if change != nil {
		change(data)
	}
	return &corev1.Secret{ObjectMeta: meta("kube-system", "bootstrap-token-abcdef", "u"), Type: corev1.SecretTypeBootstrapToken, Data: data}
}

func TestBootstrapTokens(t *testing.T) {
	w := newWorld(t, nil)
	const raw = "abcdef.0123456789abcdef"
	check := func(name, want string) {
		t.Helper()
		id, audiences, err := w.verifier.AuthenticateToken(t.Context(), raw, nil)
		switch {
		case want != "":
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s: %+v, %v; want %q", name, id, err, want)
			}
		case err != nil || id.Name != "system:bootstrap:abcdef" || !slices.Equal(audiences, w.issuer.Audiences()) || !slices.Equal(id.Groups, []string{
			"system:bootstrappers", "system:bootstrappers:workers", "system:bootstrappers:a-b:c", "system:authenticated",
		}):
			t.Errorf("%s: %+v for %v, %v", name, id, audiences, err)
		}
	}
	const invalid = "invalid bearer token"
	check("no secret", invalid)
	w.put(bootstrapSecret(nil))
	check("good", "")
	set := func(key, value string) func(map[string][]byte) {
		return func(data map[string][]byte) { data[key] = []byte(value) }
	}
	for name, tc := range map[string]struct {
		change func(map[string][]byte)
		want   string
	}{
		"other secret": {set("token-secret", "0123456789abcdeg"), invalid},
		"no secret":    {set("token-secret", ""), invalid},
		"other id":     {set("token-id", "ghijkl"), invalid},
		"other usage":  {set("usage-bootstrap-authentication", "false"), "not for authentication"},
		"over":         {set("expiration", w.now.Format(time.RFC3339)), "has expired"},
		"not over":     {set("expiration", w.now.Add(time.Second).Format(time.RFC3339)), ""},
		"bad time":     {set("expiration", "tomorrow"), "unparseable expiration time"},
		"masters":      {set("auth-extra-groups", "system:masters"), `bootstrap group "system:masters" is invalid`},
	} {
		w.put(bootstrapSecret(tc.change))
		check(name, tc.want)
	}
	other := bootstrapSecret(nil)
	other.Type = corev1.SecretTypeOpaque
	w.put(other)
	check("other type", invalid)
	leaving := bootstrapSecret(nil)
	leaving.DeletionTimestamp = &metav1.Time{Time: w.now.Add(time.Hour)}
	w.put(leaving)
	check("leaving", invalid)
	w.put(bootstrapSecret(nil))
	check("good again", "")
	w.remove(bootstrapSecret(nil))
	check("gone", invalid)
}

func TestReview(t *testing.T) {
	w := newWorld(t, nil)
	w.put(builder())
	raw := w.issue("", "vault", token.DefaultIssuer)
	review := func(raw string, audiences ...string) authenticationv1.TokenReviewStatus {
		t.Helper()
		answer, err := w.verifier.Review(t.Context(), &authenticationv1.TokenReview{Spec: authenticationv1.TokenReviewSpec{Token: raw, Audiences: audiences}})
		if err != nil {
			t.Fatal(err)
		}
		return answer.Status
	}
	for _, tc := range []struct{ audiences, want []string }{{nil, []string{token.DefaultIssuer}}, {[]string{"vault", "x"}, []string{"vault"}}} {
		got := review(raw, tc.audiences...)
		if !got.Authenticated || got.Error != "" || got.User.Username != "system:serviceaccount:default:builder" || got.User.UID != "sa-uid" ||
			!slices.Equal(got.Audiences, tc.want) || !strings.HasPrefix(got.User.Extra[identity.ExtraCredentialID][0], "JTI=") {
			t.Errorf("for %v: %+v", tc.audiences, got)
		}
	}
	for _, tc := range []struct {
		raw       string
		audiences []string
		want      string
	}{
		{raw, []string{"x"}, `[invalid bearer token, token audiences ["vault" "https://kubernetes.default.svc.cluster.local"] is invalid for the target audiences ["x"]]`},
		{"x", nil, "invalid bearer token"},
		{raw[:len(raw)-4], nil, "[invalid bearer token, service account token signature is invalid]"},
	} {
		if got := review(tc.raw, tc.audiences...); got.Authenticated || got.Error != tc.want || got.User.Username != "" {
			t.Errorf("%+v, want %q", got, tc.want)
		}
	}
	w.now = w.now.Add(2 * time.Hour)
	if got := review(raw); got.Error != "[invalid bearer token, service account token has expired]" {
		t.Errorf("after its end: %+v", got)
	}
	for _, bad := range []*authenticationv1.TokenReview{{}, {ObjectMeta: meta("default", "", ""), Spec: authenticationv1.TokenReviewSpec{Token: "x"}}} {
		if _, err := w.verifier.Review(t.Context(), bad); !apierrors.IsBadRequest(err) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestSelf(t *testing.T) {
	if _, err := authenticator.Self(t.Context(), &authenticationv1.SelfSubjectReview{}); !apierrors.IsUnauthorized(err) {
		t.Errorf("of nobody: %v", err)
	}
	ctx := identity.NewContext(t.Context(), identity.Identity{Name: "jane", UID: "u", Groups: []string{"devs"}, Extra: map[string][]string{"k": {"v"}}})
	answer, err := authenticator.Self(ctx, &authenticationv1.SelfSubjectReview{})
	if err != nil || answer.Status.UserInfo.String() != (&authenticationv1.UserInfo{
		Username: "jane", UID: "u", Groups: []string{"devs"}, Extra: map[string]authenticationv1.ExtraValue{"k": {"v"}},
	}).String() {
		t.Errorf("%+v, %v", answer, err)
	}
}

func FuzzAuthenticateToken(f *testing.F) {
	for _, seed := range []string{
		"", "x", "abcdef.0123456789abcdef", "e30.e30.", "..", "a.eyJpc3MiOiJ4In0.b",
		"eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJrdWJlcm5ldGVzL3NlcnZpY2VhY2NvdW50In0.AA", "a.eyJpc3MiOiJodHRwczovL2t1YmVybmV0ZXMuZGVmYXVsdC5zdmMuY2x1c3Rlci5sb2NhbCJ9.b",
	} {
		f.Add(seed)
	}
	keys, err := token.NewKeys(newKey(f))
	if err != nil {
		f.Fatal(err)
	}
	issuer, err := token.New(token.Config{Keys: keys, Objects: empty{}})
	if err != nil {
		f.Fatal(err)
	}
	v, err := authenticator.New(authenticator.Config{Issuer: issuer, Objects: empty{}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if id, err := v.Token(context.Background(), raw); !apierrors.IsUnauthorized(err) {
			t.Fatalf("%q: %+v, %v", raw, id, err)
		}
		r := ask("/api", "")
		r.Header["Sec-Websocket-Protocol"] = []string{raw, "x," + raw}
		if id, ok, err := v.Authenticate(r); ok {
			t.Fatalf("%q: %+v, %v", raw, id, err)
		}
	})
}

// empty is a cluster without objects.
type empty struct{}

func (empty) Peek(*resource.Resource, string, string) *cache.Entry { return nil }
func (empty) Consistent(context.Context) (int64, error)            { return 1, nil }

// BenchmarkToken measures a request with a token that is remembered: its account is looked up all the same.
func BenchmarkToken(b *testing.B) {
	keys, err := token.NewKeys(newKey(b))
	if err != nil {
		b.Fatal(err)
	}
	one := single{&cache.Entry{UID: "sa-uid"}}
	issuer, err := token.New(token.Config{Keys: keys, Objects: one})
	if err != nil {
		b.Fatal(err)
	}
	v, err := authenticator.New(authenticator.Config{Issuer: issuer, Objects: one})
	if err != nil {
		b.Fatal(err)
	}
	answer, err := issuer.Request(b.Context(), "default", "builder", &authenticationv1.TokenRequest{})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := v.Token(b.Context(), answer.Status.Token); err != nil {
			b.Fatal(err)
		}
	}
}

// single is a cluster with one object, whatever is asked for.
type single struct{ entry *cache.Entry }

func (s single) Peek(*resource.Resource, string, string) *cache.Entry { return s.entry }
func (single) Consistent(context.Context) (int64, error)              { return 1, nil }
