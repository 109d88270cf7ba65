package controllermanager_test

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver"
	controllermanager "dhow.dev/services/controller-manager"
	"dhow.dev/services/store"
)

// patience bounds waits for conditions; nothing measures it.
const patience = 60 * time.Second

// cluster is a store in memory, an API server, the controllers, and nodes that only pretend to run pods, in this process.
type cluster struct {
	t      testing.TB
	ctx    context.Context
	memory *transport.Memory
	conn   *grpc.ClientConn
}

// newCluster starts a cluster; change may adapt the controllers' configuration.
func newCluster(t testing.TB, change func(*controllermanager.Config)) *cluster {
	t.Helper()
	c := newControlPlane(t)
	c.startControllers(change)
	return c
}

// newControlPlane starts a cluster without controllers.
func newControlPlane(t testing.TB) *cluster {
	t.Helper()
	return newControlPlaneWith(t, nil)
}

// newControlPlaneWith is newControlPlane with a changed configuration of the API server.
func newControlPlaneWith(t testing.TB, change func(*apiserver.Config)) *cluster {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	c := &cluster{t: t, ctx: ctx, memory: transport.NewMemory()}
	c.start("store", func(ctx context.Context) error {
		return store.Run(ctx, store.Config{Listener: c.memory.Listen("store"), Credentials: c.memory.ServerCredentials(), Memory: true})
	})
	started := make(chan struct{})
	c.start("apiserver", func(ctx context.Context) error {
		config := apiserver.Config{
			Listener: c.memory.Listen("apiserver"), Credentials: c.memory.ServerCredentials(),
			Store:   c.dial("store", identity.Identity{Name: identity.APIServer}),
			KeyFile: filepath.Join(t.TempDir(), "keys"), AdvertiseAddress: "apiserver",
			Started: func() { close(started) },
		}
		if change != nil {
			change(&config)
		}
		return apiserver.Run(ctx, config)
	})
	c.await("the API server", started)
	c.conn = c.dial("apiserver", identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}})
	return c
}

