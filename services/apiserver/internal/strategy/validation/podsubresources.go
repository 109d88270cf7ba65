package validation

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// EphemeralContainersUpdate looks at a pod that got ephemeral containers: they are added, and then neither change nor go.
func EphemeralContainersUpdate(p, old *corev1.Pod) field.ErrorList {
	at := field.NewPath("spec", "ephemeralContainers")
	errs := podSpec(&p.Spec, field.NewPath("spec"), false)
	if _, mirror := old.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		errs = append(errs, field.Forbidden(field.NewPath(""), "static pods do not support ephemeral containers"))
	}
	next := map[string]*corev1.EphemeralContainer{}
	for i := range p.Spec.EphemeralContainers {
		next[p.Spec.EphemeralContainers[i].Name] = &p.Spec.EphemeralContainers[i]
	}
	for i := range old.Spec.EphemeralContainers {
		was := &old.Spec.EphemeralContainers[i]
		switch is, ok := next[was.Name]; {
		case !ok:
			errs = append(errs, field.Forbidden(at, "existing ephemeral containers \""+was.Name+"\" may not be removed\n"))
		case !apiequality.Semantic.DeepEqual(is, was):
			errs = append(errs, field.Forbidden(at, "existing ephemeral containers \""+was.Name+"\" may not be changed\n"))
		}
	}
	return errs
}

// resizable are the resources that can change while a container runs.
var resizable = []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory}

// PodResize looks at a pod whose resources, or those of its containers, changed; class is the class of service that they lead to.
func PodResize(p, old *corev1.Pod, class corev1.PodQOSClass) field.ErrorList {
	at := field.NewPath("spec")
	errs := podSpec(&p.Spec, at, false)
	if _, mirror := old.Annotations[corev1.MirrorPodAnnotationKey]; mirror {
		errs = append(errs, field.Forbidden(field.NewPath(""), "static pods cannot be resized"))
	}
	if old.Spec.OS != nil && old.Spec.OS.Name == corev1.Windows {
		errs = append(errs, field.Forbidden(field.NewPath(""), "windows pods cannot be resized"))
	}
	if old.Status.QOSClass != "" && class != old.Status.QOSClass {
		errs = append(errs, field.Invalid(at, class, "Pod QOS Class may not change as a result of resizing"))
	}
	errs = append(errs, resizeOfPod(at.Child("resources"), p.Spec.Resources, old.Spec.Resources)...)
	for i := range p.Spec.Containers {
		errs = append(errs, resizeOf(at.Child("containers").Index(i).Child("resources"), &p.Spec.Containers[i], &old.Spec.Containers[i])...)
	}
	for i := range p.Spec.InitContainers {
		is, was := &p.Spec.InitContainers[i], &old.Spec.InitContainers[i]
		at := at.Child("initContainers").Index(i).Child("resources")
		sidecar := was.RestartPolicy != nil && *was.RestartPolicy == corev1.ContainerRestartPolicyAlways
		if !sidecar && !apiequality.Semantic.DeepEqual(is.Resources, was.Resources) {
			errs = append(errs, field.Forbidden(at, "resources for non-sidecar init containers are immutable"))
			continue
		}
		errs = append(errs, resizeOf(at, is, was)...)
	}
	return errs
}

// resizeOfPod looks at the resources of the pod as a whole: what was said stays said, and only what is resizable changes.
func resizeOfPod(at *field.Path, is, was *corev1.ResourceRequirements) field.ErrorList {
	if is == nil && was == nil {
		return nil
	}
	if is == nil {
		return field.ErrorList{field.Forbidden(at, "pod-level resources cannot be removed")}
	}
	if was == nil {
		was = &corev1.ResourceRequirements{}
	}
	var errs field.ErrorList
	for _, pair := range []struct {
		child   string
		is, was corev1.ResourceList
	}{{"requests", is.Requests, was.Requests}, {"limits", is.Limits, was.Limits}} {
		for name := range pair.was {
			if _, kept := pair.is[name]; !kept {
				errs = append(errs, field.Forbidden(at.Child(pair.child), "pod-level resource "+pair.child+" cannot be removed"))
				break
			}
		}
		if !apiequality.Semantic.DeepEqual(fixed(pair.is), fixed(pair.was)) {
			errs = append(errs, field.Forbidden(at, "only cpu and memory resources are mutable at pod-level"))
		}
	}
	return errs
}

func resizeOf(at *field.Path, is, was *corev1.Container) field.ErrorList {
	var errs field.ErrorList
	for _, pair := range []struct {
		child   string
		is, was corev1.ResourceList
	}{{"limits", is.Resources.Limits, was.Resources.Limits}, {"requests", is.Resources.Requests, was.Resources.Requests}} {
		for name := range pair.was {
			if _, kept := pair.is[name]; !kept && slices.Contains(resizable, name) {
				errs = append(errs, field.Forbidden(at, "resource "+pair.child+" cannot be removed"))
				break
			}
		}
		if !apiequality.Semantic.DeepEqual(fixed(pair.is), fixed(pair.was)) {
			errs = append(errs, field.Forbidden(at.Child(pair.child), "only cpu and memory resources are mutable"))
		}
	}
	if !apiequality.Semantic.DeepEqual(is.Resources.Claims, was.Resources.Claims) {
		errs = append(errs, field.Forbidden(at.Child("claims"), "only cpu and memory resources are mutable"))
	}
	return errs
}

// fixed are the resources that cannot change.
func fixed(list corev1.ResourceList) corev1.ResourceList {
	rest := corev1.ResourceList{}
	for name, q := range list {
		if !slices.Contains(resizable, name) {
			rest[name] = q
		}
	}
	return rest
}
