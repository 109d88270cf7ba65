package streaming_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	kcorev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/grpcapi"
	"dhow.dev/services/apiserver/internal/request"
	"dhow.dev/services/apiserver/internal/streaming"
)

const patience = 30 * time.Second

// node is a node whose containers run what a test says.
type node struct {
	t *testing.T

	mu sync.Mutex
	// seen are the requests that arrived, as text.
	seen []string
	// backend is what listens on the ports of pods.
	backend string
}

func (n *node) note(format string, args ...any) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.seen = append(n.seen, fmt.Sprintf(format, args...))
}

func (n *node) has(text string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Contains(n.seen, text)
}

// Log implements grpcapi.Tunnels.
func (n *node) Log(_ context.Context, pod grpcapi.Pod, q *corev1.PodLogRequest, send func(*corev1.PodLogResponse) error) error {
	if q.GetPrevious() {
		return status.Errorf(codes.InvalidArgument, "previous terminated container %q in pod %q not found", q.GetContainer(), pod.Name)
	}
	n.note("log %s tail=%d/%t follow=%t", q.GetContainer(), q.GetTailLines(), q.HasTailLines(), q.GetFollow())
	n.note("log stream=%s since=%d limit=%d", q.GetStream(), q.GetSinceTime().GetSeconds(), q.GetLimitBytes())
	return errors.Join(send(corev1.PodLogResponse_builder{Data: []byte("one\n")}.Build()), send(corev1.PodLogResponse_builder{Data: []byte("two\n")}.Build()))
}

// Exec implements grpcapi.Tunnels. `cat` answers its input until that ends; `size` answers the first terminal size; `false` fails; `wait` waits.
func (n *node) Exec(ctx context.Context, _ grpcapi.Pod, start *corev1.PodExecRequest_Start, receive func() (*corev1.PodExecRequest, error), send func(*corev1.PodExecResponse) error) error {
	n.note("exec %v", start.GetCommand())
	out := func(text string) error { return send(corev1.PodExecResponse_builder{Stdout: []byte(text)}.Build()) }
	code := int32(0)
	switch start.GetCommand()[0] {
	case "cat":
		for {
			input, err := receive()
			if err != nil {
				return err
			}
			if input.GetCloseStdin() {
				break
			}
			if err := out(string(input.GetStdin())); err != nil {
				return err
			}
		}
		if err := send(corev1.PodExecResponse_builder{Stderr: []byte("end of input")}.Build()); err != nil {
			return err
		}
	case "size":
		for {
			input, err := receive()
			if err != nil {
				return err
			}
			if r := input.GetResize(); r != nil {
				if err := out(fmt.Sprintf("%dx%d", r.GetWidth(), r.GetHeight())); err != nil {
					return err
				}
				break
			}
		}
	case "wait":
		<-ctx.Done()
		n.note("gone")
		return ctx.Err()
	case "broken":
		return status.Error(codes.FailedPrecondition, "container is not running")
	default:
		code = 7
	}
	return send(corev1.PodExecResponse_builder{ExitCode: &code}.Build())
}

// AttachTo implements grpcapi.Tunnels: it answers one piece of input.
func (n *node) AttachTo(_ context.Context, _ grpcapi.Pod, start *corev1.PodAttachRequest_Start, receive func() (*corev1.PodAttachRequest, error), send func(*corev1.PodAttachResponse) error) error {
	n.note("attach %s tty=%t", start.GetContainer(), start.GetTty())
	for {
		input, err := receive()
		if err != nil {
			return err
		}
		if len(input.GetStdin()) > 0 {
			return send(corev1.PodAttachResponse_builder{Stdout: append([]byte("got "), input.GetStdin()...)}.Build())
		}
	}
}

