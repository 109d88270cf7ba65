// Package authenticator says who makes a request: by its client certificate or by its bearer token (of a service account, of an OIDC issuer, for
// bootstrapping a node); without credentials, anonymous where that is allowed. Both doors of the API server ask it, and TokenReview does.
package authenticator

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/textproto"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"go.opentelemetry.io/otel/metric"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver/internal/token"
)

const (
	// maxToken bounds what is parsed of a token; OIDC tokens with hundreds of groups have some ten thousand bytes.
	maxToken = 64 << 10
	// keepFor is how long a verified signature is remembered, as in Kubernetes. What may change about a token is asked every time.
	keepFor = 10 * time.Second
	// protocolPrefix begins the subprotocol that carries a browser's token, which cannot send other headers with a WebSocket.
	protocolPrefix = "base64url.bearer.authorization.k8s.io."
	protocolHeader = "Sec-Websocket-Protocol"
	// unauthorized is all that is said to who is not known.
	unauthorized = "Unauthorized"
)

var (
	errInvalidToken = errors.New("invalid bearer token")
	errUnverified   = errors.New("the client certificate is not verified")
)

// Authenticator says who makes a request, and false when the request has no credentials and anonymous may not make it. An error is Unauthorized, or
// says that it could not be found out.
type Authenticator interface {
	Authenticate(r *http.Request) (identity.Identity, bool, error)
}

// Config configures a Verifier.
type Config struct {
	// Issuer verifies tokens of service accounts. Required.
	Issuer *token.Issuer
	// Objects finds the Secrets of bootstrap tokens. Required.
	Objects token.Objects
	// Rules are what may change while the verifier works.
	Rules
	// ConfigurationFile is where Run reads the rules anew when the file changes. Empty: they stay.
	ConfigurationFile string
	// Meter counts authentications; nil: the process's meter.
	Meter metric.Meter
	// Logger gets why a caller was refused, at debug level: the caller is not told. Nil discards it.
	Logger *slog.Logger
	// Now is the clock; nil: the real one.
	Now func() time.Time
}

// Rules are who else is known than by the cluster's own certificates and tokens.
type Rules struct {
	// OIDC are the issuers of others whose tokens are taken.
	OIDC []OIDC
	// Anonymous says what may be asked without credentials; nil: whether the server is well.
	Anonymous *Anonymous
}

// Anonymous says what may be asked without credentials. What is allowed to system:anonymous then is the authorizer's to say.
type Anonymous struct {
	Enabled bool
	// Paths are those that may be asked; empty: all.
	Paths []string
}

// healthPaths are what may be asked without credentials unless an operator says otherwise.
var healthPaths = []string{"/healthz", "/livez", "/readyz"}

// Verifier is the authenticator of all kinds of credentials. It is safe for concurrent use.
type Verifier struct {
	issuer    *token.Issuer
	bootstrap bootstrap
	rules     atomic.Pointer[rules]
	recent    *recent
	metrics   *metrics
	logger    *slog.Logger
	now       func() time.Time
	file      string
}

// rules are Rules at work. They are replaced whole.
type rules struct {
	oidc      []*oidcIssuer
	anonymous Anonymous
}

var _ Authenticator = (*Verifier)(nil)

// New returns a verifier.
func New(config Config) (*Verifier, error) {
	if config.Issuer == nil || config.Objects == nil {
		return nil, errors.New("authenticator: Issuer and Objects are required")
	}
	now := config.Now
	if now == nil {
		now = time.Now
	}
	v := &Verifier{
		issuer: config.Issuer, bootstrap: bootstrap{objects: config.Objects, now: now}, recent: newRecent(keepFor, now), logger: config.Logger, now: now, file: config.ConfigurationFile,
	}
	if v.logger == nil {
		v.logger = slog.New(slog.DiscardHandler)
	}
	var err error
	if v.metrics, err = newMetrics(config.Meter); err != nil {
		return nil, fmt.Errorf("authenticator: %w", err)
	}
	if err := v.Apply(config.Rules); err != nil {
		return nil, fmt.Errorf("authenticator: %w", err)
	}
	return v, nil
}

