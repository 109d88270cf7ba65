package etcd

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"dhow.dev/services/store/internal/engine"
)

const (
	// etcd's defaults for --max-txn-ops and --max-request-bytes.
	defaultOperations = 128
	defaultBytes      = 1536 << 10

	dialTimeout = 10 * time.Second
)

// ConnectConfig configures Connect.
type ConnectConfig struct {
	// Endpoints are URLs of the members: https://host:port, or unix:// and http:// for one on the same machine.
	Endpoints []string
	// TLS holds the client certificate and the authorities for https endpoints.
	TLS *tls.Config
	// Operations and Bytes are what the servers were started with (--max-txn-ops, --max-request-bytes); 0: etcd's defaults.
	Operations, Bytes int
	// Logger gets the client's warnings and errors.
	Logger *slog.Logger
}

// External is an etcd cluster of its own. Dhow must be its only user.
type External struct {
	common
	client *clientv3.Client

	mu sync.Mutex
	// oldest is the compacted revision when it was last looked for.
	oldest engine.Revision
}

// Connect connects to an etcd cluster and checks that it answers.
func Connect(ctx context.Context, config ConnectConfig) (*External, error) {
	if len(config.Endpoints) == 0 {
		return nil, errors.New("no etcd endpoints: give at least one")
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: config.Endpoints, TLS: config.TLS, DialTimeout: dialTimeout,
		DialKeepAliveTime: 10 * time.Second, DialKeepAliveTimeout: 5 * time.Second,
		// gRPC's default waits up to two minutes; an etcd that comes back must be found in seconds.
		DialOptions: []grpc.DialOption{grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		})},
		// Batches are bounded below what any server takes.
		MaxCallSendMsgSize: 64 << 20,
		Logger:             zap.New(&zapCore{logger: config.Logger}),
	})
	if err != nil {
		return nil, fmt.Errorf("etcd at %v: %w", config.Endpoints, err)
	}
	x := &External{client: client, oldest: 1}
	x.common = common{kv: remoteKV{clientv3.RetryKVClient(client)}, limits: engine.Limits{
		Operations: int(orDefault(int64(config.Operations), defaultOperations)),
		Bytes:      int(orDefault(int64(config.Bytes), defaultBytes)),
	}}
	checking, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	if _, err := x.Status(checking); err != nil {
		client.Close()
		return nil, fmt.Errorf("etcd at %v does not answer: %w", config.Endpoints, err)
	}
	return x, nil
}

// remoteKV calls a server with no options of a call.
type remoteKV struct{ client pb.KVClient }

func (r remoteKV) Range(ctx context.Context, in *pb.RangeRequest) (*pb.RangeResponse, error) {
	return r.client.Range(ctx, in)
}

func (r remoteKV) Txn(ctx context.Context, in *pb.TxnRequest) (*pb.TxnResponse, error) {
	return r.client.Txn(ctx, in)
}

func (r remoteKV) Compact(ctx context.Context, in *pb.CompactionRequest) (*pb.CompactionResponse, error) {
	return r.client.Compact(ctx, in)
}

// Status implements engine.Engine.
func (x *External) Status(ctx context.Context) (engine.Status, error) {
	status, err := x.status(ctx)
	if err != nil {
		return engine.Status{}, err
	}
	status.Compacted, err = x.compacted(ctx)
	return status, err
}

