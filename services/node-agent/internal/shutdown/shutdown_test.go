package shutdown

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/podtest"
	"dhow.dev/services/node-agent/internal/status"
)

// machine is a node whose pods take a time of their own to end, and its logind.
type machine struct {
	t0        time.Time
	longest   time.Duration
	announced chan bool

	mu    sync.Mutex
	log   []string
	takes map[string]time.Duration
	pods  []*corev1.Pod
	ended map[string]chan struct{}
}

func (m *machine) note(format string, arguments ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.log = append(m.log, fmt.Sprintf("%ds ", int(time.Since(m.t0).Seconds()))+fmt.Sprintf(format, arguments...))
}

// begin counts seconds from now.
func (m *machine) begin() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.t0 = time.Now()
}

func (m *machine) noted() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.log)
}

func (m *machine) delay() (time.Duration, error) { return m.longest, nil }
func (m *machine) extend(_ context.Context, d time.Duration) error {
	m.note("extend %s", d)
	return nil
}

func (m *machine) inhibit() (inhibitor, error) {
	m.note("inhibit")
	return m, nil
}

func (m *machine) Close() error {
	m.note("let go")
	return nil
}
func (m *machine) announcements() <-chan bool { return m.announced }
func (m *machine) close()                     {}

func (m *machine) end(uid string, end *status.End) bool {
	m.note("end %s within %s: %s", uid, *end.Grace, end.Reason)
	m.mu.Lock()
	defer m.mu.Unlock()
	done := make(chan struct{})
	m.ended[uid] = done
	time.AfterFunc(m.takes[uid], func() { close(done) })
	return true
}

func (m *machine) await(ctx context.Context, uids []string) error {
	for _, uid := range uids {
		m.mu.Lock()
		done := m.ended[uid]
		m.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (m *machine) told(context.Context) error {
	m.note("told")
	return nil
}

// run has the manager work for a node while f runs.
func run(t *testing.T, m *machine, f func(*Manager)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		m.t0, m.announced, m.ended = time.Now(), make(chan bool), map[string]chan struct{}{}
		for _, text := range []string{`{metadata: {name: web, uid: web}}`, `{metadata: {name: important, uid: important}, spec: {priority: 1000000}}`, `{metadata: {name: network, uid: network}, spec: {priority: 2000001000}}`} {
			m.pods = append(m.pods, podtest.Pod(t, text))
		}
		manager := New(Config{Grace: 30 * time.Second, Critical: 10 * time.Second, Pods: func() []*corev1.Pod { return m.pods }, End: m.end, Ended: m.await, Told: m.told,
			Changed: func() { m.note("changed") }, Event: func(reason, message string) { m.note("%s: %s", reason, message) }, Logger: slog.New(slog.DiscardHandler)})
		tries := 0
		manager.dial = func(string) (logind, error) {
			if tries++; tries == 1 {
				return nil, errors.New("not up yet")
			}
			return m, nil
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			if err := manager.Run(ctx); err != nil {
				t.Error(err)
			}
		}()
		time.Sleep(5 * time.Second)
		synctest.Wait()
		m.begin()
		f(manager)
		cancel()
		<-done
	})
}

func TestPodsEndInOrderAndInTheirTime(t *testing.T) {
	m := &machine{longest: 5 * time.Second, takes: map[string]time.Duration{"web": 3 * time.Second, "important": 4 * time.Second, "network": time.Second}}
	run(t, m, func(manager *Manager) {
		if manager.Admit() != nil {
			t.Error("pods are refused before anything has happened")
		}
		m.announced <- true
		time.Sleep(time.Minute)
		if end := manager.Admit(); end == nil || end.Reason != "NodeShutdown" {
			t.Errorf("a pod that comes now: %v", end)
		}
		want := []string{"1s extend 30s", "1s inhibit", "0s changed", "0s NodeShutdown: Shutdown manager detected shutdown event", "0s end web within 20s: Terminated", "0s end important within 20s: Terminated",
			"4s end network within 10s: Terminated", "5s told", "5s let go"}
		if got := m.noted(); !slices.Equal(got, want) {
			t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

func TestWhoDoesNotEndKeepsNobody(t *testing.T) {
	m := &machine{longest: time.Minute, takes: map[string]time.Duration{"web": time.Hour, "network": time.Hour}}
	run(t, m, func(*Manager) {
		m.announced <- true
		time.Sleep(2 * time.Hour)
		got := strings.Join(m.noted(), "\n")
		for _, want := range []string{"20s end network", "30s told", "30s let go"} {
			if !strings.Contains(got, want) {
				t.Errorf("lacks %q:\n%s", want, got)
			}
		}
		if strings.Contains(got, "extend") {
			t.Errorf("logind waits long enough:\n%s", got)
		}
	})
}

func TestAShutdownIsCalledOff(t *testing.T) {
	m := &machine{longest: time.Minute, takes: map[string]time.Duration{"web": 10 * time.Second}}
	run(t, m, func(manager *Manager) {
		m.announced <- true
		time.Sleep(5 * time.Second)
		m.announced <- false
		time.Sleep(time.Minute)
		got := strings.Join(m.noted(), "\n")
		if manager.Now() || strings.Contains(got, "end network") || !strings.HasSuffix(got, "5s NodeShutdown: Shutdown manager detected shutdown cancellation\n5s inhibit\n5s let go") {
			t.Errorf("%v:\n%s", manager.Now(), got)
		}
	})
}

func TestPeriodsThatCannotBe(t *testing.T) {
	for _, c := range []Config{{Grace: -time.Second}, {Grace: time.Second, Critical: 2 * time.Second}, {Grace: time.Millisecond}} {
		if c.Check() == nil {
			t.Errorf("%s and %s are taken", c.Grace, c.Critical)
		}
	}
	if err := (Config{Grace: 30 * time.Second, Critical: 10 * time.Second}).Check(); err != nil {
		t.Error(err)
	}
}
