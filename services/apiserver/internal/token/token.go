// Package token issues and verifies the tokens of service accounts: JSON web tokens with Kubernetes' claims, bound to the objects that they were
// issued for.
//
// A token is verified in two steps. Parse looks at what the token says of itself (signature, issuer) and never changes its mind, so that its result
// can be kept; Check looks at the time and at the objects that the token is bound to, and is asked for every request. A token is therefore
// refused as soon as this server has seen that its pod, secret, node or account is gone.
package token

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4/jwt"
	"go.opentelemetry.io/otel/metric"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	dhowcorev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/services/apiserver/internal/cache"
)

const (
	// DefaultIssuer is the issuer when none is configured: where pods find the API server.
	DefaultIssuer = "https://kubernetes.default.svc.cluster.local"
	// legacyIssuer is the issuer of the tokens in Secrets that Kubernetes' controller signs.
	legacyIssuer = "kubernetes/serviceaccount"
	// lastUsedLabel says on which day the token of a Secret was used last.
	lastUsedLabel = "kubernetes.io/legacy-token-last-used"
	// invalidatedLabel marks a Secret whose legacy token was not used for long.
	invalidatedLabel = "kubernetes.io/legacy-token-invalid-since"

	// leeway is how far clocks may be apart, and how long after its deletion an object still counts (Kubernetes: both one minute).
	leeway = jwt.DefaultLeeway
)

var (
	accounts = resource.For[*dhowcorev1.ServiceAccount]()
	pods     = resource.For[*dhowcorev1.Pod]()
	nodes    = resource.For[*dhowcorev1.Node]()
	secrets  = resource.For[*dhowcorev1.Secret]()
)

// ErrUnavailable is part of errors that say nothing about a token: what it is bound to could not be looked up.
var ErrUnavailable = errors.New("the objects that the token is bound to cannot be looked up now")

var (
	errExpired     = errors.New("service account token has expired")
	errNotYet      = errors.New("service account token is not valid yet")
	errInFuture    = errors.New("service account token is issued in the future")
	errInvalidated = errors.New("service account token has been invalidated")
	errNoAccount   = errors.New("service account token names no service account")
	errNotTheCopy  = errors.New("token does not match server's copy")
)

// Objects is what is known of the objects that tokens are bound to; *cache.Cache implements it.
type Objects interface {
	// Peek returns an object as it is known now, or nil.
	Peek(r *resource.Resource, namespace, name string) *cache.Entry
	// Consistent waits until everything is known that was written before the call.
	Consistent(ctx context.Context) (int64, error)
}

// Config configures an Issuer.
type Config struct {
	Keys    *Keys
	Objects Objects
	// Issuers are the names of the cluster as issuer: the first one issues, all are accepted. Empty: DefaultIssuer.
	Issuers []string
	// Audiences are what the API server is called in tokens; tokens for none of them are for others. Empty: the issuers.
	Audiences []string
	// JWKSURI is where others find the public keys. Empty: /openid/v1/jwks of the first issuer.
	JWKSURI string
	// Used is told that the token of a Secret is used on a day (UTC, as in 2026-01-31) that the Secret does not have in its label yet, to write it there. Nil: nobody.
	Used func(ctx context.Context, secret types.NamespacedName, uid types.UID, label, day string)
	// Meter counts tokens; nil: the process's meter.
	Meter metric.Meter
	// Now is the clock; nil: the real one.
	Now func() time.Time
}

// scope names the package's metrics.
const scope = "dhow.dev/services/apiserver/internal/token"

// Issuer issues and verifies tokens. It is safe for concurrent use.
type Issuer struct {
	keys                      *Keys
	objects                   Objects
	issuers, audiences        []string
	now                       func() time.Time
	configuration, publicKeys []byte
	used                      func(ctx context.Context, secret types.NamespacedName, uid types.UID, label, day string)
	issued, stale             metric.Int64Counter
}

