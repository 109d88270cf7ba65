// Package static runs the pods that a node finds in a folder of its own, whatever the API server says, and shows them there: each has a mirror pod, which
// carries its status and which nobody can change. A file that changes is another pod.
package static

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
	"google.golang.org/protobuf/proto"
	k8scorev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/node-agent/internal/pod"
)

const (
	// settle is how long the folder has to be quiet: editors write a file in several steps.
	settle = 100 * time.Millisecond
	// retry is when something that failed, or has to wait for a pod's end, is looked at again.
	retry = time.Second
	// relist is how often the folder is read without an event, as Kubernetes does: some file systems have none.
	relist = 20 * time.Second
)

// Pods runs pods.
type Pods interface {
	Set(ctx context.Context, p *corev1.Pod, restored bool)
	Remove(uid string)
	// Has says whether anything of a pod is left.
	Has(uid string) bool
}

// Mirrors writes mirror pods.
type Mirrors interface {
	Create(ctx context.Context, p *corev1.Pod) error
	Delete(ctx context.Context, p *corev1.Pod) error
}

// Config configures a Folder.
type Config struct {
	Dir, NodeName string
	Pods          Pods
	Mirrors       Mirrors
	// Node returns the node as the API server has it, whose UID owns mirror pods.
	Node func() (*corev1.Node, bool)
	// Reporter carries statuses to the API server.
	Reporter pod.Reporter
	Logger   *slog.Logger
}

// Folder is a folder with pods.
type Folder struct {
	config Config
	wake   chan struct{}

	mu sync.Mutex
	// wanted are the pods of the folder by name, running those that were given to Pods.
	wanted, running map[string]*corev1.Pod
	mirrors         map[string]*corev1.Pod
	statuses        map[string]*corev1.PodStatus // by UID of the static pod
}

// Open reads the folder, which it makes.
func Open(config Config) (*Folder, error) {
	f := &Folder{config: config, wake: make(chan struct{}, 1), running: map[string]*corev1.Pod{}, mirrors: map[string]*corev1.Pod{}, statuses: map[string]*corev1.PodStatus{}}
	if err := os.MkdirAll(config.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("static pods: %w", err)
	}
	wanted, err := f.read()
	if err != nil {
		return nil, err
	}
	f.wanted = wanted
	return f, nil
}

func key(p *corev1.Pod) string {
	return p.GetMetadata().GetNamespace() + "/" + p.GetMetadata().GetName()
}

// UIDs returns the UIDs of the folder's pods.
func (f *Folder) UIDs() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var uids []string
	for _, p := range f.wanted {
		uids = append(uids, p.GetMetadata().GetUid())
	}
	return uids
}

// read reads all pods. A file that holds none is told of and left out; when the folder itself cannot be read, all stays as it is.
func (f *Folder) read() (map[string]*corev1.Pod, error) {
	entries, err := os.ReadDir(f.config.Dir)
	if err != nil {
		return nil, fmt.Errorf("static pods: %w", err)
	}
	pods := map[string]*corev1.Pod{}
	for _, e := range entries {
		if e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		path := filepath.Join(f.config.Dir, e.Name())
		data, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		var p *corev1.Pod
		if err == nil {
			p, err = Decode(data, path, f.config.NodeName)
		}
		if err == nil && pods[key(p)] != nil {
			err = fmt.Errorf("another file has a pod %s", key(p))
		}
		if err != nil {
			f.config.Logger.Warn("file in the folder of static pods left out", "file", path, logkey.Err(err))
			continue
		}
		pods[key(p)] = p
	}
	return pods, nil
}

