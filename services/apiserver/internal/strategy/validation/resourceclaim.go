package validation

import (
	"regexp"
	"slices"

	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// semanticVersion is the form of versions that semver.org specifies (2.0.0).
var semanticVersion = regexp.MustCompile(`^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)` +
	`(-(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)(\.(0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*)?(\+[0-9a-zA-Z-]+(\.[0-9a-zA-Z-]+)*)?$`)

// ResourceClaimStatusUpdate looks at what the scheduler, controllers and drivers write of a claim.
func ResourceClaimStatusUpdate(c, old *resourcev1.ResourceClaim) field.ErrorList {
	at, status, was := field.NewPath("status"), &c.Status, &old.Status
	errs := tooMany(at.Child("reservedFor"), len(status.ReservedFor), resourcev1.ResourceClaimReservedForMaxSize)
	seen := names{}
	for i, user := range status.ReservedFor {
		at := at.Child("reservedFor").Index(i)
		errs = append(errs, required(at.Child("resource"), user.Resource)...)
		errs = append(errs, required(at.Child("name"), user.Name)...)
		errs = append(errs, required(at.Child("uid"), string(user.UID))...)
		if seen.taken(string(user.UID)) {
			errs = append(errs, field.Duplicate(at, user.UID))
		}
	}
	switch reserved := at.Child("reservedFor"); {
	case len(status.ReservedFor) == 0:
	case status.Allocation == nil:
		errs = append(errs, field.Forbidden(reserved, "may not be specified when `allocated` is not set"))
	case c.DeletionTimestamp != nil:
		for _, user := range status.ReservedFor {
			if !slices.Contains(was.ReservedFor, user) {
				errs = append(errs, field.Forbidden(reserved, "new entries may not be added while `deallocationRequested` or `deletionTimestamp` are set"))
				break
			}
		}
	}
	switch {
	case status.Allocation != nil && was.Allocation != nil:
		errs = append(errs, immutable(at.Child("allocation"), status.Allocation, was.Allocation)...)
	case status.Allocation != nil:
		errs = append(errs, allocation(at.Child("allocation"), status.Allocation, namesOf(&c.Spec.Devices))...)
	}
	allocated := allocatedDevices(status.Allocation)
	taken := names{}
	for i := range status.Devices {
		d, at := &status.Devices[i], at.Child("devices").Index(i)
		id := deviceID(d.Driver, d.Pool, d.Device, (*string)(d.ShareID))
		if taken.taken(id) {
			errs = append(errs, field.Duplicate(at, id))
		}
		if !allocated[id] {
			errs = append(errs, field.Invalid(at, id, "must be an allocated device in the claim"))
		}
	}
	return errs
}

func deviceID(driver, pool, device string, share *string) string {
	id := driver + "/" + pool + "/" + device
	if share != nil {
		id += "/" + *share
	}
	return id
}

func allocatedDevices(a *resourcev1.AllocationResult) map[string]bool {
	all := map[string]bool{}
	if a == nil {
		return all
	}
	for _, r := range a.Devices.Results {
		all[deviceID(r.Driver, r.Pool, r.Device, (*string)(r.ShareID))] = true
	}
	return all
}

func allocation(at *field.Path, a *resourcev1.AllocationResult, known requestNames) field.ErrorList {
	results := at.Child("devices", "results")
	errs := tooMany(results, len(a.Devices.Results), resourcev1.AllocationResultsMaxSize)
	for i := range a.Devices.Results {
		r, at := &a.Devices.Results[i], results.Index(i)
		if !known[r.Request] {
			errs = append(errs, field.Invalid(at.Child("request"), r.Request, requestReference))
		}
		errs = append(errs, csiDriverName(at.Child("driver"), r.Driver)...)
		errs = append(errs, required(at.Child("pool"), r.Pool)...)
		errs = append(errs, dnsLabel(at.Child("device"), r.Device)...)
		errs = append(errs, bindingConditions(at, r.BindingConditions, r.BindingFailureConditions)...)
		for j := range r.Tolerations {
			errs = append(errs, deviceToleration(at.Child("tolerations").Index(j), &r.Tolerations[j])...)
		}
	}
	config := at.Child("devices", "config")
	errs = append(errs, tooMany(config, len(a.Devices.Config), 2*resourcev1.DeviceConfigMaxSize)...)
	for i := range a.Devices.Config {
		c, at := &a.Devices.Config[i], config.Index(i)
		errs = append(errs, requiredOneOf(at.Child("source"), c.Source, resourcev1.AllocationConfigSourceClaim, resourcev1.AllocationConfigSourceClass)...)
		errs = append(errs, known.references(at.Child("requests"), c.Requests)...)
		errs = append(errs, deviceConfiguration(at, &c.DeviceConfiguration)...)
	}
	if a.NodeSelector != nil {
		errs = append(errs, nodeSelector(at.Child("nodeSelector"), a.NodeSelector)...)
	}
	return errs
}
