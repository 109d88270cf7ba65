package validation

import (
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// DaemonSet looks at a new daemon set.
func DaemonSet(d *appsv1.DaemonSet) field.ErrorList {
	at := field.NewPath("spec")
	spec := &d.Spec
	errs := workload(at, byDaemonSet, spec.Selector, &spec.Template)
	errs = append(errs, nonNegative(at.Child("minReadySeconds"), spec.MinReadySeconds)...)
	errs = append(errs, nonNegativePointer(at.Child("revisionHistoryLimit"), spec.RevisionHistoryLimit)...)
	strategy := at.Child("updateStrategy")
	switch spec.UpdateStrategy.Type {
	case appsv1.OnDeleteDaemonSetStrategyType:
	case appsv1.RollingUpdateDaemonSetStrategyType:
		rolling := spec.UpdateStrategy.RollingUpdate
		if rolling == nil {
			return append(errs, field.Required(strategy.Child("rollingUpdate"), ""))
		}
		unavailable, surge := orZero(rolling.MaxUnavailable), orZero(rolling.MaxSurge)
		at := strategy.Child("rollingUpdate")
		errs = append(errs, amountOrPercent(at.Child("maxUnavailable"), unavailable)...)
		errs = append(errs, notOverAll(at.Child("maxUnavailable"), unavailable)...)
		errs = append(errs, amountOrPercent(at.Child("maxSurge"), surge)...)
		errs = append(errs, notOverAll(at.Child("maxSurge"), surge)...)
		switch {
		case amount(unavailable) == 0 && amount(surge) == 0:
			errs = append(errs, field.Required(at.Child("maxUnavailable"), "cannot be 0 when maxSurge is 0"))
		case amount(unavailable) != 0 && amount(surge) != 0:
			errs = append(errs, field.Invalid(at.Child("maxSurge"), rolling.MaxSurge, "may not be set when maxUnavailable is non-zero"))
		}
	default:
		errs = append(errs, field.NotSupported(strategy.Child("type"), spec.UpdateStrategy.Type,
			[]appsv1.DaemonSetUpdateStrategyType{appsv1.OnDeleteDaemonSetStrategyType, appsv1.RollingUpdateDaemonSetStrategyType}))
	}
	return errs
}

// DaemonSetUpdate looks at a changed daemon set.
func DaemonSetUpdate(d, old *appsv1.DaemonSet) field.ErrorList {
	return append(DaemonSet(d), immutable(field.NewPath("spec", "selector"), d.Spec.Selector, old.Spec.Selector)...)
}

// StatefulSet looks at a new stateful set.
func StatefulSet(s *appsv1.StatefulSet) field.ErrorList {
	at := field.NewPath("spec")
	spec := &s.Spec
	errs := requiredOneOf(at.Child("podManagementPolicy"), spec.PodManagementPolicy, appsv1.OrderedReadyPodManagement, appsv1.ParallelPodManagement)
	strategy := at.Child("updateStrategy")
	switch spec.UpdateStrategy.Type {
	case "":
		errs = append(errs, field.Required(strategy, ""))
	case appsv1.OnDeleteStatefulSetStrategyType:
		if spec.UpdateStrategy.RollingUpdate != nil {
			errs = append(errs, field.Invalid(strategy.Child("rollingUpdate"), spec.UpdateStrategy.RollingUpdate,
				fmt.Sprintf("only allowed for updateStrategy '%s'", appsv1.RollingUpdateStatefulSetStrategyType)))
		}
	case appsv1.RollingUpdateStatefulSetStrategyType:
		if r := spec.UpdateStrategy.RollingUpdate; r != nil {
			errs = append(errs, nonNegativePointer(strategy.Child("rollingUpdate", "partition"), r.Partition)...)
			if r.MaxUnavailable != nil {
				at := strategy.Child("rollingUpdate", "maxUnavailable")
				errs = append(errs, amountOrPercent(at, *r.MaxUnavailable)...)
				errs = append(errs, notOverAll(at, *r.MaxUnavailable)...)
				if amount(*r.MaxUnavailable) == 0 {
					errs = append(errs, field.Invalid(at, *r.MaxUnavailable, "cannot be 0"))
				}
			}
		}
	default:
		errs = append(errs, field.Invalid(strategy, spec.UpdateStrategy,
			fmt.Sprintf("must be '%s' or '%s'", appsv1.RollingUpdateStatefulSetStrategyType, appsv1.OnDeleteStatefulSetStrategyType)))
	}
	if p := spec.PersistentVolumeClaimRetentionPolicy; p != nil {
		at := at.Child("persistentVolumeClaimRetentionPolicy")
		retain, remove := appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType
		errs = append(errs, oneOf(at.Child("whenDeleted"), p.WhenDeleted, retain, remove)...)
		errs = append(errs, oneOf(at.Child("whenScaled"), p.WhenScaled, retain, remove)...)
	}
	errs = append(errs, nonNegativePointer(at.Child("replicas"), spec.Replicas)...)
	errs = append(errs, nonNegative(at.Child("minReadySeconds"), spec.MinReadySeconds)...)
	if spec.Ordinals != nil {
		errs = append(errs, nonNegative(at.Child("ordinals", "start"), spec.Ordinals.Start)...)
	}
	return append(errs, workload(at, byOrdinals, spec.Selector, withClaims(spec))...)
}

// withClaims returns the template as pods have it: with a volume for each claim, in place of those of the same name.
func withClaims(spec *appsv1.StatefulSetSpec) *corev1.PodTemplateSpec {
	if len(spec.VolumeClaimTemplates) == 0 {
		return &spec.Template
	}
	template := spec.Template
	template.Spec.Volumes = slices.Clone(template.Spec.Volumes)
	for _, c := range spec.VolumeClaimTemplates {
		claimed := corev1.Volume{Name: c.Name, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c.Name}}}
		if i := slices.IndexFunc(template.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == c.Name }); i >= 0 {
			template.Spec.Volumes[i] = claimed
			continue
		}
		template.Spec.Volumes = append(template.Spec.Volumes, claimed)
	}
	return &template
}

