package cache

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

// Get returns an object, or NotFound. minRevision is as in dhow.meta.v1.GetRequest.
func (c *Cache) Get(ctx context.Context, r *resource.Resource, namespace, name string, minRevision *int64) (*Entry, error) {
	if err := c.catchUp(ctx, minRevision); err != nil {
		return nil, err
	}
	if e := c.Peek(r, namespace, name); e != nil {
		return e, nil
	}
	return nil, apierrors.NewNotFound(r.StoredAs().GroupResource(), name)
}

// Peek returns an object as the cache has it now, or nil.
func (c *Cache) Peek(r *resource.Resource, namespace, name string) *Entry {
	if stored := r.StoredAs(); stored != r {
		return c.as(c.Peek(stored, namespace, name), r)
	}
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.tables[r].objects[object.Key{Namespace: namespace, Name: name}]
}

// ListOptions say which part of a selection is wanted.
type ListOptions struct {
	// Limit bounds the number of entries; 0: all.
	Limit int64
	// Continue is the token of the list before.
	Continue string
	// MinRevision is as in dhow.meta.v1.ListRequest.
	MinRevision *int64
	// At asks for the state at the commit of this revision, when it is not 0.
	At int64
}

// List is a list, or a page of one, at one revision, ordered by key.
type List struct {
	Entries  []*Entry
	Revision int64
	// Continue is empty at the end.
	Continue string
	// Remaining is how many objects follow, or -1 when unknown.
	Remaining int64
}

// List returns the selected objects.
func (c *Cache) List(ctx context.Context, s Selection, options ListOptions) (*List, error) {
	if options.Limit < 0 {
		return nil, apierrors.NewBadRequest("limit: must not be negative")
	}
	if view := s.view; view != nil {
		s.view = nil
		list, err := c.List(ctx, s, options)
		if err != nil {
			return nil, err
		}
		list.Entries = c.viewed(list.Entries, view)
		return list, nil
	}
	if options.Continue == "" && options.At != 0 {
		return c.exactly(ctx, s, options)
	}
	if options.Continue == "" {
		if err := c.catchUp(ctx, options.MinRevision); err != nil {
			return nil, err
		}
		return c.first(s, options.Limit), nil
	}
	if options.MinRevision != nil {
		return nil, apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
	}
	token, err := parseToken(options.Continue)
	if err != nil || !strings.HasPrefix(token.after, prefixOf(s.Resource)) {
		return nil, apierrors.NewBadRequest("continue key is not valid: give the continue token of the list before, unchanged")
	}
	if token.revision == anyRevision {
		if err := c.catchUp(ctx, nil); err != nil {
			return nil, err
		}
		return c.rest(s, token, options.Limit), nil
	}
	if err := c.catchUp(ctx, new(int64)); err != nil {
		return nil, err
	}
	if c.ages.of(token.revision, time.Now(), c.config.PageAge) > c.config.PageAge {
		return nil, inconsistently(token)
	}
	list, err := c.page(ctx, s, token, options.Limit)
	if apierrors.IsResourceExpired(err) {
		return nil, inconsistently(token)
	}
	return list, err
}

// page goes on behind a token.
func (c *Cache) page(ctx context.Context, s Selection, from token, limit int64) (*List, error) {
	c.mu.RLock()
	objects := c.tables[s.Resource].at(from.revision)
	c.mu.RUnlock()
	if objects != nil {
		return pageOf(s, objects, from, limit), nil
	}
	return c.fromStore(ctx, s, from, limit)
}

// exactly lists the state at the commit of a revision.
func (c *Cache) exactly(ctx context.Context, s Selection, options ListOptions) (*List, error) {
	revision := options.At | lastIndex
	if err := c.catchUp(ctx, &options.At); err != nil {
		return nil, err
	}
	if c.Revision() < revision {
		// Objects of the commit that are not here yet do not come: commits are applied as a whole.
		revision = c.Revision()
	}
	list, err := c.page(ctx, s, token{revision: revision}, options.Limit)
	if apierrors.IsResourceExpired(err) {
		return nil, apierrors.NewResourceExpired(fmt.Sprintf("The resourceVersion for the provided list is too old: %d", options.At))
	}
	return list, err
}

// rest goes on behind a token with the state as it is now.
func (c *Cache) rest(s Selection, from token, limit int64) *List {
	t := c.tables[s.Resource]
	c.mu.Lock()
	defer c.mu.Unlock()
	objects := t.freeze()
	from.revision, from.before = c.revision, 0
	// What was before the token has changed: it is counted anew, so that what remains is told rightly.
	scanSelected(s, objects, "", func(e *Entry) bool {
		if e.Key > from.after {
			return false
		}
		from.before++
		return true
	})
	list := pageOf(s, objects, from, limit)
	if list.Continue != "" {
		c.remember(t, from.revision, objects)
	}
	return list
}

// remember keeps a state for its next page. The caller holds mu for writing.
func (c *Cache) remember(t *table, revision int64, objects *tree) {
	now := time.Now()
	c.ages.of(revision, now, c.config.PageAge)
	t.keep(revision, objects, now, c.config.PageAge)
}

// inconsistently is the answer to a token whose state is gone: it has another one, which goes on with the state as it is then.
func inconsistently(from token) error {
	err := apierrors.NewResourceExpired("The provided continue parameter is too old to display a consistent list result. You can start a new list without " +
		"the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results " +
		"in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list.")
	from.revision = anyRevision
	err.ErrStatus.Continue = from.String()
	return err
}

// Snapshot returns the selected objects as the cache has them now, ordered by key.
func (c *Cache) Snapshot(s Selection) []*Entry {
	entries := c.first(s, 0).Entries
	if s.view != nil {
		return c.viewed(entries, s.view)
	}
	return entries
}

