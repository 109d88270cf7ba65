package codec

import (
	"bytes"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/pkg/resource"
)

func newCodec(t testing.TB) *Codec {
	t.Helper()
	c, err := New()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var configMaps = resource.Lookup("", "configmaps")

func TestEveryKindGoesThere(t *testing.T) {
	c := newCodec(t)
	for _, res := range resource.All() {
		o := c.New(res)
		o.SetName("x")
		o.SetResourceVersion("5")
		data, err := c.EncodeProto(o)
		if err != nil {
			t.Fatalf("%s: %v", res, err)
		}
		if o.GetResourceVersion() != "5" {
			t.Errorf("%s: encoding changed the object", res)
		}
		back, err := c.DecodeProto(res, data)
		if err != nil || back.GetName() != "x" || back.GetResourceVersion() != "" {
			t.Errorf("%s: %v, %+v", res, err, back)
		}
		text, err := c.EncodeJSON(res, o)
		if err != nil || !bytes.Contains(text, []byte(`"kind":"`+res.Kind+`"`)) || !bytes.Contains(text, []byte(`"apiVersion":"`+res.APIVersion()+`"`)) {
			t.Errorf("%s: %s, %v", res, text, err)
		}
		if !o.GetObjectKind().GroupVersionKind().Empty() {
			t.Errorf("%s: encoding left the kind in the object", res)
		}
		if _, _, err := c.DecodeText(res, text, Strict); err != nil {
			t.Errorf("%s: %v", res, err)
		}
		if _, ok := Status(o); ok != res.HasStatus && res.HasStatus {
			t.Errorf("%s: the status field is not found", res)
		}
	}
}

func TestTextIsReadAsKubernetesDoes(t *testing.T) {
	c := newCodec(t)
	for document, words := range map[string]string{
		`{"metadata":{"name":"a","nme":"b"},"data":{"x":"1","x":"2"}}`: `ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: `,
		`{"metadata":{"nme":"b"}}`:                                     `unknown field "metadata.nme"`,
		"metadata:\n  name: a\n  nme: b\n":                             `unknown field "metadata.nme"`,
		"data:\n  x: \"1\"\n  x: \"2\"\n":                              `key "x" already set in map`,
		`{"data":{"x":1}}`:                                             `cannot unmarshal number into Go struct field ConfigMap.data of type string`,
		`{"kind":"Pod","apiVersion":"v1"}`:                             `the kind in the data (/v1, Kind=Pod) does not match the expected kind (/v1, Kind=ConfigMap)`,
		`{"kind":"ConfigMap","apiVersion":"v2"}`:                       `no kind "ConfigMap" is registered for version "v2"`,
		"\t:":                                                          `cannot be handled as a ConfigMap`,
		`"a string"`:                                                   `cannot be handled as a ConfigMap`,
	} {
		if _, _, err := c.DecodeText(configMaps, []byte(document), Strict); err == nil || !apierrors.IsBadRequest(err) || !strings.Contains(err.Error(), words) {
			t.Errorf("%s\ngot  %v\nwant %s", document, err, words)
		}
	}
	o, warnings, err := c.DecodeText(configMaps, []byte(`{"metadata":{"name":"a"},"data":{"x":"1","x":"2"},"dat":1}`), Warn)
	if err != nil || len(warnings) != 2 || o.(*corev1.ConfigMap).Data["x"] != "2" {
		t.Errorf("%v, %q, %v", o, warnings, err)
	}
}

func FuzzDecode(f *testing.F) {
	c := newCodec(f)
	f.Add([]byte("metadata: {name: a}"))
	f.Add([]byte(`{"metadata":{"name":"a"}}`))
	f.Add([]byte{0x0a, 0x03, 0x0a, 0x01, 'a'})
	f.Fuzz(func(t *testing.T, data []byte) {
		if o, err := c.DecodeProto(configMaps, data); err == nil {
			if _, err := c.EncodeProto(o); err != nil {
				t.Errorf("decoded, but cannot be encoded: %v", err)
			}
		}
		if _, _, err := c.DecodeText(configMaps, data, Strict); err != nil && !apierrors.IsBadRequest(err) {
			t.Errorf("%v is no BadRequest", err)
		}
	})
}
