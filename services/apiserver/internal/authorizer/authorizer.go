// Package authorizer decides who may do what. It takes Kubernetes' attributes and answers in Kubernetes' words.
//
// The roles are fixed: admin, reader, scheduler, controller-manager, API server and node (roles.go, node.go). RBAC objects come behind the same
// interface. What no role allows is forbidden.
package authorizer

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/pkg/identity"
)

// Attributes are what a request wants to do. Verb is in Kubernetes' words (get, list, watch, create, update, patch, delete, deletecollection).
type Attributes struct {
	User                         identity.Identity
	Verb                         string
	Group, Resource, Subresource string
	// Namespace is empty for kinds without, and for requests over all namespaces.
	Namespace string
	// Name is empty for lists and collections, and for objects whose name is generated.
	Name string
	// FieldSelector narrows a list or watch, in Kubernetes' syntax.
	FieldSelector string
}

// Authorizer decides. The error is Forbidden or Unauthorized, or says that it could not be decided.
type Authorizer interface {
	Authorize(ctx context.Context, a Attributes) error
}

// Config is what the fixed roles need.
type Config struct {
	// Pods says what a node's pods need.
	Pods Pods
}

// Roles is the authorizer of the fixed roles.
type Roles struct {
	node *nodeRole
}

var _ Authorizer = (*Roles)(nil)

// New returns the authorizer of the fixed roles.
func New(cfg Config) *Roles { return &Roles{node: newNodeRole(cfg.Pods)} }

// Authorize decides by the fixed roles: a caller has the roles of its name and of each of its groups.
func (r *Roles) Authorize(ctx context.Context, a Attributes) error {
	if a.User.Name == "" {
		return apierrors.NewUnauthorized("Unauthorized")
	}
	for _, rule := range rulesOf(a.User) {
		if rule.allows(a) {
			return nil
		}
	}
	node, isNode := a.User.NodeName()
	if !isNode {
		return Forbidden(a, "")
	}
	reason, err := r.node.allows(ctx, node, a)
	switch {
	case err != nil:
		return err
	case reason != "":
		return Forbidden(a, reason)
	}
	return nil
}

// Forbidden is Kubernetes' answer to a request that is not allowed. Reason may be empty.
func Forbidden(a Attributes, reason string) error {
	resource := a.Resource
	if a.Subresource != "" {
		resource += "/" + a.Subresource
	}
	message := fmt.Sprintf("User %q cannot %s resource %q in API group %q", a.User.Name, a.Verb, resource, a.Group)
	if a.Namespace != "" {
		message += fmt.Sprintf(" in the namespace %q", a.Namespace)
	} else {
		message += " at the cluster scope"
	}
	if reason != "" {
		message += ": " + reason
	}
	return apierrors.NewForbidden(schema.GroupResource{Group: a.Group, Resource: a.Resource}, a.Name, fmt.Errorf("%s", message))
}