// first returns the first page of the state as it is now.
func (c *Cache) first(s Selection, limit int64) *List {
	t := c.tables[s.Resource]
	if entries, revision, ok := c.indexed(t, s, limit); ok {
		slices.SortFunc(entries, func(a, b *Entry) int { return strings.Compare(a.Key, b.Key) })
		return &List{Entries: entries, Revision: revision, Remaining: -1}
	}
	c.mu.RLock()
	objects, revision := t.frozen, c.revision
	c.mu.RUnlock()
	if objects == nil {
		c.mu.Lock()
		objects, revision = t.freeze(), c.revision
		c.mu.Unlock()
	}
	list := pageOf(s, objects, token{revision: revision}, limit)
	if list.Continue != "" {
		c.mu.Lock()
		c.remember(t, revision, objects)
		c.mu.Unlock()
	}
	return list
}

// indexed answers from an index, if there is one and the answer is one page.
func (c *Cache) indexed(t *table, s Selection, limit int64) (entries []*Entry, revision int64, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	switch {
	case s.found.dimension == byName:
		if e := t.objects[object.Key{Namespace: s.found.namespace, Name: s.found.value}]; s.Matches(e) {
			entries = []*Entry{e}
		}
	case listed(s.found):
		for e := range t.found[s.found] {
			if s.Matches(e) {
				entries = append(entries, e)
			}
		}
	default:
		return nil, 0, false
	}
	return entries, c.revision, limit == 0 || int64(len(entries)) <= limit
}

// pageOf returns the entries behind a token, from an immutable state.
func pageOf(s Selection, objects *tree, from token, limit int64) *List {
	list := &List{Revision: from.revision, Remaining: -1}
	if s.everything() && limit == 0 {
		list.Entries = make([]*Entry, 0, objects.Len())
	}
	last := ""
	scanSelected(s, objects, from.after, func(e *Entry) bool {
		if limit > 0 && int64(len(list.Entries)) == limit {
			list.Continue = token{revision: from.revision, after: last, before: from.before + limit}.String()
			return false
		}
		list.Entries = append(list.Entries, e)
		last = e.Key
		return true
	})
	switch {
	case list.Continue == "":
	case s.everything():
		list.Remaining = int64(objects.Len()) - from.before - limit
	case s.labels == nil && len(s.fields) == 0:
		list.Remaining = 0
		scanSelected(s, objects, last, func(*Entry) bool {
			list.Remaining++
			return true
		})
	}
	return list
}

// scanSelected calls f with the selected entries behind a key, in order, until it returns false.
func scanSelected(s Selection, objects *tree, after string, f func(*Entry) bool) {
	if objects.Len() == 0 {
		return
	}
	within := prefixOf(s.Resource)
	if s.Namespace != "" {
		within += s.Namespace + "/"
	}
	start := max(within, after)
	objects.Ascend(&Entry{Key: start}, func(e *Entry) bool {
		if !strings.HasPrefix(e.Key, within) {
			return false
		}
		return e.Key <= after || !s.Matches(e) || f(e)
	})
}

// fromStore goes on with a list whose state the cache no longer has, or never had because another API server began it.
func (c *Cache) fromStore(ctx context.Context, s Selection, from token, limit int64) (*List, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	t := c.tables[s.Resource]
	within := prefixOf(s.Resource)
	if s.Namespace != "" {
		within += s.Namespace + "/"
	}
	stream, err := c.config.Store.List(ctx, storev1.ListRequest_builder{
		Prefix: []byte(within), Revision: from.revision, After: []byte(from.after),
	}.Build())
	if err != nil {
		return nil, listError(err)
	}
	list := &List{Revision: from.revision, Remaining: -1}
	last := ""
	for {
		chunk, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return list, nil
		}
		if err != nil {
			return nil, listError(err)
		}
		for _, item := range chunk.GetEntries() {
			_, _, e := c.parse(ctx, item.GetKey(), item.GetValue(), item.GetRevision(), item.GetEncryptionKeyId(), item.GetTraceparent())
			if e == nil || e.Resource != t.resource || !s.Matches(e) {
				continue
			}
			if limit > 0 && int64(len(list.Entries)) == limit {
				list.Continue = token{revision: from.revision, after: last, before: from.before + limit}.String()
				return list, nil
			}
			list.Entries = append(list.Entries, e)
			last = e.Key
		}
	}
}

func listError(err error) error {
	if status.Code(err) == codes.OutOfRange {
		return apierrors.NewResourceExpired("the state that was asked for is too old: start a new list")
	}
	return err
}

// token says where a list goes on.
type token struct {
	revision int64
	after    string
	// before is the number of objects of the pages before.
	before int64
}

// anyRevision is the revision of tokens that go on with whatever is there.
const anyRevision = 0

// tokenVersion begins every token; servers of another version refuse it and the client starts over.
const tokenVersion = 1

// String returns the token for clients, to whom it means nothing.
func (t token) String() string {
	b := []byte{tokenVersion}
	b = binary.AppendVarint(b, t.revision)
	b = binary.AppendVarint(b, t.before)
	return base64.RawURLEncoding.EncodeToString(append(b, t.after...))
}

var errToken = errors.New("malformed continue token")

func parseToken(s string) (token, error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil || len(b) == 0 || b[0] != tokenVersion {
		return token{}, errToken
	}
	b = b[1:]
	var t token
	for _, number := range []*int64{&t.revision, &t.before} {
		value, n := binary.Varint(b)
		if n <= 0 || value < 0 {
			return token{}, errToken
		}
		*number, b = value, b[n:]
	}
	t.after = string(b)
	return t, nil
}