// statefulSetUpdatable is what Kubernetes says may change of a stateful set.
const statefulSetUpdatable = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', " +
	"'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden"

// StatefulSetUpdate looks at a changed stateful set.
func StatefulSetUpdate(s, old *appsv1.StatefulSet) field.ErrorList {
	errs := StatefulSet(s)
	munged := s.Spec.DeepCopy()
	was := &old.Spec
	munged.Replicas, munged.Ordinals, munged.Template, munged.UpdateStrategy = was.Replicas, was.Ordinals, was.Template, was.UpdateStrategy
	munged.MinReadySeconds, munged.RevisionHistoryLimit = was.MinReadySeconds, was.RevisionHistoryLimit
	munged.PersistentVolumeClaimRetentionPolicy = was.PersistentVolumeClaimRetentionPolicy
	if !apiequality.Semantic.DeepEqual(*munged, *was) {
		errs = append(errs, field.Forbidden(field.NewPath("spec"), statefulSetUpdatable))
	}
	return errs
}

// ReplicationController looks at the forerunner of the replica set.
func ReplicationController(r *corev1.ReplicationController) field.ErrorList {
	at := field.NewPath("spec")
	errs := nonNegativePointer(at.Child("replicas"), r.Spec.Replicas)
	errs = append(errs, nonNegative(at.Child("minReadySeconds"), r.Spec.MinReadySeconds)...)
	selector := labels.Set(r.Spec.Selector).AsSelector()
	if selector.Empty() {
		errs = append(errs, field.Required(at.Child("selector"), ""))
	}
	if r.Spec.Template == nil {
		return append(errs, field.Required(at.Child("template"), ""))
	}
	template := at.Child("template")
	if !selector.Empty() && !selector.Matches(labels.Set(r.Spec.Template.Labels)) {
		errs = append(errs, field.Invalid(template.Child("metadata", "labels"), r.Spec.Template.Labels, "`selector` does not match template `labels`"))
	}
	errs = append(errs, PodTemplate(r.Spec.Template, template)...)
	if r.Spec.Template.Spec.ActiveDeadlineSeconds != nil {
		errs = append(errs, field.Forbidden(template.Child("spec", "activeDeadlineSeconds"), "activeDeadlineSeconds in ReplicationController is not Supported"))
	}
	return append(errs, oneOf(template.Child("spec", "restartPolicy"), r.Spec.Template.Spec.RestartPolicy, corev1.RestartPolicyAlways)...)
}

// StoredTemplate looks at a template that is an object by itself.
func StoredTemplate(t *corev1.PodTemplate) field.ErrorList {
	return PodTemplate(&t.Template, field.NewPath("template"))
}
