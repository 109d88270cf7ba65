// Package probe asks containers how they are: startup, liveness and readiness probes by exec, HTTP, TCP and gRPC, with Kubernetes' thresholds.
package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/node-agent/internal/cri"
)

// Kind is what a probe decides.
type Kind string

// Kinds.
const (
	Startup   Kind = "Startup"
	Liveness  Kind = "Liveness"
	Readiness Kind = "Readiness"
)

// maxOutput bounds what is kept of a probe's answer.
const maxOutput = 10 << 10

// UserAgent is what HTTP probes say they are; programs look for its first word.
const UserAgent = "kube-probe/1.36"

// Executor runs commands in containers.
type Executor interface {
	ExecSync(ctx context.Context, id string, command []string, timeout time.Duration) (cri.ExecResult, error)
}

// Target is the container that a probe asks.
type Target struct {
	Container   *corev1.Container
	ContainerID string
	// IP is the pod's address.
	IP        string
	StartedAt time.Time
}

// Result is the outcome of one try.
type Result struct {
	OK bool
	// Output says why a try failed.
	Output string
}

// Once does one try of a handler, bounded by timeout.
func Once(ctx context.Context, exec Executor, handler *corev1.ProbeHandler, target Target, timeout time.Duration) Result {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case handler.HasExec():
		return Exec(ctx, exec, target.ContainerID, handler.GetExec().GetCommand(), timeout)
	case handler.HasHttpGet():
		return HTTP(ctx, handler.GetHttpGet(), target)
	case handler.HasTcpSocket():
		host := target.IP
		if h := handler.GetTcpSocket().GetHost(); h != "" {
			host = h
		}
		port, err := Port(handler.GetTcpSocket().GetPort(), target.Container)
		if err != nil {
			return Result{Output: err.Error()}
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			return Result{Output: err.Error()}
		}
		_ = conn.Close() // that it opened is all we wanted to know
		return Result{OK: true}
	case handler.HasGrpc():
		return health(ctx, target.IP, handler.GetGrpc())
	}
	return Result{Output: "the probe has no handler that the node supports"}
}

// Exec runs a command; exit code 0 is success.
func Exec(ctx context.Context, exec Executor, containerID string, command []string, timeout time.Duration) Result {
	r, err := exec.ExecSync(ctx, containerID, command, timeout)
	output := string(truncate(append(bytes.Clone(r.Stdout), r.Stderr...)))
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return Result{Output: fmt.Sprintf("command %q timed out after %v", strings.Join(command, " "), timeout)}
	case err != nil:
		return Result{Output: err.Error()}
	case r.ExitCode != 0:
		if output == "" {
			output = fmt.Sprintf("command %q exited with code %d", strings.Join(command, " "), r.ExitCode)
		}
		return Result{Output: output}
	}
	return Result{OK: true, Output: output}
}

// HTTP does a GET. Status 200 to 399 is success; a redirect to another host counts as success and is not followed.
func HTTP(ctx context.Context, get *corev1.HTTPGetAction, target Target) Result {
	port, err := Port(get.GetPort(), target.Container)
	if err != nil {
		return Result{Output: err.Error()}
	}
	host := target.IP
	if get.GetHost() != "" {
		host = get.GetHost()
	}
	scheme := "http"
	if get.GetScheme() != "" {
		scheme = strings.ToLower(get.GetScheme())
	}
	location, err := url.Parse(get.GetPath())
	if err != nil {
		location = &url.URL{Path: get.GetPath()}
	}
	location.Scheme, location.Host = scheme, net.JoinHostPort(host, strconv.Itoa(port))
	if !strings.HasPrefix(location.Path, "/") {
		location.Path = "/" + location.Path
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, location.String(), nil)
	if err != nil {
		return Result{Output: err.Error()}
	}
	request.Header.Set("User-Agent", UserAgent)
	request.Header.Set("Accept", "*/*")
	for _, h := range get.GetHttpHeaders() {
		if strings.EqualFold(h.GetName(), "Host") {
			request.Host = h.GetValue()
			continue
		}
		if request.Header.Get(h.GetName()) != "" && (strings.EqualFold(h.GetName(), "User-Agent") || strings.EqualFold(h.GetName(), "Accept")) {
			request.Header.Set(h.GetName(), h.GetValue())
			continue
		}
		request.Header.Add(h.GetName(), h.GetValue())
	}
	client := &http.Client{
		Transport: &http.Transport{
			DisableKeepAlives: true, DisableCompression: true,
			// Kubernetes specifies that HTTPS probes skip the check of certificates: they ask for life, not for identity.
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // specified
		},
		CheckRedirect: func(next *http.Request, via []*http.Request) error {
			if next.URL.Hostname() != location.Hostname() || len(via) >= 10 {
				return http.ErrUseLastResponse
			}
			return nil
		},
	}
	response, err := client.Do(request)
	if err != nil {
		return Result{Output: err.Error()}
	}
	defer func() { _ = response.Body.Close() }()
	body, err := io.ReadAll(io.LimitReader(response.Body, maxOutput))
	if err != nil {
		return Result{Output: err.Error()}
	}
	if response.StatusCode >= 200 && response.StatusCode < 400 {
		return Result{OK: true, Output: string(body)}
	}
	return Result{Output: fmt.Sprintf("HTTP probe failed with statuscode: %d", response.StatusCode)}
}

