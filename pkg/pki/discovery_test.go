package pki

import (
	"bytes"
	"crypto/tls"
	"net"
	"strings"
	"testing"
)

// serveTLS answers handshakes until the test ends.
func serveTLS(t *testing.T, config *tls.Config) string {
	t.Helper()
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_ = conn.(*tls.Conn).HandshakeContext(t.Context()) // the client tells how it went
			}()
		}
	}()
	return listener.Addr().String()
}

func TestDiscover(t *testing.T) {
	dir := t.TempDir()
	authority, err := LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Ensure(FilesIn(dir, "server"), serverRequest())
	if err != nil {
		t.Fatal(err)
	}
	address := serveTLS(t, DoorTLS(pair, "h2"))
	got, err := Discover(t.Context(), address, "store.dhow", Hash(authority.certificate))
	if err != nil || !bytes.Equal(got, authority.CertificatePEM()) {
		t.Fatalf("%s, %v", got, err)
	}
	other, err := LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, test := range []struct{ address, name, hash, want string }{
		{address, "store.dhow", Hash(other.certificate), "the server is of another cluster"},
		{address, "apiserver.dhow", Hash(authority.certificate), "not one of this cluster for"},
		{address, "store.dhow", "sha256:abc", "is no hash of an authority"},
		{address, "store.dhow", strings.TrimPrefix(Hash(authority.certificate), "sha256:"), "is no hash of an authority"},
		{closed.Addr().String(), "store.dhow", Hash(authority.certificate), "connection refused"},
	} {
		if _, err := Discover(t.Context(), test.address, test.name, test.hash); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%+v: %v", test, err)
		}
	}
}
