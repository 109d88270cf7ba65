package cache

import (
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"dhow.dev/pkg/rawcodec"
	"dhow.dev/pkg/resource"
)

// registryPrefix begins the store keys of all objects.
const registryPrefix = "/registry/"

// Revisions are R*1024+i (DESIGN §4): R counts commits, i < lastIndex is the place in the commit, lastIndex stands for the whole commit.
const (
	indexBits = 10
	lastIndex = 1<<indexBits - 1
)

// Field numbers of the messages that frames are spliced from. resourceVersionField is ObjectMeta's; metadata is field 1 of every kind and every list.
// itemField is both `items` of a list and `object` of an ObjectChange, which is what lets both share one buffer.
const (
	metadataField        = 1
	itemField            = 2
	resourceVersionField = 6
)

// Entry is one object at one revision. It is immutable and shared by all readers. Its strings point into the stored bytes.
type Entry struct {
	Resource *resource.Resource
	// Key is the store's key.
	Key string
	// Object is the object as the store keeps it (decrypted), without resource_version.
	Object []byte
	// Revision is the object's resource version.
	Revision int64

	Namespace, Name, UID string
	Labels               Labels
	// Owners are the UIDs of the owner references.
	Owners []string
	// Deleting says that deletion_timestamp is set.
	Deleting bool
	// Traceparent is the trace of the write.
	Traceparent string

	// fields are the values of the kind's selectable fields, in the order of its fieldSet.
	fields []string
	// item is [0x12 length][Object][suffix]: the object as a field of a list or of a change, header and suffix included.
	item mem.Buffer
	// body is the part of item behind the header: the object as answer of a Get.
	body rawcodec.Frame
	// text is the object as JSON, once somebody asked for it and for as long as there is room; texts counts it.
	text  atomic.Pointer[[]byte]
	texts *texts
	// view is the object in another version, once somebody asked for it.
	view atomic.Pointer[Entry]
}

// Key returns the store key of an object. Namespace is empty for kinds without namespaces.
func Key(r *resource.Resource, namespace, name string) string {
	return prefixOf(r) + nonEmpty(namespace) + "/" + name
}

func prefixOf(r *resource.Resource) string {
	group := r.Group
	if group == "" {
		group = "core"
	}
	return registryPrefix + group + "/" + r.Plural + "/"
}

func nonEmpty(namespace string) string {
	if namespace == "" {
		return "-"
	}
	return namespace
}

// ParseKey is the inverse of Key; ok is false for keys of no served kind.
func ParseKey(key string) (r *resource.Resource, namespace, name string, ok bool) {
	rest, ok := strings.CutPrefix(key, registryPrefix)
	if !ok {
		return nil, "", "", false
	}
	parts := strings.SplitN(rest, "/", 4)
	if len(parts) != 4 {
		return nil, "", "", false
	}
	group := parts[0]
	if group == "core" {
		group = ""
	}
	if r = resource.Lookup(group, parts[1]); r == nil || !r.IsStored() {
		return nil, "", "", false
	}
	if namespace = parts[2]; namespace == "-" {
		namespace = ""
	}
	return r, namespace, parts[3], true
}

// newEntry scans an object and lays out its buffer. value is not kept.
func newEntry(t *table, key string, value []byte, revision int64, traceparent string) (*Entry, error) {
	suffix := appendSuffix(nil, revision)
	size := len(value) + len(suffix)
	buffer := make([]byte, 0, 1+protowire.SizeVarint(uint64(size))+size)
	buffer = protowire.AppendTag(buffer, itemField, protowire.BytesType)
	buffer = protowire.AppendVarint(buffer, uint64(size))
	header := len(buffer)
	buffer = append(buffer, value...)
	buffer = append(buffer, suffix...)
	e := &Entry{
		Resource: t.resource, Key: key, Object: buffer[header : header+len(value) : header+len(value)],
		Revision: revision, Traceparent: traceparent,
		item: mem.SliceBuffer(buffer), body: rawcodec.New(buffer[header:]), texts: t.texts,
	}
	if err := scan(e, t.fields); err != nil {
		return nil, err
	}
	return e, nil
}

// appendSuffix appends a second metadata field that holds only the resource version: decoders merge it into the first one.
func appendSuffix(b []byte, revision int64) []byte {
	var digits [20]byte
	version := strconv.AppendInt(digits[:0], revision, 10)
	b = protowire.AppendTag(b, metadataField, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(1+protowire.SizeVarint(uint64(len(version)))+len(version)))
	b = protowire.AppendTag(b, resourceVersionField, protowire.BytesType)
	return protowire.AppendBytes(b, version)
}

// WithRevision returns the encoding of an object with its resource version, for answers that do not come from the cache.
func WithRevision(object []byte, revision int64) rawcodec.Frame {
	return rawcodec.New(object, appendSuffix(nil, revision))
}

// Frame is the object with its resource version, as the answer of a Get.
func (e *Entry) Frame() rawcodec.Frame { return e.body }

// Encoded is Frame in one piece. It must not be changed.
func (e *Entry) Encoded() []byte { return e.body.Bytes() }

// Item is the object as field 2 of a list message, header included. It must not be changed.
func (e *Entry) Item() []byte { return e.item.ReadOnlyData() }

// Text returns the object as JSON, which encode makes of its protobuf and all readers share. It must not be changed.
func (e *Entry) Text(encode func(r *resource.Resource, encoded []byte) ([]byte, error)) ([]byte, error) {
	if made := e.text.Load(); made != nil {
		return *made, nil
	}
	made, err := encode(e.Resource, e.Encoded())
	if err != nil {
		return nil, err
	}
	// Of several who made it at once one keeps it, and it is counted once.
	if e.texts != nil && e.text.CompareAndSwap(nil, &made) {
		e.texts.add(e, len(made))
	}
	return made, nil
}

// Field returns the value of a selectable field such as spec.nodeName, and whether the kind has it.
func (e *Entry) Field(label string) (string, bool) {
	switch label {
	case "metadata.name":
		return e.Name, true
	case "metadata.namespace":
		return e.Namespace, true
	}
	if i := fieldsOf(e.Resource).index(label); i >= 0 {
		return e.fields[i], true
	}
	return "", false
}

// size estimates the memory that the entry keeps alive.
func (e *Entry) size() int {
	const overhead = 400
	if e == nil {
		return 0
	}
	return e.item.Len() + len(e.Key) + overhead
}

// Label is one label.
type Label struct{ Key, Value string }

// Labels are sorted by key. They implement labels.Labels.
type Labels []Label

// Has implements labels.Labels.
func (l Labels) Has(key string) bool {
	_, ok := l.Lookup(key)
	return ok
}

// Get implements labels.Labels.
func (l Labels) Get(key string) string {
	value, _ := l.Lookup(key)
	return value
}

// Lookup implements labels.Labels.
func (l Labels) Lookup(key string) (string, bool) {
	i, found := slices.BinarySearchFunc(l, key, func(label Label, key string) int { return strings.Compare(label.Key, key) })
	if !found {
		return "", false
	}
	return l[i].Value, true
}

func formatRevision(revision int64) string { return strconv.FormatInt(revision, 10) }
