package validation

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	// maxQueues bounds the queues of a priority level.
	maxQueues = 10_000_000
	// maxEntropyBits is how much of a flow's hash can deal it a hand of queues.
	maxEntropyBits = 60
	exemptName     = flowcontrolv1.PriorityLevelConfigurationNameExempt
	catchAllName   = flowcontrolv1.PriorityLevelConfigurationNameCatchAll
)

// flowVerbs are what rules of flow schemas may name.
var flowVerbs = []string{"create", "delete", "deletecollection", "get", "list", "patch", "proxy", "update", "watch"}

// everything is a rule on all requests of groups.
func everything(groups ...string) []flowcontrolv1.PolicyRulesWithSubjects {
	all := []string{"*"}
	rule := flowcontrolv1.PolicyRulesWithSubjects{
		ResourceRules:    []flowcontrolv1.ResourcePolicyRule{{Verbs: all, APIGroups: all, Resources: all, ClusterScope: true, Namespaces: all}},
		NonResourceRules: []flowcontrolv1.NonResourcePolicyRule{{Verbs: all, NonResourceURLs: all}},
	}
	for _, name := range groups {
		rule.Subjects = append(rule.Subjects, flowcontrolv1.Subject{Kind: flowcontrolv1.SubjectKindGroup, Group: &flowcontrolv1.GroupSubject{Name: name}})
	}
	return []flowcontrolv1.PolicyRulesWithSubjects{rule}
}

// mandatorySchema returns the spec of the schemas that the server rests on; nobody changes them.
func mandatorySchema(name string) *flowcontrolv1.FlowSchemaSpec {
	level := flowcontrolv1.PriorityLevelConfigurationReference{Name: name}
	switch name {
	case flowcontrolv1.FlowSchemaNameExempt:
		return &flowcontrolv1.FlowSchemaSpec{PriorityLevelConfiguration: level, MatchingPrecedence: 1, Rules: everything("system:masters")}
	case flowcontrolv1.FlowSchemaNameCatchAll:
		return &flowcontrolv1.FlowSchemaSpec{
			PriorityLevelConfiguration: level, MatchingPrecedence: flowcontrolv1.FlowSchemaMaxMatchingPrecedence,
			DistinguisherMethod: &flowcontrolv1.FlowDistinguisherMethod{Type: flowcontrolv1.FlowDistinguisherMethodByUserType},
			Rules:               everything("system:unauthenticated", "system:authenticated"),
		}
	}
	return nil
}

// FlowSchema looks at a schema.
func FlowSchema(s *flowcontrolv1.FlowSchema) field.ErrorList {
	at, spec := field.NewPath("spec"), &s.Spec
	var errs field.ErrorList
	precedence := at.Child("matchingPrecedence")
	switch {
	case spec.MatchingPrecedence <= 0:
		errs = append(errs, field.Invalid(precedence, spec.MatchingPrecedence, "must be a positive value"))
	case spec.MatchingPrecedence > flowcontrolv1.FlowSchemaMaxMatchingPrecedence:
		errs = append(errs, field.Invalid(precedence, spec.MatchingPrecedence, fmt.Sprintf("must not be greater than %v", flowcontrolv1.FlowSchemaMaxMatchingPrecedence)))
	case spec.MatchingPrecedence == 1 && s.Name != flowcontrolv1.FlowSchemaNameExempt:
		errs = append(errs, field.Invalid(precedence, spec.MatchingPrecedence, "only the schema named 'exempt' may have matchingPrecedence 1"))
	}
	if m := spec.DistinguisherMethod; m != nil {
		errs = append(errs, oneOf(at.Child("distinguisherMethod", "type"), m.Type, flowcontrolv1.FlowDistinguisherMethodByNamespaceType, flowcontrolv1.FlowDistinguisherMethodByUserType)...)
	}
	if level := spec.PriorityLevelConfiguration.Name; level == "" {
		errs = append(errs, field.Required(at.Child("priorityLevelConfiguration", "name"), "must reference a priority level"))
	} else {
		errs = append(errs, dnsSubdomain(at.Child("priorityLevelConfiguration", "name"), level)...)
	}
	for i := range spec.Rules {
		errs = append(errs, flowRule(at.Child("rules").Index(i), &spec.Rules[i])...)
	}
	if fixed := mandatorySchema(s.Name); fixed != nil && !apiequality.Semantic.DeepEqual(spec, fixed) {
		errs = append(errs, field.Invalid(at, *spec, fmt.Sprintf("spec of '%s' must equal the fixed value", s.Name)))
	}
	return errs
}

