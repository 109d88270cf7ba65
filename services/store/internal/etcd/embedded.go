package etcd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"sync"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3rpc"
	"go.etcd.io/etcd/server/v3/lease"
	"go.uber.org/zap"
	"google.golang.org/grpc"

	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/store/internal/engine"
)

const (
	// DefaultQuota is where writes stop. etcd's own default, 2 GiB, is about a million pods too small for what Dhow promises.
	DefaultQuota = 8 << 30
	// maxTxnOps has room for a batch and its largest member, see engine.Limits.
	maxTxnOps = 4096
	// maxRequestBytes has room for the largest commit of the API, 1.5 MiB, with the keys of its conditions.
	maxRequestBytes = 4 << 20
	// snapshotCount and catchUpEntries bound what a restart replays and what raft keeps in memory. An entry is a batch of up to 1 MiB
	// here, and there is no follower that could need old ones.
	snapshotCount  = 2000
	catchUpEntries = 50
	// peerCatchUpEntries are kept for followers that were away for a moment; one that was away for longer gets the whole database.
	peerCatchUpEntries = 500

	// tickMs and electionMs are of an only member, which has nobody to send heartbeats to and does not wait for its election (see elect): a tick only wakes an idle
	// process. Seven ticks are etcd's shortest lease, here four seconds.
	tickMs, electionMs = 500, 2500

	// commitInterval is how often etcd looks whether it has something to write to its database file. Until then a crash replays more of the log, and a full database
	// is noticed later; etcd's own 100 ms wake an idle process ten times a second.
	commitInterval = 500 * time.Millisecond

	// lockWait is how long a starting store waits for its predecessor to let go of the data.
	lockWait = 5 * time.Second
)

// databaseDir is etcd's folder in the data folder.
const databaseDir = "etcd"

// peerURL names the only member. Nothing listens there: etcd wants a peer address even when there are no peers.
var peerURL = url.URL{Scheme: "http", Host: "127.0.0.1:1"}

// EmbedConfig configures Embed.
type EmbedConfig struct {
	// Dir holds the data. It is created when missing.
	Dir string
	// Quota in bytes; 0: DefaultQuota.
	Quota int64
	// Members, when set, makes this one of several stores that keep the same data.
	Members *Members
	// Logger gets etcd's warnings and errors.
	Logger *slog.Logger
}

// Embedded is etcd inside this process. It listens nowhere, unless it is one of several members: then for its peers.
type Embedded struct {
	common
	etcd   *embed.Etcd
	server *etcdserver.EtcdServer
	rpc    pb.KVServer
	lease  pb.LeaseServer
	// maintenance is called for snapshots alone; its notifier is for defragmentation.
	maintenance pb.MaintenanceServer
	quota       int64
	lock        *dirLock
	logger      *slog.Logger
	alone       bool
	// recovering is held while space is won back.
	recovering sync.Mutex
}

// Embed starts etcd on the data of a folder and waits until it serves. The folder is used by one process at a time.
func Embed(ctx context.Context, config EmbedConfig) (*Embedded, error) {
	if config.Members != nil {
		if err := config.Members.check(); err != nil {
			return nil, err
		}
	}
	lock, err := lockDir(ctx, config.Dir, lockWait)
	if err != nil {
		return nil, err
	}
	started, err := embed.StartEtcd(embedConfig(config))
	if err != nil {
		lock.release()
		return nil, fmt.Errorf("start etcd on %s: %w", config.Dir, err)
	}
	if config.Members == nil {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		go elect(ctx, started.Server)
	}
	select {
	case <-started.Server.ReadyNotify():
	case err = <-started.Err():
	case <-started.Server.StopNotify():
		err = errors.New("it stopped while starting; its log says why")
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		started.Close()
		lock.release()
		return nil, fmt.Errorf("start etcd on %s: %w", config.Dir, err)
	}
	server := started.Server
	e := &Embedded{
		etcd: started, server: server, lock: lock, logger: config.Logger,
		rpc: v3rpc.NewQuotaKVServer(server), lease: v3rpc.NewQuotaLeaseServer(server), maintenance: v3rpc.NewMaintenanceServer(server, nil),
		quota: orDefault(config.Quota, DefaultQuota), alone: config.Members == nil,
	}
	e.common = common{kv: e.rpc, limits: engine.Limits{Operations: maxTxnOps, Bytes: maxRequestBytes}}
	if !e.alone {
		e.kv = led{e.rpc, server}
	}
	return e, nil
}

