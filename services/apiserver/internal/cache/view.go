package cache

import (
	"context"

	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/apiserver/internal/conversion"
)

// Objects of a kind that is stored as another version are read through views: entries and events that are converted when somebody first asks, and shared by all
// readers from then on. What selects, orders and wakes is always the stored object.

// as returns the entry in another version, nil for a nil entry and, loudly, for one that cannot be converted.
func (c *Cache) as(e *Entry, r *resource.Resource) *Entry {
	if e == nil {
		return nil
	}
	if made := e.view.Load(); made != nil && made.Resource == r {
		return made
	}
	converted, err := conversion.Encoded(e.Object, e.Resource, r)
	var view *Entry
	if err == nil {
		view, err = newEntry(&table{resource: r, fields: fieldsOf(r), texts: &c.texts}, e.Key, converted, e.Revision, e.Traceparent)
	}
	if err != nil {
		ctx := context.Background()
		c.metrics.unreadable.Add(ctx, 1)
		c.config.Logger.ErrorContext(ctx, "stored object cannot be converted", logkey.Key(e.Key), logkey.Revision(e.Revision), logkey.Err(err))
		return nil
	}
	e.view.Store(view)
	return view
}

// viewed returns the entries in another version.
func (c *Cache) viewed(entries []*Entry, r *resource.Resource) []*Entry {
	views := make([]*Entry, 0, len(entries))
	for _, e := range entries {
		if view := c.as(e, r); view != nil {
			views = append(views, view)
		}
	}
	return views
}

// eventAs returns the event in another version.
func (c *Cache) eventAs(e *event, r *resource.Resource) *event {
	if made := e.view.Load(); made != nil && made.table.resource == r {
		return made
	}
	view := &event{
		table: &table{resource: r}, sequence: e.sequence, revision: e.revision, old: c.as(e.old, r), new: c.as(e.new, r), traceparent: e.traceparent,
		size: e.size, at: e.at, of: e,
	}
	e.view.Store(view)
	return view
}
