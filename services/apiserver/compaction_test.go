package apiserver_test

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	clientfeatures "k8s.io/client-go/features"
	clientfeaturestesting "k8s.io/client-go/features/testing"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"dhow.dev/services/apiserver"
)

// relay is the network between a client and an API server: it can be cut, and lead elsewhere.
type relay struct {
	net.Listener
	mu     sync.Mutex
	target string
	open   map[net.Conn]struct{}
	served sync.WaitGroup
}

func newRelay(t *testing.T, target string) *relay {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{Listener: listener, target: target, open: map[net.Conn]struct{}{}}
	r.served.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			r.served.Go(func() { r.pass(conn) })
		}
	})
	t.Cleanup(func() {
		listener.Close()
		r.lead("")
		r.served.Wait()
	})
	return r
}

// lead cuts all connections; new ones go to the target, or nowhere.
func (r *relay) lead(target string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target = target
	for conn := range r.open {
		conn.Close()
	}
	clear(r.open)
}

func (r *relay) pass(conn net.Conn) {
	defer conn.Close()
	r.mu.Lock()
	target := r.target
	r.mu.Unlock()
	if target == "" {
		return
	}
	far, err := net.Dial("tcp", target)
	if err != nil {
		return
	}
	defer far.Close()
	r.mu.Lock()
	if r.target != target {
		r.mu.Unlock()
		return
	}
	r.open[conn], r.open[far] = struct{}{}, struct{}{}
	r.mu.Unlock()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(conn, far) // ends with either side
		conn.Close()
	})
	_, _ = io.Copy(far, conn)
	far.Close()
	back.Wait()
}

// lists counts how often a client asks for the whole state.
type lists struct {
	next http.RoundTripper
	mu   sync.Mutex
	seen int
}

func (l *lists) RoundTrip(r *http.Request) (*http.Response, error) {
	if q := r.URL.Query(); q.Get("watch") == "" || q.Get("sendInitialEvents") == "true" {
		l.mu.Lock()
		l.seen++
		l.mu.Unlock()
	}
	return l.next.RoundTrip(r)
}

// TestInformersSurviveCompaction: an informer is cut off, and what it has seen last is compacted away before it comes back, to an API server that remembers nothing. Its
// watch is refused, it reads the state anew, and its handler learns of every object what became of it, once.
func TestInformersSurviveCompaction(t *testing.T) {
	for _, streamed := range []bool{false, true} {
		for _, contentType := range []string{jsonType, protobufType} {
			t.Run(fmt.Sprintf("streamed=%v %s", streamed, contentType), func(t *testing.T) {
				clientfeaturestesting.SetFeatureDuringTest(t, clientfeatures.WatchListClient, streamed)
				surviveCompaction(t, contentType)
			})
		}
	}
}

func surviveCompaction(t *testing.T, contentType string) {
	k := newKubernetesCluster(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	maps := clientset(t, k.root).CoreV1().ConfigMaps("default")
	create := func(name string) *corev1.ConfigMap {
		t.Helper()
		m, err := maps.Create(ctx, labelled(name, nil), metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	for _, name := range []string{"changed", "deleted", "replaced", "same"} {
		create(name)
	}
	network := newRelay(t, strings.TrimPrefix(k.root.Host, "https://"))
	own := encodedAs(k.root, contentType)
	own.Host = "https://" + network.Addr().String()
	counted := &lists{}
	own.Wrap(func(next http.RoundTripper) http.RoundTripper {
		counted.next = next
		return counted
	})
	var mu sync.Mutex
	var seen []string
	news := make(chan struct{}, 1)
	note := func(event string, o any) {
		if gone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, event+" "+o.(*corev1.ConfigMap).Name)
		select {
		case news <- struct{}{}:
		default:
		}
	}
	until := func(enough func([]string) bool) []string {
		t.Helper()
		for {
			mu.Lock()
			have := slices.Clone(seen)
			mu.Unlock()
			if enough(have) {
				return have
			}
			select {
			case <-news:
			case <-ctx.Done():
				t.Fatalf("the informer has seen %v", have)
			}
		}
	}
	factory := informers.NewSharedInformerFactoryWithOptions(clientset(t, own), 0, informers.WithNamespace("default"))
	informer := factory.Core().V1().ConfigMaps().Informer()
	handler, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { note("added", o) },
		UpdateFunc: func(old, o any) {
			// A state that is read anew brings what is known once more.
			if old.(*corev1.ConfigMap).ResourceVersion != o.(*corev1.ConfigMap).ResourceVersion {
				note("updated", o)
			}
		},
		DeleteFunc: func(o any) { note("deleted", o) },
	})
	if err != nil {
		t.Fatal(err)
	}
	factory.Start(ctx.Done())
	defer factory.Shutdown()
	defer cancel()
	if !cache.WaitForCacheSync(ctx.Done(), handler.HasSynced) {
		t.Fatal("not synced")
	}
	mu.Lock()
	seen = nil
	mu.Unlock()

	network.lead("")
	for _, patch := range []string{`{"data":{"x":"1"}}`, `{"data":{"x":"2"}}`} {
		if _, err := maps.Patch(ctx, "changed", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"deleted", "replaced"} {
		if err := maps.Delete(ctx, name, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	create("replaced")
	create("new")
	last := create("last")
	k.compact(t)
	var other *rest.Config
	k.serve("apiserver-2", func(c *apiserver.Config) { other = k.door(t, c) })
	network.lead(strings.TrimPrefix(other.Host, "https://"))

	until(func(have []string) bool { return len(have) >= 5 && slices.Contains(have, "added "+last.Name) })
	// What would come twice has come before this.
	if _, err := maps.Patch(ctx, "same", types.MergePatchType, []byte(`{"data":{"x":"1"}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	told := until(func(have []string) bool { return slices.Contains(have, "updated same") })
	slices.Sort(told)
	want := []string{"added last", "added new", "deleted deleted", "updated changed", "updated replaced", "updated same"}
	if !slices.Equal(told, want) {
		t.Errorf("the handler was told %v, want %v", told, want)
	}
	counted.mu.Lock()
	defer counted.mu.Unlock()
	if counted.seen < 2 {
		t.Errorf("the state was read %d times: the watch was not refused", counted.seen)
	}
}
