// Package history keeps the ControllerRevisions of StatefulSets and DaemonSets: which templates they had, in which order.
package history

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/labels"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/ownership"
)

const (
	// PodLabel is the label of pods that says of which revision they are: for StatefulSets the revision's name, for DaemonSets its hash, which their
	// revisions have under the same label.
	PodLabel = "controller-revision-hash"
	// HashLabel has the hash in the revisions of StatefulSets.
	HashLabel = "controller.kubernetes.io/hash"

	// maxPrefix is how much of the owner's name is in that of a revision, as in Kubernetes.
	maxPrefix = 223
)

// History reads and writes revisions.
type History struct {
	store     *informer.Store[*appsv1.ControllerRevision]
	revisions *client.Client[*appsv1.ControllerRevision]
}

// New returns the history that is in a store.
func New(conn grpc.ClientConnInterface, stores *inventory.Stores) *History {
	return &History{store: stores.ControllerRevisions, revisions: client.For[*appsv1.ControllerRevision](conn)}
}

// Turn is told what was written (reconcile.Turn).
type Turn interface{ Wrote(o object.Object) }

// Owner is whose revisions are meant.
type Owner struct {
	Object   object.Object
	Selector labels.Selector
	Template *corev1.PodTemplateSpec
	// HashLabel is where revisions carry their hash.
	HashLabel string
	// Collisions is how often a name was taken, from the owner's status.
	Collisions int32
	// Live reads the owner from the API server.
	Live func(context.Context) (object.Object, error)
}

// Claimed returns the owner's revisions, the oldest first, after it adopted those of its selector that nobody owns, and released others.
func (h *History) Claimed(ctx context.Context, turn Turn, owner Owner) ([]*appsv1.ControllerRevision, error) {
	m := owner.Object.GetMetadata()
	candidates := h.store.ByIndex(inventory.ByController, m.GetUid())
	candidates = append(candidates, h.store.ByIndex(inventory.Orphans, m.GetNamespace())...)
	claim := ownership.Claim[*appsv1.ControllerRevision]{
		Owner: owner.Object, Selector: owner.Selector, Live: owner.Live,
		Update: func(ctx context.Context, r *appsv1.ControllerRevision) (*appsv1.ControllerRevision, error) {
			return h.update(ctx, turn, r)
		},
	}
	claimed, err := claim.Of(ctx, candidates)
	sortByAge(claimed)
	return claimed, err
}

// sortByAge puts the lowest revision first; of equal ones the older, then by name.
func sortByAge(revisions []*appsv1.ControllerRevision) {
	slices.SortFunc(revisions, func(a, b *appsv1.ControllerRevision) int {
		return cmp.Or(
			cmp.Compare(a.GetRevision(), b.GetRevision()),
			apitime.Go(a.GetMetadata().GetCreationTimestamp()).Compare(apitime.Go(b.GetMetadata().GetCreationTimestamp())),
			cmp.Compare(a.GetMetadata().GetName(), b.GetMetadata().GetName()),
		)
	})
}

func (h *History) update(ctx context.Context, turn Turn, r *appsv1.ControllerRevision) (*appsv1.ControllerRevision, error) {
	r, err := h.revisions.Update(ctx, r, nil)
	if err == nil {
		turn.Wrote(r)
	}
	return r, err
}

// Current is the owner's template among its revisions.
type Current struct {
	// Revision has the template and the highest number.
	Revision *appsv1.ControllerRevision
	// All are the owner's revisions, this one included, the oldest first.
	All []*appsv1.ControllerRevision
	// Equal are the names of those with the template.
	Equal map[string]bool
	// Collisions is how often a name was taken; it belongs into the owner's status.
	Collisions int32
}