// Decode reads a pod from YAML or JSON and makes it the node's: with the node's name behind its own, and a UID made from all that it is.
func Decode(data []byte, path, node string) (*corev1.Pod, error) {
	var from k8scorev1.Pod
	if err := yaml.UnmarshalStrict(data, &from); err != nil {
		return nil, err
	}
	if from.Kind != "Pod" || from.APIVersion != "v1" || from.Name == "" || len(from.Spec.Containers) == 0 {
		return nil, errors.New("not a pod: want apiVersion v1, kind Pod, a name, and containers")
	}
	sum := sha256.New()
	for _, part := range []string{node, path, string(data)} {
		fmt.Fprintf(sum, "%d:%s", len(part), part)
	}
	uid := hex.EncodeToString(sum.Sum(nil)[:16])
	from.Name = strings.ToLower(from.Name + "-" + node)
	if from.Namespace == "" {
		from.Namespace = "default"
	}
	from.UID = ""
	from.Annotations = merged(from.Annotations, map[string]string{pod.AnnotationSource: "file", pod.AnnotationHash: uid})
	from.Spec.NodeName = node
	// Taints that appear later do not concern what the node's administrator has put here.
	from.Spec.Tolerations = append(from.Spec.Tolerations, k8scorev1.Toleration{Operator: k8scorev1.TolerationOpExists, Effect: k8scorev1.TaintEffectNoExecute})
	encoded, err := from.Marshal()
	if err != nil {
		return nil, err
	}
	p := &corev1.Pod{}
	if err := proto.Unmarshal(encoded, p); err != nil {
		return nil, err
	}
	p.GetMetadata().SetUid(uid)
	p.SetStatus(nil)
	return p, nil
}

func merged(a, b map[string]string) map[string]string {
	all := map[string]string{}
	for k, v := range a {
		all[k] = v
	}
	for k, v := range b {
		all[k] = v
	}
	return all
}

// IsMirror says whether a pod of the API server is only the picture of a static one.
func IsMirror(p *corev1.Pod) bool {
	_, is := p.GetMetadata().GetAnnotations()[pod.AnnotationMirror]
	return is
}

// Mirror takes what the API server says of a mirror pod: that it has it in this form, or with gone that it has it no more.
func (f *Folder) Mirror(p *corev1.Pod, gone bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	old := f.mirrors[key(p)]
	if gone {
		if old.GetMetadata().GetUid() == p.GetMetadata().GetUid() {
			delete(f.mirrors, key(p))
		}
		f.config.Reporter.Forget(p.GetMetadata().GetUid())
	} else {
		f.mirrors[key(p)] = p
		if old.GetMetadata().GetUid() != p.GetMetadata().GetUid() {
			f.show(context.Background(), f.running[key(p)])
		}
	}
	f.poke()
}

// show writes a static pod's last status onto its mirror, if it has both. f.mu is held.
func (f *Folder) show(ctx context.Context, p *corev1.Pod) {
	if p == nil {
		return
	}
	mirror, status := f.mirrors[key(p)], f.statuses[p.GetMetadata().GetUid()]
	if mirror != nil && status != nil && mirror.GetMetadata().GetAnnotations()[pod.AnnotationMirror] == p.GetMetadata().GetUid() {
		f.config.Reporter.Publish(ctx, mirror, status)
	}
}

// Publish implements pod.Reporter.
func (f *Folder) Publish(ctx context.Context, p *corev1.Pod, status *corev1.PodStatus) {
	if !pod.IsStatic(p) {
		f.config.Reporter.Publish(ctx, p, status)
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.statuses[p.GetMetadata().GetUid()] = status
	f.show(ctx, p)
}

// Finish implements pod.Reporter.
func (f *Folder) Finish(ctx context.Context, p *corev1.Pod, status *corev1.PodStatus) {
	if pod.IsStatic(p) {
		f.Publish(ctx, p, status)
		return
	}
	f.config.Reporter.Finish(ctx, p, status)
}

// Forget implements pod.Reporter.
func (f *Folder) Forget(uid string) {
	f.mu.Lock()
	delete(f.statuses, uid)
	f.mu.Unlock()
	f.config.Reporter.Forget(uid)
}

func (f *Folder) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// Run keeps pods and mirrors as the folder says until ctx ends. Pods run on then.
func (f *Folder) Run(ctx context.Context) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("static pods: %w", err)
	}
	defer func() { _ = watcher.Close() }()
	if err := watcher.Add(f.config.Dir); err != nil {
		return fmt.Errorf("static pods: %w", err)
	}
	changed := time.NewTimer(0)
	defer changed.Stop()
	again := time.NewTimer(retry)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-watcher.Events:
			changed.Reset(settle)
			continue
		case err := <-watcher.Errors:
			f.config.Logger.WarnContext(ctx, "events of the folder of static pods lost, reading it", logkey.Err(err))
			changed.Reset(0)
			continue
		case <-changed.C:
			changed.Reset(relist)
			if wanted, err := f.read(); err != nil {
				f.config.Logger.WarnContext(ctx, "folder of static pods not read, its pods stay", logkey.Err(err))
			} else {
				f.mu.Lock()
				f.wanted = wanted
				f.mu.Unlock()
			}
		case <-f.wake:
		case <-again.C:
		}
		again.Stop()
		if !f.reconcile(ctx) {
			again.Reset(retry)
		}
	}
}

