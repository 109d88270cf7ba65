package validation

import (
	"math"

	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"dhow.dev/services/apiserver/internal/strategy/defaulting"
)

// Pod looks at a new pod.
func Pod(p *corev1.Pod) field.ErrorList {
	at := field.NewPath("spec")
	errs := podSpec(&p.Spec, at, false)
	if len(p.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(at.Child("ephemeralContainers"), "cannot be set on create"))
	}
	if p.Spec.NodeName != "" && len(p.Spec.SchedulingGates) > 0 {
		errs = append(errs, field.Forbidden(at.Child("nodeName"), "cannot be set until all schedulingGates have been cleared"))
	}
	return errs
}

// PodTemplate looks at the pod that a template describes.
func PodTemplate(t *corev1.PodTemplateSpec, at *field.Path) field.ErrorList {
	errs := metav1validation.ValidateLabels(t.Labels, at.Child("labels"))
	errs = append(errs, apivalidation.ValidateAnnotations(t.Annotations, at.Child("annotations"))...)
	errs = append(errs, podSpec(&t.Spec, at.Child("spec"), true)...)
	if len(t.Spec.EphemeralContainers) > 0 {
		errs = append(errs, field.Forbidden(at.Child("spec", "ephemeralContainers"), "ephemeral containers not allowed in pod template"))
	}
	return errs
}

// podSpec looks at what pods and templates have in common.
func podSpec(spec *corev1.PodSpec, at *field.Path, template bool) field.ErrorList {
	p := &pod{spec: spec, path: at, volumes: make(map[string]*corev1.Volume, len(spec.Volumes)), template: template}
	errs := p.podVolumes(at.Child("volumes"))
	errs = append(errs, p.resourceClaims(at.Child("resourceClaims"))...)
	errs = append(errs, p.containers(at.Child("containers"))...)
	errs = append(errs, p.initContainers(at.Child("initContainers"))...)
	errs = append(errs, p.ephemeralContainers(at.Child("ephemeralContainers"))...)
	errs = append(errs, requiredOneOf(at.Child("restartPolicy"), spec.RestartPolicy, corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever)...)
	errs = append(errs, requiredOneOf(at.Child("dnsPolicy"), spec.DNSPolicy,
		corev1.DNSClusterFirstWithHostNet, corev1.DNSClusterFirst, corev1.DNSDefault, corev1.DNSNone)...)
	errs = append(errs, metav1validation.ValidateLabels(spec.NodeSelector, at.Child("nodeSelector"))...)
	errs = append(errs, p.podSecurityContext(at.Child("securityContext"), spec.SecurityContext)...)
	for i, ref := range spec.ImagePullSecrets {
		errs = append(errs, required(at.Child("imagePullSecrets").Index(i).Child("name"), ref.Name)...)
	}
	errs = append(errs, affinity(at.Child("affinity"), spec.Affinity)...)
	errs = append(errs, dnsConfig(at.Child("dnsConfig"), spec)...)
	errs = append(errs, p.gates()...)
	errs = append(errs, topologySpread(at.Child("topologySpreadConstraints"), spec.TopologySpreadConstraints)...)
	errs = append(errs, p.identity()...)
	errs = append(errs, Tolerations(spec.Tolerations, at.Child("tolerations"))...)
	errs = append(errs, hostAliases(at.Child("hostAliases"), spec.HostAliases)...)
	return append(errs, p.policies()...)
}

// gates looks at what holds a pod back: from being scheduled, and from being ready.
func (p *pod) gates() field.ErrorList {
	var errs field.ErrorList
	for i, gate := range p.spec.ReadinessGates {
		errs = append(errs, qualifiedName(p.path.Child("readinessGates").Index(i).Child("conditionType"), string(gate.ConditionType))...)
	}
	seen := names{}
	for i, gate := range p.spec.SchedulingGates {
		at := p.path.Child("schedulingGates").Index(i)
		errs = append(errs, qualifiedName(at.Child("name"), gate.Name)...)
		if seen.taken(gate.Name) {
			errs = append(errs, field.Duplicate(at, gate.Name))
		}
	}
	return errs
}

// maxHostname is Linux's limit on a host's name.
const maxHostname = 64