// Apply replaces the rules. Tokens of an issuer that is gone, or is described otherwise, are known no more or anew; of one that stays as it is nothing changes.
func (v *Verifier) Apply(wanted Rules) error {
	next, before := &rules{anonymous: Anonymous{Enabled: true, Paths: healthPaths}}, v.rules.Load()
	if wanted.Anonymous != nil {
		next.anonymous = *wanted.Anonymous
	}
	for _, o := range wanted.OIDC {
		if v.issuer.Issued(o.IssuerURL) || next.of(o.IssuerURL) != nil {
			return fmt.Errorf("the OIDC issuer %q is configured twice, or is the cluster's own", o.IssuerURL)
		}
		issuer, err := newOIDC(o, v.now)
		if err != nil {
			return err
		}
		if was := before.of(o.IssuerURL); was != nil && reflect.DeepEqual(was.config, issuer.config) {
			issuer = was // with the keys that it knows
		}
		next.oidc = append(next.oidc, issuer)
	}
	v.rules.Store(next)
	return nil
}

func (r *rules) of(issuer string) *oidcIssuer {
	if r == nil {
		return nil
	}
	for _, o := range r.oidc {
		if o.config.IssuerURL == issuer {
			return o
		}
	}
	return nil
}

// Authenticate says who makes a request. Once that is known its token is taken out of the headers, so that nothing passes it on.
func (v *Verifier) Authenticate(r *http.Request) (identity.Identity, bool, error) {
	id, how, known, err := v.authenticate(r)
	v.metrics.count(r.Context(), how, known && err == nil)
	if err != nil {
		return identity.Identity{}, false, v.refuse(r.Context(), err)
	}
	if known {
		r.Header.Del("Authorization")
	}
	return id, known, nil
}

func (v *Verifier) authenticate(r *http.Request) (id identity.Identity, how method, known bool, err error) {
	// Clients show the certificate they have to whoever asks: with a token as well, one of another cluster's does no harm.
	var foreign error
	if r.TLS != nil && len(r.TLS.PeerCertificates) > 0 {
		if id, foreign = certified(r); foreign == nil {
			return id, byCertificate, true, nil
		}
	}
	if raw, ok := transport.BearerToken(r.Header.Get("Authorization")); ok {
		id, _, err = v.AuthenticateToken(r.Context(), raw, nil)
		return id, byToken, true, err
	}
	raw, protocols, err := protocolToken(r.Header)
	if err != nil {
		return id, byToken, false, err
	}
	if raw != "" {
		if id, _, err = v.AuthenticateToken(r.Context(), raw, nil); err == nil {
			r.Header.Set(protocolHeader, strings.Join(protocols, ","))
		}
		return id, byToken, true, err
	}
	if foreign != nil {
		return id, byCertificate, true, foreign
	}
	if anonymous := v.rules.Load().anonymous; anonymous.Enabled && (len(anonymous.Paths) == 0 || slices.Contains(anonymous.Paths, r.URL.Path)) {
		return identity.Unauthenticated(), byNothing, true, nil
	}
	return id, byNothing, false, nil
}

func certified(r *http.Request) (identity.Identity, error) {
	if len(r.TLS.VerifiedChains) == 0 || len(r.TLS.VerifiedChains[0]) == 0 {
		return identity.Identity{}, errUnverified
	}
	id, err := identity.FromCertificate(r.TLS.VerifiedChains[0][0])
	return id.Authenticated(), err
}

// Token says whose token it is, for the gRPC door (transport.Tokens).
func (v *Verifier) Token(ctx context.Context, raw string) (identity.Identity, error) {
	id, _, err := v.AuthenticateToken(ctx, raw, nil)
	v.metrics.count(ctx, byToken, err == nil)
	if err != nil {
		return identity.Identity{}, v.refuse(ctx, err)
	}
	return id, nil
}

// refuse makes of why a caller is not known what the caller is told.
func (v *Verifier) refuse(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return apierrors.NewTimeoutError("the request ended before its caller was known", 1)
	case errors.Is(err, token.ErrUnavailable):
		v.logger.LogAttrs(ctx, slog.LevelWarn, "token cannot be verified", logkey.Err(err))
		return apierrors.NewServiceUnavailable("the token cannot be verified now")
	}
	v.logger.LogAttrs(ctx, slog.LevelDebug, "request not authenticated", logkey.Err(err))
	return apierrors.NewUnauthorized(unauthorized)
}

// credential is a token whose signature was verified. Check verifies what may have changed since.
type credential interface {
	check(ctx context.Context, audiences []string) (identity.Identity, []string, error)
	// stands says whether who verified it still does.
	stands(v *Verifier) bool
}

