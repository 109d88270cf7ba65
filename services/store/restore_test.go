package store_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/services/store"
	"dhow.dev/services/store/internal/etcdprocess"
	"dhow.dev/services/store/internal/storetest"
)

// backup writes a snapshot to a file.
func backup(t *testing.T, client storev1.StoreClient) string {
	t.Helper()
	stream, err := client.Snapshot(t.Context(), &storev1.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var data bytes.Buffer
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data.Write(part.GetData())
	}
	file := filepath.Join(t.TempDir(), "backup")
	if err := os.WriteFile(file, data.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func putKey(t *testing.T, client storev1.StoreClient, key, value string) int64 {
	t.Helper()
	response, err := client.Commit(t.Context(), storev1.CommitRequest_builder{Operations: []*storev1.Operation{
		storev1.Operation_builder{Key: []byte(key), Put: []byte(value)}.Build(),
	}}.Build())
	if err != nil {
		t.Fatal(err)
	}
	return response.GetRevision()
}

func getKey(t *testing.T, client storev1.StoreClient, key string) string {
	t.Helper()
	response, err := client.Get(t.Context(), storev1.GetRequest_builder{Keys: [][]byte{[]byte(key)}}.Build())
	if err != nil {
		t.Fatal(err)
	}
	return string(response.GetEntries()[0].GetValue())
}

// A restored database has what was acknowledged before the backup and nothing that came later; it is another one, and old revisions are gone.
func TestRestore(t *testing.T) {
	for name, origin := range map[string]store.Config{
		"embedded": {DataDir: t.TempDir()},
		"external": {Etcd: store.Etcd{Endpoints: []string{etcdprocess.Start(t)}}},
	} {
		t.Run(name, func(t *testing.T) {
			old := storetest.Start(t, origin)
			putKey(t, old, "/a", "1")
			file := backup(t, old)
			later := putKey(t, old, "/a", "2")
			putKey(t, old, "/b", "1")
			before, err := old.Revision(t.Context(), &storev1.RevisionRequest{})
			if err != nil {
				t.Fatal(err)
			}

			dir := t.TempDir()
			if err := store.Restore(t.Context(), store.RestoreConfig{File: file, DataDir: dir}); err != nil {
				t.Fatal(err)
			}
			restored := storetest.Start(t, store.Config{DataDir: dir})
			if a, b := getKey(t, restored, "/a"), getKey(t, restored, "/b"); a != "1" || b != "" {
				t.Errorf("after the restore /a is %q and /b is %q", a, b)
			}
			after, err := restored.Revision(t.Context(), &storev1.RevisionRequest{})
			if err != nil {
				t.Fatal(err)
			}
			if after.GetClusterId() == before.GetClusterId() || after.GetRevision() <= before.GetRevision() {
				t.Errorf("before %v, after %v: want another cluster and later revisions", before, after)
			}
			watch, err := restored.Watch(t.Context(), storev1.WatchRequest_builder{Prefix: []byte("/"), AfterRevision: later}.Build())
			for err == nil {
				_, err = watch.Recv()
			}
			if status.Code(err) != codes.OutOfRange {
				t.Errorf("a watch from before the restore ends with %v", err)
			}
			if next := putKey(t, restored, "/a", "3"); next <= after.GetRevision() {
				t.Errorf("a write at %d after %d", next, after.GetRevision())
			}
		})
	}
}

// Every member restores the same file, and they are one database.
func TestRestoreMembers(t *testing.T) {
	old := storetest.Start(t, store.Config{DataDir: t.TempDir()})
	putKey(t, old, "/a", "1")
	file := backup(t, old)
	m := newMembers(t)
	for _, name := range m.names {
		arguments := []string{"restore", "--from=" + file}
		for _, argument := range m.arguments(name) {
			if strings.HasPrefix(argument, "--member") || strings.HasPrefix(argument, "--data-dir") {
				arguments = append(arguments, argument)
			}
		}
		if err := store.Main(t.Context(), arguments, io.Discard); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range m.names {
		m.start(name)
	}
	putKey(t, m.client("a"), "/b", "2")
	for _, name := range m.names {
		client := m.client(name)
		if a, b := getKey(t, client, "/a"), getKey(t, client, "/b"); a != "1" || b != "2" {
			t.Errorf("member %s: /a is %q and /b is %q", name, a, b)
		}
	}
}

func TestRestoreRefuses(t *testing.T) {
	old := storetest.Start(t, store.Config{DataDir: t.TempDir()})
	putKey(t, old, "/a", "1")
	good := backup(t, old)
	data, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	write := func(data []byte) string {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	damaged := bytes.Clone(data)
	damaged[len(damaged)/2] ^= 1
	used := t.TempDir()
	if err := store.Restore(t.Context(), store.RestoreConfig{File: good, DataDir: used}); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ file, dir, want string }{
		"no file":       {filepath.Join(t.TempDir(), "none"), t.TempDir(), "no such file"},
		"too short":     {write([]byte("x")), t.TempDir(), "is no backup"},
		"cut off":       {write(data[:len(data)-600]), t.TempDir(), "restore"},
		"damaged":       {write(damaged), t.TempDir(), "expected sha256"},
		"data in place": {good, used, "holds a database: move it away"},
	} {
		err := store.Restore(t.Context(), store.RestoreConfig{File: test.file, DataDir: test.dir})
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %s", name, err, test.want)
		}
		left, readErr := filepath.Glob(filepath.Join(test.dir, "*.restoring-*"))
		if readErr != nil || len(left) > 0 {
			t.Errorf("%s: left behind %v, %v", name, left, readErr)
		}
	}
	memory := storetest.Start(t, store.Config{Memory: true})
	stream, err := memory.Snapshot(context.Background(), &storev1.SnapshotRequest{})
	if err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Unimplemented {
		t.Errorf("a snapshot of data in memory: %v", err)
	}
}
