package authenticator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/common/ast"
	"github.com/google/cel-go/common/types"
	"github.com/google/cel-go/common/types/ref"
	"github.com/google/cel-go/common/types/traits"
	"github.com/google/cel-go/ext"

	"dhow.dev/pkg/identity"
)

const (
	// maxCost bounds what one evaluation may cost, in CEL's units; checkEvery is after how many steps of a comprehension the request's end is looked at.
	// Both are Kubernetes' numbers.
	maxCost    = 1_000_000
	checkEvery = 100

	claimsVariable = "claims"
	userVariable   = "user"
)

// Rule is an expression that has to be true, and what is said when it is not.
type Rule struct {
	Expression string `json:"expression"`
	Message    string `json:"message"`
}

// Extra is where a user's extra values of a key come from.
type Extra struct {
	Key        string `json:"key"`
	Expression string `json:"valueExpression"`
}

// UserInfo is what the variable `user` of expressions has.
type UserInfo struct {
	Username string              `cel:"username"`
	UID      string              `cel:"uid"`
	Groups   []string            `cel:"groups"`
	Extra    map[string][]string `cel:"extra"`
}

// languages are the environments of the expressions about claims and about users.
type languages struct{ claims, users *cel.Env }

func newLanguages() (languages, error) {
	common := []cel.EnvOption{
		cel.DefaultUTCTimeZone(true), cel.CrossTypeNumericComparisons(true), cel.HomogeneousAggregateLiterals(), cel.EagerlyValidateDeclarations(true), cel.OptionalTypes(),
		ext.Strings(ext.StringsVersion(2)), ext.Sets(), ext.TwoVarComprehensions(),
	}
	claims, err := cel.NewEnv(append(common, cel.Variable(claimsVariable, cel.MapType(cel.StringType, cel.DynType)))...)
	if err != nil {
		return languages{}, err
	}
	users, err := cel.NewEnv(append(common, ext.NativeTypes(reflect.TypeFor[UserInfo](), ext.ParseStructTags(true)),
		cel.Variable(userVariable, cel.ObjectType("authenticator.UserInfo")))...)
	return languages{claims: claims, users: users}, err
}

// expression is compiled.
type expression struct {
	text    string
	program cel.Program
	tree    *ast.AST
}

// compile compiles an expression whose value is of one of the types, or of one that is known only when it is evaluated. Only the empty expression is nil.
func compile(env *cel.Env, text string, wanted ...*cel.Type) (*expression, error) {
	if text == "" {
		return nil, nil
	}
	compiled, issues := env.Compile(text)
	if err := issues.Err(); err != nil {
		return nil, fmt.Errorf("compilation failed: %w", err)
	}
	fits := compiled.OutputType().IsExactType(cel.DynType)
	for _, t := range wanted {
		fits = fits || compiled.OutputType().IsExactType(t)
	}
	if !fits {
		return nil, fmt.Errorf("%q must evaluate to %v, not %v", text, wanted, compiled.OutputType())
	}
	program, err := env.Program(compiled, cel.EvalOptions(cel.OptOptimize), cel.CostLimit(maxCost), cel.InterruptCheckFrequency(checkEvery))
	if err != nil {
		return nil, fmt.Errorf("%q: %w", text, err)
	}
	return &expression{text: text, program: program, tree: compiled.NativeRep()}, nil
}

func (e *expression) eval(ctx context.Context, variable string, value any) (ref.Val, error) {
	result, _, err := e.program.ContextEval(ctx, map[string]any{variable: value})
	if err != nil {
		return nil, fmt.Errorf("expression %q resulted in error: %w", e.text, err)
	}
	return result, nil
}

// holds evaluates a rule.
func (e *expression) holds(ctx context.Context, variable string, value any) (bool, error) {
	result, err := e.eval(ctx, variable, value)
	if err != nil {
		return false, err
	}
	yes, ok := result.Value().(bool)
	if !ok {
		return false, fmt.Errorf("expression %q must evaluate to a bool", e.text)
	}
	return yes, nil
}