func flowRule(at *field.Path, rule *flowcontrolv1.PolicyRulesWithSubjects) field.ErrorList {
	var errs field.ErrorList
	if len(rule.Subjects) == 0 {
		errs = append(errs, field.Required(at.Child("subjects"), "subjects must contain at least one value"))
	}
	for i := range rule.Subjects {
		errs = append(errs, flowSubject(at.Child("subjects").Index(i), &rule.Subjects[i])...)
	}
	if len(rule.ResourceRules) == 0 && len(rule.NonResourceRules) == 0 {
		errs = append(errs, field.Required(at, "at least one of resourceRules and nonResourceRules has to be non-empty"))
	}
	for i := range rule.ResourceRules {
		errs = append(errs, flowResources(at.Child("resourceRules").Index(i), &rule.ResourceRules[i])...)
	}
	for i := range rule.NonResourceRules {
		r, at := &rule.NonResourceRules[i], at.Child("nonResourceRules").Index(i)
		errs = append(errs, flowVerb(at.Child("verbs"), r.Verbs)...)
		errs = append(errs, wildcard(at.Child("nonResourceURLs"), r.NonResourceURLs, "nonResourceURLs must contain at least one value", "non-resource URLs", urlPath)...)
	}
	return errs
}

func flowSubject(at *field.Path, s *flowcontrolv1.Subject) field.ErrorList {
	members := []struct {
		kind flowcontrolv1.SubjectKind
		name string
		set  bool
	}{
		{flowcontrolv1.SubjectKindUser, "user", s.User != nil}, {flowcontrolv1.SubjectKindGroup, "group", s.Group != nil},
		{flowcontrolv1.SubjectKindServiceAccount, "serviceAccount", s.ServiceAccount != nil},
	}
	errs := oneOf(at.Child("kind"), s.Kind, flowcontrolv1.SubjectKindGroup, flowcontrolv1.SubjectKindServiceAccount, flowcontrolv1.SubjectKindUser)
	if len(errs) > 0 {
		return errs
	}
	for _, m := range members {
		switch {
		case m.kind == s.Kind && !m.set:
			errs = append(errs, field.Required(at.Child(m.name), fmt.Sprintf("%s is required when subject kind is '%s'", m.name, m.kind)))
		case m.kind != s.Kind && m.set:
			errs = append(errs, field.Forbidden(at.Child(m.name), fmt.Sprintf("%s is forbidden when subject kind is not '%s'", m.name, m.kind)))
		}
	}
	switch {
	case len(errs) > 0:
	case s.User != nil:
		errs = append(errs, required(at.Child("user", "name"), s.User.Name)...)
	case s.Group != nil:
		errs = append(errs, required(at.Child("group", "name"), s.Group.Name)...)
	default:
		at, a := at.Child("serviceAccount"), s.ServiceAccount
		errs = append(errs, required(at.Child("name"), a.Name)...)
		if a.Name != "" && a.Name != flowcontrolv1.NameAll {
			errs = append(errs, each(at.Child("name"), a.Name, apivalidation.ValidateServiceAccountName(a.Name, false))...)
		}
		if a.Namespace == "" {
			errs = append(errs, field.Required(at.Child("namespace"), "must specify namespace for service account"))
		} else {
			errs = append(errs, each(at.Child("namespace"), a.Namespace, apivalidation.ValidateNamespaceName(a.Namespace, false))...)
		}
	}
	return errs
}

func flowResources(at *field.Path, r *flowcontrolv1.ResourcePolicyRule) field.ErrorList {
	errs := flowVerb(at.Child("verbs"), r.Verbs)
	errs = append(errs, wildcard(at.Child("apiGroups"), r.APIGroups, "resource rules must supply at least one api group", "api groups", nil)...)
	errs = append(errs, wildcard(at.Child("resources"), r.Resources, "resource rules must supply at least one resource", "resources", nil)...)
	if len(r.Namespaces) == 0 && r.ClusterScope {
		return errs
	}
	return append(errs, wildcard(at.Child("namespaces"), r.Namespaces, "resource rules that are not cluster scoped must supply at least one namespace", "namespaces",
		func(at *field.Path, name string) field.ErrorList {
			var errs field.ErrorList
			for _, msg := range apivalidation.ValidateNamespaceName(name, false) {
				errs = append(errs, field.Invalid(at, name, "each member of this list must be '*' or a DNS-1123 label; "+msg))
			}
			return errs
		})...)
}

