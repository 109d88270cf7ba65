package event

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/apistatus"
)

// api takes events. It has no sockets, so that time can be the test's.
type api struct {
	mu     sync.Mutex
	events map[string]*corev1.Event
	calls  []string
	fail   []error
}

func (a *api) NewStream(context.Context, *grpc.StreamDesc, string, ...grpc.CallOption) (grpc.ClientStream, error) {
	return nil, errors.New("a recorder does not watch")
}

func (a *api) Invoke(_ context.Context, method string, args, reply any, _ ...grpc.CallOption) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	verb := method[strings.LastIndex(method, "/")+1:]
	a.calls = append(a.calls, verb)
	if len(a.fail) > 0 {
		err := a.fail[0]
		if a.fail = a.fail[1:]; err != nil {
			return apistatus.ToGRPC(err)
		}
	}
	if verb != "Commit" {
		e, err := a.write(verb == "Update", args.(*metav1.ObjectWriteRequest))
		if err != nil {
			return err
		}
		proto.Merge(reply.(proto.Message), e)
		return nil
	}
	before := maps.Clone(a.events)
	var names []string
	for _, op := range args.(*clusterv1.CommitRequest).GetOperations() {
		request := op.GetCreate()
		if op.HasUpdate() {
			request = op.GetUpdate()
		}
		e, err := a.write(op.HasUpdate(), request)
		if err != nil {
			a.events = before // all or none
			return err
		}
		names = append(names, e.GetMetadata().GetName())
	}
	slices.Sort(names)
	if len(slices.Compact(names)) != len(args.(*clusterv1.CommitRequest).GetOperations()) {
		return apistatus.ToGRPC(apierrors.NewBadRequest("an object is in the commit twice"))
	}
	return nil
}

func (a *api) write(update bool, request *metav1.ObjectWriteRequest) (*corev1.Event, error) {
	e := &corev1.Event{}
	if err := proto.Unmarshal(request.GetObject(), e); err != nil {
		return nil, err
	}
	name := e.GetMetadata().GetNamespace() + "/" + e.GetMetadata().GetName()
	events := schema.GroupResource{Resource: "events"}
	switch {
	case e.GetReason() == refusedReason:
		return nil, apistatus.ToGRPC(apierrors.NewForbidden(events, name, errors.New("the namespace is going")))
	case update && a.events[name] == nil:
		return nil, apistatus.ToGRPC(apierrors.NewNotFound(events, name))
	}
	a.events[name] = e
	return e, nil
}

// refusedReason is that of events that the API server does not take.
const refusedReason = "Refused"

// made returns the calls so far.
func (a *api) made() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.calls)
}

func (a *api) all() []*corev1.Event {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []*corev1.Event
	for _, e := range a.events {
		all = append(all, e)
	}
	slices.SortFunc(all, func(x, y *corev1.Event) int {
		return strings.Compare(x.GetMetadata().GetName(), y.GetMetadata().GetName())
	})
	return all
}

func pod(name string) *corev1.Pod {
	return corev1.Pod_builder{Metadata: metav1.ObjectMeta_builder{
		Namespace: proto.String("shop"), Name: proto.String(name), Uid: proto.String("uid-" + name), ResourceVersion: proto.String("7"),
	}.Build()}.Build()
}

