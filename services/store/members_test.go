package store_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/store"
	"dhow.dev/services/store/internal/storetest"
)

// members are three stores with one database, each a process of its own on an address of its own.
type members struct {
	t         *testing.T
	dir       string
	names     []string
	addresses map[string]string // of each member's host
	authority *pki.Authority
	files     pki.Files
	caller    *pki.KeyPair
	running   map[string]*exec.Cmd
}

// databases counts those of this process: each has loopback addresses of its own.
var databases atomic.Int32

func newMembers(t *testing.T) *members {
	t.Helper()
	m := &members{t: t, dir: t.TempDir(), names: []string{"a", "b", "c"}, addresses: map[string]string{}, running: map[string]*exec.Cmd{}}
	var err error
	if m.authority, err = pki.LoadOrCreate(m.dir); err != nil {
		t.Fatal(err)
	}
	network := databases.Add(1)
	var ips []net.IP
	for i, name := range m.names {
		// 127/8 is all this machine's; the process's number keeps test processes apart.
		ip := net.IPv4(127, byte(1+os.Getpid()/250%250), byte(1+os.Getpid()%250), byte(10*network)+byte(i))
		m.addresses[name], ips = ip.String(), append(ips, ip)
	}
	m.files = pki.FilesIn(m.dir, "store")
	if _, err := m.authority.Ensure(m.files, pki.Request{
		Identity: identity.Identity{Name: identity.Store}, Server: true, Client: true, DNSNames: []string{"store.dhow"}, IPs: ips,
	}); err != nil {
		t.Fatal(err)
	}
	_, m.caller = issue(t, m.authority, m.dir, identity.APIServer)
	return m
}

const clientPort, peerPort, metricsPort = "6440", "6441", "6442"

func (m *members) arguments(name string) []string {
	var all []string
	for _, n := range m.names {
		all = append(all, n+"="+net.JoinHostPort(m.addresses[n], peerPort))
	}
	return []string{
		"--listen=" + net.JoinHostPort(m.addresses[name], clientPort), "--metrics-listen=" + net.JoinHostPort(m.addresses[name], metricsPort), "--data-dir=" + filepath.Join(m.dir, name), "--log-level=warn",
		"--tls-cacert=" + m.files.Authority, "--tls-cert=" + m.files.Certificate, "--tls-key=" + m.files.Key,
		"--member=" + name, "--members=" + strings.Join(all, ","), "--member-listen=" + net.JoinHostPort(m.addresses[name], peerPort), "--members-token=" + filepath.Base(m.dir),
	}
}

// start runs a member until kill or the test's end.
func (m *members) start(name string) {
	m.t.Helper()
	process := exec.Command(os.Args[0])
	process.Env = append(os.Environ(), childArguments+"="+strings.Join(m.arguments(name), " "))
	process.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := process.StderrPipe()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		m.t.Fatal(err)
	}
	m.running[name] = process
	var read sync.WaitGroup
	read.Go(func() {
		for lines := bufio.NewScanner(log); lines.Scan(); {
			m.t.Logf("%s: %s", name, lines.Text())
		}
	})
	m.t.Cleanup(func() {
		process.Process.Kill()
		read.Wait()
		process.Wait()
	})
}

// kill ends a member as kill -9 does.
func (m *members) kill(name string) {
	m.t.Helper()
	if err := m.running[name].Process.Kill(); err != nil {
		m.t.Fatal(err)
	}
	m.running[name].Wait()
}

// client returns a client of one member, which waits until it can be connected to, or with no name of any of them.
func (m *members) client(names ...string) storev1.StoreClient {
	m.t.Helper()
	var targets []string
	for _, name := range names {
		targets = append(targets, net.JoinHostPort(m.addresses[name], clientPort))
	}
	conn, err := transport.Dial(strings.Join(targets, ","), transport.TLSClient(m.caller, "store.dhow"))
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { conn.Close() })
	client := storev1.NewStoreClient(conn)
	m.until("the store answers", func() error {
		_, err := client.Revision(m.t.Context(), &storev1.RevisionRequest{})
		return err
	})
	return client
}