// Dial implements grpcapi.Tunnels.
func (n *node) Dial(ctx context.Context, _ grpcapi.Pod, start *corev1.PodPortForwardRequest_Start) (net.Conn, error) {
	n.note("dial %d by address %t", start.GetPort(), start.GetByAddress())
	if start.GetPort() == 9999 {
		return nil, status.Error(codes.Unavailable, "connection refused")
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", n.backend)
}

// Read implements streaming.Objects.
func (n *node) Read(_ context.Context, r *resource.Resource, namespace, name string, into proto.Message) error {
	container := func(name string) *corev1.Container { return corev1.Container_builder{Name: &name}.Build() }
	meta := metav1.ObjectMeta_builder{Namespace: &namespace, Name: &name, Uid: proto.String("uid-of-" + name)}.Build()
	spec := corev1.PodSpec_builder{NodeName: proto.String("n1"), Containers: []*corev1.Container{container("main")}}.Build()
	state := corev1.PodStatus_builder{PodIp: proto.String("10.244.0.9"), Phase: proto.String("Running")}.Build()
	switch o := into.(type) {
	case *corev1.Pod:
		switch name {
		case "two":
			spec.SetContainers(append(spec.GetContainers(), container("side")))
			spec.SetInitContainers([]*corev1.Container{container("setup")})
		case "pending":
			spec.ClearNodeName()
		case "done":
			state.SetPhase("Succeeded")
		case "absent":
			return apierrors.NewNotFound(r.GroupResource(), name)
		}
		o.SetMetadata(meta)
		o.SetSpec(spec)
		o.SetStatus(state)
	case *corev1.Node:
		o.SetMetadata(meta)
		ready := map[bool]string{true: "True", false: "Unknown"}[name == "n1"]
		o.SetStatus(corev1.NodeStatus_builder{Conditions: []*corev1.NodeCondition{corev1.NodeCondition_builder{Type: proto.String("Ready"), Status: &ready}.Build()}}.Build())
	case *corev1.Service:
		o.SetMetadata(meta)
		o.SetSpec(corev1.ServiceSpec_builder{Ports: []*corev1.ServicePort{corev1.ServicePort_builder{Name: proto.String("web"), Port: proto.Int32(80)}.Build()}}.Build())
	}
	return nil
}

// Slices implements streaming.Objects.
func (n *node) Slices(_, service string) ([]*discoveryv1.EndpointSlice, error) {
	if service == "empty" {
		return nil, nil
	}
	if address := map[string]string{"manual": "192.0.2.7", "local": "127.0.0.1"}[service]; address != "" {
		return []*discoveryv1.EndpointSlice{discoveryv1.EndpointSlice_builder{
			Ports:     []*discoveryv1.EndpointPort{discoveryv1.EndpointPort_builder{Name: proto.String(""), Port: proto.Int32(8081)}.Build()},
			Endpoints: []*discoveryv1.Endpoint{discoveryv1.Endpoint_builder{Addresses: []string{address}}.Build()},
		}.Build()}, nil
	}
	one := func(pod string, ready bool) *discoveryv1.Endpoint {
		return discoveryv1.Endpoint_builder{
			Addresses: []string{"10.244.0.9"}, Conditions: discoveryv1.EndpointConditions_builder{Ready: &ready}.Build(),
			TargetRef: corev1.ObjectReference_builder{Kind: proto.String("Pod"), Name: &pod}.Build(),
		}.Build()
	}
	return []*discoveryv1.EndpointSlice{discoveryv1.EndpointSlice_builder{
		Ports:     []*discoveryv1.EndpointPort{discoveryv1.EndpointPort_builder{Name: proto.String("web"), Port: proto.Int32(8080)}.Build()},
		Endpoints: []*discoveryv1.Endpoint{one("absent", true), one("p", true), one("unready", false)},
	}.Build()}, nil
}

// OnNode implements streaming.Objects.
func (n *node) OnNode(node string) (*kcorev1.PodList, error) {
	pod := func(name string, phase kcorev1.PodPhase) kcorev1.Pod {
		return kcorev1.Pod{ObjectMeta: kmetav1.ObjectMeta{Name: name + "-on-" + node}, Status: kcorev1.PodStatus{Phase: phase}}
	}
	return &kcorev1.PodList{Items: []kcorev1.Pod{pod("running", kcorev1.PodRunning), pod("done", kcorev1.PodSucceeded)}}, nil
}

// world is a door in front of the node.
func world(t *testing.T) (*node, *rest.Config) {
	t.Helper()
	n := &node{t: t}
	outside := func(ctx context.Context, network, address string) (net.Conn, error) {
		n.note("outside %s", address)
		return (&net.Dialer{}).DialContext(ctx, network, n.backend)
	}
	streams, err := streaming.New(streaming.Config{Objects: n, Tunnels: n, Outside: outside, Usage: func(context.Context) map[string]*nodev1.NodeUsage {
		return map[string]*nodev1.NodeUsage{"n1": nodev1.NodeUsage_builder{
			Node: nodev1.Usage_builder{CpuNanocores: 5, MemoryBytes: 6}.Build(),
			Pods: []*nodev1.PodUsage{nodev1.PodUsage_builder{Namespace: "default", Name: "p", Uid: "u", Volumes: []*nodev1.PodUsage_Volume{nodev1.PodUsage_Volume_builder{Name: "v", Claim: "data", CapacityBytes: proto.Int64(9), Abnormal: proto.Bool(true)}.Build()}, Containers: []*nodev1.PodUsage_Container{
				nodev1.PodUsage_Container_builder{Name: "main", Usage: nodev1.Usage_builder{CpuNanocores: 3, MemoryBytes: 4}.Build()}.Build(),
			}}.Build()},
		}.Build()}
	}})
	if err != nil {
		t.Fatal(err)
	}
	handlers := streams.Handlers()
	door := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		info, err := request.Parse(r)
		if err != nil {
			t.Error(err)
			return
		}
		h := handlers[streaming.Subresource{Resource: info.Resource, Name: info.Subresource}]
		if h == nil {
			http.NotFound(w, r)
			return
		}
		h.ServeHTTP(w, r.WithContext(request.NewContext(r.Context(), info)))
	}))
	t.Cleanup(door.Close)
	return n, &rest.Config{Host: door.URL}
}

