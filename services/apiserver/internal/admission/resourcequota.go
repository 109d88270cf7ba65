package admission

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"dhow.dev/pkg/quota"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
)

var resourceQuotas = resource.Lookup("", "resourcequotas")

// resourceQuota holds what a namespace has to its quotas. A quota's status.used is the account: it is raised in the commit that writes the object, on the
// condition that nobody else raised it meanwhile, so that two API servers cannot give out the same rest. What is given back, the controller manager takes
// off again, when it sees objects end or go.
//
// A quota counts from when its controller has filled in its status.
type resourceQuota struct{}

// counted says whether a write can use more of a quota.
func (resourceQuota) counted(q *Request) bool {
	if !q.Resource.Namespaced || q.Namespace == "" {
		return false
	}
	switch q.Operation {
	case Create:
		return q.Subresource == ""
	case Update:
		return q.on("", "pods", "resize") || q.is("", "services") || q.is("", "persistentvolumeclaims")
	}
	return false
}

func (r resourceQuota) validate(ctx context.Context, q *Request) error {
	if !r.counted(q) {
		return nil
	}
	var names []string
	err := q.View.List(ctx, resourceQuotas, q.Namespace, func(o codec.Object) bool {
		names = append(names, o.GetName())
		return true
	})
	if err != nil || len(names) == 0 {
		return err
	}
	// All writers take them in one order.
	slices.Sort(names)
	more := quota.Usage(q.Resource, q.Object)
	if q.Old != nil {
		less(more, quota.Usage(q.Resource, q.Old))
	}
	for _, name := range names {
		err := q.View.Amend(ctx, resourceQuotas, q.Namespace, name, func(o codec.Object) error {
			account, ok := o.(*corev1.ResourceQuota)
			if !ok {
				return fmt.Errorf("resource quota %s is a %T", name, o)
			}
			return r.charge(q, account, more)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// less subtracts what an object used before, and drops what stays the same.
func less(more, before corev1.ResourceList) {
	for name, q := range before {
		rest := more[name].DeepCopy()
		rest.Sub(q)
		more[name] = rest
	}
	for name, q := range more {
		if q.IsZero() {
			delete(more, name)
		}
	}
}

// charge raises a quota's account, or says why it cannot.
func (resourceQuota) charge(q *Request, account *corev1.ResourceQuota, more corev1.ResourceList) error {
	if !quota.InScope(account, q.Object) {
		return nil
	}
	hard := account.Status.Hard
	tracked := corev1.ResourceList{}
	for name, limit := range hard {
		if quota.Tracked(q.Resource, name) {
			tracked[name] = limit
		}
	}
	if len(tracked) == 0 {
		return nil
	}
	if pod, ok := q.Object.(*corev1.Pod); ok {
		if missing := quota.Missing(pod, tracked); missing != "" {
			return q.forbidden("failed quota: %s: must specify %s", account.Name, missing)
		}
	}
	var unknown []string
	for _, name := range sorted(tracked) {
		if _, ok := account.Status.Used[name]; !ok {
			unknown = append(unknown, string(name))
		}
	}
	if len(unknown) > 0 {
		return q.forbidden("status unknown for quota: %s, resources: %s", account.Name, strings.Join(unknown, ","))
	}
	requested := quota.Masked(more, tracked)
	used := account.Status.Used.DeepCopy()
	quota.Add(used, requested)
	var over []corev1.ResourceName
	for _, name := range sorted(requested) {
		rise, total := requested[name], used[name]
		if rise.Sign() > 0 && total.Cmp(hard[name]) > 0 {
			over = append(over, name)
		}
	}
	if len(over) > 0 {
		return q.forbidden("exceeded quota: %s, requested: %s, used: %s, limited: %s",
			account.Name, amounts(over, requested), amounts(over, account.Status.Used), amounts(over, hard))
	}
	account.Status.Used = used
	return nil
}

// amounts is `cpu=100m,pods=1`.
func amounts(names []corev1.ResourceName, list corev1.ResourceList) string {
	parts := make([]string, len(names))
	for i, name := range names {
		amount := list[name]
		parts[i] = fmt.Sprintf("%s=%s", name, amount.String())
	}
	return strings.Join(parts, ",")
}
