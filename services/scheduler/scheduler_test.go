package scheduler_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	coordinationv1 "dhow.dev/gen/go/dhow/coordination/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	schedulerv1 "dhow.dev/gen/go/dhow/scheduler/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver"
	"dhow.dev/services/scheduler"
	"dhow.dev/services/scheduler/internal/fixture"
	"dhow.dev/services/store"
)

// patience bounds waits for conditions; nothing measures it.
const patience = time.Minute

// world is a control plane in this process: a store in memory, an API server and a scheduler.
type world struct {
	t      testing.TB
	ctx    context.Context
	memory *transport.Memory
	pods   *client.Client[*corev1.Pod]
	nodes  *client.Client[*corev1.Node]
	admin  *grpc.ClientConn
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, memory: transport.NewMemory()}
	var cancel context.CancelFunc
	w.ctx, cancel = context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	w.start("store", func(ctx context.Context) error {
		return store.Run(ctx, store.Config{Listener: w.memory.Listen("store"), Credentials: w.memory.ServerCredentials(), Memory: true})
	})
	started := make(chan struct{})
	w.start("apiserver", func(ctx context.Context) error {
		return apiserver.Run(ctx, apiserver.Config{
			Listener: w.memory.Listen("apiserver"), Credentials: w.memory.ServerCredentials(), KeyFile: filepath.Join(t.TempDir(), "keys"),
			Store:     w.dial("store", identity.Identity{Name: identity.APIServer}),
			Scheduler: w.dial("scheduler", identity.Identity{Name: identity.APIServer}),
			Started:   func() { close(started) },
		})
	})
	select {
	case <-started:
	case <-w.ctx.Done():
		t.Fatal("the API server has not started")
	}
	w.admin = w.dial("apiserver", identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}})
	w.pods, w.nodes = client.For[*corev1.Pod](w.admin), client.For[*corev1.Node](w.admin)
	return w
}

func (w *world) start(name string, run func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := run(ctx); err != nil {
			w.t.Errorf("%s: %v", name, err)
		}
	}()
	stop = func() {
		cancel()
		<-ended
	}
	w.t.Cleanup(stop)
	return stop
}

func (w *world) dial(name string, who identity.Identity) *grpc.ClientConn {
	w.t.Helper()
	conn, err := w.memory.Dial(name, who)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close() })
	return conn
}

func (w *world) schedule(change func(*scheduler.Config)) (stop func()) {
	config := scheduler.Config{
		Listener: w.memory.Listen("scheduler"), Credentials: w.memory.ServerCredentials(),
		APIServer: w.dial("apiserver", identity.Identity{Name: identity.Scheduler}),
	}
	if change != nil {
		change(&config)
	}
	return w.start("scheduler", func(ctx context.Context) error { return scheduler.Run(ctx, config) })
}

