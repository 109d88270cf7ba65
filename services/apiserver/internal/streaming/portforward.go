package streaming

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	kcorev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	constants "k8s.io/apimachinery/pkg/util/portforward"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/apiserver/internal/grpcapi"
	"dhow.dev/services/apiserver/internal/request"
)

const (
	// pairTimeout is how long a client may take to open the second stream of a connection.
	pairTimeout = 30 * time.Second
	// idleTimeout ends a forward that nobody uses, as Kubernetes does.
	idleTimeout = 4 * time.Hour
	// maxPorts bounds the ports of one WebSocket.
	maxPorts = 100
)

// portForward serves pods/portforward.
func (s *Streams) portForward(w http.ResponseWriter, r *http.Request, info *request.Info) error {
	if err := s.mayCreate(r, info); err != nil {
		return err
	}
	pod, err := s.pod(r.Context(), info.Namespace, info.Name)
	if err != nil {
		return err
	}
	to := place(pod)
	if to.Node == "" {
		return noHost(pod)
	}
	w, r, cancel, err := upgradable(w, r)
	if err != nil {
		return err
	}
	defer cancel()
	f := &forward{streams: s, pod: to, ctx: r.Context(), pairs: map[string]*pair{}}
	switch {
	case wsstream.IsWebSocketRequestWithTunnelingProtocol(r):
		return f.tunnelled(w, r)
	case wsstream.IsWebSocketRequest(r):
		return f.socket(w, r, info)
	}
	if _, err := httpstream.Handshake(r, w, []string{constants.PortForwardV1Name}); err != nil {
		return nil // told
	}
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, f.accept)
	if conn != nil {
		f.serve(conn)
	}
	return nil
}

// forward is one upgraded connection of a client, on which it opens any number of connections to ports of a pod.
type forward struct {
	streams *Streams
	pod     grpcapi.Pod
	ctx     context.Context

	mu    sync.Mutex
	pairs map[string]*pair
	group sync.WaitGroup
	conn  httpstream.Connection
}

// pair are the two streams of one connection to a port.
type pair struct {
	data, errs httpstream.Stream
	timeout    *time.Timer
}

// tunnelled serves SPDY inside a WebSocket.
func (f *forward) tunnelled(w http.ResponseWriter, r *http.Request) error {
	upgrader := websocket.Upgrader{
		// Who the caller is does not rest on cookies, so that the page's origin says nothing.
		CheckOrigin:  func(*http.Request) bool { return true },
		Subprotocols: []string{constants.WebsocketsSPDYTunnelingPortForwardV1},
		Error: func(w http.ResponseWriter, _ *http.Request, code int, reason error) {
			http.Error(w, reason.Error(), code)
		},
	}
	socket, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return nil // told
	}
	if socket.Subprotocol() != constants.WebsocketsSPDYTunnelingPortForwardV1 {
		_ = socket.Close()
		return nil
	}
	conn, err := spdy.NewServerConnection(portforward.NewTunnelingConnection("server", socket), f.accept)
	if err != nil {
		_ = socket.Close()
		return nil
	}
	f.serve(conn)
	return nil
}

// serve waits for the end of the connection.
func (f *forward) serve(conn httpstream.Connection) {
	conn.SetIdleTimeout(idleTimeout)
	f.mu.Lock()
	f.conn = conn
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	select {
	case <-conn.CloseChan():
	case <-ctx.Done():
	}
	_ = conn.Close()
	f.mu.Lock()
	for _, p := range f.pairs {
		p.timeout.Stop()
	}
	f.mu.Unlock()
}

// accept takes a stream that the client opens, and starts when it has both of a pair.
func (f *forward) accept(stream httpstream.Stream, replied <-chan struct{}) error {
	header := stream.Headers()
	if port := header.Get(kcorev1.PortHeader); port == "" {
		return fmt.Errorf("%q header is required", kcorev1.PortHeader)
	} else if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("unable to parse %q as a port: give 1 to 65535", port)
	}
	kind := header.Get(kcorev1.StreamType)
	if kind != kcorev1.StreamTypeData && kind != kcorev1.StreamTypeError {
		return fmt.Errorf("invalid stream type %q", kind)
	}
	id := header.Get(kcorev1.PortForwardRequestIDHeader)
	if id == "" {
		// Old clients number nothing: the error stream comes first, the data stream is the next of the client's.
		number := stream.Identifier()
		if kind == kcorev1.StreamTypeData {
			number -= 2
		}
		id = strconv.Itoa(int(number))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pairs[id]
	if p == nil {
		p = &pair{}
		p.timeout = time.AfterFunc(pairTimeout, func() { f.drop(id) })
		f.pairs[id] = p
	}
	switch {
	case kind == kcorev1.StreamTypeData && p.data == nil:
		p.data = stream
	case kind == kcorev1.StreamTypeError && p.errs == nil:
		p.errs = stream
	default:
		return fmt.Errorf("%s stream of request %s was opened already", kind, id)
	}
	if p.data == nil || p.errs == nil {
		return nil
	}
	p.timeout.Stop()
	delete(f.pairs, id)
	go func() {
		<-replied
		f.connect(p)
	}()
	return nil
}

