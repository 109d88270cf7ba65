// Package endpointslice writes which pods stand behind each Service, in slices of at most 100 endpoints.
package endpointslice

import (
	"context"
	"fmt"
	"log/slog"

	"google.golang.org/grpc"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	"dhow.dev/pkg/commit"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/reconcile"
	"dhow.dev/services/controller-manager/internal/servicepods"
)

const labelZone = "topology.kubernetes.io/zone"

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Logger  *slog.Logger
	Workers int
}

// Controller reconciles the slices of Services.
type Controller struct {
	*reconcile.Runner[object.Key]
	conn   grpc.ClientConnInterface
	stores *inventory.Stores
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{conn: cfg.Conn, stores: cfg.Stores}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "endpointslice", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	servicepods.Watch(cfg.Stores, c.Add)
	// Somebody else changed or deleted a slice of ours. Our own changes wake the Service too, in vain, and cost no write.
	cfg.Stores.EndpointSlices.OnChangeTraced(func(old, s *discoveryv1.EndpointSlice, cause *informer.Trace) {
		for _, o := range []*discoveryv1.EndpointSlice{old, s} {
			if o != nil && o.GetMetadata().GetLabels()[labelManagedBy] == manager {
				c.Add(object.Key{Namespace: o.GetMetadata().GetNamespace(), Name: o.GetMetadata().GetLabels()[labelService]}, cause)
			}
		}
	})
	cfg.Stores.Nodes.OnChangeTraced(c.nodeChanged)
	return c
}

// nodeChanged wakes the Services of a node's pods when the node moved to another zone, which endpoints repeat.
func (c *Controller) nodeChanged(old, node *corev1.Node, cause *informer.Trace) {
	if node == nil || old.GetMetadata().GetLabels()[labelZone] == node.GetMetadata().GetLabels()[labelZone] {
		return
	}
	for _, p := range c.stores.Pods.ByIndex(inventory.ByNode, node.GetMetadata().GetName()) {
		for _, svc := range c.stores.Services.ByIndex(inventory.ByNamespace, p.GetMetadata().GetNamespace()) {
			if servicepods.Selects(svc, p) {
				c.Add(object.KeyOf(svc), cause)
			}
		}
	}
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	svc, ok := c.stores.Services.Get(turn.Key.Namespace, turn.Key.Name)
	// The slices of a Service that is gone are the garbage collector's; those of one without selector are somebody else's.
	if !ok || !servicepods.Managed(svc) || object.IsDeleted(svc) {
		return nil
	}
	var existing []*discoveryv1.EndpointSlice
	for _, s := range c.stores.EndpointSlices.ByIndex(inventory.ByService, turn.Key.String()) {
		if s.GetMetadata().GetLabels()[labelManagedBy] == manager && !object.IsDeleted(s) {
			existing = append(existing, s)
		}
	}
	p := planSlices(svc, existing, wanted(svc, servicepods.Of(c.stores, svc), c.zoneOf))
	var batch commit.Batch
	for _, s := range p.create {
		batch.Create(s)
	}
	for _, s := range p.update {
		batch.Update(s)
	}
	for _, s := range p.remove {
		batch.Delete(s)
	}
	if batch.Len() == 0 {
		return nil
	}
	// All at once, so that no reader sees an endpoint twice or not at all.
	revision, _, err := batch.Commit(ctx, c.conn)
	if err != nil {
		return fmt.Errorf("endpoint slices of service %s: %w", turn.Key, err)
	}
	turn.WroteAt(revision)
	return nil
}

func (c *Controller) zoneOf(name string) string {
	node, ok := c.stores.Nodes.Get("", name)
	if !ok {
		return ""
	}
	return node.GetMetadata().GetLabels()[labelZone]
}
