// Package defaults keeps the objects that every cluster has: it makes those that are missing when an API server starts, and brings back what was taken from those
// that may be updated.
package defaults

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/registry"
)

// fieldManager owns the fields of what is written here.
const fieldManager = "dhow-apiserver"

// attempts bounds how often an object is written that others change at the same time.
const attempts = 5

// Keeper writes objects. It needs an identity in the context that may do so.
type Keeper struct {
	Cache    Cache
	Registry Registry
	Codec    *codec.Codec
}

// Cache finds what is there.
type Cache interface {
	Get(ctx context.Context, r *resource.Resource, namespace, name string, minRevision *int64) (*cache.Entry, error)
}

// Registry is the part of registry.Registry that is needed.
type Registry interface {
	Create(ctx context.Context, res *resource.Resource, in registry.Input, options registry.WriteOptions) (registry.Result, error)
	Update(ctx context.Context, res *resource.Resource, in registry.Input, options registry.WriteOptions) (registry.Result, error)
	Delete(ctx context.Context, res *resource.Resource, namespace, name string, options registry.DeleteOptions) (registry.Result, error)
}

// Verdict says what is to become of an object that exists.
type Verdict int

// The verdicts of a Merge.
const (
	Leave Verdict = iota
	Write
	// Replace is for what cannot be updated, such as the role of a binding: the object is deleted and made anew.
	Replace
)

// Ensure makes an object unless it exists. Of one that does, merge brings what it should have into it and says what to do; nil leaves it. Writes of
// others in between are tolerated; several API servers may ensure the same.
func Ensure[T codec.Object](ctx context.Context, k Keeper, r *resource.Resource, wanted T, merge func(existing T) Verdict) error {
	// At first the cache as it is will do: a write that rests on an old state is refused, and then the newest is asked for.
	atLeast, again, err := new(int64), true, error(nil)
	for range attempts {
		if again, err = ensure(ctx, k, r, wanted, atLeast, merge); !again {
			break
		}
		atLeast = nil
	}
	if err != nil {
		return fmt.Errorf("keep %s %q: %w", r.Singular(), wanted.GetName(), err)
	}
	return nil
}

func ensure[T codec.Object](ctx context.Context, k Keeper, r *resource.Resource, wanted T, atLeast *int64, merge func(T) Verdict) (again bool, err error) {
	entry, err := k.Cache.Get(ctx, r, wanted.GetNamespace(), wanted.GetName(), atLeast)
	if apierrors.IsNotFound(err) {
		err = k.create(ctx, r, wanted)
		return apierrors.IsAlreadyExists(err), err
	}
	if err != nil || merge == nil {
		return false, err
	}
	// The codec makes what the table says the kind is, which is T by the caller's choice of r.
	existing, ok := k.Codec.New(r).(T)
	if !ok {
		return false, errors.New("it is of another type than its kind")
	}
	if err := existing.Unmarshal(entry.Encoded()); err != nil {
		return false, err
	}
	switch merge(existing) {
	case Leave:
		return false, nil
	case Write:
		data, err := existing.Marshal()
		if err != nil {
			return false, err
		}
		_, err = k.Registry.Update(ctx, r, registry.Input{Data: data}, registry.WriteOptions{FieldManager: fieldManager})
		return apierrors.IsConflict(err) || apierrors.IsNotFound(err), err
	}
	uid := existing.GetUID()
	_, err = k.Registry.Delete(ctx, r, wanted.GetNamespace(), wanted.GetName(), registry.DeleteOptions{UID: string(uid)})
	if err != nil && !apierrors.IsNotFound(err) {
		return apierrors.IsConflict(err), err
	}
	err = k.create(ctx, r, wanted)
	return apierrors.IsAlreadyExists(err), err
}

func (k Keeper) create(ctx context.Context, r *resource.Resource, wanted codec.Object) error {
	data, err := k.Codec.EncodeProto(wanted)
	if err != nil {
		return err
	}
	// Without a manager: a first start makes many of these, and tracking who owns which field would take longer than all the rest of it.
	_, err = k.Registry.Create(ctx, r, registry.Input{Data: data}, registry.WriteOptions{})
	return err
}
