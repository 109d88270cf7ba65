// Package fakestore is a store for tests of the write path: it keeps the contract of dhow.store.v1 for commits and reads, in memory, and can be told to fail.
// It does not watch.
package fakestore

import (
	"bytes"
	"context"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
)

// commitIndex stands for a whole commit in its revision R*1024+i.
const commitIndex = 1023

// Store is a store in memory. It is safe for concurrent use.
type Store struct {
	// StoreClient is nil: methods that the fake does not have panic.
	storev1.StoreClient

	mu       sync.Mutex
	revision int64
	entries  map[string]*storev1.Entry
	commits  []*storev1.CommitRequest
	// lose makes the next commits that succeed answer Unavailable all the same.
	lose int
	// refuse makes the next commits answer Unavailable without being done.
	refuse int
	// between runs before each commit, outside of the lock: what others do between a plan and its commit.
	between func(*storev1.CommitRequest)
}

// New returns an empty store.
func New() *Store { return &Store{entries: map[string]*storev1.Entry{}} }

// LoseAnswers lets the next n commits happen, and their answers be lost.
func (s *Store) LoseAnswers(n int) { s.mu.Lock(); defer s.mu.Unlock(); s.lose = n }

// RefuseCommits makes the next n commits fail as if the store could not be reached.
func (s *Store) RefuseCommits(n int) { s.mu.Lock(); defer s.mu.Unlock(); s.refuse = n }

// Between sets what happens between every plan and its commit. Nil: nothing.
func (s *Store) Between(f func(*storev1.CommitRequest)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.between = f
}

// Commits returns the commits that were done.
func (s *Store) Commits() []*storev1.CommitRequest {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.commits)
}

// Keys returns the keys with a prefix, in order.
func (s *Store) Keys(prefix string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(s.entries)) {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	return keys
}

// Entry returns what is stored under a key, nil for nothing.
func (s *Store) Entry(key string) *storev1.Entry {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.entries[key]
}

// Commit is of storev1.StoreClient.
func (s *Store) Commit(ctx context.Context, in *storev1.CommitRequest, _ ...grpc.CallOption) (*storev1.CommitResponse, error) {
	s.mu.Lock()
	between := s.between
	s.mu.Unlock()
	if between != nil {
		between(in)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return nil, status.FromContextError(err).Err()
	}
	if s.refuse > 0 {
		s.refuse--
		return nil, status.Error(codes.Unavailable, "the store is away")
	}
	if err := s.conflict(in.GetConditions()); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, op := range in.GetOperations() {
		if seen[string(op.GetKey())] {
			return nil, status.Errorf(codes.InvalidArgument, "key %q is written twice", op.GetKey())
		}
		seen[string(op.GetKey())] = true
	}
	s.revision++
	response := &storev1.CommitResponse{}
	response.SetRevision(s.revision*1024 + commitIndex)
	revisions := make([]int64, 0, len(in.GetOperations()))
	for i, op := range in.GetOperations() {
		revision := s.revision*1024 + int64(i)
		revisions = append(revisions, revision)
		if !op.HasPut() {
			delete(s.entries, string(op.GetKey()))
			continue
		}
		e := &storev1.Entry{}
		e.SetKey(op.GetKey())
		e.SetValue(bytes.Clone(op.GetPut()))
		e.SetRevision(revision)
		e.SetEncryptionKeyId(op.GetEncryptionKeyId())
		e.SetTraceparent(in.GetTraceparent())
		s.entries[string(op.GetKey())] = e
	}
	response.SetRevisions(revisions)
	s.commits = append(s.commits, proto.CloneOf(in))
	if s.lose > 0 {
		s.lose--
		return nil, status.Error(codes.Unavailable, "the answer was lost")
	}
	return response, nil
}

// conflict returns the refusal of a commit whose conditions do not hold.
func (s *Store) conflict(conditions []*storev1.Condition) error {
	var failed []*storev1.Entry
	for _, c := range conditions {
		e := s.entries[string(c.GetKey())]
		if c.GetRevision() == -1 && e != nil || c.GetRevision() != -1 && c.GetRevision() == e.GetRevision() {
			continue
		}
		failed = append(failed, s.entry(c.GetKey()))
	}
	if len(failed) == 0 {
		return nil
	}
	detail := &storev1.CommitConflict{}
	detail.SetEntries(failed)
	detail.SetRevision(s.revision*1024 + commitIndex)
	st, err := status.New(codes.FailedPrecondition, "a condition does not hold").WithDetails(detail)
	if err != nil {
		return err
	}
	return st.Err()
}

func (s *Store) entry(key []byte) *storev1.Entry {
	if e := s.entries[string(key)]; e != nil {
		return e
	}
	absent := &storev1.Entry{}
	absent.SetKey(key)
	return absent
}

// Get is of storev1.StoreClient.
func (s *Store) Get(_ context.Context, in *storev1.GetRequest, _ ...grpc.CallOption) (*storev1.GetResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	entries := make([]*storev1.Entry, 0, len(in.GetKeys()))
	for _, key := range in.GetKeys() {
		entries = append(entries, s.entry(key))
	}
	response := &storev1.GetResponse{}
	response.SetEntries(entries)
	response.SetRevision(s.revision*1024 + commitIndex)
	return response, nil
}

// List is of storev1.StoreClient. It answers in one chunk.
func (s *Store) List(_ context.Context, in *storev1.ListRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[storev1.ListResponse], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	response := &storev1.ListResponse{}
	var entries []*storev1.Entry
	for _, key := range slices.Sorted(maps.Keys(s.entries)) {
		if strings.HasPrefix(key, string(in.GetPrefix())) && key > string(in.GetAfter()) {
			entries = append(entries, s.entries[key])
		}
	}
	response.SetEntries(entries)
	response.SetRevision(s.revision*1024 + commitIndex)
	return &chunks{response: response}, nil
}

type chunks struct {
	grpc.ServerStreamingClient[storev1.ListResponse]
	response *storev1.ListResponse
}

// Recv returns the one chunk, then io.EOF.
func (c *chunks) Recv() (*storev1.ListResponse, error) {
	if c.response == nil {
		return nil, io.EOF
	}
	response := c.response
	c.response = nil
	return response, nil
}
