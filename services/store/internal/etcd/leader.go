package etcd

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// elected tells of leaders; *etcdserver.EtcdServer does.
type elected interface {
	// LeaderChangedNotify returns a channel that is closed when there is another leader.
	LeaderChangedNotify() <-chan struct{}
}

var errLeaderGone = errors.New("the leader that it was sent to is gone")

// led is the KV service of one of several members. What a member has sent to a leader that died is answered by nobody, and etcd waits seven seconds for it; here it is
// given up once the next leader works. Reads that an election disturbed are made again, as etcd's own client does.
type led struct {
	kv
	leader elected
}

// Range implements kv.
func (l led) Range(ctx context.Context, request *pb.RangeRequest) (*pb.RangeResponse, error) {
	for {
		response, err := l.kv.Range(ctx, request)
		if !leaderChanged(err) || ctx.Err() != nil {
			return response, err
		}
	}
}

// Txn implements kv. A transaction that is given up may have happened, as one that takes too long.
func (l led) Txn(ctx context.Context, request *pb.TxnRequest) (*pb.TxnResponse, error) {
	for {
		response, err := l.attempt(ctx, request)
		// Only reads are answered like this: what writes waits for its turn with any leader.
		if !leaderChanged(err) || ctx.Err() != nil {
			return response, err
		}
	}
}

func (l led) attempt(ctx context.Context, request *pb.TxnRequest) (*pb.TxnResponse, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	another := l.leader.LeaderChangedNotify()
	go func() {
		select {
		case <-another:
		case <-ctx.Done():
			return
		}
		// What the next leader has of the old one's is applied here, and answered, before a read that all agree on is.
		if _, err := l.Range(ctx, &pb.RangeRequest{Key: probe, CountOnly: true}); err == nil {
			cancel(errLeaderGone)
		}
	}()
	response, err := l.kv.Txn(ctx, request)
	if err != nil && errors.Is(context.Cause(ctx), errLeaderGone) {
		return nil, errLeaderGone
	}
	return response, err
}

func leaderChanged(err error) bool { return errors.Is(rpctypes.Error(err), rpctypes.ErrLeaderChanged) }
