package fairness

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/request"
)

func newFilter(t testing.TB, seats int) *Filter {
	t.Helper()
	f, err := New(Config{Seats: seats})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func list(resource, namespace string) *request.Info {
	return &request.Info{IsResource: true, Verb: "list", Version: "v1", Resource: resource, Namespace: namespace}
}

func jane(name string) identity.Identity {
	return identity.Identity{Name: name, Groups: []string{identity.AllAuthenticated}}
}

func TestClassification(t *testing.T) {
	f := newFilter(t, 600)
	lease := &request.Info{IsResource: true, Verb: "update", Group: "coordination.k8s.io", Version: "v1", Resource: "leases", Namespace: "kube-system", Name: "x"}
	status := &request.Info{IsResource: true, Verb: "patch", Version: "v1", Resource: "nodes", Subresource: "status", Name: "n"}
	path := func(p string) *request.Info { return &request.Info{Verb: "get", Path: p} }
	robot := identity.Identity{Name: identity.ServiceAccount("shop", "robot"), Groups: []string{identity.ServiceAccounts, identity.AllAuthenticated}}
	system := identity.Identity{Name: identity.ServiceAccount("kube-system", "dns"), Groups: []string{identity.ServiceAccounts, identity.AllAuthenticated}}
	for _, c := range []struct {
		user          identity.Identity
		info          *request.Info
		schema, level string
		flow          string
	}{
		{identity.Identity{Name: "dhow-admin", Groups: []string{identity.Masters, identity.AllAuthenticated}}, list("pods", "a"), "exempt", "exempt", ""},
		{jane("jane"), path("/livez"), "probes", "exempt", ""},
		{jane("jane"), path("/metrics"), "global-default", "global-default", "jane"},
		{jane("jane"), list("pods", "a"), "global-default", "global-default", "jane"},
		{identity.Unauthenticated(), path("/version"), "global-default", "global-default", identity.Anonymous},
		{jane(identity.Scheduler), lease, "system-leader-election", "leader-election", identity.Scheduler},
		{jane(identity.Scheduler), list("pods", "a"), "kube-scheduler", "workload-high", "a"},
		{jane(identity.ControllerManager), list("pods", ""), "kube-controller-manager", "workload-high", ""},
		{identity.Node("n"), status, "system-node-high", "node-high", "system:node:n"},
		{identity.Node("n"), list("pods", ""), "system-nodes", "system", "system:node:n"},
		{robot, list("pods", "shop"), "service-accounts", "workload-low", robot.Name},
		{system, list("pods", "shop"), "kube-system-service-accounts", "workload-high", "shop"},
		{identity.Identity{Name: "nobody"}, list("pods", "a"), "catch-all", "catch-all", "nobody"},
	} {
		s := f.classify(&c.user, c.info)
		if s.name != c.schema || s.level.name != c.level || s.flow(&c.user, c.info).who != c.flow {
			t.Errorf("%s %s %s: schema %s, level %s, flow %q", c.user, c.info.Verb, c.info.Resource+c.info.Path, s.name, s.level.name, s.flow(&c.user, c.info).who)
		}
	}
}

// only returns a filter with one level of so many seats, all of them its own, and queues of this length.
func only(t testing.TB, seats int, queue int32) *Filter {
	t.Helper()
	f := newFilter(t, seats)
	level := &flowcontrolv1.PriorityLevelConfiguration{ObjectMeta: metav1.ObjectMeta{Name: "l", UID: "level"}, Spec: flowcontrolv1.PriorityLevelConfigurationSpec{
		Type: flowcontrolv1.PriorityLevelEnablementLimited,
		Limited: &flowcontrolv1.LimitedPriorityLevelConfiguration{NominalConcurrencyShares: new(int32), LimitResponse: flowcontrolv1.LimitResponse{
			Type: flowcontrolv1.LimitResponseTypeQueue, Queuing: &flowcontrolv1.QueuingConfiguration{Queues: 100, HandSize: 1, QueueLengthLimit: queue},
		}},
	}}
	*level.Spec.Limited.NominalConcurrencyShares = 1000000
	s := schema("all", "l", 5, flowcontrolv1.FlowDistinguisherMethodByUserType, anything(group(identity.AllAuthenticated)))
	s.UID = "schema"
	catch := Levels()[1]
	*catch.Spec.Limited.NominalConcurrencyShares = 0
	f.configure([]*flowcontrolv1.PriorityLevelConfiguration{level, catch}, []*flowcontrolv1.FlowSchema{s})
	return f
}

func TestAManWithOneRequestIsNotBehindHimWithMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := only(t, 1, 50)
		first, err := f.Enter(t.Context(), jane("many"), list("pods", "a"))
		if err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var order []string
		var group sync.WaitGroup
		ask := func(name string) {
			group.Go(func() {
				seat, err := f.Enter(t.Context(), jane(name), list("pods", "a"))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				order = append(order, name)
				mu.Unlock()
				seat.Leave()
			})
			synctest.Wait()
		}
		for range 10 {
			ask("many")
		}
		ask("one")
		first.Leave()
		group.Wait()
		if len(order) != 11 || order[0] != "many" && order[0] != "one" || order[1] != "one" && order[0] != "one" {
			t.Errorf("order %v: the one request had to wait behind many", order)
		}
	})
}

