package apiserver_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"dhow.dev/services/apiserver"
)

func podNamed(name string, change func(*corev1.Pod)) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "web"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "c", Image: "example.com/i"}}},
	}
	if change != nil {
		change(pod)
	}
	return pod
}

// heard collects the warnings of an API server.
type heard struct {
	mu   sync.Mutex
	text []string
}

func (h *heard) HandleWarningHeader(_ int, _, text string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text = append(h.text, text)
}

func (h *heard) has(part string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.ContainsFunc(h.text, func(text string) bool { return strings.Contains(text, part) })
}

// TestDoorPodSubresources drives what pods have besides themselves with client-go, in both encodings.
func TestDoorPodSubresources(t *testing.T) {
	k := newKubernetesCluster(t)
	for _, contentType := range []string{jsonType, protobufType} {
		t.Run(contentType, func(t *testing.T) {
			ctx, client := within(t), clientset(t, encodedAs(k.root, contentType))
			ns, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			pods := client.CoreV1().Pods(ns.Name)
			for _, name := range []string{"a", "b"} {
				made, err := pods.Create(ctx, podNamed(name, func(p *corev1.Pod) {
					p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{"cpu": apiresource.MustParse("100m")}
				}), metav1.CreateOptions{})
				if err != nil || made.Spec.ServiceAccountName != "default" {
					t.Fatalf("%+v, %v", made, err)
				}
				if err := pods.Bind(ctx, &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: name}, Target: corev1.ObjectReference{Kind: "Node", Name: "node-1"}}, metav1.CreateOptions{}); err != nil {
					t.Fatal(err)
				}
				bound, err := pods.Get(ctx, name, metav1.GetOptions{})
				if err != nil || bound.Spec.NodeName != "node-1" {
					t.Fatalf("%+v, %v", bound, err)
				}
				bound.Status.Phase = corev1.PodRunning
				bound.Status.Conditions = append(bound.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: corev1.ConditionTrue})
				if _, err := pods.UpdateStatus(ctx, bound, metav1.UpdateOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			debugged, err := pods.Patch(ctx, "a", types.StrategicMergePatchType, []byte(`{"spec":{"ephemeralContainers":[{"name":"debug","image":"busybox"}]}}`), metav1.PatchOptions{}, "ephemeralcontainers")
			if err != nil || len(debugged.Spec.EphemeralContainers) != 1 {
				t.Errorf("%+v, %v", debugged.Spec.EphemeralContainers, err)
			}
			debugged.Spec.Containers[0].Resources.Requests["cpu"] = apiresource.MustParse("250m")
			resized, err := pods.UpdateResize(ctx, "a", debugged, metav1.UpdateOptions{})
			if err != nil || resized.Spec.Containers[0].Resources.Requests.Cpu().String() != "250m" {
				t.Errorf("%+v, %v", resized, err)
			}

			budgets := client.PolicyV1().PodDisruptionBudgets(ns.Name)
			budget, err := budgets.Create(ctx, &policyv1.PodDisruptionBudget{
				ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}},
			}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			budget.Status = policyv1.PodDisruptionBudgetStatus{ObservedGeneration: budget.Generation, DisruptionsAllowed: 1, CurrentHealthy: 2, DesiredHealthy: 1, ExpectedPods: 2}
			if _, err := budgets.UpdateStatus(ctx, budget, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			evict := func(name string) error {
				return client.PolicyV1().Evictions(ns.Name).Evict(ctx, &policyv1.Eviction{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ns.Name}})
			}
			if err := evict("a"); err != nil {
				t.Fatal(err)
			}
			if err := evict("b"); !apierrors.IsTooManyRequests(err) || !apierrors.HasStatusCause(err, policyv1.DisruptionBudgetCause) {
				t.Errorf("%v", err)
			}
			budget, err = budgets.Get(ctx, "web", metav1.GetOptions{})
			if _, noted := budget.Status.DisruptedPods["a"]; err != nil || !noted || budget.Status.DisruptionsAllowed != 0 {
				t.Errorf("%+v, %v", budget.Status, err)
			}
		})
	}
}

// TestDoorPodSecurity refuses and warns by the labels of a namespace, with the header that clients print.
func TestDoorPodSecurity(t *testing.T) {
	k := newKubernetesCluster(t)
	warnings := &heard{}
	config := rest.CopyConfig(k.root)
	config.WarningHandler = warnings
	ctx, client := within(t), clientset(t, config)
	_, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "strict", Labels: map[string]string{
		"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/warn": "restricted",
	}}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	pods := client.CoreV1().Pods("strict")
	_, err = pods.Create(ctx, podNamed("a", func(p *corev1.Pod) { p.Spec.HostNetwork = true }), metav1.CreateOptions{})
	if !apierrors.IsForbidden(err) || err.Error() != `pods "a" is forbidden: violates PodSecurity "baseline:latest": host namespaces (hostNetwork=true)` {
		t.Errorf("%v", err)
	}
	if _, err := pods.Create(ctx, podNamed("a", nil), metav1.CreateOptions{}); err != nil || !warnings.has(`would violate PodSecurity "restricted:latest": allowPrivilegeEscalation != false`) {
		t.Errorf("%v, warned %q", err, warnings.text)
	}
}

// TestQuotaOfTwoServers has 64 writers at two API servers create pods where a quota has room for some: no more are made, and the account is right.
func TestQuotaOfTwoServers(t *testing.T) {
	const room, writers = 25, 64
	k := newKubernetesCluster(t)
	var second *rest.Config
	k.serve("apiserver-2", func(c *apiserver.Config) { second = k.door(t, c) })
	ctx := within(t)
	servers := []*kubernetes.Clientset{clientset(t, k.root), clientset(t, second)}
	quotas := servers[0].CoreV1().ResourceQuotas("default")
	hard := corev1.ResourceList{"pods": *apiresource.NewQuantity(room, apiresource.DecimalSI)}
	quota, err := quotas.Create(ctx, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: hard}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// As its controller does.
	quota.Status = corev1.ResourceQuotaStatus{Hard: hard, Used: corev1.ResourceList{"pods": *apiresource.NewQuantity(0, apiresource.DecimalSI)}}
	if _, err := quotas.UpdateStatus(ctx, quota, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	// A read that is consistent: the second server knows the quota, too.
	if got, err := servers[1].CoreV1().ResourceQuotas("default").Get(ctx, "q", metav1.GetOptions{}); err != nil || len(got.Status.Hard) != 1 {
		t.Fatalf("%+v, %v", got, err)
	}
	errs := make([]error, writers)
	var group sync.WaitGroup
	for i := range writers {
		group.Go(func() {
			_, errs[i] = servers[i%2].CoreV1().Pods("default").Create(ctx, podNamed(fmt.Sprintf("p%d", i), nil), metav1.CreateOptions{})
		})
	}
	group.Wait()
	made := 0
	for _, err := range errs {
		var api apierrors.APIStatus
		switch {
		case err == nil:
			made++
		case !errors.As(err, &api) || !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "exceeded quota: q, requested: pods=1, used: pods=25, limited: pods=25"):
			t.Error(err)
		}
	}
	all, err := servers[1].CoreV1().Pods("default").List(ctx, metav1.ListOptions{})
	if err != nil || made != room || len(all.Items) != room {
		t.Errorf("%d made, %d listed, %v", made, len(all.Items), err)
	}
	quota, err = quotas.Get(ctx, "q", metav1.GetOptions{})
	if used := quota.Status.Used["pods"]; err != nil || used.Value() != room {
		t.Errorf("%+v, %v", quota.Status, err)
	}
}
