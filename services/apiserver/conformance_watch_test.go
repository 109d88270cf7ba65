package apiserver_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	"dhow.dev/services/apiserver"
)

// TestConformanceWatches does what the suite's tests of watchers do.
func TestConformanceWatches(t *testing.T) {
	newKubernetesCluster(t).each(t, map[string]func(conformance, *testing.T){
		"multiple watchers":        conformance.multipleWatchers,
		"from a resource version":  conformance.watchFromVersion,
		"closed and restarted":     conformance.watchRestarted,
		"a label changes":          conformance.watchLabelChanged,
		"the same order in all":    conformance.watchOrder,
		"chunks":                   conformance.chunks,
		"chunks of what is past":   conformance.compactedChunks,
		"a watch from before that": conformance.compactedWatch,
	})
}

const watchLabel = "watch-this-configmap"

// write creates or updates a config map, counting in its data.
func (c conformance) write(t *testing.T, name, label string, count int) *corev1.ConfigMap {
	t.Helper()
	maps := c.client.CoreV1().ConfigMaps(c.namespace)
	m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{watchLabel: label}}, Data: map[string]string{"mutation": fmt.Sprint(count)}}
	written, err := maps.Update(c.ctx, m, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		written, err = maps.Create(c.ctx, m, metav1.CreateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	return written
}

func (c conformance) remove(t *testing.T, name string) {
	t.Helper()
	if err := c.client.CoreV1().ConfigMaps(c.namespace).Delete(c.ctx, name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (c conformance) watch(t *testing.T, version, selector string) watch.Interface {
	t.Helper()
	w, err := c.client.CoreV1().ConfigMaps(c.namespace).Watch(c.ctx, metav1.ListOptions{ResourceVersion: version, LabelSelector: selector})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Stop)
	return w
}

// expect takes the next event, which is about a config map in a state.
func (c conformance) expect(t *testing.T, w watch.Interface, kind watch.EventType, m *corev1.ConfigMap) {
	t.Helper()
	select {
	case e := <-w.ResultChan():
		got, ok := e.Object.(*corev1.ConfigMap)
		if !ok || e.Type != kind || got.Name != m.Name || got.Data["mutation"] != m.Data["mutation"] {
			t.Fatalf("%s %+v, want %s %s %v", e.Type, e.Object, kind, m.Name, m.Data)
		}
	case <-c.ctx.Done():
		t.Fatal("no event")
	}
}

func (c conformance) multipleWatchers(t *testing.T) {
	a, b, both := c.watch(t, "", watchLabel+"=A"), c.watch(t, "", watchLabel+"=B"), c.watch(t, "", watchLabel+" in (A,B)")
	all := func(kind watch.EventType, own watch.Interface, m *corev1.ConfigMap) {
		t.Helper()
		c.expect(t, own, kind, m)
		c.expect(t, both, kind, m)
	}
	all(watch.Added, a, c.write(t, "a", "A", 0))
	all(watch.Modified, a, c.write(t, "a", "A", 1))
	last := c.write(t, "a", "A", 2)
	all(watch.Modified, a, last)
	c.remove(t, "a")
	all(watch.Deleted, a, last)
	m := c.write(t, "b", "B", 0)
	all(watch.Added, b, m)
	c.remove(t, "b")
	all(watch.Deleted, b, m)
}

func (c conformance) watchFromVersion(t *testing.T) {
	c.write(t, "m", "from", 0)
	first := c.write(t, "m", "from", 1)
	second := c.write(t, "m", "from", 2)
	c.remove(t, "m")
	w := c.watch(t, first.ResourceVersion, watchLabel+"=from")
	c.expect(t, w, watch.Modified, second)
	c.expect(t, w, watch.Deleted, second)
}

func (c conformance) watchRestarted(t *testing.T) {
	w := c.watch(t, "", watchLabel+"=restarted")
	c.expect(t, w, watch.Added, c.write(t, "m", "restarted", 0))
	last := c.write(t, "m", "restarted", 1)
	c.expect(t, w, watch.Modified, last)
	w.Stop()
	second := c.write(t, "m", "restarted", 2)
	c.remove(t, "m")
	again := c.watch(t, last.ResourceVersion, watchLabel+"=restarted")
	c.expect(t, again, watch.Modified, second)
	c.expect(t, again, watch.Deleted, second)
}

func (c conformance) watchLabelChanged(t *testing.T) {
	w := c.watch(t, "", watchLabel+"=changed")
	c.expect(t, w, watch.Added, c.write(t, "m", "changed", 0))
	last := c.write(t, "m", "changed", 1)
	c.expect(t, w, watch.Modified, last)
	c.write(t, "m", "other", 2)
	c.expect(t, w, watch.Deleted, last)
	c.write(t, "m", "other", 3) // seen by nobody
	back := c.write(t, "m", "changed", 4)
	c.expect(t, w, watch.Added, back)
	third := c.write(t, "m", "changed", 5)
	c.expect(t, w, watch.Modified, third)
	c.remove(t, "m")
	c.expect(t, w, watch.Deleted, third)
}

// watchOrder begins a watch at the version of each event of the first one, while a writer goes on: all must see the same versions.
func (c conformance) watchOrder(t *testing.T) {
	const events = 60
	ctx, cancel := context.WithCancel(c.ctx)
	var writer sync.WaitGroup
	defer writer.Wait()
	defer cancel()
	first := c.watch(t, "", "")
	writer.Go(func() {
		maps := c.client.CoreV1().ConfigMaps(c.namespace)
		for i := 0; ctx.Err() == nil; i++ {
			name := fmt.Sprintf("m-%d", i%3)
			m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"mutation": fmt.Sprint(i)}}
			switch i % 9 / 3 { // each is created, updated and deleted
			case 0:
				_, _ = maps.Create(ctx, m, metav1.CreateOptions{}) // the watches say what came of it
			case 1:
				_, _ = maps.Update(ctx, m, metav1.UpdateOptions{})
			default:
				_ = maps.Delete(ctx, name, metav1.DeleteOptions{})
			}
		}
	})
	version := func(w watch.Interface) string {
		t.Helper()
		select {
		case e := <-w.ResultChan():
			m, ok := e.Object.(*corev1.ConfigMap)
			if !ok {
				t.Fatalf("%+v", e)
			}
			return m.ResourceVersion
		case <-c.ctx.Done():
			t.Fatal("no event")
			return ""
		}
	}
	var watches []watch.Interface
	for range events {
		v := version(first)
		for _, w := range watches {
			if got := version(w); got != v {
				t.Fatalf("another watch has %s where the first has %s", got, v)
			}
		}
		watches = append(watches, c.watch(t, v, ""))
	}
}

