// Package csimigration translates volumes, classes and provisioners of the cloud plugins that Kubernetes had built in (AWS EBS, GCE PD, Azure disk and file, Cinder,
// vSphere, Portworx) into those of the CSI drivers that serve them now, as Kubernetes v1.36 does wherever it meets one. The rules are k8s.io/csi-translation-lib's;
// objects cross to its types and back by their protobuf bytes.
package csimigration

import (
	"errors"
	"fmt"

	"github.com/go-logr/logr"
	"google.golang.org/protobuf/proto"
	k8scorev1 "k8s.io/api/core/v1"
	translation "k8s.io/csi-translation-lib"
	"k8s.io/csi-translation-lib/plugins"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// AnnotationMigratedTo names the driver on claims and volumes whose provisioner was a built-in plugin: the driver's own provisioner looks for it.
const AnnotationMigratedTo = "pv.kubernetes.io/migrated-to"

// AnnotationMigratedPlugins names, on a node's CSINode and divided by commas, the plugins whose volumes the node leaves to drivers. Schedulers other than Dhow's
// look for it.
const AnnotationMigratedPlugins = "storage.alpha.kubernetes.io/migrated-plugins"

var translator = translation.New()

// IsInline says whether a volume of a pod is of one of the plugins. It is cheap, for the volumes that are not.
func IsInline(s *corev1.VolumeSource) bool {
	return s.HasAwsElasticBlockStore() || s.HasGcePersistentDisk() || s.HasAzureDisk() || s.HasAzureFile() || s.HasCinder() || s.HasVsphereVolume() || s.HasPortworxVolume()
}

// IsPersistent says it of a PersistentVolume.
func IsPersistent(v *corev1.PersistentVolume) bool {
	s := v.GetSpec().GetPersistentVolumeSource()
	return s.HasAwsElasticBlockStore() || s.HasGcePersistentDisk() || s.HasAzureDisk() || s.HasAzureFile() || s.HasCinder() || s.HasVsphereVolume() || s.HasPortworxVolume()
}

// Inline returns the volume of a pod as a PersistentVolume of its driver, which has no claim and whose name tells it from others of the driver.
func Inline(v *corev1.Volume, namespace string) (*corev1.PersistentVolume, error) {
	from := &k8scorev1.Volume{}
	if err := cross(v, from); err != nil {
		return nil, fmt.Errorf("volume %q: %w", v.GetName(), err)
	}
	to, err := translator.TranslateInTreeInlineVolumeToCSI(logr.Discard(), from, namespace)
	if err != nil {
		return nil, fmt.Errorf("failed to translate in-tree volume %q to CSI: %w", v.GetName(), err)
	}
	return back(to)
}

// Persistent returns a PersistentVolume as one of its driver: its source, and its topology in the driver's labels. A volume of no such plugin is returned as it is.
func Persistent(v *corev1.PersistentVolume) (*corev1.PersistentVolume, error) {
	if !IsPersistent(v) {
		return v, nil
	}
	from := &k8scorev1.PersistentVolume{}
	if err := cross(v, from); err != nil {
		return nil, fmt.Errorf("volume %q: %w", v.GetMetadata().GetName(), err)
	}
	to, err := translator.TranslateInTreePVToCSI(logr.Discard(), from)
	if err != nil {
		return nil, fmt.Errorf("failed to translate in-tree pv %q to CSI: %w", v.GetMetadata().GetName(), err)
	}
	return back(to)
}

// Plugin returns the name of the plugin of a PersistentVolume, such as kubernetes.io/aws-ebs.
func Plugin(v *corev1.PersistentVolume) (string, error) {
	from := &k8scorev1.PersistentVolume{}
	if err := cross(v, from); err != nil {
		return "", err
	}
	return translator.GetInTreePluginNameFromSpec(from, nil)
}

// Plugins returns the names of all plugins, sorted.
func Plugins() []string {
	return []string{
		plugins.AWSEBSInTreePluginName, plugins.AzureDiskInTreePluginName, plugins.AzureFileInTreePluginName, plugins.CinderInTreePluginName,
		plugins.GCEPDInTreePluginName, plugins.PortworxVolumePluginName, plugins.VSphereInTreePluginName,
	}
}

// Driver returns the driver that serves a plugin, which is also the name of classes' provisioners. False: no driver does.
func Driver(plugin string) (string, bool) {
	driver, err := translator.GetCSINameFromInTreeName(plugin)
	return driver, err == nil
}

func cross(from proto.Message, to interface{ Unmarshal([]byte) error }) error {
	data, err := proto.Marshal(from)
	if err != nil {
		return err
	}
	return to.Unmarshal(data)
}

func back(from *k8scorev1.PersistentVolume) (*corev1.PersistentVolume, error) {
	if from.Spec.CSI == nil {
		return nil, errors.New("the translation has no CSI source")
	}
	data, err := from.Marshal()
	if err != nil {
		return nil, err
	}
	to := &corev1.PersistentVolume{}
	return to, proto.Unmarshal(data, to)
}
