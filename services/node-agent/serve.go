package nodeagent

import (
	"context"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/services/node-agent/internal/cri"
	"dhow.dev/services/node-agent/internal/exec"
	"dhow.dev/services/node-agent/internal/forward"
	"dhow.dev/services/node-agent/internal/image"
	"dhow.dev/services/node-agent/internal/logs"
	"dhow.dev/services/node-agent/internal/pod"
	"dhow.dev/services/node-agent/internal/session"
	podstatus "dhow.dev/services/node-agent/internal/status"
)

// defaultContainer is the annotation by which a pod names the container that logs and exec mean when none is named.
const defaultContainer = "kubectl.kubernetes.io/default-container"

// server answers requests for logs, execs, attachments and connections to ports.
type server struct {
	pods    *pod.Manager
	runtime cri.Runtime
	// hostIP is the address of pods in the node's network.
	hostIP string
}

func (s *server) serve(ctx context.Context, request *nodev1.OpenTunnel, tunnel *session.Tunnel) error {
	switch {
	case request.HasLog():
		return s.log(ctx, request.GetLog(), request.GetPodUid(), tunnel)
	case request.HasExec():
		return s.exec(ctx, request.GetExec(), request.GetPodUid(), tunnel)
	case request.HasAttach():
		return s.attach(ctx, request.GetAttach(), request.GetPodUid(), tunnel)
	case request.HasPortForward():
		return s.portForward(ctx, request.GetPortForward(), request.GetPodUid(), tunnel)
	}
	return status.Error(codes.Unimplemented, "the node knows no such request")
}

// find returns a pod, its runtime state and the container that is meant.
func (s *server) find(namespace, name, uid, container string) (*corev1.Pod, cri.PodState, string, error) {
	p, state, ok := s.pods.Pod(namespace, name)
	if !ok || uid != "" && p.GetMetadata().GetUid() != uid {
		return nil, cri.PodState{}, "", status.Errorf(codes.NotFound, "pod %q is not on this node", namespace+"/"+name)
	}
	var names []string
	for _, c := range p.GetSpec().GetContainers() {
		names = append(names, c.GetName())
	}
	all := slices.Clone(names)
	for _, c := range p.GetSpec().GetInitContainers() {
		all = append(all, c.GetName())
	}
	for _, c := range p.GetSpec().GetEphemeralContainers() {
		all = append(all, c.GetEphemeralContainerCommon().GetName())
	}
	if container == "" {
		container = p.GetMetadata().GetAnnotations()[defaultContainer]
	}
	if container == "" && len(names) == 1 {
		container = names[0]
	}
	if container == "" {
		return nil, cri.PodState{}, "", status.Errorf(codes.InvalidArgument, "a container name must be specified for pod %s, choose one of: [%s]", name, strings.Join(all, " "))
	}
	if !slices.Contains(all, container) {
		return nil, cri.PodState{}, "", status.Errorf(codes.InvalidArgument, "container %s is not valid for pod %s", container, name)
	}
	return p, state, container, nil
}

func (s *server) log(ctx context.Context, request *corev1.PodLogRequest, uid string, tunnel *session.Tunnel) error {
	p, state, container, err := s.find(request.GetNamespace(), request.GetName(), uid, request.GetContainer())
	if err != nil {
		return err
	}
	run := loggedRun(p, &state, container, request.GetPrevious())
	switch {
	case run == nil && request.GetPrevious():
		return status.Errorf(codes.InvalidArgument, "previous terminated container %q in pod %q not found", container, request.GetName())
	case run == nil:
		return status.Errorf(codes.InvalidArgument, "container %q in pod %q is waiting to start: %s", container, request.GetName(), waitingFor(p, container))
	}
	o := logs.Options{Lines: -1, Bytes: -1, Timestamps: request.GetTimestamps(), Follow: request.GetFollow()}
	switch request.GetStream() {
	case "Stdout":
		o.Stream = "stdout"
	case "Stderr":
		o.Stream = "stderr"
	}
	if request.HasTailLines() {
		o.Lines = request.GetTailLines()
	}
	if request.HasLimitBytes() {
		o.Bytes = request.GetLimitBytes()
	}
	switch {
	case request.HasSinceSeconds():
		o.Since = time.Now().Add(-time.Duration(min(request.GetSinceSeconds(), math.MaxInt64/int64(time.Second))) * time.Second)
	case request.HasSinceTime():
		o.Since = time.Unix(request.GetSinceTime().GetSeconds(), int64(request.GetSinceTime().GetNanos()))
	}
	if o.Follow {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		o.Ended = s.pods.Ended(ctx, p.GetMetadata().GetUid(), run.ID)
	}
	if err := logs.Read(ctx, run.LogPath, o, tunnel.Log()); err != nil {
		return fmt.Errorf("container %q in pod %q: %w", container, request.GetName(), err)
	}
	return nil
}

