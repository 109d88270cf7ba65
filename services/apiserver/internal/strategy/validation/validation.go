// Package validation says what is wrong with an object's content, with the field paths, types and words of Kubernetes v1.36, which clients and
// people know. Functions expect defaulted objects, look at everything but metadata, and return all they find.
package validation

import (
	"cmp"
	"slices"

	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

const (
	fieldImmutable   = apivalidation.FieldImmutableErrorMsg
	notNegative      = apivalidation.IsNegativeErrorMsg
	mustBePositive   = "must be greater than zero"
	maxEventNoteSize = 1024
)

// oneOf complains about a value that is not among the valid ones. Kubernetes lists them sorted.
func oneOf[T ~string](path *field.Path, value T, valid ...T) field.ErrorList {
	if slices.Contains(valid, value) {
		return nil
	}
	return field.ErrorList{field.NotSupported(path, value, sorted(valid))}
}

// requiredOneOf is oneOf with words of their own for nothing at all.
func requiredOneOf[T ~string](path *field.Path, value T, valid ...T) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	return oneOf(path, value, valid...)
}

func sorted[T cmp.Ordered](values []T) []T {
	values = slices.Clone(values)
	slices.Sort(values)
	return values
}

// each is an error per message.
func each(path *field.Path, value any, messages []string) field.ErrorList {
	var errs field.ErrorList
	for _, msg := range messages {
		errs = append(errs, field.Invalid(path, value, msg))
	}
	return errs
}

func dnsLabel(path *field.Path, value string) field.ErrorList {
	return each(path, value, utilvalidation.IsDNS1123Label(value))
}

func dnsSubdomain(path *field.Path, value string) field.ErrorList {
	return each(path, value, utilvalidation.IsDNS1123Subdomain(value))
}

func qualifiedName(path *field.Path, value string) field.ErrorList {
	return each(path, value, utilvalidation.IsQualifiedName(value))
}

// required is an error when the value is empty.
func required(path *field.Path, value string) field.ErrorList {
	if value == "" {
		return field.ErrorList{field.Required(path, "")}
	}
	return nil
}

func nonNegative[T ~int32 | ~int64](path *field.Path, value T) field.ErrorList {
	return apivalidation.ValidateNonnegativeField(int64(value), path)
}

func nonNegativePointer[T ~int32 | ~int64](path *field.Path, value *T) field.ErrorList {
	if value == nil {
		return nil
	}
	return nonNegative(path, *value)
}

func portNumber(path *field.Path, port int32) field.ErrorList {
	return each(path, port, utilvalidation.IsValidPortNum(int(port)))
}

// portNumberOrName holds a port that may be named to the rules of the form that it has.
func portNumberOrName(path *field.Path, port intstr.IntOrString) field.ErrorList {
	if port.Type == intstr.Int {
		return each(path, port.IntValue(), utilvalidation.IsValidPortNum(port.IntValue()))
	}
	return each(path, port.StrVal, utilvalidation.IsValidPortName(port.StrVal))
}

// immutable complains about a change.
func immutable(path *field.Path, value, old any) field.ErrorList {
	if apiequality.Semantic.DeepEqual(value, old) {
		return nil
	}
	return field.ErrorList{field.Invalid(path, value, fieldImmutable)}
}

// names keeps a list's names apart.
type names map[string]bool

// taken notes a name, and says whether it was there.
func (n names) taken(name string) bool {
	if n[name] {
		return true
	}
	n[name] = true
	return false
}

// flag is whether a field is set, for rules on several fields at once.
type flag struct {
	name string
	set  bool
}
