package streaming

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"

	"google.golang.org/grpc/status"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/remotecommand"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/services/apiserver/internal/grpcapi"
	"dhow.dev/services/apiserver/internal/request"
)

// options are those of exec and attach.
type options struct {
	stdin, stdout, stderr, tty bool
}

func optionsOf(info *request.Info) (options, error) {
	o := options{stdin: flag(info, "stdin"), stdout: flag(info, "stdout"), stderr: flag(info, "stderr"), tty: flag(info, "tty")}
	if o.tty {
		o.stderr = false // a terminal has one output
	}
	if !o.stdin && !o.stdout && !o.stderr {
		return o, apierrors.NewBadRequest("you must specify at least 1 of stdin, stdout, stderr")
	}
	return o, nil
}

// exec serves pods/exec.
func (s *Streams) exec(w http.ResponseWriter, r *http.Request, info *request.Info) error {
	command := info.Query["command"]
	if len(command) == 0 {
		return apierrors.NewBadRequest("you must specify at least one command for the container")
	}
	return s.command(w, r, info, func(ctx context.Context, to grpcapi.Pod, name string, o options, c *channels) error {
		start := corev1.PodExecRequest_Start_builder{
			Namespace: to.Namespace, Name: to.Name, Container: name, Command: command, Stdin: o.stdin, Stdout: o.stdout, Stderr: o.stderr, Tty: o.tty,
		}.Build()
		code := int32(0)
		err := s.config.Tunnels.Exec(ctx, to, start, c.receive, func(piece *corev1.PodExecResponse) error {
			if piece.HasExitCode() {
				code = piece.GetExitCode()
			}
			return c.output(piece.GetStdout(), piece.GetStderr())
		})
		if err == nil && code != 0 {
			return exitError(code)
		}
		return err
	})
}

// attach serves pods/attach.
func (s *Streams) attach(w http.ResponseWriter, r *http.Request, info *request.Info) error {
	return s.command(w, r, info, func(ctx context.Context, to grpcapi.Pod, name string, o options, c *channels) error {
		start := corev1.PodAttachRequest_Start_builder{
			Namespace: to.Namespace, Name: to.Name, Container: name, Stdin: o.stdin, Stdout: o.stdout, Stderr: o.stderr, Tty: o.tty,
		}.Build()
		receive := func() (*corev1.PodAttachRequest, error) {
			from, err := c.receive()
			if err != nil {
				return nil, err
			}
			input := &corev1.PodAttachRequest{}
			switch {
			case from.HasStdin():
				input.SetStdin(from.GetStdin())
			case from.HasCloseStdin():
				input.SetCloseStdin(true)
			case from.HasResize():
				input.SetResize(from.GetResize())
			}
			return input, nil
		}
		return s.config.Tunnels.AttachTo(ctx, to, start, receive, func(piece *corev1.PodAttachResponse) error {
			return c.output(piece.GetStdout(), piece.GetStderr())
		})
	})
}

// command upgrades the connection and lets run use its streams.
func (s *Streams) command(w http.ResponseWriter, r *http.Request, info *request.Info,
	run func(ctx context.Context, to grpcapi.Pod, container string, o options, c *channels) error,
) error {
	if err := s.mayCreate(r, info); err != nil {
		return err
	}
	o, err := optionsOf(info)
	if err != nil {
		return err
	}
	pod, err := s.pod(r.Context(), info.Namespace, info.Name)
	if err != nil {
		return err
	}
	if phase := pod.GetStatus().GetPhase(); phase == "Succeeded" || phase == "Failed" {
		return apierrors.NewBadRequest(fmt.Sprintf("cannot exec into or attach to a container in a completed pod; current phase is %s", phase))
	}
	name, err := container(pod, info.Query.Get("container"))
	if err != nil {
		return err
	}
	to := place(pod)
	if to.Node == "" {
		return noHost(pod)
	}
	w, r, cancel, err := upgradable(w, r)
	if err != nil {
		return err
	}
	defer cancel()
	c, err := open(w, r, o, cancel)
	if err != nil {
		return err
	}
	if c == nil {
		return nil // the client was told
	}
	defer c.close()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	c.listen(ctx)
	c.finish(run(ctx, to, name, o, c))
	return nil
}

