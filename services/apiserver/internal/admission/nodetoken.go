package admission

import (
	"context"
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authorizer"
)

// audienceVerb is what a node needs on an audience, as if that were a resource, for tokens that its pods' volumes do not ask for.
const audienceVerb = "request-serviceaccounts-token-audience"

var (
	volumeClaims = resource.Lookup("", "persistentvolumeclaims")
	volumes      = resource.Lookup("", "persistentvolumes")
	csiDrivers   = resource.Lookup("storage.k8s.io", "csidrivers")
)

// token keeps a node to the tokens that the pods on it are to have, bound to them.
func (n nodeRestriction) token(ctx context.Context, q *Request, node string) error {
	request, ok := q.Object.(*authenticationv1.TokenRequest)
	if q.Subresource != "token" || !ok {
		return nil
	}
	ref := request.Spec.BoundObjectRef
	switch {
	case ref == nil || ref.APIVersion != "v1" || ref.Kind != "Pod" || ref.Name == "":
		return q.forbidden("node requested token not bound to a pod")
	case ref.UID == "":
		return q.forbidden("node requested token with a pod binding without a uid")
	}
	pod, found, err := get[*corev1.Pod](ctx, q.View, pods, q.Namespace, ref.Name)
	switch {
	case err != nil:
		return err
	case !found:
		return apierrors.NewNotFound(pods.GroupResource(), ref.Name)
	case pod.UID != ref.UID:
		return q.forbidden("the UID in the bound object reference (%s) does not match the UID in record. The object might have been deleted and then recreated", ref.UID)
	case pod.Spec.NodeName != node:
		return q.forbidden("node requested token bound to a pod scheduled on a different node")
	}
	audience := ""
	switch len(request.Spec.Audiences) {
	case 0:
	case 1:
		audience = request.Spec.Audiences[0]
	default:
		return q.forbidden("node may only request 0 or 1 audiences")
	}
	needed, err := n.needs(ctx, q.View, pod, audience)
	if err != nil || needed {
		return err
	}
	return n.mayHave(ctx, q, audience)
}

// mayHave asks the authorizer for an audience that no volume needs.
func (n nodeRestriction) mayHave(ctx context.Context, q *Request, audience string) error {
	if n.authorizer != nil {
		err := n.authorizer.Authorize(ctx, authorizer.Attributes{
			User: caller(ctx), Verb: audienceVerb, Version: "v1", Resource: audience, Namespace: q.Namespace, Name: q.Name,
		})
		if err == nil || !apierrors.IsForbidden(err) {
			return err
		}
	}
	return q.forbidden("audience %q not found in pod spec volume, %s is not authorized to request tokens for this audience", audience, caller(ctx).Name)
}

// needs says whether a volume of the pod is to hold a token for the audience: a projected one, or one whose CSI driver asks for it.
func (nodeRestriction) needs(ctx context.Context, view View, pod *corev1.Pod, audience string) (bool, error) {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.Projected != nil {
			if slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
				return s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience == audience
			}) {
				return true, nil
			}
			continue
		}
		driver, err := driverOf(ctx, view, pod, v)
		if err != nil {
			return false, err
		}
		if driver == "" {
			continue
		}
		known, found, err := get[*storagev1.CSIDriver](ctx, view, csiDrivers, "", driver)
		if err != nil {
			return false, err
		}
		if found && slices.ContainsFunc(known.Spec.TokenRequests, func(r storagev1.TokenRequest) bool { return r.Audience == audience }) {
			return true, nil
		}
	}
	return false, nil
}

// driverOf returns the CSI driver of a volume, empty when it has none, or none yet.
func driverOf(ctx context.Context, view View, pod *corev1.Pod, v *corev1.Volume) (string, error) {
	claimName := ""
	switch {
	case v.CSI != nil:
		return v.CSI.Driver, nil
	case v.PersistentVolumeClaim != nil:
		claimName = v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		claimName = pod.Name + "-" + v.Name
	default:
		return "", nil
	}
	claim, found, err := get[*corev1.PersistentVolumeClaim](ctx, view, volumeClaims, pod.Namespace, claimName)
	if err != nil || !found || claim.Spec.VolumeName == "" {
		return "", err
	}
	volume, found, err := get[*corev1.PersistentVolume](ctx, view, volumes, "", claim.Spec.VolumeName)
	if err != nil || !found || volume.Spec.CSI == nil {
		return "", err
	}
	return volume.Spec.CSI.Driver, nil
}
