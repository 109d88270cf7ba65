// Package annotation carries what is worth noting of a request to its audit event: why it was allowed, as whom it was made.
package annotation

import (
	"context"
	"maps"
	"slices"
	"sync"

	"dhow.dev/pkg/identity"
)

// Keys that Kubernetes' events have too.
const (
	Decision = "authorization.k8s.io/decision"
	Reason   = "authorization.k8s.io/reason"
)

// maxAsked bounds what is noted of one request: a commit may ask for many things.
const maxAsked = 1024

// Set is what was noted of one request.
type Set struct {
	mu     sync.Mutex
	values map[string]string
	as     *identity.Identity
	asked  []Asked
}

// Asked is what the authorizer was asked for a request, and what it said.
type Asked struct {
	Verb, Path                                             string
	Group, Version, Resource, Subresource, Namespace, Name string
	Decision, Reason                                       string
}

type contextKey struct{}

// NewContext returns a context whose notes go into the set.
func NewContext(ctx context.Context) (context.Context, *Set) {
	s := &Set{}
	return context.WithValue(ctx, contextKey{}, s), s
}

// Add notes a value. The last one of a key counts. Without a set in ctx nothing happens.
func Add(ctx context.Context, key, value string) {
	if s, ok := ctx.Value(contextKey{}).(*Set); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.values == nil {
			s.values = map[string]string{}
		}
		s.values[key] = value
	}
}

// Impersonated notes as whom the request is made.
func Impersonated(ctx context.Context, as identity.Identity) {
	if s, ok := ctx.Value(contextKey{}).(*Set); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.as = &as
	}
}

// Ask notes what was asked, and the decision. The last one of a request counts where there is place for one only.
func Ask(ctx context.Context, a Asked) {
	s, ok := ctx.Value(contextKey{}).(*Set)
	if !ok {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.values == nil {
		s.values = map[string]string{}
	}
	s.values[Decision], s.values[Reason] = a.Decision, a.Reason
	if len(s.asked) < maxAsked {
		s.asked = append(s.asked, a)
	}
}

// Asked returns what was asked, in its order.
func (s *Set) Asked() []Asked {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

// Values returns what was noted so far.
func (s *Set) Values() (values map[string]string, as *identity.Identity) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.values), s.as
}
