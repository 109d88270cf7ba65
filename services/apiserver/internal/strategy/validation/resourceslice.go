package validation

import (
	"maps"
	"slices"
	"strings"

	resourcev1 "k8s.io/api/resource/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	onePlacement       = "exactly one of `nodeName`, `nodeSelector`, `allNodes`, `perDeviceNodeSelection` is required"
	oneDevicePlacement = "exactly one of `nodeName`, `nodeSelector`, or `allNodes` is required when `perDeviceNodeSelection` is set to true in the ResourceSlice spec"
)

// ResourceSlice looks at a new slice.
func ResourceSlice(s *resourcev1.ResourceSlice) field.ErrorList {
	at, spec := field.NewPath("spec"), &s.Spec
	errs := csiDriverName(at.Child("driver"), spec.Driver)
	errs = append(errs, devicePool(at.Child("pool"), &spec.Pool)...)
	perDevice := spec.PerDeviceNodeSelection != nil && *spec.PerDeviceNodeSelection
	errs = append(errs, placement(at, onePlacement, spec.NodeName != nil, spec.NodeSelector != nil, spec.AllNodes != nil && *spec.AllNodes, perDevice)...)
	if spec.NodeName != nil {
		errs = append(errs, dnsSubdomain(at.Child("nodeName"), *spec.NodeName)...)
	}
	if spec.NodeSelector != nil {
		errs = append(errs, nodeSelector(at.Child("nodeSelector"), spec.NodeSelector)...)
		if len(spec.NodeSelector.NodeSelectorTerms) > 1 {
			errs = append(errs, field.Invalid(at.Child("nodeSelector", "nodeSelectorTerms"), len(spec.NodeSelector.NodeSelectorTerms), "must have exactly one node selector term"))
		}
	}
	if len(spec.Devices) > 0 && len(spec.SharedCounters) > 0 {
		errs = append(errs, field.Invalid(at, nil, "only one of `devices` or `sharedCounters` is allowed"))
	}
	most := resourcev1.ResourceSliceMaxDevices
	seen := names{}
	for i := range spec.Devices {
		d := &spec.Devices[i]
		if len(d.Taints) > 0 || len(d.ConsumesCounters) > 0 {
			most = resourcev1.ResourceSliceMaxDevicesWithAdvancedFeatures
		}
		errs = append(errs, device(at.Child("devices").Index(i), d, perDevice)...)
		if seen.taken(d.Name) {
			errs = append(errs, field.Duplicate(at.Child("devices").Index(i).Child("name"), d.Name))
		}
	}
	errs = append(errs, tooMany(at.Child("devices"), len(spec.Devices), most)...)
	return append(errs, counterSets(at.Child("sharedCounters"), spec.SharedCounters)...)
}

// ResourceSliceUpdate looks at a changed slice: whose it is is fixed, and where it is.
func ResourceSliceUpdate(s, old *resourcev1.ResourceSlice) field.ErrorList {
	at := field.NewPath("spec")
	errs := ResourceSlice(s)
	errs = append(errs, immutable(at.Child("driver"), s.Spec.Driver, old.Spec.Driver)...)
	errs = append(errs, immutable(at.Child("pool", "name"), s.Spec.Pool.Name, old.Spec.Pool.Name)...)
	return append(errs, immutable(at.Child("nodeName"), s.Spec.NodeName, old.Spec.NodeName)...)
}

func devicePool(at *field.Path, p *resourcev1.ResourcePool) field.ErrorList {
	errs := required(at.Child("name"), p.Name)
	if len(p.Name) > resourcev1.PoolNameMaxLength {
		errs = append(errs, field.TooLong(at.Child("name"), "", resourcev1.PoolNameMaxLength))
	}
	if p.Name != "" {
		for part := range strings.SplitSeq(p.Name, "/") {
			errs = append(errs, dnsSubdomain(at.Child("name"), part)...)
		}
	}
	if p.ResourceSliceCount <= 0 {
		errs = append(errs, field.Invalid(at.Child("resourceSliceCount"), p.ResourceSliceCount, mustBePositive))
	}
	return append(errs, nonNegative(at.Child("generation"), p.Generation)...)
}

// placement holds ways to say where something is to exactly one.
func placement(at *field.Path, words string, ways ...bool) field.ErrorList {
	set := 0
	for _, way := range ways {
		if way {
			set++
		}
	}
	switch {
	case set == 0:
		return field.ErrorList{field.Required(at, words)}
	case set > 1:
		return field.ErrorList{field.Invalid(at, nil, words+", but multiple fields are set")}
	}
	return nil
}

