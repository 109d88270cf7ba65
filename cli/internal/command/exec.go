package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/term"
	"google.golang.org/grpc"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/apistatus"
)

func newExec(s *session) *cobra.Command {
	var container string
	var stdin, tty bool
	c := &cobra.Command{
		Use:     "exec [-it] POD|KIND/NAME -- COMMAND [ARG...]",
		Short:   "Run a command in a container; its exit code is kept",
		Example: "  dhow exec -it deploy/web -- sh",
		RunE: func(c *cobra.Command, args []string) error {
			if c.ArgsLenAtDash() != 1 || len(args) < 2 {
				return errors.New("you must specify one pod and, behind --, at least one command: dhow exec POD -- COMMAND")
			}
			pod, err := s.podOf(c.Context(), args[0])
			if err != nil {
				return err
			}
			name, err := s.containerOf(pod, container)
			if err != nil {
				return err
			}
			return s.exec(c.Context(), corev1.PodExecRequest_Start_builder{
				Namespace: s.namespace, Name: pod.GetMetadata().GetName(), Container: name, Command: args[1:],
				Stdin: stdin, Stdout: true, Stderr: !tty, Tty: tty,
			}.Build())
		},
	}
	c.Flags().StringVarP(&container, "container", "c", "", "the container; by default the pod's only or first one")
	c.Flags().BoolVarP(&stdin, "stdin", "i", false, "pass standard input on")
	c.Flags().BoolVarP(&tty, "tty", "t", false, "the command has a terminal")
	return c
}

// execStream is the client's half of an exec.
type execStream = grpc.BidiStreamingClient[corev1.PodExecRequest, corev1.PodExecResponse]

func (s *session) exec(ctx context.Context, start *corev1.PodExecRequest_Start) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	terminal, isTerminal := s.In.(*os.File)
	isTerminal = isTerminal && term.IsTerminal(int(terminal.Fd()))
	// A terminal that nothing can be typed into is none.
	if start.GetTty() && !start.GetStdin() {
		start.SetTty(false)
		start.SetStderr(true)
	}
	if start.GetTty() && !isTerminal {
		fmt.Fprintln(s.Err, "Unable to use a TTY - input is not a terminal or the right kind of file")
		start.SetTty(false)
		start.SetStderr(true)
	}
	stream, err := corev1.NewPodsClient(s.conn).Exec(ctx)
	if err != nil {
		return apistatus.FromGRPC(err)
	}
	if err := stream.Send(corev1.PodExecRequest_builder{Start: start}.Build()); err != nil && !errors.Is(err, io.EOF) {
		return apistatus.FromGRPC(err)
	}
	// gRPC allows one sender at a time: standard input and terminal sizes go through this channel.
	requests := make(chan *corev1.PodExecRequest)
	go send(ctx, stream, requests)
	if start.GetTty() {
		before, err := term.MakeRaw(int(terminal.Fd()))
		if err != nil {
			return fmt.Errorf("terminal: %w", err)
		}
		defer term.Restore(int(terminal.Fd()), before)
		go sendSizes(ctx, terminal, requests)
	}
	if start.GetStdin() {
		go sendInput(ctx, s.In, requests)
	}
	for {
		response, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return errors.New("the command's exit code is not known: its stream ended early")
		}
		if err != nil {
			return apistatus.FromGRPC(err)
		}
		switch response.WhichMessage() {
		case corev1.PodExecResponse_Stdout_case:
			_, err = s.Out.Write(response.GetStdout())
		case corev1.PodExecResponse_Stderr_case:
			_, err = s.Err.Write(response.GetStderr())
		case corev1.PodExecResponse_ExitCode_case:
			code := response.GetExitCode()
			if code == 0 {
				return nil
			}
			fmt.Fprintf(s.Err, "command terminated with exit code %d\n", code)
			return exitError(code)
		}
		if err != nil {
			return err
		}
	}
}

func send(ctx context.Context, stream execStream, requests <-chan *corev1.PodExecRequest) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-requests:
			// A failed send shows as the error of the next receive.
			if stream.Send(r) != nil {
				return
			}
		}
	}
}

// sendInput passes standard input on, and its end.
func sendInput(ctx context.Context, in io.Reader, requests chan<- *corev1.PodExecRequest) {
	for {
		buffer := make([]byte, 32<<10)
		n, err := in.Read(buffer)
		if n > 0 && !pass(ctx, requests, corev1.PodExecRequest_builder{Stdin: buffer[:n]}.Build()) {
			return
		}
		if err != nil {
			closing := true
			pass(ctx, requests, corev1.PodExecRequest_builder{CloseStdin: &closing}.Build())
			return
		}
	}
}

// sendSizes tells the terminal's size, now and whenever it changes.
func sendSizes(ctx context.Context, terminal *os.File, requests chan<- *corev1.PodExecRequest) {
	changed := make(chan os.Signal, 1)
	signal.Notify(changed, syscall.SIGWINCH)
	defer signal.Stop(changed)
	for {
		if width, height, err := term.GetSize(int(terminal.Fd())); err == nil {
			size := corev1.PodExecRequest_Resize_builder{Width: uint32(width), Height: uint32(height)}.Build()
			if !pass(ctx, requests, corev1.PodExecRequest_builder{Resize: size}.Build()) {
				return
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

func pass(ctx context.Context, requests chan<- *corev1.PodExecRequest, r *corev1.PodExecRequest) bool {
	select {
	case requests <- r:
		return true
	case <-ctx.Done():
		return false
	}
}