func at(c *rest.Config, path string) *url.URL {
	u, err := url.Parse(c.Host + "/api/v1/namespaces/default/" + path)
	if err != nil {
		panic(err)
	}
	return u
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

// executors are the ways in which clients run commands.
func executors(t *testing.T, c *rest.Config, path string) map[string]remotecommand.Executor {
	t.Helper()
	all := map[string]remotecommand.Executor{}
	for _, protocol := range []string{"v5.channel.k8s.io", "v4.channel.k8s.io"} {
		socket, err := remotecommand.NewWebSocketExecutorForProtocols(c, "GET", at(c, path).String(), protocol)
		if err != nil {
			t.Fatal(err)
		}
		all["websocket "+protocol] = socket
	}
	spdy, err := remotecommand.NewSPDYExecutor(c, "POST", at(c, path))
	if err != nil {
		t.Fatal(err)
	}
	all["spdy"] = spdy
	return all
}

func TestInputOutputAndItsEnd(t *testing.T) {
	_, c := world(t)
	text := strings.Repeat("a long line of text\n", 20000)
	for name, executor := range executors(t, c, "pods/p/exec?command=cat&stdin=1&stdout=1&stderr=1") {
		if strings.HasSuffix(name, "v4.channel.k8s.io") {
			continue // has no way to say that the input ends
		}
		t.Run(name, func(t *testing.T) {
			var out, errs bytes.Buffer
			if err := executor.StreamWithContext(within(t), remotecommand.StreamOptions{Stdin: strings.NewReader(text), Stdout: &out, Stderr: &errs}); err != nil {
				t.Fatal(err)
			}
			if out.String() != text || errs.String() != "end of input" {
				t.Errorf("%d bytes came back of %d, errors %q", out.Len(), len(text), errs.String())
			}
		})
	}
}

func TestExitCodes(t *testing.T) {
	_, c := world(t)
	for name, executor := range executors(t, c, "pods/p/exec?command=false&stdout=1&stderr=1") {
		t.Run(name, func(t *testing.T) {
			err := executor.StreamWithContext(within(t), remotecommand.StreamOptions{Stdout: io.Discard, Stderr: io.Discard})
			var exit exec.CodeExitError
			if !errors.As(err, &exit) || exit.Code != 7 {
				t.Errorf("%v", err)
			}
		})
	}
	for name, executor := range executors(t, c, "pods/p/exec?command=broken&stdout=1") {
		t.Run("broken "+name, func(t *testing.T) {
			err := executor.StreamWithContext(within(t), remotecommand.StreamOptions{Stdout: io.Discard})
			if err == nil || !strings.Contains(err.Error(), "container is not running") {
				t.Errorf("%v", err)
			}
		})
	}
}

// oneSize is a terminal that has one size.
type oneSize struct {
	sizes chan remotecommand.TerminalSize
}

func (o oneSize) Next() *remotecommand.TerminalSize {
	size, ok := <-o.sizes
	if !ok {
		return nil
	}
	return &size
}

func TestTerminalSizes(t *testing.T) {
	_, c := world(t)
	for name, executor := range executors(t, c, "pods/p/exec?command=size&stdin=true&stdout=true&tty=true") {
		t.Run(name, func(t *testing.T) {
			sizes := make(chan remotecommand.TerminalSize, 1)
			sizes <- remotecommand.TerminalSize{Width: 132, Height: 43}
			defer close(sizes)
			stdin, feed := io.Pipe()
			defer feed.Close()
			var out bytes.Buffer
			err := executor.StreamWithContext(within(t), remotecommand.StreamOptions{Stdin: stdin, Stdout: &out, Tty: true, TerminalSizeQueue: oneSize{sizes}})
			if err != nil || out.String() != "132x43" {
				t.Errorf("%q %v", out.String(), err)
			}
		})
	}
}

func TestAttach(t *testing.T) {
	n, c := world(t)
	for name, executor := range executors(t, c, "pods/p/attach?stdin=1&stdout=1") {
		t.Run(name, func(t *testing.T) {
			stdin, feed := io.Pipe()
			defer feed.Close()
			go func() { _, _ = feed.Write([]byte("hello")) }()
			var out bytes.Buffer
			if err := executor.StreamWithContext(within(t), remotecommand.StreamOptions{Stdin: stdin, Stdout: &out}); err != nil || out.String() != "got hello" {
				t.Errorf("%q %v", out.String(), err)
			}
		})
	}
	if !n.has("attach main tty=false") {
		t.Error(n.seen)
	}
}

// TestAClientThatLeaves ends what runs for it.
func TestAClientThatLeaves(t *testing.T) {
	for _, name := range []string{"websocket v5.channel.k8s.io", "spdy"} {
		t.Run(name, func(t *testing.T) {
			n, c := world(t)
			executor := executors(t, c, "pods/p/exec?command=wait&stdout=1")[name]
			ctx, cancel := context.WithCancel(within(t))
			left := make(chan error, 1)
			go func() { left <- executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: io.Discard}) }()
			await(t, func() bool { return n.has("exec [wait]") })
			cancel()
			<-left
			await(t, func() bool { return n.has("gone") })
		})
	}
}

