// Package compactor forgets history that is older than the store promises to keep.
//
// It keeps a record of marks in the database: at this time the newest revision was that. From time to time it adds a mark and compacts to the
// newest one that is old enough. The record outlives restarts, and because it is replaced by compare-and-swap, of several store
// instances on one etcd exactly one acts in each round: the others find a fresh mark, or lose the swap, and leave it at that.
package compactor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/store/internal/engine"
	"dhow.dev/services/store/internal/record"
)

const (
	// DefaultHistory is how long a revision stays readable.
	DefaultHistory = 10 * time.Minute
	// rounds is how many marks fit into the history: what is kept is between history and history×(1+1/rounds).
	rounds = 10
)

// key holds the marks. It is outside of what callers of the store can name.
var key = []byte("\x01dhow/compaction")

// Config configures New.
type Config struct {
	Engine engine.Engine
	// History is how long revisions are kept; 0: DefaultHistory.
	History time.Duration
	Logger  *slog.Logger
}

// Compactor compacts until its context ends.
type Compactor struct {
	engine  engine.Engine
	history time.Duration
	logger  *slog.Logger
	// unsaved are marks that a full database refused. Deletes still make revisions there, and compacting to them is the way out.
	unsaved []mark
}

// New returns a Compactor.
func New(config Config) *Compactor {
	if config.History == 0 {
		config.History = DefaultHistory
	}
	return &Compactor{engine: config.Engine, history: config.History, logger: config.Logger}
}

// mark says which revision was the newest at a time.
type mark struct {
	Time     time.Time       `json:"time"`
	Revision engine.Revision `json:"revision"`
}

// Run compacts in rounds until the context ends. A round that fails is logged and made up for by the next.
func (c *Compactor) Run(ctx context.Context) error {
	interval := max(c.history/rounds, time.Millisecond)
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		if err := c.round(ctx, time.Now()); err != nil && ctx.Err() == nil {
			c.logger.LogAttrs(ctx, slog.LevelWarn, "compaction failed", logkey.Err(err))
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// round adds a mark when something has changed and compacts to the newest mark that is old enough.
func (c *Compactor) round(ctx context.Context, now time.Time) error {
	items, newest, err := c.engine.Get(ctx, [][]byte{key}, 0)
	if err != nil {
		return fmt.Errorf("read the marks: %w", err)
	}
	var marks []mark
	if items[0].Revision != 0 {
		if err := json.Unmarshal(items[0].Value, &marks); err != nil {
			return fmt.Errorf("read the marks: %w", err)
		}
	}
	if len(c.unsaved) > 0 && (len(marks) == 0 || c.unsaved[len(c.unsaved)-1].Time.After(marks[len(marks)-1].Time)) {
		marks = c.unsaved
	}
	// The last round's own write is no change: an idle cluster stays idle.
	if newest != items[0].Revision && !recent(marks, now, c.history/rounds/2) {
		marks = append(drop(marks, now.Add(-c.history)), mark{Time: now, Revision: newest})
		won, err := c.write(ctx, marks, items[0].Revision)
		if err != nil || !won {
			return err
		}
	}
	target := engine.Revision(0)
	for _, m := range marks {
		if now.Sub(m.Time) >= c.history {
			target = max(target, m.Revision)
		}
	}
	if target == 0 {
		return nil
	}
	status, err := c.engine.Status(ctx)
	if err != nil {
		return err
	}
	size, err := c.engine.Size(ctx)
	if err != nil {
		return err
	}
	if target <= status.Compacted && !size.Full {
		return nil
	}
	if err := c.engine.Compact(ctx, target); err != nil {
		return err
	}
	c.logger.LogAttrs(ctx, slog.LevelDebug, "history compacted", logkey.Revision(record.Whole(target)))
	return nil
}

// recent says whether some instance has made a mark in this round.
func recent(marks []mark, now time.Time, within time.Duration) bool {
	return len(marks) > 0 && now.Sub(marks[len(marks)-1].Time) < within
}

// drop removes all but the newest of the marks before a time: that one is what to compact to.
func drop(marks []mark, before time.Time) []mark {
	for len(marks) > 1 && !marks[1].Time.After(before) {
		marks = marks[1:]
	}
	return marks
}

// write replaces the marks, unless another instance did.
func (c *Compactor) write(ctx context.Context, marks []mark, read engine.Revision) (won bool, err error) {
	value, err := json.Marshal(marks)
	if err != nil {
		return false, fmt.Errorf("write the marks: %w", err)
	}
	result, err := c.engine.Commit(ctx, []engine.Member{{
		Conditions: []engine.Condition{{Key: key, Revision: read}},
		Writes:     []engine.Write{{Key: key, Value: value}},
	}})
	if errors.Is(err, engine.ErrNoSpace) {
		c.unsaved = marks
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("write the marks: %w", err)
	}
	c.unsaved = nil
	return result.Outcomes[0].Held, nil
}
