package restapi

import (
	"context"
	"errors"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/telemetry/logkey"
)

const (
	// maxHeader bounds the headers of a request. Large tokens and impersonation headers fit many times.
	maxHeader = 128 << 10
	// maxStreams bounds the requests at once of an HTTP/2 connection. A client's informers share one.
	maxStreams    = 1000
	headerTimeout = 32 * time.Second
	idleTimeout   = 3 * time.Minute
	pingInterval  = 30 * time.Second
	shutdownGrace = 5 * time.Second
)

// Serve answers on a listener, over TLS with HTTP/2 and HTTP/1.1, until the context ends. It returns nil then.
func Serve(ctx context.Context, listener net.Listener, pair *pki.KeyPair, handler http.Handler, logger *slog.Logger) error {
	server := &http.Server{
		Handler: pki.VerifyClients(pair, handler), ConnContext: pki.Connection, ReadHeaderTimeout: headerTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader,
		ErrorLog:  log.New(handshakes{logger}, "", 0),
		HTTP2:     &http.HTTP2Config{MaxConcurrentStreams: maxStreams, SendPingTimeout: pingInterval},
		TLSConfig: pki.DoorTLS(pair, "h2", "http/1.1"),
	}
	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(listener, "", "") }()
	select {
	case err := <-served:
		return fmt.Errorf("serve the Kubernetes API on %s: %w", listener.Addr(), err)
	case <-ctx.Done():
	}
	stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownGrace)
	defer cancel()
	err := server.Shutdown(stopping)
	if errors.Is(err, context.DeadlineExceeded) {
		err = server.Close()
	}
	<-served
	return err
}

// handshakes makes records of what net/http has to say, nearly all of it about handshakes that clients broke off.
type handshakes struct{ logger *slog.Logger }

func (h handshakes) Write(line []byte) (int, error) {
	h.logger.Debug("connection to the Kubernetes door failed", logkey.Reason(strings.TrimSpace(string(line))))
	return len(line), nil
}
