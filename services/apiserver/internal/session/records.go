package session

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/telemetry/logkey"
)

// Keys of the records in the store.
const (
	recordsPrefix = "/sessions/"
	serversPrefix = recordsPrefix + "servers/"
	ownersPrefix  = recordsPrefix + "nodes/"
)

// owner is the record of who serves a node.
type owner struct {
	// Server is the id of the API server, whose own record tells its address.
	Server string `json:"server"`
	// Epoch counts the node's attachments.
	Epoch int64 `json:"epoch"`
	// Lost says that the epoch ended with the node's loss.
	Lost bool `json:"lost,omitempty"`
	// revision is the record's in the store.
	revision int64
}

func ownerKey(node string) []byte { return []byte(ownersPrefix + node) }

func parseOwner(value []byte, revision int64) (owner, error) {
	o := owner{revision: revision}
	if err := json.Unmarshal(value, &o); err != nil {
		return o, fmt.Errorf("owner record: %w", err)
	}
	return o, nil
}

func (o owner) encode() []byte {
	data, err := json.Marshal(o)
	if err != nil {
		panic(err) // strings and numbers always encode
	}
	return data
}

const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 2 * time.Second
)

// forever calls f until ctx ends, waiting longer after each failure in a row.
func (m *Manager) forever(ctx context.Context, what string, f func(ctx context.Context, progressed func()) error) error {
	backoff := minBackoff
	for {
		err := f(ctx, func() { backoff = minBackoff })
		if ctx.Err() != nil {
			return nil
		}
		level := slog.LevelDebug
		if backoff == minBackoff {
			level = slog.LevelWarn
		}
		m.config.Logger.LogAttrs(ctx, level, "session records not reachable, trying again", logkey.Component(what), logkey.Err(err), logkey.Delay(backoff))
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(backoff/2 + rand.N(backoff/2)):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// announcement is what the record of this API server says: where the others reach it, and what is published when that is another address.
func (m *Manager) announcement() string {
	if m.config.Published == "" || m.config.Published == m.config.Address {
		return m.config.Address
	}
	return m.config.Address + " " + m.config.Published
}

// announce keeps the record that says that this API server lives, under a lease. It is taken back at the end, so that the others need not wait.
func (m *Manager) announce(ctx context.Context) error {
	return m.forever(ctx, "announce", func(ctx context.Context, progressed func()) error {
		granted, err := m.config.Store.GrantLease(ctx, storev1.GrantLeaseRequest_builder{TtlSeconds: int64(m.config.ServerTTL / time.Second)}.Build())
		if err != nil {
			return fmt.Errorf("grant a lease: %w", err)
		}
		lease := granted.GetLease()
		defer func() {
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
			defer cancel()
			if _, err := m.config.Store.RevokeLease(last, storev1.RevokeLeaseRequest_builder{Lease: lease}.Build()); err != nil {
				m.config.Logger.DebugContext(ctx, "lease not revoked, it ends by itself", logkey.Err(err))
			}
		}()
		_, err = m.config.Store.Commit(ctx, storev1.CommitRequest_builder{Operations: []*storev1.Operation{storev1.Operation_builder{
			Key: []byte(serversPrefix + m.id), Put: []byte(m.announcement()), Lease: lease,
		}.Build()}}.Build())
		if err != nil {
			return fmt.Errorf("announce this API server: %w", err)
		}
		progressed()
		tick := time.NewTicker(time.Duration(granted.GetTtlSeconds()) * time.Second / 3)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return nil
			}
			if err := m.renew(ctx, lease); err != nil {
				return fmt.Errorf("keep the lease: %w", err)
			}
		}
	})
}

// renew renews the lease once. A stream per renewal leaves nothing open in between that a store which stops would have to wait for.
func (m *Manager) renew(ctx context.Context, lease int64) error {
	ctx, cancel := context.WithTimeout(ctx, m.config.ServerTTL)
	defer cancel()
	stream, err := m.config.Store.KeepLeaseAlive(ctx)
	if err != nil {
		return err
	}
	if err := stream.Send(storev1.KeepLeaseAliveRequest_builder{Lease: lease}.Build()); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	_, err = stream.Recv()
	return err
}

// follow keeps owners and servers as the store has them.
func (m *Manager) follow(ctx context.Context) error {
	revision := int64(0)
	return m.forever(ctx, "follow", func(ctx context.Context, progressed func()) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		if revision == 0 {
			read, err := m.readRecords(ctx)
			if err != nil {
				return err
			}
			revision = read
		}
		stream, err := m.config.Store.Watch(ctx, storev1.WatchRequest_builder{Prefix: []byte(recordsPrefix), AfterRevision: revision}.Build())
		if err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		for {
			response, err := stream.Recv()
			if err != nil {
				if status.Code(err) == codes.OutOfRange {
					revision = 0
				}
				return fmt.Errorf("watch: %w", err)
			}
			progressed()
			for _, change := range response.GetChanges() {
				m.record(ctx, string(change.GetKey()), change.GetValue(), change.HasValue(), change.GetRevision())
			}
			revision = response.GetRevision()
		}
	})
}

