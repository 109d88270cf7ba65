package static_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/node-agent/internal/static"
)

// world is an API server and a runtime for one folder. What happens is told on changed.
type world struct {
	folder  *static.Folder
	changed chan struct{}

	mu sync.Mutex
	// pods are the UIDs that run, mirrors those of the API server by name; published is the newest status by UID.
	pods      map[string]*corev1.Pod
	mirrors   map[string]*corev1.Pod
	published map[string]string
	next      int
}

func (w *world) tell() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (w *world) Set(_ context.Context, p *corev1.Pod, _ bool) {
	w.mu.Lock()
	w.pods[p.GetMetadata().GetUid()] = p
	w.mu.Unlock()
	w.tell()
}

func (w *world) Remove(uid string) {
	w.mu.Lock()
	delete(w.pods, uid)
	w.mu.Unlock()
	w.tell()
}

func (w *world) Has(uid string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.pods[uid] != nil
}

func (w *world) Create(_ context.Context, p *corev1.Pod) error {
	w.mu.Lock()
	w.next++
	p = proto.CloneOf(p)
	p.GetMetadata().SetUid(string(rune('a' + w.next)))
	w.mirrors[p.GetMetadata().GetName()] = p
	w.mu.Unlock()
	w.folder.Mirror(p, false)
	w.tell()
	return nil
}

func (w *world) Delete(_ context.Context, p *corev1.Pod) error {
	w.mu.Lock()
	delete(w.mirrors, p.GetMetadata().GetName())
	w.mu.Unlock()
	w.folder.Mirror(p, true)
	w.tell()
	return nil
}

func (w *world) Publish(_ context.Context, p *corev1.Pod, s *corev1.PodStatus) {
	w.mu.Lock()
	w.published[p.GetMetadata().GetUid()] = s.GetPhase()
	w.mu.Unlock()
	w.tell()
}
func (w *world) Finish(ctx context.Context, p *corev1.Pod, s *corev1.PodStatus) { w.Publish(ctx, p, s) }
func (w *world) Forget(string)                                                  {}

// await waits until f holds, which is asked whenever something happens.
func (w *world) await(t *testing.T, what string, f func() bool) {
	t.Helper()
	limit := time.After(2 * time.Minute)
	for {
		w.mu.Lock()
		ok := f()
		w.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-w.changed:
		case <-limit:
			t.Fatal(what)
		}
	}
}

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestTheFolderIsWhatRuns(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "web.yaml", `{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {containers: [{name: c, image: "app:1"}]}}`)
	write(t, dir, "broken.yaml", `{kind: Pod`)
	write(t, dir, ".hidden", `{apiVersion: v1, kind: Pod, metadata: {name: hidden}, spec: {containers: [{name: c}]}}`)
	w := &world{changed: make(chan struct{}, 1), pods: map[string]*corev1.Pod{}, mirrors: map[string]*corev1.Pod{}, published: map[string]string{}}
	node := corev1.Node_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("n1"), Uid: proto.String("node-uid")}.Build()}.Build()
	folder, err := static.Open(static.Config{Dir: dir, NodeName: "n1", Pods: w, Mirrors: w, Node: func() (*corev1.Node, bool) { return node, true }, Reporter: w, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	w.folder = folder
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- folder.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	mirror := func() *corev1.Pod { return w.mirrors["web-n1"] }
	w.await(t, "the pod runs and is shown", func() bool { return len(w.pods) == 1 && mirror() != nil })
	w.mu.Lock()
	m := mirror()
	var p *corev1.Pod
	for _, p = range w.pods {
	}
	w.mu.Unlock()
	first := p.GetMetadata().GetUid()
	if a := m.GetMetadata().GetAnnotations(); a["kubernetes.io/config.mirror"] != first || a["kubernetes.io/config.source"] != "file" || m.GetMetadata().GetUid() == first ||
		m.GetMetadata().GetOwnerReferences()[0].GetUid() != "node-uid" || m.GetSpec().GetNodeName() != "n1" || m.GetMetadata().GetNamespace() != "default" {
		t.Errorf("%v", m)
	}
	if !static.IsMirror(m) || static.IsMirror(p) {
		t.Error("the mirror is taken for the pod")
	}
	folder.Publish(ctx, p, corev1.PodStatus_builder{Phase: proto.String("Running")}.Build())
	w.await(t, "its status is the mirror's", func() bool { return w.published[m.GetMetadata().GetUid()] == "Running" })

	// Who deletes the mirror deletes nothing: it comes back, with the status.
	going := proto.CloneOf(m)
	going.GetMetadata().SetDeletionTimestamp(metav1.Time_builder{Seconds: proto.Int64(1)}.Build())
	folder.Mirror(going, false)
	w.await(t, "the mirror is made again", func() bool {
		return mirror() != nil && mirror().GetMetadata().GetUid() != m.GetMetadata().GetUid() && w.published[mirror().GetMetadata().GetUid()] == "Running" && w.pods[first] != nil
	})

	write(t, dir, "web.yaml", `{apiVersion: v1, kind: Pod, metadata: {name: web}, spec: {containers: [{name: c, image: "app:2"}]}}`)
	w.await(t, "a changed file is another pod", func() bool {
		return len(w.pods) == 1 && w.pods[first] == nil && mirror() != nil && mirror().GetSpec().GetContainers()[0].GetImage() == "app:2"
	})
	other := corev1.Pod_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("other"), Uid: proto.String("other")}.Build()}.Build()
	if kept, lost := folder.Restored([]*corev1.Pod{p, other}); len(kept) != 1 || kept[0] != other || len(lost) != 1 || lost[0] != p {
		t.Errorf("kept %v, lost %v", kept, lost)
	}
	if err := os.Remove(filepath.Join(dir, "web.yaml")); err != nil {
		t.Fatal(err)
	}
	w.await(t, "without the file nothing is left", func() bool { return len(w.pods) == 0 && mirror() == nil })
}
