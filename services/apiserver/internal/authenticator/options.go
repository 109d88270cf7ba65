package authenticator

import (
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"

	"sigs.k8s.io/yaml"

	"dhow.dev/services/apiserver/internal/token"
)

// Options are what an operator chooses of authentication. The zero value is complete: the cluster's own certificates and tokens, bootstrap tokens, and
// anonymous health checks.
type Options struct {
	// SigningKeyFile holds the keys of service account tokens; it is made when it does not exist. API servers of one cluster need the same file.
	SigningKeyFile string
	// Issuers, Audiences and JWKSURI are those of token.Config.
	Issuers, Audiences []string
	JWKSURI            string
	// OIDC are the issuers of others whose tokens are taken.
	OIDC []OIDC
	// Anonymous says what may be asked without credentials; nil: whether the server is well.
	Anonymous *Anonymous

	// flags are what is read of the command line before Complete.
	flags flags
}

// flags are those of kube-apiserver.
type flags struct {
	oidc              OIDC
	caFile            string
	anonymous         *bool
	configurationFile string
}

// Flags adds the flags of authentication. Their names and meanings are kube-apiserver's. Complete must be called once they are read.
func (o *Options) Flags(set *flag.FlagSet) {
	f := &o.flags
	list := func(into *[]string, name, usage string) {
		set.Func(name, usage, func(value string) error {
			for item := range strings.SplitSeq(value, ",") {
				if item = strings.TrimSpace(item); item == "" {
					return errors.New("an empty item")
				}
				*into = append(*into, item)
			}
			return nil
		})
	}
	set.StringVar(&o.SigningKeyFile, "service-account-signing-key-file", "", "keys of service account tokens, PEM: the first signs, all verify; made when missing; the same for all API servers of a cluster; empty: token-keys.pem beside --encryption-key-file")
	list(&o.Issuers, "service-account-issuer", "name of the cluster as issuer of tokens; repeated: the first one issues, all are accepted (default "+token.DefaultIssuer+")")
	list(&o.Audiences, "api-audiences", "what the API server is called in tokens (default the issuers)")
	set.StringVar(&o.JWKSURI, "service-account-jwks-uri", "", "where others find the public keys of tokens; empty: /openid/v1/jwks of the issuer")
	set.Func("anonymous-auth", "true: all paths may be asked without credentials; false: none (default: /healthz, /livez and /readyz)", func(value string) error {
		on, err := strconv.ParseBool(value)
		f.anonymous = &on
		return err
	})
	set.StringVar(&f.configurationFile, "authentication-config", "", "file with an AuthenticationConfiguration of apiserver.config.k8s.io/v1, instead of --oidc-* and --anonymous-auth")
	set.StringVar(&f.oidc.IssuerURL, "oidc-issuer-url", "", "https URL of an OpenID issuer whose tokens are taken; empty: none")
	list(&f.oidc.Audiences, "oidc-client-id", "id of the client that OpenID tokens are issued for")
	set.StringVar(&f.caFile, "oidc-ca-file", "", "certificates of the authority of the OpenID issuer; empty: the system's")
	set.StringVar(&f.oidc.UsernameClaim, "oidc-username-claim", "sub", "claim that names the user")
	set.Func("oidc-username-prefix", "goes before the user's name; -: none (default the issuer's URL and #, none for the claim email)", func(value string) error {
		switch value {
		case "":
		case "-":
			f.oidc.UsernamePrefix = new(string)
		default:
			f.oidc.UsernamePrefix = &value
		}
		return nil
	})
	set.StringVar(&f.oidc.GroupsClaim, "oidc-groups-claim", "", "claim that says the user's groups; empty: none")
	set.StringVar(&f.oidc.GroupsPrefix, "oidc-groups-prefix", "", "goes before each group")
	set.Func("oidc-required-claim", "claim=value that tokens must have; may be repeated", func(value string) error {
		claim, want, ok := strings.Cut(value, "=")
		if !ok || claim == "" {
			return errors.New("give claim=value")
		}
		if f.oidc.RequiredClaims == nil {
			f.oidc.RequiredClaims = map[string]string{}
		}
		f.oidc.RequiredClaims[claim] = want
		return nil
	})
	list(&f.oidc.Algorithms, "oidc-signing-algs", "algorithms that signatures of OpenID tokens may have (default RS256)")
}

// Complete reads the files that the flags name, and says which flags contradict each other.
func (o *Options) Complete() error {
	f := o.flags
	if f.configurationFile != "" {
		if f.oidc.IssuerURL != "" || f.anonymous != nil {
			return errors.New("--authentication-config stands instead of --oidc-* and --anonymous-auth: give one of them")
		}
		data, err := os.ReadFile(f.configurationFile)
		if err != nil {
			return fmt.Errorf("--authentication-config: %w", err)
		}
		if o.OIDC, o.Anonymous, err = parseConfiguration(data); err != nil {
			return fmt.Errorf("--authentication-config %s: %w", f.configurationFile, err)
		}
		return nil
	}
	if f.anonymous != nil {
		o.Anonymous = &Anonymous{Enabled: *f.anonymous}
	}
	if f.oidc.IssuerURL == "" {
		if len(f.oidc.Audiences) > 0 {
			return errors.New("--oidc-client-id needs --oidc-issuer-url")
		}
		return nil
	}
	if f.caFile != "" {
		var err error
		if f.oidc.CA, err = os.ReadFile(f.caFile); err != nil {
			return fmt.Errorf("--oidc-ca-file: %w", err)
		}
	}
	o.OIDC = append(o.OIDC, f.oidc)
	return nil
}