// compacted finds the oldest revision that can be read. etcd does not tell it, but says of any revision whether it is compacted: the
// last answer is nearly always still right, and otherwise a binary search takes few reads.
func (x *External) compacted(ctx context.Context) (engine.Revision, error) {
	x.mu.Lock()
	oldest := x.oldest
	x.mu.Unlock()
	newest, ok, err := x.readable(ctx, oldest)
	if err != nil || ok {
		return oldest, err
	}
	low, high := oldest, newest // low is compacted, high is not or is the newest
	for low+1 < high {
		middle := low + (high-low)/2
		if _, ok, err = x.readable(ctx, middle); err != nil {
			return 0, err
		}
		if ok {
			high = middle
		} else {
			low = middle
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.oldest = max(x.oldest, high)
	return x.oldest, nil
}

// readable says whether a revision can be read, and which is the newest.
func (x *External) readable(ctx context.Context, at engine.Revision) (newest engine.Revision, ok bool, err error) {
	response, err := x.kv.Range(ctx, &pb.RangeRequest{Key: probe, CountOnly: true, Revision: int64(at)})
	if err == nil {
		return engine.Revision(response.Header.Revision), true, nil
	}
	if !errors.Is(rpctypes.Error(err), rpctypes.ErrCompacted) {
		return 0, false, fmt.Errorf("read at %d: %w", at, readError(ctx, err))
	}
	response, err = x.kv.Range(ctx, &pb.RangeRequest{Key: probe, CountOnly: true})
	if err != nil {
		return 0, false, fmt.Errorf("read the revision: %w", readError(ctx, err))
	}
	return engine.Revision(response.Header.Revision), false, nil
}

// List implements engine.Engine in pages: servers before 3.7 cannot stream a range.
func (x *External) List(ctx context.Context, r engine.Range, page func([]engine.Item) error) (bool, error) {
	const target = 1 << 20 // bytes of a page
	size, sent := int64(100), int64(0)
	for start := r.Start; ; {
		if r.Limit > 0 {
			size = min(size, r.Limit-sent)
		}
		response, err := x.kv.Range(ctx, &pb.RangeRequest{Key: start, RangeEnd: r.End, Revision: int64(r.Revision), Limit: size})
		if err != nil {
			return false, fmt.Errorf("list at %d: %w", r.Revision, readError(ctx, err))
		}
		if len(response.Kvs) == 0 {
			return false, nil
		}
		if err := page(items(response.Kvs)); err != nil {
			return false, err
		}
		sent += int64(len(response.Kvs))
		if !response.More || r.Limit > 0 && sent >= r.Limit {
			return response.More, nil
		}
		start = append(bytes.Clone(response.Kvs[len(response.Kvs)-1].Key), 0)
		weight := 0
		for _, kv := range response.Kvs {
			weight += len(kv.Key) + len(kv.Value)
		}
		// As many items as fit into a page when they weigh what the last ones did.
		size = min(max(int64(len(response.Kvs))*target/int64(max(weight, 1)), 1), 10000)
	}
}

// Grant implements engine.Engine.
func (x *External) Grant(ctx context.Context, ttl int64) (int64, int64, error) {
	response, err := x.client.Grant(ctx, ttl)
	if err != nil {
		return 0, 0, fmt.Errorf("grant a lease of %d s: %w", ttl, readError(ctx, err))
	}
	return int64(response.ID), response.TTL, nil
}

// KeepAlive implements engine.Engine.
func (x *External) KeepAlive(ctx context.Context, id int64) (int64, error) {
	response, err := x.client.KeepAliveOnce(ctx, clientv3.LeaseID(id))
	if err != nil {
		return 0, fmt.Errorf("renew lease %d: %w", id, readError(ctx, err))
	}
	return response.TTL, nil
}

// Revoke implements engine.Engine.
func (x *External) Revoke(ctx context.Context, id int64) error {
	_, err := x.client.Revoke(ctx, clientv3.LeaseID(id))
	if err = readErrorOrNil(ctx, err); err != nil && !errors.Is(err, engine.ErrLeaseNotFound) {
		return fmt.Errorf("revoke lease %d: %w", id, err)
	}
	return nil
}

// Size implements engine.Engine. Members agree about what is in use; the first that answers speaks for all.
func (x *External) Size(ctx context.Context) (engine.Size, error) {
	var failed error
	for _, endpoint := range x.client.Endpoints() {
		status, err := x.client.Status(ctx, endpoint)
		if err != nil {
			failed = err
			continue
		}
		return engine.Size{Total: status.DbSize, InUse: status.DbSizeInUse, Quota: status.DbSizeQuota}, nil
	}
	return engine.Size{}, fmt.Errorf("read the database's size: %w", readError(ctx, failed))
}

// Close implements engine.Engine.
func (x *External) Close() error {
	if err := x.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close the connection to etcd: %w", err)
	}
	return nil
}
