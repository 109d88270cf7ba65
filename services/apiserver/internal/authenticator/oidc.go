package authenticator

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"golang.org/x/sync/singleflight"

	"dhow.dev/pkg/identity"
)

const (
	// discoveryTimeout bounds one question to an issuer; discoveryPause is how long one that did not answer is left alone (Kubernetes: both 10 s).
	discoveryTimeout = 10 * time.Second
	discoveryPause   = 10 * time.Second
	// maxIssuerAnswer bounds what an issuer may answer: configurations and key sets have some kilobytes.
	maxIssuerAnswer = 1 << 20

	emailClaim = "email"
	// verifiedClaim says whether the issuer has verified the address.
	verifiedClaim = "email_verified"
	wellKnown     = "/.well-known/openid-configuration"
	defaultClaim  = "sub"
)

// algorithms are those that signatures of OIDC tokens may have.
var algorithms = []string{"RS256", "RS384", "RS512", "ES256", "ES384", "ES512", "PS256", "PS384", "PS512"}

// OIDC is an issuer of others whose ID tokens are taken.
type OIDC struct {
	// IssuerURL is the issuer, an https URL. It need not answer when the API server starts.
	IssuerURL string
	// DiscoveryURL is where its configuration is, when that is not below IssuerURL; it ends with /.well-known/openid-configuration.
	DiscoveryURL string
	// Audiences are those that a token must have one of: the ids of clients.
	Audiences []string
	// CA are the certificates of the issuer's authority, PEM. Empty: the system's.
	CA []byte
	// UsernameClaim is the claim that names the user; empty: sub.
	UsernameClaim string
	// UsernamePrefix goes before the name. Nil: none for the claim email, else the issuer's URL and "#".
	UsernamePrefix *string
	// GroupsClaim is the claim, a string or a list of them, that says the user's groups; empty: none. GroupsPrefix goes before each.
	GroupsClaim, GroupsPrefix string
	// UIDClaim is the claim of the user's UID; empty: none.
	UIDClaim string
	// RequiredClaims are claims and the values that they must have.
	RequiredClaims map[string]string
	// UsernameExpression, GroupsExpression and UIDExpression are CEL over `claims`, instead of the claims and prefixes. Extra is what else is known of the user.
	UsernameExpression, GroupsExpression, UIDExpression string
	Extra                                               []Extra
	// ClaimRules are CEL over `claims`, UserRules over `user`; all have to be true.
	ClaimRules, UserRules []Rule
	// Algorithms are those that signatures may have; empty: RS256.
	Algorithms []string
}

// oidcIssuer verifies the tokens of one issuer. It asks the issuer for its keys when the first token comes.
type oidcIssuer struct {
	config OIDC
	judge  *judge
	prefix string
	client *http.Client
	now    func() time.Time
	flight singleflight.Group

	mu       sync.Mutex
	verifier *oidc.IDTokenVerifier
	// failed is when the issuer last did not answer, and why.
	failed time.Time
	why    error
}

