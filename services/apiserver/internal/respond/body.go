package respond

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	kjson "sigs.k8s.io/json"
	"sigs.k8s.io/yaml"
)

const (
	// MaxBody bounds the body of a request, as Kubernetes does.
	MaxBody = 3 << 20
	// maxDepth bounds how deep JSON nests. The deepest field of any kind is less than 40 deep.
	maxDepth = 1000
)

// Body reads the body of a request and says how it is encoded. An empty Content-Type means JSON.
func Body(r *http.Request) ([]byte, Media, error) {
	media, err := mediaOf(r)
	if err != nil {
		return nil, 0, err
	}
	data, err := Read(r)
	if err != nil {
		return nil, 0, err
	}
	if media != Protobuf {
		err = CheckDepth(data)
	}
	return data, media, err
}

func mediaOf(r *http.Request) (Media, error) {
	name := r.Header.Get("Content-Type")
	if name == "" {
		return JSON, nil
	}
	parsed, _, err := mime.ParseMediaType(name)
	if err == nil {
		for media, known := range contentTypes {
			if parsed == known {
				return Media(media), nil
			}
		}
	}
	return 0, Unsupported(contentTypes[:]...)
}

// Read reads the body of a request, whatever it holds, within MaxBody.
func Read(r *http.Request) ([]byte, error) {
	if r.Body == nil {
		return nil, nil
	}
	if r.ContentLength > MaxBody {
		return nil, &http.MaxBytesError{Limit: MaxBody}
	}
	limited := http.MaxBytesReader(nil, r.Body, MaxBody)
	defer limited.Close()
	if n := r.ContentLength; n > 0 {
		data := make([]byte, n)
		_, err := io.ReadFull(limited, data)
		return data, readError(err)
	}
	data, err := io.ReadAll(limited)
	return data, readError(err)
}

func readError(err error) error {
	var tooLarge *http.MaxBytesError
	if err == nil || errors.As(err, &tooLarge) {
		return err
	}
	return apierrors.NewBadRequest("the body cannot be read: " + err.Error())
}

// CheckDepth refuses JSON, and YAML in flow style, that nests deeper than any object does.
func CheckDepth(data []byte) error {
	depth, inString := 0, false
	for i := 0; i < len(data); i++ {
		switch c := data[i]; {
		case inString && c == '\\':
			i++
		case c == '"':
			inString = !inString
		case inString:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return apierrors.NewBadRequest(fmt.Sprintf("the body nests deeper than %d levels", maxDepth))
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// Unwrap opens the envelope of a protobuf body. The kind is empty when the envelope does not say it.
func Unwrap(data []byte) (raw []byte, kind schema.GroupVersionKind, err error) {
	if len(data) < len(magic) || string(data[:len(magic)]) != magic {
		return nil, kind, apierrors.NewBadRequest(fmt.Sprintf("provided data does not appear to be a protobuf message, expected prefix %v", []byte(magic)))
	}
	var unknown runtime.Unknown
	if err := unknown.Unmarshal(data[len(magic):]); err != nil {
		return nil, kind, apierrors.NewBadRequest("the protobuf envelope cannot be decoded: " + err.Error())
	}
	if unknown.ContentEncoding != "" {
		return nil, kind, apierrors.NewBadRequest(fmt.Sprintf("the protobuf envelope's content encoding %q is not known", unknown.ContentEncoding))
	}
	if unknown.APIVersion == "" && unknown.Kind == "" {
		return unknown.Raw, kind, nil
	}
	version, err := schema.ParseGroupVersion(unknown.APIVersion)
	if err != nil {
		return nil, kind, apierrors.NewBadRequest("the protobuf envelope's type: " + err.Error())
	}
	return unknown.Raw, version.WithKind(unknown.Kind), nil
}

// Decode reads a request's body into an object. Unknown fields are passed over. Another kind than the object's is an error; the object's is that of
// its TypeMeta or its Go type. An empty body leaves the object as it is.
func Decode(r *http.Request, into runtime.Object) error {
	data, media, err := Body(r)
	if err != nil || len(data) == 0 {
		return err
	}
	return DecodeBytes(data, media, into)
}

// DecodeBytes is Decode of a body that was read.
func DecodeBytes(data []byte, media Media, into runtime.Object) error {
	if err := SetKind(into); err != nil {
		return err
	}
	want := into.GetObjectKind().GroupVersionKind()
	var got schema.GroupVersionKind
	var err error
	switch media {
	case Protobuf:
		m, ok := into.(interface{ Unmarshal([]byte) error })
		if !ok {
			return Unsupported(contentTypes[:Protobuf]...)
		}
		var raw []byte
		if raw, got, err = Unwrap(data); err != nil {
			return err
		}
		err = m.Unmarshal(raw)
	case YAML:
		if data, err = yaml.YAMLToJSON(data); err != nil {
			break
		}
		fallthrough
	default:
		into.GetObjectKind().SetGroupVersionKind(schema.GroupVersionKind{})
		err = kjson.UnmarshalCaseSensitivePreserveInts(data, into)
		got = into.GetObjectKind().GroupVersionKind()
	}
	into.GetObjectKind().SetGroupVersionKind(want)
	if err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("the body cannot be decoded as %s: %v", want.Kind, err))
	}
	if !got.Empty() && got != want {
		return apierrors.NewBadRequest(fmt.Sprintf("the kind in the data (%s) does not match the expected kind (%s)", got, want))
	}
	return nil
}
