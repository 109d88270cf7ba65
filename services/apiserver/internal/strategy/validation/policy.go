package validation

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// PodDisruptionBudget looks at a budget, new or changed.
func PodDisruptionBudget(b *policyv1.PodDisruptionBudget) field.ErrorList {
	at := field.NewPath("spec")
	var errs field.ErrorList
	if b.Spec.MinAvailable != nil && b.Spec.MaxUnavailable != nil {
		errs = append(errs, field.Invalid(at, b.Spec, "minAvailable and maxUnavailable cannot be both set"))
	}
	if v := b.Spec.MinAvailable; v != nil {
		errs = append(errs, amountOrPercent(at.Child("minAvailable"), *v)...)
		errs = append(errs, notOverAll(at.Child("minAvailable"), *v)...)
	}
	if v := b.Spec.MaxUnavailable; v != nil {
		errs = append(errs, amountOrPercent(at.Child("maxUnavailable"), *v)...)
		errs = append(errs, notOverAll(at.Child("maxUnavailable"), *v)...)
	}
	if p := b.Spec.UnhealthyPodEvictionPolicy; p != nil {
		errs = append(errs, oneOf(at.Child("unhealthyPodEvictionPolicy"), *p, policyv1.IfHealthyBudget, policyv1.AlwaysAllow)...)
	}
	return append(errs, metav1validation.ValidateLabelSelector(b.Spec.Selector, metav1validation.LabelSelectorValidationOptions{}, at.Child("selector"))...)
}

// Role looks at the rules of a role.
func Role(r *rbacv1.Role) field.ErrorList { return policyRules(r.Rules, true) }

// ClusterRole looks at the rules of a role for the whole cluster.
func ClusterRole(r *rbacv1.ClusterRole) field.ErrorList {
	errs := policyRules(r.Rules, false)
	if r.AggregationRule == nil {
		return errs
	}
	at := field.NewPath("aggregationRule", "clusterRoleSelectors")
	if len(r.AggregationRule.ClusterRoleSelectors) == 0 {
		return append(errs, field.Required(at, "at least one clusterRoleSelector required if aggregationRule is non-nil"))
	}
	for i := range r.AggregationRule.ClusterRoleSelectors {
		errs = append(errs, metav1validation.ValidateLabelSelector(&r.AggregationRule.ClusterRoleSelectors[i], metav1validation.LabelSelectorValidationOptions{}, at.Index(i))...)
	}
	return errs
}

func policyRules(rules []rbacv1.PolicyRule, namespaced bool) field.ErrorList {
	var errs field.ErrorList
	for i, rule := range rules {
		at := field.NewPath("rules").Index(i)
		if len(rule.Verbs) == 0 {
			errs = append(errs, field.Required(at.Child("verbs"), "verbs must contain at least one value"))
		}
		if len(rule.NonResourceURLs) > 0 {
			if namespaced {
				errs = append(errs, field.Invalid(at.Child("nonResourceURLs"), rule.NonResourceURLs, "namespaced rules cannot apply to non-resource URLs"))
			}
			if len(rule.APIGroups)+len(rule.Resources)+len(rule.ResourceNames) > 0 {
				errs = append(errs, field.Invalid(at.Child("nonResourceURLs"), rule.NonResourceURLs, "rules cannot apply to both regular resources and non-resource URLs"))
			}
			continue
		}
		if len(rule.APIGroups) == 0 {
			errs = append(errs, field.Required(at.Child("apiGroups"), "resource rules must supply at least one api group"))
		}
		if len(rule.Resources) == 0 {
			errs = append(errs, field.Required(at.Child("resources"), "resource rules must supply at least one resource"))
		}
	}
	return errs
}

// RoleBinding looks at a binding.
func RoleBinding(b *rbacv1.RoleBinding) field.ErrorList {
	return append(roleRef(b.RoleRef, "Role", "ClusterRole"), subjects(b.Subjects, true)...)
}