// identity looks at the names of what the pod is and belongs to.
func (p *pod) identity() field.ErrorList {
	var errs field.ErrorList
	spec, at := p.spec, p.path
	for _, n := range []struct {
		name, value string
		rule        func(*field.Path, string) field.ErrorList
	}{
		{"serviceAccountName", spec.ServiceAccountName, dnsSubdomain},
		{"nodeName", spec.NodeName, dnsSubdomain},
		{"hostname", spec.Hostname, dnsLabel},
		{"subdomain", spec.Subdomain, dnsLabel},
		{"priorityClassName", spec.PriorityClassName, dnsSubdomain},
		{"schedulerName", spec.SchedulerName, qualifiedName},
	} {
		if n.value != "" {
			errs = append(errs, n.rule(at.Child(n.name), n.value)...)
		}
	}
	if spec.RuntimeClassName != nil {
		errs = append(errs, dnsSubdomain(at.Child("runtimeClassName"), *spec.RuntimeClassName)...)
	}
	if h := spec.HostnameOverride; h != nil {
		at := at.Child("hostnameOverride")
		errs = append(errs, dnsSubdomain(at, *h)...)
		if len(*h) > maxHostname {
			errs = append(errs, field.TooLong(at, *h, maxHostname))
		}
		if spec.SetHostnameAsFQDN != nil && *spec.SetHostnameAsFQDN {
			errs = append(errs, field.Forbidden(at, "may not be set when `setHostnameAsFQDN` is true"))
		}
		if spec.HostNetwork {
			errs = append(errs, field.Forbidden(at, "may not be set when `hostNetwork` is true"))
		}
	}
	return errs
}

// policies looks at the remaining choices.
func (p *pod) policies() field.ErrorList {
	var errs field.ErrorList
	spec, at := p.spec, p.path
	if s := spec.ActiveDeadlineSeconds; s != nil && (*s < 1 || *s > math.MaxInt32) {
		errs = append(errs, field.Invalid(at.Child("activeDeadlineSeconds"), *s, utilvalidation.InclusiveRangeError(1, math.MaxInt32)))
	}
	if spec.PreemptionPolicy != nil {
		errs = append(errs, preemptionPolicy(at.Child("preemptionPolicy"), *spec.PreemptionPolicy)...)
	}
	if len(spec.Overhead) > 0 {
		errs = append(errs, requirements(at.Child("overhead"), &corev1.ResourceRequirements{Limits: spec.Overhead})...)
	}
	if spec.OS != nil {
		errs = append(errs, requiredOneOf(at.Child("os", "name"), spec.OS.Name, corev1.Linux, corev1.Windows)...)
	}
	if spec.Resources != nil {
		errs = append(errs, p.podResources(at.Child("resources"))...)
	}
	return errs
}

func preemptionPolicy(at *field.Path, policy corev1.PreemptionPolicy) field.ErrorList {
	return requiredOneOf(at, policy, corev1.PreemptLowerPriority, corev1.PreemptNever)
}

// podResources looks at what the pod as a whole requests.
func (p *pod) podResources(at *field.Path) field.ErrorList {
	errs := requirements(at, p.spec.Resources)
	if len(p.spec.Resources.Claims) > 0 {
		errs = append(errs, field.Forbidden(at.Child("claims"), "claims may not be set for Resources at pod-level"))
	}
	for _, list := range []struct {
		name      string
		resources corev1.ResourceList
	}{{"limits", p.spec.Resources.Limits}, {"requests", p.spec.Resources.Requests}} {
		for _, name := range sortedNames(list.resources) {
			if name != corev1.ResourceCPU && name != corev1.ResourceMemory && !hugePages(name) {
				errs = append(errs, field.NotSupported(at.Child(list.name), name, []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory, "hugepages-"}))
			}
		}
	}
	return append(errs, p.podShares(at)...)
}

// podShares looks whether the containers fit into what the pod as a whole has.
func (p *pod) podShares(at *field.Path) field.ErrorList {
	var errs field.ErrorList
	whole := p.spec.Resources
	sums := defaulting.Sum(p.spec, defaulting.Requests)
	for _, name := range sortedNames(sums) {
		sum, own := sums[name], whole.Requests[name]
		if _, set := whole.Requests[name]; set && sum.Cmp(own) > 0 {
			errs = append(errs, field.Invalid(at.Child("requests").Key(string(name)), own.String(), "must be greater than or equal to aggregate container requests of "+sum.String()))
		}
	}
	sums = defaulting.Sum(p.spec, defaulting.Limits)
	for _, name := range sortedNames(sums) {
		sum, own := sums[name], whole.Limits[name]
		if _, set := whole.Limits[name]; set && hugePages(name) && sum.Cmp(own) > 0 {
			errs = append(errs, field.Invalid(at.Child("limits").Key(string(name)), own.String(), "must be greater than or equal to aggregate container limits of "+sum.String()))
		}
	}
	for i, c := range p.spec.Containers {
		for _, name := range sortedNames(c.Resources.Limits) {
			limit, own := c.Resources.Limits[name], whole.Limits[name]
			if _, set := whole.Limits[name]; set && limit.Cmp(own) > 0 {
				errs = append(errs, field.Invalid(at.Child("containers").Index(i).Key(string(name)).Child("limits"), limit.String(), "must be less than or equal to pod limits of "+own.String()))
			}
		}
	}
	return errs
}

