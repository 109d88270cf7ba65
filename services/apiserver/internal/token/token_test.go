package token_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/token"
)

func ecKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func ecKeys(t testing.TB) *token.Keys {
	t.Helper()
	keys, err := token.NewKeys(ecKey(t))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func bound(kind, name, uid string) *authenticationv1.TokenRequest {
	return &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: kind, Name: name, UID: types.UID(uid)},
	}}
}

func request(t *testing.T, i *token.Issuer, r *authenticationv1.TokenRequest) string {
	t.Helper()
	answer, err := i.Request(t.Context(), "default", "builder", r)
	if err != nil {
		t.Fatal(err)
	}
	return answer.Status.Token
}

// verify does both steps of a verification.
func verify(t *testing.T, i *token.Issuer, raw string, audiences ...string) (identity.Identity, []string, error) {
	t.Helper()
	claims, err := i.Parse(raw)
	if err != nil {
		return identity.Identity{}, nil, err
	}
	return i.Check(t.Context(), claims, audiences)
}

// payload decodes the claims of a token without looking at its signature.
func payload(t *testing.T, raw string) map[string]any {
	t.Helper()
	data, err := base64.RawURLEncoding.DecodeString(strings.Split(raw, ".")[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims map[string]any
	if err := json.Unmarshal(data, &claims); err != nil {
		t.Fatal(err)
	}
	return claims
}

// TestClaims compares a token with what Kubernetes puts into the tokens of pods.
func TestClaims(t *testing.T) {
	w, clock := newWorld(t), newClock()
	w.put(account("builder", "sa-uid"))
	w.put(pod("p", "pod-uid", "builder", "n1"))
	w.put(node("n1", "node-uid"))
	i := issuer(t, w.cache, clock, nil)
	seconds := int64(3607)
	r := bound("Pod", "p", "pod-uid")
	r.Spec.ExpirationSeconds = &seconds
	answer, err := i.Request(t.Context(), "default", "builder", r)
	if err != nil {
		t.Fatal(err)
	}
	if !answer.Status.ExpirationTimestamp.Equal(new(metav1.NewTime(clock.now.Add(3607*time.Second)))) || answer.Name != "builder" ||
		answer.Namespace != "default" || !slices.Equal(answer.Spec.Audiences, []string{token.DefaultIssuer}) {
		t.Errorf("answer %+v", answer)
	}
	got := payload(t, answer.Status.Token)
	id, _ := got["jti"].(string)
	delete(got, "jti")
	at := float64(clock.now.Unix())
	want := map[string]any{
		"iss": token.DefaultIssuer, "sub": "system:serviceaccount:default:builder", "aud": []any{token.DefaultIssuer},
		"iat": at, "nbf": at, "exp": at + 365*24*60*60,
		"kubernetes.io": map[string]any{
			"namespace": "default", "serviceaccount": map[string]any{"name": "builder", "uid": "sa-uid"},
			"pod": map[string]any{"name": "p", "uid": "pod-uid"}, "node": map[string]any{"name": "n1", "uid": "node-uid"}, "warnafter": at + 3607,
		},
	}
	if gotJSON, wantJSON := mustJSON(t, got), mustJSON(t, want); gotJSON != wantJSON || len(id) != 36 {
		t.Errorf("claims\n%s\nwant\n%s", gotJSON, wantJSON)
	}
	who, audiences, err := verify(t, i, answer.Status.Token)
	if err != nil {
		t.Fatal(err)
	}
	wantWho := identity.Identity{
		Name: "system:serviceaccount:default:builder", UID: "sa-uid",
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"},
		Extra: map[string][]string{
			"authentication.kubernetes.io/pod-name": {"p"}, "authentication.kubernetes.io/pod-uid": {"pod-uid"},
			"authentication.kubernetes.io/node-name": {"n1"}, "authentication.kubernetes.io/node-uid": {"node-uid"},
			"authentication.kubernetes.io/credential-id": {"JTI=" + id},
		},
	}
	if who.Name != wantWho.Name || who.UID != wantWho.UID || !slices.Equal(who.Groups, wantWho.Groups) ||
		!maps.EqualFunc(who.Extra, wantWho.Extra, slices.Equal) || !slices.Equal(audiences, []string{token.DefaultIssuer}) {
		t.Errorf("%+v for %v, want %+v", who, audiences, wantWho)
	}

	// For others than the API server, and without a pod, a token ends when it was asked to.
	r.Spec.Audiences = []string{"vault"}
	delete(want["kubernetes.io"].(map[string]any), "warnafter")
	want["exp"], want["aud"] = at+3607, []any{"vault"}
	got = payload(t, request(t, i, r))
	delete(got, "jti")
	if gotJSON, wantJSON := mustJSON(t, got), mustJSON(t, want); gotJSON != wantJSON {
		t.Errorf("claims\n%s\nwant\n%s", gotJSON, wantJSON)
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestRequestIsRefused(t *testing.T) {
	w, clock := newWorld(t), newClock()
	w.put(account("builder", "sa-uid"))
	w.put(account("other", "other-uid"))
	w.put(pod("p", "pod-uid", "builder", "n1"))
	w.put(pod("others", "others-uid", "other", "n1"))
	w.put(node("n1", "node-uid"))
	w.put(&corev1.Secret{ObjectMeta: meta("default", "s", "secret-uid")})
	i := issuer(t, w.cache, clock, nil)
	seconds := func(n int64) *authenticationv1.TokenRequest {
		return &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{ExpirationSeconds: &n}}
	}
	for name, tc := range map[string]struct {
		account string
		request *authenticationv1.TokenRequest
		want    func(error) bool
		words   string
	}{
		"no account":      {"missing", seconds(600), apierrors.IsNotFound, `serviceaccounts "missing" not found`},
		"short":           {"builder", seconds(599), apierrors.IsInvalid, "may not specify a duration less than 10 minutes"},
		"long":            {"builder", seconds(1<<32 + 1), apierrors.IsInvalid, "may not specify a duration larger than 2^32 seconds"},
		"other name":      {"builder", &authenticationv1.TokenRequest{ObjectMeta: meta("", "x", "")}, apierrors.IsInvalid, "must match the service account name if specified"},
		"other namespace": {"builder", &authenticationv1.TokenRequest{ObjectMeta: meta("x", "", "")}, apierrors.IsInvalid, "must match the service account namespace if specified"},
		"no pod":          {"builder", bound("Pod", "missing", ""), apierrors.IsNotFound, `pods "missing" not found`},
		"no node":         {"builder", bound("Node", "missing", ""), apierrors.IsNotFound, `nodes "missing" not found`},
		"no secret":       {"builder", bound("Secret", "missing", ""), apierrors.IsNotFound, `secrets "missing" not found`},
		"unknown kind":    {"builder", bound("ConfigMap", "x", ""), apierrors.IsBadRequest, "cannot bind token to object of type /v1, Kind=ConfigMap"},
		"other UID":       {"builder", bound("Pod", "p", "x"), apierrors.IsConflict, "does not match the UID in record"},
		"other's pod":     {"builder", bound("Pod", "others", ""), apierrors.IsBadRequest, `cannot bind token for serviceaccount "builder" to pod running with different serviceaccount name.`},
	} {
		t.Run(name, func(t *testing.T) {
			answer, err := i.Request(t.Context(), "default", tc.account, tc.request)
			if !tc.want(err) || !strings.Contains(err.Error(), tc.words) {
				t.Errorf("%+v, %v; want %q", answer, err, tc.words)
			}
		})
	}
	for _, n := range []int64{600, 1 << 32} {
		if _, err := i.Request(t.Context(), "default", "builder", seconds(n)); err != nil {
			t.Errorf("%d seconds: %v", n, err)
		}
	}
}

// TestBoundObjects removes what tokens are bound to.
func TestBoundObjects(t *testing.T) {
	secret := &corev1.Secret{ObjectMeta: meta("default", "s", "secret-uid")}
	for name, tc := range map[string]struct {
		request *authenticationv1.TokenRequest
		object  encoded
		again   encoded
		words   string
		renewed string
	}{
		"account": {&authenticationv1.TokenRequest{}, account("builder", "sa-uid"), account("builder", "new"), `serviceaccounts "builder" not found`, "service account UID (new) does not match claim (sa-uid)"},
		"pod":     {bound("Pod", "p", ""), pod("p", "pod-uid", "builder", "n1"), pod("p", "new", "builder", "n1"), "service account token has been invalidated", "pod UID (new) does not match service account pod ref claim (pod-uid)"},
		"node":    {bound("Node", "n1", ""), node("n1", "node-uid"), node("n1", "new"), "service account token has been invalidated", "node UID (new) does not match service account node ref claim (node-uid)"},
		"secret":  {bound("Secret", "s", ""), secret, &corev1.Secret{ObjectMeta: meta("default", "s", "new")}, "service account token has been invalidated", "secret UID (new) does not match service account secret ref claim (secret-uid)"},
	} {
		t.Run(name, func(t *testing.T) {
			w, clock := newWorld(t), newClock()
			w.put(account("builder", "sa-uid"))
			w.put(node("n1", "node-uid"))
			w.put(tc.object)
			i := issuer(t, w.cache, clock, nil)
			raw := request(t, i, tc.request)
			if _, _, err := verify(t, i, raw); err != nil {
				t.Fatal(err)
			}
			w.remove(tc.object)
			if _, _, err := verify(t, i, raw); err == nil || err.Error() != tc.words {
				t.Errorf("gone: %v, want %q", err, tc.words)
			}
			w.put(tc.again)
			if _, _, err := verify(t, i, raw); err == nil || err.Error() != tc.renewed {
				t.Errorf("made again: %v, want %q", err, tc.renewed)
			}
			// A minute after the end of its grace period an object that is still there counts no more.
			tc.object.SetDeletionTimestamp(&metav1.Time{Time: clock.now.Add(30 * time.Second)})
			w.put(tc.object)
			clock.now = clock.now.Add(90 * time.Second)
			if _, _, err := verify(t, i, raw); err != nil {
				t.Errorf("while it is deleted: %v", err)
			}
			clock.now = clock.now.Add(time.Second)
			if _, _, err := verify(t, i, raw); err == nil {
				t.Error("long after it was deleted: taken")
			}
		})
	}
	t.Run("node of a pod", func(t *testing.T) {
		w, clock := newWorld(t), newClock()
		w.put(account("builder", "sa-uid"))
		w.put(pod("p", "pod-uid", "builder", "n1"))
		i := issuer(t, w.cache, clock, nil)
		raw := request(t, i, bound("Pod", "p", ""))
		w.put(node("n1", "new"))
		if who, _, err := verify(t, i, raw); err != nil || who.Extra[identity.ExtraNodeName][0] != "n1" || who.Extra[identity.ExtraNodeUID] != nil {
			t.Errorf("%+v, %v", who, err)
		}
	})
}

func TestTimeAndAudience(t *testing.T) {
	w, clock := newWorld(t), newClock()
	w.put(account("builder", "sa-uid"))
	i := issuer(t, w.cache, clock, func(c *token.Config) { c.Audiences = []string{"api", "https://api"} })
	raw := request(t, i, &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{Audiences: []string{"vault", "api"}}})
	for _, tc := range []struct{ wanted, want []string }{{nil, []string{"api"}}, {[]string{"vault", "x"}, []string{"vault"}}, {[]string{"api", "vault"}, []string{"vault", "api"}}} {
		if _, got, err := verify(t, i, raw, tc.wanted...); err != nil || !slices.Equal(got, tc.want) {
			t.Errorf("for %v: %v, %v", tc.wanted, got, err)
		}
	}
	if _, _, err := verify(t, i, raw, "x"); err == nil || err.Error() != `token audiences ["vault" "api"] is invalid for the target audiences ["x"]` {
		t.Errorf("for others: %v", err)
	}
	made := clock.now
	for at, want := range map[time.Duration]string{
		-59 * time.Second: "", -61 * time.Second: "service account token is not valid yet", time.Hour + 59*time.Second: "", time.Hour + 61*time.Second: "service account token has expired",
	} {
		clock.now = made.Add(at)
		_, _, err := verify(t, i, raw)
		if got := errorText(err); got != want {
			t.Errorf("after %s: %q, want %q", at, got, want)
		}
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// legacy is a token of Kubernetes' controller for token Secrets.
func legacy(t *testing.T, key any, secret string) string {
	t.Helper()
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: key}, nil)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := jwt.Signed(signer).Claims(map[string]any{
		"iss": "kubernetes/serviceaccount", "sub": "system:serviceaccount:default:builder",
		"kubernetes.io/serviceaccount/namespace": "default", "kubernetes.io/serviceaccount/secret.name": secret,
		"kubernetes.io/serviceaccount/service-account.name": "builder", "kubernetes.io/serviceaccount/service-account.uid": "sa-uid",
	}).Serialize()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestLegacyTokens(t *testing.T) {
	w, clock, key := newWorld(t), newClock(), ecKey(t)
	keys, err := token.NewKeys(key)
	if err != nil {
		t.Fatal(err)
	}
	w.put(account("builder", "sa-uid"))
	i := issuer(t, w.cache, clock, func(c *token.Config) { c.Keys = keys })
	raw := legacy(t, key, "s")
	if _, _, err := verify(t, i, raw); errorText(err) != "service account token has been invalidated" {
		t.Errorf("without its Secret: %v", err)
	}
	secret := &corev1.Secret{ObjectMeta: meta("default", "s", "secret-uid"), Data: map[string][]byte{"token": []byte(raw)}}
	w.put(secret)
	who, audiences, err := verify(t, i, raw)
	if err != nil || who.Name != "system:serviceaccount:default:builder" || who.UID != "sa-uid" || who.Extra != nil || !slices.Equal(audiences, i.Audiences()) {
		t.Errorf("%+v for %v, %v", who, audiences, err)
	}
	if _, _, err := verify(t, i, raw, "vault"); err == nil {
		t.Error("a legacy token is taken for another audience")
	}
	secret.Labels = map[string]string{"kubernetes.io/legacy-token-invalid-since": "2026-01-01"}
	w.put(secret)
	if _, _, err := verify(t, i, raw); errorText(err) != "service account token has been invalidated" {
		t.Errorf("marked as invalid: %v", err)
	}
	secret.Labels, secret.Data["token"] = nil, []byte("another")
	w.put(secret)
	if _, _, err := verify(t, i, raw); errorText(err) != "token does not match server's copy" {
		t.Errorf("with another token in its Secret: %v", err)
	}
}

// TestForgery changes tokens in every way that a caller can think of.
func TestForgery(t *testing.T) {
	w, clock, key := newWorld(t), newClock(), ecKey(t)
	w.put(account("builder", "sa-uid"))
	keys, err := token.NewKeys(key)
	if err != nil {
		t.Fatal(err)
	}
	i := issuer(t, w.cache, clock, func(c *token.Config) { c.Keys = keys })
	raw := request(t, i, &authenticationv1.TokenRequest{})
	parts := strings.Split(raw, ".")
	encode := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	public, err := json.Marshal(jose.JSONWebKey{Key: key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	for name, forged := range map[string]string{
		"no algorithm":  encode(`{"alg":"none"}`) + "." + parts[1] + ".",
		"no signature":  parts[0] + "." + parts[1] + ".",
		"own key":       legacy(t, ecKey(t), "s"),
		"embedded key":  encode(`{"alg":"ES256","jwk":`+string(public)+`}`) + "." + parts[1] + "." + parts[2],
		"symmetric":     encode(`{"alg":"HS256"}`) + "." + parts[1] + "." + parts[2],
		"other payload": parts[0] + "." + encode(`{"iss":"`+token.DefaultIssuer+`"}`) + "." + parts[2],
		"unknown key":   encode(`{"alg":"ES256","kid":"x"}`) + "." + parts[1] + "." + parts[2],
		"empty":         "",
		"dots":          "..",
	} {
		if _, err := i.Parse(forged); errorText(err) != "service account token signature is invalid" {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Every character counts, but for the last one of the signature: base64 does not use all of its bits. Those of the other parts are signed.
	rapid.Check(t, func(t *rapid.T) {
		changed := []byte(raw)
		at := rapid.IntRange(0, len(changed)-2).Draw(t, "at")
		changed[at] = rapid.Byte().Draw(t, "byte")
		if string(changed) == raw {
			return
		}
		if claims, err := i.Parse(string(changed)); err == nil {
			t.Fatalf("%s is taken as %v", changed, claims)
		}
	})
	stranger := issuer(t, w.cache, clock, func(c *token.Config) { c.Keys, c.Issuers = keys, []string{"https://other"} })
	if _, err := i.Parse(request(t, stranger, &authenticationv1.TokenRequest{})); err == nil {
		t.Error("a token of another issuer with the same key is taken")
	}
}

func FuzzParse(f *testing.F) {
	keys := ecKeys(f)
	i, err := token.New(token.Config{Keys: keys, Objects: nothing{}})
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []string{"", "..", "a.b.c", "eyJhbGciOiJub25lIn0.e30.", "eyJhbGciOiJFUzI1NiJ9.e30.AA", `{"payload":"e30","signatures":[{"protected":"e30","signature":"AA"}]}`} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if claims, err := i.Parse(raw); err == nil {
			t.Fatalf("%q is taken as %v", raw, claims)
		}
	})
}

// TestUseOfSecretsIsNoted: once a day, for the tokens of Secrets that are made for tokens.
func TestUseOfSecretsIsNoted(t *testing.T) {
	w, clock := newWorld(t), newClock()
	w.put(account("builder", "sa-uid"))
	secret := &corev1.Secret{ObjectMeta: meta("default", "s", "secret-uid"), Type: corev1.SecretTypeServiceAccountToken}
	w.put(secret)
	w.put(&corev1.Secret{ObjectMeta: meta("default", "other", "other-uid")})
	var noted []string
	i := issuer(t, w.cache, clock, func(c *token.Config) {
		c.Used = func(_ context.Context, secret types.NamespacedName, uid types.UID, label, day string) {
			noted = append(noted, secret.String()+" "+string(uid)+" "+label+" "+day)
		}
	})
	long := int64(1 << 32)
	bind := func(name string) string {
		r := bound("Secret", name, "")
		r.Spec.ExpirationSeconds = &long
		return request(t, i, r)
	}
	raw, other := bind("s"), bind("other")
	use := func(raw string) {
		t.Helper()
		if _, _, err := verify(t, i, raw); err != nil {
			t.Fatal(err)
		}
	}
	use(other)
	use(raw)
	secret.Labels = map[string]string{"kubernetes.io/legacy-token-last-used": "2026-05-04"}
	w.put(secret)
	use(raw)
	clock.now = clock.now.Add(24 * time.Hour)
	use(raw)
	want := []string{"default/s secret-uid kubernetes.io/legacy-token-last-used 2026-05-04", "default/s secret-uid kubernetes.io/legacy-token-last-used 2026-05-05"}
	if !slices.Equal(noted, want) {
		t.Errorf("%q", noted)
	}
}