// drop gives up on a pair that stayed incomplete.
func (f *forward) drop(id string) {
	f.mu.Lock()
	p := f.pairs[id]
	delete(f.pairs, id)
	f.mu.Unlock()
	if p == nil {
		return
	}
	for _, stream := range []httpstream.Stream{p.data, p.errs} {
		if stream != nil {
			_ = stream.Reset()
		}
	}
}

// connect serves one connection to a port.
func (f *forward) connect(p *pair) {
	port, err := strconv.ParseUint(p.data.Headers().Get(kcorev1.PortHeader), 10, 16)
	if err == nil {
		err = f.join(p.data, int32(port))
	}
	if err != nil {
		fmt.Fprintf(p.errs, "error forwarding port %d to pod %s, uid %s: %s", port, f.pod.Name, f.pod.UID, message(err))
	}
	_ = p.errs.Close()
	_ = p.data.Close()
	f.mu.Lock()
	conn := f.conn
	f.mu.Unlock()
	if conn != nil {
		conn.RemoveStreams(p.data, p.errs)
	}
}

// join connects to a port and copies both ways until both ends are silent, or the port's end is.
func (f *forward) join(client io.ReadWriter, port int32) error {
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	start := corev1.PodPortForwardRequest_Start_builder{Namespace: f.pod.Namespace, Name: f.pod.Name, Port: port}.Build()
	remote, err := f.streams.config.Tunnels.Dial(ctx, f.pod, start)
	if err != nil {
		return err
	}
	defer remote.Close()
	go func() {
		_, _ = io.Copy(remote, client) // what is wrong with the port is seen by who reads it
		_ = closeWrite(remote)
	}()
	_, err = io.Copy(client, remote)
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrClosedPipe) || ctx.Err() != nil {
		return nil
	}
	return err
}

// socket serves a WebSocket with two channels for each port of the query: data, and errors.
func (f *forward) socket(w http.ResponseWriter, r *http.Request, info *request.Info) error {
	var ports []uint16
	for _, text := range strings.Split(strings.Join(info.Query["ports"], ","), ",") {
		n, err := strconv.ParseUint(strings.TrimSpace(text), 10, 16)
		if err != nil || n == 0 {
			return apierrors.NewBadRequest(fmt.Sprintf("ports: %q is no port: give 1 to 65535, at least one", text))
		}
		ports = append(ports, uint16(n))
	}
	if len(ports) > maxPorts {
		return apierrors.NewBadRequest(fmt.Sprintf("ports: at most %d can be forwarded on one connection", maxPorts))
	}
	kinds := make([]wsstream.ChannelType, 0, 2*len(ports))
	for range ports {
		kinds = append(kinds, wsstream.ReadWriteChannel, wsstream.WriteChannel)
	}
	const binaryV4, base64V4 = "v4.channel.k8s.io", v4Base64
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		"": {Binary: true, Channels: kinds}, binaryV4: {Binary: true, Channels: kinds}, base64V4: {Binary: false, Channels: kinds},
	})
	conn.SetIdleTimeout(idleTimeout)
	_, channels, err := conn.Open(w, r.WithContext(klog.NewContext(r.Context(), quiet())))
	if err != nil {
		return nil // told
	}
	defer conn.Close()
	for i, port := range ports {
		data, errs := channels[2*i], channels[2*i+1]
		// Each channel begins with its port.
		number := binary.LittleEndian.AppendUint16(nil, port)
		for _, channel := range []io.Writer{data, errs} {
			if _, err := channel.Write(number); err != nil {
				return nil // the client is gone
			}
		}
		f.group.Go(func() {
			if err := f.join(data, int32(port)); err != nil {
				fmt.Fprintf(errs, "error forwarding port %d to pod %s, uid %s: %s", port, f.pod.Name, f.pod.UID, message(err))
			}
			_ = data.Close()
			_ = errs.Close()
		})
	}
	f.group.Wait()
	return nil
}
