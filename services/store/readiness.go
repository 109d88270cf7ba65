package store

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync/atomic"

	"dhow.dev/services/store/internal/engine"
)

// opening is what a store lacks before its database is open, which for one of several can be as long as the others are away.
func (c *Config) opening() error {
	if c.Members == nil {
		return errors.New("the database is not open yet")
	}
	return fmt.Errorf("the database is not open: more than half of the members %s have to reach each other", c.memberNames())
}

func (c *Config) memberNames() string {
	return strings.Join(slices.Sorted(maps.Keys(c.Members.Addresses)), ", ")
}

// readiness is whether a store with an open database can serve.
type readiness struct {
	db engine.Engine
	// leaderless is what is said while this member has been without a leader for a while.
	leaderless atomic.Pointer[error]
}

// check asks as a client would: the answer takes a leader that most members follow, and that this one has applied what they agreed on.
func (r *readiness) check(ctx context.Context) error {
	if lacks := r.leaderless.Load(); lacks != nil {
		return *lacks
	}
	if _, err := r.db.Status(ctx); err != nil {
		return fmt.Errorf("the database does not answer: %w", err)
	}
	return nil
}

func (r *readiness) led(has bool, members string) {
	if has {
		r.leaderless.Store(nil)
		return
	}
	lacks := fmt.Errorf("no leader: too few of the members %s reach each other", members)
	r.leaderless.Store(&lacks)
}
