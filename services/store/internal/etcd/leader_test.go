package etcd

import (
	"context"
	"errors"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"dhow.dev/services/store/internal/engine"
)

// election is a member's server: it tells of another leader when the test closes changed, and answers reads when it closes works.
type election struct {
	kv
	changed, works chan struct{}
	// began is sent when a transaction waits for its answer, which comes by answers or not at all.
	began   chan struct{}
	answers chan error
	// disturbed is how many reads fail because of the election.
	disturbed int
}

func newElection() *election {
	return &election{changed: make(chan struct{}), works: make(chan struct{}), began: make(chan struct{}), answers: make(chan error)}
}

func (e *election) LeaderChangedNotify() <-chan struct{} { return e.changed }

func (e *election) Range(ctx context.Context, _ *pb.RangeRequest) (*pb.RangeResponse, error) {
	select {
	case <-e.works:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if e.disturbed > 0 {
		e.disturbed--
		return nil, rpctypes.ErrGRPCLeaderChanged
	}
	return &pb.RangeResponse{}, nil
}

func (e *election) Txn(ctx context.Context, _ *pb.TxnRequest) (*pb.TxnResponse, error) {
	e.began <- struct{}{}
	select {
	case err := <-e.answers:
		return &pb.TxnResponse{}, err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// A transaction without an answer is given up when another leader works, and not before: also not when the election disturbs the read that shows it.
func TestTransactionsOfALostLeaderAreGivenUp(t *testing.T) {
	e := newElection()
	e.disturbed = 2
	ended := make(chan error, 1)
	go func() {
		_, err := led{e, e}.Txn(t.Context(), &pb.TxnRequest{})
		ended <- err
	}()
	<-e.began
	close(e.changed)
	select {
	case err := <-ended:
		t.Fatalf("it ended before the next leader works: %v", err)
	default:
	}
	close(e.works)
	if err := <-ended; !errors.Is(err, errLeaderGone) || !errors.Is(writeError(t.Context(), err), engine.ErrUncertain) {
		t.Errorf("it ended with %v", err)
	}
}

// What the next leader answers is an answer.
func TestTransactionsAreAnsweredByTheNextLeader(t *testing.T) {
	e := newElection()
	ended := make(chan error, 1)
	go func() {
		_, err := led{e, e}.Txn(t.Context(), &pb.TxnRequest{})
		ended <- err
	}()
	<-e.began
	close(e.changed)
	e.answers <- nil
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// Reads that an election disturbed are made again; other errors are told.
func TestReadsAreMadeAgainAfterAnElection(t *testing.T) {
	e := newElection()
	close(e.works)
	e.disturbed = 3
	if _, err := (led{e, e}).Range(t.Context(), &pb.RangeRequest{}); err != nil || e.disturbed != 0 {
		t.Errorf("a read: %v, and %d times more", err, e.disturbed)
	}
	ended := make(chan error, 1)
	go func() {
		_, err := led{e, e}.Txn(t.Context(), &pb.TxnRequest{})
		ended <- err
	}()
	for _, answer := range []error{rpctypes.ErrGRPCLeaderChanged, rpctypes.ErrGRPCNoSpace} {
		<-e.began
		e.answers <- answer
	}
	if err := <-ended; !errors.Is(rpctypes.Error(err), rpctypes.ErrNoSpace) {
		t.Errorf("a transaction of reads: %v", err)
	}
}
