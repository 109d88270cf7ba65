package fairness

import (
	"cmp"
	"math"
	"slices"
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/request"
)

const all = "*"

// defaultShares is Kubernetes' default of nominalConcurrencyShares.
const defaultShares = 30

// schemas are the flow schemas in the order in which they are asked, compiled.
type schemas []*flowSchema

type flowSchema struct {
	name  string
	level *level
	// distinguisher is empty when all requests of the schema are one flow.
	distinguisher flowcontrolv1.FlowDistinguisherMethodType
	rules         []flowRule
	// schemaUID and levelUID are the values of response headers.
	schemaUID, levelUID []string
}

type flowRule struct {
	anyone        bool
	users, groups []string
	// accounts are namespaces whose service accounts are all meant, as the prefix of their names.
	accounts  []string
	resources []flowcontrolv1.ResourcePolicyRule
	paths     []flowcontrolv1.NonResourcePolicyRule
}

// find returns the schema of a request. The last one takes everyone; nil is for identities that no group has.
func (s schemas) find(user *identity.Identity, info *request.Info) *flowSchema {
	for _, schema := range s {
		for i := range schema.rules {
			if r := &schema.rules[i]; r.asks(info) && r.names(user) {
				return schema
			}
		}
	}
	return nil
}

func (s *flowSchema) flow(user *identity.Identity, info *request.Info) flowKey {
	switch s.distinguisher {
	case flowcontrolv1.FlowDistinguisherMethodByUserType:
		return flowKey{s.name, user.Name}
	case flowcontrolv1.FlowDistinguisherMethodByNamespaceType:
		return flowKey{s.name, info.Namespace}
	}
	return flowKey{schema: s.name}
}

func (r *flowRule) names(user *identity.Identity) bool {
	if r.anyone || slices.Contains(r.users, user.Name) {
		return true
	}
	for _, g := range r.groups {
		if slices.Contains(user.Groups, g) {
			return true
		}
	}
	for _, prefix := range r.accounts {
		if strings.HasPrefix(user.Name, prefix) {
			return true
		}
	}
	return false
}

func (r *flowRule) asks(info *request.Info) bool {
	if !info.IsResource {
		for i := range r.paths {
			if p := &r.paths[i]; has(p.Verbs, info.Verb) && slices.ContainsFunc(p.NonResourceURLs, func(pattern string) bool { return pathMatches(pattern, info.Path) }) {
				return true
			}
		}
		return false
	}
	for i := range r.resources {
		p := &r.resources[i]
		if !has(p.Verbs, info.Verb) || !has(p.APIGroups, info.Group) || !hasResource(p.Resources, info) {
			continue
		}
		if info.Namespace == "" {
			if p.ClusterScope {
				return true
			}
		} else if has(p.Namespaces, info.Namespace) {
			return true
		}
	}
	return false
}

func has(list []string, word string) bool {
	for _, s := range list {
		if s == word || s == all {
			return true
		}
	}
	return false
}

func hasResource(list []string, info *request.Info) bool {
	for _, s := range list {
		if s == all || info.Subresource == "" && s == info.Resource {
			return true
		}
		if info.Subresource == "" {
			continue
		}
		if resource, subresource, ok := strings.Cut(s, "/"); ok && resource == info.Resource && subresource == info.Subresource {
			return true
		}
	}
	return false
}

// pathMatches: `*` is any path, and `/prefix/*` what is below.
func pathMatches(pattern, path string) bool {
	if pattern == all || pattern == path {
		return true
	}
	prefix, open := strings.CutSuffix(pattern, all)
	return open && strings.HasSuffix(prefix, "/") && strings.HasPrefix(path, prefix)
}