func TestFullQueuesRefuse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := only(t, 1, 1)
		seat, err := f.Enter(t.Context(), jane("a"), list("pods", "a"))
		if err != nil {
			t.Fatal(err)
		}
		waiting := make(chan error, 1)
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			_, err := f.Enter(ctx, jane("a"), list("pods", "a"))
			waiting <- err
		}()
		synctest.Wait()
		if _, err := f.Enter(t.Context(), jane("a"), list("pods", "a")); !apierrors.IsTooManyRequests(err) {
			t.Errorf("a full queue: %v", err)
		}
		cancel()
		if err := <-waiting; err != context.Canceled {
			t.Errorf("a caller that has gone: %v", err)
		}
		// Its place is free again; nobody gives a seat, so that the wait ends after its time.
		if _, err := f.Enter(t.Context(), jane("a"), list("pods", "a")); !apierrors.IsTooManyRequests(err) {
			t.Errorf("nobody leaves: %v", err)
		}
		seat.Leave()
		if f.seats.taken != 0 || len(f.schemas.Load().find(&identity.Identity{Groups: []string{identity.AllAuthenticated}}, list("pods", "a")).level.flows) != 0 {
			t.Error("something is left")
		}
	})
}

func TestLevelsBorrowAndGetBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFilter(t, 100)
		robot := identity.Identity{Name: identity.ServiceAccount("shop", "robot"), Groups: []string{identity.ServiceAccounts}}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var seats []Seat
		var mu sync.Mutex
		for range 150 {
			go func() {
				if seat, err := f.Enter(ctx, robot, list("pods", "shop")); err == nil {
					mu.Lock()
					seats = append(seats, seat)
					mu.Unlock()
				}
			}()
		}
		synctest.Wait()
		low := f.seats.levels[0]
		for _, l := range f.seats.levels {
			if l.name == "workload-low" {
				low = l
			}
		}
		if low.executing <= low.nominal || low.executing != low.guaranteed+f.seats.pool {
			t.Errorf("%d at work, %d are due, %d in the pool: nothing was borrowed", low.executing, low.nominal, f.seats.pool)
		}
		// What is another level's own was not lent.
		if _, err := f.Enter(ctx, identity.Node("n"), list("pods", "")); err != nil {
			t.Error(err)
		}
		// The scheduler has nothing of its own left when half its seats are lent: what comes back is its, before the borrower's next.
		var node []Seat
		for {
			l := f.classify(&identity.Identity{Name: identity.Scheduler}, list("pods", "a")).level
			if !f.seats.admits(l) {
				break
			}
			seat, err := f.Enter(ctx, identity.Identity{Name: identity.Scheduler}, list("pods", "a"))
			if err != nil {
				t.Fatal(err)
			}
			node = append(node, seat)
		}
		got := make(chan Seat)
		go func() {
			seat, err := f.Enter(ctx, identity.Identity{Name: identity.Scheduler}, list("pods", "a"))
			if err == nil {
				got <- seat
			}
		}()
		synctest.Wait()
		mu.Lock()
		seats[0].Leave()
		mu.Unlock()
		(<-got).Leave()
		for _, s := range node {
			s.Leave()
		}
	})
}