// Current returns the revision of the owner's template: the newest as it is, an older one with a new number (the template was rolled back to), or a new one.
func (h *History) Current(ctx context.Context, turn Turn, owner Owner, claimed []*appsv1.ControllerRevision) (Current, error) {
	data, err := patch(owner.Template)
	if err != nil {
		return Current{}, fmt.Errorf("revision of %s: %w", object.KeyOf(owner.Object), err)
	}
	current := Current{All: slices.Clone(claimed), Equal: map[string]bool{}, Collisions: owner.Collisions}
	var next int64 = 1
	for _, r := range current.All {
		next = max(next, r.GetRevision()+1)
	}
	// Reading them all as templates is worth it only when none has been written alike.
	for _, alike := range []func(a, b []byte) bool{bytes.Equal, same} {
		for _, r := range current.All {
			if alike(r.GetData().GetRaw(), data) {
				current.Revision = r
				current.Equal[r.GetMetadata().GetName()] = true
			}
		}
		if current.Revision != nil {
			break
		}
	}
	switch {
	case current.Revision == nil:
		if err := h.create(ctx, turn, owner, &current, data, next); err != nil {
			return current, err
		}
		current.Equal[current.Revision.GetMetadata().GetName()] = true
	case current.Revision.GetRevision() < next-1:
		renewed := proto.Clone(current.Revision).(*appsv1.ControllerRevision)
		renewed.SetRevision(next)
		if renewed, err = h.update(ctx, turn, renewed); err != nil {
			return current, fmt.Errorf("renew revision %s: %w", object.KeyOf(current.Revision), err)
		}
		current.All[slices.Index(current.All, current.Revision)] = renewed
		current.Revision = renewed
	}
	sortByAge(current.All)
	return current, nil
}

// create makes the revision. A name that is taken by another template, or by somebody else, counts as a collision and gives another name.
func (h *History) create(ctx context.Context, turn Turn, owner Owner, current *Current, data []byte, number int64) error {
	for {
		wanted := revisionOf(owner, data, number, current.Collisions)
		created, err := h.revisions.Create(ctx, wanted, nil)
		if apierrors.IsAlreadyExists(err) {
			name := wanted.GetMetadata().GetName()
			existing, err := h.revisions.Get(ctx, wanted.GetMetadata().GetNamespace(), name)
			if apierrors.IsNotFound(err) {
				continue // it has just gone
			}
			if err != nil {
				return fmt.Errorf("read revision %s, which exists already: %w", name, err)
			}
			if ownership.ControllerUID(existing) != owner.Object.GetMetadata().GetUid() || !same(existing.GetData().GetRaw(), data) {
				current.Collisions++
				continue
			}
			created = existing // made by a turn whose end was not seen
		} else if err != nil {
			return fmt.Errorf("create revision %s: %w", wanted.GetMetadata().GetName(), err)
		}
		turn.Wrote(created)
		current.Revision = created
		current.All = append(current.All, created)
		return nil
	}
}

// revisionOf returns a new revision of the owner.
func revisionOf(owner Owner, data []byte, number int64, collisions int32) *appsv1.ControllerRevision {
	m := owner.Object.GetMetadata()
	hash := hashOf(data, collisions)
	prefix := m.GetName()
	if len(prefix) > maxPrefix {
		prefix = prefix[:maxPrefix]
	}
	labelled := maps.Clone(owner.Template.GetMetadata().GetLabels())
	if labelled == nil {
		labelled = map[string]string{}
	}
	labelled[owner.HashLabel] = hash
	content := &metav1.RawExtension{}
	content.SetRaw(data)
	return appsv1.ControllerRevision_builder{
		Metadata: metav1.ObjectMeta_builder{
			Namespace: proto.String(m.GetNamespace()), Name: proto.String(prefix + "-" + hash), Labels: labelled, Annotations: maps.Clone(m.GetAnnotations()),
			OwnerReferences: []*metav1.OwnerReference{ownership.Reference(owner.Object)},
		}.Build(),
		Data: content, Revision: proto.Int64(number),
	}.Build()
}

// Truncate deletes the oldest revisions beyond a number of those that are not live.
func (h *History) Truncate(ctx context.Context, turn Turn, all []*appsv1.ControllerRevision, live func(*appsv1.ControllerRevision) bool, limit int32) error {
	var old []*appsv1.ControllerRevision
	for _, r := range all {
		if !live(r) {
			old = append(old, r)
		}
	}
	if limit < 0 || len(old) <= int(limit) {
		return nil
	}
	for _, r := range old[:len(old)-int(limit)] {
		if object.IsDeleted(r) {
			continue
		}
		m := r.GetMetadata()
		gone, err := h.revisions.Delete(ctx, m.GetNamespace(), m.GetName(), metav1.DeletionOptions_builder{Uid: m.GetUid()}.Build())
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("delete old revision %s: %w", object.KeyOf(r), err)
		}
		turn.Wrote(gone)
	}
	return nil
}