// AuthenticateToken says whose token it is, and for which of the audiences it is (none: for the API server). The error says why not, in the words
// of Kubernetes; it is for TokenReview and for logs, not for the caller.
func (v *Verifier) AuthenticateToken(ctx context.Context, raw string, audiences []string) (identity.Identity, []string, error) {
	if len(raw) > maxToken {
		return identity.Identity{}, nil, invalid(fmt.Errorf("token is longer than %d bytes", maxToken))
	}
	if isBootstrap(raw) {
		id, err := v.bootstrap.authenticate(ctx, raw)
		if err != nil {
			return identity.Identity{}, nil, invalid(err)
		}
		return v.agnostic(id, audiences)
	}
	key := digest(raw)
	c := v.recent.get(key)
	if c == nil || !c.stands(v) {
		var err error
		if c, err = v.parse(ctx, raw); err != nil {
			return identity.Identity{}, nil, invalid(err)
		}
		v.recent.put(key, c)
	}
	id, shared, err := c.check(ctx, audiences)
	if err != nil {
		return identity.Identity{}, nil, invalid(err)
	}
	return id, shared, nil
}

// invalid is why a token is not taken, as Kubernetes writes it.
func invalid(reason error) error {
	if reason == errInvalidToken || errors.Is(reason, token.ErrUnavailable) {
		return reason
	}
	return utilerrors.NewAggregate([]error{errInvalidToken, reason})
}

// parse finds the issuer of a token and verifies its signature.
func (v *Verifier) parse(ctx context.Context, raw string) (credential, error) {
	issuer, ok := issuerOf(raw)
	switch {
	case !ok:
		return nil, errInvalidToken
	case v.issuer.Issued(issuer):
		claims, err := v.issuer.Parse(raw)
		if err != nil {
			return nil, err
		}
		return account{issuer: v.issuer, claims: claims}, nil
	}
	if o := v.rules.Load().of(issuer); o != nil {
		user, err := o.parse(ctx, raw)
		if err != nil {
			return nil, err
		}
		user.verifier = v
		return user, nil
	}
	return nil, errInvalidToken
}

// agnostic answers for credentials that name no audience of Kubernetes' kind: they are for the API server.
func (v *Verifier) agnostic(id identity.Identity, audiences []string) (identity.Identity, []string, error) {
	if len(audiences) == 0 {
		return id, v.issuer.Audiences(), nil
	}
	var shared []string
	for _, audience := range audiences {
		if slices.Contains(v.issuer.Audiences(), audience) {
			shared = append(shared, audience)
		}
	}
	if len(shared) == 0 {
		return identity.Identity{}, nil, fmt.Errorf("token is for the API server %q, not for the target audiences %q", v.issuer.Audiences(), audiences)
	}
	return id, shared, nil
}

// account is the credential of a service account.
type account struct {
	issuer *token.Issuer
	claims *token.Claims
}

func (a account) check(ctx context.Context, audiences []string) (identity.Identity, []string, error) {
	return a.issuer.Check(ctx, a.claims, audiences)
}

func (account) stands(*Verifier) bool { return true }

// issuerOf reads the issuer of a JSON web token. It verifies nothing: it only finds who can.
func issuerOf(raw string) (string, bool) {
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return "", false
	}
	payload, err := base64.RawURLEncoding.DecodeString(parts[1])
	if err != nil {
		return "", false
	}
	var claims struct {
		Issuer string `json:"iss"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil {
		return "", false
	}
	return claims.Issuer, claims.Issuer != ""
}

// protocolToken returns the token among the subprotocols of a WebSocket request, and the other subprotocols.
func protocolToken(header http.Header) (raw string, others []string, err error) {
	values := header[textproto.CanonicalMIMEHeaderKey(protocolHeader)]
	for _, value := range values {
		for protocol := range strings.SplitSeq(value, ",") {
			protocol = strings.TrimSpace(protocol)
			encoded, ok := strings.CutPrefix(protocol, protocolPrefix)
			if !ok {
				others = append(others, protocol)
				continue
			}
			if raw != "" {
				return "", nil, errors.New("multiple base64.bearer.authorization tokens specified")
			}
			decoded, err := base64.RawURLEncoding.DecodeString(encoded)
			if err != nil || len(decoded) == 0 || !utf8.Valid(decoded) {
				return "", nil, errors.New("invalid base64.bearer.authorization token encoding")
			}
			raw = string(decoded)
		}
	}
	// The server has to answer with one of the subprotocols, and must not answer with the token.
	if raw != "" && len(others) == 0 {
		return "", nil, errors.New("missing additional subprotocol")
	}
	return raw, others, nil
}