// flowVerb looks at verbs: all, or some that there are.
func flowVerb(at *field.Path, verbs []string) field.ErrorList {
	if errs := wildcard(at, verbs, "verbs must contain at least one value", "verbs", nil); len(errs) > 0 || slices.Contains(verbs, flowcontrolv1.VerbAll) {
		return errs
	}
	for _, verb := range verbs {
		if !slices.Contains(flowVerbs, verb) {
			return field.ErrorList{field.NotSupported(at, verbs, flowVerbs)}
		}
	}
	return nil
}

// wildcard looks at a list that holds `*` alone, or values that are looked at one by one.
func wildcard(at *field.Path, list []string, missing, others string, one func(*field.Path, string) field.ErrorList) field.ErrorList {
	switch {
	case len(list) == 0:
		return field.ErrorList{field.Required(at, missing)}
	case slices.Contains(list, "*"):
		if len(list) > 1 {
			return field.ErrorList{field.Invalid(at, list, "if '*' is present, must not specify other "+others)}
		}
		return nil
	}
	var errs field.ErrorList
	for i, value := range list {
		if one != nil {
			errs = append(errs, one(at.Index(i), value)...)
		}
	}
	return errs
}

// urlPath looks at a path of requests that are not for objects.
func urlPath(at *field.Path, path string) field.ErrorList {
	invalid := func(msg string) field.ErrorList { return field.ErrorList{field.Invalid(at, path, msg)} }
	switch n := strings.Count(path, "*"); {
	case path == "":
		return invalid("must not be empty")
	case path == "/":
		return nil
	case !strings.HasPrefix(path, "/"):
		return invalid("must start with slash")
	case strings.Contains(path, " "):
		return invalid("must not contain white-space")
	case strings.Contains(path, "//"):
		return invalid("must not contain double slash")
	case n > 1 || n == 1 && !strings.HasSuffix(path, "/*"):
		return invalid("wildcard can only do suffix matching")
	}
	return nil
}

// FlowSchemaStatus looks at the status that a controller writes.
func FlowSchemaStatus(s, _ *flowcontrolv1.FlowSchema) field.ErrorList {
	types := make([]string, len(s.Status.Conditions))
	for i, c := range s.Status.Conditions {
		types[i] = string(c.Type)
	}
	return conditionTypes(types)
}

// PriorityLevelConfigurationStatus looks at the status that a controller writes.
func PriorityLevelConfigurationStatus(l, _ *flowcontrolv1.PriorityLevelConfiguration) field.ErrorList {
	types := make([]string, len(l.Status.Conditions))
	for i, c := range l.Status.Conditions {
		types[i] = string(c.Type)
	}
	return conditionTypes(types)
}

// conditionTypes holds conditions to one of each type.
func conditionTypes(types []string) field.ErrorList {
	var errs field.ErrorList
	seen := names{}
	for i, t := range types {
		at := field.NewPath("status", "conditions").Index(i).Child("type")
		if seen.taken(t) {
			errs = append(errs, field.Duplicate(at, t))
		}
		if t == "" {
			errs = append(errs, field.Required(at, "must not be empty"))
		}
	}
	return errs
}

// PriorityLevelConfiguration looks at a level.
func PriorityLevelConfiguration(l *flowcontrolv1.PriorityLevelConfiguration) field.ErrorList {
	at, spec := field.NewPath("spec"), &l.Spec
	var errs field.ErrorList
	if (l.Name == exemptName) != (spec.Type == flowcontrolv1.PriorityLevelEnablementExempt) {
		errs = append(errs, field.Invalid(at.Child("type"), spec.Type, "type must be 'Exempt' if and only if name is 'exempt'"))
	}
	switch spec.Type {
	case flowcontrolv1.PriorityLevelEnablementExempt:
		if spec.Limited != nil {
			errs = append(errs, field.Forbidden(at.Child("limited"), "must be nil if the type is not Limited"))
		}
		if e := spec.Exempt; e != nil {
			errs = append(errs, shares(at.Child("exempt"), e.NominalConcurrencyShares, e.LendablePercent)...)
		}
	case flowcontrolv1.PriorityLevelEnablementLimited:
		if spec.Exempt != nil {
			errs = append(errs, field.Forbidden(at.Child("exempt"), "must be nil if the type is Limited"))
		}
		if spec.Limited == nil {
			errs = append(errs, field.Required(at.Child("limited"), "must not be empty when type is Limited"))
			break
		}
		at, limited := at.Child("limited"), spec.Limited
		errs = append(errs, shares(at, limited.NominalConcurrencyShares, limited.LendablePercent)...)
		if b := limited.BorrowingLimitPercent; b != nil && *b < 0 {
			errs = append(errs, field.Invalid(at.Child("borrowingLimitPercent"), *b, "if specified, must be a non-negative integer"))
		}
		errs = append(errs, limitResponse(at.Child("limitResponse"), &limited.LimitResponse)...)
	default:
		errs = append(errs, oneOf(at.Child("type"), spec.Type, flowcontrolv1.PriorityLevelEnablementExempt, flowcontrolv1.PriorityLevelEnablementLimited)...)
	}
	if l.Name == catchAllName && !isCatchAll(spec) {
		errs = append(errs, field.Invalid(at, *spec, fmt.Sprintf("spec of '%s' must equal the fixed value", l.Name)))
	}
	return errs
}

