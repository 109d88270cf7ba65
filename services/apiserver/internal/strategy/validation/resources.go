package validation

import (
	"fmt"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func itoa(n int64) string { return strconv.FormatInt(n, 10) }

// resources looks at what a container requests and is limited to.
func (p *pod) resources(path *field.Path, r *corev1.ResourceRequirements) field.ErrorList {
	errs := requirements(path, r)
	seen := names{}
	for i, claim := range r.Claims {
		at := path.Child("claims").Index(i)
		if claim.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
			continue
		}
		if seen.taken(claim.Name + "/" + claim.Request) {
			errs = append(errs, field.Duplicate(at, claim.Name))
		}
		if !p.claims[claim.Name] {
			errs = append(errs, field.NotFound(at.Child("name"), claim.Name))
		}
	}
	return errs
}

// requirements looks at requests and limits.
func requirements(path *field.Path, r *corev1.ResourceRequirements) field.ErrorList {
	var errs field.ErrorList
	limits, requests := path.Child("limits"), path.Child("requests")
	for _, name := range sortedNames(r.Limits) {
		quantity := r.Limits[name]
		errs = append(errs, containerResourceName(limits.Key(string(name)), name)...)
		errs = append(errs, ResourceQuantity(limits.Key(string(name)), name, quantity)...)
	}
	for _, name := range sortedNames(r.Requests) {
		quantity := r.Requests[name]
		errs = append(errs, containerResourceName(requests.Key(string(name)), name)...)
		errs = append(errs, ResourceQuantity(requests.Key(string(name)), name, quantity)...)
		limit, limited := r.Limits[name]
		switch {
		case limited && quantity.Cmp(limit) != 0 && !overcommits(name):
			errs = append(errs, field.Invalid(requests, quantity.String(), fmt.Sprintf("must be equal to %s limit of %s", name, limit.String())))
		case limited && quantity.Cmp(limit) > 0:
			errs = append(errs, field.Invalid(requests, quantity.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, limit.String())))
		case !limited && !overcommits(name):
			errs = append(errs, field.Required(limits, "Limit must be set for non overcommitable resources"))
		}
	}
	huge, plain := false, false
	for _, list := range []corev1.ResourceList{r.Limits, r.Requests} {
		for name := range list {
			huge = huge || strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
			plain = plain || name == corev1.ResourceCPU || name == corev1.ResourceMemory
		}
	}
	if huge && !plain {
		errs = append(errs, field.Forbidden(path, "HugePages require cpu or memory"))
	}
	return errs
}

func sortedNames(list corev1.ResourceList) []corev1.ResourceName {
	if len(list) == 0 {
		return nil
	}
	keys := make([]corev1.ResourceName, 0, len(list))
	for name := range list {
		keys = append(keys, name)
	}
	return sorted(keys)
}

// overcommits says whether more of a resource may be limited than requested: of Kubernetes' own, all but huge pages.
func overcommits(name corev1.ResourceName) bool {
	return native(name) && !strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}

func native(name corev1.ResourceName) bool {
	return !strings.Contains(string(name), "/") || strings.Contains(string(name), corev1.ResourceDefaultNamespacePrefix)
}

// resourceName looks at the name of any resource.
func resourceName(path *field.Path, name corev1.ResourceName) field.ErrorList {
	if errs := qualifiedName(path, string(name)); len(errs) > 0 {
		return errs
	}
	if !strings.Contains(string(name), "/") && !standardResources[name] && !strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) {
		return field.ErrorList{field.Invalid(path, name, "must be a standard resource type or fully qualified")}
	}
	return nil
}

// containerResourceName looks at the name of a resource that containers can have.
func containerResourceName(path *field.Path, name corev1.ResourceName) field.ErrorList {
	errs := resourceName(path, name)
	if !strings.Contains(string(name), "/") {
		if !containerResources[name] && !strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix) {
			errs = append(errs, field.Invalid(path, name, "must be a standard resource for containers"))
		}
		return errs
	}
	if !native(name) && !extended(name) {
		errs = append(errs, field.Invalid(path, name, "doesn't follow extended resource name standard"))
	}
	return errs
}

// extended says whether a name is that of a resource of somebody else than Kubernetes.
func extended(name corev1.ResourceName) bool {
	return !native(name) && !strings.HasPrefix(string(name), corev1.DefaultResourceRequestsPrefix) &&
		len(utilvalidation.IsQualifiedName(corev1.DefaultResourceRequestsPrefix+string(name))) == 0
}

var containerResources = map[corev1.ResourceName]bool{corev1.ResourceCPU: true, corev1.ResourceMemory: true, corev1.ResourceEphemeralStorage: true}

// standardResources are the names without a domain that mean something, those of quotas included.
var standardResources = map[corev1.ResourceName]bool{
	corev1.ResourceCPU: true, corev1.ResourceMemory: true, corev1.ResourceEphemeralStorage: true, corev1.ResourceStorage: true,
	corev1.ResourceRequestsCPU: true, corev1.ResourceRequestsMemory: true, corev1.ResourceRequestsEphemeralStorage: true, corev1.ResourceRequestsStorage: true,
	corev1.ResourceLimitsCPU: true, corev1.ResourceLimitsMemory: true, corev1.ResourceLimitsEphemeralStorage: true,
	corev1.ResourcePods: true, corev1.ResourceQuotas: true, corev1.ResourceServices: true, corev1.ResourceReplicationControllers: true,
	corev1.ResourceSecrets: true, corev1.ResourceConfigMaps: true, corev1.ResourcePersistentVolumeClaims: true,
	corev1.ResourceServicesNodePorts: true, corev1.ResourceServicesLoadBalancers: true,
}

// ResourceQuantity looks at an amount: not negative, and whole for what cannot be divided.
func ResourceQuantity(path *field.Path, name corev1.ResourceName, q resource.Quantity) field.ErrorList {
	errs := notNegativeQuantity(path, q)
	if whole(name) && q.MilliValue()%1000 != 0 {
		errs = append(errs, field.Invalid(path, q.String(), "must be an integer"))
	}
	return errs
}

// notNegativeQuantity looks at an amount of anything.
func notNegativeQuantity(path *field.Path, q resource.Quantity) field.ErrorList {
	if q.Sign() < 0 {
		return field.ErrorList{field.Invalid(path, q.String(), notNegative)}
	}
	return nil
}

func whole(name corev1.ResourceName) bool {
	switch name {
	case corev1.ResourcePods, corev1.ResourceQuotas, corev1.ResourceServices, corev1.ResourceReplicationControllers, corev1.ResourceSecrets,
		corev1.ResourceConfigMaps, corev1.ResourcePersistentVolumeClaims, corev1.ResourceServicesNodePorts, corev1.ResourceServicesLoadBalancers:
		return true
	}
	return extended(name)
}

func hugePagesField(name string) bool {
	return strings.HasPrefix(name, "limits."+corev1.ResourceHugePagesPrefix) || strings.HasPrefix(name, "requests."+corev1.ResourceHugePagesPrefix)
}

func hugePages(name corev1.ResourceName) bool {
	return strings.HasPrefix(string(name), corev1.ResourceHugePagesPrefix)
}
