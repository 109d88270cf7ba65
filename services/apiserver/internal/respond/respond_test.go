package respond_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"

	"dhow.dev/services/apiserver/internal/respond"
)

func TestNegotiate(t *testing.T) {
	const kubectl = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json"
	for _, c := range []struct {
		accept, target string
		as             []string
		want           respond.Form
		fails          bool
	}{
		{accept: "", want: respond.Form{}},
		{accept: "*/*", want: respond.Form{}},
		{accept: "application/vnd.kubernetes.protobuf,application/json", want: respond.Form{Media: respond.Protobuf}},
		{accept: "application/json;q=0.5, application/yaml", want: respond.Form{Media: respond.YAML}},
		{accept: kubectl, as: []string{"Table"}, want: respond.Form{As: "Table"}},
		{accept: kubectl, want: respond.Form{}},
		{accept: "application/cbor, application/json;q=0.1", want: respond.Form{}},
		{accept: "application/json;as=Table;v=v1beta1;g=meta.k8s.io", as: []string{"Table"}, fails: true},
		{accept: "text/html", fails: true},
		{accept: ";;;", fails: true},
		{target: "/?pretty=true", want: respond.Form{Pretty: true}},
		{target: "/?pretty=false", want: respond.Form{}},
	} {
		r := httptest.NewRequest(http.MethodGet, "/"+strings.TrimPrefix(c.target, "/"), nil)
		r.Header.Set("Accept", c.accept)
		got, err := respond.Negotiate(r, c.as...)
		if c.fails {
			if !apierrors.IsNotAcceptable(err) {
				t.Errorf("%q: %v, want NotAcceptable", c.accept, err)
			}
		} else if err != nil || got != c.want {
			t.Errorf("%q: %+v, %v, want %+v", c.accept, got, err, c.want)
		}
	}
}

func TestObjectInEveryForm(t *testing.T) {
	for _, accept := range []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf"} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Accept", accept)
		w := httptest.NewRecorder()
		respond.Object(w, r, http.StatusCreated, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}})
		if w.Code != http.StatusCreated || w.Header().Get("Content-Type") != accept {
			t.Errorf("%s: %d %s", accept, w.Code, w.Header().Get("Content-Type"))
		}
		o, _, err := scheme.Codecs.UniversalDeserializer().Decode(w.Body.Bytes(), nil, nil)
		if pod, ok := o.(*corev1.Pod); err != nil || !ok || pod.Name != "p" {
			t.Errorf("%s: %v, %v", accept, o, err)
		}
		// What the door writes it also reads.
		back := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(w.Body.Bytes()))
		back.Header.Set("Content-Type", accept)
		var pod corev1.Pod
		if err := respond.Decode(back, &pod); err != nil || pod.Name != "p" {
			t.Errorf("%s: decoded %v, %v", accept, pod.Name, err)
		}
	}
}

func TestErrors(t *testing.T) {
	busy := apierrors.NewTooManyRequests("busy", 7)
	for _, c := range []struct {
		err    error
		code   int
		reason metav1.StatusReason
	}{
		{busy, http.StatusTooManyRequests, metav1.StatusReasonTooManyRequests},
		{apierrors.NewNotFound(corev1.Resource("pods"), "p"), http.StatusNotFound, metav1.StatusReasonNotFound},
		{&http.MaxBytesError{Limit: 5}, http.StatusRequestEntityTooLarge, metav1.StatusReasonRequestEntityTooLarge},
		{errors.New("password=x"), http.StatusInternalServerError, metav1.StatusReasonInternalError},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		ctx, report := respond.Listen(r.Context())
		w := httptest.NewRecorder()
		respond.Error(w, r.WithContext(ctx), c.err)
		var status metav1.Status
		if err := json.Unmarshal(w.Body.Bytes(), &status); err != nil {
			t.Fatal(err)
		}
		if w.Code != c.code || status.Reason != c.reason || status.Kind != "Status" || strings.Contains(status.Message, "password") || report.Err() == nil {
			t.Errorf("%v: %d %+v", c.err, w.Code, status)
		}
		if c.err == error(busy) && w.Header().Get("Retry-After") != "7" {
			t.Errorf("Retry-After %q", w.Header().Get("Retry-After"))
		}
	}
}

func TestBodiesAreBounded(t *testing.T) {
	for name, c := range map[string]struct {
		media string
		body  io.Reader
		code  int
	}{
		"large":         {"application/json", strings.NewReader(strings.Repeat(" ", respond.MaxBody+1)), http.StatusRequestEntityTooLarge},
		"large, length": {"application/json", io.MultiReader(strings.NewReader(strings.Repeat(" ", respond.MaxBody+1))), http.StatusRequestEntityTooLarge},
		"deep":          {"application/json", strings.NewReader(strings.Repeat(`{"a":`, 2000)), http.StatusBadRequest},
		"media type":    {"text/plain", strings.NewReader("{}"), http.StatusUnsupportedMediaType},
		"no envelope":   {"application/vnd.kubernetes.protobuf", strings.NewReader("k9s"), http.StatusBadRequest},
		"other kind":    {"application/json", strings.NewReader(`{"kind":"Node","apiVersion":"v1"}`), http.StatusBadRequest},
	} {
		r := httptest.NewRequest(http.MethodPost, "/", c.body)
		r.Header.Set("Content-Type", c.media)
		if got := respond.StatusOf(respond.Decode(r, &corev1.Pod{})); int(got.Code) != c.code {
			t.Errorf("%s: %d %s, want %d", name, got.Code, got.Message, c.code)
		}
	}
}

