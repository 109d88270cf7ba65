package audit

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"sigs.k8s.io/yaml"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/request"
)

// Level is how much of a request is recorded.
type Level string

// The levels, from less to more.
const (
	LevelNone            Level = "None"
	LevelMetadata        Level = "Metadata"
	LevelRequest         Level = "Request"
	LevelRequestResponse Level = "RequestResponse"
)

var levels = []Level{LevelNone, LevelMetadata, LevelRequest, LevelRequestResponse}

// includes says whether a level records what another does.
func (l Level) includes(other Level) bool {
	return slices.Index(levels, l) >= slices.Index(levels, other)
}

// Stage is when in the life of a request an event is made.
type Stage string

// The stages, in their order.
const (
	StageRequestReceived  Stage = "RequestReceived"
	StageResponseStarted  Stage = "ResponseStarted"
	StageResponseComplete Stage = "ResponseComplete"
	StagePanic            Stage = "Panic"
)

var stages = []Stage{StageRequestReceived, StageResponseStarted, StageResponseComplete, StagePanic}

const apiVersion = "audit.k8s.io/v1"

// Policy says what is recorded: the first rule that matches a request. It is Kubernetes' Policy of audit.k8s.io/v1.
type Policy struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata,omitempty"`
	Rules      []Rule         `json:"rules"`
	// OmitStages are stages without events, whatever the rule.
	OmitStages []Stage `json:"omitStages,omitempty"`
	// OmitManagedFields leaves managed fields out of recorded objects, unless the rule says otherwise.
	OmitManagedFields bool `json:"omitManagedFields,omitempty"`
}

// Rule matches requests. Empty lists match all.
type Rule struct {
	Level             Level            `json:"level"`
	Users             []string         `json:"users,omitempty"`
	UserGroups        []string         `json:"userGroups,omitempty"`
	Verbs             []string         `json:"verbs,omitempty"`
	Resources         []GroupResources `json:"resources,omitempty"`
	Namespaces        []string         `json:"namespaces,omitempty"`
	NonResourceURLs   []string         `json:"nonResourceURLs,omitempty"`
	OmitStages        []Stage          `json:"omitStages,omitempty"`
	OmitManagedFields *bool            `json:"omitManagedFields,omitempty"`
}

// GroupResources are resources of one group; without Resources all of them.
type GroupResources struct {
	Group         string   `json:"group,omitempty"`
	Resources     []string `json:"resources,omitempty"`
	ResourceNames []string `json:"resourceNames,omitempty"`
}

// LoadPolicy reads a policy from a file of YAML or JSON.
func LoadPolicy(path string) (*Policy, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the audit policy: %w", err)
	}
	p, err := ParsePolicy(data)
	if err != nil {
		return nil, fmt.Errorf("audit policy %s: %w", path, err)
	}
	return p, nil
}

// ParsePolicy reads a policy. Unknown fields are errors: a rule that is misspelled would record less than was meant.
func ParsePolicy(data []byte) (*Policy, error) {
	p := &Policy{}
	if err := yaml.UnmarshalStrict(data, p); err != nil {
		return nil, err
	}
	if p.APIVersion != apiVersion || p.Kind != "Policy" {
		return nil, fmt.Errorf("it is %s %s, give a Policy of %s", p.APIVersion, p.Kind, apiVersion)
	}
	if len(p.Rules) == 0 {
		return nil, errors.New("it has no rules: without one nothing is recorded")
	}
	errs := checkStages("omitStages", p.OmitStages)
	for i := range p.Rules {
		errs = append(errs, p.Rules[i].check(fmt.Sprintf("rules[%d]", i))...)
	}
	return p, errors.Join(errs...)
}