// waitingFor says why a container has not started yet, in Kubernetes' words.
func waitingFor(p *corev1.Pod, container string) string {
	for _, c := range slices.Concat(p.GetStatus().GetContainerStatuses(), p.GetStatus().GetInitContainerStatuses(), p.GetStatus().GetEphemeralContainerStatuses()) {
		if c.GetName() != container {
			continue
		}
		switch reason := c.GetState().GetWaiting().GetReason(); reason {
		case "":
		case image.ReasonErrImagePull, image.ReasonImagePullBackOff:
			return "trying and failing to pull image"
		default:
			return reason
		}
	}
	return podstatus.ReasonContainerCreating
}

// loggedRun returns the run of a container whose log is meant, as in Kubernetes; nil: there is none. The previous run is the last that ended for another to follow it, whosever rule has it
// followed: of a container that waits for its next run that is the newest.
func loggedRun(p *corev1.Pod, state *cri.PodState, container string, previous bool) *cri.Container {
	run, before := state.Newest(container), state.Previous(container)
	if before != nil && before.State != cri.StateExited {
		before = nil
	}
	switch {
	case run == nil:
		return nil
	case run.State == cri.StateCreated, previous && !(run.State == cri.StateExited && followed(p, state, run)):
		return before
	}
	return run
}

// followed says whether a run that has ended is followed by another.
func followed(p *corev1.Pod, state *cri.PodState, run *cri.Container) bool {
	if p.GetMetadata().HasDeletionTimestamp() || podstatus.IsTerminal(p.GetStatus().GetPhase()) || podstatus.Finished(p, state) {
		return false
	}
	for _, c := range p.GetSpec().GetInitContainers() {
		if c.GetName() == run.Name && !podstatus.IsSidecar(c) && run.ExitCode == 0 {
			return false // it has done its part
		}
	}
	for _, c := range slices.Concat(p.GetSpec().GetInitContainers(), p.GetSpec().GetContainers()) {
		if c.GetName() == run.Name {
			return podstatus.Restarts(p, c, run.ExitCode)
		}
	}
	return false // an ephemeral container runs once
}

func (s *server) exec(ctx context.Context, request *corev1.PodExecRequest_Start, uid string, tunnel *session.Tunnel) error {
	_, state, container, err := s.find(request.GetNamespace(), request.GetName(), uid, request.GetContainer())
	if err != nil {
		return err
	}
	run := state.Newest(container)
	if run == nil || run.State != cri.StateRunning {
		return status.Errorf(codes.FailedPrecondition, "container %q in pod %q is not running", container, request.GetName())
	}
	if len(request.GetCommand()) == 0 {
		return status.Error(codes.InvalidArgument, "you must specify at least one command for the container")
	}
	code := int32(0)
	err = s.stream(ctx, tunnel, wanted{request.GetStdin(), request.GetStdout(), request.GetStderr(), request.GetTty()}, func(ctx context.Context, streams exec.Streams) error {
		code, err = exec.Run(ctx, s.runtime, run.ID, request.GetCommand(), streams)
		return err
	})
	if err != nil {
		return fmt.Errorf("container %q in pod %q: %w", container, request.GetName(), err)
	}
	return tunnel.Exit(code)
}

