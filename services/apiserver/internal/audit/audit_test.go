package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/audit/annotation"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/respond"
)

// lines is a sink in memory.
type lines struct {
	mu     sync.Mutex
	events []Event
	raw    []string
}

func (l *lines) Add(_ context.Context, line []byte) {
	var e Event
	if err := json.Unmarshal(line, &e); err != nil {
		panic(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.events = append(l.events, e)
	l.raw = append(l.raw, string(line))
}

func (l *lines) all() []Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.events)
}

const policyText = `
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- level: None
  users: ["system:kube-scheduler"]
- level: Metadata
  resources: [{group: "", resources: [secrets, "serviceaccounts/token"]}]
- level: Request
  verbs: [create, patch]
  omitManagedFields: true
  namespaces: [shop]
- level: RequestResponse
  userGroups: [devs]
  resources: [{group: "", resources: ["*"]}]
- level: None
  nonResourceURLs: ["/livez*"]
- level: Metadata
  omitStages: []
`

func parse(t testing.TB, text string) *Policy {
	t.Helper()
	p, err := ParsePolicy([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func newAuditor(t testing.TB, policy string) (*Auditor, *lines) {
	t.Helper()
	sink := &lines{}
	a, err := New(Config{Policy: parse(t, policy), Sink: sink, Scheme: scheme.Scheme})
	if err != nil {
		t.Fatal(err)
	}
	return a, sink
}

// front parses requests and names callers as the door does.
func front(t testing.TB, a *Auditor, who identity.Identity, handler http.HandlerFunc) http.Handler {
	wrapped := a.Wrap(handler)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, err := request.Parse(r)
		if err != nil {
			t.Error(err)
			return
		}
		wrapped.ServeHTTP(w, r.WithContext(identity.NewContext(request.NewContext(r.Context(), info), who)))
	})
}

func TestPolicy(t *testing.T) {
	p := parse(t, policyText)
	dev := identity.Identity{Name: "jane", Groups: []string{"devs"}}
	for _, c := range []struct {
		user         identity.Identity
		method, path string
		level        Level
	}{
		{identity.Identity{Name: identity.Scheduler}, "GET", "/api/v1/pods", LevelNone},
		{dev, "GET", "/api/v1/namespaces/shop/secrets/s", LevelMetadata},
		{dev, "POST", "/api/v1/namespaces/shop/serviceaccounts/s/token", LevelMetadata},
		{dev, "POST", "/api/v1/namespaces/shop/serviceaccounts", LevelRequest},
		{dev, "POST", "/apis/apps/v1/namespaces/shop/deployments", LevelRequest},
		{dev, "POST", "/api/v1/namespaces/lab/pods", LevelRequestResponse},
		{dev, "GET", "/api/v1/namespaces/lab/pods/p/status", LevelRequestResponse},
		{dev, "GET", "/apis/apps/v1/deployments", LevelMetadata},
		{dev, "GET", "/livez/ping", LevelNone},
		{dev, "GET", "/metrics", LevelMetadata},
	} {
		info, err := request.Parse(httptest.NewRequest(c.method, c.path, nil))
		if err != nil {
			t.Fatal(err)
		}
		if got := p.judge(c.user, info).level; got != c.level {
			t.Errorf("%s %s %s: %s, want %s", c.user, c.method, c.path, got, c.level)
		}
	}
}

func TestBadPolicies(t *testing.T) {
	for text, want := range map[string]string{
		"apiVersion: audit.k8s.io/v1beta1\nkind: Policy\nrules: [{level: None}]":                                            "give a Policy of audit.k8s.io/v1",
		"apiVersion: audit.k8s.io/v1\nkind: Policy":                                                                         "no rules",
		"apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: All}]":                                                  `rules[0].level: "All"`,
		"apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, user: [x]}]":                                      "unknown field",
		"apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, nonResourceURLs: [x]}]":                           "must begin with a slash",
		"apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, nonResourceURLs: [/x], namespaces: [y]}]":         "make two",
		"apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, omitStages: [Never]}]":                            `"Never" is none of`,
		"apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, resources: [{group: apps/v1}]}]":                  "groups have no version",
		"apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: None, resources: [{group: apps, resourceNames: [x]}]}]": "resourceNames need resources",
	} {
		if _, err := ParsePolicy([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s\ngot %v, want %s", text, err, want)
		}
	}
}

func FuzzParsePolicy(f *testing.F) {
	f.Add([]byte(policyText))
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := ParsePolicy(data)
		if err == nil {
			p.judge(identity.Identity{Name: "x"}, &request.Info{Path: "/x"})
		}
	})
}

