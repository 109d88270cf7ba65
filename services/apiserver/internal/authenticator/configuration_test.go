package authenticator_test

import (
	"context"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/authenticator"
)

const configurationHead = "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthenticationConfiguration\n"

// jwt is the item of an AuthenticationConfiguration for an issuer.
func (o *openID) jwt(rest string) string {
	ca := strings.ReplaceAll(string(o.ca()), "\n", "\n      ")
	return "- issuer:\n    url: " + o.server.URL + "\n    audiences: [client]\n    certificateAuthority: |\n      " + ca + "\n" + rest
}

// configured writes a configuration file, and returns what is built by it.
func configured(t *testing.T, w *world, file, text string, log slog.Handler) (*authenticator.Verifier, error) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	chosen, err := options(t, "--authentication-config", file)
	if err != nil {
		return nil, err
	}
	_, verifier, err := chosen.Build(w.cache, filepath.Join(t.TempDir(), "keys"), nil, slog.New(log))
	return verifier, err
}

func TestConfigurationFile(t *testing.T) {
	w, o, second := newWorld(t, nil), newOpenID(t), newOpenID(t)
	file := filepath.Join(t.TempDir(), "authentication.yaml")
	verifier, err := configured(t, w, file, configurationHead+"jwt:\n"+o.jwt(`  claimMappings:
    username: {claim: sub, prefix: "corp:"}
    groups: {claim: roles, prefix: ""}
    uid: {claim: sub}
  claimValidationRules:
  - {claim: hd, requiredValue: x}
`)+second.jwt(`  claimMappings:
    username: {claim: sub, prefix: "other:"}
`)+`anonymous:
  enabled: true
  conditions: [{path: /livez}]
`, slog.DiscardHandler)
	if err != nil {
		t.Fatal(err)
	}
	raw := o.sign(time.Now(), map[string]any{"hd": "x", "roles": []string{"dev"}})
	if id, err := verifier.Token(t.Context(), raw); err != nil || id.Name != "corp:42" || id.UID != "42" || id.Groups[0] != "dev" {
		t.Errorf("%+v, %v", id, err)
	}
	if id, err := verifier.Token(t.Context(), second.sign(time.Now(), nil)); err != nil || id.Name != "other:42" {
		t.Errorf("the second issuer's: %+v, %v", id, err)
	}
	for path, want := range map[string]bool{"/livez": true, "/healthz": false} {
		if _, ok, err := verifier.Authenticate(ask(path, "")); ok != want || err != nil {
			t.Errorf("%s: %v, %v", path, ok, err)
		}
	}
}

func TestConfigurationIsRefused(t *testing.T) {
	w, o := newWorld(t, nil), newOpenID(t)
	file := filepath.Join(t.TempDir(), "authentication.yaml")
	issuer := func(rest string) string { return configurationHead + "jwt:\n" + o.jwt(rest) }
	const username = "  claimMappings:\n    username: {claim: sub, prefix: \"\"}\n"
	for name, c := range map[string]struct{ text, words string }{
		"other kind":                 {"apiVersion: v1\nkind: Pod\n", "want an AuthenticationConfiguration"},
		"unknown field":              {configurationHead + "jwts: []\n", `unknown field "jwts"`},
		"no username":                {issuer(""), "jwt[0].claimMappings.username: claim or expression is required"},
		"no prefix":                  {issuer("  claimMappings:\n    username: {claim: sub}\n"), "claimMappings.username.prefix: required"},
		"prefix alone":               {issuer(username + "    groups: {prefix: x}\n"), "claimMappings.groups.claim: required"},
		"claim and expression":       {issuer("  claimMappings:\n    username: {claim: sub, prefix: \"\", expression: claims.sub}\n"), "claim and expression can't both be set"},
		"prefix of expression":       {issuer("  claimMappings:\n    username: {expression: claims.sub, prefix: x}\n"), "prefix can't be set when expression is set"},
		"bad expression":             {issuer("  claimMappings:\n    username: {expression: \"claims.\"}\n"), "compilation failed"},
		"no such variable":           {issuer("  claimMappings:\n    username: {expression: user.username}\n"), "undeclared reference to 'user'"},
		"of another type":            {issuer("  claimMappings:\n    username: {expression: \"1 + 1\"}\n"), "must evaluate to"},
		"email that is not verified": {issuer("  claimMappings:\n    username: {expression: claims.email}\n"), "claims.email_verified must be used"},
		"email, otherwise written":   {issuer("  claimMappings:\n    username: {expression: 'claims[\"email\"]'}\n"), "claims.email_verified must be used"},
		"key without domain":         {issuer(username + "    extra: [{key: k, valueExpression: claims.x}]\n"), "must be a domain-prefixed path"},
		"key of Kubernetes":          {issuer(username + "    extra: [{key: a.k8s.io/k, valueExpression: claims.x}]\n"), "reserved for Kubernetes use"},
		"key with capitals":          {issuer(username + "    extra: [{key: example.com/K, valueExpression: claims.x}]\n"), "must be lowercase"},
		"key twice":                  {issuer(username + "    extra: [{key: example.com/k, valueExpression: claims.x}, {key: example.com/k, valueExpression: claims.y}]\n"), "each key once"},
		"rule of nothing":            {issuer(username + "  claimValidationRules: [{message: x}]\n"), "claim or expression is required"},
		"rule of no truth":           {issuer(username + "  claimValidationRules: [{expression: \"'x'\"}]\n"), "must evaluate to"},
		"no such field of users":     {issuer(username + "  userValidationRules: [{expression: \"user.name == 'x'\"}]\n"), "undefined field 'name'"},
		"rule twice":                 {issuer(username + "  userValidationRules: [{expression: \"true\"}, {expression: \"true\"}]\n"), "each once"},
		"issuer twice":               {configurationHead + "jwt:\n" + o.jwt(username) + o.jwt(username), "configured twice"},
		"bad path":                   {configurationHead + "anonymous: {enabled: true, conditions: [{path: livez}]}\n", "does not begin with /"},
		"paths for nobody":           {configurationHead + "anonymous: {enabled: false, conditions: [{path: /livez}]}\n", "conditions should not be set when anonymous auth is disabled"},
		"audience policy":            {strings.Replace(issuer(username), "audiences: [client]", "audiences: [client, other]", 1), "must be MatchAny"},
	} {
		if _, err := configured(t, w, file, c.text, slog.DiscardHandler); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%s: %v, want %q", name, err, c.words)
		}
	}
}

