package restapi

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"math/rand/v2"
	"net/http"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

const (
	// minWatch is the least time after which a watch that names no timeout ends; the greatest is twice that, so that not all watches begin anew at once.
	minWatch = 30 * time.Minute
	// keptBuffer bounds the buffer that a watch keeps between batches.
	keptBuffer = 64 << 10
)

// The fields of meta/v1 WatchEvent, and of runtime.RawExtension within.
const (
	eventType   = 1
	eventObject = 2
	rawField    = 1
)

func (d *Door) watch(w http.ResponseWriter, r *http.Request, info *request.Info) {
	p, err := d.rendering(r, info, asTable, asMetadata)
	if err == nil && p.form.Media == respond.YAML {
		err = respond.NotAcceptable(respond.JSON.ContentType(), respond.Protobuf.ContentType()+";stream=watch")
	}
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	o, err := listOptions(info)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	selected, err := selection(info, o)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), lasting(o))
	defer cancel()
	defer context.AfterFunc(d.config.Lifetime, cancel)()
	s := &stream{rendering: p, w: w, bookmarks: o.AllowWatchBookmarks, flush: http.NewResponseController(w).Flush}
	options, err := d.watchOptions(ctx, s, o)
	if err != nil {
		respond.Error(w, r, err)
		return
	}
	watcher, err := d.config.Cache.Watch(ctx, []cache.Watched{{Selection: selected}}, options)
	switch {
	case apierrors.IsResourceExpired(err):
		// The answer is a watch that says so.
		s.begin()
		_ = s.fail(err)
		return
	case err != nil:
		respond.Error(w, r, err)
		return
	}
	defer watcher.Close()
	s.begin()
	if err := s.follow(ctx, watcher); err != nil && ctx.Err() == nil {
		_ = s.fail(err) // or the client has gone, and nobody reads it
	}
}

func lasting(o *kmetav1.ListOptions) time.Duration {
	if o.TimeoutSeconds != nil && *o.TimeoutSeconds > 0 {
		return time.Duration(min(*o.TimeoutSeconds, int64(24*time.Hour/time.Second))) * time.Second
	}
	return minWatch + rand.N(minWatch)
}

// watchOptions says where a watch begins: with the state, or behind a revision.
func (d *Door) watchOptions(ctx context.Context, s *stream, o *kmetav1.ListOptions) (cache.WatchOptions, error) {
	asked, err := revision(o.ResourceVersion)
	if err != nil {
		return cache.WatchOptions{}, err
	}
	fromState := asked == nil || *asked == 0
	switch {
	case o.SendInitialEvents != nil && *o.SendInitialEvents:
		s.marksInitial = true
		return cache.WatchOptions{MinRevision: asked}, nil
	case o.SendInitialEvents != nil && fromState:
		now, err := d.config.Cache.Consistent(ctx)
		return cache.WatchOptions{After: &now}, err
	case fromState:
		return cache.WatchOptions{MinRevision: asked}, nil
	}
	return cache.WatchOptions{After: asked}, nil
}

// stream writes the events of one watch. It is used by one goroutine.
type stream struct {
	*rendering
	w     http.ResponseWriter
	flush func() error
	out   bytes.Buffer

	bookmarks bool
	// marksInitial says that the client wants to know when the state it began with is complete.
	marksInitial bool
	// headed says that the columns of the table have been sent.
	headed bool
	// marked is when the last bookmark was sent.
	marked time.Time
}

// begin tells the client that the watch stands, before anything happens.
func (s *stream) begin() {
	contentType := s.form.Media.ContentType()
	if s.form.Media == respond.Protobuf {
		contentType += ";stream=watch"
	}
	s.w.Header().Set("Content-Type", contentType)
	s.w.WriteHeader(http.StatusOK)
	_ = s.flush() // a client that has gone is found at the first event
	s.marked = s.door.config.Now()
}

// follow is the watch's loop: parked on its cursor, or blocked by the client's flow control.
func (s *stream) follow(ctx context.Context, watcher *cache.Watcher) error {
	for {
		batch, err := watcher.Next(ctx)
		if err != nil {
			return err
		}
		for i := range batch.Changes {
			if err := s.change(&batch.Changes[i]); err != nil {
				return err
			}
		}
		if err := s.mark(batch); err != nil {
			return err
		}
		if err := s.send(); err != nil {
			return err
		}
	}
}

// send writes out what the batch has added.
func (s *stream) send() error {
	if s.out.Len() == 0 {
		return nil
	}
	if _, err := s.w.Write(s.out.Bytes()); err != nil {
		return err
	}
	s.out.Reset()
	if s.out.Cap() > keptBuffer {
		s.out = bytes.Buffer{}
	}
	return s.flush()
}