// New returns an issuer.
func New(config Config) (*Issuer, error) {
	if config.Keys == nil || config.Objects == nil {
		return nil, errors.New("token: Keys and Objects are required")
	}
	i := &Issuer{
		keys: config.Keys, objects: config.Objects, now: config.Now, used: config.Used,
		issuers: slices.Clone(config.Issuers), audiences: slices.Clone(config.Audiences), publicKeys: config.Keys.set,
	}
	if len(i.issuers) == 0 {
		i.issuers = []string{DefaultIssuer}
	}
	if len(i.audiences) == 0 {
		i.audiences = i.issuers
	}
	if i.now == nil {
		i.now = time.Now
	}
	if slices.Contains(i.issuers, "") || slices.Contains(i.audiences, "") {
		return nil, errors.New("token: an issuer or audience is empty: leave it out")
	}
	meter := config.Meter
	if meter == nil {
		meter = telemetry.Meter(scope)
	}
	var errs [3]error
	i.configuration, errs[0] = discovery(i.issuers[0], config.JWKSURI, config.Keys)
	i.issued, errs[1] = meter.Int64Counter("dhow.apiserver.tokens.issued", metric.WithDescription("Tokens of service accounts that were issued."))
	i.stale, errs[2] = meter.Int64Counter("dhow.apiserver.tokens.stale", metric.WithDescription("Requests with a token that its pod should have read anew."))
	return i, errors.Join(errs[:]...)
}

// Audiences are what the API server is called in tokens. They must not be changed.
func (i *Issuer) Audiences() []string { return i.audiences }

// Issued says whether tokens with this issuer are for Parse.
func (i *Issuer) Issued(issuer string) bool {
	return issuer == legacyIssuer || slices.Contains(i.issuers, issuer)
}

// reference names an object in a claim.
type reference struct {
	Name string `json:"name,omitempty"`
	UID  string `json:"uid,omitempty"`
}

// binding is the private claim of a token: whose it is, and which object it ends with.
type binding struct {
	Namespace      string           `json:"namespace,omitempty"`
	ServiceAccount reference        `json:"serviceaccount,omitempty"`
	Pod            *reference       `json:"pod,omitempty"`
	Secret         *reference       `json:"secret,omitempty"`
	Node           *reference       `json:"node,omitempty"`
	WarnAfter      *jwt.NumericDate `json:"warnafter,omitempty"`
}

// boundClaims are all claims of a token that is issued here. Audience hides the one of jwt.Claims, which is no list when it is one: Kubernetes' always
// is, and there are readers that expect it.
type boundClaims struct {
	jwt.Claims
	Audience   []string `json:"aud"`
	Kubernetes binding  `json:"kubernetes.io"`
}

// allClaims are those of bound and of legacy tokens.
type allClaims struct {
	jwt.Claims
	Kubernetes       *binding `json:"kubernetes.io"`
	LegacyName       string   `json:"kubernetes.io/serviceaccount/service-account.name"`
	LegacyUID        string   `json:"kubernetes.io/serviceaccount/service-account.uid"`
	LegacySecretName string   `json:"kubernetes.io/serviceaccount/secret.name"`
	LegacyNamespace  string   `json:"kubernetes.io/serviceaccount/namespace"`
}

// Claims are what a token says whose signature and issuer are right. They are immutable.
type Claims struct {
	public   jwt.Claims
	bound    binding
	identity identity.Identity
	// legacy is the token itself, of a legacy token, whose validity is that its Secret holds it.
	legacy string
}

