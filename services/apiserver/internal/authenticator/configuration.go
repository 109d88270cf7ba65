package authenticator

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"
)

// configuration is the AuthenticationConfiguration of apiserver.config.k8s.io
// (https://kubernetes.io/docs/reference/access-authn-authz/authentication/#using-authentication-configuration).
type configuration struct {
	APIVersion string     `json:"apiVersion"`
	Kind       string     `json:"kind"`
	JWT        []jwtRules `json:"jwt"`
	Anonymous  *struct {
		Enabled    bool `json:"enabled"`
		Conditions []struct {
			Path string `json:"path"`
		} `json:"conditions"`
	} `json:"anonymous"`
}

type jwtRules struct {
	Issuer struct {
		URL                  string   `json:"url"`
		DiscoveryURL         string   `json:"discoveryURL"`
		CertificateAuthority string   `json:"certificateAuthority"`
		Audiences            []string `json:"audiences"`
		AudienceMatchPolicy  string   `json:"audienceMatchPolicy"`
	} `json:"issuer"`
	ClaimValidationRules []struct {
		Claim         string `json:"claim"`
		RequiredValue string `json:"requiredValue"`
		Rule
	} `json:"claimValidationRules"`
	ClaimMappings struct {
		Username mapping `json:"username"`
		Groups   mapping `json:"groups"`
		UID      struct {
			Claim      string `json:"claim"`
			Expression string `json:"expression"`
		} `json:"uid"`
		Extra []Extra `json:"extra"`
	} `json:"claimMappings"`
	UserValidationRules []Rule `json:"userValidationRules"`
}

type mapping struct {
	Claim      string  `json:"claim"`
	Prefix     *string `json:"prefix"`
	Expression string  `json:"expression"`
}

// check says what is wrong with the mapping of what.
func (m mapping) check(what string) error {
	switch {
	case m.Expression != "" && m.Claim != "":
		return fmt.Errorf("%s: claim and expression can't both be set", what)
	case m.Expression != "" && m.Prefix != nil:
		return fmt.Errorf("%s.prefix: prefix can't be set when expression is set", what)
	case m.Claim != "" && m.Prefix == nil:
		return fmt.Errorf("%s.prefix: required beside claim; set it to \"\" for none", what)
	case m.Claim == "" && m.Prefix != nil:
		return fmt.Errorf("%s.claim: required beside prefix", what)
	}
	return nil
}

const configurationGroup = "apiserver.config.k8s.io/"

// maxIssuers bounds how many issuers a file may have, as in Kubernetes.
const maxIssuers = 64

// readConfiguration reads the rules that a file has.
func readConfiguration(path string) (Rules, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return Rules{}, err
	}
	rules, err := parseConfiguration(data)
	if err != nil {
		return Rules{}, fmt.Errorf("%s: %w", path, err)
	}
	return rules, nil
}

func parseConfiguration(data []byte) (Rules, error) {
	var c configuration
	if err := yaml.UnmarshalStrict(data, &c); err != nil {
		return Rules{}, err
	}
	version, ok := strings.CutPrefix(c.APIVersion, configurationGroup)
	if !ok || c.Kind != "AuthenticationConfiguration" || !slices.Contains([]string{"v1", "v1beta1", "v1alpha1"}, version) {
		return Rules{}, fmt.Errorf("want an AuthenticationConfiguration of %sv1, got kind %q, apiVersion %q", configurationGroup, c.Kind, c.APIVersion)
	}
	if len(c.JWT) > maxIssuers {
		return Rules{}, fmt.Errorf("jwt: must have at most %d items", maxIssuers)
	}
	var rules Rules
	for n := range c.JWT {
		o, err := c.JWT[n].issuer(fmt.Sprintf("jwt[%d]", n))
		if err != nil {
			return Rules{}, err
		}
		if _, err := newJudge(o); err != nil {
			return Rules{}, fmt.Errorf("jwt[%d]: %w", n, err)
		}
		rules.OIDC = append(rules.OIDC, o)
	}
	if c.Anonymous == nil {
		return rules, nil
	}
	rules.Anonymous = &Anonymous{Enabled: c.Anonymous.Enabled}
	if !c.Anonymous.Enabled && len(c.Anonymous.Conditions) > 0 {
		return Rules{}, errors.New("anonymous.conditions: conditions should not be set when anonymous auth is disabled")
	}
	for _, condition := range c.Anonymous.Conditions {
		if !strings.HasPrefix(condition.Path, "/") {
			return Rules{}, fmt.Errorf("anonymous.conditions: the path %q does not begin with /", condition.Path)
		}
		rules.Anonymous.Paths = append(rules.Anonymous.Paths, condition.Path)
	}
	return rules, nil
}

