package admission

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilerrors "k8s.io/apimachinery/pkg/util/errors"

	"dhow.dev/pkg/quota"
	table "dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
)

var limitRanges = table.Lookup("", "limitranges")

// limitRangerAnnotation tells which resources a container has from a LimitRange.
const limitRangerAnnotation = "kubernetes.io/limit-ranger"

// limitRanger gives containers the default resources of their namespace, and holds containers, pods and volume claims to its bounds.
type limitRanger struct{}

func (limitRanger) concerns(q *Request) bool {
	switch {
	case q.Operation != Create && q.Operation != Update:
		return false
	case q.is("", "pods"):
		// Resources of a pod that exists change through the subresource alone.
		return q.Operation == Create
	case q.on("", "pods", "resize"):
		return q.Operation == Update
	}
	return q.is("", "persistentvolumeclaims")
}

func eachLimit(ctx context.Context, q *Request, visit func(*corev1.LimitRangeItem)) error {
	return q.View.List(ctx, limitRanges, q.Namespace, func(o codec.Object) bool {
		if r, ok := o.(*corev1.LimitRange); ok {
			for i := range r.Spec.Limits {
				visit(&r.Spec.Limits[i])
			}
		}
		return true
	})
}

func (l limitRanger) mutate(ctx context.Context, q *Request) error {
	pod, ok := q.Object.(*corev1.Pod)
	if !ok || !l.concerns(q) || q.Operation != Create {
		return nil
	}
	return eachLimit(ctx, q, func(item *corev1.LimitRangeItem) {
		if item.Type != corev1.LimitTypeContainer {
			return
		}
		var set []string
		for i := range pod.Spec.Containers {
			set = complete(&pod.Spec.Containers[i], item, "container", set)
		}
		for i := range pod.Spec.InitContainers {
			set = complete(&pod.Spec.InitContainers[i], item, "init container", set)
		}
		if len(set) > 0 {
			metav1.SetMetaDataAnnotation(&pod.ObjectMeta, limitRangerAnnotation, "LimitRanger plugin set: "+strings.Join(set, "; "))
		}
	})
}

// complete gives a container the defaults that it does not set itself, and notes which.
func complete(c *corev1.Container, item *corev1.LimitRangeItem, title string, notes []string) []string {
	requests := fill(&c.Resources.Requests, item.DefaultRequest)
	limits := fill(&c.Resources.Limits, item.Default)
	if len(requests) > 0 {
		notes = append(notes, fmt.Sprintf("%s request for %s %s", strings.Join(requests, ", "), title, c.Name))
	}
	if len(limits) > 0 {
		notes = append(notes, fmt.Sprintf("%s limit for %s %s", strings.Join(limits, ", "), title, c.Name))
	}
	return notes
}

func fill(list *corev1.ResourceList, defaults corev1.ResourceList) []string {
	var set []string
	for name, q := range defaults {
		if _, has := (*list)[name]; has {
			continue
		}
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		(*list)[name] = q.DeepCopy()
		set = append(set, string(name))
	}
	slices.Sort(set)
	return set
}

func (l limitRanger) validate(ctx context.Context, q *Request) error {
	if !l.concerns(q) {
		return nil
	}
	var errs []error
	err := eachLimit(ctx, q, func(item *corev1.LimitRangeItem) {
		switch o := q.Object.(type) {
		case *corev1.Pod:
			errs = append(errs, podBounds(&o.Spec, item)...)
		case *corev1.PersistentVolumeClaim:
			if item.Type == corev1.LimitTypePersistentVolumeClaim {
				errs = append(errs, claimBounds(o.Spec.Resources.Requests, item)...)
			}
		}
	})
	if err != nil {
		return err
	}
	if len(errs) > 0 {
		return q.forbidden("%w", utilerrors.NewAggregate(errs))
	}
	return nil
}

func podBounds(spec *corev1.PodSpec, item *corev1.LimitRangeItem) []error {
	var errs []error
	switch item.Type {
	case corev1.LimitTypeContainer:
		for _, list := range [][]corev1.Container{spec.Containers, spec.InitContainers} {
			for i := range list {
				errs = append(errs, bounds(item, list[i].Resources.Requests, list[i].Resources.Limits)...)
			}
		}
	case corev1.LimitTypePod:
		errs = bounds(item, quota.PodTotal(spec, quota.Requests), quota.PodTotal(spec, quota.Limits))
	}
	return errs
}

// bounds holds what is requested and limited to an item's minimum, maximum and ratio, in Kubernetes' words.
func bounds(item *corev1.LimitRangeItem, requests, limits corev1.ResourceList) []error {
	var errs []error
	fail := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, name := range sorted(item.Min) {
		least := item.Min[name]
		request, requested := requests[name]
		limit, limited := limits[name]
		switch {
		case !requested:
			fail("minimum %s usage per %s is %s.  No request is specified", name, item.Type, least.String())
		case request.Cmp(least) < 0:
			fail("minimum %s usage per %s is %s, but request is %s", name, item.Type, least.String(), request.String())
		case limited && limit.Cmp(least) < 0:
			fail("minimum %s usage per %s is %s, but limit is %s", name, item.Type, least.String(), limit.String())
		}
	}
	for _, name := range sorted(item.Max) {
		most := item.Max[name]
		request, requested := requests[name]
		limit, limited := limits[name]
		switch {
		case !limited:
			fail("maximum %s usage per %s is %s.  No limit is specified", name, item.Type, most.String())
		case limit.Cmp(most) > 0:
			fail("maximum %s usage per %s is %s, but limit is %s", name, item.Type, most.String(), limit.String())
		case requested && request.Cmp(most) > 0:
			fail("maximum %s usage per %s is %s, but request is %s", name, item.Type, most.String(), request.String())
		}
	}
	for _, name := range sorted(item.MaxLimitRequestRatio) {
		most := item.MaxLimitRequestRatio[name]
		request, limit := requests[name], limits[name]
		switch ratio := limit.AsApproximateFloat64() / request.AsApproximateFloat64(); {
		case request.IsZero():
			fail("%s max limit to request ratio per %s is %s, but no request is specified or request is 0", name, item.Type, most.String())
		case limit.IsZero():
			fail("%s max limit to request ratio per %s is %s, but no limit is specified or limit is 0", name, item.Type, most.String())
		case ratio-most.AsApproximateFloat64() > 1e-9*math.Abs(ratio):
			fail("%s max limit to request ratio per %s is %s, but provided ratio is %f", name, item.Type, most.String(), ratio)
		}
	}
	return errs
}

// claimBounds holds a claim's request to an item's minimum and maximum.
func claimBounds(requests corev1.ResourceList, item *corev1.LimitRangeItem) []error {
	errs := bounds(&corev1.LimitRangeItem{Type: item.Type, Min: item.Min}, requests, nil)
	for _, name := range sorted(item.Max) {
		most := item.Max[name]
		request, requested := requests[name]
		switch {
		case !requested:
			errs = append(errs, fmt.Errorf("maximum %s usage per %s is %s.  No request is specified", name, item.Type, most.String()))
		case request.Cmp(most) > 0:
			errs = append(errs, fmt.Errorf("maximum %s usage per %s is %s, but request is %s", name, item.Type, most.String(), request.String()))
		}
	}
	return errs
}

// sorted returns the names of a list in order, so that messages do not change from call to call.
func sorted(list map[corev1.ResourceName]resource.Quantity) []corev1.ResourceName {
	names := make([]corev1.ResourceName, 0, len(list))
	for name := range list {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
