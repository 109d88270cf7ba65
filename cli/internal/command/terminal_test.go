package command

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
)

// terminal opens a pair of pseudo terminals: the side of the person, and that of the program.
func terminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	number, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

// TestExecWithTerminal gives a command the person's terminal: what is typed arrives as it is typed, Ctrl-C included, and so do the size and its changes.
func TestExecWithTerminal(t *testing.T) {
	c := newCluster(t)
	sizes := make(chan string, 10)
	c.withContainers(&fakeContainers{exec: func(s grpc.BidiStreamingServer[corev1.PodExecRequest, corev1.PodExecResponse]) error {
		first, err := s.Recv()
		if err != nil {
			return err
		}
		start := first.GetStart()
		said := fmt.Sprintf("tty=%t stdin=%t stderr=%t\n", start.GetTty(), start.GetStdin(), start.GetStderr())
		if err := s.Send(corev1.PodExecResponse_builder{Stdout: []byte(said)}.Build()); err != nil {
			return err
		}
		typed := ""
		for typed != "ls\r\x03" {
			request, err := s.Recv()
			if err != nil {
				return err
			}
			if request.HasResize() {
				sizes <- fmt.Sprintf("%dx%d", request.GetResize().GetWidth(), request.GetResize().GetHeight())
			}
			typed += string(request.GetStdin())
		}
		return s.Send(corev1.PodExecResponse_builder{ExitCode: proto.Int32(5)}.Build())
	}})
	c.podsOfWeb()
	person, program := terminal(t)
	resize := func(columns, rows uint16) {
		if err := unix.IoctlSetWinsize(int(person.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
			t.Fatal(err)
		}
	}
	resize(80, 24)
	before, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	r := c.start(program, "exec", "-it", "web-a", "-c", "web", "--", "sh")
	r.out.await(t, "tty=true stdin=true stderr=false\n")
	if got := <-sizes; got != "80x24" {
		t.Errorf("the size at the start is %s", got)
	}
	resize(132, 50)
	// The terminal is not this process's controlling one, so the kernel does not tell it.
	if err := unix.Kill(os.Getpid(), unix.SIGWINCH); err != nil {
		t.Fatal(err)
	}
	if got := <-sizes; got != "132x50" {
		t.Errorf("the size after the change is %s", got)
	}
	if _, err := person.WriteString("ls\r\x03"); err != nil {
		t.Fatal(err)
	}
	if got := r.end(); got.code != 5 {
		t.Errorf("%+v", got)
	}
	after, err := unix.IoctlGetTermios(int(program.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	if *before != *after {
		t.Error("the terminal was not put back")
	}
	// Typing at a terminal that nobody reads any more ends the reader that the command left behind.
	person.WriteString("\r")
}