// isCatchAll says whether a level is as the server needs the one that takes what no other does.
func isCatchAll(spec *flowcontrolv1.PriorityLevelConfigurationSpec) bool {
	l := spec.Limited
	return spec.Type == flowcontrolv1.PriorityLevelEnablementLimited && l != nil && l.NominalConcurrencyShares != nil && *l.NominalConcurrencyShares == 5 &&
		(l.LendablePercent == nil || *l.LendablePercent == 0) && l.BorrowingLimitPercent == nil && l.LimitResponse.Type == flowcontrolv1.LimitResponseTypeReject
}

func shares(at *field.Path, nominal, lendable *int32) field.ErrorList {
	var errs field.ErrorList
	if nominal != nil && *nominal < 0 {
		errs = append(errs, field.Invalid(at.Child("nominalConcurrencyShares"), *nominal, "must be a non-negative integer"))
	}
	if lendable != nil && (*lendable < 0 || *lendable > 100) {
		errs = append(errs, field.Invalid(at.Child("lendablePercent"), *lendable, "must be between 0 and 100, inclusive"))
	}
	return errs
}

func limitResponse(at *field.Path, r *flowcontrolv1.LimitResponse) field.ErrorList {
	switch {
	case r.Type == flowcontrolv1.LimitResponseTypeReject && r.Queuing != nil:
		return field.ErrorList{field.Forbidden(at.Child("queuing"), "must be nil if limited.limitResponse.type is not Limited")}
	case r.Type == flowcontrolv1.LimitResponseTypeQueue && r.Queuing == nil:
		return field.ErrorList{field.Required(at.Child("queuing"), "must not be empty if limited.limitResponse.type is Limited")}
	case r.Type != flowcontrolv1.LimitResponseTypeQueue:
		return oneOf(at.Child("type"), r.Type, flowcontrolv1.LimitResponseTypeQueue, flowcontrolv1.LimitResponseTypeReject)
	}
	at, q := at.Child("queuing"), r.Queuing
	var errs field.ErrorList
	if q.QueueLengthLimit <= 0 {
		errs = append(errs, field.Invalid(at.Child("queueLengthLimit"), q.QueueLengthLimit, "must be positive"))
	}
	if q.Queues <= 0 {
		errs = append(errs, field.Invalid(at.Child("queues"), q.Queues, "must be positive"))
	} else if q.Queues > maxQueues {
		errs = append(errs, field.Invalid(at.Child("queues"), q.Queues, fmt.Sprintf("must not be greater than %d", maxQueues)))
	}
	switch hand := at.Child("handSize"); {
	case q.HandSize <= 0:
		errs = append(errs, field.Invalid(hand, q.HandSize, "must be positive"))
	case q.HandSize > q.Queues:
		errs = append(errs, field.Invalid(hand, q.HandSize, fmt.Sprintf("should not be greater than queues (%d)", q.Queues)))
	case entropyBits(q.Queues, q.HandSize) > maxEntropyBits:
		errs = append(errs, field.Invalid(hand, q.HandSize,
			fmt.Sprintf("required entropy bits of deckSize %d and handSize %d should not be greater than %d", q.Queues, q.HandSize, maxEntropyBits)))
	}
	return errs
}

// entropyBits is how many bits a hash must have to deal a hand: the product of hand choices, each of one card fewer.
func entropyBits(queues, hand int32) int {
	product := uint64(1)
	for i := range hand {
		high, low := bits.Mul64(product, uint64(queues-i))
		if high != 0 {
			return 64
		}
		product = low
	}
	return bits.Len64(product - 1)
}