// TestClientGo records what client-go sends and gets, in JSON and in protobuf, packed and not.
func TestClientGo(t *testing.T) {
	for _, contentType := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		t.Run(contentType, func(t *testing.T) {
			a, sink := newAuditor(t, policyText)
			server := httptest.NewServer(front(t, a, identity.Identity{Name: "jane", Groups: []string{"devs"}, UID: "1"}, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Audit-Id") == "" || w.Header().Get("Audit-Id") != r.Header.Get("Audit-Id") {
					t.Error("the request has no audit id")
				}
				annotation.Add(r.Context(), annotation.Decision, "allow")
				annotation.Impersonated(r.Context(), identity.Identity{Name: "joe"})
				var pod corev1.Pod
				if err := respond.Decode(r, &pod); err != nil {
					t.Error(err)
				}
				pod.UID, pod.Name = "uid", pod.GenerateName+"x"
				pod.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "m"}}
				// Large enough to be packed.
				pod.Annotations = map[string]string{"long": strings.Repeat("long ", 100000)}
				respond.Object(w, r, http.StatusCreated, &pod)
			}))
			defer server.Close()
			client, err := kubernetes.NewForConfig(&rest.Config{Host: server.URL, UserAgent: "tester", ContentConfig: rest.ContentConfig{ContentType: contentType}})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := client.CoreV1().Pods("lab").Create(t.Context(), &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "web-"}}, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
			// The client may have the answer before the handler has ended, and with it the record.
			server.Close()
			events := sink.all()
			if len(events) != 1 {
				t.Fatalf("%d events", len(events))
			}
			e := events[0]
			var sent, got corev1.Pod
			if json.Unmarshal(e.RequestObject, &sent) != nil || sent.GenerateName != "web-" || sent.Kind != "Pod" {
				t.Errorf("request object %s", e.RequestObject)
			}
			if json.Unmarshal(e.ResponseObject, &got) != nil || got.Name != "web-x" || len(got.ManagedFields) != 1 || got.Kind != "Pod" {
				t.Errorf("response object %.200s", e.ResponseObject)
			}
			if e.Level != LevelRequestResponse || e.Stage != StageResponseComplete || e.Verb != "create" || e.User.Username != "jane" || e.User.UID != "1" || e.ImpersonatedUser.Username != "joe" ||
				e.UserAgent != "tester" || e.SourceIPs[0] != "127.0.0.1" || e.ResponseStatus.Code != http.StatusCreated || e.Annotations[annotation.Decision] != "allow" ||
				e.RequestURI != "/api/v1/namespaces/lab/pods" || e.AuditID == "" {
				t.Errorf("event %+v", e)
			}
			if o := *e.ObjectRef; o != (ObjectReference{Resource: "pods", Namespace: "lab", Name: "web-x", UID: "uid", APIVersion: "v1"}) {
				t.Errorf("object %+v", o)
			}
		})
	}
}

func TestSecretsStaySecret(t *testing.T) {
	a, sink := newAuditor(t, policyText)
	handler := front(t, a, identity.Identity{Name: "jane", Groups: []string{"devs"}}, func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(w, r.Body)
	})
	r := httptest.NewRequest(http.MethodPost, "/api/v1/namespaces/shop/secrets", strings.NewReader(`{"data":{"k":"aHVzaA=="}}`))
	r.Header.Set("Content-Type", "application/json")
	handler.ServeHTTP(httptest.NewRecorder(), r)
	if len(sink.raw) != 1 || strings.Contains(sink.raw[0], "aHVzaA") {
		t.Errorf("events %v", sink.raw)
	}
}

func TestManagedFieldsAreLeftOut(t *testing.T) {
	a, sink := newAuditor(t, policyText)
	handler := front(t, a, identity.Identity{Name: "jane"}, func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) })
	for contentType, body := range map[string]string{
		"application/json":             `{"kind":"List","items":[{"metadata":{"name":"x","managedFields":[{"manager":"m"}]}}],"metadata":{"managedFields":[{}],"name":"l"}}`,
		"application/apply-patch+yaml": "metadata: {name: l, managedFields: [{manager: m}]}\nitems: [{metadata: {name: x}}]",
	} {
		r := httptest.NewRequest(http.MethodPatch, "/api/v1/namespaces/shop/pods/p", strings.NewReader(body))
		r.Header.Set("Content-Type", contentType)
		handler.ServeHTTP(httptest.NewRecorder(), r)
		events := sink.all()
		object := string(events[len(events)-1].RequestObject)
		if strings.Contains(object, "managedFields") || !strings.Contains(object, `"name":"l"`) || !strings.Contains(object, `"name":"x"`) {
			t.Errorf("%s: %s", contentType, object)
		}
	}
	r := httptest.NewRequest(http.MethodPatch, "/api/v1/namespaces/shop/pods/p", strings.NewReader(`not json`))
	handler.ServeHTTP(httptest.NewRecorder(), r)
	events := sink.all()
	if e := events[len(events)-1]; e.RequestObject != nil || e.Annotations[bodyAnnotation] == "" {
		t.Errorf("a bad body: %+v", e)
	}
}

