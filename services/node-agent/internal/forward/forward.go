// Package forward connects to ports of pods: in a pod's network namespace through the streaming server of the container runtime, or at the pod's address.
package forward

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"

	kcorev1 "k8s.io/api/core/v1"
	constants "k8s.io/apimachinery/pkg/util/portforward"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/transport/spdy"

	"dhow.dev/services/node-agent/internal/cri"
)

// Conn is a connection to a port. A connection that could not be made in a sandbox is only known by the error of the first Read.
type Conn interface {
	io.ReadWriteCloser
	// CloseWrite says that nothing more will be written.
	CloseWrite() error
}

// Address connects to a pod's address.
func Address(ctx context.Context, ip string, port int32) (Conn, error) {
	var dialer net.Dialer
	c, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(ip, strconv.Itoa(int(port))))
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

// Sandbox connects to a port on the loopback of a sandbox.
func Sandbox(ctx context.Context, runtime cri.Runtime, sandboxID string, port int32) (Conn, error) {
	location, err := runtime.PortForwardURL(ctx, sandboxID, port)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(location)
	if err != nil {
		return nil, fmt.Errorf("port forward: the runtime's address %q: %w", location, err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: u.Host})
	if err != nil {
		return nil, fmt.Errorf("port forward: %w", err)
	}
	streams, _, err := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u).Dial(constants.PortForwardV1Name)
	if err != nil {
		return nil, fmt.Errorf("port forward: %w", err)
	}
	header := http.Header{}
	header.Set(kcorev1.PortHeader, strconv.Itoa(int(port)))
	header.Set(kcorev1.PortForwardRequestIDHeader, "0")
	header.Set(kcorev1.StreamType, kcorev1.StreamTypeError)
	errs, err := streams.CreateStream(header)
	if err != nil {
		return nil, fmt.Errorf("port forward: %w", errors.Join(err, streams.Close()))
	}
	_ = errs.Close() // nothing is written to it
	header.Set(kcorev1.StreamType, kcorev1.StreamTypeData)
	data, err := streams.CreateStream(header)
	if err != nil {
		return nil, fmt.Errorf("port forward: %w", errors.Join(err, streams.Close()))
	}
	return &inSandbox{Reader: data, writer: data, errs: errs, end: streams.Close}, nil
}

// inSandbox is a connection through the runtime.
type inSandbox struct {
	io.Reader
	writer io.WriteCloser
	errs   io.Reader
	end    func() error
}

// Read implements io.Reader. The end is an error if the runtime says that it is one.
func (c *inSandbox) Read(into []byte) (int, error) {
	n, err := c.Reader.Read(into)
	if err == nil {
		return n, nil
	}
	text, failed := io.ReadAll(io.LimitReader(c.errs, 4096))
	if failed == nil && len(text) > 0 {
		return n, errors.New(string(text))
	}
	return n, err
}

// Write implements io.Writer.
func (c *inSandbox) Write(data []byte) (int, error) { return c.writer.Write(data) }

// CloseWrite implements Conn: a stream that is closed can still be read.
func (c *inSandbox) CloseWrite() error { return c.writer.Close() }

// Close implements io.Closer.
func (c *inSandbox) Close() error { return c.end() }