// exitError is how a command's exit code is told.
func exitError(code int32) error {
	return &apierrors.StatusError{ErrStatus: kmetav1.Status{
		Status: kmetav1.StatusFailure, Reason: remotecommand.NonZeroExitCodeReason,
		Message: fmt.Sprintf("command terminated with non-zero exit code: exit status %d", code),
		Details: &kmetav1.StatusDetails{Causes: []kmetav1.StatusCause{{Type: remotecommand.ExitCodeCauseType, Message: fmt.Sprint(code)}}},
	}}
}

// pieceSize bounds one message of input.
const pieceSize = 32 << 10

// channels are the streams of one upgraded connection; those that were not asked for are nil.
type channels struct {
	stdin, resize  io.Reader
	stdout, stderr io.Writer
	// outcome takes how it ended. Verbose protocols (from v4 on) get a Status in JSON, older ones the text of an error.
	outcome io.Writer
	verbose bool
	close   func()

	ctx   context.Context
	input chan *corev1.PodExecRequest
}

// listen reads what the client sends until ctx ends.
func (c *channels) listen(ctx context.Context) {
	c.ctx, c.input = ctx, make(chan *corev1.PodExecRequest)
	give := func(input *corev1.PodExecRequest) bool {
		select {
		case c.input <- input:
			return true
		case <-ctx.Done():
			return false
		}
	}
	if c.stdin != nil {
		go func() {
			for {
				piece := make([]byte, pieceSize)
				n, err := c.stdin.Read(piece)
				if n > 0 && !give(corev1.PodExecRequest_builder{Stdin: piece[:n]}.Build()) {
					return
				}
				if err != nil {
					end := true
					give(corev1.PodExecRequest_builder{CloseStdin: &end}.Build())
					return
				}
			}
		}()
	}
	if c.resize != nil {
		go func() {
			sizes := json.NewDecoder(c.resize)
			for {
				var size struct{ Width, Height uint16 }
				if sizes.Decode(&size) != nil {
					return
				}
				if size.Width == 0 || size.Height == 0 {
					continue
				}
				resize := corev1.PodExecRequest_Resize_builder{Width: uint32(size.Width), Height: uint32(size.Height)}.Build()
				if !give(corev1.PodExecRequest_builder{Resize: resize}.Build()) {
					return
				}
			}
		}()
	}
}

// receive returns the next of what the client sends.
func (c *channels) receive() (*corev1.PodExecRequest, error) {
	select {
	case input := <-c.input:
		return input, nil
	case <-c.ctx.Done():
		return nil, io.EOF
	}
}

// output passes on what the container says.
func (c *channels) output(stdout, stderr []byte) error {
	if len(stdout) > 0 && c.stdout != nil {
		if _, err := c.stdout.Write(stdout); err != nil {
			return err
		}
	}
	if len(stderr) > 0 && c.stderr != nil {
		if _, err := c.stderr.Write(stderr); err != nil {
			return err
		}
	}
	return nil
}

// finish tells how it ended.
func (c *channels) finish(err error) {
	if c.outcome == nil {
		return
	}
	if !c.verbose {
		if err != nil {
			fmt.Fprint(c.outcome, message(err))
		}
		return
	}
	answer := kmetav1.Status{Status: kmetav1.StatusSuccess}
	var api apierrors.APIStatus
	switch {
	case err == nil:
	case errors.As(apistatus.FromGRPC(err), &api):
		answer = api.Status()
	default:
		answer = apierrors.NewInternalError(errors.New(message(err))).ErrStatus
	}
	data, err := json.Marshal(answer)
	if err == nil {
		_, _ = c.outcome.Write(data) // a client that is gone needs no answer
	}
}

// message is an error for people.
func message(err error) string {
	if st, ok := status.FromError(err); ok {
		return st.Message()
	}
	return err.Error()
}
