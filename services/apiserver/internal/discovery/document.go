package discovery

import (
	"bytes"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"strings"
	"sync"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	apidiscoveryv2beta1 "k8s.io/api/apidiscovery/v2beta1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"sigs.k8s.io/yaml"

	"dhow.dev/services/apiserver/internal/respond"
)

const (
	jsonType     = "application/json"
	yamlType     = "application/yaml"
	protobufType = "application/vnd.kubernetes.protobuf"
)

// document answers with one object, in the form that the client accepts. Objects never change, so each form is encoded once.
type document struct {
	object runtime.Object
	// all is the document of all groups, for clients that ask this path for it, or nil.
	all *apidiscoveryv2.APIGroupDiscoveryList
	// encoded holds *encoding by content type.
	encoded sync.Map
}

type encoding struct {
	body []byte
	etag string
}

func newDocument(object runtime.Object, all *apidiscoveryv2.APIGroupDiscoveryList) *document {
	return &document{object: object, all: all}
}

func (d *document) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		respond.Error(w, r, apierrors.NewMethodNotSupported(schema.GroupResource{Resource: r.URL.Path}, strings.ToLower(r.Method)))
		return
	}
	media, contentType, aggregated := d.accepted(r.Header.Values("Accept"))
	w.Header().Add("Vary", "Accept")
	if media == "" {
		respond.Error(w, r, respond.NotAcceptable(jsonType, yamlType, protobufType))
		return
	}
	e, err := d.encode(media, contentType, aggregated)
	if err != nil {
		respond.Error(w, r, apierrors.NewInternalError(err))
		return
	}
	if aggregated != "" {
		w.Header().Set("ETag", e.etag)
		w.Header().Set("Cache-Control", "public")
		if r.Header.Get("If-None-Match") == e.etag {
			w.WriteHeader(http.StatusNotModified)
			return
		}
	}
	respond.Write(w, r, http.StatusOK, contentType, e.body)
}

// accepted picks the first form of the client's list that there is: its media type, its whole content type, and the version of the document of all
// groups when it is that one. No list means JSON; an empty media type that nothing fits.
func (d *document) accepted(accept []string) (media, contentType, aggregated string) {
	list := strings.Join(accept, ",")
	if strings.TrimSpace(list) == "" {
		return jsonType, jsonType, ""
	}
	for _, clause := range strings.Split(list, ",") {
		media, parameters, err := mime.ParseMediaType(strings.TrimSpace(clause))
		if err != nil {
			continue
		}
		switch media {
		case "*/*", "application/*", "text/html":
			media = jsonType
		case jsonType, yamlType, protobufType:
		default:
			continue
		}
		as := parameters["as"]
		if as == "" {
			return media, media, ""
		}
		version := parameters["v"]
		if d.all != nil && as == "APIGroupDiscoveryList" && parameters["g"] == apidiscoveryv2.GroupName && (version == "v2" || version == "v2beta1") && media != yamlType {
			return media, fmt.Sprintf("%s;g=%s;v=%s;as=%s", media, apidiscoveryv2.GroupName, version, as), version
		}
	}
	return "", "", ""
}

func (d *document) encode(media, contentType, aggregated string) (*encoding, error) {
	if found, ok := d.encoded.Load(contentType); ok {
		return found.(*encoding), nil
	}
	object, err := d.form(aggregated)
	if err != nil {
		return nil, err
	}
	body, err := marshal(object, media)
	if err != nil {
		return nil, err
	}
	e := &encoding{body: body, etag: fmt.Sprintf("%q", fmt.Sprintf("%X", sha512.Sum512(body)))}
	d.encoded.Store(contentType, e)
	return e, nil
}

// form returns the object, or the document of all groups, with its kind.
func (d *document) form(aggregated string) (runtime.Object, error) {
	object, gvk := d.object.DeepCopyObject(), schema.GroupVersionKind{Version: "v1"}
	switch o := object.(type) {
	case *metav1.APIVersions:
		gvk.Kind = "APIVersions"
	case *metav1.APIGroupList:
		gvk.Kind = "APIGroupList"
	case *metav1.APIGroup:
		gvk.Kind = "APIGroup"
	case *metav1.APIResourceList:
		gvk.Kind = "APIResourceList"
	default:
		return nil, fmt.Errorf("discovery: unknown document %T", o)
	}
	if aggregated != "" {
		object, gvk = d.all.DeepCopy(), apidiscoveryv2.SchemeGroupVersion.WithKind("APIGroupDiscoveryList")
	}
	if aggregated == "v2beta1" {
		// Both versions have the same fields.
		text, err := d.all.Marshal()
		if err != nil {
			return nil, err
		}
		older := &apidiscoveryv2beta1.APIGroupDiscoveryList{}
		if err := older.Unmarshal(text); err != nil {
			return nil, err
		}
		object, gvk = older, apidiscoveryv2beta1.SchemeGroupVersion.WithKind("APIGroupDiscoveryList")
	}
	object.GetObjectKind().SetGroupVersionKind(gvk)
	return object, nil
}

func marshal(object runtime.Object, media string) ([]byte, error) {
	switch media {
	case protobufType:
		scheme := runtime.NewScheme()
		var b bytes.Buffer
		err := protobuf.NewSerializer(scheme, scheme).Encode(object, &b)
		return b.Bytes(), err
	case yamlType:
		return yaml.Marshal(object)
	default:
		body, err := json.Marshal(object)
		return append(body, '\n'), err
	}
}
