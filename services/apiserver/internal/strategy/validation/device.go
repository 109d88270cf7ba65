package validation

import (
	"encoding/json"
	"fmt"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	requestReference = "must be the name of a request in the claim or the name of a request and a subrequest separated by '/'"
	oneRequest       = "exactly one of `exactly` or `firstAvailable` is required"
	oneAttribute     = `exactly one of "matchAttribute" or "distinctAttribute" is required`
)

// tooMany complains about a list that is longer than it may be.
func tooMany(at *field.Path, length, most int) field.ErrorList {
	if length > most {
		return field.ErrorList{field.TooMany(at, length, most)}
	}
	return nil
}

// ResourceClaim looks at a new claim.
func ResourceClaim(c *resourcev1.ResourceClaim) field.ErrorList {
	return deviceClaim(field.NewPath("spec", "devices"), &c.Spec.Devices)
}

// ResourceClaimUpdate looks at a changed claim: what it asks for is fixed.
func ResourceClaimUpdate(c, old *resourcev1.ResourceClaim) field.ErrorList {
	return immutable(field.NewPath("spec"), c.Spec, old.Spec)
}

// ResourceClaimTemplate looks at a new template.
func ResourceClaimTemplate(t *resourcev1.ResourceClaimTemplate) field.ErrorList {
	at, meta := field.NewPath("spec", "metadata"), &t.Spec.ObjectMeta
	errs := metav1validation.ValidateLabels(meta.Labels, at.Child("labels"))
	for _, f := range []flag{
		{"name", meta.Name != ""}, {"generateName", meta.GenerateName != ""}, {"namespace", meta.Namespace != ""}, {"uid", meta.UID != ""},
		{"ownerReferences", len(meta.OwnerReferences) > 0}, {"finalizers", len(meta.Finalizers) > 0}, {"managedFields", len(meta.ManagedFields) > 0},
	} {
		if f.set {
			errs = append(errs, field.Forbidden(at.Child(f.name), "not allowed"))
		}
	}
	return append(errs, deviceClaim(field.NewPath("spec", "spec", "devices"), &t.Spec.Spec.Devices)...)
}

// ResourceClaimTemplateUpdate looks at a changed template: what claims are made of it is fixed.
func ResourceClaimTemplateUpdate(t, old *resourcev1.ResourceClaimTemplate) field.ErrorList {
	return immutable(field.NewPath("spec"), t.Spec, old.Spec)
}

// requestNames are the names that a claim's constraints can refer to: of requests, and of subrequests behind theirs.
type requestNames map[string]bool

func namesOf(c *resourcev1.DeviceClaim) requestNames {
	all := requestNames{}
	for _, r := range c.Requests {
		all[r.Name] = true
		for _, sub := range r.FirstAvailable {
			all[r.Name+"/"+sub.Name] = true
		}
	}
	return all
}

func (n requestNames) references(at *field.Path, list []string) field.ErrorList {
	errs := tooMany(at, len(list), resourcev1.DeviceRequestsMaxSize)
	seen := names{}
	for i, name := range list {
		if !n[name] {
			errs = append(errs, field.Invalid(at.Index(i), name, requestReference))
		}
		if seen.taken(name) {
			errs = append(errs, field.Duplicate(at.Index(i), name))
		}
	}
	return errs
}

