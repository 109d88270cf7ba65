// Package storetest is the conformance suite of the store: what its API promises, checked through gRPC on any database below it.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/store"
)

// Start runs a store in this process until the test ends and returns a client with the identity of an API server. Listener,
// credentials and logger are set here.
func Start(t testing.TB, config store.Config) storev1.StoreClient {
	t.Helper()
	client, stop := StartStop(t, config)
	t.Cleanup(stop)
	return client
}

// StartStop is Start for a test that stops the store itself.
func StartStop(t testing.TB, config store.Config) (client storev1.StoreClient, stop func()) {
	t.Helper()
	conn, stop := start(t, config, identity.APIServer)
	return storev1.NewStoreClient(conn), stop
}

// Dial runs a store until the test ends and returns a connection of another caller.
func Dial(t testing.TB, config store.Config, caller string) *grpc.ClientConn {
	t.Helper()
	conn, stop := start(t, config, caller)
	t.Cleanup(stop)
	return conn
}

func start(t testing.TB, config store.Config, caller string) (*grpc.ClientConn, func()) {
	t.Helper()
	network := transport.NewMemory()
	config.Listener = network.Listen("store")
	config.Credentials = network.ServerCredentials()
	if config.Logger == nil {
		config.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	}
	started, done := make(chan struct{}), make(chan error, 1)
	config.Started = func() { close(started) }
	ctx, cancel := context.WithCancel(context.Background())
	go func() { done <- store.Run(ctx, config) }()
	select {
	case <-started:
	case err := <-done:
		cancel()
		t.Fatalf("start the store: %v", err)
	}
	conn, err := network.Dial("store", identity.Identity{Name: caller})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	return conn, sync.OnceFunc(func() {
		conn.Close()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the store ended with %v", err)
		}
	})
}

// Fixture is a store under test. All keys of a test are below its Root, so that tests share a database.
type Fixture struct {
	testing.TB
	Client storev1.StoreClient
	Root   string
	Ctx    context.Context
}

func (f *Fixture) key(name string) []byte { return []byte(f.Root + name) }

// op, cond and their kin make requests short.
func (f *Fixture) put(name, value string) *storev1.Operation {
	return storev1.Operation_builder{Key: f.key(name), Put: []byte(value)}.Build()
}

func (f *Fixture) del(name string) *storev1.Operation {
	return storev1.Operation_builder{Key: f.key(name), Delete: proto.Bool(true)}.Build()
}

func (f *Fixture) when(name string, revision int64) *storev1.Condition {
	return storev1.Condition_builder{Key: f.key(name), Revision: revision}.Build()
}

func request(parts ...any) *storev1.CommitRequest {
	var b storev1.CommitRequest_builder
	for _, part := range parts {
		switch p := part.(type) {
		case *storev1.Condition:
			b.Conditions = append(b.Conditions, p)
		case *storev1.Operation:
			b.Operations = append(b.Operations, p)
		}
	}
	return b.Build()
}

func (f *Fixture) commit(parts ...any) *storev1.CommitResponse {
	f.Helper()
	response, err := f.Client.Commit(f.Ctx, request(parts...))
	if err != nil {
		f.Fatalf("commit: %v", err)
	}
	return response
}

// conflict commits what must not be and returns the entries of the conflict.
func (f *Fixture) conflict(parts ...any) *storev1.CommitConflict {
	f.Helper()
	response, err := f.Client.Commit(f.Ctx, request(parts...))
	if err == nil {
		f.Fatalf("commit happened at %d, want a conflict", response.GetRevision())
	}
	detail := ConflictOf(err)
	if detail == nil {
		f.Fatalf("commit: %v, want FAILED_PRECONDITION with a CommitConflict", err)
	}
	return detail
}

// ConflictOf returns the detail of a conflict, or nil.
func ConflictOf(err error) *storev1.CommitConflict {
	st := status.Convert(err)
	if st.Code() != codes.FailedPrecondition {
		return nil
	}
	for _, d := range st.Details() {
		if conflict, ok := d.(*storev1.CommitConflict); ok {
			return conflict
		}
	}
	return nil
}

func (f *Fixture) wantCode(err error, code codes.Code) {
	f.Helper()
	if status.Code(err) != code {
		f.Fatalf("got %v, want %s", err, code)
	}
}

func (f *Fixture) get(revision int64, names ...string) []*storev1.Entry {
	f.Helper()
	keys := make([][]byte, len(names))
	for i, name := range names {
		keys[i] = f.key(name)
	}
	response, err := f.Client.Get(f.Ctx, storev1.GetRequest_builder{Keys: keys, Revision: revision}.Build())
	if err != nil {
		f.Fatalf("get: %v", err)
	}
	return response.GetEntries()
}

// want checks a key's newest value; "" is a key that does not exist.
func (f *Fixture) want(name, value string) {
	f.Helper()
	f.wantAt(0, name, value)
}

