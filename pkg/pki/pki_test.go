package pki

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"dhow.dev/pkg/identity"
)

func authority(t *testing.T, dir string) *Authority {
	t.Helper()
	a, err := LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func serverRequest() Request {
	return Request{Identity: identity.Identity{Name: identity.Store}, DNSNames: []string{"store.dhow", "localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Server: true, Client: true}
}

func nodeRequest() Request { return Request{Identity: identity.Node("n1"), Client: true} }

func ensure(t *testing.T, a *Authority, files Files, request Request) *KeyPair {
	t.Helper()
	pair, err := a.Ensure(files, request)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func TestAuthorityIsKeptAndPrivate(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	first := authority(t, dir)
	if second := authority(t, dir); !bytes.Equal(first.CertificatePEM(), second.CertificatePEM()) {
		t.Fatal("a second start made another authority")
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 2 {
		t.Fatalf("files = %v, want ca.crt and ca.key only", entries)
	}
	for _, entry := range entries {
		info, err := entry.Info()
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", entry.Name(), info.Mode(), err)
		}
	}
}

func TestConcurrentStartsAgree(t *testing.T) {
	dir := t.TempDir()
	const starts = 8
	got := make([][]byte, starts)
	var group sync.WaitGroup
	for i := range starts {
		group.Go(func() {
			if a, err := LoadOrCreate(dir); err == nil {
				got[i] = a.CertificatePEM()
			} else {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, pem := range got[1:] {
		if !bytes.Equal(pem, got[0]) {
			t.Fatal("two authorities in one folder")
		}
	}
}

func TestAuthorityErrorsNameTheFile(t *testing.T) {
	for name, tc := range map[string]struct {
		damage func(dir string) error
		want   string
	}{
		"key lost":        {func(dir string) error { return os.Remove(filepath.Join(dir, "ca.key")) }, "restore the key"},
		"key garbage":     {func(dir string) error { return os.WriteFile(filepath.Join(dir, "ca.key"), []byte("x"), 0o600) }, "ca.key: no PEM block"},
		"certificate bad": {func(dir string) error { return os.WriteFile(filepath.Join(dir, "ca.crt"), []byte("x"), 0o600) }, "ca.crt: no certificate"},
		"other key": {func(dir string) error {
			key, err := newKey()
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "ca.key"), key.pem, 0o600)
		}, "do not belong together"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			authority(t, dir)
			if err := tc.damage(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := LoadOrCreate(dir); err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), dir) {
				t.Fatalf("error = %v, want %q and the path", err, tc.want)
			}
		})
	}
	if _, err := Load(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("Load of nothing: %v", err)
	}
}

func TestInterruptedCreationIsFinished(t *testing.T) {
	dir := t.TempDir()
	first := authority(t, dir)
	issued, _, err := first.Issue(nodeRequest())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(dir, "ca.crt")); err != nil {
		t.Fatal(err)
	}
	second := authority(t, dir)
	leaf, err := parseCertificates(issued)
	if err != nil {
		t.Fatal(err)
	}
	if err := leaf[0].CheckSignatureFrom(second.certificate); err != nil {
		t.Fatalf("certificates from before are not valid any more: %v", err)
	}
}

func TestIssueRefuses(t *testing.T) {
	a := authority(t, t.TempDir())
	for name, request := range map[string]Request{
		"no name":           {Client: true},
		"no usage":          {Identity: identity.Node("a")},
		"server, no names":  {Identity: identity.Node("a"), Server: true},
		"negative lifetime": {Identity: identity.Node("a"), Client: true, TTL: -time.Hour},
	} {
		if _, _, err := a.Issue(request); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
}

func TestIssuedCertificate(t *testing.T) {
	a := authority(t, t.TempDir())
	pem, _, err := a.Issue(nodeRequest())
	if err != nil {
		t.Fatal(err)
	}
	chain, err := parseCertificates(pem)
	if err != nil {
		t.Fatal(err)
	}
	leaf := chain[0]
	id, err := identity.FromCertificate(leaf)
	if err != nil || id.Name != "system:node:n1" || !slices.Equal(id.Groups, []string{identity.Nodes}) {
		t.Errorf("identity = %+v, %v", id, err)
	}
	if leaf.IsCA || !slices.Equal(leaf.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) {
		t.Errorf("usage = %v, CA = %v", leaf.ExtKeyUsage, leaf.IsCA)
	}
	a.now = func() time.Time { return a.certificate.NotAfter.Add(-time.Hour) }
	pem, _, err = a.Issue(nodeRequest())
	if err != nil {
		t.Fatal(err)
	}
	if chain, err = parseCertificates(pem); err != nil || chain[0].NotAfter.After(a.certificate.NotAfter) {
		t.Errorf("outlives its authority: %v", err)
	}
}

func TestSign(t *testing.T) {
	a := authority(t, t.TempDir())
	key, err := newKey()
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "ann", Organization: []string{"staff"}}, DNSNames: []string{"a.example"},
		// A request to be an authority, which is not for the asker to say.
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 0x03, 0x01, 0x01, 0xff}}},
	}, key.signer)
	if err != nil {
		t.Fatal(err)
	}
	request, err := x509.ParseCertificateRequest(der)
	if err != nil {
		t.Fatal(err)
	}
	terms := Terms{KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, TTL: time.Hour}
	signed, err := a.Sign(request, terms)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := parseCertificates(signed)
	if err != nil {
		t.Fatal(err)
	}
	leaf := chain[0]
	roots := x509.NewCertPool()
	roots.AddCert(a.certificate)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: terms.ExtKeyUsage}); err != nil {
		t.Error(err)
	}
	if leaf.IsCA || leaf.Subject.String() != "CN=ann,O=staff" || !slices.Equal(leaf.DNSNames, []string{"a.example"}) || leaf.KeyUsage != terms.KeyUsage || !equalKeys(leaf.PublicKey, key.signer.Public()) {
		t.Errorf("signed %+v", leaf)
	}
	if lasts := leaf.NotAfter.Sub(leaf.NotBefore); lasts != time.Hour+skew {
		t.Errorf("valid for %s", lasts)
	}
	if _, err := a.Sign(request, Terms{KeyUsage: x509.KeyUsageCertSign}); err == nil {
		t.Error("made another authority")
	}
	request.Signature[len(request.Signature)-1] ^= 1
	if _, err := a.Sign(request, terms); err == nil {
		t.Error("signed a request that another key has signed")
	}
}

