// Package leader lets one of several processes work at a time: the one that holds a Lease.
//
// A holder renews its lease; who wants to be holder takes over one that was not renewed for its duration, counted by the own clock since the last
// change was seen, so that clocks need not agree. A holder that cannot renew stops before others may begin.
package leader

import (
	"context"
	"errors"
	"fmt"
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

// Config is what an election is made of. The durations of client-go are 15 s, 10 s, 2 s and 2 s.
type Config struct {
	Conn grpc.ClientConnInterface
	// Namespace and Name of the Lease.
	Namespace, Name string
	// Identity of this process, unique among the candidates.
	Identity string
	// Duration is how long a lease holds without renewal. A holder that could not renew for Deadline stops, with the time until Duration to end its work.
	Duration, Deadline time.Duration
	// Renew is the time between renewals, Retry that between attempts to take the lease over, or to renew it again after an attempt that failed.
	Renew, Retry time.Duration
	Logger       *slog.Logger
}

// Election is one candidate.
type Election struct {
	cfg    Config
	leases *client.Client[*coordinationv1.Lease]

	// seen is the lease as it was last read or written, since is when that was.
	seen  *coordinationv1.Lease
	since time.Time
}

// errLost ends the work of a holder that could not renew.
var errLost = errors.New("leadership lost: the lease could not be renewed in time")

// New returns a candidate.
func New(cfg Config) *Election {
	return &Election{cfg: cfg, leases: client.For[*coordinationv1.Lease](cfg.Conn)}
}

// Run calls work whenever this process holds the lease, again after it was lost, until ctx ends or work does by itself. The context of work ends when
// the lease is lost.
func (e *Election) Run(ctx context.Context, work func(context.Context) error) error {
	for e.acquire(ctx) {
		e.cfg.Logger.InfoContext(ctx, "leading", logkey.Identity(e.cfg.Identity))
		if err := e.lead(ctx, work); !errors.Is(err, errLost) {
			e.release(context.WithoutCancel(ctx))
			return err
		}
		e.cfg.Logger.WarnContext(ctx, "leadership lost", logkey.Identity(e.cfg.Identity))
	}
	return nil
}

// acquire waits until this process holds the lease; it returns false when ctx ends.
func (e *Election) acquire(ctx context.Context) bool {
	for {
		held, err := e.attempt(ctx, e.cfg.Deadline)
		if held {
			return true
		}
		if err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			e.cfg.Logger.WarnContext(ctx, "lease not acquired, will be tried again", logkey.Err(err), logkey.Delay(e.cfg.Retry))
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(e.cfg.Retry):
		}
	}
}

// lead works while the lease can be renewed. It returns errLost when it could not, and else what work did, after work has ended.
func (e *Election) lead(ctx context.Context, work func(context.Context) error) error {
	leading, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- work(leading) }()
	pause, deadline := e.cfg.Renew, time.Now().Add(e.cfg.Deadline)
	for {
		select {
		case err := <-ended:
			return err
		case <-ctx.Done():
			return <-ended
		case <-time.After(pause):
		}
		began := time.Now()
		held, err := e.attempt(ctx, deadline.Sub(began))
		switch {
		case held:
			pause, deadline = e.cfg.Renew, began.Add(e.cfg.Deadline)
		case ctx.Err() != nil:
		case err != nil && time.Until(deadline) > 0:
			pause = min(e.cfg.Retry, time.Until(deadline))
		default: // somebody else has it, or may soon
			cancel()
			<-ended
			return errLost
		}
	}
}

// attempt takes or renews the lease within a time, and says whether this process holds it then.
func (e *Election) attempt(ctx context.Context, within time.Duration) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	now := time.Now()
	current, err := e.leases.Get(ctx, e.cfg.Namespace, e.cfg.Name)
	if apierrors.IsNotFound(err) {
		fresh := coordinationv1.Lease_builder{
			Metadata: metav1.ObjectMeta_builder{Namespace: proto.String(e.cfg.Namespace), Name: proto.String(e.cfg.Name)}.Build(),
			Spec:     e.spec(now, now, 0),
		}.Build()
		created, err := e.leases.Create(ctx, fresh, nil)
		if err != nil {
			return false, fmt.Errorf("create lease: %w", err)
		}
		e.see(created, now)
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read lease: %w", err)
	}
	if e.seen == nil || !proto.Equal(e.seen.GetSpec(), current.GetSpec()) {
		e.see(current, now)
	}
	spec := current.GetSpec()
	holder := spec.GetHolderIdentity()
	expires := e.since.Add(time.Duration(spec.GetLeaseDurationSeconds()) * time.Second)
	if holder != "" && holder != e.cfg.Identity && now.Before(expires) {
		return false, nil
	}
	updated := proto.CloneOf(current)
	acquired, transitions := now, spec.GetLeaseTransitions()
	if holder == e.cfg.Identity {
		acquired = time.Unix(spec.GetAcquireTime().GetSeconds(), int64(spec.GetAcquireTime().GetNanos()))
	} else {
		transitions++
	}
	updated.SetSpec(e.spec(acquired, now, transitions))
	if updated, err = e.leases.Update(ctx, updated, nil); err != nil {
		return false, fmt.Errorf("write lease: %w", err)
	}
	e.see(updated, now)
	return true, nil
}

// release gives the lease up, so that another candidate need not wait for it to expire.
func (e *Election) release(ctx context.Context) {
	if e.seen.GetSpec().GetHolderIdentity() != e.cfg.Identity {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, e.cfg.Retry)
	defer cancel()
	now := time.Now()
	updated := proto.CloneOf(e.seen)
	spec := e.spec(now, now, e.seen.GetSpec().GetLeaseTransitions())
	spec.SetHolderIdentity("")
	spec.SetLeaseDurationSeconds(1)
	updated.SetSpec(spec)
	if _, err := e.leases.Update(ctx, updated, nil); err != nil {
		e.cfg.Logger.InfoContext(ctx, "lease not given up, it will expire", logkey.Err(err))
	}
}

func (e *Election) see(lease *coordinationv1.Lease, now time.Time) { e.seen, e.since = lease, now }

func (e *Election) spec(acquired, renewed time.Time, transitions int32) *coordinationv1.LeaseSpec {
	return coordinationv1.LeaseSpec_builder{
		HolderIdentity: proto.String(e.cfg.Identity), LeaseDurationSeconds: proto.Int32(int32(e.cfg.Duration.Seconds())),
		AcquireTime: micro(acquired), RenewTime: micro(renewed), LeaseTransitions: proto.Int32(transitions),
	}.Build()
}

// micro is a time as the API writes it.
func micro(t time.Time) *metav1.MicroTime {
	out := &metav1.MicroTime{}
	out.SetSeconds(t.Unix())
	out.SetNanos(int32(t.Nanosecond() / 1000 * 1000))
	return out
}
