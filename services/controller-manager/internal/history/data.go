package history

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"strconv"

	"google.golang.org/protobuf/proto"
	corek8s "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/rand"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// This file is what a revision holds: the strategic merge patch that puts its template back, byte for byte as Kubernetes writes it, because kubectl
// applies it (rollout undo), shows it (rollout history) and compares it.

// patch returns the data of a revision with a template.
func patch(template *corev1.PodTemplateSpec) ([]byte, error) {
	parsed, err := structOf(template)
	if err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(parsed)
	if err != nil {
		return nil, fmt.Errorf("encode the template: %w", err)
	}
	var fields map[string]any
	// Numbers stay as they are written.
	decoder := json.NewDecoder(bytes.NewReader(encoded))
	decoder.UseNumber()
	if err := decoder.Decode(&fields); err != nil {
		return nil, fmt.Errorf("decode the template: %w", err)
	}
	fields["$patch"] = "replace"
	return json.Marshal(map[string]any{"spec": map[string]any{"template": fields}})
}

// structOf returns the template as the struct of k8s.io/api, which has the same encoding.
func structOf(template *corev1.PodTemplateSpec) (*corek8s.PodTemplateSpec, error) {
	encoded, err := proto.Marshal(template)
	if err != nil {
		return nil, fmt.Errorf("encode the template: %w", err)
	}
	parsed := &corek8s.PodTemplateSpec{}
	if err := parsed.Unmarshal(encoded); err != nil {
		return nil, fmt.Errorf("decode the template: %w", err)
	}
	return parsed, nil
}

// parse returns the template in a revision's data.
func parse(data []byte) (*corek8s.PodTemplateSpec, error) {
	var patch struct {
		Spec struct {
			Template *corek8s.PodTemplateSpec `json:"template"`
		} `json:"spec"`
	}
	if err := json.Unmarshal(data, &patch); err != nil {
		return nil, err
	}
	if patch.Spec.Template == nil {
		return nil, fmt.Errorf("there is no spec.template in it")
	}
	return patch.Spec.Template, nil
}

// Template returns the template that a revision holds.
func Template(r *appsv1.ControllerRevision) (*corev1.PodTemplateSpec, error) {
	parsed, err := parse(r.GetData().GetRaw())
	if err != nil {
		return nil, fmt.Errorf("data of revision %s: %w", r.GetMetadata().GetName(), err)
	}
	encoded, err := parsed.Marshal()
	if err != nil {
		return nil, fmt.Errorf("data of revision %s: %w", r.GetMetadata().GetName(), err)
	}
	template := &corev1.PodTemplateSpec{}
	if err := proto.Unmarshal(encoded, template); err != nil {
		return nil, fmt.Errorf("data of revision %s: %w", r.GetMetadata().GetName(), err)
	}
	return template, nil
}

// same says that two revisions' data make the same pods. Also what is written in another way, 1 and 1000m, or by another version.
func same(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	x, err := parse(a)
	if err != nil {
		return false
	}
	y, err := parse(b)
	return err == nil && equality.Semantic.DeepEqual(x, y)
}

// hashOf returns the suffix of the name of a revision with this data.
func hashOf(data []byte, collisions int32) string {
	h := fnv.New32()
	h.Write(data)
	h.Write([]byte(strconv.Itoa(int(collisions))))
	return rand.SafeEncodeString(strconv.FormatUint(uint64(h.Sum32()), 10))
}