func await(t *testing.T, f func() bool) {
	t.Helper()
	ctx := within(t)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal("it does not happen")
		}
	}
}

func TestRefusals(t *testing.T) {
	_, c := world(t)
	for path, want := range map[string]struct {
		code int
		text string
	}{
		"pods/p/exec?command=cat&stdout=1":                         {400, "Upgrade request required"},
		"pods/p/exec?stdout=1":                                     {400, "you must specify at least one command for the container"},
		"pods/p/exec?command=cat":                                  {400, "you must specify at least 1 of stdin, stdout, stderr"},
		"pods/two/exec?command=cat&stdout=1":                       {400, "a container name must be specified for pod two, choose one of: [main side] or one of the init containers: [setup]"},
		"pods/p/exec?command=cat&stdout=1&container=no":            {400, "container no is not valid for pod p"},
		"pods/done/exec?command=cat&stdout=1":                      {400, "cannot exec into or attach to a container in a completed pod; current phase is Succeeded"},
		"pods/pending/attach?stdout=1":                             {400, "pod pending does not have a host assigned"},
		"pods/absent/log":                                          {404, `pods "absent" not found`},
		"pods/p/log?tailLines=-1":                                  {422, "must be greater than or equal to 0"},
		"pods/p/log?tailLines=x":                                   {400, "tailLines"},
		"pods/p/log?sinceSeconds=1&sinceTime=2026-01-02T03:04:05Z": {422, "at most one of"},
		"pods/p/log?stream=Stdin":                                  {422, `supported values: "All", "Stderr", "Stdout"`},
		"pods/p/log?stream=Stderr&tailLines=1":                     {422, "mutually exclusive"},
		"services/local/proxy/":                                    {400, "address not allowed"},
		"pods/p/log?previous=true":                                 {400, `previous terminated container "main" in pod "p" not found`},
		"pods/p:http/proxy/":                                       {400, "give its number"},
		"services/empty/proxy/":                                    {503, `no endpoints available for service "empty"`},
		"pods/p:9999/proxy/":                                       {503, "connection refused"},
	} {
		t.Run(path, func(t *testing.T) {
			answer, err := http.Get(at(c, path).String())
			if err != nil {
				t.Fatal(err)
			}
			defer answer.Body.Close()
			var s kmetav1.Status
			if err := json.NewDecoder(answer.Body).Decode(&s); err != nil {
				t.Fatal(err)
			}
			if answer.StatusCode != want.code || !strings.Contains(s.Message, want.text) {
				t.Errorf("%d %q", answer.StatusCode, s.Message)
			}
		})
	}
}

