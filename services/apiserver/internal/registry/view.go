package registry

import (
	"context"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/uuid"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/admission"
	"dhow.dev/services/apiserver/internal/audit/annotation"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/strategy"
)

var _ admission.View = (*txn)(nil)

// Get is of admission.View. The plan does not rest on what it returns.
func (tx *txn) Get(ctx context.Context, res *resource.Resource, namespace, name string) (codec.Object, bool, error) {
	key := Key(res, namespace, name)
	entry, ok, err := tx.peek(key, res, namespace, name)
	if err != nil {
		return nil, false, err
	}
	if !ok && tx.writes[key] == nil && tx.known[key] == nil {
		if _, err := tx.registry.fetch(ctx, tx.known, []string{key}); err != nil {
			return nil, false, err
		}
		if entry, ok, err = tx.peek(key, res, namespace, name); err != nil {
			return nil, false, err
		}
	}
	if !ok {
		return nil, false, nil
	}
	o, err := tx.registry.codec.DecodeProto(res, entry.Object)
	return o, err == nil, err
}

// List is of admission.View: what the cache has, and what the commit changes of it.
func (tx *txn) List(_ context.Context, res *resource.Resource, namespace string, visit func(codec.Object) bool) error {
	var failed error
	seen := map[string]bool{}
	emit := func(name Name, object []byte) bool {
		o, err := tx.registry.codec.DecodeProto(res, object)
		if err != nil {
			failed = err
			return false
		}
		return visit(o)
	}
	stopped := false
	err := tx.registry.cache.Each(res, namespace, func(name Name, entry Entry) bool {
		key := Key(res, name.Namespace, name.Name)
		seen[key] = true
		if op := tx.writes[key]; op != nil {
			if op.HasDelete() {
				return true
			}
			entry.Object = tx.plain[key]
		}
		stopped = !emit(name, entry.Object)
		return !stopped
	})
	if err != nil || failed != nil || stopped {
		return orElse(err, failed)
	}
	prefix := Prefix(res) + segment(namespace) + "/"
	if namespace == "" {
		prefix = Prefix(res)
	}
	for _, key := range tx.order {
		if len(key) > len(prefix) && key[:len(prefix)] == prefix && !seen[key] && tx.writes[key].HasPut() {
			if !emit(Name{}, tx.plain[key]) {
				break
			}
		}
	}
	return failed
}

func orElse(first, second error) error {
	if first != nil {
		return first
	}
	return second
}

// peek returns the newest state of an object that this write knows, without asking the store: what its commit makes, else the newest of what the store said,
// what this API server wrote last under the key's lock, and the cache.
func (tx *txn) peek(key string, res *resource.Resource, namespace, name string) (Entry, bool, error) {
	if op := tx.writes[key]; op != nil {
		return Entry{Object: tx.plain[key], Revision: tx.reads[key]}, op.HasPut(), nil
	}
	e := tx.known[key]
	if e != nil && !e.HasValue() {
		return Entry{}, false, nil
	}
	best, found := tx.registry.cache.Current(res, namespace, name)
	if held := tx.held[key]; held != nil && held.latest.Object != nil && held.latest.Revision > best.Revision {
		best, found = held.latest, true
	}
	if e != nil && e.GetRevision() > best.Revision {
		plain, err := tx.registry.encryption.Open(key, e.GetEncryptionKeyId(), e.GetValue())
		return Entry{Object: plain, Revision: e.GetRevision()}, err == nil, err
	}
	return best, found, nil
}

// Amend is of admission.View. Writers of one API server that amend the same object take turns, so that they do not refuse one another's commits; against
// those of others the commit's condition decides.
func (tx *txn) Amend(ctx context.Context, res *resource.Resource, namespace, name string, change func(codec.Object) error) error {
	key := Key(res, namespace, name)
	if err := tx.hold(ctx, key); err != nil {
		return err
	}
	entry, found, err := tx.peek(key, res, namespace, name)
	if err != nil || !found {
		return err
	}
	obj, err := tx.registry.codec.DecodeProto(res, entry.Object)
	if err != nil {
		return err
	}
	if _, read := tx.reads[key]; !read {
		tx.reads[key] = entry.Revision
		tx.unconfirmed[key] = tx.known[key] == nil || tx.known[key].GetRevision() != entry.Revision
		tx.amended[key] = true
	}
	if err := change(obj); err != nil {
		return err
	}
	data, err := tx.registry.codec.EncodeProto(obj)
	if err != nil || string(data) == string(entry.Object) {
		return err
	}
	return tx.put(res, key, data)
}

