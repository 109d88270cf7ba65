// Package etcd is the store's engine on etcd: embedded in this process (Embed) or a cluster of its own (Connect).
//
// Both speak etcd's wire messages; they differ in how a call reaches the server and in what only a process that holds the server can
// do: stream a range, read the oldest revision, see the versions before a change without asking again.
package etcd

import (
	"context"
	"errors"
	"fmt"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"dhow.dev/services/store/internal/engine"
)

// kv is the part of etcd's KV service that both variants share.
type kv interface {
	Range(context.Context, *pb.RangeRequest) (*pb.RangeResponse, error)
	Txn(context.Context, *pb.TxnRequest) (*pb.TxnResponse, error)
	Compact(context.Context, *pb.CompactionRequest) (*pb.CompactionResponse, error)
}

// common is what both engines do alike.
type common struct {
	kv     kv
	limits engine.Limits
}

// Limits implements engine.Engine.
func (c *common) Limits() engine.Limits { return c.limits }

// probe is a key that nobody has: reading it costs nothing but tells the revision.
var probe = []byte("\x00dhow")

// Commit implements engine.Engine. One member is a plain transaction, several are nested ones: etcd evaluates the compares of all
// nesting levels against the state before the transaction.
func (c *common) Commit(ctx context.Context, members []engine.Member) (engine.Result, error) {
	if len(members) == 1 {
		response, err := c.kv.Txn(ctx, transaction(members[0]))
		if err != nil {
			return engine.Result{}, writeError(ctx, err)
		}
		out, err := outcome(members[0], response)
		if err != nil {
			return engine.Result{}, err
		}
		return engine.Result{Revision: engine.Revision(response.Header.Revision), Outcomes: []engine.Outcome{out}}, nil
	}
	batch := &pb.TxnRequest{Success: make([]*pb.RequestOp, len(members))}
	for i, m := range members {
		batch.Success[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: transaction(m)}}
	}
	response, err := c.kv.Txn(ctx, batch)
	if err != nil {
		return engine.Result{}, writeError(ctx, err)
	}
	if len(response.Responses) != len(members) {
		return engine.Result{}, fmt.Errorf("%w: etcd answered %d of %d transactions", engine.ErrUncertain, len(response.Responses), len(members))
	}
	result := engine.Result{Revision: engine.Revision(response.Header.Revision), Outcomes: make([]engine.Outcome, len(members))}
	for i, m := range members {
		result.Outcomes[i], err = outcome(m, response.Responses[i].GetResponseTxn())
		if err != nil {
			return engine.Result{}, err
		}
	}
	return result, nil
}

// transaction is a member in etcd's terms. When its conditions do not hold it reads their keys.
func transaction(m engine.Member) *pb.TxnRequest {
	t := &pb.TxnRequest{
		Compare: make([]*pb.Compare, len(m.Conditions)),
		Success: make([]*pb.RequestOp, len(m.Writes)),
	}
	for i, condition := range m.Conditions {
		t.Compare[i] = compare(condition)
	}
	for i, w := range m.Writes {
		if w.Delete {
			t.Success[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: w.Key}}}
			continue
		}
		put := &pb.PutRequest{Key: w.Key, Value: w.Value, Lease: w.Lease}
		t.Success[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: put}}
	}
	for _, key := range conditionKeys(m.Conditions) {
		// Never serializable: a transaction that only checks would otherwise be answered from a member that lags.
		t.Failure = append(t.Failure, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: key}}})
	}
	return t
}

// conditionKeys returns the keys of the conditions, each once, in order.
func conditionKeys(conditions []engine.Condition) [][]byte {
	keys := make([][]byte, 0, len(conditions))
	seen := make(map[string]struct{}, len(conditions))
	for _, condition := range conditions {
		if _, ok := seen[string(condition.Key)]; !ok {
			seen[string(condition.Key)] = struct{}{}
			keys = append(keys, condition.Key)
		}
	}
	return keys
}

func compare(condition engine.Condition) *pb.Compare {
	modified := func(result pb.Compare_CompareResult, revision int64) *pb.Compare {
		return &pb.Compare{
			Key: condition.Key, Target: pb.Compare_MOD, Result: result, TargetUnion: &pb.Compare_ModRevision{ModRevision: revision},
		}
	}
	switch condition.Revision {
	case engine.Present:
		return modified(pb.Compare_GREATER, 0)
	case engine.Never:
		return modified(pb.Compare_LESS, 0)
	default:
		// A key that does not exist has the revision 0.
		return modified(pb.Compare_EQUAL, int64(condition.Revision))
	}
}

func outcome(m engine.Member, response *pb.TxnResponse) (engine.Outcome, error) {
	if !response.GetSucceeded() {
		keys := conditionKeys(m.Conditions)
		if len(response.GetResponses()) != len(keys) {
			return engine.Outcome{}, fmt.Errorf("%w: etcd answered %d of %d reads", engine.ErrUncertain, len(response.GetResponses()), len(keys))
		}
		out := engine.Outcome{Current: make([]engine.Item, len(keys))}
		for i, key := range keys {
			out.Current[i] = itemOf(key, response.Responses[i].GetResponseRange().GetKvs())
		}
		return out, nil
	}
	if len(response.Responses) != len(m.Writes) {
		return engine.Outcome{}, fmt.Errorf("%w: etcd answered %d of %d writes", engine.ErrUncertain, len(response.Responses), len(m.Writes))
	}
	out := engine.Outcome{Held: true, Changed: make([]bool, len(m.Writes))}
	for i, w := range m.Writes {
		out.Changed[i] = !w.Delete || response.Responses[i].GetResponseDeleteRange().GetDeleted() > 0
	}
	return out, nil
}

