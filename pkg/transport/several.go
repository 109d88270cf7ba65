package transport

import (
	"context"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"
)

// ServerCredentialsAnd are the credentials of a server that listens in memory and on the network (see Several): connections of this transport carry the
// dialer's identity, all others go through network, usually TLSServer.
func (m *Memory) ServerCredentialsAnd(network credentials.TransportCredentials) credentials.TransportCredentials {
	return eitherCredentials{TransportCredentials: network}
}

// eitherCredentials shake hands by the kind of the connection. Only this package makes memoryConns, so none comes from the network.
type eitherCredentials struct {
	credentials.TransportCredentials
}

func (c eitherCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if _, ok := conn.(*memoryConn); ok {
		return memoryCredentials{}.ServerHandshake(conn)
	}
	return c.TransportCredentials.ServerHandshake(conn)
}

func (c eitherCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errNotMemory
}

func (c eitherCredentials) Clone() credentials.TransportCredentials {
	return eitherCredentials{TransportCredentials: c.TransportCredentials.Clone()}
}

// Several is one listener that accepts what any of the listeners accepts. Its address is the first one's; closing it closes all.
func Several(first net.Listener, others ...net.Listener) net.Listener {
	s := &severalListeners{
		listeners: append([]net.Listener{first}, others...),
		accepted:  make(chan acceptResult),
		closed:    make(chan struct{}),
	}
	for _, l := range s.listeners {
		go s.accept(l)
	}
	return s
}

// listenersOf are the listeners that a listener of this package consists of.
func listenersOf(l net.Listener) []net.Listener {
	if s, ok := l.(*severalListeners); ok {
		return s.listeners
	}
	return []net.Listener{l}
}

type acceptResult struct {
	conn net.Conn
	err  error
}

type severalListeners struct {
	listeners []net.Listener
	accepted  chan acceptResult
	once      sync.Once
	closed    chan struct{}
}

// accept passes on what one listener says until all are closed. A temporary error is passed on too; the server then waits and accepts again.
func (s *severalListeners) accept(l net.Listener) {
	for {
		conn, err := l.Accept()
		select {
		case s.accepted <- acceptResult{conn, err}:
		case <-s.closed:
			if conn != nil {
				conn.Close()
			}
			return
		}
	}
}

func (s *severalListeners) Accept() (net.Conn, error) {
	select {
	case <-s.closed:
		return nil, net.ErrClosed
	case r := <-s.accepted:
		return r.conn, r.err
	}
}

func (s *severalListeners) Close() error {
	var first error
	s.once.Do(func() {
		close(s.closed)
		for _, l := range s.listeners {
			if err := l.Close(); err != nil && first == nil {
				first = err
			}
		}
	})
	return first
}

func (s *severalListeners) Addr() net.Addr { return s.listeners[0].Addr() }