func orDefault(value, otherwise int64) int64 {
	if value == 0 {
		return otherwise
	}
	return value
}

func embedConfig(config EmbedConfig) *embed.Config {
	c := embed.NewConfig()
	c.Dir = filepath.Join(config.Dir, databaseDir)
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(&zapCore{logger: config.Logger}))
	c.LogLevel = "warn"
	c.ListenClientUrls, c.AdvertiseClientUrls = nil, nil
	c.SnapshotCatchUpEntries = catchUpEntries
	if config.Members != nil {
		config.Members.configure(c)
	} else {
		c.Name, c.ListenPeerUrls, c.AdvertisePeerUrls = "dhow", nil, []url.URL{peerURL}
		c.InitialCluster = c.Name + "=" + peerURL.String()
		// The cluster id is a hash of the members and this token, so every new database gets an id of its own.
		c.InitialClusterToken = rand.Text()
		c.TickMs, c.ElectionMs = tickMs, electionMs
	}
	c.QuotaBackendBytes = orDefault(config.Quota, DefaultQuota)
	c.MaxTxnOps = maxTxnOps
	c.MaxRequestBytes = maxRequestBytes
	c.SnapshotCount = snapshotCount
	c.BackendBatchInterval = commitInterval
	// Compaction belongs to the store: it has one owner for all its instances.
	c.AutoCompactionRetention = "0"
	c.EnableGRPCGateway = false
	return c
}

// Status implements engine.Engine.
func (e *Embedded) Status(ctx context.Context) (engine.Status, error) {
	status, err := e.status(ctx)
	if err != nil {
		return engine.Status{}, err
	}
	status.Compacted = e.compacted()
	return status, nil
}

// compacted is the oldest revision that can be read; a database that was never compacted begins at 1.
func (e *Embedded) compacted() engine.Revision {
	return max(engine.Revision(e.server.KV().FirstRev()), 1)
}

// List implements engine.Engine with RangeStream: its chunks grow with what the items weigh, and it does not count what it does not
// send.
func (e *Embedded) List(ctx context.Context, r engine.Range, page func([]engine.Item) error) (bool, error) {
	stream := &rangeStream{ctx: ctx, page: page}
	var err error
	for again := true; again; {
		err = e.rpc.RangeStream(&pb.RangeRequest{
			Key: r.Start, RangeEnd: r.End, Revision: int64(r.Revision), Limit: r.Limit,
			// The only member has applied every revision that anyone has seen; one of several may lag.
			Serializable: e.alone,
		}, stream)
		again = leaderChanged(err) && !stream.began && ctx.Err() == nil
	}
	if stream.err != nil {
		return false, stream.err
	}
	if err != nil {
		return false, fmt.Errorf("list at %d: %w", r.Revision, readError(ctx, err))
	}
	return stream.more, nil
}

// rangeStream receives what EtcdServer sends, in the goroutine that called.
type rangeStream struct {
	grpc.ServerStream // never called
	ctx               context.Context
	page              func([]engine.Item) error
	// began says that a page was handed out.
	began bool
	more  bool
	err   error
}

func (s *rangeStream) Context() context.Context { return s.ctx }

func (s *rangeStream) Send(response *pb.RangeStreamResponse) error {
	s.more = response.RangeResponse.More
	if len(response.RangeResponse.Kvs) == 0 {
		return nil
	}
	s.began, s.err = true, s.page(items(response.RangeResponse.Kvs))
	return s.err
}

