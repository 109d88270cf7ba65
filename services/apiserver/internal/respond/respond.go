// Package respond writes the answers of the Kubernetes door in the form that a client accepts, and reads the bodies of its requests: JSON, YAML and Kubernetes'
// protobuf envelope, within bounds. Errors become Status objects.
package respond

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"sigs.k8s.io/yaml"

	"dhow.dev/pkg/apistatus"
	"dhow.dev/services/apiserver/internal/codec"
)

// Object writes an object in the negotiated form. Its kind is that of its TypeMeta, or found by its Go type.
func Object(w http.ResponseWriter, r *http.Request, code int, o runtime.Object) {
	form, err := Negotiate(r)
	if err != nil {
		Error(w, r, err)
		return
	}
	body, media, err := Encode(form, o)
	if err != nil {
		Error(w, r, err)
		return
	}
	Write(w, r, code, media.ContentType(), body)
}

// Error writes an error as a Status. Errors that are no API errors are internal: the caller gets a fixed text, and the error goes to whoever listens (Listen).
func Error(w http.ResponseWriter, r *http.Request, err error) {
	if report, ok := r.Context().Value(reportKey{}).(*Report); ok {
		reported := err
		report.err.Store(&reported)
	}
	status := StatusOf(err)
	if d := status.Details; d != nil && d.RetryAfterSeconds > 0 {
		w.Header().Set("Retry-After", strconv.Itoa(int(d.RetryAfterSeconds)))
	}
	form, unacceptable := Negotiate(r)
	if unacceptable != nil {
		form = Form{}
	}
	body, media, err := Encode(form, status)
	if err != nil {
		http.Error(w, "the error cannot be encoded", http.StatusInternalServerError)
		return
	}
	Write(w, r, int(status.Code), media.ContentType(), body)
}

// StatusOf returns the Status of an error.
func StatusOf(err error) *metav1.Status {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		err = apierrors.NewRequestEntityTooLargeError("limit is " + strconv.FormatInt(tooLarge.Limit, 10))
	}
	var api apierrors.APIStatus
	if !errors.As(err, &api) && !errors.As(apistatus.FromGRPC(apistatus.ToGRPC(err)), &api) {
		api = apierrors.NewInternalError(errors.New("the server's log has it"))
	}
	status := api.Status()
	status.TypeMeta = metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}
	if status.Status == "" {
		status.Status = metav1.StatusFailure
	}
	if status.Code < http.StatusOK || status.Code > 599 {
		status.Code = http.StatusInternalServerError
	}
	return &status
}

// Report holds the error that a request was answered with.
type Report struct{ err atomic.Pointer[error] }

// Err returns the error, nil when there was none.
func (r *Report) Err() error {
	if err := r.err.Load(); err != nil {
		return *err
	}
	return nil
}

type reportKey struct{}

// Listen returns a context under which Error leaves its error in the report.
func Listen(ctx context.Context) (context.Context, *Report) {
	report := &Report{}
	return context.WithValue(ctx, reportKey{}, report), report
}

// kinds knows the kind of every Go type. It is made when the first object without TypeMeta is written.
var kinds = sync.OnceValues(codec.New)

// metaKind knows the kinds of meta.k8s.io, whose Go types are registered in every group.
func metaKind(o runtime.Object) (schema.GroupVersionKind, bool) {
	version := schema.GroupVersion{Group: metav1.GroupName, Version: "v1"}
	switch o.(type) {
	case *metav1.Status:
		return schema.GroupVersionKind{Version: "v1", Kind: "Status"}, true
	case *metav1.Table:
		return version.WithKind("Table"), true
	case *metav1.PartialObjectMetadata:
		return version.WithKind("PartialObjectMetadata"), true
	case *metav1.PartialObjectMetadataList:
		return version.WithKind("PartialObjectMetadataList"), true
	}
	return schema.GroupVersionKind{}, false
}

// SetKind gives an object its kind unless it has one.
func SetKind(o runtime.Object) error {
	if !o.GetObjectKind().GroupVersionKind().Empty() {
		return nil
	}
	if kind, ok := metaKind(o); ok {
		o.GetObjectKind().SetGroupVersionKind(kind)
		return nil
	}
	known, err := kinds()
	if err != nil {
		return err
	}
	all, _, err := known.Scheme().ObjectKinds(o)
	if err != nil {
		return err
	}
	o.GetObjectKind().SetGroupVersionKind(all[0])
	return nil
}

// Encode encodes an object. The media type is another one than asked for when the object cannot be encoded in that.
func Encode(form Form, o runtime.Object) ([]byte, Media, error) {
	if err := SetKind(o); err != nil {
		return nil, form.Media, err
	}
	if form.Media == Protobuf {
		if m, ok := o.(interface{ Marshal() ([]byte, error) }); ok {
			raw, err := m.Marshal()
			if err != nil {
				return nil, form.Media, err
			}
			kind := o.GetObjectKind().GroupVersionKind()
			apiVersion, kindName := kind.ToAPIVersionAndKind()
			return append(Envelope(apiVersion, kindName, len(raw)), append(raw, EnvelopeTail...)...), Protobuf, nil
		}
		form.Media = JSON
	}
	body, err := json.Marshal(o)
	if err != nil {
		return nil, form.Media, err
	}
	body, err = Dress(form, body)
	return body, form.Media, err
}

// Dress turns compact JSON into what the form asks for: YAML, indented, or with a newline behind it.
func Dress(form Form, body []byte) ([]byte, error) {
	switch {
	case form.Media == YAML:
		return yaml.JSONToYAML(body)
	case form.Pretty:
		var indented bytes.Buffer
		if err := json.Indent(&indented, body, "", "  "); err != nil {
			return nil, err
		}
		return indented.Bytes(), nil
	}
	return append(bytes.TrimSuffix(body, newline), '\n'), nil
}

var newline = []byte("\n")

// The bounds of warnings are Kubernetes': each and all together, in bytes. Their code is RFC 7234's miscellaneous persistent warning.
const (
	warningCode = 299
	maxWarning  = 256
	maxWarnings = 4096
)

// Warn adds a warning to the answer. It must be called before the answer is written.
func Warn(w http.ResponseWriter, text string) {
	if len(text) > maxWarning {
		text = string(bytes.ToValidUTF8([]byte(text[:maxWarning]), nil))
	}
	value, err := utilnet.NewWarningHeader(warningCode, "-", text)
	if err != nil {
		return // not printable: nothing that a client could show
	}
	size := len(value)
	for _, other := range w.Header().Values("Warning") {
		if other == value {
			return
		}
		size += len(other)
	}
	if size <= maxWarnings {
		w.Header().Add("Warning", value)
	}
}
