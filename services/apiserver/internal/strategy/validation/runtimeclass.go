package validation

import (
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// RuntimeClass looks at a new class.
func RuntimeClass(c *nodev1.RuntimeClass) field.ErrorList {
	errs := dnsLabel(field.NewPath("handler"), c.Handler)
	if c.Overhead != nil {
		errs = append(errs, requirements(field.NewPath("overhead"), &corev1.ResourceRequirements{Limits: c.Overhead.PodFixed})...)
	}
	if c.Scheduling != nil {
		at := field.NewPath("scheduling")
		errs = append(errs, metav1validation.ValidateLabels(c.Scheduling.NodeSelector, at.Child("nodeSelector"))...)
		errs = append(errs, Tolerations(c.Scheduling.Tolerations, at.Child("tolerations"))...)
	}
	return errs
}

// RuntimeClassUpdate looks at a changed class: pods of it run by the handler that it had.
func RuntimeClassUpdate(c, old *nodev1.RuntimeClass) field.ErrorList {
	return append(RuntimeClass(c), immutable(field.NewPath("handler"), c.Handler, old.Handler)...)
}
