//go:build e2e

package clientgo

import (
	"context"
	"fmt"
	"strconv"
	"sync"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kinformers "k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"dhow.dev/e2e/cluster"
)

// history is what an informer's handler has seen of each object: its versions in order, and whether it is there.
type history struct {
	mu     sync.Mutex
	seen   map[string][]int64
	exists map[string]bool
	wrong  []string
}

func (h *history) note(event string, obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	m := obj.(*corev1.ConfigMap)
	version, err := strconv.ParseInt(m.ResourceVersion, 10, 64)
	h.mu.Lock()
	defer h.mu.Unlock()
	versions, exists := h.seen[m.Name], h.exists[m.Name]
	last := int64(0)
	if len(versions) > 0 {
		last = versions[len(versions)-1]
	}
	switch {
	case err != nil:
		h.wrong = append(h.wrong, err.Error())
	case event == "add" && exists, event != "add" && !exists:
		h.wrong = append(h.wrong, fmt.Sprintf("%s of %s, which exists: %v", event, m.Name, exists))
	case event == "update" && version < last: // the same version again is what client-go makes of a list that it reads anew
		h.wrong = append(h.wrong, fmt.Sprintf("%s went from version %d to %d", m.Name, last, version))
	}
	h.seen[m.Name] = append(versions, version)
	h.exists[m.Name] = event != "delete"
}

// informers: shared informers over JSON and protobuf see each object's history in order, with nothing twice, while the control plane is killed and started again.
func informers(t *testing.T, c *cluster.Cluster) {
	const namespace, objects, rounds = "informers", 20, 6
	client := kubernetes.NewForConfigOrDie(connect(t, c, runtime.ContentTypeProtobuf))
	if _, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	maps := client.CoreV1().ConfigMaps(namespace)
	histories := map[string]*history{}
	stores := map[string]cache.Store{}
	for _, contentType := range []string{runtime.ContentTypeJSON, runtime.ContentTypeProtobuf} {
		h := &history{seen: map[string][]int64{}, exists: map[string]bool{}}
		factory := kinformers.NewSharedInformerFactoryWithOptions(kubernetes.NewForConfigOrDie(connect(t, c, contentType)), 0, kinformers.WithNamespace(namespace))
		informer := factory.Core().V1().ConfigMaps().Informer()
		if _, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc: func(obj any) { h.note("add", obj) }, UpdateFunc: func(_, obj any) { h.note("update", obj) }, DeleteFunc: func(obj any) { h.note("delete", obj) },
		}); err != nil {
			t.Fatal(err)
		}
		factory.StartWithContext(t.Context())
		factory.WaitForCacheSyncWithContext(t.Context())
		histories[contentType], stores[contentType] = h, informer.GetStore()
	}
	for round := range rounds {
		for i := range objects {
			m := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("m-%02d", i)}, Data: map[string]string{"round": strconv.Itoa(round)}}
			write := func() (err error) {
				if round == 0 {
					_, err = maps.Create(t.Context(), m, metav1.CreateOptions{})
				} else {
					_, err = maps.Update(t.Context(), m, metav1.UpdateOptions{})
				}
				return err
			}
			if err := write(); err != nil {
				t.Fatal(err)
			}
		}
		if round == 1 || round == 3 {
			c.Kill(syscall.SIGKILL)
			c.Up()
		}
	}
	for i := range objects / 2 {
		if err := maps.Delete(t.Context(), fmt.Sprintf("m-%02d", i), metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	list, err := maps.List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for contentType, h := range histories {
		cluster.Eventually(t, func(context.Context) error {
			for _, want := range list.Items {
				got, found, err := stores[contentType].GetByKey(namespace + "/" + want.Name)
				if err != nil || !found || got.(*corev1.ConfigMap).ResourceVersion != want.ResourceVersion {
					return fmt.Errorf("%s: %s is not as it is stored (%v)", contentType, want.Name, err)
				}
			}
			if have := len(stores[contentType].ListKeys()); have != len(list.Items) {
				return fmt.Errorf("%s: the informer has %d objects of %d", contentType, have, len(list.Items))
			}
			return nil
		})
		h.mu.Lock()
		for _, wrong := range h.wrong {
			t.Errorf("%s: %s", contentType, wrong)
		}
		h.mu.Unlock()
	}
}
