package apiserver_test

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestPoliciesHoldAtOnce: a limit range, a priority class, a namespace's level and a quota hold for the pod that is created right behind them. Whether the cache
// is behind is a race that the API server must win each time, so it is run many times.
func TestPoliciesHoldAtOnce(t *testing.T) {
	k := newKubernetesCluster(t)
	ctx, client := within(t), clientset(t, encodedAs(k.root, protobufType))
	half := corev1.ResourceList{"cpu": apiresource.MustParse("500m")}
	for range 25 {
		ns, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "policy-"}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		limits := &corev1.LimitRange{ObjectMeta: metav1.ObjectMeta{Name: "l"}, Spec: corev1.LimitRangeSpec{Limits: []corev1.LimitRangeItem{{Type: corev1.LimitTypeContainer, Default: half, DefaultRequest: half}}}}
		if _, err := client.CoreV1().LimitRanges(ns.Name).Create(ctx, limits, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		pods := client.CoreV1().Pods(ns.Name)
		if p, err := pods.Create(ctx, podNamed("limited", nil), metav1.CreateOptions{}); err != nil || p.Spec.Containers[0].Resources.Requests.Cpu().String() != "500m" {
			t.Errorf("behind a limit range: %+v, %v", p.Spec, err)
		}
		if _, err := client.SchedulingV1().PriorityClasses().Create(ctx, &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: ns.Name}, Value: 7}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if p, err := pods.Create(ctx, podNamed("important", func(p *corev1.Pod) { p.Spec.PriorityClassName = ns.Name }), metav1.CreateOptions{}); err != nil || p.Spec.Priority == nil || *p.Spec.Priority != 7 {
			t.Errorf("behind a priority class: %+v, %v", p.Spec, err)
		}
		quota, err := client.CoreV1().ResourceQuotas(ns.Name).Create(ctx, &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{"pods": apiresource.MustParse("2")}}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		quota.Status = corev1.ResourceQuotaStatus{Hard: quota.Spec.Hard, Used: quota.Spec.Hard} // as its controller reports
		if _, err := client.CoreV1().ResourceQuotas(ns.Name).UpdateStatus(ctx, quota, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := pods.Create(ctx, podNamed("too-many", nil), metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("behind a quota: %v, want Forbidden", err)
		}
		if err := client.CoreV1().ResourceQuotas(ns.Name).Delete(ctx, "q", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := pods.Create(ctx, podNamed("unbounded", nil), metav1.CreateOptions{}); err != nil {
			t.Errorf("behind the quota's end: %v", err)
		}
		if _, err := client.CoreV1().Namespaces().Patch(ctx, ns.Name, types.MergePatchType, []byte(`{"metadata":{"labels":{"pod-security.kubernetes.io/enforce":"restricted"}}}`), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := pods.Create(ctx, podNamed("loose", nil), metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
			t.Errorf("behind a level of security: %v, want Forbidden", err)
		}
	}
}
