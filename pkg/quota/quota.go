// Package quota says what objects count against the resource quotas of their namespace, in Kubernetes' names and scopes.
//
// The API server counts with it when objects are written, the controller manager when they change or go. Both work on the structs of k8s.io/api.
package quota

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apiresource "k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/pkg/resource"
)

const (
	countPrefix = "count/"
	// classSuffix separates the name of a storage class from what is counted of its claims.
	classSuffix = ".storageclass.storage.k8s.io/"
)

// byName are the kinds that quotas counted by their plain name before all could be counted.
var byName = []string{"configmaps", "secrets", "services", "replicationcontrollers", "resourcequotas", "persistentvolumeclaims"}

// isEvent: as in Kubernetes, quotas do not count events, which come and go by themselves.
func isEvent(res *resource.Resource) bool { return res.Kind == "Event" }

func number(n int64) apiresource.Quantity { return *apiresource.NewQuantity(n, apiresource.DecimalSI) }

// Counts says which of a quota's resources count objects of a kind by their number alone: `count/deployments.apps`, `configmaps`.
func Counts(res *resource.Resource, name corev1.ResourceName) bool {
	return !isEvent(res) && string(name) == countPrefix+res.String() || res.Group == "" && string(name) == res.Plural && slices.Contains(byName, res.Plural)
}

// Tracked says whether a quota's resource is about objects of a kind.
func Tracked(res *resource.Resource, name corev1.ResourceName) bool {
	if Counts(res, name) {
		return true
	}
	if res.Group != "" {
		return false
	}
	switch res.Plural {
	case "pods":
		bare := strings.TrimPrefix(strings.TrimPrefix(string(name), corev1.DefaultResourceRequestsPrefix), "limits.")
		known := slices.Contains(compute, corev1.ResourceName(bare)) || isHugePages(corev1.ResourceName(bare))
		return name == corev1.ResourcePods || known || bare != string(name) && isExtended(corev1.ResourceName(bare))
	case "services":
		return name == corev1.ResourceServicesNodePorts || name == corev1.ResourceServicesLoadBalancers
	case "persistentvolumeclaims":
		return name == corev1.ResourceRequestsStorage || strings.Contains(string(name), classSuffix)
	}
	return false
}

// Resource returns the kind that a quota's resource counts by number, nil for others and unknown ones.
func Resource(name corev1.ResourceName) *resource.Resource {
	plural, counted := strings.CutPrefix(string(name), countPrefix)
	if !counted {
		if slices.Contains(byName, plural) {
			return resource.Lookup("", plural)
		}
		return nil
	}
	gr := schema.ParseGroupResource(plural)
	if res := resource.Lookup(gr.Group, gr.Resource); res != nil && !isEvent(res) {
		return res
	}
	return nil
}

// Usage returns all that an object counts, under every name that a quota can have for it.
func Usage(res *resource.Resource, o runtime.Object) corev1.ResourceList {
	used := corev1.ResourceList{}
	switch o := o.(type) {
	case *corev1.Pod:
		used = podUsage(o)
	case *corev1.Service:
		used = serviceUsage(o)
	case *corev1.PersistentVolumeClaim:
		used = claimUsage(o)
	}
	if !isEvent(res) {
		used[corev1.ResourceName(countPrefix+res.String())] = number(1)
	}
	if res.Group == "" && slices.Contains(byName, res.Plural) {
		used[corev1.ResourceName(res.Plural)] = number(1)
	}
	return used
}

// Masked returns the part of a usage that the quota is about.
func Masked(used, hard corev1.ResourceList) corev1.ResourceList {
	some := corev1.ResourceList{}
	for name, q := range used {
		if _, ok := hard[name]; ok {
			some[name] = q
		}
	}
	return some
}

func serviceUsage(s *corev1.Service) corev1.ResourceList {
	ports := int64(0)
	switch s.Spec.Type {
	case corev1.ServiceTypeNodePort:
		ports = int64(len(s.Spec.Ports))
	case corev1.ServiceTypeLoadBalancer:
		if s.Spec.AllocateLoadBalancerNodePorts == nil || *s.Spec.AllocateLoadBalancerNodePorts {
			ports = int64(len(s.Spec.Ports))
			break
		}
		for _, p := range s.Spec.Ports {
			if p.NodePort != 0 {
				ports++
			}
		}
	}
	used := corev1.ResourceList{corev1.ResourceServicesNodePorts: number(ports), corev1.ResourceServicesLoadBalancers: number(0)}
	if s.Spec.Type == corev1.ServiceTypeLoadBalancer {
		used[corev1.ResourceServicesLoadBalancers] = number(1)
	}
	return used
}

func claimUsage(c *corev1.PersistentVolumeClaim) corev1.ResourceList {
	class := ""
	if c.Spec.StorageClassName != nil {
		class = *c.Spec.StorageClassName
	}
	if legacy, ok := c.Annotations[corev1.BetaStorageClassAnnotation]; ok {
		class = legacy
	}
	used := corev1.ResourceList{}
	if class != "" {
		used[corev1.ResourceName(class+classSuffix+"persistentvolumeclaims")] = number(1)
	}
	if size, ok := c.Spec.Resources.Requests[corev1.ResourceStorage]; ok {
		// What a claim has been given counts while it is more than what it asks for now.
		if given, ok := c.Status.AllocatedResources[corev1.ResourceStorage]; ok && given.Cmp(size) > 0 {
			size = given
		}
		used[corev1.ResourceRequestsStorage] = size
		if class != "" {
			used[corev1.ResourceName(class+classSuffix+"requests.storage")] = size
		}
	}
	return used
}

// InScope says whether an object is one of those that the quota's scopes select. Scopes select pods: a quota with any is about nothing else.
func InScope(q *corev1.ResourceQuota, o runtime.Object) bool {
	var scopes []corev1.ScopedResourceSelectorRequirement
	for _, s := range q.Spec.Scopes {
		scopes = append(scopes, corev1.ScopedResourceSelectorRequirement{ScopeName: s, Operator: corev1.ScopeSelectorOpExists})
	}
	if q.Spec.ScopeSelector != nil {
		scopes = append(scopes, q.Spec.ScopeSelector.MatchExpressions...)
	}
	if len(scopes) == 0 {
		return true
	}
	pod, ok := o.(*corev1.Pod)
	return ok && !slices.ContainsFunc(scopes, func(s corev1.ScopedResourceSelectorRequirement) bool { return !inScope(pod, s) })
}
