// Package leader keeps one of several schedulers active, by a Lease that is taken and renewed with optimistic concurrency.
package leader

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	coordinationv1 "dhow.dev/gen/go/dhow/coordination/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/telemetry/logkey"
)

const (
	renewEvery = 10 * time.Second
	// A holder that could not renew for so long is taken for dead. It stops itself before, after yieldAfter.
	duration   = 30 * time.Second
	yieldAfter = 20 * time.Second
	callFor    = 5 * time.Second
	retryEvery = 2 * time.Second
)

// Config configures New.
type Config struct {
	Conn            grpc.ClientConnInterface
	Namespace, Name string
	// Identity tells holders apart.
	Identity string
	Logger   *slog.Logger
}

// Elector competes for a lease.
type Elector struct {
	config Config
	leases *client.Client[*coordinationv1.Lease]
	// seen is another's last renewal and when it was observed: clocks of machines are never compared.
	seen   string
	seenAt time.Time
}

// New returns an elector.
func New(config Config) *Elector {
	return &Elector{config: config, leases: client.For[*coordinationv1.Lease](config.Conn)}
}

// Run calls lead whenever the lease is held, with a context that ends when it is lost, until ctx ends. An error of lead ends Run.
func (e *Elector) Run(ctx context.Context, lead func(context.Context) error) error {
	for ctx.Err() == nil {
		if !e.acquire(ctx) {
			wait(ctx, retryEvery)
			continue
		}
		e.config.Logger.InfoContext(ctx, "became leader", logkey.Identity(e.config.Identity))
		if err := e.hold(ctx, lead); err != nil {
			return err
		}
		e.config.Logger.InfoContext(ctx, "not leader any more", logkey.Identity(e.config.Identity))
	}
	return nil
}

// hold renews while lead runs, and gives the lease back when ctx ends.
func (e *Elector) hold(ctx context.Context, lead func(context.Context) error) error {
	leading, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- lead(leading) }()
	renewed, pause := time.Now(), renewEvery
	for {
		select {
		case err := <-ended:
			e.giveBack(ctx)
			return err
		case <-ctx.Done():
			err := <-ended
			e.giveBack(ctx)
			return err
		case <-time.After(pause):
		}
		if e.acquire(ctx) {
			renewed, pause = time.Now(), renewEvery
			continue
		}
		pause = retryEvery
		if time.Since(renewed) > yieldAfter || e.seen != "" {
			cancel()
			return <-ended
		}
	}
}

// acquire takes or renews the lease.
func (e *Elector) acquire(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, callFor)
	defer cancel()
	now := time.Now()
	lease, err := e.leases.Get(ctx, e.config.Namespace, e.config.Name)
	switch {
	case apierrors.IsNotFound(err):
		lease = &coordinationv1.Lease{}
		lease.SetMetadata(metav1.ObjectMeta_builder{Namespace: proto.String(e.config.Namespace), Name: proto.String(e.config.Name)}.Build())
		lease.SetSpec(e.spec(nil, now))
		_, err = e.leases.Create(ctx, lease, nil)
		return e.settled(ctx, err)
	case err != nil:
		return e.settled(ctx, err)
	}
	spec := lease.GetSpec()
	if holder := spec.GetHolderIdentity(); holder != "" && holder != e.config.Identity {
		if version := lease.GetMetadata().GetResourceVersion(); version != e.seen {
			e.seen, e.seenAt = version, now
			return false
		}
		if now.Sub(e.seenAt) < time.Duration(spec.GetLeaseDurationSeconds())*time.Second {
			return false
		}
	}
	lease = proto.CloneOf(lease)
	lease.SetSpec(e.spec(spec, now))
	_, err = e.leases.Update(ctx, lease, nil)
	return e.settled(ctx, err)
}

func (e *Elector) settled(ctx context.Context, err error) bool {
	if err == nil {
		e.seen = ""
		return true
	}
	if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && ctx.Err() == nil {
		e.config.Logger.WarnContext(ctx, "lease not renewed", logkey.Object(e.config.Namespace, e.config.Name), logkey.Err(err))
	}
	return false
}

func (e *Elector) spec(old *coordinationv1.LeaseSpec, now time.Time) *coordinationv1.LeaseSpec {
	at := &metav1.MicroTime{}
	at.SetSeconds(now.Unix())
	at.SetNanos(int32(now.Nanosecond() / 1000 * 1000))
	next := coordinationv1.LeaseSpec_builder{
		HolderIdentity: proto.String(e.config.Identity), LeaseDurationSeconds: proto.Int32(int32(duration / time.Second)),
		AcquireTime: at, RenewTime: at, LeaseTransitions: proto.Int32(old.GetLeaseTransitions()),
	}.Build()
	switch {
	case old.GetHolderIdentity() == e.config.Identity:
		next.SetAcquireTime(old.GetAcquireTime())
	case old != nil:
		next.SetLeaseTransitions(old.GetLeaseTransitions() + 1)
	}
	return next
}

// giveBack lets another begin at once.
func (e *Elector) giveBack(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), callFor)
	defer cancel()
	lease, err := e.leases.Get(ctx, e.config.Namespace, e.config.Name)
	if err != nil || lease.GetSpec().GetHolderIdentity() != e.config.Identity {
		return
	}
	lease = proto.CloneOf(lease)
	lease.GetSpec().SetHolderIdentity("")
	if _, err := e.leases.Update(ctx, lease, nil); err != nil {
		e.config.Logger.DebugContext(ctx, "lease not given back", logkey.Err(err))
	}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}
