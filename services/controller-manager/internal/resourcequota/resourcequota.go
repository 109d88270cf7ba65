// Package resourcequota keeps the accounts of resource quotas true: it fills in what a quota's spec asks for, and takes off what has gone or needs less.
//
// What is used in addition, the API server writes into the account together with the object that uses it. So a quota's version tells whether something was
// added since it was read, and an account that is counted anew may be written on the condition that the quota is the one that was counted for: everything
// that is not in the count would have changed it. What went meanwhile is taken off in the next turn.
package resourcequota

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	corek8s "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/quota"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/metadata"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// recount is how often an account is counted anew although nothing asks for it. Kubernetes: 5 minutes.
const recount = 5 * time.Minute

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Watcher *metadata.Watcher
	Logger  *slog.Logger
	Workers int
}

// Controller reconciles resource quotas.
type Controller struct {
	*reconcile.Runner[object.Key]
	stores  *inventory.Stores
	watcher *metadata.Watcher
	quotas  *client.Client[*corev1.ResourceQuota]

	mu sync.Mutex
	// tally is the objects of every kind that is counted by number alone, by kind and namespace.
	tally map[tallyKey]map[string]struct{}
}

type tallyKey struct {
	resource  *resource.Resource
	namespace string
}

var (
	pods     = resource.For[*corev1.Pod]()
	services = resource.For[*corev1.Service]()
	claims   = resource.For[*corev1.PersistentVolumeClaim]()
)

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{stores: cfg.Stores, watcher: cfg.Watcher, quotas: client.For[*corev1.ResourceQuota](cfg.Conn), tally: map[tallyKey]map[string]struct{}{}}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "resourcequota", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Stores.ResourceQuotas.OnChangeTraced(func(old, q *corev1.ResourceQuota, cause *informer.Trace) {
		// A change of the account alone is the API server's, which counts rightly, or this controller's.
		if q != nil && (old == nil || !proto.Equal(old.GetSpec(), q.GetSpec()) || !sameNames(old.GetStatus().GetHard(), q.GetStatus().GetHard())) {
			c.Add(object.KeyOf(q), cause)
		}
	})
	cfg.Stores.Pods.OnChangeTraced(func(old, pod *corev1.Pod, cause *informer.Trace) {
		if old != nil && (pod == nil || podstate.IsFinished(pod) && !podstate.IsFinished(old) || !proto.Equal(old.GetSpec(), pod.GetSpec())) {
			c.released(old.GetMetadata().GetNamespace(), cause)
		}
	})
	cfg.Stores.Services.OnChangeTraced(func(old, s *corev1.Service, cause *informer.Trace) {
		if old != nil && (s == nil || !proto.Equal(old.GetSpec(), s.GetSpec())) {
			c.released(old.GetMetadata().GetNamespace(), cause)
		}
	})
	cfg.Stores.PersistentVolumeClaims.OnChangeTraced(func(old, claim *corev1.PersistentVolumeClaim, cause *informer.Trace) {
		if old != nil {
			c.released(old.GetMetadata().GetNamespace(), cause)
		}
	})
	cfg.Watcher.OnChange(c.count)
	return c
}

func sameNames[V any](a, b map[string]V) bool {
	if len(a) != len(b) {
		return false
	}
	for name := range a {
		if _, ok := b[name]; !ok {
			return false
		}
	}
	return true
}

// released has the quotas of a namespace counted anew.
func (c *Controller) released(namespace string, cause *informer.Trace) {
	for _, q := range c.stores.ResourceQuotas.ByIndex(inventory.ByNamespace, namespace) {
		c.Add(object.KeyOf(q), cause)
	}
}

