package table

import (
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func storageKinds() map[schema.GroupKind]definition {
	const storage = "storage.k8s.io"
	return map[schema.GroupKind]definition{
		{Kind: "PersistentVolume"}:                      persistentVolumeTable(),
		{Kind: "PersistentVolumeClaim"}:                 persistentVolumeClaimTable(),
		{Group: storage, Kind: "StorageClass"}:          storageClassTable(),
		{Group: storage, Kind: "VolumeAttributesClass"}: volumeAttributesClassTable(),
		{Group: storage, Kind: "VolumeAttachment"}:      volumeAttachmentTable(),
		{Group: storage, Kind: "CSINode"}:               csiNodeTable(),
		{Group: storage, Kind: "CSIDriver"}:             csiDriverTable(),
		{Group: storage, Kind: "CSIStorageCapacity"}:    csiStorageCapacityTable(),
	}
}

// accessModes shows access modes by their short names, in a fixed order.
func accessModes(modes []corev1.PersistentVolumeAccessMode) string {
	var list []string
	for _, m := range []struct {
		mode  corev1.PersistentVolumeAccessMode
		short string
	}{{corev1.ReadWriteOnce, "RWO"}, {corev1.ReadOnlyMany, "ROX"}, {corev1.ReadWriteMany, "RWX"}, {corev1.ReadWriteOncePod, "RWOP"}} {
		if slices.Contains(modes, m.mode) {
			list = append(list, m.short)
		}
	}
	return strings.Join(list, ",")
}

// storageClassOf is a volume's or claim's class: the annotation that came before the field still wins.
func storageClassOf(m metav1.ObjectMeta, class string) string {
	if annotated, found := m.Annotations[corev1.BetaStorageClassAnnotation]; found {
		return annotated
	}
	return class
}

func persistentVolumeTable() definition {
	spec, status := corev1.PersistentVolumeSpec{}, corev1.PersistentVolumeStatus{}
	columns := []metav1.TableColumnDefinition{
		name(), text("Capacity", doc(spec, "capacity")), text("Access Modes", doc(spec, "accessModes")), text("Reclaim Policy", doc(spec, "persistentVolumeReclaimPolicy")),
		text("Status", doc(status, "phase")), text("Claim", doc(spec, "claimRef")), text("StorageClass", "StorageClass of the pv"),
		text("VolumeAttributesClass", "VolumeAttributesClass of the pv"), text("Reason", doc(status, "reason")), age(), wide(text("VolumeMode", doc(spec, "volumeMode"))),
	}
	return define(columns, func(v *corev1.PersistentVolume, now time.Time) []any {
		claim := ""
		if ref := v.Spec.ClaimRef; ref != nil {
			claim = ref.Namespace + "/" + ref.Name
		}
		capacity := v.Spec.Capacity[corev1.ResourceStorage]
		phase := string(v.Status.Phase)
		if v.DeletionTimestamp != nil {
			phase = "Terminating"
		}
		return []any{
			v.Name, capacity.String(), accessModes(v.Spec.AccessModes), string(v.Spec.PersistentVolumeReclaimPolicy), phase, claim, storageClassOf(v.ObjectMeta, v.Spec.StorageClassName),
			valueOr(v.Spec.VolumeAttributesClassName, "<unset>"), v.Status.Reason, Age(v.CreationTimestamp, now), string(valueOr(v.Spec.VolumeMode, "<unset>")),
		}
	})
}

func persistentVolumeClaimTable() definition {
	spec, status := corev1.PersistentVolumeClaimSpec{}, corev1.PersistentVolumeClaimStatus{}
	columns := []metav1.TableColumnDefinition{
		name(), text("Status", doc(status, "phase")), text("Volume", doc(spec, "volumeName")), text("Capacity", doc(status, "capacity")), text("Access Modes", doc(status, "accessModes")),
		text("StorageClass", "StorageClass of the pvc"), text("VolumeAttributesClass", "VolumeAttributesClass of the pvc"), age(), wide(text("VolumeMode", doc(spec, "volumeMode"))),
	}
	return define(columns, func(c *corev1.PersistentVolumeClaim, now time.Time) []any {
		phase := string(c.Status.Phase)
		if c.DeletionTimestamp != nil {
			phase = "Terminating"
		}
		capacity, modes := "", ""
		if c.Spec.VolumeName != "" {
			storage := c.Status.Capacity[corev1.ResourceStorage]
			capacity, modes = storage.String(), accessModes(c.Status.AccessModes)
		}
		return []any{
			c.Name, phase, c.Spec.VolumeName, capacity, modes, storageClassOf(c.ObjectMeta, valueOr(c.Spec.StorageClassName, "")),
			valueOr(c.Spec.VolumeAttributesClassName, "<unset>"), Age(c.CreationTimestamp, now), string(valueOr(c.Spec.VolumeMode, "<unset>")),
		}
	})
}

// withDefault marks the class that is taken when none is named.
func withDefault(m metav1.ObjectMeta, annotations ...string) string {
	for _, a := range annotations {
		if m.Annotations[a] == "true" {
			return m.Name + " (default)"
		}
	}
	return m.Name
}

func storageClassTable() definition {
	of := storagev1.StorageClass{}
	columns := []metav1.TableColumnDefinition{
		name(), text("Provisioner", doc(of, "provisioner")), text("ReclaimPolicy", doc(of, "reclaimPolicy")), text("VolumeBindingMode", doc(of, "volumeBindingMode")),
		text("AllowVolumeExpansion", doc(of, "allowVolumeExpansion")), age(),
	}
	return define(columns, func(c *storagev1.StorageClass, now time.Time) []any {
		return []any{
			withDefault(c.ObjectMeta, "storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"), c.Provisioner,
			string(valueOr(c.ReclaimPolicy, corev1.PersistentVolumeReclaimDelete)), string(valueOr(c.VolumeBindingMode, storagev1.VolumeBindingImmediate)),
			valueOr(c.AllowVolumeExpansion, false), Age(c.CreationTimestamp, now),
		}
	})
}

func volumeAttributesClassTable() definition {
	columns := []metav1.TableColumnDefinition{name(), text("DriverName", doc(storagev1.VolumeAttributesClass{}, "driverName")), age()}
	return define(columns, func(c *storagev1.VolumeAttributesClass, now time.Time) []any {
		return []any{withDefault(c.ObjectMeta, "volumeattributesclass.alpha.kubernetes.io/is-default-class"), c.DriverName, Age(c.CreationTimestamp, now)}
	})
}

func volumeAttachmentTable() definition {
	spec := storagev1.VolumeAttachmentSpec{}
	attacher := text("Attacher", doc(spec, "attacher"))
	attacher.Format = "name"
	columns := []metav1.TableColumnDefinition{
		name(), attacher, text("PV", doc(storagev1.VolumeAttachmentSource{}, "persistentVolumeName")), text("Node", doc(spec, "nodeName")),
		boolean("Attached", doc(storagev1.VolumeAttachmentStatus{}, "attached")), age(),
	}
	return define(columns, func(a *storagev1.VolumeAttachment, now time.Time) []any {
		return []any{a.Name, a.Spec.Attacher, valueOr(a.Spec.Source.PersistentVolumeName, ""), a.Spec.NodeName, a.Status.Attached, Age(a.CreationTimestamp, now)}
	})
}

func csiNodeTable() definition {
	columns := []metav1.TableColumnDefinition{name(), number("Drivers", "Drivers indicates the number of CSI drivers registered on the node"), age()}
	return define(columns, func(n *storagev1.CSINode, now time.Time) []any {
		return []any{n.Name, int64(len(n.Spec.Drivers)), Age(n.CreationTimestamp, now)}
	})
}

func csiDriverTable() definition {
	spec := storagev1.CSIDriverSpec{}
	columns := []metav1.TableColumnDefinition{
		name(), boolean("AttachRequired", doc(spec, "attachRequired")), boolean("PodInfoOnMount", doc(spec, "podInfoOnMount")), boolean("StorageCapacity", doc(spec, "storageCapacity")),
		text("TokenRequests", doc(spec, "tokenRequests")), boolean("RequiresRepublish", doc(spec, "requiresRepublish")), text("Modes", doc(spec, "volumeLifecycleModes")), age(),
	}
	return define(columns, func(d *storagev1.CSIDriver, now time.Time) []any {
		requests := "<unset>"
		if d.Spec.TokenRequests != nil {
			var audiences []string
			for _, r := range d.Spec.TokenRequests {
				audiences = append(audiences, r.Audience)
			}
			requests = strings.Join(audiences, ",")
		}
		var modes []string
		for _, m := range d.Spec.VolumeLifecycleModes {
			modes = append(modes, string(m))
		}
		return []any{
			d.Name, valueOr(d.Spec.AttachRequired, true), valueOr(d.Spec.PodInfoOnMount, false), valueOr(d.Spec.StorageCapacity, false), requests,
			valueOr(d.Spec.RequiresRepublish, false), orNone(strings.Join(modes, ",")), Age(d.CreationTimestamp, now),
		}
	})
}

func csiStorageCapacityTable() definition {
	of := storagev1.CSIStorageCapacity{}
	columns := []metav1.TableColumnDefinition{name(), text("StorageClassName", doc(of, "storageClassName")), text("Capacity", doc(of, "capacity"))}
	return define(columns, func(c *storagev1.CSIStorageCapacity, _ time.Time) []any {
		capacity := "<unset>"
		if c.Capacity != nil {
			capacity = c.Capacity.String()
		}
		return []any{c.Name, c.StorageClassName, capacity}
	})
}
