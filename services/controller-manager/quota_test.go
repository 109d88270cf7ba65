package controllermanager_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
)

func quantities(amounts map[string]string) map[string]*metav1.Quantity {
	all := map[string]*metav1.Quantity{}
	for name, amount := range amounts {
		all[name] = metav1.Quantity_builder{String: proto.String(amount)}.Build()
	}
	return all
}

// A quota's account follows what the API server adds to it and what goes.
func TestQuotaAccount(t *testing.T) {
	c := newCluster(t, nil)
	quotas, pods, maps := client.For[*corev1.ResourceQuota](c.conn), client.For[*corev1.Pod](c.conn), client.For[*corev1.ConfigMap](c.conn)
	configMap := func(name string) error {
		_, err := maps.Create(c.ctx, corev1.ConfigMap_builder{Metadata: meta(name)}.Build(), nil)
		return err
	}
	pod := func(name string) error {
		_, err := pods.Create(c.ctx, corev1.Pod_builder{Metadata: meta(name), Spec: corev1.PodSpec_builder{
			Containers: []*corev1.Container{corev1.Container_builder{Name: proto.String("c"), Image: proto.String("i")}.Build()},
		}.Build()}.Build(), nil)
		return err
	}
	if err := configMap("before"); err != nil {
		t.Fatal(err)
	}
	_, err := quotas.Create(c.ctx, corev1.ResourceQuota_builder{Metadata: meta("q"), Spec: corev1.ResourceQuotaSpec_builder{
		Hard: quantities(map[string]string{"pods": "2", "count/configmaps": "10", "services.nodeports": "0"}),
	}.Build()}.Build(), nil)
	if err != nil {
		t.Fatal(err)
	}
	used := func(want map[string]string) {
		t.Helper()
		eventuallyOne(c, "default", "q", fmt.Sprintf("used is %v", want), func(q *corev1.ResourceQuota) bool {
			for name, amount := range want {
				if got := q.GetStatus().GetUsed()[name]; got == nil || got.GetString() != amount {
					return false
				}
			}
			return len(q.GetStatus().GetHard()) == 3
		})
	}
	// The root certificate's ConfigMap is one, too.
	used(map[string]string{"pods": "0", "count/configmaps": "2", "services.nodeports": "0"})
	for _, name := range []string{"a", "b"} {
		if err := pod(name); err != nil {
			t.Fatal(err)
		}
	}
	if err := pod("c"); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "exceeded quota: q, requested: pods=1, used: pods=2, limited: pods=2") {
		t.Errorf("%v", err)
	}
	if _, err := pods.Delete(c.ctx, "default", "a", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := maps.Delete(c.ctx, "default", "before", nil); err != nil {
		t.Fatal(err)
	}
	used(map[string]string{"pods": "1", "count/configmaps": "1"})
	if err := pod("c"); err != nil {
		t.Error(err)
	}
	used(map[string]string{"pods": "2"})
	// One that ends makes room.
	b, err := pods.Get(c.ctx, "default", "b")
	if err != nil {
		t.Fatal(err)
	}
	b.SetStatus(corev1.PodStatus_builder{Phase: proto.String("Succeeded")}.Build())
	if _, err := pods.UpdateStatus(c.ctx, b); err != nil {
		t.Fatal(err)
	}
	used(map[string]string{"pods": "1"})
	// A new limit is taken over.
	q, err := quotas.Get(c.ctx, "default", "q")
	if err != nil {
		t.Fatal(err)
	}
	q.GetSpec().SetHard(quantities(map[string]string{"pods": "1", "count/secrets": "3", "requests.cpu": "1"}))
	if _, err := quotas.Update(c.ctx, q, nil); err != nil {
		t.Fatal(err)
	}
	used(map[string]string{"pods": "1", "count/secrets": "0", "requests.cpu": "0"})
}
