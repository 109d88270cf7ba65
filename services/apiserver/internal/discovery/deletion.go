package discovery

import "k8s.io/apimachinery/pkg/runtime/schema"

// ReturnsDeleted says whether the deletion of an object of a kind answers with the object as it was last; of other kinds the answer is a Status. Kubernetes
// decides it kind by kind.
func ReturnsDeleted(kind schema.GroupKind) bool {
	switch kind.Group {
	case "":
		switch kind.Kind {
		case "PersistentVolume", "PersistentVolumeClaim", "Pod", "PodTemplate", "ResourceQuota", "Service", "ServiceAccount":
			return true
		}
	case "storage.k8s.io":
		switch kind.Kind {
		case "CSIDriver", "CSINode", "StorageClass", "VolumeAttachment", "VolumeAttributesClass":
			return true
		}
	case "resource.k8s.io":
		return true
	}
	return false
}