// until repeats what is refused while members come and go.
func (m *members) until(what string, try func() error) {
	m.t.Helper()
	for {
		err := try()
		if err == nil {
			return
		}
		if status.Code(err) != codes.Unavailable {
			m.t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-m.t.Context().Done():
			m.t.Fatalf("%s: %v", what, err)
		}
	}
}

func TestConformanceMembers(t *testing.T) {
	m := newMembers(t)
	for _, name := range m.names {
		m.start(name)
	}
	storetest.Run(t, m.client(m.names...))
}

// Each member in turn is killed while clients write through the others: what was acknowledged is on every member in the end, writes go on
// without the one that is gone, and a watch resumed by revision has seen every change once.
func TestMembersSurviveKill9(t *testing.T) {
	m := newMembers(t)
	for _, name := range m.names {
		m.start(name)
	}
	client := m.client(m.names...)
	ctx, stop := context.WithCancel(t.Context())
	begin, err := client.Revision(ctx, &storev1.RevisionRequest{})
	if err != nil {
		t.Fatal(err)
	}
	seen := make(chan map[string]int)
	go func() { seen <- follow(ctx, client, begin.GetRevision()) }()

	var mu sync.Mutex
	acknowledged := map[string]bool{}
	progress := make(chan struct{}, 1)
	var writers sync.WaitGroup
	writing, rest := context.WithCancel(t.Context())
	for w := range 4 {
		writers.Go(func() {
			for i := 0; writing.Err() == nil; i++ {
				key := fmt.Sprintf("/kill/%d/%06d", w, i)
				_, err := client.Commit(writing, storev1.CommitRequest_builder{Operations: []*storev1.Operation{
					storev1.Operation_builder{Key: []byte(key), Put: []byte(key)}.Build(),
				}}.Build())
				if err != nil {
					continue // the member was killed, or the write is uncertain: it is not acknowledged
				}
				mu.Lock()
				acknowledged[key] = true
				mu.Unlock()
				select {
				case progress <- struct{}{}:
				default:
				}
			}
		})
	}
	more := func(n int) {
		for range n {
			<-progress
		}
	}
	more(50)
	for _, name := range m.names {
		m.kill(name)
		more(50)
		m.start(name)
		m.client(name)
		more(50)
	}
	rest()
	writers.Wait()

	for _, name := range m.names {
		stored := map[string]bool{}
		stream, err := m.client(name).List(t.Context(), storev1.ListRequest_builder{Prefix: []byte("/kill/")}.Build())
		if err != nil {
			t.Fatal(err)
		}
		for {
			response, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range response.GetEntries() {
				stored[string(e.GetKey())] = true
			}
		}
		for key := range acknowledged {
			if !stored[key] {
				t.Errorf("%s was acknowledged and is not on member %s", key, name)
			}
		}
	}
	m.until("the last write", func() error {
		_, err := client.Commit(t.Context(), storev1.CommitRequest_builder{Operations: []*storev1.Operation{
			storev1.Operation_builder{Key: []byte(last), Put: []byte("x")}.Build(),
		}}.Build())
		return err
	})
	watched := <-seen
	stop()
	for key := range acknowledged {
		if watched[key] != 1 {
			t.Errorf("%s was acknowledged and watched %d times", key, watched[key])
		}
	}
	t.Logf("%d writes acknowledged", len(acknowledged))
}

// last is the key that ends follow.
const last = "/kill/last"

// follow watches until it has seen the last key, and counts how often each key was changed. When its member goes away it goes on by revision.
func follow(ctx context.Context, client storev1.StoreClient, revision int64) map[string]int {
	counts := map[string]int{}
	for ctx.Err() == nil {
		watch, err := client.Watch(ctx, storev1.WatchRequest_builder{Prefix: []byte("/kill/"), AfterRevision: revision}.Build())
		for err == nil {
			var response *storev1.WatchResponse
			if response, err = watch.Recv(); err != nil {
				break
			}
			for _, change := range response.GetChanges() {
				counts[string(change.GetKey())]++
				if string(change.GetKey()) == last {
					return counts
				}
			}
			revision = max(revision, response.GetRevision())
		}
	}
	return counts
}