func (s *server) attach(ctx context.Context, request *corev1.PodAttachRequest_Start, uid string, tunnel *session.Tunnel) error {
	p, state, container, err := s.find(request.GetNamespace(), request.GetName(), uid, request.GetContainer())
	if err != nil {
		return err
	}
	run := state.Newest(container)
	if run == nil || run.State != cri.StateRunning {
		return status.Errorf(codes.FailedPrecondition, "container %q in pod %q is not running", container, request.GetName())
	}
	made := pod.SpecOf(p, container)
	switch {
	case request.GetTty() && !made.GetTty():
		return status.Errorf(codes.InvalidArgument, "container %q in pod %q has no terminal: attach without tty", container, request.GetName())
	case request.GetStdin() && !made.GetStdin():
		return status.Errorf(codes.InvalidArgument, "container %q in pod %q takes no standard input: attach without stdin", container, request.GetName())
	}
	// A terminal is what the container was made with, whatever the caller believes.
	err = s.stream(ctx, tunnel, wanted{request.GetStdin(), request.GetStdout(), request.GetStderr(), made.GetTty()}, func(ctx context.Context, streams exec.Streams) error {
		return exec.Attach(ctx, s.runtime, run.ID, streams)
	})
	if err != nil {
		return fmt.Errorf("container %q in pod %q: %w", container, request.GetName(), err)
	}
	return nil
}

// wanted says which streams a caller wants.
type wanted struct{ stdin, stdout, stderr, tty bool }

// stream connects a tunnel to the streams that run uses.
func (s *server) stream(ctx context.Context, tunnel *session.Tunnel, w wanted, run func(context.Context, exec.Streams) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	streams := exec.Streams{TTY: w.tty}
	if w.stdout {
		streams.Stdout = tunnel.Stdout()
	}
	if w.stderr {
		streams.Stderr = tunnel.Stderr()
	}
	sizes := make(chan exec.Size)
	streams.Sizes = sizes
	input, feed := io.Pipe()
	if w.stdin {
		streams.Stdin = input
	}
	// Input and sizes arrive on one stream. A command that reads no input must not hold up what comes after it, but may hold up the caller.
	go func() {
		defer close(sizes)
		defer func() { _ = feed.Close() }()
		for {
			r, err := tunnel.Receive()
			if err != nil {
				return
			}
			switch {
			case r.HasStdin() && streams.Stdin != nil:
				if _, err := feed.Write(r.GetStdin()); err != nil {
					continue // the command has closed its input; sizes may still come
				}
			case r.HasCloseStdin():
				_ = feed.Close()
			case r.HasResize():
				select {
				case sizes <- exec.Size{Width: uint16(r.GetResize().GetWidth()), Height: uint16(r.GetResize().GetHeight())}:
				case <-ctx.Done():
				}
			}
		}
	}()
	err := run(ctx, streams)
	_ = input.Close() // unblocks the feeder
	return err
}

func (s *server) portForward(ctx context.Context, request *corev1.PodPortForwardRequest_Start, uid string, tunnel *session.Tunnel) error {
	p, state, ok := s.pods.Pod(request.GetNamespace(), request.GetName())
	if !ok || uid != "" && p.GetMetadata().GetUid() != uid {
		return status.Errorf(codes.NotFound, "pod %q is not on this node", request.GetNamespace()+"/"+request.GetName())
	}
	sandbox := state.CurrentSandbox()
	if sandbox == nil || !sandbox.Ready {
		return status.Errorf(codes.FailedPrecondition, "pod %q is not running", request.GetName())
	}
	var conn forward.Conn
	var err error
	switch {
	case request.GetByAddress() && p.GetSpec().GetHostNetwork():
		conn, err = forward.Address(ctx, s.hostIP, request.GetPort())
	case request.GetByAddress() && len(sandbox.IPs) > 0:
		conn, err = forward.Address(ctx, sandbox.IPs[0], request.GetPort())
	default:
		conn, err = forward.Sandbox(ctx, s.runtime, sandbox.ID, request.GetPort())
	}
	if err != nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	defer conn.Close()
	// The caller's end ends the connection even while the port says nothing.
	defer context.AfterFunc(ctx, func() { _ = conn.Close() })()
	out := tunnel.Data()
	if _, err := out.Write(nil); err != nil {
		return err
	}
	go func() {
		for {
			data, err := tunnel.ReceiveData()
			if err == nil {
				_, err = conn.Write(data)
			}
			if err != nil {
				_ = conn.CloseWrite()
				return
			}
		}
	}()
	if _, err := io.Copy(out, conn); err != nil && ctx.Err() == nil {
		return status.Error(codes.Unavailable, err.Error())
	}
	return nil
}