// Make is of admission.View. The object passes its kind's defaults, and no admission: what makes it answers for it.
func (tx *txn) Make(res *resource.Resource, obj codec.Object) error {
	r := tx.registry
	key := Key(res, obj.GetNamespace(), obj.GetName())
	if _, read := tx.reads[key]; read {
		return nil // an operation of the commit is about it
	}
	_, taken, err := tx.probe(res, obj.GetNamespace(), obj.GetName())
	if err != nil {
		return err
	}
	if taken {
		delete(tx.reads, key)
		delete(tx.unconfirmed, key)
		return nil
	}
	s := r.strategies.For(res)
	obj.SetUID(uuid.NewUUID())
	obj.SetCreationTimestamp(metav1.NewTime(r.now().Truncate(0)).Rfc3339Copy())
	s.Default(obj)
	strategy.PrepareForCreate(res, obj)
	s.PrepareForCreate(obj)
	data, err := r.codec.EncodeProto(obj)
	if err != nil {
		return err
	}
	tx.amended[key], tx.made[key] = true, true
	return tx.put(res, key, data)
}

// turns are the locks of objects that many writes amend.
type turns struct {
	mu    sync.Mutex
	byKey map[string]*turn
}

// turn is one object's lock. Latest is what its last holder wrote; the cache may not have it yet.
type turn struct {
	waiting int
	token   chan struct{}
	latest  Entry
}

// hold waits for the key's turn, which the transaction keeps until its attempt is over. A transaction that holds one already does not wait for another,
// so that two can never wait for each other: it goes ahead and leaves it to the commit's conditions.
func (tx *txn) hold(ctx context.Context, key string) error {
	if tx.held[key] != nil {
		return nil
	}
	t := tx.registry.turns
	t.mu.Lock()
	mine := t.byKey[key]
	if mine == nil {
		mine = &turn{token: make(chan struct{}, 1)}
		t.byKey[key] = mine
	}
	mine.waiting++
	t.mu.Unlock()
	if len(tx.held) > 0 {
		select {
		case mine.token <- struct{}{}:
			tx.held[key] = mine
		default:
			tx.registry.leave(key, mine)
		}
		return nil
	}
	select {
	case mine.token <- struct{}{}:
		tx.held[key] = mine
		return nil
	case <-ctx.Done():
		tx.registry.leave(key, mine)
		return ctx.Err()
	}
}

func (r *Registry) leave(key string, t *turn) {
	r.turns.mu.Lock()
	defer r.turns.mu.Unlock()
	if t.waiting--; t.waiting == 0 {
		delete(r.turns.byKey, key)
	}
}

// letGo ends the transaction's turns. Revisions are those of a commit that was written.
func (tx *txn) letGo(revisions map[string]int64) {
	for key, t := range tx.held {
		if revision, wrote := revisions[key]; wrote && tx.plain[key] != nil {
			t.latest = Entry{Object: tx.plain[key], Revision: revision}
		}
		<-t.token
		tx.registry.leave(key, t)
	}
	clear(tx.held)
}

// request describes a write to admission. Nil objects stand for none.
func (tx *txn) request(operation admission.Operation, res *resource.Resource, subresource string, obj, old codec.Object) *admission.Request {
	q := &admission.Request{Operation: operation, Resource: res, Subresource: subresource, View: tx}
	named := obj
	if named == nil {
		named = old
	}
	q.Namespace, q.Name = named.GetNamespace(), named.GetName()
	// A nil codec.Object in a runtime.Object would not be nil.
	if obj != nil {
		q.Object = obj
	}
	if old != nil {
		q.Old = old
	}
	return q
}

// admitting runs one of the chain's two passes in a span.
func (r *Registry) admitting(ctx context.Context, name string, q *admission.Request, pass func(*admission.Chain, context.Context, *admission.Request) error) error {
	if r.admission == nil {
		return nil
	}
	ctx, span := r.span(ctx, name)
	defer span.End()
	err := pass(r.admission, ctx, q)
	for key, value := range q.Audit {
		annotation.Add(ctx, key, value)
	}
	return err
}

func (r *Registry) mutate(ctx context.Context, q *admission.Request) error {
	return r.admitting(ctx, "mutate", q, (*admission.Chain).Mutate)
}

func (r *Registry) admitted(ctx context.Context, q *admission.Request) error {
	return r.admitting(ctx, "admitted", q, (*admission.Chain).Validate)
}

// Admit asks admission about a request that the registry does not write: one that reaches into an object (Connect), or a subresource that is answered
// elsewhere, such as serviceaccounts/token, with the object that it takes. The object may be changed.
func (r *Registry) Admit(ctx context.Context, operation admission.Operation, res *resource.Resource, subresource, namespace, name string, obj runtime.Object) (warnings []string, err error) {
	if r.admission == nil {
		return nil, nil
	}
	tx := r.begin(map[string]*storev1.Entry{})
	defer tx.letGo(nil)
	q := &admission.Request{Operation: operation, Resource: res, Subresource: subresource, Namespace: namespace, Name: name, Object: obj, View: tx}
	if err := r.mutate(ctx, q); err != nil {
		return nil, err
	}
	err = r.admitted(ctx, q)
	if err == nil && len(tx.writes) > 0 {
		return nil, apierrors.NewInternalError(errUnwritten)
	}
	return q.Warnings, err
}
