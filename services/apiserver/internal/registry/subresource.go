package registry

import (
	"slices"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/strategy"
	"dhow.dev/services/apiserver/internal/strategy/validation"
)

// The subresources that Update, Patch and Apply know.
const (
	subresourceStatus    = "status"
	subresourceFinalize  = "finalize"
	subresourceScale     = "scale"
	subresourceEphemeral = "ephemeralcontainers"
	subresourceResize    = "resize"
	subresourceApproval  = "approval"
)

// subresources are those that single kinds have besides status, by group/plural.
var subresources = map[string][]string{
	"/namespaces":             {subresourceFinalize},
	"/pods":                   {subresourceEphemeral, subresourceResize},
	"/replicationcontrollers": {subresourceScale},
	"apps/deployments":        {subresourceScale},
	"apps/replicasets":        {subresourceScale},
	"apps/statefulsets":       {subresourceScale},
	"certificates.k8s.io/certificatesigningrequests": {subresourceApproval},
}

func checkSubresource(res *resource.Resource, subresource string) error {
	if subresource == "" || subresource == subresourceStatus && res.HasStatus || slices.Contains(subresources[res.Group+"/"+res.Plural], subresource) {
		return nil
	}
	return noSubresource(res, subresource)
}

// changesSpec says whether a write through a subresource (or none) changes what the user wants of the object.
func changesSpec(subresource string) bool {
	return slices.Contains([]string{"", subresourceScale, subresourceEphemeral, subresourceResize}, subresource)
}

// validateUpdate says what is wrong with a change, by the rules of the subresource that it came through.
func validateUpdate(s strategy.Strategy, subresource string, obj, old codec.Object) field.ErrorList {
	switch subresource {
	case "", subresourceScale:
		return s.ValidateUpdate(obj, old)
	case subresourceStatus:
		return s.ValidateStatusUpdate(obj, old)
	case subresourceApproval:
		return validation.CertificateSigningRequestApprovalUpdate(obj.(*certificatesv1.CertificateSigningRequest), old.(*certificatesv1.CertificateSigningRequest))
	case subresourceEphemeral:
		return validation.EphemeralContainersUpdate(obj.(*corev1.Pod), old.(*corev1.Pod))
	case subresourceResize:
		return validation.PodResize(obj.(*corev1.Pod), old.(*corev1.Pod), strategy.QOSClass(&obj.(*corev1.Pod).Spec))
	}
	return nil
}

// keep returns the old object with the new one's managedFields: what a subresource changes is put into it.
func keep(old, obj codec.Object) codec.Object {
	next := old.DeepCopyObject().(codec.Object)
	next.SetManagedFields(obj.GetManagedFields())
	next.SetResourceVersion(obj.GetResourceVersion())
	return next
}

// resize gives the pod and its containers, found by their names, the resources that they have in wanted.
func resize(pod, wanted *corev1.Pod) {
	pod.Spec.Resources = wanted.Spec.Resources.DeepCopy()
	for _, pair := range [][2][]corev1.Container{{pod.Spec.Containers, wanted.Spec.Containers}, {pod.Spec.InitContainers, wanted.Spec.InitContainers}} {
		for i := range pair[0] {
			c := &pair[0][i]
			at := slices.IndexFunc(pair[1], func(other corev1.Container) bool { return other.Name == c.Name })
			if at < 0 {
				continue
			}
			c.Resources = *pair[1][at].Resources.DeepCopy()
			// As on creation: what is limited and was never requested is requested.
			for name, limit := range c.Resources.Limits {
				if _, ok := c.Resources.Requests[name]; !ok {
					if c.Resources.Requests == nil {
						c.Resources.Requests = corev1.ResourceList{}
					}
					c.Resources.Requests[name] = limit.DeepCopy()
				}
			}
		}
	}
}

// approve gives csr the conditions of wanted: the subresource `approval` writes these and nothing else of the status.
func (r *Registry) approve(csr, wanted *certificatesv1.CertificateSigningRequest) {
	now := metav1.NewTime(r.now()).Rfc3339Copy()
	csr.Status.Conditions = slices.Clone(wanted.Status.Conditions)
	for i := range csr.Status.Conditions {
		c := &csr.Status.Conditions[i]
		if c.LastUpdateTime.IsZero() {
			c.LastUpdateTime = now
		}
		if c.LastTransitionTime.IsZero() {
			c.LastTransitionTime = now
		}
	}
}