func (r *Rule) check(at string) []error {
	var errs []error
	if !slices.Contains(levels, r.Level) {
		errs = append(errs, fmt.Errorf("%s.level: %q is none of %v", at, r.Level, levels))
	}
	if len(r.NonResourceURLs) > 0 && (len(r.Resources) > 0 || len(r.Namespaces) > 0) {
		errs = append(errs, fmt.Errorf("%s.nonResourceURLs: a rule cannot match resources and paths that are none: make two", at))
	}
	for _, url := range r.NonResourceURLs {
		if url != "*" && !strings.HasPrefix(url, "/") || strings.Contains(strings.TrimSuffix(url, "*"), "*") {
			errs = append(errs, fmt.Errorf("%s.nonResourceURLs: %q must begin with a slash and may have `*` at its end only", at, url))
		}
	}
	for _, g := range r.Resources {
		if strings.Contains(g.Group, "/") {
			errs = append(errs, fmt.Errorf("%s.resources: %q is no group: groups have no version here", at, g.Group))
		}
		if len(g.ResourceNames) > 0 && len(g.Resources) == 0 {
			errs = append(errs, fmt.Errorf("%s.resources: resourceNames need resources", at))
		}
	}
	return append(errs, checkStages(at+".omitStages", r.OmitStages)...)
}

func checkStages(at string, list []Stage) []error {
	var errs []error
	for _, s := range list {
		if !slices.Contains(stages, s) {
			errs = append(errs, fmt.Errorf("%s: %q is none of %v", at, s, stages))
		}
	}
	return errs
}

// verdict is what a policy says of a request.
type verdict struct {
	level             Level
	omit              [2][]Stage
	omitManagedFields bool
}

func (v *verdict) records(s Stage) bool {
	return v.level != LevelNone && !slices.Contains(v.omit[0], s) && !slices.Contains(v.omit[1], s)
}

// judge returns what is to be recorded of a request: nothing, when no rule matches.
func (p *Policy) judge(user identity.Identity, info *request.Info) verdict {
	for i := range p.Rules {
		r := &p.Rules[i]
		if !r.matches(user, info) {
			continue
		}
		v := verdict{level: r.Level, omit: [2][]Stage{p.OmitStages, r.OmitStages}, omitManagedFields: p.OmitManagedFields}
		if r.OmitManagedFields != nil {
			v.omitManagedFields = *r.OmitManagedFields
		}
		return v
	}
	return verdict{level: LevelNone}
}

func (r *Rule) matches(user identity.Identity, info *request.Info) bool {
	if len(r.Users) > 0 && !slices.Contains(r.Users, user.Name) {
		return false
	}
	if len(r.UserGroups) > 0 && !slices.ContainsFunc(user.Groups, func(g string) bool { return slices.Contains(r.UserGroups, g) }) {
		return false
	}
	if len(r.Verbs) > 0 && !slices.Contains(r.Verbs, info.Verb) {
		return false
	}
	switch {
	case len(r.Namespaces) > 0 || len(r.Resources) > 0:
		return r.matchesResource(info)
	case len(r.NonResourceURLs) > 0:
		return !info.IsResource && slices.ContainsFunc(r.NonResourceURLs, func(pattern string) bool {
			prefix, open := strings.CutSuffix(pattern, "*")
			return pattern == info.Path || open && strings.HasPrefix(info.Path, prefix)
		})
	}
	return true
}

func (r *Rule) matchesResource(info *request.Info) bool {
	if !info.IsResource || len(r.Namespaces) > 0 && !slices.Contains(r.Namespaces, info.Namespace) {
		return false
	}
	if len(r.Resources) == 0 {
		return true
	}
	for _, g := range r.Resources {
		if g.Group != info.Group {
			continue
		}
		if len(g.Resources) == 0 {
			return true
		}
		named := len(g.ResourceNames) == 0 || slices.Contains(g.ResourceNames, info.Name)
		if named && slices.ContainsFunc(g.Resources, func(pattern string) bool { return resourceMatches(pattern, info) }) {
			return true
		}
	}
	return false
}

// resourceMatches: `*` is all resources and subresources, `pods` the resource alone, `pods/*` its subresources, `*/scale` that subresource of any.
func resourceMatches(pattern string, info *request.Info) bool {
	if pattern == "*" {
		return true
	}
	resource, subresource, ok := strings.Cut(pattern, "/")
	if !ok {
		return info.Subresource == "" && pattern == info.Resource
	}
	return info.Subresource != "" && (resource == "*" || resource == info.Resource) && (subresource == "*" || subresource == info.Subresource)
}
