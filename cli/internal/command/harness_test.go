package command

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"dhow.dev/cli/internal/connect"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	schedulerv1 "dhow.dev/gen/go/dhow/scheduler/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/rawcodec"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver"
	"dhow.dev/services/store"
)

// patience bounds waits for conditions; it is long because machines under test are slow, and nothing measures it.
const patience = time.Minute

// cluster is a store in memory and an API server that listens on a real port with mutual TLS, as the command meets it.
type cluster struct {
	t      *testing.T
	dir    string
	memory *transport.Memory
	ca     *pki.Authority
	// config is the path of the file that the command is given.
	config string
	// kubernetes is the address of the Kubernetes door.
	kubernetes string
	// admin may do everything.
	admin *grpc.ClientConn
	// explain is what the scheduler answers.
	explain func(*schedulerv1.ExplainRequest, grpc.ServerStreamingServer[schedulerv1.ExplainResponse]) error
}

type fakeScheduler struct {
	schedulerv1.UnimplementedSchedulerServer
	c *cluster
}

func (f fakeScheduler) Explain(q *schedulerv1.ExplainRequest, s grpc.ServerStreamingServer[schedulerv1.ExplainResponse]) error {
	return f.c.explain(q, s)
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, dir: t.TempDir(), memory: transport.NewMemory()}
	var err error
	if c.ca, err = pki.LoadOrCreate(filepath.Join(c.dir, "ca")); err != nil {
		t.Fatal(err)
	}
	c.background("store", func(ctx context.Context) error {
		return store.Run(ctx, store.Config{Listener: c.memory.Listen("store"), Credentials: c.memory.ServerCredentials(), Memory: true})
	})
	c.background("scheduler", func(ctx context.Context) error {
		server := transport.NewServer(transport.ServerConfig{Credentials: c.memory.ServerCredentials(), Lifetime: ctx})
		schedulerv1.RegisterSchedulerServer(server, fakeScheduler{c: c})
		return transport.Serve(ctx, server, c.memory.Listen("scheduler"))
	})
	network, kubernetes := c.listen(), c.listen()
	c.kubernetes = kubernetes.Addr().String()
	started := make(chan struct{})
	c.background("apiserver", func(ctx context.Context) error {
		return apiserver.Run(ctx, apiserver.Config{
			Listener:    transport.Several(c.memory.Listen("apiserver"), network),
			Credentials: c.memory.ServerCredentialsAnd(c.serverTLS()),
			Store:       c.dial("store", identity.APIServer), Scheduler: c.dial("scheduler", identity.APIServer),
			KeyFile: filepath.Join(c.dir, "keys"), AdvertiseAddress: network.Addr().String(),
			Kubernetes: kubernetes, KubernetesTLS: c.pair("kubernetes", pki.Request{
				Identity: identity.Identity{Name: identity.APIServer}, DNSNames: []string{"localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1)}, Server: true,
			}),
			Started: func() { close(started) },
		})
	})
	select {
	case <-started:
	case <-time.After(patience):
		t.Fatal("the API server has not started")
	}
	c.config = c.configFor(network.Addr().String())
	c.admin = c.dial("apiserver", identity.Admin)
	return c
}

// background runs a service until the test ends.
func (c *cluster) background(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := run(ctx); err != nil {
			c.t.Errorf("%s: %v", name, err)
		}
	}()
	c.t.Cleanup(func() {
		cancel()
		<-ended
	})
}

func (c *cluster) listen() net.Listener {
	c.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.t.Fatal(err)
	}
	return l
}

func (c *cluster) dial(name, who string) *grpc.ClientConn {
	c.t.Helper()
	conn, err := c.memory.Dial(name, identity.Identity{Name: who, Groups: []string{identity.Masters}})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { conn.Close() })
	return conn
}

// pair issues certificates for one holder.
func (c *cluster) pair(name string, request pki.Request) *pki.KeyPair {
	c.t.Helper()
	pair, err := c.ca.Ensure(pki.FilesIn(c.dir, name), request)
	if err != nil {
		c.t.Error(err)
	}
	return pair
}

// serverTLS are the credentials of an API server.
func (c *cluster) serverTLS() credentials.TransportCredentials {
	return transport.TLSServer(c.pair("apiserver", pki.Request{
		Identity: identity.Identity{Name: identity.APIServer}, DNSNames: []string{"apiserver.dhow"}, Server: true,
	}))
}

func adminRequest() pki.Request {
	return pki.Request{Identity: identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}}, Client: true}
}

// configFor writes a configuration that names a server.
func (c *cluster) configFor(address string) string {
	c.t.Helper()
	c.pair("admin", adminRequest())
	file := filepath.Join(c.dir, strings.ReplaceAll(address, ":", "-")+".yaml")
	config := connect.Config{Servers: []string{address}, CertificateAuthority: "ca.crt", Certificate: "admin.crt", Key: "admin.key"}
	if err := config.Write(file); err != nil {
		c.t.Fatal(err)
	}
	return file
}

// output is what a command wrote. Waiting for it is safe while the command runs.
type output struct {
	mu      sync.Mutex
	changed *sync.Cond
	buffer  bytes.Buffer
}

func newOutput() *output {
	o := &output{}
	o.changed = sync.NewCond(&o.mu)
	return o
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.changed.Broadcast()
	return o.buffer.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buffer.String()
}

