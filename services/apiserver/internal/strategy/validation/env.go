package validation

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// downward is what a field reference of the downward API may name, sorted: in a variable, and in a file.
var (
	envFields = []string{
		"metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs",
	}
	volumeFields      = []string{"metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"}
	containerResource = []string{"limits.cpu", "limits.ephemeral-storage", "limits.memory", "requests.cpu", "requests.ephemeral-storage", "requests.memory"}
)

func env(path *field.Path, list []corev1.EnvVar) field.ErrorList {
	var errs field.ErrorList
	for i := range list {
		e, at := &list[i], path.Index(i)
		if e.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
		} else {
			errs = append(errs, each(at.Child("name"), e.Name, utilvalidation.IsRelaxedEnvVarName(e.Name))...)
		}
		errs = append(errs, envSource(at.Child("valueFrom"), e)...)
	}
	return errs
}

func envSource(path *field.Path, e *corev1.EnvVar) field.ErrorList {
	source := e.ValueFrom
	if source == nil {
		return nil
	}
	var errs field.ErrorList
	count := 0
	if source.FieldRef != nil {
		count++
		errs = append(errs, fieldRef(path.Child("fieldRef"), source.FieldRef, envFields)...)
	}
	if source.ResourceFieldRef != nil {
		count++
		errs = append(errs, resourceFieldRef(path.Child("resourceFieldRef"), source.ResourceFieldRef, false)...)
	}
	if source.ConfigMapKeyRef != nil {
		count++
		errs = append(errs, keyRef(path.Child("configMapKeyRef"), source.ConfigMapKeyRef.Name, source.ConfigMapKeyRef.Key)...)
	}
	if source.SecretKeyRef != nil {
		count++
		errs = append(errs, keyRef(path.Child("secretKeyRef"), source.SecretKeyRef.Name, source.SecretKeyRef.Key)...)
	}
	if ref := source.FileKeyRef; ref != nil {
		count++
		at := path.Child("fileKeyRef")
		if ref.Key == "" {
			errs = append(errs, field.Required(at.Child("key"), ""))
		} else {
			errs = append(errs, each(at.Child("key"), ref.Key, utilvalidation.IsEnvVarName(ref.Key))...)
		}
		errs = append(errs, required(at.Child("volumeName"), ref.VolumeName)...)
		if ref.Path == "" {
			errs = append(errs, field.Required(at.Child("path"), ""))
		} else {
			errs = append(errs, localPath(at.Child("path"), ref.Path, true)...)
		}
	}
	switch {
	case count == 0:
		errs = append(errs, field.Invalid(path, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"))
	case e.Value != "":
		errs = append(errs, field.Invalid(path, "", "may not be specified when `value` is not empty"))
	case count > 1:
		errs = append(errs, field.Invalid(path, "", "may not have more than one field specified at a time"))
	}
	return errs
}

func keyRef(path *field.Path, name, key string) field.ErrorList {
	errs := objectName(path.Child("name"), name)
	if key == "" {
		return append(errs, field.Required(path.Child("key"), ""))
	}
	return append(errs, each(path.Child("key"), key, utilvalidation.IsConfigMapKey(key))...)
}

// fieldRef looks at a reference to a field of the pod.
func fieldRef(path *field.Path, ref *corev1.ObjectFieldSelector, valid []string) field.ErrorList {
	if ref.APIVersion == "" {
		return field.ErrorList{field.Required(path.Child("apiVersion"), "")}
	}
	if ref.FieldPath == "" {
		return field.ErrorList{field.Required(path.Child("fieldPath"), "")}
	}
	at := path.Child("fieldPath")
	if ref.APIVersion != "v1" {
		return field.ErrorList{field.Invalid(at, ref.FieldPath, fmt.Sprintf("error converting fieldPath: pod does not support the apiVersion %q", ref.APIVersion))}
	}
	if name, key, ok := subscript(ref.FieldPath); ok {
		switch name {
		case "metadata.annotations":
			return qualifiedName(at, key)
		case "metadata.labels":
			return each(at, key, utilvalidation.IsQualifiedName(key))
		}
		return field.ErrorList{field.Invalid(at, ref.FieldPath, fmt.Sprintf("error converting fieldPath: field label does not support subscript: %s", ref.FieldPath))}
	}
	for _, known := range [][]string{envFields, volumeFields, {"spec.restartPolicy", "spec.schedulerName", "spec.hostNetwork", "status.phase", "status.nominatedNodeName"}} {
		for _, f := range known {
			if f == ref.FieldPath {
				return oneOf(at, ref.FieldPath, valid...)
			}
		}
	}
	return field.ErrorList{field.Invalid(at, ref.FieldPath, fmt.Sprintf("error converting fieldPath: field label not supported: %s", ref.FieldPath))}
}

// subscript splits metadata.labels['key'].
func subscript(path string) (name, key string, ok bool) {
	const open, end = "['", "']"
	for i := 0; i+len(open) <= len(path); i++ {
		if path[i:i+len(open)] == open && len(path) >= i+len(open)+len(end) && path[len(path)-len(end):] == end {
			return path[:i], path[i+len(open) : len(path)-len(end)], true
		}
	}
	return "", "", false
}

// resourceFieldRef looks at a reference to what a container requests or is limited to. A file has to name the container.
func resourceFieldRef(path *field.Path, ref *corev1.ResourceFieldSelector, file bool) field.ErrorList {
	if file && ref.ContainerName == "" {
		return field.ErrorList{field.Required(path.Child("containerName"), "")}
	}
	if ref.Resource == "" {
		return field.ErrorList{field.Required(path.Child("resource"), "")}
	}
	if hugePagesField(ref.Resource) {
		return divisor(path.Child("divisor"), ref)
	}
	errs := oneOf(path.Child("resource"), ref.Resource, containerResource...)
	return append(errs, divisor(path.Child("divisor"), ref)...)
}

// divisors are the units that the value of a resource may be told in.
var divisors = map[string][]string{
	"cpu":    {"1m", "1"},
	"memory": {"1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"},
}

func divisor(path *field.Path, ref *corev1.ResourceFieldSelector) field.ErrorList {
	if ref.Divisor.IsZero() {
		return nil
	}
	unit, words := "memory", "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource"
	switch ref.Resource {
	case "limits.cpu", "requests.cpu":
		unit, words = "cpu", "only divisor's values 1m and 1 are supported with the cpu resource"
	case "limits.ephemeral-storage", "requests.ephemeral-storage":
		words = "only divisor's values 1, 1k, 1M, 1G, 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the local ephemeral storage resource"
	}
	for _, d := range divisors[unit] {
		if ref.Divisor.String() == d {
			return nil
		}
	}
	return field.ErrorList{field.Invalid(path, ref.Divisor.String(), words)}
}

func envFrom(path *field.Path, list []corev1.EnvFromSource) field.ErrorList {
	var errs field.ErrorList
	for i := range list {
		e, at := &list[i], path.Index(i)
		if e.Prefix != "" {
			errs = append(errs, each(at.Child("prefix"), e.Prefix, utilvalidation.IsRelaxedEnvVarName(e.Prefix))...)
		}
		count := 0
		if ref := e.ConfigMapRef; ref != nil {
			count++
			errs = append(errs, objectName(at.Child("configMapRef", "name"), ref.Name)...)
		}
		if ref := e.SecretRef; ref != nil {
			count++
			errs = append(errs, objectName(at.Child("secretRef", "name"), ref.Name)...)
		}
		// Kubernetes names the list here, not the item.
		if count == 0 {
			errs = append(errs, field.Invalid(path, "", "must specify one of: `configMapRef` or `secretRef`"))
		}
		if count > 1 {
			errs = append(errs, field.Invalid(path, "", "may not have more than one field specified at a time"))
		}
	}
	return errs
}

func objectName(at *field.Path, name string) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	return dnsSubdomain(at, name)
}
