//go:build e2e

package reliability

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	kcorev1 "k8s.io/api/core/v1"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	watchtools "k8s.io/client-go/tools/watch"

	"dhow.dev/e2e/cluster"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
)

// objects are what the watched namespace has, and stretch is how many writes are made before and after each kill.
const (
	objects = 5
	prefix  = "m-"
	stretch = 40
)

// history is what a watcher has seen: of each object the number that it was last written with, and what was wrong.
type history struct {
	mu      sync.Mutex
	seen    map[string]int
	changes int
	wrong   []string
	last    time.Time
	longest time.Duration
	changed chan struct{}
}

func newHistory() *history {
	return &history{seen: map[string]int{}, changed: make(chan struct{}), last: time.Now()}
}

// note takes in one change: each object's numbers come one after the other. Objects that are not the writer's do not count.
func (h *history) note(name, number string) {
	if !strings.HasPrefix(name, prefix) {
		return
	}
	n, err := strconv.Atoi(number)
	h.mu.Lock()
	defer h.mu.Unlock()
	if err != nil || n != h.seen[name]+1 {
		h.wrong = append(h.wrong, fmt.Sprintf("%s: %q after %d", name, number, h.seen[name]))
	}
	h.seen[name] = n
	h.changes++
	now := time.Now()
	h.longest, h.last = max(h.longest, now.Sub(h.last)), now
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *history) fail(err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wrong = append(h.wrong, err.Error())
	close(h.changed)
	h.changed = make(chan struct{})
}

// await waits until everything was seen, or something was wrong.
func (h *history) await(t *testing.T, who string, want map[string]int) {
	t.Helper()
	timeout := time.After(cluster.Deadline)
	for {
		h.mu.Lock()
		done, changed := maps.Equal(h.seen, want) || len(h.wrong) > 0, h.changed
		seen, wrong := maps.Clone(h.seen), h.wrong
		h.mu.Unlock()
		if done {
			for _, w := range wrong {
				t.Errorf("%s: %s", who, w)
			}
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Errorf("%s has seen %v, not %v", who, seen, want)
			return
		}
	}
}

// watches: watchers of both APIs follow objects that are written without a break while the API servers are killed in turn. Each sees every change of every object once.
func watches(t *testing.T, c *cluster.Cluster, r *record) {
	ns := c.Namespace(t, "watches")
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
	apiservers := c.Services(t, "apiserver")
	reading := c.Dial(t, apiservers...)
	var from int64
	must(t, "list", func(ctx context.Context) error {
		list, err := client.For[*corev1.ConfigMap](reading).List(ctx, metav1.ListRequest_builder{Namespace: ns}.Build())
		from = list.Revision
		return err
	})
	histories := map[string]*history{}
	for _, who := range []string{"gRPC, one", "gRPC, another", "client-go by JSON", "client-go by protobuf"} {
		histories[who] = newHistory()
	}
	for _, who := range []string{"gRPC, one", "gRPC, another"} {
		conn := c.Dial(t, apiservers...)
		running.Go(func() { follow(ctx, conn, ns, from, histories[who]) })
	}
	for who, contentType := range map[string]string{"client-go by JSON": runtime.ContentTypeJSON, "client-go by protobuf": runtime.ContentTypeProtobuf} {
		clientset := kubernetes.NewForConfigOrDie(c.Kubernetes(t, contentType))
		running.Go(func() { followKubernetes(ctx, clientset, ns, from, histories[who]) })
	}
	lost := newHistory()
	nodes := c.Dial(t, apiservers...)
	running.Go(func() { followNodes(ctx, nodes, lost) })

	w := writer{conn: c.Dial(t, apiservers...), namespace: ns, written: map[string]int{}, count: count{changed: make(chan struct{}, 1)}, ended: make(chan struct{})}
	writing, rest := context.WithCancel(ctx)
	running.Go(func() { w.run(writing) })
	kills := 0
	for range 2 {
		for _, s := range apiservers {
			w.more(t, "the writer", stretch)
			s.Signal(t, syscall.SIGKILL)
			kills++
			w.more(t, "the writer", stretch)
			c.Serving(t, s)
		}
	}
	rest()
	<-w.ended
	if w.err != nil {
		t.Fatalf("a write: %v", w.err)
	}
	longest := map[bool]time.Duration{}
	total := 0
	for who, h := range histories {
		h.await(t, who, w.written)
		h.mu.Lock()
		total += h.changes
		of := who[:4] == "gRPC"
		longest[of] = max(longest[of], h.longest)
		h.mu.Unlock()
	}
	lost.mu.Lock()
	for _, wrong := range lost.wrong {
		t.Error(wrong)
	}
	lost.mu.Unlock()
	r.add(t, fmt.Sprintf("`kill -9` of the API servers in turn, %d times, under %d watchers: changes that one missed or saw twice", kills, len(histories)), fmt.Sprintf("0 of %d", total))
	r.add(t, "the longest time without a change in a watch by gRPC", seconds(longest[true]))
	r.add(t, "the longest time without a change in a watch by client-go", seconds(longest[false]))
	r.add(t, "nodes that were taken for lost", "0")
}