// recording runs a test with a recorder whose clock is the test's.
func recording(t *testing.T, host string, test func(*testing.T, *api, *Recorder)) {
	synctest.Test(t, func(t *testing.T) {
		a := &api{events: map[string]*corev1.Event{}}
		r := New(Config{Conn: a, Logger: slog.New(slog.DiscardHandler), Host: host})
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- r.Run(ctx) }()
		test(t, a, r)
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

func TestEventsSayWhatKubernetesSays(t *testing.T) {
	recording(t, "n1", func(t *testing.T, a *api, r *Recorder) {
		r.Source("kubelet").ReportPart(pod("web"), "spec.containers{c}", Warning, "BackOff", "again, %d%%", 7)
		synctest.Wait()
		all := a.all()
		if len(all) != 1 {
			t.Fatalf("%d events", len(all))
		}
		e, about := all[0], all[0].GetInvolvedObject()
		if !strings.HasPrefix(e.GetMetadata().GetName(), "web.") || e.GetMetadata().GetNamespace() != "shop" || e.GetReason() != "BackOff" || e.GetType() != Warning ||
			e.GetMessage() != "again, 7%" || e.GetCount() != 1 || e.GetSource().GetComponent() != "kubelet" || e.GetSource().GetHost() != "n1" ||
			e.GetReportingComponent() != "kubelet" || e.GetReportingInstance() != "n1" || e.GetFirstTimestamp().GetSeconds() != time.Now().Unix() {
			t.Errorf("%v", e)
		}
		if about.GetKind() != "Pod" || about.GetApiVersion() != "v1" || about.GetName() != "web" || about.GetUid() != "uid-web" || about.GetFieldPath() != "spec.containers{c}" || about.GetResourceVersion() != "7" {
			t.Errorf("%v", about)
		}
	})
}

func TestEventsOfObjectsWithoutNamespace(t *testing.T) {
	recording(t, "", func(t *testing.T, a *api, r *Recorder) {
		r.Source("node-controller").Report(corev1.Node_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("n1")}.Build()}.Build(), Normal, "NodeReady", "%s", strings.Repeat("ä", 2000))
		synctest.Wait()
		e := a.all()[0]
		if e.GetMetadata().GetNamespace() != "default" || len(e.GetMessage()) > maxMessage || !strings.HasSuffix(e.GetMessage(), "ä...") || e.GetSource().HasHost() {
			t.Errorf("%v", e)
		}
	})
}

func TestRepeatedEventsAreCounted(t *testing.T) {
	recording(t, "", func(t *testing.T, a *api, r *Recorder) {
		say := func(part string) {
			r.Source("c").ReportPart(pod("web"), part, Normal, "Pulled", "image")
			time.Sleep(time.Minute)
			synctest.Wait()
		}
		say("a")
		say("a")
		say("b")
		a.mu.Lock()
		clear(a.events) // they have expired
		a.mu.Unlock()
		say("a")
		all := a.all()
		if len(all) != 1 || all[0].GetCount() != 3 || all[0].GetLastTimestamp().GetSeconds()-all[0].GetFirstTimestamp().GetSeconds() != 180 {
			t.Errorf("%v", all)
		}
		if want := []string{"Create", "Update", "Create", "Update", "Create"}; !slices.Equal(a.calls, want) {
			t.Errorf("calls %v, want %v", a.calls, want)
		}
	})
}

