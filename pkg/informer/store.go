package informer

import (
	"fmt"
	"sync"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

// Store is the local copy of the selected objects of one kind. Reading is safe at any time.
//
// Objects decode their spec and status when somebody first reads them, and are then several times as large. Handlers and indexes read those of every object that changes;
// they do so in a copy that goes, and what is kept stays as small as it came until a reader asks for it.
type Store[T object.Object] struct {
	resource *resource.Resource
	options  Options[T]
	handlers []func(old, new T, trace *Trace)

	mu      sync.RWMutex
	objects map[object.Key]T
	indexes map[string]map[string]map[object.Key]struct{}

	// unseen holds, during a snapshot, what the snapshot has not mentioned so far. Only the watch touches it.
	unseen map[object.Key]struct{}
}

func newStore[T object.Object](r *resource.Resource, options Options[T]) *Store[T] {
	s := &Store[T]{resource: r, options: options, objects: map[object.Key]T{}, indexes: map[string]map[string]map[object.Key]struct{}{}}
	for name := range options.Indexes {
		s.indexes[name] = map[string]map[object.Key]struct{}{}
	}
	return s
}

// OnChange registers a function for all changes: old is nil for a new object, new is nil for a deleted one. It is called after the store has changed,
// in revision order, from one goroutine for all stores of the informer, and must not block. An object that was replaced by another of the
// same name (another UID) is first reported deleted, then new. Register before Run.
func (s *Store[T]) OnChange(f func(old, new T)) {
	s.OnChangeTraced(func(old, new T, _ *Trace) { f(old, new) })
}

// OnChangeTraced is OnChange for those that go on with the trace of a change. The trace is nil for what vanished while the watch was away.
func (s *Store[T]) OnChangeTraced(f func(old, new T, trace *Trace)) {
	s.handlers = append(s.handlers, f)
}

// Get returns an object by name. Namespace is empty for kinds without namespaces.
func (s *Store[T]) Get(namespace, name string) (T, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	o, ok := s.objects[object.Key{Namespace: namespace, Name: name}]
	return o, ok
}

// List returns all objects, in no order.
func (s *Store[T]) List() []T {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]T, 0, len(s.objects))
	for _, o := range s.objects {
		list = append(list, o)
	}
	return list
}

// Len returns the number of objects.
func (s *Store[T]) Len() int {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return len(s.objects)
}

// ByIndex returns the objects that an index holds under a value, in no order. It panics for an index that Options do not have.
func (s *Store[T]) ByIndex(index, value string) []T {
	s.mu.RLock()
	defer s.mu.RUnlock()
	values, ok := s.indexes[index]
	if !ok {
		panic(fmt.Sprintf("informer: %s has no index %q", s.resource, index))
	}
	list := make([]T, 0, len(values[value]))
	for key := range values[value] {
		list = append(list, s.objects[key])
	}
	return list
}

func (s *Store[T]) selection(id uint32) *clusterv1.Selection {
	return clusterv1.Selection_builder{
		Id: id, Group: s.resource.Group, Resource: s.resource.Plural,
		Namespace: s.options.Namespace, LabelSelector: s.options.LabelSelector, FieldSelector: s.options.FieldSelector,
	}.Build()
}

func (s *Store[T]) beginSnapshot() {
	s.mu.RLock()
	defer s.mu.RUnlock()
	s.unseen = make(map[object.Key]struct{}, len(s.objects))
	for k := range s.objects {
		s.unseen[k] = struct{}{}
	}
}

func (s *Store[T]) endSnapshot() {
	for k := range s.unseen {
		s.change(k, nil, nil, nil)
	}
	s.unseen = nil
}

func (s *Store[T]) apply(event metav1.EventType, encoded []byte, trace *Trace) error {
	o, err := decodeAs(s.resource, encoded)
	if err != nil {
		return err
	}
	key := object.KeyOf(o)
	delete(s.unseen, key)
	if event == metav1.EventType_EVENT_TYPE_DELETED {
		s.change(key, nil, nil, trace)
		return nil
	}
	old, ok := s.Get(key.Namespace, key.Name)
	if ok {
		switch {
		case old.GetMetadata().GetUid() != o.GetMetadata().GetUid():
			s.change(key, nil, nil, trace)
		case object.Revision(o) <= object.Revision(old):
			// A snapshot repeats what is known.
			return nil
		}
	}
	kept, err := decodeAs(s.resource, encoded)
	if err != nil {
		return err
	}
	s.change(key, o, kept, trace)
	return nil
}

// change puts kept under key, or removes the key when it is nil, and tells the handlers. O is the same object, to be read from.
func (s *Store[T]) change(key object.Key, o, kept object.Object, trace *Trace) {
	var old, new T
	if o != nil {
		new = o.(T)
	}
	s.mu.Lock()
	old, existed := s.objects[key]
	if existed {
		s.index(old, func(m map[object.Key]struct{}) { delete(m, key) })
	}
	if o != nil {
		s.objects[key] = kept.(T)
		s.index(new, func(m map[object.Key]struct{}) { m[key] = struct{}{} })
	} else {
		delete(s.objects, key)
	}
	s.mu.Unlock()
	if !existed && o == nil {
		return
	}
	for _, h := range s.handlers {
		h(old, new, trace)
	}
}

// index calls f with the bucket of every value that o has in every index, and forgets buckets that are empty then.
func (s *Store[T]) index(o T, f func(map[object.Key]struct{})) {
	for name, values := range s.options.Indexes {
		buckets := s.indexes[name]
		for _, v := range values(o) {
			if buckets[v] == nil {
				buckets[v] = map[object.Key]struct{}{}
			}
			f(buckets[v])
			if len(buckets[v]) == 0 {
				delete(buckets, v)
			}
		}
	}
}