// forgetful compacts the store, and returns a client of an API server that remembers nothing of what was before.
func (c conformance) forgetful(t *testing.T) conformance {
	t.Helper()
	if _, err := c.client.CoreV1().ConfigMaps(c.namespace).Create(c.ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "later-"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.compact(t)
	var root *rest.Config
	c.serve("apiserver-of-"+c.namespace, func(config *apiserver.Config) { root = c.door(t, config) })
	c.client = clientset(t, root)
	return c
}

func (c conformance) templates(t *testing.T, count int) {
	t.Helper()
	for i := range count {
		template := &corev1.PodTemplate{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("template-%04d", i)}, Template: corev1.PodTemplateSpec{Spec: podNamed("x", nil).Spec}}
		if _, err := c.client.CoreV1().PodTemplates(c.namespace).Create(c.ctx, template, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
}

func (c conformance) chunks(t *testing.T) {
	const total = 40
	c.templates(t, total)
	api := c.client.CoreV1().PodTemplates(c.namespace)
	for _, limit := range []int64{1, 7, 13, 20} {
		found, o, version := 0, metav1.ListOptions{Limit: limit}, ""
		for {
			list, err := api.List(c.ctx, o)
			if err != nil {
				t.Fatal(err)
			}
			if version == "" {
				version = list.ResourceVersion
			}
			if int64(len(list.Items)) > limit || list.ResourceVersion != version {
				t.Fatalf("%d items at %s, want %d at %s", len(list.Items), list.ResourceVersion, limit, version)
			}
			for _, item := range list.Items {
				if want := fmt.Sprintf("template-%04d", found); item.Name != want {
					t.Fatalf("%s, want %s", item.Name, want)
				}
				found++
			}
			switch {
			case list.RemainingItemCount == nil && found != total:
				t.Fatalf("%d of %d, and no number of the rest", found, total)
			case list.RemainingItemCount != nil && int(*list.RemainingItemCount)+found != total:
				t.Fatalf("%d of %d, and a rest of %d", found, total, *list.RemainingItemCount)
			}
			if o.Continue = list.Continue; o.Continue == "" {
				break
			}
		}
	}
	if list, err := api.List(c.ctx, metav1.ListOptions{}); err != nil || len(list.Items) != total {
		t.Errorf("all at once: %v", err)
	}
}

// compactedChunks: a continue token whose version is compacted away comes with one that goes on with the list of now.
func (c conformance) compactedChunks(t *testing.T) {
	const total, limit = 12, 4
	c.templates(t, total)
	api := c.client.CoreV1().PodTemplates(c.namespace)
	first, err := api.List(c.ctx, metav1.ListOptions{Limit: limit})
	if err != nil || len(first.Items) != limit || first.RemainingItemCount == nil || *first.RemainingItemCount != total-limit {
		t.Fatalf("%+v, %v", first, err)
	}
	c = c.forgetful(t)
	api = c.client.CoreV1().PodTemplates(c.namespace)
	_, err = api.List(c.ctx, metav1.ListOptions{Limit: limit, Continue: first.Continue})
	var status apierrors.APIStatus
	if !asStatus(err, &status) || status.Status().Code != http.StatusGone || status.Status().Reason != metav1.StatusReasonExpired || status.Status().ListMeta.Continue == "" {
		t.Fatalf("%v, want 410 Expired with a token", err)
	}
	second, err := api.List(c.ctx, metav1.ListOptions{Limit: limit, Continue: status.Status().ListMeta.Continue})
	if err != nil || len(second.Items) != limit || second.Items[0].Name != "template-0004" || second.ResourceVersion == first.ResourceVersion || second.RemainingItemCount == nil || *second.RemainingItemCount != total-2*limit {
		t.Fatalf("%+v, %v", second, err)
	}
	third, err := api.List(c.ctx, metav1.ListOptions{Limit: limit, Continue: second.Continue})
	if err != nil || len(third.Items) != limit || third.Continue != "" || third.ResourceVersion != second.ResourceVersion {
		t.Errorf("%+v, %v", third, err)
	}
}

// compactedWatch: a watch from a version that is compacted away ends with 410.
func (c conformance) compactedWatch(t *testing.T) {
	m := c.write(t, "m", "x", 0)
	c.write(t, "m", "x", 1)
	c = c.forgetful(t)
	w := c.watch(t, m.ResourceVersion, "")
	e := <-w.ResultChan()
	if s, ok := e.Object.(*metav1.Status); !ok || e.Type != watch.Error || s.Code != http.StatusGone || !strings.Contains(s.Message, "too old") {
		t.Errorf("%+v", e)
	}
}