// issuer returns what the rules say of one issuer. Its expressions are looked at when it is made (newOIDC).
func (j *jwtRules) issuer(path string) (OIDC, error) {
	at := func(format string, arguments ...any) string { return path + "." + fmt.Sprintf(format, arguments...) }
	m := j.ClaimMappings
	if err := errors.Join(m.Username.check(at("claimMappings.username")), m.Groups.check(at("claimMappings.groups"))); err != nil {
		return OIDC{}, err
	}
	switch {
	case m.Username.Claim == "" && m.Username.Expression == "":
		return OIDC{}, fmt.Errorf("%s: claim or expression is required", at("claimMappings.username"))
	case m.UID.Claim != "" && m.UID.Expression != "":
		return OIDC{}, fmt.Errorf("%s: claim and expression can't both be set", at("claimMappings.uid"))
	case len(j.Issuer.Audiences) > 1 && j.Issuer.AudienceMatchPolicy != "MatchAny":
		return OIDC{}, fmt.Errorf("%s: must be MatchAny for several audiences", at("issuer.audienceMatchPolicy"))
	case len(j.Issuer.Audiences) == 1 && j.Issuer.AudienceMatchPolicy != "" && j.Issuer.AudienceMatchPolicy != "MatchAny":
		return OIDC{}, fmt.Errorf("%s: must be empty or MatchAny for single audience", at("issuer.audienceMatchPolicy"))
	}
	o := OIDC{
		IssuerURL: j.Issuer.URL, DiscoveryURL: j.Issuer.DiscoveryURL, CA: []byte(j.Issuer.CertificateAuthority), Audiences: j.Issuer.Audiences,
		UsernameClaim: m.Username.Claim, UsernamePrefix: m.Username.Prefix, UsernameExpression: m.Username.Expression,
		GroupsClaim: m.Groups.Claim, GroupsExpression: m.Groups.Expression, UIDClaim: m.UID.Claim, UIDExpression: m.UID.Expression,
		Extra: m.Extra, UserRules: j.UserValidationRules, RequiredClaims: map[string]string{}, Algorithms: algorithms,
	}
	if m.Groups.Prefix != nil {
		o.GroupsPrefix = *m.Groups.Prefix
	}
	for i, rule := range j.ClaimValidationRules {
		switch _, twice := o.RequiredClaims[rule.Claim]; {
		case rule.Claim != "" && rule.Expression != "":
			return OIDC{}, fmt.Errorf("%s: claim and expression can't both be set", at("claimValidationRules[%d]", i))
		case rule.Claim == "" && rule.Expression == "":
			return OIDC{}, fmt.Errorf("%s: claim or expression is required", at("claimValidationRules[%d]", i))
		case rule.Claim != "" && rule.Message != "":
			return OIDC{}, fmt.Errorf("%s.message: message can't be set when claim is set", at("claimValidationRules[%d]", i))
		case rule.Expression != "" && rule.RequiredValue != "":
			return OIDC{}, fmt.Errorf("%s.requiredValue: requiredValue can't be set when expression is set", at("claimValidationRules[%d]", i))
		case rule.Claim != "" && twice:
			return OIDC{}, fmt.Errorf("%s.claim: %q is there twice", at("claimValidationRules[%d]", i), rule.Claim)
		case rule.Claim != "":
			o.RequiredClaims[rule.Claim] = rule.RequiredValue
		default:
			o.ClaimRules = append(o.ClaimRules, rule.Rule)
		}
	}
	seen := map[string]bool{}
	for i, rule := range j.UserValidationRules {
		if rule.Expression == "" || seen[rule.Expression] {
			return OIDC{}, fmt.Errorf("%s.expression: required, and each once", at("userValidationRules[%d]", i))
		}
		seen[rule.Expression] = true
	}
	keys := map[string]bool{}
	for i, e := range m.Extra {
		if err := checkExtraKey(e.Key); err != nil {
			return OIDC{}, fmt.Errorf("%s.key: %w", at("claimMappings.extra[%d]", i), err)
		}
		if keys[e.Key] || e.Expression == "" {
			return OIDC{}, fmt.Errorf("%s: a valueExpression is required, and each key once", at("claimMappings.extra[%d]", i))
		}
		keys[e.Key] = true
	}
	return o, nil
}

var extraKeyForm = regexp.MustCompile(`\A[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/[A-Za-z0-9/\-._~%!$&'()*+,;=:]+\z`)

// checkExtraKey wants a path below a domain, in lower case, that is not Kubernetes' own.
func checkExtraKey(key string) error {
	domain, _, _ := strings.Cut(key, "/")
	switch {
	case !extraKeyForm.MatchString(key):
		return fmt.Errorf("%q must be a domain-prefixed path (such as \"acme.io/foo\")", key)
	case key != strings.ToLower(key):
		return fmt.Errorf("%q must be lowercase", key)
	}
	for _, reserved := range []string{"k8s.io", "kubernetes.io"} {
		if domain == reserved || strings.HasSuffix(domain, "."+reserved) {
			return fmt.Errorf("%q: %s and its subdomains are reserved for Kubernetes use", key, reserved)
		}
	}
	return nil
}