// itemOf is the key's state: kvs holds its version, or nothing.
func itemOf(key []byte, kvs []*mvccpb.KeyValue) engine.Item {
	if len(kvs) == 0 {
		return engine.Item{Key: key}
	}
	return engine.Item{Key: key, Value: kvs[0].Value, Revision: engine.Revision(kvs[0].ModRevision), Lease: kvs[0].Lease}
}

func items(kvs []*mvccpb.KeyValue) []engine.Item {
	list := make([]engine.Item, len(kvs))
	for i := range kvs {
		list[i] = itemOf(kvs[i].Key, kvs[i:i+1])
	}
	return list
}

// Get implements engine.Engine. Keys beyond etcd's limit are read at the revision of the first ones.
func (c *common) Get(ctx context.Context, keys [][]byte, at engine.Revision) ([]engine.Item, engine.Revision, error) {
	list := make([]engine.Item, 0, len(keys))
	for chunk := range chunks(keys, c.limits.Operations) {
		read := &pb.TxnRequest{Success: make([]*pb.RequestOp, len(chunk))}
		for i, key := range chunk {
			request := &pb.RangeRequest{Key: key, Revision: int64(at)}
			read.Success[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: request}}
		}
		response, err := c.kv.Txn(ctx, read)
		if err != nil {
			return nil, 0, fmt.Errorf("read at %d: %w", at, readError(ctx, err))
		}
		if len(response.Responses) != len(chunk) {
			return nil, 0, fmt.Errorf("%w: etcd answered %d of %d reads", engine.ErrUnavailable, len(response.Responses), len(chunk))
		}
		if at == 0 {
			at = engine.Revision(response.Header.Revision)
		}
		for i, key := range chunk {
			list = append(list, itemOf(key, response.Responses[i].GetResponseRange().GetKvs()))
		}
	}
	return list, at, nil
}

// chunks yields keys in pieces of at most n.
func chunks(keys [][]byte, n int) func(yield func([][]byte) bool) {
	return func(yield func([][]byte) bool) {
		for len(keys) > 0 {
			size := min(n, len(keys))
			if !yield(keys[:size]) {
				return
			}
			keys = keys[size:]
		}
	}
}

// status reads the newest revision linearizably.
func (c *common) status(ctx context.Context) (engine.Status, error) {
	response, err := c.kv.Range(ctx, &pb.RangeRequest{Key: probe, CountOnly: true})
	if err != nil {
		return engine.Status{}, fmt.Errorf("read the revision: %w", readError(ctx, err))
	}
	return engine.Status{Revision: engine.Revision(response.Header.Revision), ClusterID: response.Header.ClusterId}, nil
}

// Compact implements engine.Engine.
func (c *common) Compact(ctx context.Context, to engine.Revision) error {
	return c.compact(ctx, to, false)
}

func (c *common) compact(ctx context.Context, to engine.Revision, wait bool) error {
	_, err := c.kv.Compact(ctx, &pb.CompactionRequest{Revision: int64(to), Physical: wait})
	if err == nil || errors.Is(rpctypes.Error(err), rpctypes.ErrCompacted) {
		return nil
	}
	return fmt.Errorf("compact to %d: %w", to, readError(ctx, err))
}

// writeError says what an error means for a transaction: refused, or possibly done.
func writeError(ctx context.Context, err error) error {
	if known := definite(err); known != nil {
		return fmt.Errorf("%w (%w)", known, err)
	}
	return fmt.Errorf("%w (%w)", engine.ErrUncertain, err)
}

// readError says what an error means for a call that changes nothing, or that may be repeated.
func readError(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if known := definite(err); known != nil {
		return fmt.Errorf("%w (%w)", known, err)
	}
	return fmt.Errorf("%w (%w)", engine.ErrUnavailable, err)
}

// definite returns the engine's error for answers of etcd that say that nothing happened, and nil for all others.
func definite(err error) error {
	switch rpctypes.Error(err) {
	case rpctypes.ErrCompacted:
		return engine.ErrCompacted
	case rpctypes.ErrFutureRev:
		return engine.ErrFuture
	case rpctypes.ErrLeaseNotFound:
		return engine.ErrLeaseNotFound
	case rpctypes.ErrNoSpace:
		return engine.ErrNoSpace
	case rpctypes.ErrRequestTooLarge, rpctypes.ErrTooManyOps:
		return engine.ErrTooLarge
	case rpctypes.ErrDuplicateKey, rpctypes.ErrEmptyKey, rpctypes.ErrLeaseTTLTooLarge:
		return engine.ErrRejected
	case rpctypes.ErrTooManyRequests, rpctypes.ErrNoLeader, rpctypes.ErrPermissionDenied, rpctypes.ErrUserEmpty, rpctypes.ErrCorrupt:
		return engine.ErrUnavailable
	}
	return nil
}