func newOIDC(config OIDC, now func() time.Time) (*oidcIssuer, error) {
	fail := func(format string, arguments ...any) (*oidcIssuer, error) {
		return nil, fmt.Errorf("OIDC issuer %q: "+format, append([]any{config.IssuerURL}, arguments...)...)
	}
	if u, err := url.Parse(config.IssuerURL); err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
		return fail("must be an https URL without user, query and fragment")
	}
	if config.DiscoveryURL != "" && (!strings.HasPrefix(config.DiscoveryURL, "https://") || !strings.HasSuffix(config.DiscoveryURL, wellKnown)) {
		return fail("the discovery URL %q must be an https URL that ends with %s", config.DiscoveryURL, wellKnown)
	}
	if len(config.Audiences) == 0 || slices.Contains(config.Audiences, "") {
		return fail("audiences are required: the ids of the clients that tokens are issued for")
	}
	if config.UsernameClaim == "" && config.UsernameExpression == "" {
		config.UsernameClaim = defaultClaim
	}
	if len(config.Algorithms) == 0 {
		config.Algorithms = []string{oidc.RS256}
	}
	for _, algorithm := range config.Algorithms {
		if !slices.Contains(algorithms, algorithm) {
			return fail("the signing algorithm %q is not one of %v", algorithm, algorithms)
		}
	}
	if config.GroupsPrefix != "" && config.GroupsClaim == "" {
		return fail("a prefix of groups without a claim for groups")
	}
	o := &oidcIssuer{config: config, now: now}
	var err error
	if o.judge, err = newJudge(config); err != nil {
		return fail("%w", err)
	}
	switch {
	case config.UsernamePrefix == nil && config.UsernameClaim != emailClaim:
		o.prefix = config.IssuerURL + "#"
	case config.UsernamePrefix != nil:
		o.prefix = *config.UsernamePrefix
	}
	settings := &tls.Config{MinVersion: tls.VersionTLS12}
	if len(config.CA) > 0 {
		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM(config.CA) {
			return fail("its authority's certificates are not PEM")
		}
	}
	o.client = &http.Client{Timeout: discoveryTimeout, Transport: bounded{&http.Transport{
		Proxy: http.ProxyFromEnvironment, TLSClientConfig: settings, ForceAttemptHTTP2: true, MaxIdleConns: 2, IdleConnTimeout: time.Minute,
	}}}
	return o, nil
}

// bounded bounds the answers of a transport.
type bounded struct{ http.RoundTripper }

func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	answer, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		answer.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(answer.Body, maxIssuerAnswer), answer.Body}
	}
	return answer, err
}

