package authenticator

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/types"

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
	// ConfigurationFile is where OIDC and Anonymous were read; what it says later counts from then on. Empty: they stay.
	ConfigurationFile string

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
		o.ConfigurationFile = f.configurationFile
		rules, err := readConfiguration(o.ConfigurationFile)
		if err != nil {
			return fmt.Errorf("--authentication-config: %w", err)
		}
		o.OIDC, o.Anonymous = rules.OIDC, rules.Anonymous
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

// Used is token.Config's.
type Used = func(ctx context.Context, secret types.NamespacedName, uid types.UID, label, day string)

// Build makes what the options describe. KeyFile is where the signing keys are when the options do not say it; used may be nil.
func (o *Options) Build(objects token.Objects, keyFile string, used Used, logger *slog.Logger) (*token.Issuer, *Verifier, error) {
	if o.SigningKeyFile != "" {
		keyFile = o.SigningKeyFile
	}
	keys, err := token.LoadOrCreate(keyFile)
	if err != nil {
		return nil, nil, err
	}
	issuer, err := token.New(token.Config{Keys: keys, Objects: objects, Issuers: o.Issuers, Audiences: o.Audiences, JWKSURI: o.JWKSURI, Used: used})
	if err != nil {
		return nil, nil, err
	}
	verifier, err := New(Config{
		Issuer: issuer, Objects: objects, Rules: Rules{OIDC: o.OIDC, Anonymous: o.Anonymous}, ConfigurationFile: o.ConfigurationFile, Logger: logger,
	})
	return issuer, verifier, err
}
