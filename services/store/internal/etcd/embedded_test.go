package etcd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"dhow.dev/services/store/internal/engine"
	"dhow.dev/services/store/internal/etcd"
)

func put(e engine.Engine, key string, value []byte) (engine.Revision, error) {
	result, err := e.Commit(context.Background(), []engine.Member{{Writes: []engine.Write{{Key: []byte(key), Value: value}}}})
	return result.Revision, err
}

// TestQuota: a full database refuses puts, takes deletes, and takes puts again once compaction has made room.
func TestQuota(t *testing.T) {
	e, err := etcd.Embed(t.Context(), etcd.EmbedConfig{Dir: t.TempDir(), Quota: 16 << 20, Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	value := bytes.Repeat([]byte("v"), 512<<10)
	keys := 0
	for ; err == nil; keys++ {
		// The file grows when etcd writes what it has applied, twice a second.
		if keys > 2000 {
			t.Fatal("1 GiB fits into 16 MiB")
		}
		_, err = put(e, fmt.Sprintf("/k%d", keys), value)
	}
	if !errors.Is(err, engine.ErrNoSpace) {
		t.Fatalf("a full database says %v", err)
	}
	var newest engine.Revision
	for i := range keys {
		result, err := e.Commit(t.Context(), []engine.Member{{Writes: []engine.Write{{Key: fmt.Appendf(nil, "/k%d", i), Delete: true}}}})
		if err != nil {
			t.Fatalf("delete in a full database: %v", err)
		}
		newest = result.Revision
	}
	if _, err := put(e, "/k", value); !errors.Is(err, engine.ErrNoSpace) {
		t.Fatalf("before compaction: %v", err)
	}
	if err := e.Compact(t.Context(), newest); err != nil {
		t.Fatal(err)
	}
	if _, err := put(e, "/k", value); err != nil {
		t.Fatalf("after compaction: %v", err)
	}
	size, err := e.Size(t.Context())
	if err != nil || size.Total >= size.Quota || size.Quota != 16<<20 {
		t.Fatalf("size %+v, %v", size, err)
	}
}

// TestListensNowhere: the embedded etcd opens no socket, of any kind.
func TestListensNowhere(t *testing.T) {
	before := listening(t)
	e, err := etcd.Embed(t.Context(), etcd.EmbedConfig{Dir: t.TempDir(), Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if _, err := put(e, "/k", nil); err != nil {
		t.Fatal(err)
	}
	if after := listening(t); after != before {
		t.Errorf("sockets before: %s\nafter: %s", before, after)
	}
}

// listening names the sockets that this process has.
func listening(t *testing.T) string {
	t.Helper()
	descriptors, err := filepath.Glob("/proc/self/fd/*")
	if err != nil || len(descriptors) == 0 {
		t.Fatalf("read /proc/self/fd: %v", err)
	}
	var sockets []string
	for _, d := range descriptors {
		// A descriptor that is closed meanwhile is none of ours.
		if target, err := os.Readlink(d); err == nil && strings.HasPrefix(target, "socket:") {
			sockets = append(sockets, target)
		}
	}
	return strings.Join(sockets, " ")
}

// TestQuiet: a start, a write and a stop report nothing that an operator could worry about.
func TestQuiet(t *testing.T) {
	var log bytes.Buffer
	dir := t.TempDir()
	for range 2 {
		e, err := etcd.Embed(t.Context(), etcd.EmbedConfig{Dir: dir, Logger: slog.New(slog.NewTextHandler(&log, nil))})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := put(e, "/k", nil); err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if log.Len() > 0 {
		t.Errorf("log:\n%s", log.String())
	}
}

// TestWait: an etcd that stops by itself does not leave a store behind that only looks alive.
func TestWait(t *testing.T) {
	e, err := etcd.Embed(t.Context(), etcd.EmbedConfig{Dir: t.TempDir(), Logger: testLogger(t)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Wait(ctx); err != nil {
		t.Errorf("the end of the context: %v", err)
	}
	w, err := e.Watch(t.Context(), 2)
	if err != nil {
		t.Fatal(err)
	}
	waited, watched := make(chan error, 1), make(chan error, 1)
	go func() { waited <- e.Wait(context.Background()) }()
	go func() {
		_, err := w.Next(context.Background())
		watched <- err
	}()
	e.Close()
	if err := <-waited; err == nil {
		t.Error("the end of etcd was not noticed")
	}
	if err := <-watched; !errors.Is(err, engine.ErrUnavailable) {
		t.Errorf("a watch at the end of etcd: %v", err)
	}
	w.Close()
	if _, err := put(e, "/k", nil); err == nil {
		t.Error("a put after the end of etcd succeeded")
	}
}