// texts evaluates to strings: none of null, and of the empty string and list.
func (e *expression) texts(ctx context.Context, claims any) ([]string, error) {
	result, err := e.eval(ctx, claimsVariable, claims)
	if err != nil {
		return nil, err
	}
	switch v := result.(type) {
	case types.Null:
		return nil, nil
	case types.String:
		if v == "" {
			return nil, nil
		}
		return []string{string(v)}, nil
	case traits.Lister:
		var all []string
		for it := v.Iterator(); it.HasNext() == types.True; {
			item, ok := it.Next().(types.String)
			if !ok {
				return nil, fmt.Errorf("expression %q must evaluate to a string or a list of strings", e.text)
			}
			all = append(all, string(item))
		}
		return all, nil
	}
	return nil, fmt.Errorf("expression %q must evaluate to a string or a list of strings", e.text)
}

// one evaluates to one string.
func (e *expression) one(ctx context.Context, claims any) (string, error) {
	result, err := e.eval(ctx, claimsVariable, claims)
	if err != nil {
		return "", err
	}
	text, ok := result.Value().(string)
	if !ok {
		return "", fmt.Errorf("expression %q must evaluate to a string", e.text)
	}
	return text, nil
}

// uses says whether the expression reads a claim by its name.
func (e *expression) uses(claim string) bool {
	if e == nil {
		return false
	}
	found := false
	isClaims := func(x ast.Expr) bool { return x.Kind() == ast.IdentKind && x.AsIdent() == claimsVariable }
	ast.PreOrderVisit(e.tree.Expr(), ast.NewExprVisitor(func(x ast.Expr) {
		switch x.Kind() {
		case ast.SelectKind:
			found = found || x.AsSelect().FieldName() == claim && isClaims(x.AsSelect().Operand())
		case ast.CallKind:
			// claims["email"], claims.?email, claims[?"email"]
			if arguments := x.AsCall().Args(); len(arguments) == 2 && isClaims(arguments[0]) && arguments[1].Kind() == ast.LiteralKind {
				found = found || arguments[1].AsLiteral().Value() == claim
			}
		}
	}))
	return found
}

// judge is the compiled rules and mappings of one issuer.
type judge struct {
	username, groups, uid *expression
	extra                 []keyedExpression
	claimRules, userRules []ruleExpression
}

type keyedExpression struct {
	key string
	*expression
}

type ruleExpression struct {
	message string
	*expression
}