// startControllers starts the service under test and waits until it works.
func (c *cluster) startControllers(change func(*controllermanager.Config)) (stop func()) {
	c.t.Helper()
	started := make(chan struct{})
	var once sync.Once
	config := controllermanager.Config{
		APIServer: c.dial("apiserver", identity.Identity{Name: identity.ControllerManager}), CACert: []byte("a certificate"),
		Logger:             slog.New(slog.NewTextHandler(c.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		EvictionStartGrace: -1, OrphanQuarantine: -1,
		Started: func() { once.Do(func() { close(started) }) },
	}
	if change != nil {
		change(&config)
	}
	stop = c.start("controller-manager", func(ctx context.Context) error { return controllermanager.Run(ctx, config) })
	c.await("the controllers", started)
	return stop
}

func (c *cluster) await(what string, happened <-chan struct{}) {
	c.t.Helper()
	select {
	case <-happened:
	case <-c.ctx.Done():
		c.t.Fatalf("%s: not in time", what)
	}
}

// start runs a service until the test ends, or until the returned function is called.
func (c *cluster) start(name string, run func(context.Context) error) (stop func()) {
	c.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := run(ctx); err != nil {
			c.t.Errorf("%s: %v", name, err)
		}
	}()
	stop = func() {
		cancel()
		<-ended
	}
	c.t.Cleanup(stop)
	return stop
}

func (c *cluster) dial(name string, who identity.Identity) *grpc.ClientConn {
	c.t.Helper()
	conn, err := c.memory.Dial(name, who)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

// create writes a new object and returns it.
func create[T object.Object](c *cluster, o T) T {
	c.t.Helper()
	created, err := client.For[T](c.conn).Create(c.ctx, o, nil)
	if err != nil {
		c.t.Fatalf("create %T %s: %v", o, object.KeyOf(o), err)
	}
	return created
}

func get[T object.Object](c *cluster, namespace, name string) T {
	c.t.Helper()
	o, err := client.For[T](c.conn).Get(c.ctx, namespace, name)
	if err != nil {
		c.t.Fatalf("get %T %s/%s: %v", o, namespace, name, err)
	}
	return o
}

// edit changes an object, again until nobody is in between.
func edit[T object.Object](c *cluster, namespace, name string, change func(T)) T {
	c.t.Helper()
	for {
		o := get[T](c, namespace, name)
		change(o)
		updated, err := client.For[T](c.conn).Update(c.ctx, o, nil)
		if apierrors.IsConflict(err) {
			continue
		}
		if err != nil {
			c.t.Fatalf("update %T %s/%s: %v", o, namespace, name, err)
		}
		return updated
	}
}

func remove[T object.Object](c *cluster, namespace, name string, options *metav1.DeletionOptions) {
	c.t.Helper()
	if _, err := client.For[T](c.conn).Delete(c.ctx, namespace, name, options); err != nil {
		c.t.Fatalf("delete %s/%s: %v", namespace, name, err)
	}
}

func list[T object.Object](c *cluster, namespace, selector string) []T {
	c.t.Helper()
	l, err := client.For[T](c.conn).List(c.ctx, metav1.ListRequest_builder{Namespace: namespace, LabelSelector: selector}.Build())
	if err != nil {
		c.t.Fatalf("list: %v", err)
	}
	return l.Items
}

// eventually waits until the objects of a kind in a namespace satisfy a condition, looking whenever one of them changes.
func eventually[T object.Object](c *cluster, namespace, what string, ok func([]T) bool) []T {
	c.t.Helper()
	watch, err := client.For[T](c.conn).Watch(c.ctx, metav1.WatchRequest_builder{Namespace: namespace, Conflate: true}.Build())
	if err != nil {
		c.t.Fatalf("watch: %v", err)
	}
	state := map[object.Key]T{}
	synced := false
	for {
		batch, err := watch.Next()
		if err != nil {
			var texts []string
			for _, o := range state {
				texts = append(texts, fmt.Sprint(o))
			}
			c.t.Fatalf("%s: not in time (%v); the last state:\n%s", what, err, strings.Join(texts, "\n"))
		}
		for _, change := range batch.Changes {
			if change.Type == metav1.EventType_EVENT_TYPE_DELETED {
				delete(state, object.KeyOf(change.Object))
			} else {
				state[object.KeyOf(change.Object)] = change.Object
			}
		}
		if synced = synced || batch.Synced; !synced {
			continue
		}
		all := make([]T, 0, len(state))
		for _, o := range state {
			all = append(all, o)
		}
		if ok(all) {
			return all
		}
	}
}

// observe calls a function with all objects of a kind in a namespace at every change, one at a time, until the test ends, which fails with the first error.
// It returns when the function has seen the first state.
func observe[T object.Object](c *cluster, namespace string, check func([]T) error) {
	c.t.Helper()
	synced := make(chan struct{})
	c.start("observer", func(ctx context.Context) error {
		watch, err := client.For[T](c.conn).Watch(ctx, metav1.WatchRequest_builder{Namespace: namespace}.Build())
		if err != nil {
			return err
		}
		state := map[object.Key]T{}
		for first := true; ; {
			batch, err := watch.Next()
			if ctx.Err() != nil {
				return nil
			}
			if err != nil {
				return err
			}
			for _, change := range batch.Changes {
				if change.Type == metav1.EventType_EVENT_TYPE_DELETED {
					delete(state, object.KeyOf(change.Object))
				} else {
					state[object.KeyOf(change.Object)] = change.Object
				}
			}
			all := make([]T, 0, len(state))
			for _, o := range state {
				all = append(all, o)
			}
			if first && !batch.Synced {
				continue
			}
			if err := check(all); err != nil {
				return fmt.Errorf("revision %d: %w", batch.Revision, err)
			}
			if first {
				first = false
				close(synced)
			}
		}
	})
	c.await("the observer", synced)
}

// eventuallyOne waits until one object satisfies a condition.
func eventuallyOne[T object.Object](c *cluster, namespace, name, what string, ok func(T) bool) T {
	c.t.Helper()
	var found T
	eventually(c, namespace, what, func(all []T) bool {
		for _, o := range all {
			if o.GetMetadata().GetName() == name && ok(o) {
				found = o
				return true
			}
		}
		return false
	})
	return found
}

// gone waits until an object does not exist.
func gone[T object.Object](c *cluster, namespace, name string) {
	c.t.Helper()
	eventually(c, namespace, name+" is gone", func(all []T) bool {
		for _, o := range all {
			if o.GetMetadata().GetName() == name {
				return false
			}
		}
		return true
	})
}

// kubelet pretends to be the scheduler and the agents of all nodes that are up: it binds pods, makes them ready and ends them.
type kubelet struct {
	c     *cluster
	nodes []string
	next  atomic.Uint32
	// behave, if set, says whether a bound pod becomes ready.
	behave func(*corev1.Pod) bool
	// ends, if set, says how a running pod ends: phase and exit code; it goes on while the phase is empty.
	ends func(*corev1.Pod) (phase string, code int32)
	mu   sync.Mutex
	down map[string]bool
}

// startKubelet creates the nodes and plays their agents until the test ends.
func (c *cluster) startKubelet(behave func(*corev1.Pod) bool, nodes ...string) *kubelet {
	c.t.Helper()
	return c.startKubeletWith(&kubelet{behave: behave}, nodes...)
}

// startKubeletWith is startKubelet with all that can be said of how pods behave.
func (c *cluster) startKubeletWith(k *kubelet, nodes ...string) *kubelet {
	c.t.Helper()
	for _, n := range nodes {
		create(c, corev1.Node_builder{
			Metadata: metav1.ObjectMeta_builder{Name: proto.String(n), Labels: map[string]string{"kubernetes.io/hostname": n}}.Build(),
			Status:   corev1.NodeStatus_builder{Conditions: []*corev1.NodeCondition{nodeReady("True")}}.Build(),
		}.Build())
	}
	k.c, k.nodes, k.down = c, nodes, map[string]bool{}
	c.start("kubelet", k.run)
	return k
}

func nodeReady(status string) *corev1.NodeCondition {
	now := &metav1.Time{}
	now.SetSeconds(time.Now().Unix())
	return corev1.NodeCondition_builder{
		Type: proto.String("Ready"), Status: proto.String(status), Reason: proto.String("Test"), Message: proto.String("test"), LastTransitionTime: now,
	}.Build()
}

// stop makes a node unreachable, as the API server does when its session is lost.
func (k *kubelet) stop(node string) {
	k.c.t.Helper()
	k.mu.Lock()
	k.down[node] = true
	k.mu.Unlock()
	k.setReady(node, "Unknown")
}

func (k *kubelet) setReady(node, status string) {
	k.c.t.Helper()
	k.setConditions(node, nodeReady(status))
}

// setConditions gives a node these conditions and no others.
func (k *kubelet) setConditions(node string, conditions ...*corev1.NodeCondition) {
	k.c.t.Helper()
	for {
		n := get[*corev1.Node](k.c, "", node)
		n.GetStatus().SetConditions(conditions)
		if k.updateStatus(n) {
			return
		}
	}
}

// updateStatus writes a node's status and returns false when the node has changed meanwhile.
func (k *kubelet) updateStatus(n *corev1.Node) bool {
	k.c.t.Helper()
	_, err := client.For[*corev1.Node](k.c.conn).UpdateStatus(k.c.ctx, n)
	if err != nil && !apierrors.IsConflict(err) {
		k.c.t.Fatal(err)
	}
	return err == nil
}

func (k *kubelet) isDown(node string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.down[node]
}

func (k *kubelet) run(ctx context.Context) error {
	pods := client.For[*corev1.Pod](k.c.conn)
	watch, err := pods.Watch(ctx, &metav1.WatchRequest{})
	if err != nil {
		return err
	}
	for {
		batch, err := watch.Next()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		var bindings []*corev1.PodBindRequest_Binding
		for _, change := range batch.Changes {
			p := change.Object
			if change.Type == metav1.EventType_EVENT_TYPE_DELETED {
				continue
			}
			m := p.GetMetadata()
			node := p.GetSpec().GetNodeName()
			switch {
			case node == "":
				if n := k.choose(p); n != "" && !object.IsDeleted(p) {
					bindings = append(bindings, corev1.PodBindRequest_Binding_builder{
						Namespace: m.GetNamespace(), Name: m.GetName(), Uid: m.GetUid(), NodeName: n,
					}.Build())
				}
			case k.isDown(node):
			case object.IsDeleted(p) && len(p.GetMetadata().GetFinalizers()) > 0 && !ended(p):
				if err := k.end(ctx, p, "Failed", 137); err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
					return err
				}
			case object.IsDeleted(p):
				_, err := pods.Delete(ctx, m.GetNamespace(), m.GetName(), metav1.DeletionOptions_builder{GracePeriodSeconds: proto.Int64(0), Uid: m.GetUid()}.Build())
				if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil {
					return err
				}
			case ended(p):
			case p.GetStatus().GetPhase() == "Running":
				if k.ends == nil {
					continue
				}
				if phase, code := k.ends(p); phase != "" {
					if err := k.end(ctx, p, phase, code); err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
						return err
					}
				}
			default:
				if err := k.started(ctx, p); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) && ctx.Err() == nil {
					return err
				}
			}
		}
		if len(bindings) > 0 {
			if _, err := corev1.NewPodsClient(k.c.conn).Bind(ctx, corev1.PodBindRequest_builder{Bindings: bindings}.Build()); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}

// choose returns the node that the pod requires by name, or the next that is up, in turn; "" when none is.
func (k *kubelet) choose(p *corev1.Pod) string {
	for _, t := range p.GetSpec().GetAffinity().GetNodeAffinity().GetRequiredDuringSchedulingIgnoredDuringExecution().GetNodeSelectorTerms() {
		for _, r := range t.GetMatchFields() {
			if n := r.GetValues()[0]; slices.Contains(k.nodes, n) && !k.isDown(n) {
				return n
			}
			return ""
		}
	}
	for range k.nodes {
		n := k.nodes[int(k.next.Add(1))%len(k.nodes)]
		if !k.isDown(n) {
			return n
		}
	}
	return ""
}

// started says that the pod runs, and that it is ready if it behaves.
func (k *kubelet) started(ctx context.Context, p *corev1.Pod) error {
	ready := "True"
	if k.behave != nil && !k.behave(p) {
		ready = "False"
	}
	n := k.next.Add(1)
	ip := fmt.Sprintf("10.244.%d.%d", n/250, n%250+2)
	now := &metav1.Time{}
	now.SetSeconds(time.Now().Unix())
	status := p.GetStatus()
	status.SetPhase("Running")
	status.SetStartTime(now)
	status.SetPodIp(ip)
	status.SetPodIps([]*corev1.PodIP{corev1.PodIP_builder{Ip: proto.String(ip)}.Build()})
	status.SetConditions(append(status.GetConditions(), corev1.PodCondition_builder{
		Type: proto.String("Ready"), Status: proto.String(ready), LastTransitionTime: now,
	}.Build()))
	_, err := client.For[*corev1.Pod](k.c.conn).UpdateStatus(ctx, p)
	if apierrors.IsConflict(err) {
		return nil // the change that was in between brings it back here
	}
	return err
}

func ended(p *corev1.Pod) bool {
	return p.GetStatus().GetPhase() == "Succeeded" || p.GetStatus().GetPhase() == "Failed"
}

// end says that the pod has ended, with an exit code.
func (k *kubelet) end(ctx context.Context, p *corev1.Pod, phase string, code int32) error {
	now := &metav1.Time{}
	now.SetSeconds(time.Now().Unix())
	status := p.GetStatus()
	status.SetPhase(phase)
	status.SetConditions(slices.DeleteFunc(status.GetConditions(), func(c *corev1.PodCondition) bool { return c.GetType() == "Ready" }))
	status.SetContainerStatuses([]*corev1.ContainerStatus{corev1.ContainerStatus_builder{
		Name:  proto.String(p.GetSpec().GetContainers()[0].GetName()),
		State: corev1.ContainerState_builder{Terminated: corev1.ContainerStateTerminated_builder{ExitCode: proto.Int32(code), FinishedAt: now}.Build()}.Build(),
	}.Build()})
	_, err := client.For[*corev1.Pod](k.c.conn).UpdateStatus(ctx, p)
	if apierrors.IsConflict(err) {
		return nil // the change that was in between brings it back here
	}
	return err
}

func names[T object.Object](objects []T) []string {
	var all []string
	for _, o := range objects {
		all = append(all, o.GetMetadata().GetName())
	}
	return all
}
