package store_test

import (
	"context"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/store"
)

// issue makes a certificate and returns its files.
func issue(t *testing.T, authority *pki.Authority, dir, name string) (pki.Files, *pki.KeyPair) {
	t.Helper()
	files := pki.FilesIn(dir, strings.ReplaceAll(name, ":", "-"))
	pair, err := authority.Ensure(files, pki.Request{
		Identity: identity.Identity{Name: name}, Server: name == identity.Store, Client: true,
		DNSNames: []string{"store.dhow"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)},
	})
	if err != nil {
		t.Fatal(err)
	}
	return files, pair
}

// lines is a log that can be waited for.
type lines struct {
	mu      sync.Mutex
	text    strings.Builder
	changed chan struct{}
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text.Write(b)
	close(l.changed)
	l.changed = make(chan struct{})
	return len(b), nil
}

// find waits for a match and returns its first group.
func (l *lines) find(t *testing.T, ended <-chan error, pattern string) string {
	t.Helper()
	for {
		l.mu.Lock()
		match, changed := regexp.MustCompile(pattern).FindStringSubmatch(l.text.String()), l.changed
		l.mu.Unlock()
		if match != nil {
			return match[1]
		}
		select {
		case <-changed:
		case err := <-ended:
			t.Fatalf("the store ended: %v", err)
		}
	}
}

// TestMainServesMutualTLS is the service as its own process runs it: flags, certificates, TCP.
func TestMainServesMutualTLS(t *testing.T) {
	dir := t.TempDir()
	authority, err := pki.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	files, _ := issue(t, authority, dir, identity.Store)
	ctx, cancel := context.WithCancel(context.Background())
	log, ended := &lines{changed: make(chan struct{})}, make(chan error, 1)
	go func() {
		ended <- store.Main(ctx, []string{
			"--listen=127.0.0.1:0", "--data-dir=" + filepath.Join(dir, "data"),
			"--tls-cacert=" + files.Authority, "--tls-cert=" + files.Certificate, "--tls-key=" + files.Key,
		}, log)
	}()
	address := log.find(t, ended, `msg="store serves".* address=(\S+)`)
	for caller, code := range map[string]codes.Code{identity.APIServer: codes.OK, identity.Scheduler: codes.PermissionDenied} {
		_, pair := issue(t, authority, dir, caller)
		conn, err := transport.Dial(address, transport.TLSClient(pair, "store.dhow"))
		if err != nil {
			t.Fatal(err)
		}
		_, err = storev1.NewStoreClient(conn).Revision(ctx, &storev1.RevisionRequest{})
		if status.Code(err) != code {
			t.Errorf("%s: %v, want %s", caller, err, code)
		}
		conn.Close()
	}
	cancel()
	if err := <-ended; err != nil {
		t.Errorf("the store ended with %v", err)
	}
}

// TestFlags: wrong flags give one line that says what to do.
func TestFlags(t *testing.T) {
	tls := []string{"--tls-cacert=a", "--tls-cert=b", "--tls-key=c"}
	for _, test := range []struct {
		arguments []string
		want      string
	}{
		{tls, "give either --data-dir, for the embedded etcd, or --etcd-endpoints"},
		{append([]string{"--data-dir=d", "--etcd-endpoints=https://e:2379"}, tls...), "give either --data-dir"},
		{[]string{"--data-dir=d"}, "--tls-cacert is required"},
		{append([]string{"--data-dir=d", "--history=10"}, tls...), "history"},
		{append([]string{"--data-dir=d", "--history=10ms"}, tls...), "--history 10ms: at least one second"},
		{append([]string{"--data-dir=d", "serve"}, tls...), `unexpected argument "serve"`},
		{append([]string{"--data-dir=d"}, tls...), "no such file"},
		{append([]string{"--data-dir=d", "--log-level=loud"}, tls...), "log level"},
	} {
		err := store.Main(t.Context(), test.arguments, io.Discard)
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%v: %v, want %s", test.arguments, err, test.want)
		}
	}
	dir := t.TempDir()
	authority, err := pki.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	files, _ := issue(t, authority, dir, identity.Store)
	err = store.Main(t.Context(), []string{
		"--etcd-endpoints=http://10.0.0.1:2379", "--tls-cacert=" + files.Authority, "--tls-cert=" + files.Certificate, "--tls-key=" + files.Key,
	}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "off this machine only https") {
		t.Errorf("plain http to another machine: %v", err)
	}
}
