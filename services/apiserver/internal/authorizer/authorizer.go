// Package authorizer decides who may do what. It takes Kubernetes' attributes and answers in Kubernetes' words.
//
// Three things allow: built-in roles of Dhow's own services, of system:masters and of dhow:readers (roles.go), which no object can take away, so that a cluster starts
// and can be repaired whatever its objects say; what a node's own pods need (node.go); and the objects of rbac.authorization.k8s.io (policies.go). What none of
// them allows is forbidden. Nothing denies.
package authorizer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/audit/annotation"
)

// Attributes are what a request wants to do. Verb is in Kubernetes' words (get, list, watch, create, update, patch, delete, deletecollection; of paths that are no
// resource the HTTP method in lower case).
type Attributes struct {
	User identity.Identity
	Verb string
	// Path is set for a request that asks for no resource, such as /healthz; then only User and Verb count beside it.
	Path                                  string
	Group, Version, Resource, Subresource string
	// Namespace is empty for kinds without, and for requests over all namespaces.
	Namespace string
	// Name is empty for lists and collections, and for objects whose name is generated.
	Name string
	// FieldSelector and LabelSelector narrow a list, watch or deletecollection, in Kubernetes' syntax.
	FieldSelector, LabelSelector string
}

// Authorizer decides. The error is Forbidden or Unauthorized, or says that it could not be decided.
type Authorizer interface {
	Authorize(ctx context.Context, a Attributes) error
}

// Config is what the authorizer needs.
type Config struct {
	// Pods says what a node's pods need.
	Pods Pods
	// Objects finds the volumes of a node's pods. Nil: nodes read none.
	Objects Objects
	// Policies are the objects of RBAC. Nil: only the built-in roles allow.
	Policies *Policies
}

// Roles is the authorizer of the built-in roles, nodes, and RBAC.
type Roles struct {
	node     *nodeRole
	policies *Policies
}

var _ Authorizer = (*Roles)(nil)

// New returns the authorizer.
func New(cfg Config) *Roles {
	return &Roles{node: newNodeRole(cfg.Pods, cfg.Objects), policies: cfg.Policies}
}

// healthPaths are open to all callers that the authenticator lets through, so that probes do not depend on objects.
var healthPaths = []string{"/healthz", "/livez", "/readyz"}

// Decision is an answer. Reason says what allows it, or what is worth knowing about why nothing does; it may be empty.
type Decision struct {
	Allowed bool
	Reason  string
}

// Authorize implements Authorizer.
func (r *Roles) Authorize(ctx context.Context, a Attributes) error {
	if a.User.Name == "" {
		return apierrors.NewUnauthorized("Unauthorized")
	}
	decision, err := r.Decide(ctx, a)
	switch {
	case err != nil:
		return err
	case !decision.Allowed:
		note(ctx, &a, "forbid", decision.Reason)
		return Forbidden(a, decision.Reason)
	}
	note(ctx, &a, "allow", decision.Reason)
	return nil
}

// aside is the authorizer for what is asked beside a request's own question.
type aside struct{ roles *Roles }

// Aside returns an authorizer that answers the same and leaves no note for the audit, whose events tell why the request itself was allowed.
func Aside(r *Roles) Authorizer { return aside{r} }

// Authorize implements Authorizer.
func (s aside) Authorize(ctx context.Context, a Attributes) error {
	decision, err := s.roles.Decide(ctx, a)
	if err == nil && !decision.Allowed {
		err = Forbidden(a, decision.Reason)
	}
	return err
}

// note tells the audit.
func note(ctx context.Context, a *Attributes, decision, reason string) {
	annotation.Ask(ctx, annotation.Asked{
		Verb: a.Verb, Path: a.Path, Group: a.Group, Version: a.Version, Resource: a.Resource, Subresource: a.Subresource, Namespace: a.Namespace, Name: a.Name,
		Decision: decision, Reason: reason,
	})
}

// Decide answers for any user, also one without a name. A denial is given only after the cache holds all that was written before the call; the error
// says that it could not be made to.
func (r *Roles) Decide(ctx context.Context, a Attributes) (Decision, error) {
	if a.Path != "" && a.Verb == "get" && slices.Contains(healthPaths, a.Path) {
		return Decision{Allowed: true, Reason: "anyone may ask for health"}, nil
	}
	if by := builtIn(a); by != "" {
		return Decision{Allowed: true, Reason: by}, nil
	}
	if decision := r.look(a); decision.Allowed {
		return decision, nil
	}
	if err := r.catchUp(ctx, a); err != nil {
		return Decision{}, fmt.Errorf("authorize %s: %w", a.User, err)
	}
	return r.look(a), nil
}

// look decides by the cache as it is.
func (r *Roles) look(a Attributes) Decision {
	var reasons []string
	if node, isNode := a.User.NodeName(); isNode {
		reason := r.node.denial(node, a)
		if reason == "" {
			return Decision{Allowed: true, Reason: "the node needs it"}
		}
		reasons = append(reasons, reason)
	}
	if r.policies != nil {
		by, err := r.policies.allows(a)
		if by != "" {
			return Decision{Allowed: true, Reason: by}
		}
		if err != nil {
			reasons = append(reasons, "RBAC: "+err.Error())
		}
	}
	return Decision{Reason: strings.Join(reasons, "; ")}
}

func (r *Roles) catchUp(ctx context.Context, a Attributes) error {
	if r.policies != nil {
		return r.policies.catchUp(ctx)
	}
	if _, isNode := a.User.NodeName(); isNode {
		return r.node.pods.CatchUp(ctx)
	}
	return nil
}

// Forbidden is Kubernetes' answer to a request that is not allowed. Reason may be empty.
func Forbidden(a Attributes, reason string) error {
	message := words(a)
	if reason != "" {
		message += ": " + reason
	}
	return apierrors.NewForbidden(schema.GroupResource{Group: a.Group, Resource: a.Resource}, a.Name, errors.New(message))
}

func words(a Attributes) string {
	if a.Path != "" {
		return fmt.Sprintf("User %q cannot %s path %q", a.User.Name, a.Verb, a.Path)
	}
	resource := a.Resource
	if a.Subresource != "" {
		resource += "/" + a.Subresource
	}
	message := fmt.Sprintf("User %q cannot %s resource %q in API group %q", a.User.Name, a.Verb, resource, a.Group)
	if a.Namespace != "" {
		return message + fmt.Sprintf(" in the namespace %q", a.Namespace)
	}
	return message + " at the cluster scope"
}
