// Package ownership is how controllers come to own objects and give them up: by selector and by the controller among an object's owners.
package ownership

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

// Selector returns a label selector as something that matches. An absent selector selects nothing, an empty one everything.
func Selector(s *metav1.LabelSelector) (labels.Selector, error) {
	if s == nil {
		return labels.Nothing(), nil
	}
	k := &kmetav1.LabelSelector{MatchLabels: s.GetMatchLabels()}
	for _, e := range s.GetMatchExpressions() {
		k.MatchExpressions = append(k.MatchExpressions, kmetav1.LabelSelectorRequirement{
			Key: e.GetKey(), Operator: kmetav1.LabelSelectorOperator(e.GetOperator()), Values: e.GetValues(),
		})
	}
	selector, err := kmetav1.LabelSelectorAsSelector(k)
	if err != nil {
		return nil, fmt.Errorf("label selector: %w", err)
	}
	return selector, nil
}

// Reference returns the reference by which an object is controlled by owner.
func Reference(owner object.Object) *metav1.OwnerReference {
	r := resource.ByMessage(owner)
	return metav1.OwnerReference_builder{
		ApiVersion: proto.String(r.APIVersion()), Kind: proto.String(r.Kind),
		Name: proto.String(owner.GetMetadata().GetName()), Uid: proto.String(owner.GetMetadata().GetUid()),
		Controller: proto.Bool(true), BlockOwnerDeletion: proto.Bool(true),
	}.Build()
}

// ControllerUID returns the UID of the controller of an object, or "".
func ControllerUID(o object.Object) string { return object.ControllerOf(o).GetUid() }

// Claim is one owner's claim to objects of type T.
type Claim[T object.Object] struct {
	Owner    object.Object
	Selector labels.Selector
	// Live reads the owner from the API server, not from a cache: adopting for an owner that is gone would make garbage of the adopted.
	Live func(ctx context.Context) (object.Object, error)
	// Update writes an object.
	Update func(ctx context.Context, o T) (T, error)
}

// Of returns those of the candidates that the owner controls, after it adopted the matching ones without a controller and released those that
// match no longer. Failures with single objects are joined in the error; the rest is returned.
func (c *Claim[T]) Of(ctx context.Context, candidates []T) ([]T, error) {
	owner := c.Owner.GetMetadata()
	var claimed []T
	var errs []error
	// nil: not asked yet. An owner is asked for once, and only when there is something to adopt.
	var mayAdopt *bool
	for _, o := range candidates {
		m := o.GetMetadata()
		match := c.Selector.Matches(labels.Set(m.GetLabels()))
		controller := object.ControllerOf(o)
		switch {
		case controller != nil && controller.GetUid() != owner.GetUid():
		case controller != nil && match:
			claimed = append(claimed, o)
		case controller != nil:
			if !object.IsDeleted(c.Owner) {
				errs = append(errs, c.release(ctx, o))
			}
		case !match || object.IsDeleted(c.Owner) || object.IsDeleted(o) || m.GetNamespace() != owner.GetNamespace():
		default:
			if mayAdopt == nil {
				live, err := c.Live(ctx)
				ok := err == nil && live.GetMetadata().GetUid() == owner.GetUid() && !object.IsDeleted(live)
				if err != nil && !apierrors.IsNotFound(err) {
					errs = append(errs, fmt.Errorf("adopt %s: read the owner: %w", object.KeyOf(o), err))
				}
				mayAdopt = &ok
			}
			if !*mayAdopt {
				continue
			}
			adopted, err := c.adopt(ctx, o)
			if apierrors.IsNotFound(err) {
				continue
			}
			if err != nil {
				errs = append(errs, fmt.Errorf("adopt %s: %w", object.KeyOf(o), err))
				continue
			}
			claimed = append(claimed, adopted)
		}
	}
	return claimed, errors.Join(errs...)
}

func (c *Claim[T]) adopt(ctx context.Context, o T) (T, error) {
	o = proto.Clone(o).(T)
	m := o.GetMetadata()
	m.SetOwnerReferences(append(m.GetOwnerReferences(), Reference(c.Owner)))
	return c.Update(ctx, o)
}

func (c *Claim[T]) release(ctx context.Context, o T) error {
	o = proto.Clone(o).(T)
	m := o.GetMetadata()
	uid := c.Owner.GetMetadata().GetUid()
	m.SetOwnerReferences(slices.DeleteFunc(m.GetOwnerReferences(), func(r *metav1.OwnerReference) bool { return r.GetUid() == uid }))
	// One that is gone, or whose owners cannot be changed, is no longer ours to care for.
	if _, err := c.Update(ctx, o); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsInvalid(err) {
		return fmt.Errorf("release %s: %w", object.KeyOf(o), err)
	}
	return nil
}
