// Package pods measures what an orchestrator adds to its container runtime: it starts and removes the same pods through the runtime alone and through the orchestrator, on one
// node in one run, kills containers, and looks what all of it uses while nothing happens. On a machine that does other things too only the ratios mean something.
package pods

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

const (
	// grace is what containers have to end, in seconds. They end at once when they are asked to.
	grace = 5
	// look is how often the runtime is asked for what it cannot tell by itself. It bounds how exactly an end is known; starts are by the runtime's own clock.
	look = 20 * time.Millisecond
	// settle is what starts are given to have their consequences behind them, which are not idleness: shims give memory back once, half a minute after their containers started,
	// and events are kept together for a moment.
	settle = 45 * time.Second
	// writers create and delete at once, so that the API is not what is waited for.
	writers = 16
)

// Config says what is measured.
type Config struct {
	// API reaches the cluster, Node and Runtime are one of its nodes and that node's container runtime (unix:///…).
	API           *rest.Config
	Node, Runtime string
	// Folders are named by the command lines of all processes that the cluster consists of.
	Folders []string
	// Image has a shell. Pods are how many, AtOnce how many of them the bare runtime starts at once.
	Image        string
	Pods, AtOnce int
	// Rounds are how often all is done, Kills how many containers are killed in each, Idle how long nothing happens.
	Rounds, Kills int
	Idle          time.Duration
	Out           io.Writer
}

// command ends when it is asked to, as a container should.
var command = []string{"sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"}

type run struct {
	Config
	runtime   *bare
	client    *kubernetes.Clientset
	namespace string
}

// Run measures and prints.
func Run(ctx context.Context, config Config) (err error) {
	r := &run{Config: config, namespace: fmt.Sprintf("pods-bench-%d", time.Now().Unix())}
	api := rest.CopyConfig(config.API)
	api.QPS, api.Burst = -1, 0
	if r.client, err = kubernetes.NewForConfig(api); err != nil {
		return err
	}
	if r.runtime, err = dial(config.Runtime); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.runtime.close()) }()
	if err := r.runtime.pull(ctx, config.Image); err != nil {
		return err
	}
	if _, err := r.client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: r.namespace}}, metav1.CreateOptions{}); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, r.client.CoreV1().Namespaces().Delete(context.WithoutCancel(ctx), r.namespace, metav1.DeleteOptions{}))
	}()
	var started, removed, away, idle []float64
	for round := range config.Rounds {
		bareUp, bareDown, bareStarting, err := r.bare(ctx)
		if err != nil {
			return err
		}
		before, err := r.read()
		if err != nil {
			return err
		}
		up, err := r.start(ctx)
		if err != nil {
			return err
		}
		starting, err := before.since()
		if err != nil {
			return err
		}
		for i := range min(config.Kills, config.Pods) {
			gap, err := r.kill(ctx, podName(i))
			if err != nil {
				return err
			}
			away = append(away, gap.Seconds()*1000)
		}
		use, by, err := r.idle(ctx)
		if err != nil {
			return err
		}
		down, err := r.remove(ctx)
		if err != nil {
			return err
		}
		started, removed, idle = append(started, up.Seconds()/bareUp.Seconds()), append(removed, down.Seconds()/bareDown.Seconds()), append(idle, use)
		fmt.Fprintf(config.Out, "round %d: start: bare %.2f s (%s), cluster %.2f s (%s), ratio %.2f; remove: bare %.2f s, cluster %.2f s, ratio %.2f; idle %.2f %% of a core%s\n",
			round+1, bareUp.Seconds(), bareStarting.seconds(), up.Seconds(), starting.seconds(), last(started), bareDown.Seconds(), down.Seconds(), last(removed), use, by)
	}
	fmt.Fprintf(config.Out, "medians: start ratio %.2f, remove ratio %.2f, idle %.2f %% of a core", median(started), median(removed), median(idle))
	if len(away) > 0 {
		fmt.Fprintf(config.Out, ", a killed container is away %.0f ms (longest %.0f ms)", median(away), slices.Max(away))
	}
	_, err = fmt.Fprintln(config.Out)
	return err
}

func last(values []float64) float64 { return values[len(values)-1] }

func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

// each does something for each pod, so many at once, and returns how long all took.
func each(pods, atOnce int, do func(i int) error) (time.Duration, error) {
	began := time.Now()
	var group sync.WaitGroup
	var mu sync.Mutex
	var failed error
	slots := make(chan struct{}, atOnce)
	for i := range pods {
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			if err := do(i); err != nil {
				mu.Lock()
				failed = errors.Join(failed, err)
				mu.Unlock()
			}
		})
	}
	group.Wait()
	return time.Since(began), failed
}