// readyz waits until a member answers /readyz with a code and a text. Its process is well all the time.
func (m *members) readyz(name string, code int, text string) {
	m.t.Helper()
	ask := func(path string) (int, string, error) {
		response, err := http.Get("http://" + net.JoinHostPort(m.addresses[name], metricsPort) + path)
		if err != nil {
			return 0, "", err
		}
		defer response.Body.Close()
		body, err := io.ReadAll(response.Body)
		return response.StatusCode, string(body), err
	}
	m.until("/readyz of "+name, func() error {
		got, body, err := ask("/readyz")
		if err != nil || got != code || !strings.Contains(body, text) {
			return status.Errorf(codes.Unavailable, "%d %q, want %d and %q: %v", got, body, code, text, err)
		}
		return nil
	})
	for _, path := range []string{"/livez", "/healthz"} {
		if got, body, err := ask(path); err != nil || got != http.StatusOK {
			m.t.Errorf("%s of %s: %d %q: %v", path, name, got, body, err)
		}
	}
}

// A member that is alone, from the start or later, is alive and not ready. It sends its clients away at once, and takes them back when it has a leader.
func TestMemberWithoutMajority(t *testing.T) {
	m := newMembers(t)
	m.start("a")
	m.readyz("a", http.StatusServiceUnavailable, "the database is not open: more than half of the members a, b, c have to reach each other")
	m.start("b")
	m.start("c")
	client := m.client("a")
	m.readyz("a", http.StatusOK, "ok")
	watch, err := client.Watch(t.Context(), storev1.WatchRequest_builder{Prefix: []byte("/")}.Build())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	m.kill("b")
	m.kill("c")
	for err == nil {
		_, err = watch.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the watch ended with %v", err)
	}
	if _, err := client.Revision(t.Context(), &storev1.RevisionRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("a read of a member without a majority: %v", err)
	}
	m.readyz("a", http.StatusServiceUnavailable, "no leader: too few of the members a, b, c reach each other")
	m.start("c")
	m.client("a")
	m.readyz("a", http.StatusOK, "ok")
}

// Whoever is a peer may write everything: certificates of other services are refused.
func TestPeersAreStores(t *testing.T) {
	m := newMembers(t)
	for _, name := range m.names {
		m.start(name)
	}
	m.client("a")
	for caller, allowed := range map[string]bool{identity.Store: true, identity.APIServer: false, identity.Node("n1").Name: false} {
		_, pair := issue(t, m.authority, m.dir, caller)
		config := pki.ClientTLS(pair, "store.dhow")
		config.NextProtos = nil
		conn, err := tls.Dial("tcp", net.JoinHostPort(m.addresses["a"], peerPort), config)
		if err == nil {
			// The server's verdict on the client's certificate comes with its first bytes.
			fmt.Fprintf(conn, "GET /version HTTP/1.0\r\n\r\n")
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		if (err == nil) != allowed {
			t.Errorf("%s: %v", caller, err)
		}
	}
}

func TestMembersAreChecked(t *testing.T) {
	m := newMembers(t)
	for change, want := range map[string]string{
		"--members=a=h:1,b=h:2":     "2 members: give an odd number",
		"--members=b=h:2":           `member "a" is none of the members b`,
		"--members=a=h,b=h:2,c=h:3": "give host:port",
		"--members=a":               `"a": expected NAME=HOST:PORT`,
		"--members=a=h:1,a=h:2":     "a is named twice",
		"--member-listen=host:1":    `"host" is no IP address`,
		"--members-token=":          "members need a token",
		"--member=":                 "name it with --member",
	} {
		arguments := append(m.arguments("a"), "--listen=127.0.0.1:0", change)
		if err := store.Main(t.Context(), arguments, io.Discard); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", change, err, want)
		}
	}
}