// Parse verifies what does not change about a token: its signature and its issuer.
func (i *Issuer) Parse(raw string) (*Claims, error) {
	var all allClaims
	if err := i.keys.verify(raw, &all); err != nil {
		return nil, err
	}
	c := &Claims{public: all.Claims}
	switch {
	case all.Issuer == legacyIssuer:
		c.legacy = raw
		c.bound = binding{
			Namespace: all.LegacyNamespace, ServiceAccount: reference{Name: all.LegacyName, UID: all.LegacyUID}, Secret: &reference{Name: all.LegacySecretName},
		}
		if all.LegacySecretName == "" {
			return nil, errNoAccount
		}
	case slices.Contains(i.issuers, all.Issuer) && all.Kubernetes != nil:
		c.bound = *all.Kubernetes
	default:
		return nil, errSignature
	}
	account := c.bound.ServiceAccount
	if c.bound.Namespace == "" || account.Name == "" || account.UID == "" {
		return nil, errNoAccount
	}
	name := identity.ServiceAccount(c.bound.Namespace, account.Name)
	if c.public.Subject != name {
		return nil, fmt.Errorf("service account token of %q names %q as its subject", name, c.public.Subject)
	}
	c.identity = identity.Identity{
		Name: name, UID: account.UID, Extra: c.extra(),
		Groups: []string{identity.ServiceAccounts, identity.ServiceAccountGroup(c.bound.Namespace), identity.AllAuthenticated},
	}
	return c, nil
}

// extra is what a token says beyond whose it is.
func (c *Claims) extra() map[string][]string {
	extra := map[string][]string{}
	add := func(key, value string) {
		if value != "" {
			extra[key] = []string{value}
		}
	}
	if c.bound.Pod != nil {
		add(identity.ExtraPodName, c.bound.Pod.Name)
		add(identity.ExtraPodUID, c.bound.Pod.UID)
	}
	if c.bound.Node != nil {
		add(identity.ExtraNodeName, c.bound.Node.Name)
		add(identity.ExtraNodeUID, c.bound.Node.UID)
	}
	if c.public.ID != "" {
		add(identity.ExtraCredentialID, "JTI="+c.public.ID)
	}
	if len(extra) == 0 {
		return nil
	}
	return extra
}

// Check verifies what changes about a token: the time, and the objects that it is bound to; and that it is for one of the audiences (none: for the
// API server). It returns whose the token is and those of the audiences that it is for.
func (i *Issuer) Check(ctx context.Context, c *Claims, audiences []string) (identity.Identity, []string, error) {
	shared, err := i.shared(c.public.Audience, audiences)
	if err != nil {
		return identity.Identity{}, nil, err
	}
	now := i.now()
	switch err := c.public.ValidateWithLeeway(jwt.Expected{Time: now}, leeway); {
	case errors.Is(err, jwt.ErrExpired):
		return identity.Identity{}, nil, errExpired
	case errors.Is(err, jwt.ErrNotValidYet):
		return identity.Identity{}, nil, errNotYet
	case errors.Is(err, jwt.ErrIssuedInTheFuture):
		return identity.Identity{}, nil, errInFuture
	case err != nil:
		return identity.Identity{}, nil, fmt.Errorf("service account token claims could not be validated due to unexpected validation error: %w", err)
	}
	problem, err := i.consult(ctx, func() error { return i.standing(c, now) })
	switch {
	case err != nil:
		return identity.Identity{}, nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	case problem != nil:
		return identity.Identity{}, nil, problem
	}
	if c.bound.Secret != nil && i.used != nil {
		i.noteUse(ctx, c, now)
	}
	if w := c.bound.WarnAfter; w != nil && now.After(w.Time()) {
		i.stale.Add(ctx, 1)
	}
	return c.identity, shared, nil
}

// noteUse tells of the first use of a Secret's token on a day, so that Secrets whose tokens nobody uses can be told.
func (i *Issuer) noteUse(ctx context.Context, c *Claims, now time.Time) {
	e := i.objects.Peek(secrets, c.bound.Namespace, c.bound.Secret.Name)
	if e == nil {
		return
	}
	if kind, _ := e.Field("type"); kind != string(corev1.SecretTypeServiceAccountToken) {
		return
	}
	day := now.UTC().Format(time.DateOnly)
	if last, _ := e.Labels.Lookup(lastUsedLabel); last != day {
		i.used(ctx, types.NamespacedName{Namespace: e.Namespace, Name: e.Name}, types.UID(e.UID), lastUsedLabel, day)
	}
}

