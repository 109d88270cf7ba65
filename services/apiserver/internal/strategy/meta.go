package strategy

import (
	"net/netip"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/api/validation/path"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
)

// nameRules are the kinds whose names are not DNS subdomains (RFC 1123), which is the rule for all others.
var nameRules = map[schema.GroupKind]validation.ValidateNameFunc{
	{Kind: "Namespace"}:                                              validation.NameIsDNSLabel,
	{Kind: "Service"}:                                                validation.NameIsDNS1035Label,
	{Group: "apps", Kind: "StatefulSet"}:                             validation.NameIsDNSLabel,
	{Group: "batch", Kind: "CronJob"}:                                cronJobName,
	{Group: "rbac.authorization.k8s.io", Kind: "Role"}:               path.ValidatePathSegmentName,
	{Group: "rbac.authorization.k8s.io", Kind: "RoleBinding"}:        path.ValidatePathSegmentName,
	{Group: "rbac.authorization.k8s.io", Kind: "ClusterRole"}:        path.ValidatePathSegmentName,
	{Group: "rbac.authorization.k8s.io", Kind: "ClusterRoleBinding"}: path.ValidatePathSegmentName,
	{Group: "networking.k8s.io", Kind: "IPAddress"}:                  ipName,
	// Kubernetes takes any name for a request.
	{Group: "certificates.k8s.io", Kind: "CertificateSigningRequest"}: path.ValidatePathSegmentName,
	// Its rules look at the rest of the name, which depends on the signer.
	{Group: "certificates.k8s.io", Kind: "ClusterTrustBundle"}: path.ValidatePathSegmentName,
}

// cronJobNameMax leaves room in a job's name (63) for the 11 characters that the controller appends.
const cronJobNameMax = 52

func cronJobName(name string, prefix bool) []string {
	problems := validation.NameIsDNSSubdomain(name, prefix)
	if !prefix && len(name) > cronJobNameMax {
		problems = append(problems, "must be no more than 52 characters")
	}
	return problems
}

func ipName(name string, _ bool) []string {
	address, err := netip.ParseAddr(name)
	if err != nil {
		return []string{err.Error()}
	}
	if address.String() != name {
		return []string{"must be a valid IP address in canonical form, " + address.String()}
	}
	return nil
}

// NameRule returns the rule that names of a kind have to keep.
func NameRule(res *resource.Resource) validation.ValidateNameFunc {
	if rule, ok := nameRules[res.GroupVersionKind().GroupKind()]; ok {
		return rule
	}
	return validation.NameIsDNSSubdomain
}

var metadata = field.NewPath("metadata")

// ValidateMeta says what is wrong with a new object's metadata.
func ValidateMeta(res *resource.Resource, obj codec.Object) field.ErrorList {
	errs := validation.ValidateObjectMetaAccessor(obj, res.Namespaced, NameRule(res), metadata)
	// The name is part of the store's key, whatever the kind's rule allows.
	for _, msg := range path.IsValidPathSegmentName(obj.GetName()) {
		if len(errs) == 0 {
			errs = append(errs, field.Invalid(metadata.Child("name"), obj.GetName(), msg))
		}
	}
	// Kubernetes' own limit on the length, which names that are path segments do not have otherwise.
	if len(obj.GetName()) > utilvalidation.DNS1123SubdomainMaxLength && len(errs) == 0 {
		errs = append(errs, field.Invalid(metadata.Child("name"), obj.GetName(), utilvalidation.MaxLenError(utilvalidation.DNS1123SubdomainMaxLength)))
	}
	return errs
}

// ValidateMetaUpdate says what is wrong with changed metadata.
func ValidateMetaUpdate(res *resource.Resource, obj, old codec.Object) field.ErrorList {
	errs := validation.ValidateObjectMetaAccessorUpdate(obj, old, metadata)
	errs = append(errs, validation.ValidateFinalizers(obj.GetFinalizers(), metadata.Child("finalizers"))...)
	if !res.Namespaced && obj.GetNamespace() != "" {
		errs = append(errs, field.Forbidden(metadata.Child("namespace"), "not allowed on this type"))
	}
	return errs
}

