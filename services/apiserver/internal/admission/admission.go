// Package admission changes and refuses writes by what the cluster's other objects and the caller say: Kubernetes' built-in admission plugins.
//
// A Chain runs in the registry, for both front doors, twice per write: Mutate after defaulting and before the kind's own rules, Validate after the
// object was found valid. A plugin is one file; New has their order, which is Kubernetes'. What a plugin reads it reads through the write's View, which
// sees what the same commit makes; what must hold at the commit (resource quota) it writes through the View into the same commit.
//
// Three of Kubernetes' plugins live elsewhere: NamespaceLifecycle is a claim that the registry compares in the commit, Priority and
// DefaultTolerationSeconds are rules of the pod's strategy.
package admission

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/codec"
)

// Operation is what a write does to its object.
type Operation int

// The operations. Connect is a request that reaches into the object, such as exec.
const (
	Create Operation = iota + 1
	Update
	Delete
	Connect
)

// View is the cluster as one write sees it: what its commit already makes, then what the API server knows, then the store.
type View interface {
	// Get returns an object, which must not be changed, and false when there is none: not even in the store.
	Get(ctx context.Context, res *resource.Resource, namespace, name string) (codec.Object, bool, error)
	// List calls visit with each object of the kind that the API server knows, until visit returns false.
	List(ctx context.Context, res *resource.Resource, namespace string, visit func(codec.Object) bool) error
	// Amend changes another object in the write's commit, on the condition that nobody else does meanwhile. An object that does not exist is passed over.
	// Change is called again when the commit was refused.
	Amend(ctx context.Context, res *resource.Resource, namespace, name string, change func(codec.Object) error) error
	// Make creates another object in the write's commit, unless there is one of its name. It is for Validate.
	Make(res *resource.Resource, obj codec.Object) error
}

// Request is one write on its way.
type Request struct {
	Operation       Operation
	Resource        *resource.Resource
	Subresource     string
	Namespace, Name string
	// Object is the new state, nil for a deletion; of subresources with a kind of their own (Eviction, TokenRequest) that kind. Old is nil for a creation.
	Object, Old runtime.Object
	View        View

	// Warnings are what the plugins have to tell the caller.
	Warnings []string
	// Audit are annotations for the audit log.
	Audit map[string]string
}

func (q *Request) warn(format string, args ...any) {
	q.Warnings = append(q.Warnings, fmt.Sprintf(format, args...))
}

func (q *Request) audit(key, value string) {
	if q.Audit == nil {
		q.Audit = map[string]string{}
	}
	q.Audit[key] = value
}

// is says whether the request is about a resource of the group (empty for core) itself.
func (q *Request) is(group, plural string) bool { return q.on(group, plural, "") }

// on says whether the request is about a subresource.
func (q *Request) on(group, plural, subresource string) bool {
	return q.Resource.Group == group && q.Resource.Plural == plural && q.Subresource == subresource
}

// forbidden is Kubernetes' answer to what admission refuses.
func (q *Request) forbidden(format string, args ...any) error {
	return apierrors.NewForbidden(q.Resource.GroupResource(), q.title(), fmt.Errorf(format, args...))
}

// title names the object for an error.
func (q *Request) title() string {
	if q.Name != "" {
		return q.Name
	}
	if meta, ok := q.Object.(metav1.Object); ok {
		if meta.GetName() != "" {
			return meta.GetName()
		}
		if meta.GetGenerateName() != "" {
			return meta.GetGenerateName()
		}
	}
	return "Unknown"
}

// Config is what the plugins need.
type Config struct {
	// Authorizer decides who may approve and sign certificates, and for which audiences nodes get tokens beyond their pods' volumes. Nil: nobody is
	// refused a certificate, and no node gets more.
	Authorizer authorizer.Authorizer
	// Escalation refuses roles and bindings that give rights which the caller does not hold. Old is nil for what is created. Nil: nothing is refused.
	Escalation func(ctx context.Context, obj, old runtime.Object) error
	// AutomountTokens gives pods the volume with their service account's token.
	AutomountTokens bool
}

// plugin is one rule of admission. It implements mutator, validator or both.
type plugin any

// mutator changes or refuses what is written, before it is validated.
type mutator interface {
	mutate(ctx context.Context, q *Request) error
}

// validator refuses what is written, or warns. It must not change the object.
type validator interface {
	validate(ctx context.Context, q *Request) error
}

// Chain is the plugins in their order. It is safe for concurrent use.
type Chain struct {
	mutators   []mutator
	validators []validator
}

// New returns the chain.
func New(cfg Config) *Chain {
	c := &Chain{}
	for _, p := range []plugin{
		limitRanger{},
		serviceAccount{automount: cfg.AutomountTokens},
		defaultAccounts{},
		nodeRestriction{authorizer: cfg.Authorizer},
		nodeTaints{},
		podSecurity{},
		defaultStorageClass{},
		storageProtection{},
		claimResize{},
		runtimeClass{},
		certificateApproval{authorizer: cfg.Authorizer},
		certificateSigning{authorizer: cfg.Authorizer},
		certificateSubject{},
		trustBundles{authorizer: cfg.Authorizer},
		escalation{check: cfg.Escalation},
		defaultIngressClass{},
		topologyLabels{},
		resourceQuota{},
	} {
		if m, ok := p.(mutator); ok {
			c.mutators = append(c.mutators, m)
		}
		if v, ok := p.(validator); ok {
			c.validators = append(c.validators, v)
		}
	}
	return c
}

// Mutate lets the plugins complete or refuse what is written. Errors are API errors.
func (c *Chain) Mutate(ctx context.Context, q *Request) error {
	for _, m := range c.mutators {
		if err := m.mutate(ctx, q); err != nil {
			return err
		}
	}
	return nil
}

// Validate lets the plugins refuse what is written. Errors are API errors.
func (c *Chain) Validate(ctx context.Context, q *Request) error {
	for _, v := range c.validators {
		if err := v.validate(ctx, q); err != nil {
			return err
		}
	}
	return nil
}

// get reads an object of a known type.
func get[T codec.Object](ctx context.Context, view View, res *resource.Resource, namespace, name string) (T, bool, error) {
	var none T
	o, found, err := view.Get(ctx, res, namespace, name)
	if err != nil || !found {
		return none, false, err
	}
	typed, ok := o.(T)
	if !ok {
		return none, false, fmt.Errorf("%s %s/%s is a %T", res, namespace, name, o)
	}
	return typed, true, nil
}

// caller is who makes the request; nobody when the API server does.
func caller(ctx context.Context) identity.Identity {
	user, _ := identity.FromContext(ctx)
	return user
}