func TestStagesOfWatchesAndPanics(t *testing.T) {
	const everything = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: RequestResponse}]"
	a, sink := newAuditor(t, everything)
	stagesOf := func() (all []Stage) {
		for _, e := range sink.all() {
			all = append(all, e.Stage)
		}
		return all
	}
	watch := front(t, a, identity.Identity{Name: "jane"}, func(w http.ResponseWriter, _ *http.Request) {
		if got := stagesOf(); !slices.Equal(got, []Stage{StageRequestReceived}) {
			t.Errorf("before the answer: %v", got)
		}
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		if got := stagesOf(); !slices.Equal(got, []Stage{StageRequestReceived, StageResponseStarted}) {
			t.Errorf("while it goes on: %v", got)
		}
		_, _ = fmt.Fprintln(w, "{}")
	})
	watch.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/api/v1/pods?watch=1", nil))
	if got := stagesOf(); !slices.Equal(got, []Stage{StageRequestReceived, StageResponseStarted, StageResponseComplete}) {
		t.Errorf("at the end: %v", got)
	}
	if e := sink.all()[2]; e.ResponseObject != nil {
		t.Errorf("a watch's events are recorded: %s", e.ResponseObject)
	}
	sink.events = nil
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic was swallowed")
			}
		}()
		front(t, a, identity.Identity{Name: "jane"}, func(http.ResponseWriter, *http.Request) { panic("x") }).
			ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/api/v1/pods", nil))
	}()
	if e := sink.all(); len(e) != 2 || e[1].Stage != StagePanic || e[1].ResponseStatus.Code != 500 {
		t.Errorf("a panic: %+v", e)
	}
	sink.events = nil
	front(t, a, identity.Identity{Name: "jane"}, func(w http.ResponseWriter, r *http.Request) { respond.Error(w, r, errors.New("x")) }).
		ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, "/api/v1/pods", nil))
	if e := sink.all(); e[1].ResponseStatus.Reason != metav1.StatusReasonInternalError || e[1].ResponseStatus.Message == "" {
		t.Errorf("an error: %+v", e[1].ResponseStatus)
	}
}

func TestLogIsWrittenAndRotated(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "audit")
	l, err := OpenLog(LogConfig{Path: filepath.Join(dir, "audit.log"), MaxSizeMB: 1, MaxBackups: 2})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx) }()
	line := []byte(strings.Repeat("x", 100<<10-1) + "\n")
	// One rotation: old files are named by the millisecond, and no real log is full twice in one.
	for range 15 {
		l.Add(t.Context(), line)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var size int64
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s may be read by others: %v", f.Name(), info.Mode())
		}
		size += info.Size()
	}
	if len(files) != 2 || size != int64(15*len(line)) {
		t.Errorf("%d files with %d bytes, want 2 with %d", len(files), size, 15*len(line))
	}
	// Nobody writes anymore: nothing waits.
	l.Add(t.Context(), line)
	if _, err := OpenLog(LogConfig{Path: filepath.Join(dir, "audit.log", "below")}); err == nil {
		t.Error("a path below a file was opened")
	}
}

// stuck is a disk that does not write.
type stuck struct{ release chan struct{} }

func (s stuck) Write(p []byte) (int, error) {
	<-s.release
	return len(p), nil
}

func TestASlowDiskHoldsRequestsForABoundedTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, err := OpenLog(LogConfig{Path: "-", BufferBytes: 10, Patience: time.Second})
		if err != nil {
			t.Fatal(err)
		}
		disk := stuck{make(chan struct{})}
		l.out = disk
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- l.Run(ctx) }()
		for range 10 {
			l.Add(ctx, []byte("x"))
		}
		synctest.Wait()
		began := time.Now()
		l.Add(ctx, []byte("y"))
		if waited := time.Since(began); waited != time.Second || l.missed != 1 {
			t.Errorf("waited %s, %d lost", waited, l.missed)
		}
		// One that waits gets the room that is made.
		done := make(chan struct{})
		go func() {
			l.Add(ctx, []byte("z"))
			close(done)
		}()
		synctest.Wait()
		disk.release <- struct{}{}
		<-done
		if l.missed != 1 {
			t.Errorf("%d lost", l.missed)
		}
		close(disk.release)
		cancel()
		if err := <-ended; err != nil || l.bytes != 0 {
			t.Errorf("%v, %d bytes left", err, l.bytes)
		}
	})
}

func BenchmarkMetadata(b *testing.B) {
	a, err := New(Config{Policy: parse(b, policyText), Sink: discard{}, Scheme: scheme.Scheme})
	if err != nil {
		b.Fatal(err)
	}
	handler := front(b, a, identity.Identity{Name: "jane"}, func(http.ResponseWriter, *http.Request) {})
	r := httptest.NewRequest(http.MethodGet, "/apis/apps/v1/namespaces/x/deployments", nil)
	b.ReportAllocs()
	for b.Loop() {
		handler.ServeHTTP(httptest.NewRecorder(), r)
	}
}

type discard struct{}

func (discard) Add(context.Context, []byte) {}