func deviceClaim(at *field.Path, c *resourcev1.DeviceClaim) field.ErrorList {
	known := namesOf(c)
	errs := tooMany(at.Child("requests"), len(c.Requests), resourcev1.DeviceRequestsMaxSize)
	seen := names{}
	for i := range c.Requests {
		r, at := &c.Requests[i], at.Child("requests").Index(i)
		errs = append(errs, dnsLabel(at.Child("name"), r.Name)...)
		if seen.taken(r.Name) {
			errs = append(errs, field.Duplicate(at.Child("name"), r.Name))
		}
		switch first := len(r.FirstAvailable) > 0; {
		case !first && r.Exactly == nil:
			errs = append(errs, field.Required(at, oneRequest))
		case first && r.Exactly != nil:
			errs = append(errs, field.Invalid(at, nil, oneRequest+", but multiple fields are set"))
		case first:
			errs = append(errs, firstAvailable(at.Child("firstAvailable"), r.FirstAvailable)...)
		default:
			e := r.Exactly
			errs = append(errs, deviceWish(at.Child("exactly"), e.DeviceClassName, e.Selectors, e.AllocationMode, e.Count, e.Tolerations)...)
		}
	}
	errs = append(errs, tooMany(at.Child("constraints"), len(c.Constraints), resourcev1.DeviceConstraintsMaxSize)...)
	for i := range c.Constraints {
		constraint, at := &c.Constraints[i], at.Child("constraints").Index(i)
		errs = append(errs, known.references(at.Child("requests"), constraint.Requests)...)
		switch {
		case constraint.MatchAttribute != nil && constraint.DistinctAttribute != nil:
			errs = append(errs, field.Required(at, oneAttribute+", but multiple fields are set"))
		case constraint.MatchAttribute != nil:
			errs = append(errs, fullyQualified(at.Child("matchAttribute"), string(*constraint.MatchAttribute))...)
		case constraint.DistinctAttribute != nil:
			errs = append(errs, fullyQualified(at.Child("distinctAttribute"), string(*constraint.DistinctAttribute))...)
		default:
			errs = append(errs, field.Required(at, oneAttribute))
		}
	}
	errs = append(errs, tooMany(at.Child("config"), len(c.Config), resourcev1.DeviceConfigMaxSize)...)
	for i := range c.Config {
		at := at.Child("config").Index(i)
		errs = append(errs, known.references(at.Child("requests"), c.Config[i].Requests)...)
		errs = append(errs, deviceConfiguration(at, &c.Config[i].DeviceConfiguration)...)
	}
	return errs
}

func firstAvailable(at *field.Path, list []resourcev1.DeviceSubRequest) field.ErrorList {
	errs := tooMany(at, len(list), resourcev1.FirstAvailableDeviceRequestMaxSize)
	seen := names{}
	for i := range list {
		sub, at := &list[i], at.Index(i)
		errs = append(errs, dnsLabel(at.Child("name"), sub.Name)...)
		if seen.taken(sub.Name) {
			errs = append(errs, field.Duplicate(at.Child("name"), sub.Name))
		}
		errs = append(errs, deviceWish(at, sub.DeviceClassName, sub.Selectors, sub.AllocationMode, sub.Count, sub.Tolerations)...)
	}
	return errs
}

// deviceWish looks at what requests and subrequests have in common.
func deviceWish(at *field.Path, class string, selectors []resourcev1.DeviceSelector, mode resourcev1.DeviceAllocationMode, count int64, tolerations []resourcev1.DeviceToleration) field.ErrorList {
	errs := required(at.Child("deviceClassName"), class)
	if class != "" {
		errs = append(errs, dnsSubdomain(at.Child("deviceClassName"), class)...)
	}
	errs = append(errs, deviceSelectors(at.Child("selectors"), selectors)...)
	switch mode {
	case resourcev1.DeviceAllocationModeAll:
		if count != 0 {
			errs = append(errs, field.Invalid(at.Child("count"), count, fmt.Sprintf("must not be specified when allocationMode is '%s'", mode)))
		}
	case resourcev1.DeviceAllocationModeExactCount:
		if count <= 0 {
			errs = append(errs, field.Invalid(at.Child("count"), count, mustBePositive))
		}
	default:
		errs = append(errs, oneOf(at.Child("allocationMode"), mode, resourcev1.DeviceAllocationModeAll, resourcev1.DeviceAllocationModeExactCount)...)
	}
	errs = append(errs, tooMany(at.Child("tolerations"), len(tolerations), resourcev1.DeviceTolerationsMaxLength)...)
	for i := range tolerations {
		errs = append(errs, deviceToleration(at.Child("tolerations").Index(i), &tolerations[i])...)
	}
	return errs
}

// deviceSelectors looks at all of selectors but what their expressions mean, which those who evaluate them find out.
func deviceSelectors(at *field.Path, list []resourcev1.DeviceSelector) field.ErrorList {
	errs := tooMany(at, len(list), resourcev1.DeviceSelectorsMaxSize)
	for i, s := range list {
		at := at.Index(i).Child("cel")
		switch {
		case s.CEL == nil:
			errs = append(errs, field.Required(at, ""))
		case s.CEL.Expression == "":
			errs = append(errs, field.Required(at.Child("expression"), ""))
		case len(s.CEL.Expression) > resourcev1.CELSelectorExpressionMaxLength:
			errs = append(errs, field.TooLong(at.Child("expression"), "", resourcev1.CELSelectorExpressionMaxLength))
		}
	}
	return errs
}

