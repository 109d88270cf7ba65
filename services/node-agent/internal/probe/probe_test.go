package probe_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/podtest"
	"dhow.dev/services/node-agent/internal/probe"
)

// script answers execs by a list of exit codes, then by its last.
type script struct {
	codes []int32
	calls []time.Duration
	began time.Time
	err   error
}

func (s *script) ExecSync(context.Context, string, []string, time.Duration) (cri.ExecResult, error) {
	s.calls = append(s.calls, time.Since(s.began))
	if s.err != nil {
		return cri.ExecResult{}, s.err
	}
	code := s.codes[0]
	if len(s.codes) > 1 {
		s.codes = s.codes[1:]
	}
	return cri.ExecResult{ExitCode: code, Stderr: []byte("out")}, nil
}

func spec(t *testing.T, text string) *corev1.Probe {
	t.Helper()
	return podtest.Pod(t, "{metadata: {name: p}, spec: {containers: [{name: c, livenessProbe: "+text+"}]}}").GetSpec().GetContainers()[0].GetLivenessProbe()
}

func TestThresholdsAndTiming(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{began: time.Now(), codes: []int32{0, 1, 1, 0, 1, 1, 1, 0, 0}}
		p := spec(t, `{exec: {command: [x]}, initialDelaySeconds: 5, periodSeconds: 2, failureThreshold: 3, successThreshold: 2}`)
		ctx, cancel := context.WithCancel(t.Context())
		type change struct {
			ok bool
			at time.Duration
		}
		var changes []change
		failed := 0
		go probe.Run(ctx, s, probe.Readiness, p, probe.Target{StartedAt: s.began}, probe.Report{
			Failed:  func(string) { failed++ },
			Changed: func(ok bool, _ string) { changes = append(changes, change{ok, time.Since(s.began)}) },
		})
		time.Sleep(30 * time.Second)
		cancel()
		synctest.Wait()
		want := []change{{false, 17 * time.Second}, {true, 21 * time.Second}}
		if !slices.Equal(changes, want) {
			t.Errorf("changes %v, want %v", changes, want)
		}
		if failed != 5 {
			t.Errorf("%d failures", failed)
		}
		if s.calls[0] != 5*time.Second || s.calls[1] != 7*time.Second {
			t.Errorf("called at %v", s.calls)
		}
	})
}

func TestStartupEndsWithItsVerdict(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &script{began: time.Now(), codes: []int32{1, 1, 0, 1}}
		verdicts := []bool{}
		probe.Run(t.Context(), s, probe.Startup, spec(t, `{exec: {command: [x]}}`), probe.Target{}, probe.Report{
			Failed: func(string) {}, Changed: func(ok bool, _ string) { verdicts = append(verdicts, ok) },
		})
		if !slices.Equal(verdicts, []bool{true}) || len(s.calls) != 3 {
			t.Errorf("verdicts %v after %d calls", verdicts, len(s.calls))
		}
	})
}

func TestExecTimeoutFails(t *testing.T) {
	r := probe.Once(t.Context(), &script{err: context.DeadlineExceeded}, spec(t, `{exec: {command: [x]}}`).GetHandler(), probe.Target{}, time.Second)
	if r.OK {
		t.Error("a command that timed out counts as success")
	}
	if r := probe.Once(t.Context(), &script{err: errors.New("no container")}, spec(t, `{exec: {command: [x]}}`).GetHandler(), probe.Target{}, time.Second); r.OK {
		t.Error("a command that could not run counts as success")
	}
}

func TestHTTP(t *testing.T) {
	var seen *http.Request
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r
		switch r.URL.Path {
		case "/ok":
		case "/moved":
			http.Redirect(w, r, "/ok", http.StatusFound)
		case "/away":
			http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusFound)
		default:
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	u, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	pod := podtest.Pod(t, "{metadata: {name: p}, spec: {containers: [{name: c, ports: [{name: web, containerPort: "+u.Port()+"}]}]}}")
	target := probe.Target{IP: u.Hostname(), Container: pod.GetSpec().GetContainers()[0]}
	for text, want := range map[string]bool{
		`{httpGet: {path: "/ok?a=b", port: web, httpHeaders: [{name: X-A, value: b}, {name: Host, value: h.example}]}}`: true,
		`{httpGet: {path: /moved, port: web}}`:            true,
		`{httpGet: {path: /away, port: web}}`:             true,
		`{httpGet: {path: /no, port: web}}`:               false,
		`{httpGet: {path: /ok, port: nope}}`:              false,
		`{tcpSocket: {port: ` + strconv.Itoa(port) + `}}`: true,
	} {
		if r := probe.Once(t.Context(), nil, spec(t, text).GetHandler(), target, 5*time.Second); r.OK != want {
			t.Errorf("%s: %+v", text, r)
		}
		if want && seen != nil && seen.Header.Get("X-A") == "b" && (seen.Host != "h.example" || seen.URL.RawQuery != "a=b") {
			t.Errorf("request %v %v", seen.Host, seen.URL)
		}
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed := listener.Addr().(*net.TCPAddr).Port
	_ = listener.Close()
	if r := probe.Once(t.Context(), nil, spec(t, `{tcpSocket: {port: `+strconv.Itoa(closed)+`}}`).GetHandler(), target, 5*time.Second); r.OK {
		t.Error("a closed port answers")
	}
}
