// Package load is what API servers are measured with: pods created by many writers, listed, and one of them changed while many watch it. It is the same work through every
// door; what a door is, is its package's affair.
//
// Everything happens in one namespace that a run makes and removes. Loads are bounded: so many pods, writers, watchers and writes, and the context's deadline for all.
package load

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/bench/meter"
)

// Door is one way to an API server, as a client library offers it: what it decodes is decoded.
type Door interface {
	// Create makes a pod and returns its resource version.
	Create(ctx context.Context, pod *corev1.Pod) (string, error)
	// List returns how many pods a namespace has.
	List(ctx context.Context, namespace string) (int, error)
	// Placed waits until so many pods of a namespace have nodes.
	Placed(ctx context.Context, namespace string, pods int) error
	// Annotate changes an annotation of a pod.
	Annotate(ctx context.Context, namespace, name, key, value string) error
	// Watch follows the changes of one pod after a resource version. The watch stands when it returns.
	Watch(ctx context.Context, namespace, name, resourceVersion string) (Watch, error)
}

// Watch is a running watch. It ends with its context.
type Watch interface {
	// Next waits for changes and returns what an annotation of the pod was at each of them.
	Next(ctx context.Context, annotation string) ([]string, error)
}

// sentAt is the annotation in which a writer says when it wrote, in nanoseconds since 1970.
const sentAt = "bench.dhow.dev/sent-at"

// Times are quantiles.
type Times struct{ Min, P50, P99, Max time.Duration }

func quantiles(times []time.Duration) Times {
	if len(times) == 0 {
		return Times{}
	}
	slices.Sort(times)
	at := func(q float64) time.Duration { return times[int(q*float64(len(times)-1))] }
	return Times{Min: times[0], P50: at(0.5), P99: at(0.99), Max: times[len(times)-1]}
}

// Result is a measured phase.
type Result struct {
	meter.Cost
	// Times are of each list, or of each event from the write to the receipt.
	Times Times
}

// Scheduled as a pod's node leaves it to the scheduler.
const Scheduled = "*"

// Pod is one that nobody works for but the API server: on a node, or without one gated so that no scheduler places it. It is only placed when the node is Scheduled.
func Pod(namespace, name, node string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: map[string]string{"app": "bench", "tier": "web"}},
		Spec: corev1.PodSpec{
			NodeName: node,
			Containers: []corev1.Container{{
				Name: "web", Image: "registry.example/web:v1", Ports: []corev1.ContainerPort{{ContainerPort: 8080}},
				Env: []corev1.EnvVar{{Name: "MODE", Value: "bench"}, {Name: "LEVEL", Value: "info"}},
			}},
			// The nodes have no kubelets; nobody evicts for that.
			Tolerations: []corev1.Toleration{{Operator: corev1.TolerationOpExists}},
		},
	}
	switch node {
	case Scheduled:
		pod.Spec.NodeName = ""
	case "":
		pod.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "bench.dhow.dev/never"}}
		pod.Spec.Tolerations = nil
	}
	return pod
}

// Schedule makes pods by so many writers at once while the scheduler places them, and waits until it has placed all. It returns what the creation cost, and what all of it.
func Schedule(ctx context.Context, m meter.Meter, door Door, namespace string, pods, writers int) (created, placed Result, err error) {
	placed, err = measured(m, pods, func() error {
		if created, err = Create(ctx, m, door, namespace, pods, writers, func(int) string { return Scheduled }); err != nil {
			return err
		}
		return door.Placed(ctx, namespace, pods)
	})
	return created, placed, err
}

// Create makes pods by so many writers at once. NodeOf says where the nth pod runs; nil: nowhere.
func Create(ctx context.Context, m meter.Meter, door Door, namespace string, pods, writers int, nodeOf func(int) string) (Result, error) {
	var next atomic.Int64
	return measured(m, pods, func() error {
		return together(writers, func(int) error {
			for {
				i := int(next.Add(1))
				if i > pods {
					return nil
				}
				node := ""
				if nodeOf != nil {
					node = nodeOf(i)
				}
				if _, err := door.Create(ctx, Pod(namespace, fmt.Sprintf("pod-%05d", i), node)); err != nil {
					return fmt.Errorf("create a pod: %w", err)
				}
			}
		})
	})
}

// List lists a namespace's pods again and again.
func List(ctx context.Context, m meter.Meter, door Door, namespace string, pods, lists int) (Result, error) {
	times := make([]time.Duration, 0, lists)
	result, err := measured(m, lists, func() error {
		for range lists {
			began := time.Now()
			got, err := door.List(ctx, namespace)
			if err != nil {
				return fmt.Errorf("list pods: %w", err)
			}
			times = append(times, time.Since(began))
			if got != pods {
				return fmt.Errorf("listed %d pods of %d", got, pods)
			}
		}
		return nil
	})
	result.Times = quantiles(times)
	return result, err
}

// FanOut changes one pod while many watch it. Its operations are events received.
func FanOut(ctx context.Context, m meter.Meter, door Door, namespace string, watchers, writes int) (Result, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // ends the watches
	const name = "watched"
	version, err := door.Create(ctx, Pod(namespace, name, ""))
	if err != nil {
		return Result{}, err
	}
	watches := make([]Watch, watchers)
	for i := range watches {
		if watches[i], err = door.Watch(ctx, namespace, name, version); err != nil {
			return Result{}, fmt.Errorf("watch: %w", err)
		}
	}
	times := make([][]time.Duration, watchers)
	result, err := measured(m, watchers*writes, func() error {
		return together(watchers+1, func(i int) error {
			if i < watchers {
				var err error
				times[i], err = receive(ctx, watches[i], writes)
				return err
			}
			for range writes {
				if err := door.Annotate(ctx, namespace, name, sentAt, strconv.FormatInt(time.Now().UnixNano(), 10)); err != nil {
					return fmt.Errorf("change the watched pod: %w", err)
				}
			}
			return nil
		})
	})
	result.Times = quantiles(slices.Concat(times...))
	return result, err
}

func receive(ctx context.Context, w Watch, writes int) ([]time.Duration, error) {
	times := make([]time.Duration, 0, writes)
	for len(times) < writes {
		values, err := w.Next(ctx, sentAt)
		if err != nil {
			return nil, fmt.Errorf("a watch after %d events of %d: %w", len(times), writes, err)
		}
		for _, value := range values {
			sent, err := strconv.ParseInt(value, 10, 64)
			if err != nil {
				return nil, fmt.Errorf("a watched pod without the annotation %s: %w", sentAt, err)
			}
			times = append(times, time.Since(time.Unix(0, sent)))
		}
	}
	return times, nil
}

func measured(m meter.Meter, operations int, work func() error) (Result, error) {
	before, err := m.Read()
	if err != nil {
		return Result{}, err
	}
	if err := work(); err != nil {
		return Result{}, err
	}
	cost, err := m.Since(before, operations)
	return Result{Cost: cost}, err
}

// together runs n functions at once and returns the first error of each.
func together(n int, f func(i int) error) error {
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = f(i) })
	}
	all.Wait()
	return errors.Join(errs...)
}