func (f *Fixture) wantAt(revision int64, name, value string) {
	f.Helper()
	e := f.get(revision, name)[0]
	if e.HasValue() != (value != "") || string(e.GetValue()) != value || (e.GetRevision() == 0) != (value == "") {
		f.Fatalf("%s at %d: %q (exists: %t, revision %d), want %q", name, revision, e.GetValue(), e.HasValue(), e.GetRevision(), value)
	}
}

func (f *Fixture) revision() *storev1.RevisionResponse {
	f.Helper()
	response, err := f.Client.Revision(f.Ctx, &storev1.RevisionRequest{})
	if err != nil {
		f.Fatalf("revision: %v", err)
	}
	return response
}

// list reads a list to its end.
func (f *Fixture) list(r storev1.ListRequest_builder) (entries []*storev1.Entry, revision int64, more bool, err error) {
	if r.Prefix == nil {
		r.Prefix = f.key("")
	}
	stream, err := f.Client.List(f.Ctx, r.Build())
	if err != nil {
		return nil, 0, false, err
	}
	for responses := 0; ; responses++ {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			if responses == 0 {
				return nil, 0, false, errors.New("a list without a response")
			}
			return entries, revision, more, nil
		}
		if err != nil {
			return nil, 0, false, err
		}
		if more {
			return nil, 0, false, errors.New("more was set before the last response")
		}
		if revision != 0 && response.GetRevision() != revision {
			return nil, 0, false, fmt.Errorf("responses at revisions %d and %d", revision, response.GetRevision())
		}
		revision, more = response.GetRevision(), response.GetMore()
		entries = append(entries, response.GetEntries()...)
	}
}

func (f *Fixture) mustList(r storev1.ListRequest_builder) (names []string, revision int64, more bool) {
	f.Helper()
	entries, revision, more, err := f.list(r)
	if err != nil {
		f.Fatalf("list: %v", err)
	}
	for _, e := range entries {
		names = append(names, string(bytes.TrimPrefix(e.GetKey(), f.key(""))))
	}
	return names, revision, more
}

// watcher reads a watch and checks what holds for all of them: order, whole commits, no gaps in progress.
type watcher struct {
	f      *Fixture
	stream interface {
		Recv() (*storev1.WatchResponse, error)
	}
	cancel  context.CancelFunc
	last    int64
	partial bool
}

func (f *Fixture) watch(prefix string, after int64) *watcher {
	f.Helper()
	w, err := f.tryWatch(prefix, after)
	if err != nil {
		f.Fatalf("watch: %v", err)
	}
	return w
}

func (f *Fixture) tryWatch(prefix string, after int64) (*watcher, error) {
	ctx, cancel := context.WithCancel(f.Ctx)
	f.Cleanup(cancel)
	stream, err := f.Client.Watch(ctx, storev1.WatchRequest_builder{Prefix: f.key(prefix), AfterRevision: after}.Build())
	if err != nil {
		return nil, err
	}
	first, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	if !first.GetStarted() || len(first.GetChanges()) != 0 || after != 0 && first.GetRevision() != after {
		return nil, fmt.Errorf("the first response is %v, want started at %d", first, after)
	}
	return &watcher{f: f, stream: stream, cancel: cancel, last: first.GetRevision()}, nil
}

// next returns the changes of one response; empty for progress.
func (w *watcher) next() ([]*storev1.Change, error) {
	response, err := w.stream.Recv()
	if err != nil {
		return nil, err
	}
	for _, c := range response.GetChanges() {
		if c.GetRevision() <= w.last {
			return nil, fmt.Errorf("change at %d after %d", c.GetRevision(), w.last)
		}
		if c.GetPreviousRevision() >= c.GetRevision() {
			return nil, fmt.Errorf("change at %d with the previous revision %d", c.GetRevision(), c.GetPreviousRevision())
		}
		w.last = c.GetRevision()
	}
	if response.GetStarted() || response.GetRevision() < w.last {
		return nil, fmt.Errorf("response at %d after %d: %v", response.GetRevision(), w.last, response)
	}
	w.last, w.partial = response.GetRevision(), response.GetPartial()
	return response.GetChanges(), nil
}

// until reads changes until everything up to a revision was sent.
func (w *watcher) until(revision int64) []*storev1.Change {
	w.f.Helper()
	var all []*storev1.Change
	for w.last < revision || w.partial {
		changes, err := w.next()
		if err != nil {
			w.f.Fatalf("watch: %v", err)
		}
		all = append(all, changes...)
	}
	return all
}

// describe makes changes comparable in one line.
func (w *watcher) describe(changes []*storev1.Change) string {
	var b bytes.Buffer
	for _, c := range changes {
		name := bytes.TrimPrefix(c.GetKey(), w.f.key(""))
		if c.HasValue() {
			fmt.Fprintf(&b, "%s=%s@%d(%d) ", name, c.GetValue(), c.GetRevision(), c.GetPreviousRevision())
		} else {
			fmt.Fprintf(&b, "-%s@%d(%d) ", name, c.GetRevision(), c.GetPreviousRevision())
		}
	}
	return b.String()
}