func device(at *field.Path, d *resourcev1.Device, placed bool) field.ErrorList {
	errs := dnsLabel(at.Child("name"), d.Name)
	if n := len(d.Attributes) + len(d.Capacity); n > resourcev1.ResourceSliceMaxAttributesAndCapacitiesPerDevice {
		errs = append(errs, field.Invalid(at, n, "the total number of attributes and capacities must not exceed 32"))
	}
	for _, name := range slices.Sorted(maps.Keys(d.Attributes)) {
		value, at := d.Attributes[name], at.Child("attributes").Key(string(name))
		errs = append(errs, deviceName(at, string(name))...)
		errs = append(errs, deviceAttribute(at, &value)...)
	}
	for _, name := range slices.Sorted(maps.Keys(d.Capacity)) {
		errs = append(errs, deviceName(at.Child("capacity").Key(string(name)), string(name))...)
	}
	errs = append(errs, tooMany(at.Child("taints"), len(d.Taints), resourcev1.DeviceTaintsMaxLength)...)
	for i := range d.Taints {
		t, at := &d.Taints[i], at.Child("taints").Index(i)
		errs = append(errs, metav1validation.ValidateLabelName(t.Key, at.Child("key"))...)
		errs = append(errs, each(at.Child("value"), t.Value, utilvalidation.IsValidLabelValue(t.Value))...)
		errs = append(errs, deviceEffect(at.Child("effect"), t.Effect)...)
	}
	errs = append(errs, tooMany(at.Child("consumesCounters"), len(d.ConsumesCounters), resourcev1.ResourceSliceMaxDeviceCounterConsumptionsPerDevice)...)
	seen := names{}
	for i, c := range d.ConsumesCounters {
		at := at.Child("consumesCounters").Index(i)
		errs = append(errs, dnsLabel(at.Child("counterSet"), c.CounterSet)...)
		if seen.taken(c.CounterSet) {
			errs = append(errs, field.Duplicate(at.Child("counterSet"), c.CounterSet))
		}
		errs = append(errs, counters(at.Child("counters"), c.Counters, resourcev1.ResourceSliceMaxCountersPerDeviceCounterConsumption)...)
	}
	errs = append(errs, bindingConditions(at, d.BindingConditions, d.BindingFailureConditions)...)
	own := []bool{d.NodeName != nil, d.NodeSelector != nil, d.AllNodes != nil && *d.AllNodes}
	if placed {
		errs = append(errs, placement(at, oneDevicePlacement, own...)...)
	} else {
		for i, name := range []string{"nodeName", "nodeSelector", "allNodes"} {
			if own[i] {
				errs = append(errs, field.Invalid(at.Child(name), nil, "must not be set unless `perDeviceNodeSelection` is set to true in the ResourceSlice spec"))
			}
		}
	}
	if d.NodeName != nil {
		errs = append(errs, dnsSubdomain(at.Child("nodeName"), *d.NodeName)...)
	}
	if d.NodeSelector != nil {
		errs = append(errs, nodeSelector(at.Child("nodeSelector"), d.NodeSelector)...)
	}
	return errs
}

func deviceAttribute(at *field.Path, a *resourcev1.DeviceAttribute) field.ErrorList {
	set := 0
	for _, is := range []bool{
		a.IntValue != nil, a.BoolValue != nil, a.StringValue != nil, a.VersionValue != nil, a.IntValues != nil, a.BoolValues != nil, a.StringValues != nil, a.VersionValues != nil,
	} {
		if is {
			set++
		}
	}
	switch {
	case set == 0:
		return field.ErrorList{field.Required(at, "exactly one value must be specified")}
	case set > 1:
		return field.ErrorList{field.Invalid(at, nil, "exactly one value must be specified")}
	}
	var errs field.ErrorList
	if s := a.StringValue; s != nil && len(*s) > resourcev1.DeviceAttributeMaxValueLength {
		errs = append(errs, field.TooLong(at.Child("string"), "", resourcev1.DeviceAttributeMaxValueLength))
	}
	if v := a.VersionValue; v != nil {
		if len(*v) > resourcev1.DeviceAttributeMaxValueLength {
			errs = append(errs, field.TooLong(at.Child("version"), "", resourcev1.DeviceAttributeMaxValueLength))
		} else if !semanticVersion.MatchString(*v) {
			errs = append(errs, field.Invalid(at.Child("version"), *v, "must be a string compatible with semver.org spec 2.0.0"))
		}
	}
	return errs
}

func bindingConditions(at *field.Path, conditions, failures []string) field.ErrorList {
	errs := tooMany(at.Child("bindingConditions"), len(conditions), resourcev1.BindingConditionsMaxSize)
	errs = append(errs, tooMany(at.Child("bindingFailureConditions"), len(failures), resourcev1.BindingFailureConditionsMaxSize)...)
	switch {
	case len(conditions) > 0 && len(failures) == 0:
		errs = append(errs, field.Required(at.Child("bindingFailureConditions"), "required when `bindingConditions` is specified"))
	case len(conditions) == 0 && len(failures) > 0:
		errs = append(errs, field.Required(at.Child("bindingConditions"), "required when `bindingFailureConditions` is specified"))
	}
	seen := names{}
	for _, list := range []struct {
		name  string
		types []string
	}{{"bindingConditions", conditions}, {"bindingFailureConditions", failures}} {
		for i, t := range list.types {
			at := at.Child(list.name).Index(i)
			errs = append(errs, qualifiedName(at, t)...)
			if seen.taken(t) {
				errs = append(errs, field.Duplicate(at, t))
			}
		}
	}
	return errs
}

func counterSets(at *field.Path, sets []resourcev1.CounterSet) field.ErrorList {
	errs := tooMany(at, len(sets), resourcev1.ResourceSliceMaxCounterSets)
	seen := names{}
	for i, set := range sets {
		at := at.Index(i)
		errs = append(errs, dnsLabel(at.Child("name"), set.Name)...)
		if seen.taken(set.Name) {
			errs = append(errs, field.Duplicate(at.Child("name"), set.Name))
		}
		errs = append(errs, counters(at.Child("counters"), set.Counters, resourcev1.ResourceSliceMaxCountersPerCounterSet)...)
	}
	return errs
}

func counters(at *field.Path, all map[string]resourcev1.Counter, most int) field.ErrorList {
	if len(all) == 0 {
		return field.ErrorList{field.Required(at, "")}
	}
	errs := tooMany(at, len(all), most)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		errs = append(errs, dnsLabel(at.Key(name), name)...)
	}
	return errs
}