// shared returns the audiences that a token is for among those that are asked for.
func (i *Issuer) shared(own, wanted []string) ([]string, error) {
	if len(own) == 0 {
		own = i.audiences // legacy tokens are for the API server
	}
	if len(wanted) == 0 {
		wanted = i.audiences
	}
	var shared []string
	for _, audience := range own {
		if slices.Contains(wanted, audience) {
			shared = append(shared, audience)
		}
	}
	if len(shared) == 0 {
		return nil, fmt.Errorf("token audiences %q is invalid for the target audiences %q", own, wanted)
	}
	return shared, nil
}

// consult asks a question of the objects. A negative answer counts only once it is known that nothing is missing: an account that another API server
// made a moment ago may not have arrived here.
func (i *Issuer) consult(ctx context.Context, ask func() error) (problem, err error) {
	if problem = ask(); problem == nil {
		return nil, nil
	}
	if _, err := i.objects.Consistent(ctx); err != nil {
		return nil, err
	}
	return ask(), nil
}

// standing says why the objects behind a token do not let it pass.
func (i *Issuer) standing(c *Claims, now time.Time) error {
	b := c.bound
	account := i.objects.Peek(accounts, b.Namespace, b.ServiceAccount.Name)
	switch {
	case account == nil:
		return fmt.Errorf("serviceaccounts %q not found", b.ServiceAccount.Name)
	case account.UID != b.ServiceAccount.UID:
		return fmt.Errorf("service account UID (%s) does not match claim (%s)", account.UID, b.ServiceAccount.UID)
	case gone(account, now):
		return fmt.Errorf("service account %s/%s has been deleted", b.Namespace, b.ServiceAccount.Name)
	}
	if c.legacy != "" {
		return i.legacyStanding(c, now)
	}
	for _, bound := range []struct {
		kind      *resource.Resource
		namespace string
		reference *reference
	}{{secrets, b.Namespace, b.Secret}, {pods, b.Namespace, b.Pod}, {nodes, "", b.Node}} {
		// A pod's token names its node only for information: it ends with the pod.
		if bound.reference == nil || bound.kind == nodes && b.Pod != nil {
			continue
		}
		e := i.objects.Peek(bound.kind, bound.namespace, bound.reference.Name)
		if e == nil || gone(e, now) {
			return errInvalidated
		}
		if e.UID != bound.reference.UID {
			return fmt.Errorf("%s UID (%s) does not match service account %[1]s ref claim (%[3]s)", bound.kind.Singular(), e.UID, bound.reference.UID)
		}
	}
	return nil
}

// legacyStanding compares a legacy token with the Secret that holds it.
func (i *Issuer) legacyStanding(c *Claims, now time.Time) error {
	e := i.objects.Peek(secrets, c.bound.Namespace, c.bound.Secret.Name)
	if e == nil || gone(e, now) {
		return errInvalidated
	}
	if _, invalid := e.Labels.Lookup(invalidatedLabel); invalid {
		return errInvalidated
	}
	var secret corev1.Secret
	if err := secret.Unmarshal(e.Object); err != nil {
		return fmt.Errorf("secret %s/%s cannot be decoded: %w", e.Namespace, e.Name, err)
	}
	if subtle.ConstantTimeCompare(secret.Data[corev1.ServiceAccountTokenKey], []byte(c.legacy)) != 1 {
		return errNotTheCopy
	}
	return nil
}

// gone says whether an object's time is over: the end of its grace period has passed, and the leeway.
func gone(e *cache.Entry, now time.Time) bool {
	if !e.Deleting {
		return false
	}
	var meta metav1.PartialObjectMetadata
	if err := meta.Unmarshal(e.Object); err != nil || meta.DeletionTimestamp == nil {
		return true
	}
	return meta.DeletionTimestamp.Time.Before(now.Add(-leeway))
}
