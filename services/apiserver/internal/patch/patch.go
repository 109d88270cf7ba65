// Package patch changes objects as clients describe it: by JSON patch, merge patch, strategic merge patch and server-side apply.
package patch

import (
	stdjson "encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/mergepatch"
	"k8s.io/apimachinery/pkg/util/strategicpatch"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/strategy"
)

// Type is the format of a patch.
type Type int

// The formats of patches.
const (
	// JSON is RFC 6902.
	JSON Type = iota + 1
	// Merge is RFC 7386.
	Merge
	// StrategicMerge is Kubernetes' own, which merges lists by their keys.
	StrategicMerge
	// Apply is server-side apply of the configuration in the patch, JSON or YAML.
	Apply
)

// maxOperations bounds a JSON patch, as Kubernetes does: each may copy the document.
const maxOperations = 10000

// maxCopied bounds in bytes by how much the copy operations of a JSON patch may make the document grow, as Kubernetes does: each can double it.
const maxCopied = 3 << 20

// boundCopies tells the library, which has but one bound for the process.
var boundCopies = sync.OnceFunc(func() { jsonpatch.AccumulatedCopySizeLimit = maxCopied })

// Patcher patches objects of all kinds. It is safe for concurrent use.
type Patcher struct {
	codec    *codec.Codec
	managers *managers
	// names remembers by struct type what its tags say: map[int]fieldName.
	names sync.Map
}

// New returns a patcher.
func New(c *codec.Codec, strategies *strategy.Set) *Patcher {
	boundCopies()
	return &Patcher{codec: c, managers: newManagers(c, strategies)}
}

// Patch returns a new object: current, whose resourceVersion the caller has set, after the patch. It is neither defaulted nor validated.
func (p *Patcher) Patch(res *resource.Resource, current codec.Object, t Type, data []byte, validation codec.FieldValidation) (codec.Object, []string, error) {
	original, err := p.codec.EncodeJSON(res, current)
	if err != nil {
		return nil, nil, err
	}
	var patched []byte
	var duplicates []error
	switch t {
	case JSON:
		patched, err = applyJSON(original, data)
	case Merge:
		duplicates, err = parse(data)
		if err == nil {
			if patched, err = guarded(func() ([]byte, error) { return jsonpatch.MergePatch(original, data) }); err != nil {
				err = apierrors.NewBadRequest(err.Error())
			}
		}
	case StrategicMerge:
		duplicates, err = parse(data)
		if err == nil {
			patched, err = p.applyStrategic(res, original, data)
		}
	default:
		return nil, nil, apierrors.NewBadRequest(fmt.Sprintf("patch type %d is not known: use a JSON, merge or strategic merge patch, or apply", t))
	}
	if err != nil {
		return nil, nil, err
	}
	obj, strict, err := p.codec.DecodeTextStrict(res, patched)
	if err != nil {
		return nil, nil, invalidPatch(patched, err)
	}
	if strict != nil {
		if problems, ok := runtime.AsStrictDecodingError(strict); ok {
			duplicates = append(duplicates, problems.Errors()...)
		}
	}
	switch {
	case len(duplicates) == 0 || validation == codec.Ignore:
		return obj, nil, nil
	case validation == codec.Warn:
		return obj, messages(duplicates), nil
	default:
		return nil, nil, invalidPatch(patched, runtime.NewStrictDecodingError(duplicates))
	}
}

// invalidPatch says what a patch would have led to, in Kubernetes' words: the patch itself names no object.
func invalidPatch(patched []byte, err error) error {
	return apierrors.NewInvalid(schema.GroupKind{}, "", field.ErrorList{field.Invalid(field.NewPath("patch"), string(patched), err.Error())})
}

// parse checks that a patch is a JSON object, and returns its duplicate fields.
func parse(data []byte) (duplicates []error, err error) {
	var document map[string]any
	duplicates, err = kjson.UnmarshalStrict(data, &document)
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	return duplicates, nil
}

func applyJSON(original, data []byte) ([]byte, error) {
	operations, err := jsonpatch.DecodePatch(data)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if len(operations) > maxOperations {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("The allowed maximum operations in a JSON patch is %d, got %d", maxOperations, len(operations)))
	}
	patched, err := guarded(func() ([]byte, error) { return operations.Apply(original) })
	switch {
	case err == nil:
		return patched, nil
	case errors.As(err, new(*jsonpatch.AccumulatedCopySizeError)):
		return nil, apierrors.NewRequestEntityTooLargeError(err.Error())
	default:
		return nil, unprocessable(err)
	}
}

func (p *Patcher) applyStrategic(res *resource.Resource, original, data []byte) ([]byte, error) {
	var document, change map[string]any
	if err := json.Unmarshal(original, &document); err != nil {
		return nil, fmt.Errorf("decode the current %s: %w", res, err)
	}
	if err := json.Unmarshal(data, &change); err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("error decoding patch: %v", err))
	}
	lookup, err := strategicpatch.NewPatchMetaFromStruct(p.codec.New(res))
	if err != nil {
		return nil, fmt.Errorf("the patch rules of %s: %w", res, err)
	}
	patched, err := guarded(func() (strategicpatch.JSONMap, error) {
		return strategicpatch.StrategicMergeMapPatchUsingLookupPatchMeta(document, change, lookup)
	})
	switch {
	case err == nil:
		return stdjson.Marshal(patched)
	case errors.Is(err, mergepatch.ErrNoListOfLists):
		return nil, unprocessable(err)
	default:
		return nil, apierrors.NewBadRequest(err.Error())
	}
}

// guarded calls a library that panics on some patches that make no sense, such as a list's key that is an object. FuzzPatch finds them.
func guarded[T any](call func() (T, error)) (result T, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = fmt.Errorf("the patch makes no sense: %v", reason)
		}
	}()
	return call()
}

// unprocessable is a patch that is well formed but does not fit the object. Kubernetes answers the same status, without saying why.
func unprocessable(err error) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
		Message: fmt.Sprintf("the patch cannot be applied to the object: %v", err),
	}}
}

func messages(errs []error) []string {
	all := make([]string, 0, len(errs))
	for _, err := range errs {
		all = append(all, err.Error())
	}
	return all
}
