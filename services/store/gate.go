package store

import (
	"net"
	"sync"
)

// gate is a listener that can be shut: connections that exist are dropped and new ones are ended at once, so that clients go to another store
// without waiting for a timeout.
type gate struct {
	net.Listener

	mu    sync.Mutex
	shut  bool
	conns map[*gatedConn]struct{}
}

func newGate(l net.Listener) *gate { return &gate{Listener: l, conns: map[*gatedConn]struct{}{}} }

// Accept implements net.Listener.
func (g *gate) Accept() (net.Conn, error) {
	for {
		conn, err := g.Listener.Accept()
		if err != nil {
			return nil, err
		}
		gated := &gatedConn{Conn: conn, gate: g}
		g.mu.Lock()
		shut := g.shut
		if !shut {
			g.conns[gated] = struct{}{}
		}
		g.mu.Unlock()
		if !shut {
			return gated, nil
		}
		conn.Close()
	}
}

func (g *gate) set(open bool) {
	g.mu.Lock()
	g.shut = !open
	var drop []*gatedConn
	if g.shut {
		for conn := range g.conns {
			drop = append(drop, conn)
		}
	}
	g.mu.Unlock()
	for _, conn := range drop {
		conn.Close()
	}
}

type gatedConn struct {
	net.Conn
	gate *gate
}

func (c *gatedConn) Close() error {
	c.gate.mu.Lock()
	delete(c.gate.conns, c)
	c.gate.mu.Unlock()
	return c.Conn.Close()
}
