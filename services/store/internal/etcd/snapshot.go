package etcd

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// snapshotChunk bounds what is handed out at once.
const snapshotChunk = 1 << 20

// restoreBump is by how many revisions a restored database begins later than its snapshot: more than could have been committed after it was made, so
// that no revision that anyone has seen means something else now. A thousand commits a second for eleven days.
const restoreBump = 1_000_000_000

// Snapshot implements engine.Engine.
func (e *Embedded) Snapshot(ctx context.Context, page func([]byte) error) error {
	// A member may lag; after a read that all agree on it has what was acknowledged before the call.
	if _, err := e.status(ctx); err != nil {
		return err
	}
	stream := &snapshotStream{ctx: ctx, page: page}
	if err := e.maintenance.Snapshot(&pb.SnapshotRequest{}, stream); err != nil && stream.err == nil {
		return fmt.Errorf("snapshot: %w", readError(ctx, err))
	}
	return stream.err
}

// snapshotStream receives what EtcdServer sends, in the goroutine that called.
type snapshotStream struct {
	grpc.ServerStream // never called
	ctx               context.Context
	page              func([]byte) error
	err               error
}

func (s *snapshotStream) Context() context.Context { return s.ctx }

func (s *snapshotStream) Send(response *pb.SnapshotResponse) error {
	if s.err = s.ctx.Err(); s.err == nil {
		s.err = s.page(response.Blob)
	}
	return s.err
}

// Snapshot implements engine.Engine.
func (x *External) Snapshot(ctx context.Context, page func([]byte) error) error {
	if _, err := x.status(ctx); err != nil {
		return err
	}
	source, err := x.client.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("snapshot: %w", readError(ctx, err))
	}
	defer source.Close()
	for {
		chunk := make([]byte, snapshotChunk)
		n, err := io.ReadFull(source, chunk)
		if n > 0 {
			if err := page(chunk[:n]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("snapshot: %w", readError(ctx, err))
		}
	}
}

// RestoreConfig configures Restore.
type RestoreConfig struct {
	// File is a snapshot.
	File string
	// Dir is the data folder to make, as EmbedConfig's. It may not hold a database.
	Dir string
	// Members, when several stores are to keep the data: each restores from the same file.
	Members *Members
	Logger  *slog.Logger
}

// Restore makes a database of a snapshot: a new one, with another id, whose history begins after all that the old one may have had. Whoever comes
// with an old revision is told that it is gone. The folder is made whole or not at all.
func Restore(ctx context.Context, config RestoreConfig) error {
	if config.Members != nil {
		if err := config.Members.checkAddresses(); err != nil {
			return err
		}
	}
	lock, err := lockDir(ctx, config.Dir, lockWait)
	if err != nil {
		return err
	}
	defer lock.release()
	target := filepath.Join(config.Dir, databaseDir)
	if _, err := os.Stat(target); err == nil {
		return fmt.Errorf("%s holds a database: move it away, or choose another folder", target)
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	c := embedConfig(EmbedConfig{Dir: config.Dir, Members: config.Members, Logger: config.Logger})
	// Another token than before makes another id, also when the members are the same.
	// Members have to agree on it: they restore the same file.
	checksum, err := snapshotChecksum(config.File)
	if err != nil {
		return err
	}
	token := c.InitialClusterToken
	if config.Members != nil {
		token += "-" + checksum
	}
	making := target + ".restoring-" + rand.Text()
	defer os.RemoveAll(making) // fails after the rename, as it should
	var peers []string
	for _, url := range c.AdvertisePeerUrls {
		peers = append(peers, url.String())
	}
	if err := snapshot.NewV3(zap.New(&zapCore{logger: config.Logger})).Restore(snapshot.RestoreConfig{
		SnapshotPath: config.File, Name: c.Name, OutputDataDir: making, PeerURLs: peers,
		InitialCluster: c.InitialCluster, InitialClusterToken: token, RevisionBump: restoreBump, MarkCompacted: true,
	}); err != nil {
		return fmt.Errorf("restore %s: %w", config.File, err)
	}
	return os.Rename(making, target)
}

// snapshotChecksum is the end of the file, which etcd checks the rest against.
func snapshotChecksum(file string) (string, error) {
	source, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer source.Close()
	sum := make([]byte, sha256.Size)
	if _, err := source.Seek(-sha256.Size, io.SeekEnd); err != nil {
		return "", fmt.Errorf("%s is no backup: it is too short", file)
	}
	if _, err := io.ReadFull(source, sum); err != nil {
		return "", fmt.Errorf("read %s: %w", file, err)
	}
	return hex.EncodeToString(sum[:8]), nil
}