func TestLogs(t *testing.T) {
	n, c := world(t)
	answer, err := http.Get(at(c, "pods/p/log?tailLines=0&follow=true").String())
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || string(text) != "one\ntwo\n" || answer.Header.Get("Content-Type") != "text/plain" {
		t.Errorf("%q %v %v", text, err, answer.Header)
	}
	if !n.has("log main tail=0/true follow=true") {
		t.Error(n.seen)
	}
	// Kubernetes' conformance suite reads logs over a WebSocket.
	config, err := websocket.NewConfig("ws"+strings.TrimPrefix(at(c, "pods/p/log?container=main").String(), "http"), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"binary.k8s.io"}
	socket, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if text, err = io.ReadAll(socket); err != nil || string(text) != "one\ntwo\n" {
		t.Errorf("%q %v", text, err)
	}
}

// TestOldWebSockets runs a command as Kubernetes' conformance suite does: with the first protocol.
func TestOldWebSockets(t *testing.T) {
	_, c := world(t)
	config, err := websocket.NewConfig("ws"+strings.TrimPrefix(at(c, "pods/p/exec?command=false&stdout=1&stderr=1").String(), "http"), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"channel.k8s.io"}
	socket, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	var all []string
	for {
		var message []byte
		if err := websocket.Message.Receive(socket, &message); err != nil {
			break
		}
		all = append(all, string(message))
	}
	if !slices.Contains(all, "\x03command terminated with non-zero exit code: exit status 7") {
		t.Errorf("%q", all)
	}
}

// echo answers a TCP connection with what it said, once it has said all.
func echo(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
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
				line, _ := bufio.NewReader(conn).ReadString('\n')
				_, _ = io.WriteString(conn, "you said "+line)
			}()
		}
	}()
	return listener.Addr().String()
}

func TestPortForward(t *testing.T) {
	transport := func(t *testing.T, c *rest.Config) httpstream.Dialer {
		rt, upgrader, err := spdy.RoundTripperFor(c)
		if err != nil {
			t.Fatal(err)
		}
		return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: rt}, "POST", at(c, "pods/p/portforward"))
	}
	tunnel := func(t *testing.T, c *rest.Config) httpstream.Dialer {
		d, err := portforward.NewSPDYOverWebsocketDialerForStreaming(at(c, "pods/p/portforward"), c)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	for name, dialer := range map[string]func(*testing.T, *rest.Config) httpstream.Dialer{"spdy": transport, "tunnelled": tunnel} {
		t.Run(name, func(t *testing.T) {
			n, c := world(t)
			n.backend = echo(t)
			stop, ready := make(chan struct{}), make(chan struct{})
			f, err := portforward.NewForStreaming(dialer(t, c), []string{"0:80", "0:9999"}, stop, ready, io.Discard, io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 1)
			go func() { done <- f.ForwardPorts() }()
			select {
			case <-ready:
			case err := <-done:
				t.Fatal(err)
			}
			ports, err := f.GetPorts()
			if err != nil {
				t.Fatal(err)
			}
			for i := range 3 {
				conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprintf(conn, "hello %d\n", i)
				text, err := io.ReadAll(conn)
				if want := fmt.Sprintf("you said hello %d\n", i); err != nil || string(text) != want {
					t.Errorf("%q %v", text, err)
				}
				conn.Close()
			}
			refused, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[1].Local))
			if err != nil {
				t.Fatal(err)
			}
			_, _ = io.ReadAll(refused)
			refused.Close()
			if !n.has("dial 9999 by address false") {
				t.Error(n.seen)
			}
			close(stop)
			<-done
		})
	}
}