// handshake connects the two over a pipe and returns the errors of both sides.
func handshake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error, seen tls.ConnectionState) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	conn := tls.Server(a, server)
	go func() {
		err := conn.HandshakeContext(ctx)
		if err == nil {
			_, err = conn.Write([]byte("x")) // a client learns here that its certificate was refused
		}
		a.Close()
		done <- err
	}()
	peer := tls.Client(b, client)
	clientErr = peer.HandshakeContext(ctx)
	if clientErr == nil {
		_, clientErr = peer.Read(make([]byte, 1))
	}
	b.Close()
	return <-done, clientErr, conn.ConnectionState()
}

func TestMutualTLS(t *testing.T) {
	dir := t.TempDir()
	a := authority(t, dir)
	server := ensure(t, a, FilesIn(dir, "store"), serverRequest())
	client := ensure(t, a, FilesIn(filepath.Join(dir, "n1"), "agent"), nodeRequest())
	stranger := ensure(t, authority(t, t.TempDir()), FilesIn(t.TempDir(), "x"), serverRequest())

	serverErr, clientErr, seen := handshake(t, ServerTLS(server), ClientTLS(client, "store.dhow"))
	if serverErr != nil || clientErr != nil {
		t.Fatalf("server %v, client %v", serverErr, clientErr)
	}
	if seen.Version != tls.VersionTLS13 || len(seen.VerifiedChains) != 1 || seen.VerifiedChains[0][0].Subject.CommonName != "system:node:n1" {
		t.Fatalf("server saw %+v", seen)
	}
	oldTLS := ClientTLS(client, "store.dhow")
	oldTLS.MinVersion, oldTLS.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	nameless := ClientTLS(client, "store.dhow")
	nameless.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
	for name, tc := range map[string]struct{ server, client *tls.Config }{
		"wrong name":              {ServerTLS(server), ClientTLS(client, "apiserver.dhow")},
		"no name":                 {ServerTLS(server), ClientTLS(client, "")},
		"client of other cluster": {ServerTLS(server), ClientTLS(stranger, "store.dhow")},
		"server of other cluster": {ServerTLS(stranger), ClientTLS(client, "store.dhow")},
		"client as server":        {ServerTLS(client), ClientTLS(server, "store.dhow")},
		"TLS 1.2":                 {ServerTLS(server), oldTLS},
		"no certificate":          {ServerTLS(server), nameless},
	} {
		serverErr, clientErr, _ := handshake(t, tc.server, tc.client)
		if serverErr == nil && clientErr == nil {
			t.Errorf("%s: connected", name)
		}
	}
}

func TestDoorTLS(t *testing.T) {
	dir := t.TempDir()
	a := authority(t, dir)
	server := ensure(t, a, FilesIn(dir, "apiserver"), serverRequest())
	client := ensure(t, a, FilesIn(filepath.Join(dir, "n1"), "agent"), nodeRequest())
	stranger := ensure(t, authority(t, t.TempDir()), FilesIn(t.TempDir(), "x"), nodeRequest())
	nameless := func() *tls.Config {
		config := ClientTLS(client, "store.dhow")
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &tls.Certificate{}, nil }
		config.NextProtos = []string{"http/1.1", "h2"}
		return config
	}
	if s, c, seen := handshake(t, DoorTLS(server, "h2", "http/1.1"), nameless()); s != nil || c != nil || len(seen.VerifiedChains) != 0 || seen.NegotiatedProtocol != "h2" {
		t.Errorf("without a certificate: server %v, client %v, saw %+v", s, c, seen)
	}
	verified := func(config *tls.Config) int {
		t.Helper()
		s, c, seen := handshake(t, DoorTLS(server), config)
		if s != nil || c != nil || len(seen.PeerCertificates) == 0 {
			t.Fatalf("server %v, client %v, saw %+v", s, c, seen)
		}
		chains := 0
		VerifyClients(server, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { chains = len(r.TLS.VerifiedChains) })).
			ServeHTTP(nil, (&http.Request{TLS: &seen}).WithContext(Connection(t.Context(), nil)))
		return chains
	}
	if n := verified(ClientTLS(client, "store.dhow")); n != 1 {
		t.Errorf("a certificate of the authority: %d chains", n)
	}
	for what, other := range map[string]*KeyPair{"another authority's": stranger, "a server's": ensure(t, a, FilesIn(filepath.Join(dir, "s"), "server"), serverOnly())} {
		config := nameless()
		config.GetClientCertificate = ClientTLS(other, "store.dhow").GetClientCertificate
		if n := verified(config); n != 0 {
			t.Errorf("%s certificate: %d chains", what, n)
		}
	}
}

