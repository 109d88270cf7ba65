//go:build e2e

package clientgo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"dhow.dev/e2e/cluster"
)

const finalizer = "e2e.dhow.dev/cleaned"

// cleaner keeps a finalizer on the ConfigMaps with a label, and cleans up after each before it goes.
type cleaner struct {
	client.Client
	mu      sync.Mutex
	cleaned map[string]bool
}

func (r *cleaner) Reconcile(ctx context.Context, request ctrl.Request) (ctrl.Result, error) {
	m := &corev1.ConfigMap{}
	if err := r.Get(ctx, request.NamespacedName, m); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if m.Labels["cleaned"] != "yes" {
		return ctrl.Result{}, nil
	}
	if m.DeletionTimestamp.IsZero() {
		if controllerutil.AddFinalizer(m, finalizer) {
			return ctrl.Result{}, r.Update(ctx, m)
		}
		return ctrl.Result{}, nil
	}
	r.mu.Lock()
	r.cleaned[m.Name] = true
	r.mu.Unlock()
	if controllerutil.RemoveFinalizer(m, finalizer) {
		return ctrl.Result{}, r.Update(ctx, m)
	}
	return ctrl.Result{}, nil
}

// manager: a controller-runtime manager with a finalizer on ConfigMaps.
func manager(t *testing.T, c *cluster.Cluster) {
	ctrl.SetLogger(logr.Discard())
	m, err := ctrl.NewManager(connect(t, c, ""), ctrl.Options{Metrics: server.Options{BindAddress: "0"}})
	if err != nil {
		t.Fatal(err)
	}
	r := &cleaner{Client: m.GetClient(), cleaned: map[string]bool{}}
	if err := ctrl.NewControllerManagedBy(m).For(&corev1.ConfigMap{}).Complete(r); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- m.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the manager ended: %v", err)
		}
	})

	const objects = 5
	key := func(i int) client.ObjectKey {
		return client.ObjectKey{Namespace: "default", Name: fmt.Sprintf("dusty-%d", i)}
	}
	for i := range objects {
		o := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: key(i).Namespace, Name: key(i).Name, Labels: map[string]string{"cleaned": "yes"}}}
		if err := m.GetClient().Create(ctx, o); err != nil {
			t.Fatal(err)
		}
	}
	for i := range objects {
		cluster.Eventually(t, func(ctx context.Context) error {
			o := &corev1.ConfigMap{}
			if err := m.GetAPIReader().Get(ctx, key(i), o); err != nil {
				return err
			}
			if !controllerutil.ContainsFinalizer(o, finalizer) {
				return errors.New("no finalizer yet")
			}
			return nil
		})
		if err := m.GetClient().Delete(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: key(i).Namespace, Name: key(i).Name}}); err != nil {
			t.Fatal(err)
		}
		cluster.Eventually(t, func(ctx context.Context) error {
			err := m.GetAPIReader().Get(ctx, key(i), &corev1.ConfigMap{})
			if !apierrors.IsNotFound(err) {
				return fmt.Errorf("still there: %v", err)
			}
			return nil
		})
		r.mu.Lock()
		if !r.cleaned[key(i).Name] {
			t.Errorf("%s went without being cleaned", key(i).Name)
		}
		r.mu.Unlock()
	}
}