// TestSeatsAreCounted takes and gives seats in any order while the configuration changes: nobody has more than he may, and at the end nothing is left.
func TestSeatsAreCounted(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		f := newFilter(t, rapid.IntRange(1, 40).Draw(rt, "seats"))
		users := []identity.Identity{jane("a"), jane("b"), identity.Node("n"), {Name: identity.Scheduler}, {Name: "c", Groups: []string{identity.ServiceAccounts}}, {Name: "stranger"}}
		ctx, cancel := context.WithCancel(context.Background())
		var group sync.WaitGroup
		var mu sync.Mutex
		var held []Seat
		rt.Repeat(map[string]func(*rapid.T){
			"enter": func(rt *rapid.T) {
				user := rapid.SampledFrom(users).Draw(rt, "user")
				group.Go(func() {
					if seat, err := f.Enter(ctx, user, list("pods", "x")); err == nil {
						mu.Lock()
						held = append(held, seat)
						mu.Unlock()
					}
				})
			},
			"leave": func(*rapid.T) {
				mu.Lock()
				defer mu.Unlock()
				if len(held) > 0 {
					held[0].Leave()
					held = held[1:]
				}
			},
			"configure": func(rt *rapid.T) {
				levels := Levels()
				keep := rapid.IntRange(2, len(levels)).Draw(rt, "levels")
				f.configure(levels[:keep], Schemas())
			},
			"": func(rt *rapid.T) {
				f.seats.mu.Lock()
				defer f.seats.mu.Unlock()
				taken := 0
				for _, l := range f.seats.levels {
					count, waits := 0, 0
					for _, fl := range l.flows {
						count, waits = count+fl.executing, waits+fl.waiting
					}
					if count != l.executing || waits != l.waiting {
						rt.Fatalf("%s: %d at work and %d waiting, its flows say %d and %d", l.name, l.executing, l.waiting, count, waits)
					}
					if l.waiting > 0 && f.seats.admits(l) {
						rt.Fatalf("%s: %d wait though there is a seat", l.name, l.waiting)
					}
					if !l.exempt {
						taken += l.borrowed()
					}
				}
				if taken != f.seats.taken {
					rt.Fatalf("%d seats of the pool are counted, %d are taken", f.seats.taken, taken)
				}
			},
		})
		cancel()
		group.Wait()
		for _, s := range held {
			s.Leave()
		}
		if f.seats.taken != 0 {
			rt.Fatalf("%d seats are left", f.seats.taken)
		}
		for _, l := range f.seats.levels {
			if l.executing != 0 || l.waiting != 0 || len(l.flows) != 0 {
				rt.Fatalf("%s: %d at work, %d waiting, %d flows", l.name, l.executing, l.waiting, len(l.flows))
			}
		}
	})
}

// TestALevelGoesWhileARequestIsOnItsWay configures a level away, and back, between the classification of a request and its entry.
func TestALevelGoesWhileARequestIsOnItsWay(t *testing.T) {
	f := newFilter(t, 10)
	user, info := jane("jane"), list("pods", "a")
	before := f.classify(&user, info)
	f.configure(Levels()[:2], Schemas())
	f.configure(Levels(), Schemas())
	seat, err := f.enter(t.Context(), before, before.flow(&user, info))
	if err != nil {
		t.Fatal(err)
	}
	if f.classify(&user, info).level == before.level {
		t.Error("the level came back")
	}
	if f.seats.taken != 1 {
		t.Errorf("%d seats of the pool are counted, 1 is taken", f.seats.taken)
	}
	f.configure(Levels(), Schemas())
	if f.seats.taken != 1 {
		t.Errorf("%d seats of the pool are counted after another configuration, 1 is taken", f.seats.taken)
	}
	seat.Leave()
	if f.seats.taken != 0 {
		t.Errorf("%d seats of the pool are counted, none is taken", f.seats.taken)
	}
}

