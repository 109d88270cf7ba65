package validation

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const frozen = "field is immutable when `immutable` is set"

// ConfigMap looks at a new config map.
func ConfigMap(c *corev1.ConfigMap) field.ErrorList {
	var errs field.ErrorList
	size := 0
	for _, key := range slices.Sorted(maps.Keys(c.Data)) {
		errs = append(errs, each(field.NewPath("data").Key(key), key, utilvalidation.IsConfigMapKey(key))...)
		if _, twice := c.BinaryData[key]; twice {
			errs = append(errs, field.Invalid(field.NewPath("data").Key(key), key, "duplicate of key present in binaryData"))
		}
		size += len(c.Data[key])
	}
	for _, key := range slices.Sorted(maps.Keys(c.BinaryData)) {
		errs = append(errs, each(field.NewPath("binaryData").Key(key), key, utilvalidation.IsConfigMapKey(key))...)
		size += len(c.BinaryData[key])
	}
	if size > corev1.MaxSecretSize {
		errs = append(errs, field.TooLong(field.NewPath(""), "", corev1.MaxSecretSize))
	}
	return errs
}

// ConfigMapUpdate looks at a changed config map.
func ConfigMapUpdate(c, old *corev1.ConfigMap) field.ErrorList {
	var errs field.ErrorList
	if isTrue(old.Immutable) {
		if !isTrue(c.Immutable) {
			errs = append(errs, field.Forbidden(field.NewPath("immutable"), frozen))
		}
		if !apiequality.Semantic.DeepEqual(c.Data, old.Data) {
			errs = append(errs, field.Forbidden(field.NewPath("data"), frozen))
		}
		if !apiequality.Semantic.DeepEqual(c.BinaryData, old.BinaryData) {
			errs = append(errs, field.Forbidden(field.NewPath("binaryData"), frozen))
		}
	}
	return append(errs, ConfigMap(c)...)
}

func isTrue(b *bool) bool { return b != nil && *b }

// Secret looks at a new secret: its keys, its size, and what its type needs.
func Secret(s *corev1.Secret) field.ErrorList {
	var errs field.ErrorList
	data := field.NewPath("data")
	size := 0
	for _, key := range slices.Sorted(maps.Keys(s.Data)) {
		errs = append(errs, each(data.Key(key), key, utilvalidation.IsConfigMapKey(key))...)
		size += len(s.Data[key])
	}
	if size > corev1.MaxSecretSize {
		errs = append(errs, field.TooLong(data, "", corev1.MaxSecretSize))
	}
	needs := func(keys ...string) {
		for _, key := range keys {
			if _, ok := s.Data[key]; !ok {
				errs = append(errs, field.Required(data.Key(key), ""))
			}
		}
	}
	switch s.Type {
	case corev1.SecretTypeServiceAccountToken:
		if s.Annotations[corev1.ServiceAccountNameKey] == "" {
			errs = append(errs, field.Required(field.NewPath("metadata", "annotations").Key(corev1.ServiceAccountNameKey), ""))
		}
	case corev1.SecretTypeDockercfg, corev1.SecretTypeDockerConfigJson:
		key := corev1.DockerConfigKey
		if s.Type == corev1.SecretTypeDockerConfigJson {
			key = corev1.DockerConfigJsonKey
		}
		document, ok := s.Data[key]
		if !ok {
			errs = append(errs, field.Required(data.Key(key), ""))
			break
		}
		if err := json.Unmarshal(document, &map[string]any{}); err != nil {
			errs = append(errs, field.Invalid(data.Key(key), "<secret contents redacted>", err.Error()))
		}
	case corev1.SecretTypeBasicAuth:
		_, user := s.Data[corev1.BasicAuthUsernameKey]
		_, password := s.Data[corev1.BasicAuthPasswordKey]
		if !user && !password {
			needs(corev1.BasicAuthUsernameKey, corev1.BasicAuthPasswordKey)
		}
	case corev1.SecretTypeSSHAuth:
		if len(s.Data[corev1.SSHAuthPrivateKey]) == 0 {
			errs = append(errs, field.Required(data.Key(corev1.SSHAuthPrivateKey), ""))
		}
	case corev1.SecretTypeTLS:
		needs(corev1.TLSCertKey, corev1.TLSPrivateKeyKey)
	}
	return errs
}

// SecretUpdate looks at a changed secret.
func SecretUpdate(s, old *corev1.Secret) field.ErrorList {
	errs := immutable(field.NewPath("type"), s.Type, old.Type)
	if isTrue(old.Immutable) {
		if !isTrue(s.Immutable) {
			errs = append(errs, field.Forbidden(field.NewPath("immutable"), frozen))
		}
		if !apiequality.Semantic.DeepEqual(s.Data, old.Data) {
			errs = append(errs, field.Forbidden(field.NewPath("data"), frozen))
		}
	}
	return append(errs, Secret(s)...)
}

// PriorityClass looks at a new class. The names and values of the system's own are reserved.
func PriorityClass(p *schedulingv1.PriorityClass) field.ErrorList {
	var errs field.ErrorList
	name := field.NewPath("metadata", "name")
	if value, reserved := SystemPriorities[p.Name]; reserved {
		if p.Value != value {
			errs = append(errs, field.Forbidden(name, fmt.Sprintf("value of %s PriorityClass must be %d", p.Name, value)))
		}
	} else if hasSystemPrefix(p.Name) {
		errs = append(errs, field.Forbidden(name, "priority class names with '"+systemPriorityPrefix+"' prefix are reserved for system use only"))
	} else if p.Value > highestUserPriority {
		errs = append(errs, field.Forbidden(field.NewPath("value"), fmt.Sprintf("maximum allowed value of a user defined priority is %d", highestUserPriority)))
	}
	if p.PreemptionPolicy != nil {
		errs = append(errs, preemptionPolicy(field.NewPath("preemptionPolicy"), *p.PreemptionPolicy)...)
	}
	return errs
}

const (
	systemPriorityPrefix       = "system-"
	highestUserPriority  int32 = 1_000_000_000
)

// SystemPriorities are the classes that every cluster has, and their values.
var SystemPriorities = map[string]int32{"system-cluster-critical": 2 * highestUserPriority, "system-node-critical": 2*highestUserPriority + 1000}

func hasSystemPrefix(name string) bool {
	return len(name) >= len(systemPriorityPrefix) && name[:len(systemPriorityPrefix)] == systemPriorityPrefix
}

// PriorityClassUpdate looks at a changed class: pods have taken value and policy from it.
func PriorityClassUpdate(p, old *schedulingv1.PriorityClass) field.ErrorList {
	var errs field.ErrorList
	if p.Value != old.Value {
		errs = append(errs, field.Forbidden(field.NewPath("value"), "may not be changed in an update."))
	}
	return append(errs, immutable(field.NewPath("preemptionPolicy"), p.PreemptionPolicy, old.PreemptionPolicy)...)
}