// TestPortForwardChannels speaks the protocol with two channels for each port.
func TestPortForwardChannels(t *testing.T) {
	n, c := world(t)
	n.backend = echo(t)
	config, err := websocket.NewConfig("ws"+strings.TrimPrefix(at(c, "pods/p/portforward?ports=80").String(), "http"), "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = []string{"v4.channel.k8s.io"}
	socket, err := websocket.DialConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if err := websocket.Message.Send(socket, []byte("\x00hello\n")); err != nil {
		t.Fatal(err)
	}
	all := map[byte]string{}
	for {
		var message []byte
		if err := websocket.Message.Receive(socket, &message); err != nil {
			break
		}
		if len(message) > 0 {
			all[message[0]] += string(message[1:])
		}
	}
	if all[0] != "\x50\x00you said hello\n" || all[1] != "\x50\x00" {
		t.Errorf("%q", all)
	}
}

func TestProxy(t *testing.T) {
	n, c := world(t)
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/redirect":
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		case "/page":
			w.Header().Set("Content-Type", "text/html")
			fmt.Fprint(w, `<a href="/next">next</a>`)
		case "/socket":
			websocket.Handler(func(ws *websocket.Conn) { _, _ = io.Copy(ws, ws) }).ServeHTTP(w, r)
		default:
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s %s auth=%q", r.Method, r.URL, body, r.Header.Get("Authorization"))
		}
	}))
	defer backend.Close()
	n.backend = backend.Listener.Addr().String()
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	get := func(method, path, body string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(within(t), method, at(c, path).String(), strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer secret")
		answer, err := client.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { answer.Body.Close() })
		return answer
	}
	for _, path := range []string{"pods/p/proxy/a/b?q=1", "pods/http:p:8080/proxy/a/b?q=1", "services/s:web/proxy/a/b?q=1", "services/s:80/proxy/a/b?q=1"} {
		answer := get("POST", path, "body")
		text, err := io.ReadAll(answer.Body)
		if want := `POST /a/b?q=1 body auth=""`; err != nil || string(text) != want {
			t.Errorf("%s: %q %v", path, text, err)
		}
	}
	if !n.has("dial 8080 by address true") {
		t.Error(n.seen)
	}
	if answer := get("GET", "pods/p/proxy", ""); answer.StatusCode != http.StatusMovedPermanently || !strings.HasSuffix(answer.Header.Get("Location"), "/pods/p/proxy/") {
		t.Errorf("%d %v", answer.StatusCode, answer.Header)
	}
	if answer := get("GET", "pods/p/proxy/redirect", ""); answer.Header.Get("Location") != "/api/v1/namespaces/default/pods/p/proxy/elsewhere" {
		t.Errorf("%d %v", answer.StatusCode, answer.Header)
	}
	page, err := io.ReadAll(get("GET", "services/s:web/proxy/page", "").Body)
	if err != nil || !strings.Contains(string(page), "/api/v1/namespaces/default/services/s:web/proxy/next") {
		t.Errorf("%q %v", page, err)
	}
	socket, err := websocket.Dial("ws"+strings.TrimPrefix(at(c, "pods/p/proxy/socket").String(), "http"), "", "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	var echoed string
	if err := errors.Join(websocket.Message.Send(socket, "through"), websocket.Message.Receive(socket, &echoed)); err != nil || echoed != "through" {
		t.Errorf("%q %v", echoed, err)
	}
}
