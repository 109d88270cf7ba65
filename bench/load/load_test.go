package load

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"dhow.dev/bench/meter"
)

// memory is a door without a server.
type memory struct {
	mu      sync.Mutex
	pods    map[string]*corev1.Pod
	watches []chan string
	broken  error
}

func (m *memory) Create(_ context.Context, pod *corev1.Pod) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.pods[pod.Name] != nil {
		return "", fmt.Errorf("%s is there already", pod.Name)
	}
	m.pods[pod.Name] = pod
	return "1", m.broken
}

func (m *memory) List(context.Context, string) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.pods), m.broken
}

// Placed takes pods for placed whose node is left to the scheduler, and that are not gated.
func (m *memory) Placed(_ context.Context, _ string, pods int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, pod := range m.pods {
		if pod.Spec.NodeName == "" && len(pod.Spec.SchedulingGates) == 0 {
			pods--
		}
	}
	if pods != 0 {
		return fmt.Errorf("%d pods more should be placed", pods)
	}
	return m.broken
}

func (m *memory) Annotate(_ context.Context, _, _, _, value string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, w := range m.watches {
		w <- value
	}
	return m.broken
}

func (m *memory) Watch(context.Context, string, string, string) (Watch, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	w := make(chan string, 100)
	m.watches = append(m.watches, w)
	return values(w), m.broken
}

type values chan string

func (v values) Next(ctx context.Context, _ string) ([]string, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case value := <-v:
		return []string{value}, nil
	}
}

func TestEveryPhase(t *testing.T) {
	door := &memory{pods: map[string]*corev1.Pod{}}
	r, err := Create(t.Context(), meter.Meter{}, door, "ns", 50, 8, func(i int) string { return fmt.Sprint("node-", i%2) })
	if err != nil || r.Operations != 50 || len(door.pods) != 50 || r.PerSecond <= 0 {
		t.Fatalf("%+v, %d pods, %v", r, len(door.pods), err)
	}
	if pod := door.pods["pod-00003"]; pod.Spec.NodeName != "node-1" || len(pod.Spec.SchedulingGates) != 0 {
		t.Errorf("%+v", pod.Spec)
	}
	if r, err = List(t.Context(), meter.Meter{}, door, "ns", 50, 7); err != nil || r.Operations != 7 || r.Times.Max < r.Times.Min {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err = List(t.Context(), meter.Meter{}, door, "ns", 49, 1); err == nil {
		t.Error("a list with another number of pods than there should be was taken")
	}
	if r, err = FanOut(t.Context(), meter.Meter{}, door, "ns", 9, 11); err != nil || r.Operations != 99 || r.Times.Min <= 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if pod := door.pods["watched"]; len(pod.Spec.SchedulingGates) != 1 {
		t.Errorf("%+v", pod.Spec)
	}
}

func TestSchedule(t *testing.T) {
	door := &memory{pods: map[string]*corev1.Pod{}}
	created, placed, err := Schedule(t.Context(), meter.Meter{}, door, "ns", 50, 8)
	if err != nil || created.Operations != 50 || placed.Operations != 50 || placed.PerSecond > created.PerSecond {
		t.Errorf("%+v, %+v, %v", created, placed, err)
	}
	door.broken = errors.New("broken")
	if _, _, err := Schedule(t.Context(), meter.Meter{}, &memory{pods: map[string]*corev1.Pod{}, broken: door.broken}, "ns", 5, 2); !errors.Is(err, door.broken) {
		t.Error(err)
	}
}

func TestFailuresEndARun(t *testing.T) {
	broken := errors.New("broken")
	door := &memory{pods: map[string]*corev1.Pod{}, broken: broken}
	if _, err := Create(t.Context(), meter.Meter{}, door, "ns", 5, 2, nil); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := List(t.Context(), meter.Meter{}, door, "ns", 5, 2); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := FanOut(t.Context(), meter.Meter{}, door, "ns", 2, 2); !errors.Is(err, broken) {
		t.Error(err)
	}
	if _, err := receive(t.Context(), values(func() chan string { c := make(chan string, 1); c <- "yesterday"; return c }()), 1); err == nil || !strings.Contains(err.Error(), sentAt) {
		t.Error(err)
	}
}