func newJudge(config OIDC) (*judge, error) {
	if config.UsernameExpression == "" && config.GroupsExpression == "" && config.UIDExpression == "" && len(config.Extra)+len(config.ClaimRules)+len(config.UserRules) == 0 {
		return &judge{}, nil
	}
	in, err := newLanguages()
	if err != nil {
		return nil, err
	}
	j := &judge{}
	var errs []error
	made := func(e *expression, err error) *expression {
		errs = append(errs, err)
		return e
	}
	j.username = made(compile(in.claims, config.UsernameExpression, cel.StringType))
	j.groups = made(compile(in.claims, config.GroupsExpression, cel.StringType, cel.ListType(cel.StringType), cel.ListType(cel.DynType)))
	j.uid = made(compile(in.claims, config.UIDExpression, cel.StringType))
	for _, e := range config.Extra {
		j.extra = append(j.extra, keyedExpression{e.Key, made(compile(in.claims, e.Expression, cel.StringType, cel.ListType(cel.StringType), cel.ListType(cel.DynType)))})
	}
	for _, rule := range config.ClaimRules {
		j.claimRules = append(j.claimRules, ruleExpression{rule.Message, made(compile(in.claims, rule.Expression, cel.BoolType))})
	}
	for _, rule := range config.UserRules {
		j.userRules = append(j.userRules, ruleExpression{rule.Message, made(compile(in.users, rule.Expression, cel.BoolType))})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return j, j.checkEmail()
}

// checkEmail wants the verification of an address looked at where the address names the user.
func (j *judge) checkEmail() error {
	if !j.username.uses(emailClaim) || j.username.uses(verifiedClaim) {
		return nil
	}
	for _, e := range j.extra {
		if e.uses(verifiedClaim) {
			return nil
		}
	}
	for _, rule := range j.claimRules {
		if rule.uses(verifiedClaim) {
			return nil
		}
	}
	return errors.New("claims.email_verified must be used in claimMappings.username.expression or claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used in claimMappings.username.expression")
}

// of completes an identity from the claims, and holds both to the rules.
func (j *judge) of(ctx context.Context, c claims, id *identity.Identity) error {
	if j.username == nil && j.groups == nil && j.uid == nil && len(j.extra) == 0 && len(j.claimRules) == 0 {
		return j.users(ctx, id)
	}
	values, err := c.values()
	if err != nil {
		return err
	}
	if j.username != nil {
		if id.Name, err = j.username.one(ctx, values); err != nil {
			return fmt.Errorf("oidc: error evaluating username claim expression: %w", err)
		}
		if id.Name == "" {
			return errors.New("oidc: username claim expression evaluated to an empty string")
		}
	}
	if j.groups != nil {
		if id.Groups, err = j.groups.texts(ctx, values); err != nil {
			return fmt.Errorf("oidc: error evaluating group claim expression: %w", err)
		}
	}
	if j.uid != nil {
		if id.UID, err = j.uid.one(ctx, values); err != nil {
			return fmt.Errorf("oidc: error evaluating uid claim expression: %w", err)
		}
	}
	for _, e := range j.extra {
		found, err := e.texts(ctx, values)
		if err != nil {
			return fmt.Errorf("oidc: error evaluating extra claim expression: %w", err)
		}
		if len(found) == 0 {
			continue
		}
		if id.Extra == nil {
			id.Extra = map[string][]string{}
		}
		id.Extra[e.key] = found
	}
	for _, rule := range j.claimRules {
		if err := rule.check(ctx, claimsVariable, values, "claim"); err != nil {
			return err
		}
	}
	return j.users(ctx, id)
}

func (j *judge) users(ctx context.Context, id *identity.Identity) error {
	for _, rule := range j.userRules {
		user := &UserInfo{Username: id.Name, UID: id.UID, Groups: id.Groups, Extra: id.Extra}
		if err := rule.check(ctx, userVariable, user, "user info"); err != nil {
			return err
		}
	}
	return nil
}

func (r ruleExpression) check(ctx context.Context, variable string, value any, what string) error {
	switch yes, err := r.holds(ctx, variable, value); {
	case err != nil:
		return fmt.Errorf("oidc: error evaluating %s validation expression: %w", what, err)
	case yes:
		return nil
	case r.message != "":
		return fmt.Errorf("oidc: error evaluating %s validation expression: validation expression '%s' failed: %s", what, r.text, r.message)
	}
	return fmt.Errorf("oidc: error evaluating %s validation expression: validation expression '%s' failed", what, r.text)
}

// values are the claims as expressions see them: whole numbers are ints.
func (c claims) values() (map[string]any, error) {
	all := make(map[string]any, len(c))
	for name, raw := range c {
		decoder := json.NewDecoder(bytes.NewReader(raw))
		decoder.UseNumber()
		var v any
		if err := decoder.Decode(&v); err != nil {
			return nil, fmt.Errorf("oidc: could not parse claims: %w", err)
		}
		all[name] = plain(v)
	}
	return all, nil
}

func plain(v any) any {
	switch v := v.(type) {
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64() // one that is too large is infinite
		return f
	case map[string]any:
		for key := range v {
			v[key] = plain(v[key])
		}
	case []any:
		for i := range v {
			v[i] = plain(v[i])
		}
	}
	return v
}
