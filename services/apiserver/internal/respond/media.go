package respond

import (
	"mime"
	"net/http"
	"slices"
	"sort"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protowire"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Media is a form of encoding.
type Media int

// The encodings that the door speaks.
const (
	JSON Media = iota
	YAML
	Protobuf
)

var contentTypes = [...]string{JSON: "application/json", YAML: "application/yaml", Protobuf: "application/vnd.kubernetes.protobuf"}

// ContentType is the media type's name.
func (m Media) ContentType() string { return contentTypes[m] }

// Form is what a client wants its answer to be.
type Form struct {
	Media Media
	// Pretty says that JSON is indented.
	Pretty bool
	// As is empty or one of Table, PartialObjectMetadata and PartialObjectMetadataList, of meta.k8s.io/v1.
	As string
}

// maxRanges bounds the media ranges of an Accept header.
const maxRanges = 64

// Negotiate returns the first form of the request's Accept header that the server has. As are the transformations that are possible here.
func Negotiate(r *http.Request, as ...string) (Form, error) {
	form := Form{Pretty: pretty(r)}
	accept := strings.Join(r.Header.Values("Accept"), ",")
	if accept == "" {
		return form, nil
	}
	ranges := strings.SplitN(accept, ",", maxRanges)
	type choice struct {
		form    Form
		quality float64
	}
	choices := make([]choice, 0, len(ranges))
	for _, text := range ranges {
		name, parameters, err := mime.ParseMediaType(text)
		if err != nil {
			continue
		}
		own := form
		switch name {
		case "application/json", "application/*", "*/*":
		case "application/yaml":
			own.Media = YAML
		case "application/vnd.kubernetes.protobuf":
			own.Media = Protobuf
		default:
			continue
		}
		if wanted := parameters["as"]; wanted != "" {
			// Tables have no protobuf.
			if !slices.Contains(as, wanted) || wanted == "Table" && own.Media == Protobuf || parameters["g"] != metav1.GroupName || parameters["v"] != "v1" {
				continue
			}
			own.As = wanted
		}
		if value, ok := parameters["pretty"]; ok && own.Media == JSON {
			own.Pretty = value == "1"
		}
		quality := 1.0
		if q, ok := parameters["q"]; ok {
			if quality, err = strconv.ParseFloat(q, 64); err != nil || !(quality > 0 && quality <= 1) {
				continue
			}
		}
		choices = append(choices, choice{own, quality})
	}
	if len(choices) == 0 {
		return form, NotAcceptable(contentTypes[:]...)
	}
	sort.SliceStable(choices, func(i, j int) bool { return choices[i].quality > choices[j].quality })
	return choices[0].form, nil
}

// pretty says whether JSON is indented: when asked for, and for those who read it themselves.
func pretty(r *http.Request) bool {
	if query := r.URL.RawQuery; strings.Contains(query, "pretty") {
		if values, ok := r.URL.Query()["pretty"]; ok {
			return values[0] != "0" && !strings.EqualFold(values[0], "false")
		}
	}
	agent := r.UserAgent()
	return strings.HasPrefix(agent, "curl") || strings.HasPrefix(agent, "Wget") || strings.HasPrefix(agent, "Mozilla/5.0")
}

// NotAcceptable says that no form is one that the client accepts.
func NotAcceptable(types ...string) error {
	return status(http.StatusNotAcceptable, metav1.StatusReasonNotAcceptable, "only the following media types are accepted: "+strings.Join(types, ", "))
}

// Unsupported says that a body's form is not known.
func Unsupported(types ...string) error {
	return status(http.StatusUnsupportedMediaType, metav1.StatusReasonUnsupportedMediaType,
		"the body of the request was in an unknown format - accepted media types include: "+strings.Join(types, ", "))
}

func status(code int32, reason metav1.StatusReason, message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message}}
}

// magic begins protobuf bodies; runtime.Unknown follows, whose fields these are.
const (
	magic       = "k8s\x00"
	unknownType = 1
	unknownRaw  = 2

	typeVersion = 1
	typeKind    = 2
)

// EnvelopeTail ends an envelope: the empty content encoding and content type, which Kubernetes writes out.
const EnvelopeTail = "\x1a\x00\x22\x00"

// Envelope returns what precedes an object of size bytes of protobuf. EnvelopeTail goes behind it.
func Envelope(apiVersion, kind string, size int) []byte {
	typeSize := 1 + protowire.SizeBytes(len(apiVersion)) + 1 + protowire.SizeBytes(len(kind))
	b := make([]byte, 0, len(magic)+1+protowire.SizeBytes(typeSize)+1+protowire.SizeVarint(uint64(size)))
	b = append(b, magic...)
	b = protowire.AppendTag(b, unknownType, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(typeSize))
	b = protowire.AppendTag(b, typeVersion, protowire.BytesType)
	b = protowire.AppendString(b, apiVersion)
	b = protowire.AppendTag(b, typeKind, protowire.BytesType)
	b = protowire.AppendString(b, kind)
	b = protowire.AppendTag(b, unknownRaw, protowire.BytesType)
	return protowire.AppendVarint(b, uint64(size))
}