// limitsOf shares out the seats among the levels by their shares, as Kubernetes does: nominal is rounded up.
func limitsOf(total int, levels []*flowcontrolv1.PriorityLevelConfiguration) map[string]limits {
	sum := 0
	for _, l := range levels {
		sum += shares(l)
	}
	wanted := make(map[string]limits, len(levels))
	for _, l := range levels {
		if l.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt || l.Spec.Limited == nil {
			wanted[l.Name] = limits{exempt: true}
			continue
		}
		limited := l.Spec.Limited
		nominal := 0
		if sum > 0 {
			nominal = int(math.Ceil(float64(total) * float64(shares(l)) / float64(sum)))
		}
		lendable := int(math.Round(float64(nominal) * float64(value(limited.LendablePercent, 0)) / 100))
		// More than the whole server is as much as all.
		most := total
		if limited.BorrowingLimitPercent != nil {
			most = nominal + int(math.Round(float64(nominal)*float64(*limited.BorrowingLimitPercent)/100))
		}
		own := limits{nominal: nominal, guaranteed: nominal - lendable, limit: max(most, nominal)}
		if q := limited.LimitResponse.Queuing; limited.LimitResponse.Type == flowcontrolv1.LimitResponseTypeQueue && q != nil {
			// In shuffle sharding a flow has handSize of the queues; with a queue for each flow that is as long as all of those.
			own.flowQueue, own.queue = int(q.HandSize)*int(q.QueueLengthLimit), int(q.Queues)*int(q.QueueLengthLimit)
		}
		wanted[l.Name] = own
	}
	return wanted
}

func shares(l *flowcontrolv1.PriorityLevelConfiguration) int {
	if l.Spec.Type == flowcontrolv1.PriorityLevelEnablementExempt || l.Spec.Limited == nil {
		return 0
	}
	return int(value(l.Spec.Limited.NominalConcurrencyShares, defaultShares))
}

func value(p *int32, otherwise int32) int32 {
	if p == nil {
		return otherwise
	}
	return *p
}

// compile makes the schemas ready to be asked, in the order of their precedence, then of their names. Those whose level does not exist are left out, as Kubernetes does.
func compile(objects []*flowcontrolv1.FlowSchema, levels map[string]*level, levelUIDs map[string]string) schemas {
	sorted := slices.Clone(objects)
	slices.SortFunc(sorted, func(a, b *flowcontrolv1.FlowSchema) int {
		return cmp.Or(cmp.Compare(a.Spec.MatchingPrecedence, b.Spec.MatchingPrecedence), strings.Compare(a.Name, b.Name))
	})
	var compiled schemas
	for _, o := range sorted {
		l := levels[o.Spec.PriorityLevelConfiguration.Name]
		if l == nil {
			continue
		}
		s := &flowSchema{name: o.Name, level: l, schemaUID: []string{string(o.UID)}, levelUID: []string{levelUIDs[l.name]}}
		if o.Spec.DistinguisherMethod != nil {
			s.distinguisher = o.Spec.DistinguisherMethod.Type
		}
		for i := range o.Spec.Rules {
			s.rules = append(s.rules, compileRule(&o.Spec.Rules[i]))
		}
		compiled = append(compiled, s)
	}
	return compiled
}

func compileRule(o *flowcontrolv1.PolicyRulesWithSubjects) flowRule {
	r := flowRule{resources: o.ResourceRules, paths: o.NonResourceRules}
	for _, s := range o.Subjects {
		switch {
		case s.User != nil && s.User.Name == all, s.Group != nil && s.Group.Name == all:
			r.anyone = true
		case s.User != nil:
			r.users = append(r.users, s.User.Name)
		case s.Group != nil:
			r.groups = append(r.groups, s.Group.Name)
		case s.ServiceAccount != nil && s.ServiceAccount.Name == all:
			r.accounts = append(r.accounts, identity.ServiceAccount(s.ServiceAccount.Namespace, ""))
		case s.ServiceAccount != nil:
			r.users = append(r.users, identity.ServiceAccount(s.ServiceAccount.Namespace, s.ServiceAccount.Name))
		}
	}
	return r
}