func deviceToleration(at *field.Path, t *resourcev1.DeviceToleration) field.ErrorList {
	var errs field.ErrorList
	if t.Key != "" {
		errs = append(errs, metav1validation.ValidateLabelName(t.Key, at.Child("key"))...)
	}
	switch t.Operator {
	case resourcev1.DeviceTolerationOpExists:
		if t.Value != "" {
			errs = append(errs, field.Invalid(at.Child("value"), t.Value, "must be empty for operator `Exists`"))
		}
	case resourcev1.DeviceTolerationOpEqual:
		errs = append(errs, each(at.Child("value"), t.Value, utilvalidation.IsValidLabelValue(t.Value))...)
		if t.Key == "" {
			errs = append(errs, field.Invalid(at.Child("operator"), t.Operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\""))
		}
	default:
		errs = append(errs, requiredOneOf(at.Child("operator"), t.Operator, resourcev1.DeviceTolerationOpEqual, resourcev1.DeviceTolerationOpExists)...)
	}
	if t.Effect != "" {
		errs = append(errs, deviceEffect(at.Child("effect"), t.Effect)...)
	}
	return errs
}

func deviceEffect(at *field.Path, effect resourcev1.DeviceTaintEffect) field.ErrorList {
	return requiredOneOf(at, effect, resourcev1.DeviceTaintEffectNoExecute, resourcev1.DeviceTaintEffectNoSchedule, resourcev1.DeviceTaintEffectNone)
}

func deviceConfiguration(at *field.Path, c *resourcev1.DeviceConfiguration) field.ErrorList {
	if at = at.Child("opaque"); c.Opaque == nil {
		return field.ErrorList{field.Required(at, "")}
	}
	return append(csiDriverName(at.Child("driver"), c.Opaque.Driver), parameters(at.Child("parameters"), c.Opaque.Parameters)...)
}

// parameters looks at what only a driver understands: a JSON object.
func parameters(at *field.Path, raw runtime.RawExtension) field.ErrorList {
	switch {
	case len(raw.Raw) == 0:
		return field.ErrorList{field.Required(at, "")}
	case len(raw.Raw) > resourcev1.OpaqueParametersMaxLength:
		return field.ErrorList{field.TooLong(at, "", resourcev1.OpaqueParametersMaxLength)}
	}
	var document any
	if err := json.Unmarshal(raw.Raw, &document); err != nil {
		return field.ErrorList{field.Invalid(at, "<value omitted>", fmt.Sprintf("error parsing data as JSON: %v", err))}
	}
	if _, ok := document.(map[string]any); !ok {
		return field.ErrorList{field.Invalid(at, "<value omitted>", "must be a valid JSON object")}
	}
	return nil
}

// deviceName holds the name of an attribute or capacity to the form `[domain/]id`.
func deviceName(at *field.Path, name string) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	domain, id, qualified := strings.Cut(name, "/")
	if !qualified {
		domain, id = "", name
	}
	var errs field.ErrorList
	if qualified {
		errs = append(errs, each(at, domain, utilvalidation.IsDNS1123Subdomain(domain))...)
		if len(domain) > resourcev1.DeviceMaxDomainLength {
			errs = append(errs, field.TooLong(at, "", resourcev1.DeviceMaxDomainLength))
		}
	}
	if len(id) > resourcev1.DeviceMaxIDLength {
		errs = append(errs, field.TooLong(at, "", resourcev1.DeviceMaxIDLength))
	}
	return append(errs, each(at, id, utilvalidation.IsCIdentifier(id))...)
}

// fullyQualified is deviceName of a name that must have a domain.
func fullyQualified(at *field.Path, name string) field.ErrorList {
	errs := deviceName(at, name)
	if name != "" && !strings.Contains(name, "/") {
		errs = append(errs, field.Invalid(at, name, "must include a domain"))
	}
	return errs
}

// DeviceClass looks at a class.
func DeviceClass(c *resourcev1.DeviceClass) field.ErrorList {
	at := field.NewPath("spec")
	errs := deviceSelectors(at.Child("selectors"), c.Spec.Selectors)
	errs = append(errs, tooMany(at.Child("config"), len(c.Spec.Config), resourcev1.DeviceConfigMaxSize)...)
	for i := range c.Spec.Config {
		errs = append(errs, deviceConfiguration(at.Child("config").Index(i), &c.Spec.Config[i].DeviceConfiguration)...)
	}
	if name := c.Spec.ExtendedResourceName; name != nil {
		errs = append(errs, qualifiedName(at.Child("extendedResourceName"), *name)...)
	}
	return errs
}
