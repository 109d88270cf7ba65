package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
)

// TestDial: what comes in reaches the socket, what the socket says comes out, and the end of the input ends it.
func TestDial(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		line, _ := bufio.NewReader(conn).ReadString('\n')
		fmt.Fprintf(conn, "you said %s", line)
	}()
	in, say := io.Pipe()
	hear, out := io.Pipe()
	ended := make(chan error, 1)
	go func() { ended <- dial(t.Context(), socket, in, out) }()
	if _, err := io.WriteString(say, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(hear).ReadString('\n'); err != nil || line != "you said hello\n" {
		t.Errorf("%q, %v", line, err)
	}
	say.Close()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if err := run(t.Context(), []string{"dial"}); err == nil {
		t.Error("no socket was named, and nothing said")
	}
}
