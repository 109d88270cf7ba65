package etcd

import (
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/pkg/v3/traceutil"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/storage/mvcc"

	"dhow.dev/services/store/internal/engine"
)

// Watchers watch all keys, not those of one prefix: the index of a delete follows from the whole commit (package record), and every
// new revision has to be seen, at least as progress.

var firstKey = []byte{0}

// localWatcher watches the server of this process.
//
// It does not use etcd's "previous key-value" option: events are shared by all watchers of the process and etcd 3.7 writes the
// previous version into them without a lock. It reads those versions itself.
type localWatcher struct {
	server *etcdserver.EtcdServer
	stream mvcc.WatchStream
}

// Watch implements engine.Engine.
func (e *Embedded) Watch(ctx context.Context, from engine.Revision) (engine.Watcher, error) {
	if oldest := e.compacted(); from <= oldest {
		return nil, fmt.Errorf("watch from %d: %w, the oldest is %d", from, engine.ErrCompacted, oldest)
	}
	w := &localWatcher{server: e.server, stream: e.server.Watchable().NewWatchStream()}
	if _, err := w.stream.Watch(ctx, clientv3.AutoWatchID, firstKey, forever, int64(from)); err != nil {
		w.Close()
		return nil, fmt.Errorf("watch from %d: %w (%w)", from, engine.ErrUnavailable, err)
	}
	return w, nil
}

func (w *localWatcher) Close() { w.stream.Close() }

func (w *localWatcher) Next(ctx context.Context) ([]engine.Commit, error) {
	var commits []engine.Commit
	for {
		select {
		case response, ok := <-w.stream.Chan():
			if !ok {
				return nil, fmt.Errorf("watch: %w: it was closed", engine.ErrUnavailable)
			}
			more, err := w.commits(response)
			if err != nil {
				return nil, err
			}
			commits = append(commits, more...)
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-w.server.StoppingNotify():
			return nil, fmt.Errorf("watch: %w: it stops", engine.ErrUnavailable)
		}
		if len(commits) > 0 && (len(w.stream.Chan()) == 0 || len(commits) >= maxCommits) {
			return commits, nil
		}
	}
}

// maxCommits is about how many commits one Next returns at most, so that a reader far behind gets them in pieces.
const maxCommits = 1024

func (w *localWatcher) commits(response mvcc.WatchResponse) ([]engine.Commit, error) {
	mvcc.ReportEventReceived(len(response.Events))
	if response.CompactRevision != 0 {
		return nil, fmt.Errorf("watch: %w, the oldest is %d", engine.ErrCompacted, response.CompactRevision)
	}
	read := w.server.KV().Read(mvcc.ConcurrentReadTxMode, traceutil.TODO())
	defer read.End()
	return commits(response.Events, func(e *mvccpb.Event) (engine.Item, error) {
		result, err := read.Range(context.Background(), e.Kv.Key, nil, mvcc.RangeOptions{Rev: e.Kv.ModRevision - 1})
		if errors.Is(err, mvcc.ErrCompacted) || err == nil && len(result.KVs) == 0 {
			return engine.Item{}, errPreviousGone(e)
		}
		if err != nil {
			return engine.Item{}, fmt.Errorf("read what key %q was before: %w (%w)", e.Kv.Key, engine.ErrUnavailable, err)
		}
		return itemOf(e.Kv.Key, result.KVs), nil
	})
}

// errPreviousGone: the watcher is so far behind that compaction has overtaken it.
func errPreviousGone(e *mvccpb.Event) error {
	return fmt.Errorf("watch at %d: %w", e.Kv.ModRevision, engine.ErrCompacted)
}

// commits groups events by revision. previous is asked for the version that an event replaced.
func commits(events []*mvccpb.Event, previous func(*mvccpb.Event) (engine.Item, error)) ([]engine.Commit, error) {
	var list []engine.Commit
	for _, e := range events {
		revision := engine.Revision(e.Kv.ModRevision)
		if len(list) == 0 || list[len(list)-1].Revision != revision {
			list = append(list, engine.Commit{Revision: revision})
		}
		event := engine.Event{
			Key: e.Kv.Key, Value: e.Kv.Value, Delete: e.Type == mvccpb.Event_DELETE, Previous: engine.Item{Key: e.Kv.Key},
		}
		if event.Delete || e.Kv.CreateRevision != e.Kv.ModRevision {
			var err error
			if event.Previous, err = previous(e); err != nil {
				return nil, err
			}
		}
		last := &list[len(list)-1]
		last.Events = append(last.Events, event)
	}
	return list, nil
}

// remoteWatcher watches a cluster of its own.
type remoteWatcher struct {
	responses clientv3.WatchChan
	cancel    context.CancelFunc
}

// Watch implements engine.Engine.
func (x *External) Watch(ctx context.Context, from engine.Revision) (engine.Watcher, error) {
	// A compacted start is reported by the first response, but a start at the oldest revision would be accepted.
	oldest, err := x.compacted(ctx)
	if err != nil {
		return nil, err
	}
	if from <= oldest {
		return nil, fmt.Errorf("watch from %d: %w, the oldest is %d", from, engine.ErrCompacted, oldest)
	}
	// The watcher lives until Close, not until the caller's context ends; Next looks at that.
	watching, cancel := context.WithCancel(clientv3.WithRequireLeader(context.WithoutCancel(ctx)))
	return &remoteWatcher{
		cancel: cancel,
		responses: x.client.Watch(watching, string(firstKey), clientv3.WithFromKey(), clientv3.WithRev(int64(from)),
			clientv3.WithPrevKV(), clientv3.WithFragment()),
	}, nil
}

func (w *remoteWatcher) Close() { w.cancel() }

func (w *remoteWatcher) Next(ctx context.Context) ([]engine.Commit, error) {
	for {
		select {
		case response, ok := <-w.responses:
			if !ok {
				return nil, fmt.Errorf("watch: %w: etcd ended it", engine.ErrUnavailable)
			}
			if response.CompactRevision != 0 {
				return nil, fmt.Errorf("watch: %w, the oldest is %d", engine.ErrCompacted, response.CompactRevision)
			}
			if err := response.Err(); err != nil {
				return nil, fmt.Errorf("watch: %w", readError(ctx, err))
			}
			events := make([]*mvccpb.Event, len(response.Events))
			for i, e := range response.Events {
				events[i] = (*mvccpb.Event)(e)
			}
			list, err := commits(events, func(e *mvccpb.Event) (engine.Item, error) {
				if e.PrevKv == nil {
					return engine.Item{}, errPreviousGone(e)
				}
				return itemOf(e.Kv.Key, []*mvccpb.KeyValue{e.PrevKv}), nil
			})
			if err != nil || len(list) > 0 {
				return list, err
			}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