// count keeps the tally. Kinds that have stores are counted there.
func (c *Controller) count(o *metadata.Object, gone bool, cause *informer.Trace) {
	if !o.Resource.Namespaced || o.Resource == pods || o.Resource == services || o.Resource == claims {
		return
	}
	key := tallyKey{o.Resource, o.Key.Namespace}
	c.mu.Lock()
	names := c.tally[key]
	if gone {
		delete(names, o.Key.Name)
		if len(names) == 0 {
			delete(c.tally, key)
		}
	} else {
		if names == nil {
			names = map[string]struct{}{}
			c.tally[key] = names
		}
		names[o.Key.Name] = struct{}{}
	}
	c.mu.Unlock()
	if gone {
		c.released(o.Key.Namespace, cause)
	}
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	stored, ok := c.stores.ResourceQuotas.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok || object.IsDeleted(stored) {
		return nil
	}
	// The tally comes on a stream of its own: it must not be older than the quota.
	if err := c.watcher.WaitForRevision(ctx, object.Revision(stored)); err != nil {
		return err
	}
	q := &corek8s.ResourceQuota{}
	if err := convert(stored, q); err != nil {
		return err
	}
	used, err := c.used(q)
	if err != nil {
		return err
	}
	turn.Again(recount)
	if same(q.Status.Hard, q.Spec.Hard) && same(q.Status.Used, used) {
		return nil
	}
	q.Status = corek8s.ResourceQuotaStatus{Hard: q.Spec.Hard, Used: used}
	data, err := q.Marshal()
	if err != nil {
		return fmt.Errorf("encode quota %s: %w", turn.Key, err)
	}
	next := &corev1.ResourceQuota{}
	if err := proto.Unmarshal(data, next); err != nil {
		return fmt.Errorf("decode quota %s: %w", turn.Key, err)
	}
	written, err := c.quotas.UpdateStatus(ctx, next)
	switch {
	case err == nil:
		turn.Wrote(written)
		return nil
	case apierrors.IsNotFound(err):
		return nil
	}
	// Also when more was used meanwhile: then the count starts over.
	return fmt.Errorf("status of quota %s: %w", turn.Key, err)
}

// used counts what the quota is about.
func (c *Controller) used(q *corek8s.ResourceQuota) (corek8s.ResourceList, error) {
	used := corek8s.ResourceList{}
	stored := map[*resource.Resource]bool{}
	for name := range q.Spec.Hard {
		used[name] = *apiresource.NewQuantity(0, q.Spec.Hard[name].Format)
		for _, res := range []*resource.Resource{pods, services, claims} {
			stored[res] = stored[res] || quota.Tracked(res, name)
		}
		counted := quota.Resource(name)
		if counted == nil || stored[counted] || len(q.Spec.Scopes) > 0 || q.Spec.ScopeSelector != nil {
			continue
		}
		c.mu.Lock()
		used[name] = *apiresource.NewQuantity(int64(len(c.tally[tallyKey{counted, q.Namespace}])), apiresource.DecimalSI)
		c.mu.Unlock()
	}
	if stored[pods] {
		if err := add(used, q, pods, c.stores.Pods.ByIndex(inventory.ByNamespace, q.Namespace), func() k8sObject { return &corek8s.Pod{} }); err != nil {
			return nil, err
		}
	}
	if stored[services] {
		if err := add(used, q, services, c.stores.Services.ByIndex(inventory.ByNamespace, q.Namespace), func() k8sObject { return &corek8s.Service{} }); err != nil {
			return nil, err
		}
	}
	if stored[claims] {
		if err := add(used, q, claims, c.stores.PersistentVolumeClaims.ByIndex(inventory.ByNamespace, q.Namespace), func() k8sObject { return &corek8s.PersistentVolumeClaim{} }); err != nil {
			return nil, err
		}
	}
	return used, nil
}

// k8sObject is a struct of k8s.io/api.
type k8sObject interface {
	runtime.Object
	Unmarshal(data []byte) error
}

// add adds what objects of a kind use of the quota.
func add[T object.Object](used corek8s.ResourceList, q *corek8s.ResourceQuota, res *resource.Resource, objects []T, make func() k8sObject) error {
	for _, o := range objects {
		decoded := make()
		if err := convert(o, decoded); err != nil {
			return err
		}
		if quota.InScope(q, decoded) {
			quota.Add(used, quota.Masked(quota.Usage(res, decoded), q.Spec.Hard))
		}
	}
	return nil
}

// convert makes a struct of k8s.io/api of a message: the bytes are the same.
func convert(from object.Object, into k8sObject) error {
	data, err := proto.Marshal(from)
	if err != nil {
		return fmt.Errorf("encode %s: %w", object.KeyOf(from), err)
	}
	if err := into.Unmarshal(data); err != nil {
		return fmt.Errorf("decode %s: %w", object.KeyOf(from), err)
	}
	return nil
}

func same(a, b corek8s.ResourceList) bool {
	if len(a) != len(b) {
		return false
	}
	for name, q := range a {
		if other, ok := b[name]; !ok || q.Cmp(other) != 0 {
			return false
		}
	}
	return true
}
