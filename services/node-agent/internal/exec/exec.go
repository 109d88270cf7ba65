// Package exec runs commands in containers with their standard streams attached, and attaches to containers' own processes, through the streaming server of the container runtime.
package exec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	exitcode "k8s.io/client-go/util/exec"
	runtimev1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"dhow.dev/services/node-agent/internal/cri"
)

// Size is a terminal's size in characters.
type Size struct {
	Width, Height uint16
}

// Streams are a command's. Nil ones are not attached.
type Streams struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	TTY            bool
	// Sizes are those of the terminal; the channel is closed when there are no more.
	Sizes <-chan Size
}

// sizes makes a queue of a channel.
type sizes struct {
	ctx context.Context
	c   <-chan Size
}

func (s sizes) Next() *remotecommand.TerminalSize {
	select {
	case size, ok := <-s.c:
		if !ok {
			return nil
		}
		return &remotecommand.TerminalSize{Width: size.Width, Height: size.Height}
	case <-s.ctx.Done():
		return nil
	}
}

// Run runs a command to its end and returns its exit code.
func Run(ctx context.Context, runtime cri.Runtime, containerID string, command []string, s Streams) (int32, error) {
	// A terminal has one output.
	if s.TTY {
		s.Stderr = nil
	}
	location, err := runtime.ExecURL(ctx, &runtimev1.ExecRequest{
		ContainerId: containerID, Cmd: command, Tty: s.TTY, Stdin: s.Stdin != nil, Stdout: s.Stdout != nil, Stderr: s.Stderr != nil,
	})
	if err != nil {
		return 0, err
	}
	err = stream(ctx, location, s)
	var exit exitcode.CodeExitError
	switch {
	case err == nil:
		return 0, nil
	case errors.As(err, &exit):
		return int32(exit.Code), nil
	}
	return 0, fmt.Errorf("exec: %w", err)
}

// Attach connects to a container's own process until it ends, or ctx does.
func Attach(ctx context.Context, runtime cri.Runtime, containerID string, s Streams) error {
	if s.TTY {
		s.Stderr = nil
	}
	location, err := runtime.AttachURL(ctx, &runtimev1.AttachRequest{
		ContainerId: containerID, Tty: s.TTY, Stdin: s.Stdin != nil, Stdout: s.Stdout != nil, Stderr: s.Stderr != nil,
	})
	if err != nil {
		return err
	}
	if err := stream(ctx, location, s); err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	return nil
}

// stream connects streams to what the runtime has prepared.
func stream(ctx context.Context, location string, s Streams) error {
	u, err := url.Parse(location)
	if err != nil {
		return fmt.Errorf("the runtime's address %q: %w", location, err)
	}
	executor, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: u.Host}, "POST", u)
	if err != nil {
		return err
	}
	options := remotecommand.StreamOptions{Stdin: s.Stdin, Stdout: s.Stdout, Stderr: s.Stderr, Tty: s.TTY}
	if s.TTY && s.Sizes != nil {
		options.TerminalSizeQueue = sizes{ctx: ctx, c: s.Sizes}
	}
	return executor.StreamWithContext(ctx, options)
}