// resourceClaims looks at the devices that the pod asks for, and remembers their names.
func (p *pod) resourceClaims(at *field.Path) field.ErrorList {
	var errs field.ErrorList
	if len(p.spec.ResourceClaims) == 0 {
		return nil
	}
	p.claims = names{}
	for i, claim := range p.spec.ResourceClaims {
		at := at.Index(i)
		switch {
		case claim.Name == "":
			errs = append(errs, field.Required(at.Child("name"), ""))
		case p.claims.taken(claim.Name):
			errs = append(errs, field.Duplicate(at.Child("name"), claim.Name))
		default:
			errs = append(errs, dnsLabel(at.Child("name"), claim.Name)...)
		}
		direct, template := claim.ResourceClaimName != nil, claim.ResourceClaimTemplateName != nil
		if direct && template {
			errs = append(errs, field.Invalid(at, claim, "at most one of `resourceClaimName` or `resourceClaimTemplateName` may be specified"))
		}
		if !direct && !template {
			errs = append(errs, field.Invalid(at, claim, "must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"))
		}
		if direct {
			errs = append(errs, dnsSubdomain(at.Child("resourceClaimName"), *claim.ResourceClaimName)...)
		}
		if template {
			errs = append(errs, dnsSubdomain(at.Child("resourceClaimTemplateName"), *claim.ResourceClaimTemplateName)...)
		}
	}
	return errs
}

// Bounds of the resolver's configuration; Kubernetes' own.
const (
	maxNameservers  = 3
	maxSearchPaths  = 32
	maxSearchLength = 2048
)

func dnsConfig(at *field.Path, spec *corev1.PodSpec) field.ErrorList {
	config := spec.DNSConfig
	if spec.DNSPolicy == corev1.DNSNone {
		if config == nil {
			return field.ErrorList{field.Required(at, "must provide `dnsConfig` when `dnsPolicy` is None")}
		}
		if len(config.Nameservers) == 0 {
			return field.ErrorList{field.Required(at.Child("nameservers"), "must provide at least one DNS nameserver when `dnsPolicy` is None")}
		}
	}
	if config == nil {
		return nil
	}
	var errs field.ErrorList
	if len(config.Nameservers) > maxNameservers {
		errs = append(errs, field.Invalid(at.Child("nameservers"), config.Nameservers, "must not have more than 3 nameservers"))
	}
	for i, ns := range config.Nameservers {
		errs = append(errs, utilvalidation.IsValidIPForLegacyField(at.Child("nameservers").Index(i), ns, false, nil)...)
	}
	if len(config.Searches) > maxSearchPaths {
		errs = append(errs, field.Invalid(at.Child("searches"), config.Searches, "must not have more than 32 search paths"))
	}
	length := -1
	for i, search := range config.Searches {
		length += len(search) + 1
		trimmed := search
		if len(trimmed) > 1 && trimmed[len(trimmed)-1] == '.' {
			trimmed = trimmed[:len(trimmed)-1]
		}
		if trimmed != "." {
			errs = append(errs, each(at.Child("searches").Index(i), trimmed, utilvalidation.IsDNS1123SubdomainWithUnderscore(trimmed))...)
		}
	}
	if length > maxSearchLength {
		errs = append(errs, field.Invalid(at.Child("searches"), config.Searches, "must not have more than 2048 characters (including spaces) in the search list"))
	}
	for i, option := range config.Options {
		errs = append(errs, required(at.Child("options").Index(i), option.Name)...)
	}
	return errs
}

func hostAliases(at *field.Path, list []corev1.HostAlias) field.ErrorList {
	var errs field.ErrorList
	for i, alias := range list {
		errs = append(errs, utilvalidation.IsValidIPForLegacyField(at.Index(i).Child("ip"), alias.IP, false, nil)...)
		for j, name := range alias.Hostnames {
			errs = append(errs, dnsSubdomain(at.Index(i).Child("hostnames").Index(j), name)...)
		}
	}
	return errs
}
