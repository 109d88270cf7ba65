// Package ttlafterfinished deletes Jobs some time after they have finished.
package ttlafterfinished

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	batchk8s "k8s.io/api/batch/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	batchv1 "dhow.dev/gen/go/dhow/batch/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/inventory"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Stores  *inventory.Stores
	Logger  *slog.Logger
	Now     func() time.Time
	Workers int
}

// Controller deletes jobs.
type Controller struct {
	*reconcile.Runner[object.Key]
	stores *inventory.Stores
	jobs   *client.Client[*batchv1.Job]
	now    func() time.Time
}

// New returns the controller, listening to the stores.
func New(cfg Config) *Controller {
	c := &Controller{stores: cfg.Stores, jobs: client.For[*batchv1.Job](cfg.Conn), now: cfg.Now}
	c.Runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "ttl-after-finished", Source: cfg.Stores, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	cfg.Stores.Jobs.OnChangeTraced(func(_, j *batchv1.Job, cause *informer.Trace) {
		if j == nil {
			return
		}
		if _, ok := due(j); ok {
			c.Add(object.KeyOf(j), cause)
		}
	})
	return c
}

// due returns when a job is to be deleted; ok is false when it is not, or not yet known.
func due(j *batchv1.Job) (at time.Time, ok bool) {
	if !j.GetSpec().HasTtlSecondsAfterFinished() || object.IsDeleted(j) {
		return time.Time{}, false
	}
	for _, condition := range j.GetStatus().GetConditions() {
		kind := batchk8s.JobConditionType(condition.GetType())
		if (kind == batchk8s.JobComplete || kind == batchk8s.JobFailed) && condition.GetStatus() == podstate.True {
			ttl := time.Duration(j.GetSpec().GetTtlSecondsAfterFinished()) * time.Second
			return apitime.Go(condition.GetLastTransitionTime()).Add(ttl), true
		}
	}
	return time.Time{}, false
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	j, ok := c.stores.Jobs.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok {
		return nil
	}
	at, ok := due(j)
	if !ok {
		return nil
	}
	if left := at.Sub(c.now()); left > 0 {
		turn.Again(left)
		return nil
	}
	// The time may have been made longer a moment ago: what is deleted is what was looked at.
	gone, err := c.jobs.Delete(ctx, turn.Key.Namespace, turn.Key.Name, metav1.DeletionOptions_builder{
		Uid: j.GetMetadata().GetUid(), ResourceVersion: j.GetMetadata().GetResourceVersion(),
		PropagationPolicy: metav1.PropagationPolicy_PROPAGATION_POLICY_FOREGROUND,
	}.Build())
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("delete the finished job %s: %w", turn.Key, err)
	}
	turn.Wrote(gone)
	return nil
}
