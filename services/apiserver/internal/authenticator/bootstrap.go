package authenticator

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	dhowcorev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/token"
)

// What Kubernetes keeps of a bootstrap token, in a Secret of kube-system.
const (
	bootstrapSecretPrefix = "bootstrap-token-"
	bootstrapUserPrefix   = "system:bootstrap:"

	keyTokenID     = "token-id"
	keyTokenSecret = "token-secret"
	keyExpiration  = "expiration"
	keyUsage       = "usage-bootstrap-authentication"
	keyGroups      = "auth-extra-groups"
)

var (
	bootstrapToken = regexp.MustCompile(`\A([a-z0-9]{6})\.([a-z0-9]{16})\z`)
	bootstrapGroup = regexp.MustCompile(`\Asystem:bootstrappers:[a-z0-9:-]{0,255}[a-z0-9]\z`)

	secrets = resource.For[*dhowcorev1.Secret]()
)

// isBootstrap says whether a token has the form of bootstrap tokens, which no JSON web token has.
func isBootstrap(raw string) bool { return bootstrapToken.MatchString(raw) }

// bootstrap knows the tokens with which machines join.
type bootstrap struct {
	objects token.Objects
	now     func() time.Time
}

// authenticate says who joins with a token of the right form. The Secret is read every time, so that it takes effect when it is deleted.
func (b bootstrap) authenticate(ctx context.Context, raw string) (identity.Identity, error) {
	id, secret, _ := strings.Cut(raw, ".")
	groups, err := b.look(id, secret)
	if err != nil {
		// Whoever was just given a token may be faster than this server's view of its Secret.
		if _, behind := b.objects.Consistent(ctx); behind != nil {
			return identity.Identity{}, fmt.Errorf("%w: %w", token.ErrUnavailable, behind)
		}
		if groups, err = b.look(id, secret); err != nil {
			return identity.Identity{}, err
		}
	}
	return identity.Identity{Name: bootstrapUserPrefix + id, Groups: append(groups, identity.AllAuthenticated)}, nil
}

// look compares a token with its Secret and returns the groups that it gives.
func (b bootstrap) look(id, secret string) ([]string, error) {
	name := bootstrapSecretPrefix + id
	e := b.objects.Peek(secrets, metav1.NamespaceSystem, name)
	if e == nil || e.Deleting {
		return nil, errInvalidToken
	}
	var stored corev1.Secret
	if err := stored.Unmarshal(e.Object); err != nil {
		return nil, fmt.Errorf("secret %s/%s cannot be decoded: %w", metav1.NamespaceSystem, name, err)
	}
	// The secret is compared before anything else is said of it.
	match := subtle.ConstantTimeCompare(stored.Data[keyTokenSecret], []byte(secret)) == 1
	if !match || stored.Type != corev1.SecretTypeBootstrapToken || string(stored.Data[keyTokenID]) != id {
		return nil, errInvalidToken
	}
	if expiration := string(stored.Data[keyExpiration]); expiration != "" {
		end, err := time.Parse(time.RFC3339, expiration)
		if err != nil {
			return nil, fmt.Errorf("secret %s/%s: unparseable expiration time %q", metav1.NamespaceSystem, name, expiration)
		}
		if !b.now().Before(end) {
			return nil, errors.New("bootstrap token has expired")
		}
	}
	if string(stored.Data[keyUsage]) != "true" {
		return nil, errors.New("bootstrap token is not for authentication")
	}
	groups := []string{identity.Bootstrappers}
	for group := range strings.SplitSeq(string(stored.Data[keyGroups]), ",") {
		group = strings.TrimSpace(group)
		switch {
		case group == "" || slices.Contains(groups, group):
		case !bootstrapGroup.MatchString(group):
			return nil, fmt.Errorf("secret %s/%s: bootstrap group %q is invalid (must match %s)", metav1.NamespaceSystem, name, group, bootstrapGroup)
		default:
			groups = append(groups, group)
		}
	}
	return groups, nil
}