// TestExpressions: names, groups, UIDs and extra values by CEL; what claims and users are held to.
func TestExpressions(t *testing.T) {
	o := newOpenID(t)
	base := func(c *authenticator.OIDC) {
		c.UsernameExpression = `"corp:" + claims.sub`
	}
	for name, tc := range map[string]struct {
		change func(*authenticator.OIDC)
		claims map[string]any
		want   identity.Identity
		words  string
	}{
		"name": {want: identity.Identity{Name: "corp:42"}},
		"everything": {
			change: func(c *authenticator.OIDC) {
				c.UsernameExpression = `claims.name.lowerAscii() + ":external"`
				c.GroupsExpression = `claims.roles.split(",").map(r, "g:" + r)`
				c.UIDExpression = `claims.org.id`
				c.Extra = []authenticator.Extra{{Key: "example.com/tenant", Expression: "claims.tenants"}, {Key: "example.com/none", Expression: `claims.?absent.orValue("")`}, {Key: "example.com/one", Expression: `string(claims.level)`}}
				c.ClaimRules = []authenticator.Rule{{Expression: "claims.exp - claims.iat <= 86400", Message: "lives too long"}, {Expression: "claims.level > 2"}}
				c.UserRules = []authenticator.Rule{{Expression: "!user.username.startsWith('system:')"}, {Expression: "user.groups.all(g, g.startsWith('g:')) && 'example.com/tenant' in user.extra && user.uid != ''"}}
			},
			claims: map[string]any{"name": "Jane", "roles": "a,b", "org": map[string]any{"id": "7"}, "tenants": []string{"x", "y"}, "level": 3},
			want:   identity.Identity{Name: "jane:external", UID: "7", Groups: []string{"g:a", "g:b"}, Extra: map[string][]string{"example.com/tenant": {"x", "y"}, "example.com/one": {"3"}}},
		},
		"no groups":         {change: func(c *authenticator.OIDC) { base(c); c.GroupsExpression = "claims.?groups.orValue([])" }, want: identity.Identity{Name: "corp:42"}},
		"one group":         {change: func(c *authenticator.OIDC) { base(c); c.GroupsExpression = "claims.roles" }, claims: map[string]any{"roles": "a"}, want: identity.Identity{Name: "corp:42", Groups: []string{"a"}}},
		"groups of numbers": {change: func(c *authenticator.OIDC) { base(c); c.GroupsExpression = "claims.roles" }, claims: map[string]any{"roles": []int{1}}, words: "error evaluating group claim expression"},
		"claim and rule": {change: func(c *authenticator.OIDC) {
			c.UsernameClaim, c.UsernameExpression = "sub", ""
			c.ClaimRules = []authenticator.Rule{{Expression: "claims.hd == 'x'", Message: "must be x"}}
		}, claims: map[string]any{"hd": "y"}, words: "validation expression 'claims.hd == 'x'' failed: must be x"},
		"no such claim":    {change: func(c *authenticator.OIDC) { c.UsernameExpression = "claims.name" }, words: "error evaluating username claim expression"},
		"empty name":       {change: func(c *authenticator.OIDC) { c.UsernameExpression = "claims.name" }, claims: map[string]any{"name": ""}, words: "evaluated to an empty string"},
		"name of a number": {change: func(c *authenticator.OIDC) { c.UsernameExpression = "claims.name" }, claims: map[string]any{"name": 1}, words: "must evaluate to a string"},
		"email": {change: func(c *authenticator.OIDC) {
			c.UsernameExpression = "claims.email"
			c.ClaimRules = []authenticator.Rule{{Expression: "claims.?email_verified.orValue(true) == true"}}
		}, claims: map[string]any{"email": "j@x"}, want: identity.Identity{Name: "j@x"}},
		"user of the system": {change: func(c *authenticator.OIDC) {
			c.UsernameExpression = "claims.sub"
			c.UserRules = []authenticator.Rule{{Expression: "!user.username.startsWith('system:')", Message: "reserved"}}
		}, claims: map[string]any{"sub": "system:admin"}, words: "failed: reserved"},
		"user by claims": {change: func(c *authenticator.OIDC) {
			c.UsernameClaim, c.UsernameExpression = "sub", ""
			c.UserRules = []authenticator.Rule{{Expression: "user.username == 'x'"}}
		}, words: "validation expression 'user.username == 'x'' failed"},
		"too dear": {change: func(c *authenticator.OIDC) {
			c.UsernameExpression = "claims.l.map(a, claims.l.map(b, claims.l.map(c, claims.l.map(d, 'x'))))[0][0][0][0]"
		}, claims: map[string]any{"l": slices.Repeat([]int{1}, 200)}, words: "cost limit exceeded"},
	} {
		t.Run(name, func(t *testing.T) {
			config := o.config()
			base(&config)
			if tc.change != nil {
				tc.change(&config)
			}
			w := newWorld(t, func(c *authenticator.Config) { c.OIDC = []authenticator.OIDC{config} })
			id, _, err := w.verifier.AuthenticateToken(t.Context(), o.sign(w.now, tc.claims), nil)
			if tc.words != "" {
				if err == nil || !strings.Contains(err.Error(), tc.words) {
					t.Errorf("%+v, %v; want %q", id, err, tc.words)
				}
				return
			}
			if err != nil || id.Name != tc.want.Name || id.UID != tc.want.UID || !slices.Equal(id.Groups, append(tc.want.Groups, "system:authenticated")) ||
				!maps.EqualFunc(id.Extra, tc.want.Extra, slices.Equal[[]string]) {
				t.Errorf("%+v, %v, want %+v", id, err, tc.want)
			}
		})
	}
}

