package apiserver

import (
	"context"
	"iter"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"k8s.io/apimachinery/pkg/runtime"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/registry"
)

var (
	pods  = resource.For[*corev1.Pod]()
	nodes = resource.For[*corev1.Node]()
)

// current is the cache as the registry sees it.
type current struct{ cache *cache.Cache }

// Current implements registry.Cache.
func (c current) Current(r *resource.Resource, namespace, name string) (registry.Entry, bool) {
	e := c.cache.Peek(r, namespace, name)
	if e == nil {
		return registry.Entry{}, false
	}
	return registry.Entry{Object: e.Object, Revision: e.Revision}, true
}

// Select implements registry.Cache.
func (c current) Select(ctx context.Context, r *resource.Resource, namespace, labelSelector, fieldSelector string) ([]registry.Name, error) {
	selection, err := cache.Select(r, namespace, labelSelector, fieldSelector)
	if err != nil {
		return nil, err
	}
	list, err := c.cache.List(ctx, selection, cache.ListOptions{})
	if err != nil {
		return nil, err
	}
	names := make([]registry.Name, len(list.Entries))
	for i, e := range list.Entries {
		names[i] = registry.Name{Namespace: e.Namespace, Name: e.Name}
	}
	return names, nil
}

// WaitFor implements registry.Cache.
func (c current) WaitFor(ctx context.Context, revision int64) error {
	return c.cache.WaitFor(ctx, revision)
}

// Each implements registry.Cache.
func (c current) Each(r *resource.Resource, namespace string, visit func(registry.Name, registry.Entry) bool) error {
	selection, err := cache.Select(r, namespace, "", "")
	if err != nil {
		return err
	}
	for _, e := range c.cache.Snapshot(selection) {
		if !visit(registry.Name{Namespace: e.Namespace, Name: e.Name}, registry.Entry{Object: e.Object, Revision: e.Revision}) {
			return nil
		}
	}
	return nil
}

// lookup is the cache as admission sees it: decoded, and as it is now.
type lookup struct {
	cache *cache.Cache
	codec *codec.Codec
}

// Get implements strategy.Lookup.
func (l lookup) Get(r *resource.Resource, namespace, name string, obj runtime.Object) (bool, error) {
	e := l.cache.Peek(r, namespace, name)
	if e == nil {
		return false, nil
	}
	into, ok := obj.(interface{ Unmarshal([]byte) error })
	if !ok {
		return false, status.Errorf(codes.Internal, "%T cannot be decoded", obj)
	}
	return true, into.Unmarshal(e.Object)
}

// List implements strategy.Lookup.
func (l lookup) List(r *resource.Resource, namespace string, visit func(runtime.Object) bool) error {
	selection, err := cache.Select(r, namespace, "", "")
	if err != nil {
		return err
	}
	for _, e := range l.cache.Snapshot(selection) {
		o, err := l.codec.DecodeProto(r, e.Object)
		if err != nil {
			return err
		}
		if !visit(o) {
			return nil
		}
	}
	return nil
}

// placements is the cache as the node role of the authorizer sees it.
type placements struct{ cache *cache.Cache }

// OnNode implements authorizer.Pods.
func (p placements) OnNode(node string) iter.Seq[authorizer.Pod] {
	return func(yield func(authorizer.Pod) bool) {
		for _, e := range p.cache.Snapshot(cache.OnNode(node)) {
			if !yield(authorizer.Pod{Namespace: e.Namespace, Name: e.Name, Revision: e.Revision, Object: e.Object}) {
				return
			}
		}
	}
}

// NodeOf implements authorizer.Pods.
func (p placements) NodeOf(namespace, name string) (string, bool) {
	e := p.cache.Peek(pods, namespace, name)
	if e == nil {
		return "", false
	}
	node, _ := e.Field("spec.nodeName")
	return node, true
}

// CatchUp implements authorizer.Pods.
func (p placements) CatchUp(ctx context.Context) error {
	_, err := p.cache.Consistent(ctx)
	return err
}
