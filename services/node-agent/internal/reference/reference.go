// Package reference has the ConfigMaps and Secrets that the node's pods name, and no others: one watch each, held while a pod needs it. A node may
// not read more than that.
package reference

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"google.golang.org/grpc"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/node-agent/internal/env"
	"dhow.dev/services/node-agent/internal/status"
)

// Reconnecting waits between these, doubling, with jitter. A refusal counts like an outage: the API server may not have seen yet that a pod of
// this node names the object.
const (
	minBackoff = 50 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// ID names an object.
type ID struct {
	Secret          bool
	Namespace, Name string
}

// Of returns what a pod names.
func Of(p *corev1.Pod) []ID {
	namespace := p.GetMetadata().GetNamespace()
	seen := map[ID]bool{}
	var ids []ID
	add := func(secret bool, name string) {
		id := ID{Secret: secret, Namespace: namespace, Name: name}
		if name != "" && !seen[id] {
			seen[id] = true
			ids = append(ids, id)
		}
	}
	spec := p.GetSpec()
	for _, list := range [][]*corev1.Container{spec.GetInitContainers(), spec.GetContainers(), status.Ephemeral(p)} {
		for _, c := range list {
			for _, from := range c.GetEnvFrom() {
				add(false, from.GetConfigMapRef().GetLocalObjectReference().GetName())
				add(true, from.GetSecretRef().GetLocalObjectReference().GetName())
			}
			for _, e := range c.GetEnv() {
				add(false, e.GetValueFrom().GetConfigMapKeyRef().GetLocalObjectReference().GetName())
				add(true, e.GetValueFrom().GetSecretKeyRef().GetLocalObjectReference().GetName())
			}
		}
	}
	for _, v := range spec.GetVolumes() {
		source := v.GetVolumeSource()
		add(false, source.GetConfigMap().GetLocalObjectReference().GetName())
		add(true, source.GetSecret().GetSecretName())
		for _, part := range source.GetProjected().GetSources() {
			add(false, part.GetConfigMap().GetLocalObjectReference().GetName())
			add(true, part.GetSecret().GetLocalObjectReference().GetName())
		}
	}
	for _, s := range spec.GetImagePullSecrets() {
		add(true, s.GetName())
	}
	return ids
}

// Cache holds the objects.
type Cache struct {
	configMaps *client.Client[*corev1.ConfigMap]
	secrets    *client.Client[*corev1.Secret]
	logger     *slog.Logger
	changed    func(uids []string)

	mu      sync.Mutex
	ctx     context.Context
	entries map[ID]*entry
	// held is what each pod holds.
	held  map[string]map[ID]bool
	group sync.WaitGroup
}

// entry is one watched object.
type entry struct {
	cancel context.CancelFunc
	// synced is closed once it is known whether the object exists.
	synced chan struct{}
	known  bool
	object object.Object // nil: does not exist
	err    error         // why it is not known yet
	users  map[string]bool
}

// New returns a cache. changed is told which pods name an object that has changed; it must not block.
func New(conn grpc.ClientConnInterface, logger *slog.Logger, changed func(uids []string)) *Cache {
	return &Cache{
		configMaps: client.For[*corev1.ConfigMap](conn), secrets: client.For[*corev1.Secret](conn), logger: logger, changed: changed,
		entries: map[ID]*entry{}, held: map[string]map[ID]bool{},
	}
}

// Run watches until ctx ends.
func (c *Cache) Run(ctx context.Context) error {
	c.mu.Lock()
	c.ctx = ctx
	for id, e := range c.entries {
		c.start(id, e)
	}
	c.mu.Unlock()
	<-ctx.Done()
	c.group.Wait()
	return nil
}

// Hold watches what a pod names, and no longer what an earlier form of it named.
func (c *Cache) Hold(p *corev1.Pod) {
	uid := p.GetMetadata().GetUid()
	wanted := map[ID]bool{}
	for _, id := range Of(p) {
		wanted[id] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.held[uid]
	for id := range wanted {
		if !before[id] {
			c.hold(id, uid)
		}
	}
	for id := range before {
		if !wanted[id] {
			c.drop(id, uid)
		}
	}
	c.held[uid] = wanted
}

// Release ends a pod's holds.
func (c *Cache) Release(uid string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.held[uid] {
		c.drop(id, uid)
	}
	delete(c.held, uid)
}

func (c *Cache) hold(id ID, uid string) {
	e := c.entries[id]
	if e == nil {
		e = &entry{synced: make(chan struct{}), users: map[string]bool{}}
		c.entries[id] = e
		if c.ctx != nil {
			c.start(id, e)
		}
	}
	e.users[uid] = true
}

func (c *Cache) drop(id ID, uid string) {
	e := c.entries[id]
	delete(e.users, uid)
	if len(e.users) == 0 {
		if e.cancel != nil {
			e.cancel()
		}
		delete(c.entries, id)
	}
}

func (c *Cache) start(id ID, e *entry) {
	ctx, cancel := context.WithCancel(c.ctx)
	e.cancel = cancel
	c.group.Go(func() {
		if id.Secret {
			keep(ctx, c, id, e, c.secrets)
		} else {
			keep(ctx, c, id, e, c.configMaps)
		}
	})
}

// keep watches one object until ctx ends.
func keep[T object.Object](ctx context.Context, c *Cache, id ID, e *entry, from *client.Client[T]) {
	backoff := minBackoff
	for ctx.Err() == nil {
		progressed, err := watch(ctx, c, id, e, from)
		if ctx.Err() != nil {
			return
		}
		c.mu.Lock()
		e.err = err
		c.mu.Unlock()
		if progressed {
			backoff = minBackoff
		}
		c.logger.DebugContext(ctx, "watch of a referenced object ended, beginning again", logkey.Object(id.Namespace, id.Name), logkey.Err(err))
		select {
		case <-ctx.Done():
		case <-time.After(backoff/2 + rand.N(backoff/2)):
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

func watch[T object.Object](ctx context.Context, c *Cache, id ID, e *entry, from *client.Client[T]) (progressed bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	request := metav1.WatchRequest_builder{Namespace: id.Namespace, FieldSelector: "metadata.name=" + id.Name, Conflate: true}.Build()
	w, err := from.Watch(ctx, request)
	if err != nil {
		return false, err
	}
	// The first part of a watch is the state; what it does not mention does not exist.
	var current object.Object
	synced := false
	for {
		batch, err := w.Next()
		if err != nil {
			return progressed, err
		}
		progressed = true
		for _, change := range batch.Changes {
			current = change.Object
			if change.Type == metav1.EventType_EVENT_TYPE_DELETED {
				current = nil
			}
		}
		if synced = synced || batch.Synced; synced {
			c.set(e, current)
		}
	}
}

// set takes an object's state and tells the pods that name it if it is another than before.
func (c *Cache) set(e *entry, o object.Object) {
	c.mu.Lock()
	changed := e.known && revision(e.object) != revision(o)
	if !e.known {
		e.known = true
		close(e.synced)
	}
	e.object, e.err = o, nil
	var users []string
	for uid := range e.users {
		users = append(users, uid)
	}
	c.mu.Unlock()
	if changed && len(users) > 0 {
		c.changed(users)
	}
}

func revision(o object.Object) int64 {
	if o == nil {
		return 0
	}
	return object.Revision(o)
}

// get waits until it is known whether an object exists.
func (c *Cache) get(ctx context.Context, id ID) (object.Object, error) {
	c.mu.Lock()
	e := c.entries[id]
	c.mu.Unlock()
	if e == nil {
		return nil, fmt.Errorf("is not watched: no pod of this node names it")
	}
	select {
	case <-e.synced:
	case <-ctx.Done():
		c.mu.Lock()
		defer c.mu.Unlock()
		if e.err != nil && !apierrors.IsServiceUnavailable(e.err) {
			return nil, fmt.Errorf("is not known yet: %w", e.err)
		}
		return nil, fmt.Errorf("is not known yet: the API server did not answer: %w", ctx.Err())
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if e.object == nil {
		return nil, env.ErrMissing
	}
	return e.object, nil
}

// ConfigMap returns a ConfigMap that a held pod names, env.ErrMissing when it does not exist.
func (c *Cache) ConfigMap(ctx context.Context, namespace, name string) (*corev1.ConfigMap, error) {
	o, err := c.get(ctx, ID{Namespace: namespace, Name: name})
	if err != nil {
		return nil, err
	}
	return o.(*corev1.ConfigMap), nil
}

// Secret returns a Secret that a held pod names, env.ErrMissing when it does not exist.
func (c *Cache) Secret(ctx context.Context, namespace, name string) (*corev1.Secret, error) {
	o, err := c.get(ctx, ID{Secret: true, Namespace: namespace, Name: name})
	if err != nil {
		return nil, err
	}
	return o.(*corev1.Secret), nil
}