// generations are the kinds whose generation Kubernetes counts.
var generations = map[schema.GroupKind]bool{
	{Kind: "Pod"}: true, {Kind: "ReplicationController"}: true, {Kind: "PodTemplate"}: true,
	{Group: "apps", Kind: "DaemonSet"}: true, {Group: "apps", Kind: "Deployment"}: true, {Group: "apps", Kind: "ReplicaSet"}: true, {Group: "apps", Kind: "StatefulSet"}: true,
	{Group: "batch", Kind: "CronJob"}: true, {Group: "batch", Kind: "Job"}: true,
	{Group: "policy", Kind: "PodDisruptionBudget"}: true,
	{Group: "networking.k8s.io", Kind: "Ingress"}:  true, {Group: "networking.k8s.io", Kind: "IngressClass"}: true, {Group: "networking.k8s.io", Kind: "NetworkPolicy"}: true,
	{Group: "discovery.k8s.io", Kind: "EndpointSlice"}:          true,
	{Group: "scheduling.k8s.io", Kind: "PriorityClass"}:         true,
	{Group: "storage.k8s.io", Kind: "CSIDriver"}:                true,
	{Group: "flowcontrol.apiserver.k8s.io", Kind: "FlowSchema"}: true, {Group: "flowcontrol.apiserver.k8s.io", Kind: "PriorityLevelConfiguration"}: true,
	{Group: "resource.k8s.io", Kind: "ResourceSlice"}: true, {Group: "resource.k8s.io", Kind: "DeviceClass"}: true,
}

// PrepareForCreate empties what the user may not choose of a new object.
func PrepareForCreate(res *resource.Resource, obj codec.Object) {
	obj.SetDeletionTimestamp(nil)
	obj.SetDeletionGracePeriodSeconds(nil)
	obj.SetSelfLink("")
	obj.SetGeneration(0)
	if generations[res.GroupVersionKind().GroupKind()] {
		obj.SetGeneration(1)
	}
	// An agent registers its node together with the first status.
	if res.HasStatus && (res.Group != "" || res.Kind != "Node") {
		if status, ok := codec.Status(obj); ok {
			status.SetZero()
		}
	}
}

// PrepareForUpdate takes from the old object what a write of the object itself may not change, and what the user may leave out (uid, creation
// and deletion time).
func PrepareForUpdate(res *resource.Resource, obj, old codec.Object) {
	obj.SetGeneration(old.GetGeneration())
	obj.SetSelfLink("")
	if obj.GetUID() == "" {
		obj.SetUID(old.GetUID())
	}
	if created := obj.GetCreationTimestamp(); created.IsZero() {
		obj.SetCreationTimestamp(old.GetCreationTimestamp())
	}
	// A deletion that has begun cannot be taken back, nor its grace period changed here.
	if obj.GetDeletionTimestamp() == nil {
		obj.SetDeletionTimestamp(old.GetDeletionTimestamp())
	}
	if obj.GetDeletionGracePeriodSeconds() == nil {
		obj.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds())
	}
	if res.HasStatus {
		copyStatus(obj, old)
	}
}

// stateOnly are the kinds whose status writers change the status and nothing else.
var stateOnly = map[schema.GroupKind]bool{
	{Group: "flowcontrol.apiserver.k8s.io", Kind: "FlowSchema"}: true, {Group: "flowcontrol.apiserver.k8s.io", Kind: "PriorityLevelConfiguration"}: true,
	{Group: "resource.k8s.io", Kind: "ResourceClaim"}: true, {Group: "storage.k8s.io", Kind: "VolumeAttachment"}: true,
}