// bare starts all pods through the runtime alone, and removes them. Starting is what the cluster's processes used meanwhile.
func (r *run) bare(ctx context.Context) (up, down time.Duration, starting use, err error) {
	sandboxes := make([]string, r.Pods)
	before, err := r.read()
	if err != nil {
		return 0, 0, use{}, err
	}
	up, err = each(r.Pods, r.AtOnce, func(i int) (err error) {
		sandboxes[i], err = r.runtime.start(ctx, i, r.Image, command)
		return err
	})
	if err == nil {
		starting, err = before.since()
	}
	// What was started is removed even if something failed or the run was called off.
	down, removeErr := each(r.Pods, r.AtOnce, func(i int) error {
		if sandboxes[i] == "" {
			return nil
		}
		return r.runtime.remove(context.WithoutCancel(ctx), sandboxes[i])
	})
	return up, down, starting, errors.Join(err, removeErr)
}

func podName(i int) string { return fmt.Sprintf("pod-%d", i) }

// start makes all pods and waits until they are ready.
func (r *run) start(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	_, err := each(r.Pods, writers, func(i int) error {
		seconds, noToken := int64(grace), false
		_, err := r.client.CoreV1().Pods(r.namespace).Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: podName(i)}, Spec: corev1.PodSpec{
			NodeSelector: map[string]string{corev1.LabelHostname: r.Node}, TerminationGracePeriodSeconds: &seconds, AutomountServiceAccountToken: &noToken,
			Containers: []corev1.Container{{Name: "main", Image: r.Image, Command: command, ImagePullPolicy: corev1.PullIfNotPresent}}}}, metav1.CreateOptions{})
		return err
	})
	if err != nil {
		return 0, err
	}
	err = r.await(ctx, func(pods map[string]*corev1.Pod) bool {
		if len(pods) < r.Pods {
			return false
		}
		for _, p := range pods {
			if !isReady(p) {
				return false
			}
		}
		return true
	})
	return time.Since(began), err
}

func isReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue })
}

// await follows the pods of the namespace until done says so.
func (r *run) await(ctx context.Context, done func(map[string]*corev1.Pod) bool) error {
	api := r.client.CoreV1().Pods(r.namespace)
	for {
		list, err := api.List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		pods := map[string]*corev1.Pod{}
		for i := range list.Items {
			pods[list.Items[i].Name] = &list.Items[i]
		}
		if done(pods) {
			return nil
		}
		changes, err := api.Watch(ctx, metav1.ListOptions{ResourceVersion: list.ResourceVersion})
		if err != nil {
			return err
		}
		for change := range changes.ResultChan() {
			p, ok := change.Object.(*corev1.Pod)
			if !ok {
				break // the watch cannot go on; another list begins anew
			}
			pods[p.Name] = p
			if change.Type == watch.Deleted {
				delete(pods, p.Name)
			}
			if done(pods) {
				changes.Stop()
				return nil
			}
		}
		changes.Stop()
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// remove deletes all pods and waits until neither the API nor the runtime has any of them.
func (r *run) remove(ctx context.Context) (time.Duration, error) {
	began := time.Now()
	if err := r.client.CoreV1().Pods(r.namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
		return 0, err
	}
	if err := r.await(ctx, func(pods map[string]*corev1.Pod) bool { return len(pods) == 0 }); err != nil {
		return 0, err
	}
	for {
		left, err := r.runtime.sandboxes(ctx, r.namespace)
		if err != nil || left == 0 {
			return time.Since(began), err
		}
		if err := pause(ctx, look); err != nil {
			return 0, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// kill kills a pod's container and returns how long it was until the next was started.
func (r *run) kill(ctx context.Context, pod string) (time.Duration, error) {
	before, err := r.runtime.running(ctx, r.namespace, pod)
	if err != nil {
		return 0, err
	}
	if before == "" {
		return 0, fmt.Errorf("pod %s has no running container", pod)
	}
	killed, err := r.runtime.kill(ctx, before)
	if err != nil {
		return 0, err
	}
	for {
		now, err := r.runtime.running(ctx, r.namespace, pod)
		if err != nil {
			return 0, err
		}
		if now != "" && now != before {
			at, err := r.runtime.started(ctx, now)
			return at.Sub(killed), err
		}
		if err := pause(ctx, look); err != nil {
			return 0, err
		}
	}
}

// idle returns the percentage of a core that the cluster uses while nobody does anything with it, and in words, of which programs.
func (r *run) idle(ctx context.Context) (all float64, by string, err error) {
	if r.Idle == 0 {
		return 0, "", nil
	}
	if err := pause(ctx, settle); err != nil {
		return 0, "", err
	}
	before, err := r.read()
	if err != nil {
		return 0, "", err
	}
	if err := pause(ctx, r.Idle); err != nil {
		return 0, "", err
	}
	used, err := before.since()
	if err != nil {
		return 0, "", err
	}
	all, by = used.percent()
	return all, by, nil
}