func (w *world) node(name, cpu string) {
	w.t.Helper()
	o := fixture.Node(fmt.Sprintf(`{"metadata":{"name":%q,"labels":{"kubernetes.io/hostname":%q}},"status":{
		"capacity":{"cpu":%q,"memory":"8Gi","pods":"110"},"allocatable":{"cpu":%q,"memory":"8Gi","pods":"110"},
		"conditions":[{"type":"Ready","status":"True"}]}}`, name, name, cpu, cpu)) // one that is not ready is tainted until a controller has seen it
	created, err := w.nodes.Create(w.ctx, o, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	created.SetStatus(o.GetStatus())
	if _, err := w.nodes.UpdateStatus(w.ctx, created); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) pod(name, spec string) {
	w.t.Helper()
	o := fixture.Pod(fmt.Sprintf(`{"metadata":{"namespace":"default","name":%q,"labels":{"app":"web"}},"spec":%s}`, name, spec))
	if _, err := w.pods.Create(w.ctx, o, nil); err != nil {
		w.t.Fatal(err)
	}
}

// until watches a pod until it is as wanted.
func (w *world) until(name string, wanted func(*corev1.Pod) bool) *corev1.Pod {
	w.t.Helper()
	request := &metav1.WatchRequest{}
	request.SetNamespace("default")
	request.SetFieldSelector("metadata.name=" + name)
	watch, err := w.pods.Watch(w.ctx, request)
	if err != nil {
		w.t.Fatal(err)
	}
	for {
		batch, err := watch.Next()
		if err != nil {
			w.t.Fatalf("pod %s never was as wanted: %v", name, err)
		}
		for _, c := range batch.Changes {
			if c.Object != nil && wanted(c.Object) {
				return c.Object
			}
		}
	}
}

func bound(p *corev1.Pod) bool { return p.GetSpec().GetNodeName() != "" }

func scheduled(p *corev1.Pod) *corev1.PodCondition {
	for _, c := range p.GetStatus().GetConditions() {
		if c.GetType() == "PodScheduled" {
			return c
		}
	}
	return nil
}

const small = `{"containers":[{"name":"app","image":"app","resources":{"requests":{"cpu":"500m","memory":"64Mi"}}}]}`

func TestPodsAreBound(t *testing.T) {
	w := newWorld(t)
	w.schedule(nil)
	w.node("node-1", "2")
	w.node("node-2", "2")
	on := map[string]int{}
	for i := range 8 {
		w.pod(fmt.Sprintf("web-%d", i), small)
	}
	for i := range 8 {
		p := w.until(fmt.Sprintf("web-%d", i), bound)
		on[p.GetSpec().GetNodeName()]++
		if c := scheduled(p); c.GetStatus() != "True" {
			t.Errorf("pod %s: condition PodScheduled %v", p.GetMetadata().GetName(), c)
		}
	}
	if on["node-1"] != 4 || on["node-2"] != 4 {
		t.Errorf("8 pods that fill both nodes are spread %v", on)
	}
	w.event("web-0", "Scheduled")
}

// event waits for an event about a pod.
func (w *world) event(pod, reason string) *corev1.Event {
	w.t.Helper()
	request := &metav1.WatchRequest{}
	request.SetNamespace("default")
	watch, err := client.For[*corev1.Event](w.admin).Watch(w.ctx, request)
	if err != nil {
		w.t.Fatal(err)
	}
	for {
		batch, err := watch.Next()
		if err != nil {
			w.t.Fatalf("no event %s of pod %s: %v", reason, pod, err)
		}
		for _, c := range batch.Changes {
			if c.Object.GetInvolvedObject().GetName() == pod && c.Object.GetReason() == reason {
				return c.Object
			}
		}
	}
}

func TestUnschedulablePodSaysWhyAndRunsOnceItCan(t *testing.T) {
	w := newWorld(t)
	w.schedule(nil)
	w.node("node-1", "2")
	w.pod("big", `{"containers":[{"name":"app","image":"app","resources":{"requests":{"cpu":"3"}}}]}`)
	p := w.until("big", func(p *corev1.Pod) bool { return scheduled(p).GetReason() == "Unschedulable" })
	if message := scheduled(p).GetMessage(); message != "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling." {
		t.Errorf("message %q", message)
	}
	w.event("big", "FailedScheduling")

	answers := w.explain("big", true)
	answer, err := answers.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if answer.GetState() != schedulerv1.PodState_POD_STATE_PENDING || len(answer.GetRejections()) != 1 {
		t.Fatalf("answer %v", answer)
	}
	if r := answer.GetRejections()[0]; r.GetFilter() != "NodeResourcesFit" || r.GetReason() != "Insufficient cpu" || !slices.Equal(r.GetNodes(), []string{"node-1"}) {
		t.Errorf("rejection %v", r)
	}
	if len(answer.GetSuggestions()) != 1 || answer.GetSuggestions()[0].GetText() != "lower the cpu request of container app from 3 to 2" {
		t.Errorf("suggestions %v", answer.GetSuggestions())
	}

	w.node("node-2", "4")
	if p := w.until("big", bound); p.GetSpec().GetNodeName() != "node-2" {
		t.Errorf("bound to %s", p.GetSpec().GetNodeName())
	}
	for answer.GetState() != schedulerv1.PodState_POD_STATE_SCHEDULED {
		if answer, err = answers.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if answer.GetNodeName() != "node-2" || len(answer.GetScores()) != 1 || answer.GetScores()[0].GetTotal() <= 0 {
		t.Errorf("answer %v", answer)
	}
}

func (w *world) explain(name string, follow bool) grpc.ServerStreamingClient[schedulerv1.ExplainResponse] {
	w.t.Helper()
	request := &schedulerv1.ExplainRequest{}
	request.SetNamespace("default")
	request.SetName(name)
	request.SetFollow(follow)
	answers, err := schedulerv1.NewSchedulerClient(w.admin).Explain(w.ctx, request)
	if err != nil {
		w.t.Fatal(err)
	}
	return answers
}

func TestExplainNamesWhatIsMissing(t *testing.T) {
	w := newWorld(t)
	w.schedule(nil)
	if _, err := w.explain("absent", false).Recv(); err == nil || !apierrors.IsNotFound(fromGRPC(err)) {
		t.Errorf("explain of an absent pod: %v", err)
	}
}

func TestOnlyAPIServersMayAsk(t *testing.T) {
	w := newWorld(t)
	w.schedule(nil)
	request := &schedulerv1.ExplainRequest{}
	request.SetNamespace("default")
	request.SetName("any")
	answers, err := schedulerv1.NewSchedulerClient(w.dial("scheduler", identity.Identity{Name: "system:node:n1", Groups: []string{identity.Nodes}})).Explain(w.ctx, request)
	if err == nil {
		_, err = answers.Recv()
	}
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("a node asks: %v", err)
	}
}

func TestOtherSchedulersPodsAreLeftAlone(t *testing.T) {
	w := newWorld(t)
	w.schedule(nil)
	w.node("node-1", "2")
	w.pod("other", `{"schedulerName":"other","containers":[{"name":"app","image":"app"}]}`)
	w.pod("mine", small)
	w.until("mine", bound)
	p, err := w.pods.Get(w.ctx, "default", "other")
	if err != nil || bound(p) || scheduled(p) != nil {
		t.Errorf("the other scheduler's pod: %v %v", p, err)
	}
}

func TestGatedPodWaits(t *testing.T) {
	w := newWorld(t)
	w.schedule(nil)
	w.node("node-1", "2")
	w.pod("gated", `{"schedulingGates":[{"name":"example.com/wait"}],"containers":[{"name":"app","image":"app"}]}`)
	w.until("gated", func(p *corev1.Pod) bool { return scheduled(p).GetReason() == "SchedulingGated" })
	p, err := w.pods.Get(w.ctx, "default", "gated")
	if err != nil {
		t.Fatal(err)
	}
	p.GetSpec().SetSchedulingGates(nil)
	p.GetMetadata().ClearResourceVersion()
	if _, err := w.pods.Update(w.ctx, p, nil); err != nil {
		t.Fatal(err)
	}
	w.until("gated", bound)
}

func TestSecondSchedulerTakesOver(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", "2")
	elect := func(name string) func(*scheduler.Config) {
		return func(c *scheduler.Config) { c.LeaderElect, c.Instance, c.LeaseDuration = true, name, 4*time.Second }
	}
	stop := w.schedule(elect("first"))
	w.pod("one", small)
	w.until("one", bound)
	lease, err := client.For[*coordinationv1.Lease](w.admin).Get(w.ctx, "kube-system", "kube-scheduler")
	if err != nil || lease.GetSpec().GetHolderIdentity() != "first" || lease.GetSpec().GetLeaseDurationSeconds() != 4 {
		t.Errorf("the lease: %v, %v", lease, err)
	}
	w.schedule(elect("second"))
	stop()
	w.pod("two", small)
	w.until("two", bound)
}

func fromGRPC(err error) error { return apistatus.FromGRPC(err) }

// faulty is a connection whose calls of Bind go wrong.
type faulty struct {
	grpc.ClientConnInterface
	mu    sync.Mutex
	fault func(call int) (send bool, err error)
	calls int
}

func (f *faulty) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	if method != corev1.Pods_Bind_FullMethodName {
		return f.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	}
	f.mu.Lock()
	f.calls++
	send, fault := f.fault(f.calls)
	f.mu.Unlock()
	var err error
	if send {
		err = f.ClientConnInterface.Invoke(ctx, method, args, reply, opts...)
	}
	return errors.Join(fault, err)
}

