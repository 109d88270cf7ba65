package etcd

import (
	"context"
	"expvar"
	"time"

	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// electEvery is how often a starting member is asked how far it is. A start takes a few milliseconds.
const electEvery = time.Millisecond

// elect has an only member become its own leader as soon as it can be, and says whether it was told to. By itself it would wait for up to five ticks. Raft's message
// for it is the one by which a leader hands over to another member, which then waits for no timeout. Whoever is told before it has applied its log scans what it has
// not applied, and that may be compacted at the same time; so the log comes first.
func elect(ctx context.Context, server *etcdserver.EtcdServer) bool {
	ticker := time.NewTicker(electEvery)
	defer ticker.Stop()
	id := uint64(server.MemberID())
	for server.Leader() == 0 {
		// Without a leader nothing more can be committed: what is true of the log now stays true.
		if status, ok := raftStatus(); ok && status.ID == id && status.GetCommit() > 0 && status.Applied >= status.GetCommit() {
			return server.Process(ctx, &raftpb.Message{Type: raftpb.MsgTimeoutNow.Enum(), From: &id, To: &id}) == nil
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return false
		case <-server.StopNotify():
			return false
		}
	}
	return false
}

// raftStatus is that of the member of this process that was started last. etcd shows it nowhere but here; where it is another member's the one that starts waits for
// its ticks.
func raftStatus() (raft.Status, bool) {
	published, ok := expvar.Get("raft.status").(expvar.Func)
	if !ok {
		return raft.Status{}, false
	}
	status, ok := published.Value().(raft.Status)
	return status, ok
}
