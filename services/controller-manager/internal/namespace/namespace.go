// Package namespace empties namespaces that are being deleted and lets them go.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/metadata"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

const (
	finalizer   = "kubernetes"
	terminating = "Terminating"

	// unwatched is when to look again for objects of kinds whose deletion nobody tells: Events with finalizers, which are all but unheard of.
	unwatched = 5 * time.Second
)

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Watcher *metadata.Watcher
	Logger  *slog.Logger
	Now     func() time.Time
	Workers int
}

// Controller empties namespaces.
type Controller struct {
	*reconcile.Runner[string]
	conn       grpc.ClientConnInterface
	stores     *inventory.Stores
	namespaces *client.Client[*corev1.Namespace]
	now        func() time.Time
}

// New returns the controller, listening to the stores and the watcher.
func New(cfg Config) *Controller {
	c := &Controller{conn: cfg.Conn, stores: cfg.Stores, namespaces: client.For[*corev1.Namespace](cfg.Conn), now: cfg.Now}
	c.Runner = reconcile.New(reconcile.Config[string]{
		Name: "namespace", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Stores.Namespaces.OnChangeTraced(func(_, ns *corev1.Namespace, cause *informer.Trace) {
		if ns != nil && object.IsDeleted(ns) {
			c.Add(ns.GetMetadata().GetName(), cause)
		}
	})
	cfg.Watcher.OnChange(func(o *metadata.Object, gone bool, cause *informer.Trace) {
		if !gone || o.Key.Namespace == "" {
			return
		}
		if ns, ok := cfg.Stores.Namespaces.Get("", o.Key.Namespace); ok && object.IsDeleted(ns) {
			c.Add(o.Key.Namespace, cause)
		}
	})
	return c
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[string]) error {
	ns, ok := c.stores.Namespaces.Get("", turn.Key)
	if !ok || !object.IsDeleted(ns) || !slices.Contains(ns.GetSpec().GetFinalizers(), finalizer) {
		return nil
	}
	if ns.GetStatus().GetPhase() != terminating {
		updated := proto.Clone(ns).(*corev1.Namespace)
		if !updated.HasStatus() {
			updated.SetStatus(&corev1.NamespaceStatus{})
		}
		updated.GetStatus().SetPhase(terminating)
		updated, err := c.namespaces.UpdateStatus(ctx, updated)
		if err != nil {
			return fmt.Errorf("namespace %s: set its phase: %w", turn.Key, err)
		}
		turn.Wrote(updated)
		ns = updated
	}
	left := c.empty(ctx, turn.Key)
	ns, err := c.report(ctx, turn, ns, left)
	if err != nil || ns == nil {
		return err
	}
	if left.err != nil {
		return left.err
	}
	if left.total() > 0 {
		if left.unwatched {
			turn.Again(unwatched)
		}
		return nil // what goes wakes the namespace
	}
	updated := proto.Clone(ns).(*corev1.Namespace)
	updated.GetSpec().SetFinalizers(slices.DeleteFunc(updated.GetSpec().GetFinalizers(), func(f string) bool { return f == finalizer }))
	updated, err = c.namespaces.Update(ctx, updated, metav1.WriteOptions_builder{Subresource: "finalize"}.Build())
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("namespace %s: finalize: %w", turn.Key, err)
	}
	turn.Wrote(updated)
	return nil
}

// remains is what is left in a namespace.
type remains struct {
	// objects by resource, and how many objects each finalizer keeps.
	objects, finalizers map[string]int
	unwatched           bool
	err                 error
}

func (r *remains) total() int {
	n := 0
	for _, count := range r.objects {
		n += count
	}
	return n
}

// empty deletes everything in a namespace and returns what is left. Pods go first: what they use must not vanish under them.
func (c *Controller) empty(ctx context.Context, name string) *remains {
	left := &remains{objects: map[string]int{}, finalizers: map[string]int{}}
	pods := resource.For[*corev1.Pod]()
	c.emptyOf(ctx, pods, name, left)
	if left.total() > 0 || left.err != nil {
		return left
	}
	for _, r := range resource.Stored() {
		if r.Namespaced && r != pods {
			c.emptyOf(ctx, r, name, left)
		}
	}
	return left
}

func (c *Controller) emptyOf(ctx context.Context, r *resource.Resource, name string, left *remains) {
	objects := client.Dynamic(c.conn, r)
	deleted, err := objects.DeleteCollection(ctx, metav1.DeleteCollectionRequest_builder{
		Namespace: name, Options: metav1.DeletionOptions_builder{PropagationPolicy: metav1.PropagationPolicy_PROPAGATION_POLICY_BACKGROUND}.Build(),
	}.Build())
	if err != nil {
		left.err = errors.Join(left.err, fmt.Errorf("delete all %s in namespace %s: %w", r, name, err))
		return
	}
	// The namespace takes no new objects: where there was nothing to delete, there is nothing.
	if deleted == 0 {
		return
	}
	list, err := objects.List(ctx, metav1.ListRequest_builder{Namespace: name}.Build())
	if err != nil {
		left.err = errors.Join(left.err, fmt.Errorf("list %s in namespace %s: %w", r, name, err))
		return
	}
	if len(list.Items) == 0 {
		return
	}
	left.objects[r.String()] = len(list.Items)
	left.unwatched = left.unwatched || r.Kind == "Event"
	for _, o := range list.Items {
		for _, f := range o.GetMetadata().GetFinalizers() {
			left.finalizers[f]++
		}
	}
}

// report writes the conditions that say how the deletion goes. It returns the namespace as it then is, nil when it is gone.
func (c *Controller) report(ctx context.Context, turn *reconcile.Turn[string], ns *corev1.Namespace, left *remains) (*corev1.Namespace, error) {
	updated := proto.Clone(ns).(*corev1.Namespace)
	changed := false
	for _, condition := range conditions(left) {
		changed = set(updated.GetStatus(), condition, c.now()) || changed
	}
	// A namespace that is empty at the first look goes at once; nobody would read its conditions.
	if !changed || (left.total() == 0 && left.err == nil && len(ns.GetStatus().GetConditions()) == 0) {
		return ns, nil
	}
	updated, err := c.namespaces.UpdateStatus(ctx, updated)
	switch {
	case apierrors.IsNotFound(err):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("namespace %s: conditions: %w", turn.Key, err)
	}
	turn.Wrote(updated)
	return updated, nil
}

// conditions returns what Kubernetes says of a namespace that is being deleted.
func conditions(left *remains) []*corev1.NamespaceCondition {
	condition := func(kind string, bad bool, reason, message string) *corev1.NamespaceCondition {
		status := "False"
		if bad {
			status = "True"
		}
		return corev1.NamespaceCondition_builder{
			Type: proto.String(kind), Status: proto.String(status), Reason: proto.String(reason), Message: proto.String(message),
		}.Build()
	}
	list := []*corev1.NamespaceCondition{
		condition("NamespaceDeletionDiscoveryFailure", false, "ResourcesDiscovered", "All resources successfully discovered"),
		condition("NamespaceDeletionGroupVersionParsingFailure", false, "ParsedGroupVersions", "All legacy kube types successfully parsed"),
		condition("NamespaceDeletionContentFailure", false, "ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
		condition("NamespaceContentRemaining", false, "ContentRemoved", "All content successfully removed"),
		condition("NamespaceFinalizersRemaining", false, "ContentHasNoFinalizers", "All content-preserving finalizers finished"),
	}
	if left.err != nil {
		list[2] = condition("NamespaceDeletionContentFailure", true, "ContentDeletionFailed",
			fmt.Sprintf("Failed to delete all resource types, %d remaining: %v", max(1, len(left.objects)), left.err))
	}
	if len(left.objects) > 0 {
		var parts []string
		for _, r := range slices.Sorted(maps.Keys(left.objects)) {
			parts = append(parts, fmt.Sprintf("%s has %d resource instances", r, left.objects[r]))
		}
		list[3] = condition("NamespaceContentRemaining", true, "SomeResourcesRemain", "Some resources are remaining: "+strings.Join(parts, ", "))
	}
	if len(left.finalizers) > 0 {
		var parts []string
		for f, n := range left.finalizers {
			parts = append(parts, fmt.Sprintf("%s in %d resource instances", f, n))
		}
		sort.Strings(parts)
		list[4] = condition("NamespaceFinalizersRemaining", true, "SomeFinalizersRemain",
			"Some content in the namespace has finalizers remaining: "+strings.Join(parts, ", "))
	}
	return list
}

// set replaces a condition and returns whether it differs from the one before.
func set(status *corev1.NamespaceStatus, condition *corev1.NamespaceCondition, now time.Time) bool {
	condition.SetLastTransitionTime(apitime.Of(now))
	list := slices.Clone(status.GetConditions())
	for i, c := range list {
		if c.GetType() != condition.GetType() {
			continue
		}
		if c.GetStatus() == condition.GetStatus() {
			if c.GetReason() == condition.GetReason() && c.GetMessage() == condition.GetMessage() {
				return false
			}
			condition.SetLastTransitionTime(c.GetLastTransitionTime())
		}
		list[i] = condition
		status.SetConditions(list)
		return true
	}
	status.SetConditions(append(list, condition))
	return true
}
