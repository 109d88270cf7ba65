// Package kubernetes measures a Kubernetes API server from outside, with client-go alone, so that Dhow and kube-apiserver are measured by the same program.
//
// Everything happens in one namespace that a run makes and removes. Loads are bounded: so many pods, writers, watchers and writes, and a deadline for all.
package kubernetes

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
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// Protobuf and JSON are the encodings that a client can ask for.
const (
	Protobuf = runtime.ContentTypeProtobuf
	JSON     = runtime.ContentTypeJSON
)

// sentAt is the annotation in which a writer says when it wrote, in nanoseconds since 1970.
const sentAt = "bench.dhow.dev/sent-at"

// Config is what is measured, and how much of it.
type Config struct {
	// Client reaches the API server. Its rate limits are lifted: the server is measured, not the client's patience.
	Client    *rest.Config
	Namespace string
	// Pods are created by Writers, then listed Lists times in each encoding.
	Pods, Writers, Lists int
	// Watchers see Writes changes of one pod.
	Watchers, Writes int
}

// Result is what was measured.
type Result struct {
	// CreatesPerSecond is over all writers.
	CreatesPerSecond float64
	// ListJSON and ListProtobuf are the times of one list of all pods, decoded by client-go.
	ListJSON, ListProtobuf Times
	// EventsPerSecond is received events of all watchers, from the first write to the last event. FanOut is from the write to the receipt.
	EventsPerSecond float64
	FanOut          Times
}

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

// Run measures until everything was done once, or ctx ends, and removes what it made.
func Run(ctx context.Context, config Config) (result Result, err error) {
	b := bench{config: config}
	client, err := b.client(Protobuf)
	if err != nil {
		return result, err
	}
	namespaces := client.CoreV1().Namespaces()
	if _, err := namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: config.Namespace}}, metav1.CreateOptions{}); err != nil {
		return result, fmt.Errorf("make the namespace %s: %w", config.Namespace, err)
	}
	defer func() {
		removing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		now := int64(0)
		err = errors.Join(err,
			client.CoreV1().Pods(config.Namespace).DeleteCollection(removing, metav1.DeleteOptions{GracePeriodSeconds: &now}, metav1.ListOptions{}),
			namespaces.Delete(removing, config.Namespace, metav1.DeleteOptions{}))
	}()
	if result.CreatesPerSecond, err = b.create(ctx); err != nil {
		return result, err
	}
	if result.ListJSON, err = b.list(ctx, JSON); err != nil {
		return result, err
	}
	if result.ListProtobuf, err = b.list(ctx, Protobuf); err != nil {
		return result, err
	}
	result.EventsPerSecond, result.FanOut, err = b.fanOut(ctx)
	return result, err
}

type bench struct{ config Config }

// client returns a client of its own connection.
func (b bench) client(contentType string) (*kubernetes.Clientset, error) {
	config := rest.CopyConfig(b.config.Client)
	config.QPS, config.Burst = -1, 0
	config.ContentType, config.AcceptContentTypes = contentType, contentType
	return kubernetes.NewForConfig(config)
}

// pod is one that no scheduler places: its node exists nowhere, and nothing but the API server works for it.
func (b bench) pod(name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: b.config.Namespace, Labels: map[string]string{"app": "bench", "tier": "web"}},
		Spec: corev1.PodSpec{
			SchedulingGates: []corev1.PodSchedulingGate{{Name: "bench.dhow.dev/never"}},
			Containers: []corev1.Container{{
				Name: "web", Image: "registry.example/web:v1", Ports: []corev1.ContainerPort{{ContainerPort: 8080}},
				Env: []corev1.EnvVar{{Name: "MODE", Value: "bench"}, {Name: "LEVEL", Value: "info"}},
			}},
		},
	}
}

func (b bench) create(ctx context.Context) (perSecond float64, err error) {
	client, err := b.client(Protobuf)
	if err != nil {
		return 0, err
	}
	pods := client.CoreV1().Pods(b.config.Namespace)
	var next atomic.Int64
	began := time.Now()
	err = together(b.config.Writers, func(int) error {
		for {
			i := next.Add(1)
			if i > int64(b.config.Pods) {
				return nil
			}
			if _, err := pods.Create(ctx, b.pod(fmt.Sprintf("pod-%05d", i)), metav1.CreateOptions{}); err != nil {
				return fmt.Errorf("create a pod: %w", err)
			}
		}
	})
	return float64(b.config.Pods) / time.Since(began).Seconds(), err
}

func (b bench) list(ctx context.Context, contentType string) (Times, error) {
	client, err := b.client(contentType)
	if err != nil {
		return Times{}, err
	}
	var times []time.Duration
	for range b.config.Lists {
		began := time.Now()
		list, err := client.CoreV1().Pods(b.config.Namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return Times{}, fmt.Errorf("list pods: %w", err)
		}
		times = append(times, time.Since(began))
		if len(list.Items) != b.config.Pods {
			return Times{}, fmt.Errorf("listed %d pods of %d", len(list.Items), b.config.Pods)
		}
	}
	return quantiles(times), nil
}

// fanOut changes one pod while many watch it.
func (b bench) fanOut(ctx context.Context) (perSecond float64, latency Times, err error) {
	client, err := b.client(Protobuf)
	if err != nil {
		return 0, latency, err
	}
	pods := client.CoreV1().Pods(b.config.Namespace)
	pod, err := pods.Create(ctx, b.pod("watched"), metav1.CreateOptions{})
	if err != nil {
		return 0, latency, err
	}
	watches := make([]watch.Interface, b.config.Watchers)
	defer func() {
		for _, w := range watches {
			if w != nil {
				w.Stop()
			}
		}
	}()
	options := metav1.ListOptions{FieldSelector: "metadata.name=watched", ResourceVersion: pod.ResourceVersion}
	for i := range watches {
		if watches[i], err = pods.Watch(ctx, options); err != nil {
			return 0, latency, fmt.Errorf("watch: %w", err)
		}
	}
	times := make([][]time.Duration, len(watches))
	began := time.Now()
	err = together(len(watches)+1, func(i int) error {
		if i == len(watches) {
			return b.write(ctx, client)
		}
		var err error
		times[i], err = b.receive(ctx, watches[i])
		return err
	})
	elapsed := time.Since(began)
	if err != nil {
		return 0, latency, err
	}
	all := slices.Concat(times...)
	return float64(len(all)) / elapsed.Seconds(), quantiles(all), nil
}

func (b bench) write(ctx context.Context, client kubernetes.Interface) error {
	for range b.config.Writes {
		patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:"%d"}}}`, sentAt, time.Now().UnixNano())
		if _, err := client.CoreV1().Pods(b.config.Namespace).Patch(ctx, "watched", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("change the watched pod: %w", err)
		}
	}
	return nil
}

func (b bench) receive(ctx context.Context, w watch.Interface) ([]time.Duration, error) {
	var times []time.Duration
	for len(times) < b.config.Writes {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case event, open := <-w.ResultChan():
			pod, ok := event.Object.(*corev1.Pod)
			if !open || !ok || event.Type != watch.Modified {
				return nil, fmt.Errorf("a watch gave %s %T after %d events of %d", event.Type, event.Object, len(times), b.config.Writes)
			}
			sent, err := strconv.ParseInt(pod.Annotations[sentAt], 10, 64)
			if err != nil {
				return nil, err
			}
			times = append(times, time.Since(time.Unix(0, sent)))
		}
	}
	return times, nil
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
