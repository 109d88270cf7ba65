// Package bootstraptoken deletes the tokens with which machines join once their time is over. The API server takes none of them even before.
package bootstraptoken

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	corek8s "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metak8s "k8s.io/apimachinery/pkg/apis/meta/v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

// expiration is the key of a token's Secret that says when it ends, RFC 3339 in UTC.
const expiration = "expiration"

// Config is what the controller is made of.
type Config struct {
	Conn    grpc.ClientConnInterface
	Logger  *slog.Logger
	Now     func() time.Time
	Workers int
}

// Controller deletes the Secrets of tokens. It reads through a watch of its own, so that no other controller keeps Secrets in memory.
type Controller struct {
	runner   *reconcile.Runner[object.Key]
	informer *informer.Informer
	secrets  *informer.Store[*corev1.Secret]
	writer   *client.Client[*corev1.Secret]
	now      func() time.Time
}

// New returns the controller.
func New(cfg Config) *Controller {
	inf := informer.New(cfg.Conn, cfg.Logger)
	c := &Controller{
		informer: inf, writer: client.For[*corev1.Secret](cfg.Conn), now: cfg.Now,
		secrets: informer.Add(inf, informer.Options[*corev1.Secret]{FieldSelector: "metadata.namespace=" + metak8s.NamespaceSystem + ",type=" + string(corek8s.SecretTypeBootstrapToken)}),
	}
	c.runner = reconcile.New(reconcile.Config[object.Key]{
		Name: "bootstrap-tokens", Source: inf, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	c.secrets.OnChangeTraced(func(_, s *corev1.Secret, cause *informer.Trace) {
		if s != nil {
			c.runner.Add(object.KeyOf(s), cause)
		}
	})
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	tasks, running := errgroup.WithContext(ctx)
	tasks.Go(func() error { return c.informer.Run(running) })
	tasks.Go(func() error { return c.runner.Run(running) })
	return tasks.Wait()
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[object.Key]) error {
	s, ok := c.secrets.Get(turn.Key.Namespace, turn.Key.Name)
	if !ok || object.IsDeleted(s) {
		return nil
	}
	text := s.GetData()[expiration]
	if len(text) == 0 {
		return nil // it does not end
	}
	if ends, err := time.Parse(time.RFC3339, string(text)); err == nil {
		if left := ends.Sub(c.now()); left > 0 {
			turn.Again(left)
			return nil
		}
	}
	// A time that cannot be read is none that can be waited for: the API server does not take the token, so it goes as well.
	gone, err := c.writer.Delete(ctx, turn.Key.Namespace, turn.Key.Name, metav1.DeletionOptions_builder{
		Uid: s.GetMetadata().GetUid(), ResourceVersion: s.GetMetadata().GetResourceVersion(),
	}.Build())
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("delete the expired bootstrap token %s: %w", turn.Key, err)
	}
	turn.Wrote(gone)
	return nil
}