// StateOnly says whether who writes the status of a kind changes nothing else.
func StateOnly(res *resource.Resource) bool { return stateOnly[res.GroupVersionKind().GroupKind()] }

// KeepMetadata takes from old the metadata that a write through a subresource may not change. Kubernetes lets writers of the status change labels, annotations,
// finalizers and owners as well, save for a few kinds; with all set they change none.
func KeepMetadata(res *resource.Resource, obj, old codec.Object, all bool) {
	kind := res.GroupVersionKind().GroupKind()
	if all = all || StateOnly(res); all {
		obj.SetAnnotations(old.GetAnnotations())
		obj.SetFinalizers(old.GetFinalizers())
	}
	if all || kind == (schema.GroupKind{Group: "apps", Kind: "Deployment"}) {
		obj.SetLabels(old.GetLabels())
	}
	if all || kind == (schema.GroupKind{Kind: "Pod"}) {
		obj.SetOwnerReferences(old.GetOwnerReferences())
	}
}

// WithMetadata returns a copy of old with obj's metadata, as far as KeepMetadata leaves it to be changed.
func WithMetadata(obj, old codec.Object) codec.Object {
	next := old.DeepCopyObject().(codec.Object)
	next.SetLabels(obj.GetLabels())
	next.SetAnnotations(obj.GetAnnotations())
	next.SetFinalizers(obj.GetFinalizers())
	next.SetOwnerReferences(obj.GetOwnerReferences())
	next.SetManagedFields(obj.GetManagedFields())
	next.SetResourceVersion(obj.GetResourceVersion())
	return next
}

// PrepareForStatusUpdate makes obj what old is, but for status and the metadata that obj may change.
func PrepareForStatusUpdate(obj, old codec.Object) codec.Object {
	next := WithMetadata(obj, old)
	copyStatus(next, obj)
	return next
}

func copyStatus(to, from codec.Object) {
	if status, ok := codec.Status(to); ok {
		source, _ := codec.Status(from)
		status.Set(source)
	}
}

// BumpGeneration counts a change of what the user wants: of anything but metadata and status. Annotations of deployments count as well, as in Kubernetes:
// their controller copies them to replica sets.
func BumpGeneration(res *resource.Resource, obj, old codec.Object) {
	if !generations[res.GroupVersionKind().GroupKind()] {
		return
	}
	if _, ok := codec.Spec(obj); ok {
		mine, _ := codec.Spec(obj)
		theirs, _ := codec.Spec(old)
		annotated := res.Group == "apps" && res.Kind == "Deployment" && !apiequality.Semantic.DeepEqual(obj.GetAnnotations(), old.GetAnnotations())
		if !annotated && apiequality.Semantic.DeepEqual(mine.Interface(), theirs.Interface()) {
			return
		}
	} else if sameContent(obj, old) {
		return
	}
	obj.SetGeneration(old.GetGeneration() + 1)
}

// sameContent compares objects of kinds without a spec.
func sameContent(obj, old codec.Object) bool {
	probe := obj.DeepCopyObject().(codec.Object)
	for _, set := range []func(){
		func() { probe.SetAnnotations(old.GetAnnotations()) },
		func() { probe.SetResourceVersion(old.GetResourceVersion()) },
		func() { probe.SetManagedFields(old.GetManagedFields()) },
		func() { probe.SetFinalizers(old.GetFinalizers()) },
		func() { probe.SetOwnerReferences(old.GetOwnerReferences()) },
		func() { probe.SetGeneration(old.GetGeneration()) },
		func() { probe.SetCreationTimestamp(old.GetCreationTimestamp()) },
		func() { probe.SetDeletionTimestamp(old.GetDeletionTimestamp()) },
		func() { probe.SetDeletionGracePeriodSeconds(old.GetDeletionGracePeriodSeconds()) },
	} {
		set()
	}
	return apiequality.Semantic.DeepEqual(probe, old)
}