// said is a log handler that passes on what is said.
type said chan string

func (said) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }
func (s said) WithAttrs([]slog.Attr) slog.Handler             { return s }
func (s said) WithGroup(string) slog.Handler                  { return s }
func (s said) Handle(_ context.Context, r slog.Record) error {
	s <- r.Message
	return nil
}

// TestConfigurationChanges replaces the file as an editor does, by a rename, with good and bad ones.
func TestConfigurationChanges(t *testing.T) {
	w, o, second := newWorld(t, nil), newOpenID(t), newOpenID(t)
	dir := t.TempDir()
	file := filepath.Join(dir, "authentication.yaml")
	named := func(prefix string) string {
		return "  claimMappings:\n    username: {claim: sub, prefix: \"" + prefix + "\"}\n"
	}
	log := make(said, 16)
	verifier, err := configured(t, w, file, configurationHead+"jwt:\n"+o.jwt(named("a:")), log)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- verifier.Run(ctx) }()
	expect := func(words string) {
		t.Helper()
		select {
		case got := <-log:
			if !strings.Contains(got, words) {
				t.Fatalf("%q, want %q", got, words)
			}
		case <-ctx.Done():
			t.Fatalf("it was never %q", words)
		}
	}
	replace := func(text, words string) {
		t.Helper()
		next := filepath.Join(dir, ".next")
		if err := os.WriteFile(next, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, file); err != nil {
			t.Fatal(err)
		}
		expect(words)
	}
	// who looks as whom a token is known, empty for nobody.
	who := func(raw, want string) {
		t.Helper()
		if id, _, err := verifier.AuthenticateToken(ctx, raw, nil); id.Name != want {
			t.Errorf("%+v, %v, want %q", id, err, want)
		}
	}
	const applied, kept = "configuration applied", "not applied, the former one counts"
	long := map[string]any{"exp": time.Now().Add(time.Hour).Unix()}
	first, other := o.sign(time.Now(), long), second.sign(time.Now(), long)
	expect(applied) // what the file has when the watch begins
	who(first, "a:42")
	who(other, "")
	replace(configurationHead+"jwt:\n"+o.jwt(named("b:"))+second.jwt(named("c:")), applied)
	who(other, "c:42")
	who(first, "b:42")
	asked := second.asked.Load()
	replace("jwt: [", kept)
	who(first, "b:42")
	replace(configurationHead+"jwt:\n"+second.jwt(named("c:"))+second.jwt(named("d:")), kept)
	who(other, "c:42")
	// A token that was known is not for a moment longer than its issuer. The issuer that stays as it is is not asked for its keys again.
	replace(configurationHead+"jwt:\n"+second.jwt(named("c:")), applied)
	who(first, "")
	who(other, "c:42")
	if n := second.asked.Load(); n != asked {
		t.Errorf("an issuer that was not changed was asked %d times more", n-asked)
	}
	replace(configurationHead+"anonymous: {enabled: false}\n", applied)
	who(other, "")
	if _, ok, _ := verifier.Authenticate(ask("/healthz", "")); ok {
		t.Error("anonymous is still allowed")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