func TestEventsAreWrittenTogether(t *testing.T) {
	recording(t, "", func(t *testing.T, a *api, r *Recorder) {
		say := func(name, reason string) { r.Source("c").Report(pod(name), Normal, reason, "x") }
		say("first", "Scheduled")
		synctest.Wait()
		for i := range 2 * together {
			say(fmt.Sprint("web-", i), "Pulled")
		}
		say("web-0", "Pulled")
		synctest.Wait()
		if made, want := a.made(), []string{"Create"}; !slices.Equal(made, want) {
			t.Errorf("calls at once %v, want %v", made, want)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		// What repeats an event of the commits before is written alone, since nothing else is left.
		if made, want := a.made(), []string{"Create", "Commit", "Commit", "Update"}; !slices.Equal(made, want) {
			t.Errorf("calls %v, want %v", made, want)
		}
		if n := len(a.all()); n != 1+2*together {
			t.Errorf("%d events", n)
		}

		before := len(a.made())
		say("web-1", "Pulled")
		synctest.Wait()
		say("web-2", "Pulled") // written before
		say("web-2", "Started")
		say("web-2", "Started") // twice in one commit
		time.Sleep(time.Minute)
		synctest.Wait()
		if made, want := a.made()[before:], []string{"Update", "Commit"}; !slices.Equal(made, want) {
			t.Errorf("calls %v, want %v", made, want)
		}
		counts := map[string]int32{}
		for _, e := range a.all() {
			counts[e.GetInvolvedObject().GetName()+" "+e.GetReason()] = e.GetCount()
		}
		if counts["web-0 Pulled"] != 2 || counts["web-2 Pulled"] != 2 || counts["web-2 Started"] != 2 {
			t.Errorf("counts %v", counts)
		}
	})
}

func TestOneRefusedEventDoesNotTakeTheOthersAlong(t *testing.T) {
	recording(t, "", func(t *testing.T, a *api, r *Recorder) {
		a.mu.Lock()
		a.fail = []error{nil, apierrors.NewServiceUnavailable("x")} // the first commit is tried again
		a.mu.Unlock()
		say := func(name, reason string) { r.Source("c").Report(pod(name), Normal, reason, "x") }
		say("first", "Pulled")
		synctest.Wait()
		say("web", "Pulled")
		say("other", refusedReason)
		say("third", "Started")
		time.Sleep(time.Minute)
		synctest.Wait()
		if made, want := a.made(), []string{"Create", "Commit", "Commit", "Create", "Create", "Create"}; !slices.Equal(made, want) {
			t.Errorf("calls %v, want %v", made, want)
		}
		var reasons []string
		for _, e := range a.all() {
			reasons = append(reasons, e.GetReason())
		}
		if slices.Sort(reasons); !slices.Equal(reasons, []string{"Pulled", "Pulled", "Started"}) {
			t.Errorf("events %v", reasons)
		}
	})
}

func TestEventsThatAreRefused(t *testing.T) {
	events := schema.GroupResource{Resource: "events"}
	for name, c := range map[string]struct {
		fail  []error
		calls int
	}{
		"the API server is away for a moment": {[]error{apierrors.NewServiceUnavailable("x"), apierrors.NewServiceUnavailable("x")}, 3},
		"it stays away":                       {slices.Repeat([]error{apierrors.NewServiceUnavailable("x")}, 9), attempts},
		"the namespace is going":              {[]error{apierrors.NewForbidden(events, "e", errors.New("x"))}, 1},
		"the namespace is gone":               {[]error{apierrors.NewNotFound(events, "e")}, 1},
		"it is invalid":                       {[]error{apierrors.NewInvalid(schema.GroupKind{Kind: "Event"}, "e", nil)}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			recording(t, "", func(t *testing.T, a *api, r *Recorder) {
				a.fail = c.fail
				r.Source("c").Report(pod("web"), Normal, "Pulled", "image")
				time.Sleep(time.Minute)
				synctest.Wait()
				if len(a.calls) != c.calls {
					t.Errorf("%d calls, want %d", len(a.calls), c.calls)
				}
			})
		})
	}
}

func TestReportNeverWaits(t *testing.T) {
	a := &api{events: map[string]*corev1.Event{}}
	r := New(Config{Conn: a, Logger: slog.New(slog.DiscardHandler)})
	for range 2 * queued {
		r.Source("c").Report(pod("web"), Normal, "Pulled", "image")
	}
	if !r.overflows.Load() {
		t.Error("nothing was dropped")
	}
}

func TestCorrelate(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	c := newCorrelator()
	about := corev1.ObjectReference_builder{Namespace: proto.String("a"), Name: proto.String("web"), Uid: proto.String("u")}.Build()
	say := func(reason, message string) *written {
		now = now.Add(time.Second)
		return c.correlate(&report{component: "c", kind: Normal, reason: reason, message: message, regarding: about, at: now})
	}
	first := say("Scaled", "to 1").name
	if again := say("Scaled", "to 1"); again.count != 2 || again.name != first || !again.first.Before(now) {
		t.Errorf("repeated report: %+v", again)
	}
	made, updated, dropped := 0, 0, 0
	for i := range 40 {
		switch e := say("Created", fmt.Sprint("pod ", i)); {
		case e == nil:
			dropped++
		case e.count == 1:
			made++
		default:
			updated++
			if !strings.HasPrefix(e.message, combined) {
				t.Errorf("message %q", e.message)
			}
		}
	}
	if made != combineAfter+1 || updated != burst-made || dropped != 40-burst {
		t.Errorf("%d made, %d updated, %d dropped", made, updated, dropped)
	}
	if e := say("Failed", "no quota"); e == nil {
		t.Error("another reason was silenced")
	}
	now = now.Add(refill)
	if e := say("Created", "pod 99"); e == nil {
		t.Error("the budget is never refilled")
	}
}
