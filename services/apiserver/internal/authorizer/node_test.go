package authorizer

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/pkg/identity"
)

// TestNodesReachWhatTheirPodsNeed is what goes beyond pods, secrets and configs: volumes, tokens, claims, and what a node asks on its own account.
func TestNodesReachWhatTheirPodsNeed(t *testing.T) {
	w := newWorld(t)
	claimed := "devices"
	mine, theirs := pod("web", "n1", "db"), pod("other", "n2", "theirs")
	mine.Spec.ServiceAccountName, theirs.Spec.ServiceAccountName = "robot", "alien"
	mine.Spec.ResourceClaims = []corev1.PodResourceClaim{{Name: "gpu", ResourceClaimName: &claimed}}
	for p, claim := range map[*corev1.Pod]string{mine: "data", theirs: "secret-data"} {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: "pv", VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim},
		}})
	}
	w.Roles = New(Config{Pods: &fakePods{pods: []*corev1.Pod{mine, theirs}}, Policies: w.policies, Objects: w.cache})
	w.put(claims, &corev1.PersistentVolumeClaim{ObjectMeta: meta("shop", "data"), Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv-mine"}})
	w.put(claims, &corev1.PersistentVolumeClaim{ObjectMeta: meta("shop", "secret-data"), Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv-theirs"}})
	for name, claim := range map[string]string{"pv-mine": "data", "pv-theirs": "secret-data"} {
		w.put(volumes, &corev1.PersistentVolume{ObjectMeta: meta("", name), Spec: corev1.PersistentVolumeSpec{
			ClaimRef: &corev1.ObjectReference{Namespace: "shop", Name: claim, UID: meta("shop", claim).UID},
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{
				NodePublishSecretRef: &corev1.SecretReference{Namespace: "storage", Name: "key-of-" + name}}},
		}})
	}
	// Volumes of kinds without a driver name Secrets too, in the claim's namespace if they name none.
	for name, source := range map[string]corev1.PersistentVolumeSource{
		"disk":  {ISCSI: &corev1.ISCSIPersistentVolumeSource{SecretRef: &corev1.SecretReference{Namespace: "storage", Name: "chap"}}},
		"share": {AzureFile: &corev1.AzureFilePersistentVolumeSource{SecretName: "share-key"}},
		"flex":  {FlexVolume: &corev1.FlexPersistentVolumeSource{SecretRef: &corev1.SecretReference{Name: "flex-key"}}},
	} {
		mine.Spec.Volumes = append(mine.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		}})
		w.put(claims, &corev1.PersistentVolumeClaim{ObjectMeta: meta("shop", name), Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv-" + name}})
		w.put(volumes, &corev1.PersistentVolume{ObjectMeta: meta("", "pv-"+name), Spec: corev1.PersistentVolumeSpec{
			ClaimRef: &corev1.ObjectReference{Namespace: "shop", Name: name, UID: meta("shop", name).UID}, PersistentVolumeSource: source,
		}})
	}
	w.put(attachments, &storagev1.VolumeAttachment{ObjectMeta: meta("", "a1"), Spec: storagev1.VolumeAttachmentSpec{NodeName: "n1"}})
	w.put(attachments, &storagev1.VolumeAttachment{ObjectMeta: meta("", "a2"), Spec: storagev1.VolumeAttachmentSpec{NodeName: "n2"}})
	for _, c := range []struct {
		verb, group, resource, sub, ns, name, fields string
		allowed                                      bool
	}{
		{"get", "", "persistentvolumes", "", "", "pv-mine", "", true},
		{"get", "", "persistentvolumes", "", "", "pv-theirs", "", false},
		{"get", "", "secrets", "", "storage", "key-of-pv-mine", "", true},
		{"get", "", "secrets", "", "storage", "key-of-pv-theirs", "", false},
		{"get", "", "secrets", "", "storage", "chap", "", true},
		{"get", "", "secrets", "", "shop", "flex-key", "", true},
		{"get", "", "secrets", "", "storage", "flex-key", "", false},
		{"get", "", "secrets", "", "shop", "share-key", "", true},
		{"get", "", "secrets", "", "storage", "share-key", "", false},
		{"list", "", "persistentvolumes", "", "", "", "", false},
		{"get", "", "persistentvolumeclaims", "", "shop", "data", "", true},
		{"update", "", "persistentvolumeclaims", "status", "shop", "data", "", true},
		{"update", "", "persistentvolumeclaims", "", "shop", "data", "", false},
		{"update", "", "persistentvolumeclaims", "status", "shop", "secret-data", "", false},
		{"get", "storage.k8s.io", "volumeattachments", "", "", "a1", "", true},
		{"get", "storage.k8s.io", "volumeattachments", "", "", "a2", "", false},
		{"create", "", "serviceaccounts", "token", "shop", "robot", "", true},
		{"create", "", "serviceaccounts", "token", "shop", "alien", "", false},
		{"get", "", "serviceaccounts", "", "shop", "robot", "", true},
		{"create", "", "serviceaccounts", "", "shop", "robot", "", false},
		{"get", "resource.k8s.io", "resourceclaims", "", "shop", "devices", "", true},
		{"get", "resource.k8s.io", "resourceclaims", "", "shop", "others", "", false},
		{"create", "resource.k8s.io", "resourceslices", "", "", "", "", true},
		{"list", "resource.k8s.io", "resourceslices", "", "", "", "spec.nodeName=n1", true},
		{"list", "resource.k8s.io", "resourceslices", "", "", "", "", false},
		{"create", "", "pods", "eviction", "shop", "web", "", true},
		{"create", "", "pods", "eviction", "shop", "other", "", false},
		{"create", "", "nodes", "", "", "", "", true},
		{"create", "", "nodes", "", "", "n2", "", false},
		{"delete", "storage.k8s.io", "csinodes", "", "", "n1", "", true},
		{"delete", "storage.k8s.io", "csinodes", "", "", "n2", "", false},
		{"create", "coordination.k8s.io", "leases", "", "kube-node-lease", "", "", true},
		{"create", "coordination.k8s.io", "leases", "", "kube-system", "n1", "", false},
		{"create", "certificates.k8s.io", "certificatesigningrequests", "", "", "", "", true},
		{"update", "certificates.k8s.io", "certificatesigningrequests", "approval", "", "x", "", false},
		{"create", "authentication.k8s.io", "tokenreviews", "", "", "", "", true},
		{"create", "authorization.k8s.io", "subjectaccessreviews", "", "", "", "", true},
		{"list", "storage.k8s.io", "csidrivers", "", "", "", "", true},
		{"watch", "node.k8s.io", "runtimeclasses", "", "", "", "", true},
		{"update", "node.k8s.io", "runtimeclasses", "", "", "x", "", false},
	} {
		a := Attributes{User: identity.Node("n1"), Verb: c.verb, Group: c.group, Resource: c.resource, Subresource: c.sub, Namespace: c.ns, Name: c.name, FieldSelector: c.fields}
		err := w.Authorize(t.Context(), a)
		if (err == nil) != c.allowed || err != nil && !apierrors.IsForbidden(err) {
			t.Errorf("%s %s/%s/%s %s/%s: %v, want allowed=%v", c.verb, c.group, c.resource, c.sub, c.ns, c.name, err, c.allowed)
		}
	}
	// Nodes are subjects of RBAC, too.
	w.clusterRole("extra", allow("list", "", "limitranges"))
	w.bindCluster("extra", "extra", groupSubject(identity.Nodes))
	if err := w.Authorize(t.Context(), Attributes{User: identity.Node("n1"), Verb: "list", Resource: "limitranges"}); err != nil {
		t.Error(err)
	}
}