// serve runs a filter in front of a handler, as the door does.
func serve(t *testing.T, f *Filter, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	wrapped := f.Wrap(handler)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, err := request.Parse(r)
		if err != nil {
			t.Error(err)
			return
		}
		wrapped.ServeHTTP(w, r.WithContext(identity.NewContext(request.NewContext(r.Context(), info), jane("jane"))))
	}))
	t.Cleanup(server.Close)
	return server
}

func TestWatchesKeepNoSeat(t *testing.T) {
	f := only(t, 1, 1)
	ended := make(chan struct{})
	server := serve(t, f, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("watch") != "" {
			w.WriteHeader(http.StatusOK)
			_, _ = fmt.Fprintln(w, "begun")
			w.(http.Flusher).Flush()
			<-ended
		}
	})
	defer close(ended)
	for range 3 {
		answer, err := http.Get(server.URL + "/api/v1/pods?watch=1")
		if err != nil {
			t.Fatal(err)
		}
		defer answer.Body.Close()
		if line, err := bufio.NewReader(answer.Body).ReadString('\n'); err != nil || line != "begun\n" {
			t.Fatal(line, err)
		}
		if answer.Header.Get("X-Kubernetes-PF-FlowSchema-UID") != "schema" || answer.Header.Get("X-Kubernetes-PF-PriorityLevel-UID") != "level" {
			t.Errorf("headers %v", answer.Header)
		}
	}
}

func TestTooManyRequests(t *testing.T) {
	f := only(t, 1, 0)
	inside, leave := make(chan struct{}), make(chan struct{})
	server := serve(t, f, func(http.ResponseWriter, *http.Request) {
		inside <- struct{}{}
		<-leave
	})
	done := make(chan error, 1)
	go func() {
		answer, err := http.Get(server.URL + "/api/v1/pods")
		if err == nil {
			answer.Body.Close()
		}
		done <- err
	}()
	<-inside
	answer, err := http.Get(server.URL + "/api/v1/pods")
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if answer.StatusCode != http.StatusTooManyRequests || answer.Header.Get("Retry-After") != "1" || !strings.Contains(string(body), "Too many requests, please try again later.") {
		t.Errorf("%d %v %s %v", answer.StatusCode, answer.Header, body, err)
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestLimitsAreKubernetes(t *testing.T) {
	wanted := limitsOf(600, Levels())
	for name, want := range map[string]limits{
		"exempt":          {exempt: true},
		"catch-all":       {nominal: 13, guaranteed: 13, limit: 600},
		"leader-election": {nominal: 25, guaranteed: 25, limit: 600, flowQueue: 200, queue: 800},
		"workload-low":    {nominal: 245, guaranteed: 24, limit: 600, flowQueue: 300, queue: 6400},
	} {
		if wanted[name] != want {
			t.Errorf("%s: %+v, want %+v", name, wanted[name], want)
		}
	}
}

func BenchmarkFastPath(b *testing.B) {
	f := newFilter(b, 600)
	user, info := jane("jane"), list("pods", "shop")
	b.ReportAllocs()
	for b.Loop() {
		seat, err := f.Enter(b.Context(), user, info)
		if err != nil {
			b.Fatal(err)
		}
		seat.Leave()
	}
}

func BenchmarkFastPathParallel(b *testing.B) {
	f := newFilter(b, 600)
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		user, info := jane("jane"), list("pods", "shop")
		for p.Next() {
			seat, err := f.Enter(context.Background(), user, info)
			if err != nil {
				b.Error(err)
				return
			}
			seat.Leave()
		}
	})
}