func TestLostCallsOfBindAreMadeGood(t *testing.T) {
	for _, test := range []struct {
		name  string
		fault func(call int) (bool, error)
	}{
		{"not sent", func(call int) (bool, error) { return call > 3, failFirst(call, 3) }},
		{"answer lost", func(call int) (bool, error) { return true, failFirst(call, 3) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.node("node-1", "2")
			w.schedule(func(c *scheduler.Config) {
				c.APIServer = &faulty{ClientConnInterface: c.APIServer, fault: test.fault}
			})
			for i := range 4 {
				w.pod(fmt.Sprintf("web-%d", i), small)
			}
			for i := range 4 {
				w.until(fmt.Sprintf("web-%d", i), bound)
			}
		})
	}
}

func failFirst(call, calls int) error {
	if call <= calls {
		return status.Error(codes.Unavailable, "the connection is gone")
	}
	return nil
}

// What a binding takes stays taken while its fate is unknown, and is free again when it failed for good.
func TestRoomOfAFailedBindingIsFreeAgain(t *testing.T) {
	w := newWorld(t)
	w.node("node-1", "1")
	w.schedule(nil)
	w.pod("first", `{"containers":[{"name":"app","image":"app","resources":{"requests":{"cpu":"1"}}}]}`)
	w.until("first", bound)
	w.pod("second", `{"containers":[{"name":"app","image":"app","resources":{"requests":{"cpu":"1"}}}]}`)
	w.until("second", func(p *corev1.Pod) bool { return scheduled(p).GetReason() == "Unschedulable" })
	options := &metav1.DeletionOptions{}
	options.SetGracePeriodSeconds(0)
	if _, err := w.pods.Delete(w.ctx, "default", "first", options); err != nil {
		t.Fatal(err)
	}
	w.until("second", bound)
}