// health asks a gRPC server for its health.
func health(ctx context.Context, ip string, g *corev1.GRPCAction) Result {
	address := net.JoinHostPort(ip, strconv.Itoa(int(g.GetPort())))
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUserAgent(UserAgent))
	if err != nil {
		return Result{Output: err.Error()}
	}
	defer func() { _ = conn.Close() }()
	answer, err := healthv1.NewHealthClient(conn).Check(ctx, &healthv1.HealthCheckRequest{Service: g.GetService()})
	if err != nil {
		return Result{Output: fmt.Sprintf("gRPC health check of %s: %v", address, err)}
	}
	if answer.GetStatus() != healthv1.HealthCheckResponse_SERVING {
		return Result{Output: fmt.Sprintf("gRPC health check of %s: status %s", address, answer.GetStatus())}
	}
	return Result{OK: true}
}

// Port resolves a port by number or by its name in the container.
func Port(p *metav1.IntOrString, c *corev1.Container) (int, error) {
	if p.GetType() == 0 {
		if n := int(p.GetIntVal()); n > 0 && n < 65536 {
			return n, nil
		}
		return 0, fmt.Errorf("port %d is not between 1 and 65535", p.GetIntVal())
	}
	for _, port := range c.GetPorts() {
		if port.GetName() == p.GetStrVal() {
			return int(port.GetContainerPort()), nil
		}
	}
	if n, err := strconv.Atoi(p.GetStrVal()); err == nil && n > 0 && n < 65536 {
		return n, nil
	}
	return 0, fmt.Errorf("container %q has no port named %q", c.GetName(), p.GetStrVal())
}

func truncate(b []byte) []byte {
	if len(b) > maxOutput {
		return b[:maxOutput]
	}
	return b
}

// Report is told of a probe's tries.
type Report struct {
	// Failed is called for each failed try.
	Failed func(output string)
	// Changed is called when enough tries in a row said something else than before; for the first verdict too.
	Changed func(ok bool, output string)
}

// Run probes until ctx ends; a startup probe ends with its first verdict.
func Run(ctx context.Context, exec Executor, kind Kind, p *corev1.Probe, target Target, report Report) {
	period := seconds(p.GetPeriodSeconds(), 10)
	timeout := seconds(p.GetTimeoutSeconds(), 1)
	successes, failuresNeeded := int(max(p.GetSuccessThreshold(), 1)), int(p.GetFailureThreshold())
	if failuresNeeded < 1 {
		failuresNeeded = 3
	}
	if !wait(ctx, time.Until(target.StartedAt.Add(time.Duration(p.GetInitialDelaySeconds())*time.Second))) {
		return
	}
	var verdict, decided, last bool
	run := 0
	for {
		began := time.Now()
		r := Once(ctx, exec, p.GetHandler(), target, timeout)
		if ctx.Err() != nil {
			return
		}
		if !r.OK {
			report.Failed(r.Output)
		}
		if r.OK == last {
			run++
		} else {
			last, run = r.OK, 1
		}
		need := failuresNeeded
		if r.OK {
			need = successes
		}
		if run >= need && (!decided || verdict != r.OK) {
			verdict, decided = r.OK, true
			report.Changed(r.OK, r.Output)
			if kind == Startup {
				return
			}
		}
		if !wait(ctx, period-time.Since(began)) {
			return
		}
	}
}

func seconds(n int32, byDefault int) time.Duration {
	if n < 1 {
		return time.Duration(byDefault) * time.Second
	}
	return time.Duration(n) * time.Second
}

// wait waits for d and says whether ctx goes on.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
