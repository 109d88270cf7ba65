package token

import (
	"context"
	"errors"
	"fmt"
	"slices"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	dhowcorev1 "dhow.dev/gen/go/dhow/core/v1"
	dhowstoragev1 "dhow.dev/gen/go/dhow/storage/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
)

var (
	claims  = resource.For[*dhowcorev1.PersistentVolumeClaim]()
	volumes = resource.For[*dhowcorev1.PersistentVolume]()
	drivers = resource.For[*dhowstoragev1.CSIDriver]()
)

// restrict keeps a node to the tokens that the pods on it are to have, as Kubernetes' NodeRestriction admission does.
func (i *Issuer) restrict(ctx context.Context, b binding, ref *authenticationv1.BoundObjectReference, audiences []string) error {
	caller, _ := identity.FromContext(ctx)
	node, isNode := caller.NodeName()
	if !isNode {
		return nil
	}
	forbidden := func(reason string) error {
		return apierrors.NewForbidden(accounts.GroupResource(), b.ServiceAccount.Name, errors.New(reason))
	}
	switch {
	case b.Pod == nil || ref.APIVersion != corev1.SchemeGroupVersion.String():
		return forbidden("node requested token not bound to a pod")
	case ref.UID == "":
		return forbidden("node requested token with a pod binding without a uid")
	case b.Node == nil || b.Node.Name != node:
		return forbidden("node requested token bound to a pod scheduled on a different node")
	}
	audience := ""
	switch len(audiences) {
	case 0:
	case 1:
		audience = audiences[0]
	default:
		return forbidden("node may only request 0 or 1 audiences")
	}
	needed, err := i.needs(b.Namespace, b.Pod.Name, audience)
	switch {
	case err != nil:
		return apierrors.NewInternalError(err)
	case !needed:
		return forbidden(fmt.Sprintf("audience %q not found in pod spec volume", audience))
	}
	return nil
}

// needs says whether a volume of the pod is to hold a token for the audience: a projected one, or one whose CSI driver asks for it.
func (i *Issuer) needs(namespace, name, audience string) (bool, error) {
	var pod corev1.Pod
	if ok, err := i.decode(pods, namespace, name, &pod); !ok {
		return false, err
	}
	for _, v := range pod.Spec.Volumes {
		driver := ""
		switch {
		case v.Projected != nil:
			if slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
				return s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience == audience
			}) {
				return true, nil
			}
			continue
		case v.CSI != nil:
			driver = v.CSI.Driver
		case v.PersistentVolumeClaim != nil || v.Ephemeral != nil:
			claim := pod.Name + "-" + v.Name // of an ephemeral volume
			if v.PersistentVolumeClaim != nil {
				claim = v.PersistentVolumeClaim.ClaimName
			}
			var err error
			if driver, err = i.driverOf(namespace, claim); err != nil {
				return false, err
			}
		}
		if driver == "" {
			continue
		}
		var known storagev1.CSIDriver
		ok, err := i.decode(drivers, "", driver, &known)
		if err != nil {
			return false, err
		}
		if ok && slices.ContainsFunc(known.Spec.TokenRequests, func(r storagev1.TokenRequest) bool { return r.Audience == audience }) {
			return true, nil
		}
	}
	return false, nil
}

// driverOf returns the CSI driver of the volume that a claim is bound to, empty when it has none.
func (i *Issuer) driverOf(namespace, claim string) (string, error) {
	var c corev1.PersistentVolumeClaim
	if ok, err := i.decode(claims, namespace, claim, &c); !ok || c.Spec.VolumeName == "" {
		return "", err
	}
	var v corev1.PersistentVolume
	if ok, err := i.decode(volumes, "", c.Spec.VolumeName, &v); !ok || v.Spec.CSI == nil {
		return "", err
	}
	return v.Spec.CSI.Driver, nil
}

// decode decodes an object, and returns false when there is none.
func (i *Issuer) decode(r *resource.Resource, namespace, name string, into interface{ Unmarshal([]byte) error }) (bool, error) {
	e := i.objects.Peek(r, namespace, name)
	if e == nil {
		return false, nil
	}
	if err := into.Unmarshal(e.Object); err != nil {
		return false, fmt.Errorf("%s %q cannot be decoded: %w", r.Singular(), name, err)
	}
	return true, nil
}