// discovered returns the verifier of the issuer's keys, which it asks for once.
func (o *oidcIssuer) discovered(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	o.mu.Lock()
	verifier, failed, why := o.verifier, o.failed, o.why
	o.mu.Unlock()
	if verifier != nil {
		return verifier, nil
	}
	if why != nil && o.now().Sub(failed) < discoveryPause {
		return nil, why
	}
	// All who wait share one question, which does not end with the first of them.
	result := o.flight.DoChan("", func() (any, error) { return o.discover(context.Background()) })
	select {
	case r := <-result:
		if r.Err != nil {
			return nil, r.Err
		}
		return r.Val.(*oidc.IDTokenVerifier), nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (o *oidcIssuer) discover(ctx context.Context) (*oidc.IDTokenVerifier, error) {
	ctx = oidc.ClientContext(ctx, o.client)
	where := o.config.IssuerURL
	if o.config.DiscoveryURL != "" {
		where = strings.TrimSuffix(o.config.DiscoveryURL, wellKnown)
		ctx = oidc.InsecureIssuerURLContext(ctx, o.config.IssuerURL)
	}
	provider, err := oidc.NewProvider(ctx, where)
	o.mu.Lock()
	defer o.mu.Unlock()
	if err != nil {
		o.failed, o.why = o.now(), fmt.Errorf("oidc: authenticator for issuer %q is not initialized: %w", o.config.IssuerURL, err)
		return nil, o.why
	}
	o.why = nil
	o.verifier = provider.VerifierContext(ctx, &oidc.Config{SkipClientIDCheck: true, SupportedSigningAlgs: o.config.Algorithms, Now: o.now})
	return o.verifier, nil
}

// user is the credential of an OIDC token.
type user struct {
	verifier *Verifier
	issuer   *oidcIssuer
	identity identity.Identity
	expiry   time.Time
	now      func() time.Time
}

func (u *user) check(_ context.Context, audiences []string) (identity.Identity, []string, error) {
	if u.expiry.Before(u.now()) {
		return identity.Identity{}, nil, fmt.Errorf("oidc: token is expired (Token Expiry: %v)", u.expiry)
	}
	return u.verifier.agnostic(u.identity, audiences)
}

func (u *user) stands(v *Verifier) bool {
	return v.rules.Load().of(u.issuer.config.IssuerURL) == u.issuer
}

// parse verifies a token and reads who it is for.
func (o *oidcIssuer) parse(ctx context.Context, raw string) (*user, error) {
	verifier, err := o.discovered(ctx)
	if err != nil {
		return nil, err
	}
	verified, err := verifier.Verify(oidc.ClientContext(ctx, o.client), raw)
	if err != nil {
		return nil, fmt.Errorf("oidc: verify token: %w", err)
	}
	if !slices.ContainsFunc(o.config.Audiences, func(a string) bool { return slices.Contains(verified.Audience, a) }) {
		return nil, fmt.Errorf("oidc: expected audience in %q got %q", o.config.Audiences, verified.Audience)
	}
	var c claims
	if err := verified.Claims(&c); err != nil {
		return nil, fmt.Errorf("oidc: could not parse claims: %w", err)
	}
	id, err := o.identify(c)
	if err == nil {
		err = o.judge.of(ctx, c, &id)
	}
	if err != nil {
		return nil, err
	}
	return &user{issuer: o, identity: id.Authenticated(), expiry: verified.Expiry, now: o.now}, nil
}

// identify maps claims to an identity, as far as no expressions do.
func (o *oidcIssuer) identify(c claims) (identity.Identity, error) {
	for claim, want := range o.config.RequiredClaims {
		got, ok, err := c.text(claim)
		switch {
		case err != nil:
			return identity.Identity{}, err
		case !ok:
			return identity.Identity{}, fmt.Errorf("oidc: required claim %s not present in ID token", claim)
		case got != want:
			return identity.Identity{}, fmt.Errorf("oidc: required claim %s value does not match. Got = %s, want = %s", claim, got, want)
		}
	}
	var id identity.Identity
	if o.config.UsernameClaim != "" {
		name, ok, err := c.text(o.config.UsernameClaim)
		if err != nil {
			return identity.Identity{}, err
		}
		if !ok || name == "" {
			return identity.Identity{}, fmt.Errorf("oidc: parse username claims %q: claim not present", o.config.UsernameClaim)
		}
		if o.config.UsernameClaim == emailClaim {
			if err := c.emailVerified(); err != nil {
				return identity.Identity{}, err
			}
		}
		id.Name = o.prefix + name
	}
	if o.config.GroupsClaim != "" {
		groups, err := c.list(o.config.GroupsClaim)
		if err != nil {
			return identity.Identity{}, err
		}
		for _, group := range groups {
			id.Groups = append(id.Groups, o.config.GroupsPrefix+group)
		}
	}
	if o.config.UIDClaim != "" {
		var ok bool
		var err error
		if id.UID, ok, err = c.text(o.config.UIDClaim); err != nil || !ok {
			return identity.Identity{}, errors.Join(fmt.Errorf("oidc: parse uid claim %q: claim not present", o.config.UIDClaim), err)
		}
	}
	if jti, ok, err := c.text("jti"); err == nil && ok && jti != "" {
		id.Extra = map[string][]string{identity.ExtraCredentialID: {"JTI=" + jti}}
	}
	return id, nil
}

// claims are those of a token, by their names.
type claims map[string]json.RawMessage

func (c claims) text(name string) (string, bool, error) {
	raw, ok := c[name]
	if !ok {
		return "", false, nil
	}
	var text *string
	if err := json.Unmarshal(raw, &text); err != nil || text == nil {
		return "", false, fmt.Errorf("oidc: claim %q is no string", name)
	}
	return *text, true, nil
}

// list reads a claim that is a string or a list of strings.
func (c claims) list(name string) ([]string, error) {
	raw, ok := c[name]
	if !ok || string(raw) == "null" {
		return nil, nil
	}
	if text, _, err := c.text(name); err == nil {
		return []string{text}, nil
	}
	var texts []string
	if err := json.Unmarshal(raw, &texts); err != nil {
		return nil, fmt.Errorf("oidc: claim %q is neither a string nor a list of strings", name)
	}
	return texts, nil
}

// emailVerified refuses an address that the issuer says it has not verified.
func (c claims) emailVerified() error {
	raw, ok := c[verifiedClaim]
	if !ok {
		return nil
	}
	var verified bool
	if err := json.Unmarshal(raw, &verified); err != nil {
		return errors.New("oidc: claim \"email_verified\" is no boolean")
	}
	if !verified {
		return errors.New("oidc: email not verified")
	}
	return nil
}
