package audit

import (
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/apiserver/internal/audit/annotation"
)

// bodyAnnotation says why a body is not in an event that should have it.
const bodyAnnotation = "audit.dhow.dev/body-omitted"

// object returns a body as JSON, nil when there is none or it cannot be told.
func (a *Auditor) object(ctx context.Context, contentType, encoding string, body *bounded, omitManagedFields bool) json.RawMessage {
	if body.over {
		annotation.Add(ctx, bodyAnnotation, fmt.Sprintf("it is larger than %d bytes", maxBody))
		return nil
	}
	if body.Len() == 0 {
		return nil
	}
	object, err := a.decode(contentType, encoding, body.Bytes())
	if err == nil && omitManagedFields {
		object, err = withoutManagedFields(object)
	}
	if err != nil {
		// The request itself is answered by the handler; here it only cannot be shown.
		a.config.Logger.DebugContext(ctx, "body of an audited request cannot be decoded", logkey.Err(err))
		annotation.Add(ctx, bodyAnnotation, "it cannot be decoded")
		return nil
	}
	return object
}

func (a *Auditor) decode(contentType, encoding string, data []byte) (json.RawMessage, error) {
	if encoding == "gzip" {
		unpacked, err := gunzip(data)
		if err != nil {
			return nil, err
		}
		data = unpacked
	}
	media, _, err := mime.ParseMediaType(contentType)
	if err != nil && contentType != "" {
		return nil, err
	}
	switch {
	case media == runtime.ContentTypeProtobuf:
		return a.fromProtobuf(data)
	case strings.HasSuffix(media, "yaml"):
		return yaml.YAMLToJSON(data)
	}
	// Kubernetes takes a body without a type for JSON, and what it sends of other types is text.
	if !json.Valid(data) {
		if strings.HasPrefix(media, "text/") {
			return json.Marshal(string(data))
		}
		return nil, fmt.Errorf("%s is no JSON", media)
	}
	return data, nil
}

func gunzip(data []byte) ([]byte, error) {
	r, err := gzip.NewReader(strings.NewReader(string(data)))
	if err != nil {
		return nil, err
	}
	// The answer was made here, and is as large as it is; still nothing is unpacked without a bound.
	unpacked, err := io.ReadAll(io.LimitReader(r, 8*maxBody+1))
	if err == nil && len(unpacked) > 8*maxBody {
		err = fmt.Errorf("it is larger than %d bytes", 8*maxBody)
	}
	return unpacked, err
}

// fromProtobuf decodes Kubernetes' envelope: four bytes and a runtime.Unknown.
func (a *Auditor) fromProtobuf(data []byte) (json.RawMessage, error) {
	const magic = "k8s\x00"
	raw, ok := strings.CutPrefix(string(data), magic)
	if !ok {
		return nil, fmt.Errorf("it does not begin with %q", magic)
	}
	var envelope runtime.Unknown
	if err := envelope.Unmarshal([]byte(raw)); err != nil {
		return nil, err
	}
	gvk := schema.FromAPIVersionAndKind(envelope.APIVersion, envelope.Kind)
	object, err := a.config.Scheme.New(gvk)
	if err != nil {
		return nil, err
	}
	message, ok := object.(interface{ Unmarshal([]byte) error })
	if !ok {
		return nil, fmt.Errorf("%s has no protobuf encoding", gvk)
	}
	if err := message.Unmarshal(envelope.Raw); err != nil {
		return nil, err
	}
	object.GetObjectKind().SetGroupVersionKind(gvk)
	return json.Marshal(object)
}

// withoutManagedFields drops them from an object, and from the objects of a list.
func withoutManagedFields(data json.RawMessage) (json.RawMessage, error) {
	if !strings.Contains(string(data), `"managedFields"`) {
		return data, nil
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(data, &object); err != nil {
		return data, nil // a patch that is a list
	}
	var metadata map[string]json.RawMessage
	if json.Unmarshal(object["metadata"], &metadata) == nil && metadata["managedFields"] != nil {
		delete(metadata, "managedFields")
		changed, err := json.Marshal(metadata)
		if err != nil {
			return nil, err
		}
		object["metadata"] = changed
	}
	var items []json.RawMessage
	if json.Unmarshal(object["items"], &items) == nil && items != nil {
		for i := range items {
			item, err := withoutManagedFields(items[i])
			if err != nil {
				return nil, err
			}
			items[i] = item
		}
		changed, err := json.Marshal(items)
		if err != nil {
			return nil, err
		}
		object["items"] = changed
	}
	return json.Marshal(object)
}
