package etcd

import (
	"fmt"
	"log/slog"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
)

// TestElect: a member that is alone becomes leader because it is told to, and not by its ticks, on new data, on a log that is replayed as a whole, and on one of which
// the beginning is gone.
func TestElect(t *testing.T) {
	config := EmbedConfig{Dir: t.TempDir(), Logger: slog.New(slog.DiscardHandler)}
	for _, writes := range []int{300, snapshotCount, 1} {
		started, err := embed.StartEtcd(embedConfig(config))
		if err != nil {
			t.Fatal(err)
		}
		told := elect(t.Context(), started.Server)
		select {
		case <-started.Server.ReadyNotify():
		case <-t.Context().Done():
			t.Fatal("no leader")
		}
		for i := range writes {
			if _, err := started.Server.Put(t.Context(), &pb.PutRequest{Key: fmt.Appendf(nil, "/k%d", i%10)}); err != nil {
				t.Fatal(err)
			}
		}
		started.Close()
		if !told {
			t.Errorf("before %d writes: elected by ticks", writes)
		}
	}
}