// await waits until the output holds a text.
func (o *output) await(t *testing.T, text string) {
	t.Helper()
	late := false
	timer := time.AfterFunc(patience, func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		late = true
		o.changed.Broadcast()
	})
	defer timer.Stop()
	o.mu.Lock()
	defer o.mu.Unlock()
	for !strings.Contains(o.buffer.String(), text) {
		if late {
			t.Fatalf("%q is not in the output:\n%s", text, o.buffer.String())
		}
		o.changed.Wait()
	}
}

// running is a command that was started.
type running struct {
	t        *testing.T
	out, err *output
	code     chan int
	cancel   context.CancelFunc
}

func (c *cluster) start(in io.Reader, args ...string) *running {
	c.t.Helper()
	return startWith(c.t, in, append([]string{"--config", c.config}, args...)...)
}

func startWith(t *testing.T, in io.Reader, args ...string) *running {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	r := &running{t: t, out: newOutput(), err: newOutput(), code: make(chan int, 1), cancel: cancel}
	go func() { r.code <- Main(ctx, args, Streams{In: in, Out: r.out, Err: r.err}) }()
	return r
}

// result is what became of a command.
type result struct {
	code     int
	out, err string
}

func (r *running) end() result { return result{<-r.code, r.out.String(), r.err.String()} }

// dhow runs a command to its end.
func (c *cluster) dhow(args ...string) result {
	c.t.Helper()
	return c.start(strings.NewReader(""), args...).end()
}

// ok runs a command that must succeed, and returns what it printed.
func (c *cluster) ok(args ...string) string {
	c.t.Helper()
	r := c.dhow(args...)
	if r.code != 0 {
		c.t.Fatalf("dhow %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out
}

// fails runs a command that must fail with exit code 1, say all of the wanted texts on standard error and no more than that it failed.
func (c *cluster) fails(args []string, wanted ...string) result {
	c.t.Helper()
	r := c.dhow(args...)
	if r.code != 1 {
		c.t.Errorf("dhow %s: exit code %d, not 1\n%s%s", strings.Join(args, " "), r.code, r.out, r.err)
	}
	for _, text := range wanted {
		if !strings.Contains(r.err, text) {
			c.t.Errorf("dhow %s: %q is not in:\n%s", strings.Join(args, " "), text, r.err)
		}
	}
	return r
}

// apply applies a manifest.
func (c *cluster) apply(manifest string, args ...string) result {
	c.t.Helper()
	return c.start(strings.NewReader(manifest), append([]string{"apply", "-f", "-"}, args...)...).end()
}

// applied applies a manifest that must be right.
func (c *cluster) applied(manifest string, args ...string) string {
	c.t.Helper()
	r := c.apply(manifest, args...)
	if r.code != 0 {
		c.t.Fatalf("apply: exit code %d\n%s%s", r.code, r.out, r.err)
	}
	return r.out
}

// file writes a file of the test.
func (c *cluster) file(name, content string) string {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		c.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// equal compares what a command printed with what it should have.
func equal(t *testing.T, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// fakeContainers answer log and exec in the place of an API server; all other calls go on to the real one.
type fakeContainers struct {
	log  func(*corev1.PodLogRequest, grpc.ServerStreamingServer[corev1.PodLogResponse]) error
	exec func(grpc.BidiStreamingServer[corev1.PodExecRequest, corev1.PodExecResponse]) error
	// watches gets, for each watch that has sent something, what ends it with an error.
	watches chan context.CancelCauseFunc
}

// withContainers makes the cluster's configuration name a server with fake containers.
func (c *cluster) withContainers(f *fakeContainers) {
	c.t.Helper()
	listener := c.listen()
	c.background("containers", func(ctx context.Context) error {
		server := transport.NewServer(transport.ServerConfig{
			Credentials: c.serverTLS(), Lifetime: ctx, Options: []grpc.ServerOption{grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
				switch method, _ := grpc.MethodFromServerStream(stream); method {
				case corev1.Pods_Log_FullMethodName:
					request := &corev1.PodLogRequest{}
					if err := stream.RecvMsg(request); err != nil {
						return err
					}
					return f.log(request, &grpc.GenericServerStream[corev1.PodLogRequest, corev1.PodLogResponse]{ServerStream: stream})
				case corev1.Pods_Exec_FullMethodName:
					return f.exec(&grpc.GenericServerStream[corev1.PodExecRequest, corev1.PodExecResponse]{ServerStream: stream})
				default:
					if !strings.HasSuffix(method, "/Watch") {
						return passOn(stream.Context(), c.admin, method, stream, func() {})
					}
					ctx, cancel := context.WithCancelCause(stream.Context())
					defer cancel(nil)
					begun := sync.OnceFunc(func() {
						if f.watches != nil {
							f.watches <- cancel
						}
					})
					if err := passOn(ctx, c.admin, method, stream, begun); ctx.Err() == nil {
						return err
					}
					return context.Cause(ctx)
				}
			})},
		})
		return transport.Serve(ctx, server, listener)
	})
	c.config = c.configFor(listener.Addr().String())
}

// passOn answers a call with one request by another server's answers, and tells of each.
func passOn(ctx context.Context, conn *grpc.ClientConn, method string, down grpc.ServerStream, sent func()) error {
	up, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return err
	}
	var request rawcodec.Frame
	if err := down.RecvMsg(&request); err != nil {
		return err
	}
	if err := up.SendMsg(&request); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if err := up.CloseSend(); err != nil {
		return err
	}
	for {
		var answer rawcodec.Frame
		if err := up.RecvMsg(&answer); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := down.SendMsg(&answer); err != nil {
			return err
		}
		sent()
	}
}