// Build makes what the options describe. KeyFile is where the signing keys are when the options do not say it.
func (o *Options) Build(objects token.Objects, keyFile string, logger *slog.Logger) (*token.Issuer, *Verifier, error) {
	if o.SigningKeyFile != "" {
		keyFile = o.SigningKeyFile
	}
	keys, err := token.LoadOrCreate(keyFile)
	if err != nil {
		return nil, nil, err
	}
	issuer, err := token.New(token.Config{Keys: keys, Objects: objects, Issuers: o.Issuers, Audiences: o.Audiences, JWKSURI: o.JWKSURI})
	if err != nil {
		return nil, nil, err
	}
	verifier, err := New(Config{Issuer: issuer, Objects: objects, OIDC: o.OIDC, Anonymous: o.Anonymous, Logger: logger})
	return issuer, verifier, err
}

// configuration is the AuthenticationConfiguration of apiserver.config.k8s.io; what it says in CEL is read only to be refused.
type configuration struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	JWT        []struct {
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
			Expression    string `json:"expression"`
			Message       string `json:"message"`
		} `json:"claimValidationRules"`
		ClaimMappings struct {
			Username mapping `json:"username"`
			Groups   mapping `json:"groups"`
			UID      struct {
				Claim      string `json:"claim"`
				Expression string `json:"expression"`
			} `json:"uid"`
			Extra []struct {
				Key             string `json:"key"`
				ValueExpression string `json:"valueExpression"`
			} `json:"extra"`
		} `json:"claimMappings"`
		UserValidationRules []struct {
			Expression string `json:"expression"`
			Message    string `json:"message"`
		} `json:"userValidationRules"`
	} `json:"jwt"`
	Anonymous *struct {
		Enabled    bool `json:"enabled"`
		Conditions []struct {
			Path string `json:"path"`
		} `json:"conditions"`
	} `json:"anonymous"`
}

type mapping struct {
	Claim      string  `json:"claim"`
	Prefix     *string `json:"prefix"`
	Expression string  `json:"expression"`
}

// check says what is wrong with the mapping of what.
func (m mapping) check(what string) error {
	switch {
	case m.Expression != "":
		return errExpression(what + ".expression")
	case m.Claim != "" && m.Prefix == nil:
		return fmt.Errorf("%s.prefix: required beside claim; set it to \"\" for none", what)
	case m.Claim == "" && m.Prefix != nil:
		return fmt.Errorf("%s.claim: required beside prefix", what)
	}
	return nil
}

func errExpression(field string) error {
	return fmt.Errorf("%s: CEL expressions are not supported; use claims", field)
}

const configurationGroup = "apiserver.config.k8s.io/"

func parseConfiguration(data []byte) ([]OIDC, *Anonymous, error) {
	var c configuration
	if err := yaml.UnmarshalStrict(data, &c); err != nil {
		return nil, nil, err
	}
	version, ok := strings.CutPrefix(c.APIVersion, configurationGroup)
	if !ok || c.Kind != "AuthenticationConfiguration" || !slices.Contains([]string{"v1", "v1beta1", "v1alpha1"}, version) {
		return nil, nil, fmt.Errorf("want an AuthenticationConfiguration of %sv1, got kind %q, apiVersion %q", configurationGroup, c.Kind, c.APIVersion)
	}
	var issuers []OIDC
	for n, j := range c.JWT {
		at := func(field string) string { return fmt.Sprintf("jwt[%d].%s", n, field) }
		m := j.ClaimMappings
		if err := errors.Join(m.Username.check(at("claimMappings.username")), m.Groups.check(at("claimMappings.groups"))); err != nil {
			return nil, nil, err
		}
		switch {
		case m.Username.Claim == "":
			return nil, nil, fmt.Errorf("%s: required", at("claimMappings.username.claim"))
		case m.UID.Expression != "":
			return nil, nil, errExpression(at("claimMappings.uid.expression"))
		case len(m.Extra) > 0:
			return nil, nil, errExpression(at("claimMappings.extra"))
		case len(j.UserValidationRules) > 0:
			return nil, nil, errExpression(at("userValidationRules"))
		case len(j.Issuer.Audiences) > 1 && j.Issuer.AudienceMatchPolicy != "MatchAny":
			return nil, nil, fmt.Errorf("%s: must be MatchAny for several audiences", at("issuer.audienceMatchPolicy"))
		}
		o := OIDC{
			IssuerURL: j.Issuer.URL, DiscoveryURL: j.Issuer.DiscoveryURL, CA: []byte(j.Issuer.CertificateAuthority), Audiences: j.Issuer.Audiences,
			UsernameClaim: m.Username.Claim, UsernamePrefix: m.Username.Prefix, GroupsClaim: m.Groups.Claim, UIDClaim: m.UID.Claim,
			RequiredClaims: map[string]string{}, Algorithms: algorithms,
		}
		if m.Groups.Prefix != nil {
			o.GroupsPrefix = *m.Groups.Prefix
		}
		for i, rule := range j.ClaimValidationRules {
			if rule.Expression != "" || rule.Claim == "" {
				return nil, nil, errExpression(at(fmt.Sprintf("claimValidationRules[%d]", i)))
			}
			o.RequiredClaims[rule.Claim] = rule.RequiredValue
		}
		issuers = append(issuers, o)
	}
	if c.Anonymous == nil {
		return issuers, nil, nil
	}
	anonymous := &Anonymous{Enabled: c.Anonymous.Enabled}
	for _, condition := range c.Anonymous.Conditions {
		if !strings.HasPrefix(condition.Path, "/") {
			return nil, nil, fmt.Errorf("anonymous.conditions: the path %q does not begin with /", condition.Path)
		}
		anonymous.Paths = append(anonymous.Paths, condition.Path)
	}
	return issuers, anonymous, nil
}