// Compact implements engine.Engine. When the quota was reached it also wins back the space and lets writes in again: the file never
// shrinks by itself, and there is no operator of an embedded etcd.
func (e *Embedded) Compact(ctx context.Context, to engine.Revision) error {
	full := e.full()
	if err := e.compact(ctx, to, full); err != nil || !full {
		return err
	}
	return e.winBack(ctx)
}

func (e *Embedded) full() bool {
	for _, alarm := range e.server.Alarms() {
		if alarm.Alarm == pb.AlarmType_NOSPACE {
			return true
		}
	}
	return false
}

// writableBelow is the part of the quota that data may take for writes to be let in again.
const writableBelow = 0.8

func (e *Embedded) winBack(ctx context.Context) error {
	e.recovering.Lock()
	defer e.recovering.Unlock()
	used := e.server.Backend().SizeInUse()
	if !e.full() || float64(used) > writableBelow*float64(e.quota) {
		return nil
	}
	if err := e.server.Defragment(); err != nil {
		return fmt.Errorf("win back space: %w", err)
	}
	_, err := e.server.Alarm(ctx, &pb.AlarmRequest{
		MemberID: uint64(e.server.MemberID()), Action: pb.AlarmRequest_DEACTIVATE, Alarm: pb.AlarmType_NOSPACE,
	})
	if err != nil {
		return fmt.Errorf("let writes in again: %w", readError(ctx, err))
	}
	e.logger.LogAttrs(ctx, slog.LevelInfo, "space won back, writes are let in again", logkey.Bytes(e.server.Backend().Size()))
	return nil
}

// Grant implements engine.Engine.
func (e *Embedded) Grant(ctx context.Context, ttl int64) (int64, int64, error) {
	response, err := e.lease.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: ttl})
	if err != nil {
		return 0, 0, fmt.Errorf("grant a lease of %d s: %w", ttl, readError(ctx, err))
	}
	return response.ID, response.TTL, nil
}

// KeepAlive implements engine.Engine.
func (e *Embedded) KeepAlive(ctx context.Context, id int64) (int64, error) {
	ttl, err := e.server.LeaseRenew(ctx, lease.LeaseID(id))
	if errors.Is(err, lease.ErrLeaseNotFound) {
		return 0, fmt.Errorf("lease %d: %w", id, engine.ErrLeaseNotFound)
	}
	if err != nil {
		return 0, fmt.Errorf("renew lease %d: %w", id, readError(ctx, err))
	}
	return ttl, nil
}

// Revoke implements engine.Engine.
func (e *Embedded) Revoke(ctx context.Context, id int64) error {
	_, err := e.lease.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: id})
	if err = readErrorOrNil(ctx, err); err != nil && !errors.Is(err, engine.ErrLeaseNotFound) {
		return fmt.Errorf("revoke lease %d: %w", id, err)
	}
	return nil
}

func readErrorOrNil(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	return readError(ctx, err)
}

// Size implements engine.Engine.
func (e *Embedded) Size(context.Context) (engine.Size, error) {
	backend := e.server.Backend()
	return engine.Size{Total: backend.Size(), InUse: backend.SizeInUse(), Quota: e.quota, Full: e.full()}, nil
}

// Wait returns when etcd has failed by itself, or nil when the context ends.
func (e *Embedded) Wait(ctx context.Context) error {
	select {
	case err := <-e.etcd.Err():
		return fmt.Errorf("the embedded etcd failed: %w", err)
	case <-e.server.StopNotify():
		return errors.New("the embedded etcd stopped by itself; its log says why")
	case <-ctx.Done():
		return nil
	}
}

// Close implements engine.Engine. The data is complete on disk at any time; closing only spares the next start some work.
func (e *Embedded) Close() error {
	e.etcd.Close()
	return e.lock.release()
}

// forever is the end of a range that has none.
var forever = []byte{}