func TestLargeAnswersAreCompressed(t *testing.T) {
	body := bytes.Repeat([]byte("abcdefgh"), 32<<10)
	r := httptest.NewRequest(http.MethodGet, "/", nil)
	r.Header.Set("Accept-Encoding", "deflate, gzip;q=0.8")
	w := httptest.NewRecorder()
	respond.Write(w, r, http.StatusOK, "text/plain", body[:100], body[100:])
	if w.Header().Get("Content-Encoding") != "gzip" {
		t.Fatal("not compressed")
	}
	z, err := gzip.NewReader(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(z); err != nil || !bytes.Equal(got, body) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

// Who is on the same machine gets the bytes as they are, whole however large they are, unless they are passed on.
func TestNothingIsCompressedWithoutNetwork(t *testing.T) {
	pieces := make([][]byte, 0, 3000)
	for i := range cap(pieces) {
		pieces = append(pieces, bytes.Repeat([]byte{byte('a' + i%26)}, i%200))
	}
	for name, c := range map[string]struct {
		remote, local, passed string
		compressed            bool
	}{
		"loopback":           {remote: "127.0.0.1:4711"},
		"loopback, v6":       {remote: "[::1]:4711"},
		"own address":        {remote: "10.1.2.3:4711", local: "10.1.2.3:6443"},
		"own, mapped":        {remote: "10.1.2.3:4711", local: "[::ffff:10.1.2.3]:6443"},
		"another machine":    {remote: "10.1.2.4:4711", local: "10.1.2.3:6443", compressed: true},
		"proxy on this one":  {remote: "127.0.0.1:4711", passed: "192.0.2.7", compressed: true},
		"unknown":            {remote: "pipe", compressed: true},
		"no address of ours": {remote: "10.1.2.4:4711", compressed: true},
	} {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header.Set("Accept-Encoding", "gzip")
		r.RemoteAddr = c.remote
		if c.passed != "" {
			r.Header.Set("X-Forwarded-For", c.passed)
		}
		if c.local != "" {
			r = r.WithContext(context.WithValue(r.Context(), http.LocalAddrContextKey, net.Addr(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(c.local)))))
		}
		w := httptest.NewRecorder()
		respond.Write(w, r, http.StatusOK, "text/plain", pieces...)
		if got := w.Header().Get("Content-Encoding") == "gzip"; got != c.compressed {
			t.Errorf("%s: compressed %v", name, got)
		}
		var body io.Reader = w.Body
		if c.compressed {
			var err error
			if body, err = gzip.NewReader(w.Body); err != nil {
				t.Fatal(err)
			}
		} else if w.Header().Get("Content-Length") != strconv.Itoa(w.Body.Len()) {
			t.Errorf("%s: %d bytes of %s", name, w.Body.Len(), w.Header().Get("Content-Length"))
		}
		if got, err := io.ReadAll(body); err != nil || !bytes.Equal(got, bytes.Join(pieces, nil)) {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

func TestWarnings(t *testing.T) {
	w := httptest.NewRecorder()
	for range 2 {
		respond.Warn(w, `say "hi"`)
	}
	if got := w.Header().Values("Warning"); len(got) != 1 || got[0] != `299 - "say \"hi\""` {
		t.Errorf("%q", got)
	}
	for i := range 100 {
		respond.Warn(w, strings.Repeat(string(rune('a'+i%26)), 200+i))
	}
	if got := len(strings.Join(w.Header().Values("Warning"), "")); got > 4096 {
		t.Errorf("%d bytes of warnings", got)
	}
}

func FuzzDecode(f *testing.F) {
	pod, _, err := respond.Encode(respond.Form{Media: respond.Protobuf}, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(pod, 2)
	f.Add([]byte(`{"kind":"Pod","apiVersion":"v1","metadata":{"name":"p"}}`), 0)
	f.Add([]byte("a: &a [*a,*a]\n"), 1)
	f.Add([]byte("kind: Pod\nmetadata: {name: p}\n"), 1)
	f.Fuzz(func(t *testing.T, data []byte, media int) {
		r := httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(data))
		r.Header.Set("Content-Type", respond.Media(uint(media)%3).ContentType())
		if err := respond.Decode(r, &corev1.Pod{}); err != nil {
			if code := respond.StatusOf(err).Code; code >= http.StatusInternalServerError {
				t.Errorf("%d for bad input: %v", code, err)
			}
		}
	})
}

func FuzzNegotiate(f *testing.F) {
	f.Add("application/json;as=Table;v=v1;g=meta.k8s.io, */*;q=0.1", "curl/8")
	f.Add(";;,,q=", "")
	f.Fuzz(func(t *testing.T, accept, agent string) {
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		r.Header["Accept"], r.Header["User-Agent"] = []string{accept}, []string{agent}
		if form, err := respond.Negotiate(r, "Table"); err == nil && form.As != "" && form.As != "Table" {
			t.Errorf("%q: %+v", accept, form)
		}
	})
}