// readRecords reads all records, and forgets those that are gone.
func (m *Manager) readRecords(ctx context.Context) (int64, error) {
	stream, err := m.config.Store.List(ctx, storev1.ListRequest_builder{Prefix: []byte(recordsPrefix)}.Build())
	if err != nil {
		return 0, fmt.Errorf("list: %w", err)
	}
	var entries []*storev1.Entry
	revision := int64(0)
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, fmt.Errorf("list: %w", err)
		}
		revision = chunk.GetRevision()
		entries = append(entries, chunk.GetEntries()...)
	}
	m.mu.Lock()
	m.owners, m.servers, m.published = map[string]owner{}, map[string]string{}, map[string]string{}
	m.mu.Unlock()
	// Servers before owners, or every node would look abandoned for a moment.
	for _, prefix := range []string{serversPrefix, ownersPrefix} {
		for _, e := range entries {
			if strings.HasPrefix(string(e.GetKey()), prefix) {
				m.record(ctx, string(e.GetKey()), e.GetValue(), true, e.GetRevision())
			}
		}
	}
	return revision, nil
}

// record takes in one record, or its end.
func (m *Manager) record(ctx context.Context, key string, value []byte, exists bool, revision int64) {
	if id, ok := strings.CutPrefix(key, serversPrefix); ok {
		m.serverRecord(id, string(value), exists)
		return
	}
	node, ok := strings.CutPrefix(key, ownersPrefix)
	if !ok {
		return
	}
	if !exists {
		m.mu.Lock()
		delete(m.owners, node)
		m.endGrace(node)
		m.mu.Unlock()
		return
	}
	o, err := parseOwner(value, revision)
	if err != nil {
		m.config.Logger.ErrorContext(ctx, "session record cannot be read", logkey.Key(key), logkey.Err(err))
		return
	}
	m.ownerRecord(node, o)
}

// serverRecord notes that an API server lives, or that it does not any more: then its nodes' grace begins. This server knows its own nodes better than its
// record does, which is gone for a moment whenever its lease had to be made anew.
func (m *Manager) serverRecord(id, announced string, exists bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if exists {
		address, published, both := strings.Cut(announced, " ")
		if !both {
			published = address
		}
		m.servers[id], m.published[id] = address, published
	} else {
		delete(m.servers, id)
		delete(m.published, id)
	}
	m.tell()
	close(m.serversChanged)
	m.serversChanged = make(chan struct{})
	if id == m.id {
		return
	}
	for node, o := range m.owners {
		switch {
		case o.Server != id:
		case exists:
			// It is back, and with it the one who counts for this node.
			m.endGrace(node)
		case !o.Lost:
			m.beginGrace(node, o.Epoch, m.config.Grace)
		}
	}
}

// ownerRecord notes who serves a node. A session that another one has taken over, or that was given up while this API server was cut off, ends here.
func (m *Manager) ownerRecord(node string, o owner) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.owners[node] = o
	m.tell()
	if g, silent := m.graces[node]; silent && (o.Lost || o.Epoch > g.epoch) {
		m.endGrace(node)
	}
	if s := m.sessions[node]; s != nil && (o.Epoch > s.epoch || o.Epoch == s.epoch && o.Lost) {
		s.end(errTakenOver)
	}
	if _, alive := m.servers[o.Server]; !alive && !o.Lost && o.Server != m.id {
		m.beginGrace(node, o.Epoch, m.config.Grace)
	}
}

// beginGrace gives a node the time to attach again before it is taken for lost. The caller holds mu.
func (m *Manager) beginGrace(node string, epoch int64, left time.Duration) {
	if g, silent := m.graces[node]; silent {
		if g.epoch >= epoch {
			return
		}
		g.stop()
	}
	ctx, cancel := context.WithCancel(m.lifetime)
	timer := time.AfterFunc(left, func() { m.lose(ctx, node, epoch) })
	m.graces[node] = grace{epoch: epoch, stop: func() {
		timer.Stop()
		cancel()
	}}
}

// endGrace cancels a node's loss. The caller holds mu.
func (m *Manager) endGrace(node string) {
	if g, silent := m.graces[node]; silent {
		g.stop()
		delete(m.graces, node)
	}
}