var eventTypes = map[metav1.EventType]watch.EventType{
	metav1.EventType_EVENT_TYPE_ADDED: watch.Added, metav1.EventType_EVENT_TYPE_MODIFIED: watch.Modified, metav1.EventType_EVENT_TYPE_DELETED: watch.Deleted,
}

func (s *stream) change(c *cache.Change) error {
	kind := eventTypes[c.Type]
	switch {
	case s.form.As == asTable:
		t, err := s.table(!s.headed, c)
		if err != nil {
			return err
		}
		s.headed = true
		t.ResourceVersion = formatRevision(c.Revision)
		return s.value(kind, t)
	case s.form.Media == respond.Protobuf:
		data, apiVersion, object := s.raw(c)
		s.frame(kind, apiVersion, object, data)
		return nil
	}
	text, err := s.text(c)
	if err != nil {
		return err
	}
	s.line(kind, text)
	return nil
}

// line adds an event in JSON.
func (s *stream) line(kind watch.EventType, object []byte) {
	s.out.WriteString(`{"type":"`)
	s.out.WriteString(string(kind))
	s.out.WriteString(`","object":`)
	s.out.Write(object)
	s.out.WriteString("}\n")
}

// frame adds an event in protobuf, its length before it.
func (s *stream) frame(kind watch.EventType, apiVersion, object string, data []byte) {
	envelope := respond.Envelope(apiVersion, object, len(data))
	inner := len(envelope) + len(data) + len(respond.EnvelopeTail)
	head := make([]byte, 4, 64)
	head = protowire.AppendTag(head, eventType, protowire.BytesType)
	head = protowire.AppendString(head, string(kind))
	head = protowire.AppendTag(head, eventObject, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(1+protowire.SizeBytes(inner)))
	head = protowire.AppendTag(head, rawField, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(inner))
	binary.BigEndian.PutUint32(head, uint32(len(head)-4+inner))
	s.out.Write(head)
	s.out.Write(envelope)
	s.out.Write(data)
	s.out.WriteString(respond.EnvelopeTail)
}

// value adds an event whose object is none of the cache's.
func (s *stream) value(kind watch.EventType, o runtime.Object) error {
	if s.form.Media == respond.Protobuf {
		if m, ok := o.(interface{ Marshal() ([]byte, error) }); ok {
			data, err := m.Marshal()
			if err != nil {
				return err
			}
			apiVersion, name := o.GetObjectKind().GroupVersionKind().ToAPIVersionAndKind()
			s.frame(kind, apiVersion, name, data)
			return nil
		}
	}
	text, err := json.Marshal(o)
	if err != nil {
		return err
	}
	s.line(kind, text)
	return nil
}

// mark adds a bookmark when one is due: at the end of the state the client began with, and from time to time.
func (s *stream) mark(batch *cache.Batch) error {
	now := s.door.config.Now()
	switch {
	case !s.bookmarks || batch.Partial || batch.Revision == 0:
		return nil
	case batch.Mark == metav1.WatchMark_WATCH_MARK_SYNCED && s.marksInitial:
	case batch.Mark == metav1.WatchMark_WATCH_MARK_SYNCED || now.Sub(s.marked) < s.door.config.BookmarkInterval:
		return nil
	}
	s.marked = now
	version := formatRevision(batch.Revision)
	var annotations map[string]string
	if batch.Mark == metav1.WatchMark_WATCH_MARK_SYNCED {
		annotations = map[string]string{kmetav1.InitialEventsAnnotationKey: "true"}
	}
	switch s.form.As {
	case asTable:
		t, err := s.table(!s.headed)
		if err != nil {
			return err
		}
		s.headed = true
		t.ResourceVersion = version
		return s.value(watch.Bookmark, t)
	case asMetadata:
		m := &kmetav1.PartialObjectMetadata{
			TypeMeta:   kmetav1.TypeMeta{Kind: asMetadata, APIVersion: metaVersion},
			ObjectMeta: kmetav1.ObjectMeta{ResourceVersion: version, Annotations: annotations},
		}
		return s.value(watch.Bookmark, m)
	}
	o := s.door.config.Codec.New(s.row)
	o.SetResourceVersion(version)
	o.SetAnnotations(annotations)
	o.GetObjectKind().SetGroupVersionKind(s.row.GroupVersionKind())
	return s.value(watch.Bookmark, o)
}

// fail adds the error that ends the watch, and sends all.
func (s *stream) fail(err error) error {
	if err := s.value(watch.Error, respond.StatusOf(err)); err != nil {
		return err
	}
	return s.send()
}