func serverOnly() Request {
	request := serverRequest()
	request.Client = false
	return request
}

func TestReload(t *testing.T) {
	dir := t.TempDir()
	a := authority(t, dir)
	files := FilesIn(dir, "store")
	server := ensure(t, a, files, serverRequest())
	client := ensure(t, a, FilesIn(dir, "agent"), nodeRequest())
	serverTLS, clientTLS := ServerTLS(server), ClientTLS(client, "store.dhow")
	before := server.Certificate().SerialNumber

	// Half a rotation: the key is new, the certificate is not.
	certificate, key, err := a.Issue(serverRequest())
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(files.Key, key); err != nil {
		t.Fatal(err)
	}
	if s, c, _ := handshake(t, serverTLS, clientTLS); s != nil || c != nil {
		t.Fatalf("during a rotation: server %v, client %v", s, c)
	}
	if err := server.Err(); err == nil || !strings.Contains(err.Error(), files.Key) {
		t.Fatalf("Err = %v", err)
	}
	if err := writeFile(files.Certificate, certificate); err != nil {
		t.Fatal(err)
	}
	if s, c, _ := handshake(t, serverTLS, clientTLS); s != nil || c != nil {
		t.Fatalf("after a rotation: server %v, client %v", s, c)
	}
	if server.Err() != nil || server.Certificate().SerialNumber.Cmp(before) == 0 {
		t.Fatalf("the new certificate is not in use: %v", server.Err())
	}

	// Another authority: both sides follow without a restart.
	other := authority(t, t.TempDir())
	ensure(t, other, files, serverRequest())
	ensure(t, other, FilesIn(dir, "agent"), nodeRequest())
	if s, c, _ := handshake(t, serverTLS, clientTLS); s != nil || c != nil {
		t.Fatalf("after a change of authority: server %v, client %v", s, c)
	}
}

func TestEnsureReissues(t *testing.T) {
	dir := t.TempDir()
	a := authority(t, dir)
	files := FilesIn(dir, "store")
	first := ensure(t, a, files, serverRequest()).Certificate().SerialNumber
	if again := ensure(t, a, files, serverRequest()).Certificate().SerialNumber; again.Cmp(first) != 0 {
		t.Fatal("a good certificate was replaced")
	}
	moreIPs := serverRequest()
	moreIPs.IPs = append(moreIPs.IPs, net.ParseIP("10.1.2.3"))
	clientOnly := serverRequest()
	clientOnly.Server = false
	for name, request := range map[string]Request{"address added": moreIPs, "usage changed": clientOnly, "identity changed": {Identity: identity.Node("b"), Client: true}} {
		before := ensure(t, a, files, serverRequest()).Certificate().SerialNumber
		if ensure(t, a, files, request).Certificate().SerialNumber.Cmp(before) == 0 {
			t.Errorf("%s: not reissued", name)
		}
	}
	if err := os.WriteFile(files.Key, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	ensure(t, a, files, serverRequest())
}

func TestMissingFilesAreNamed(t *testing.T) {
	dir := t.TempDir()
	a := authority(t, dir)
	files := FilesIn(dir, "store")
	for _, path := range files.all() {
		ensure(t, a, files, serverRequest())
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadKeyPair(files); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
			t.Errorf("without %s: %v", path, err)
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestKeepRenewsBeforeExpiry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		a := authority(t, dir)
		files := FilesIn(dir, "agent")
		request := nodeRequest()
		request.TTL = 24 * time.Hour
		pair := ensure(t, a, files, request)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var group sync.WaitGroup
		group.Go(func() { a.Keep(ctx, files, request, slog.New(slog.DiscardHandler)) })
		first := pair.Certificate()
		end := time.Now().Add(7 * 24 * time.Hour)
		for time.Now().Before(end) {
			<-time.After(time.Hour) // the bubble's clock, not the wall's
			synctest.Wait()
			if left := pair.Certificate().NotAfter.Sub(time.Now()); left < time.Hour {
				t.Fatalf("only %s left", left)
			}
		}
		if pair.Certificate().SerialNumber.Cmp(first.SerialNumber) == 0 {
			t.Fatal("never renewed")
		}
		cancel()
		group.Wait()
	})
}