// reconcile does what there is to do, and says whether all is as it should be.
func (f *Folder) reconcile(ctx context.Context) bool {
	done := f.runPods(ctx)
	f.mu.Lock()
	var create, remove []*corev1.Pod
	for k, m := range f.mirrors {
		p := f.running[k]
		if p == nil || m.GetMetadata().HasDeletionTimestamp() || m.GetMetadata().GetAnnotations()[pod.AnnotationMirror] != p.GetMetadata().GetUid() {
			remove = append(remove, m)
		}
	}
	for k, p := range f.running {
		if f.mirrors[k] == nil {
			create = append(create, p)
		}
	}
	f.mu.Unlock()
	for _, m := range remove {
		if err := f.config.Mirrors.Delete(ctx, m); err != nil {
			f.config.Logger.DebugContext(ctx, "mirror pod not deleted, trying again", logkey.Pod(m.GetMetadata().GetNamespace(), m.GetMetadata().GetName()), logkey.Err(err))
			done = false
		}
	}
	node, known := f.config.Node()
	for _, p := range create {
		if !known {
			return false
		}
		if err := f.config.Mirrors.Create(ctx, mirrorOf(p, node)); err != nil {
			f.config.Logger.DebugContext(ctx, "mirror pod not made, trying again", logkey.Pod(p.GetMetadata().GetNamespace(), p.GetMetadata().GetName()), logkey.Err(err))
			done = false
		}
	}
	return done
}

// runPods ends pods that the folder does not have any more and starts those that it has; another form of a pod waits for the end of the one before.
func (f *Folder) runPods(ctx context.Context) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	done := true
	for k, p := range f.running {
		uid := p.GetMetadata().GetUid()
		if w := f.wanted[k]; w != nil && w.GetMetadata().GetUid() == uid {
			continue
		}
		f.config.Pods.Remove(uid)
		if f.config.Pods.Has(uid) {
			done = false
			continue
		}
		delete(f.running, k)
	}
	for k, p := range f.wanted {
		if f.running[k] == nil {
			f.running[k] = p
			f.config.Pods.Set(ctx, p, false)
		}
	}
	return done
}

// mirrorOf is the picture of a pod.
func mirrorOf(p *corev1.Pod, node *corev1.Node) *corev1.Pod {
	m := proto.CloneOf(p)
	m.SetStatus(nil)
	md := m.GetMetadata()
	md.SetUid("")
	md.ClearUid()
	annotations := merged(md.GetAnnotations(), map[string]string{pod.AnnotationMirror: p.GetMetadata().GetUid()})
	md.SetAnnotations(annotations)
	md.SetOwnerReferences([]*metav1.OwnerReference{metav1.OwnerReference_builder{ApiVersion: proto.String("v1"), Kind: proto.String("Node"),
		Name: proto.String(node.GetMetadata().GetName()), Uid: proto.String(node.GetMetadata().GetUid()), Controller: proto.Bool(true)}.Build()})
	return m
}

// Restored leaves out those of the pods that an agent before this one ran, which the folder does not have any more.
func (f *Folder) Restored(pods []*corev1.Pod) (kept, lost []*corev1.Pod) {
	uids := f.UIDs()
	for _, p := range pods {
		switch {
		case !pod.IsStatic(p):
			kept = append(kept, p)
		case slices.Contains(uids, p.GetMetadata().GetUid()):
			// The folder starts it.
		default:
			lost = append(lost, p)
		}
	}
	return kept, lost
}