// RoleBindingUpdate looks at a changed binding: to what role it binds is fixed.
func RoleBindingUpdate(b, old *rbacv1.RoleBinding) field.ErrorList {
	return append(RoleBinding(b), cannotChangeRole(b.RoleRef, old.RoleRef)...)
}

// ClusterRoleBinding looks at a binding for the whole cluster.
func ClusterRoleBinding(b *rbacv1.ClusterRoleBinding) field.ErrorList {
	return append(roleRef(b.RoleRef, "ClusterRole"), subjects(b.Subjects, false)...)
}

// ClusterRoleBindingUpdate looks at a changed binding for the whole cluster.
func ClusterRoleBindingUpdate(b, old *rbacv1.ClusterRoleBinding) field.ErrorList {
	return append(ClusterRoleBinding(b), cannotChangeRole(b.RoleRef, old.RoleRef)...)
}

func cannotChangeRole(ref, old rbacv1.RoleRef) field.ErrorList {
	if ref == old {
		return nil
	}
	return field.ErrorList{field.Invalid(field.NewPath("roleRef"), ref, "cannot change roleRef")}
}

func roleRef(ref rbacv1.RoleRef, kinds ...string) field.ErrorList {
	at := field.NewPath("roleRef")
	errs := oneOf(at.Child("apiGroup"), ref.APIGroup, rbacv1.GroupName)
	errs = append(errs, oneOf(at.Child("kind"), ref.Kind, kinds...)...)
	return append(errs, required(at.Child("name"), ref.Name)...)
}

func subjects(list []rbacv1.Subject, namespaced bool) field.ErrorList {
	var errs field.ErrorList
	for i, s := range list {
		at := field.NewPath("subjects").Index(i)
		errs = append(errs, required(at.Child("name"), s.Name)...)
		switch s.Kind {
		case rbacv1.ServiceAccountKind:
			if s.APIGroup != "" {
				errs = append(errs, field.NotSupported(at.Child("apiGroup"), s.APIGroup, []string{""}))
			}
			if !namespaced && s.Namespace == "" {
				errs = append(errs, field.Required(at.Child("namespace"), ""))
			}
		case rbacv1.UserKind, rbacv1.GroupKind:
			errs = append(errs, oneOf(at.Child("apiGroup"), s.APIGroup, rbacv1.GroupName)...)
		default:
			errs = append(errs, field.NotSupported(at.Child("kind"), s.Kind, []string{rbacv1.ServiceAccountKind, rbacv1.UserKind, rbacv1.GroupKind}))
		}
	}
	return errs
}

// StorageClass looks at a new class of volumes.
func StorageClass(s *storagev1.StorageClass) field.ErrorList {
	errs := required(field.NewPath("provisioner"), s.Provisioner)
	if s.ReclaimPolicy != nil {
		errs = append(errs, oneOf(field.NewPath("reclaimPolicy"), *s.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete, corev1.PersistentVolumeReclaimRetain)...)
	}
	if s.VolumeBindingMode == nil {
		return append(errs, field.Required(field.NewPath("volumeBindingMode"), ""))
	}
	return append(errs, oneOf(field.NewPath("volumeBindingMode"), *s.VolumeBindingMode, storagev1.VolumeBindingImmediate, storagev1.VolumeBindingWaitForFirstConsumer)...)
}

// StorageClassUpdate looks at a changed class of volumes.
func StorageClassUpdate(s, old *storagev1.StorageClass) field.ErrorList {
	errs := StorageClass(s)
	for _, f := range []struct {
		name    string
		changed bool
	}{{"parameters", !maps.Equal(s.Parameters, old.Parameters)}, {"provisioner", s.Provisioner != old.Provisioner}} {
		if f.changed {
			errs = append(errs, field.Forbidden(field.NewPath(f.name), "updates to "+f.name+" are forbidden."))
		}
	}
	errs = append(errs, immutable(field.NewPath("reclaimPolicy"), s.ReclaimPolicy, old.ReclaimPolicy)...)
	return append(errs, immutable(field.NewPath("volumeBindingMode"), s.VolumeBindingMode, old.VolumeBindingMode)...)
}