func TestTraceOfThePodGoesOn(t *testing.T) {
	spans := tracetest.NewInMemoryExporter()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(spans))
	before, propagator := otel.GetTracerProvider(), otel.GetTextMapPropagator()
	otel.SetTracerProvider(provider)
	otel.SetTextMapPropagator(propagation.TraceContext{})
	t.Cleanup(func() {
		otel.SetTracerProvider(before)
		otel.SetTextMapPropagator(propagator)
	})
	w := newWorld(t)
	w.schedule(nil)
	w.node("node-1", "2")
	ctx, span := provider.Tracer("test").Start(w.ctx, "apply")
	o := fixture.Pod(`{"metadata":{"namespace":"default","name":"traced"},"spec":` + small + `}`)
	if _, err := w.pods.Create(ctx, o, nil); err != nil {
		t.Fatal(err)
	}
	span.End()
	w.until("traced", bound)
	w.event("traced", "Scheduled")
	found := map[string]bool{}
	for _, s := range spans.GetSpans() {
		if s.SpanContext.TraceID() == span.SpanContext().TraceID() {
			found[s.Name] = true
		}
	}
	for _, want := range []string{"scheduler.queue", "scheduler.plan", "scheduler.bind"} {
		if !found[want] {
			t.Errorf("no span %s in the trace of the pod's creation, which has %v", want, found)
		}
	}
}