// writer writes the next number into one object after the other.
type writer struct {
	conn      *grpc.ClientConn
	namespace string
	count
	// written is the last number of each object, err what could not be written. They belong to run until ended is closed.
	written map[string]int
	err     error
	ended   chan struct{}
}

// run writes until ctx ends; the write that was begun then is made, too. A write whose answer was lost is made again: that changes nothing when it was done.
func (w *writer) run(ctx context.Context) {
	defer close(w.ended)
	for i := 0; ctx.Err() == nil; i++ {
		name := fmt.Sprintf("%s%d", prefix, i%objects)
		w.written[name]++
		within, cancel := context.WithTimeout(context.WithoutCancel(ctx), cluster.Deadline)
		_, err := persist(within, func(ctx context.Context) error {
			return put(ctx, w.conn, w.namespace, name, strconv.Itoa(w.written[name]))
		})
		cancel()
		if err != nil {
			w.err = fmt.Errorf("%s: %w", name, err)
			return
		}
		w.add()
		select {
		case <-ctx.Done():
		case <-time.After(pace):
		}
	}
}

// follow watches by gRPC, and goes on after the last revision received when the server goes away.
func follow(ctx context.Context, conn grpc.ClientConnInterface, ns string, after int64, h *history) {
	for ctx.Err() == nil {
		err := func() error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			stream, err := corev1.NewConfigMapsClient(conn).Watch(ctx, metav1.WatchRequest_builder{Namespace: ns, AfterRevision: proto.Int64(after)}.Build())
			if err != nil {
				return err
			}
			for {
				response, err := stream.Recv()
				if err != nil {
					return err
				}
				for _, change := range response.GetChanges() {
					if change.GetRevision() <= after {
						return errors.New("a change came again")
					}
					h.note(change.GetObject().GetMetadata().GetName(), change.GetObject().GetData()["n"])
					after = change.GetRevision()
				}
				if !response.GetPartial() {
					after = response.GetRevision()
				}
			}
		}()
		if ctx.Err() == nil && !unavailable(err) {
			h.fail(err)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// followKubernetes watches as client-go does that never lists again: it resumes by resourceVersion, and ends when that is too old.
func followKubernetes(ctx context.Context, clientset kubernetes.Interface, ns string, after int64, h *history) {
	watcher, err := watchtools.NewRetryWatcherWithContext(ctx, strconv.FormatInt(after, 10), &cache.ListWatch{
		WatchFuncWithContext: func(ctx context.Context, options kmetav1.ListOptions) (watch.Interface, error) {
			return clientset.CoreV1().ConfigMaps(ns).Watch(ctx, options)
		},
	})
	if err != nil {
		h.fail(err)
		return
	}
	defer watcher.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case event, open := <-watcher.ResultChan():
			switch m, ok := event.Object.(*kcorev1.ConfigMap); {
			case !open:
				if ctx.Err() == nil {
					h.fail(errors.New("the watch has ended"))
				}
				return
			case event.Type == watch.Bookmark:
			case !ok:
				h.fail(fmt.Errorf("%s: %+v", event.Type, event.Object))
				return
			default:
				h.note(m.Name, m.Data["n"])
			}
		}
	}
}

// followNodes notes nodes that are not ready.
func followNodes(ctx context.Context, conn grpc.ClientConnInterface, h *history) {
	for ctx.Err() == nil {
		watch, err := client.For[*corev1.Node](conn).Watch(ctx, &metav1.WatchRequest{})
		for err == nil {
			var batch client.Batch[*corev1.Node]
			if batch, err = watch.Next(); err != nil {
				break
			}
			for _, change := range batch.Changes {
				for _, condition := range change.Object.GetStatus().GetConditions() {
					if condition.GetType() == "Ready" && condition.GetStatus() != "True" {
						h.fail(fmt.Errorf("node %s: %s", change.Object.GetMetadata().GetName(), condition.GetMessage()))
					}
				}
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}
