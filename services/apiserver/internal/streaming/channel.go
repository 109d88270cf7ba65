package streaming

import (
	"net/http"
	"slices"
	"time"

	kcorev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/remotecommand"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// v4Base64 is for clients that have no binary messages.
const v4Base64 = "v4.base64.channel.k8s.io"

// quiet keeps the streaming library's own log off: what matters is returned.
func quiet() klog.Logger { return klog.Logger{} }

// open upgrades a connection to the streams of a command. gone is called when the client has left. It returns nil when it has told the client what is wrong.
func open(w http.ResponseWriter, r *http.Request, o options, gone func()) (*channels, error) {
	if wsstream.IsWebSocketRequest(r) {
		return openSocket(w, r, o)
	}
	return openSPDY(w, r, o, gone)
}

// openSocket upgrades to a WebSocket, whose messages begin with the number of their channel.
func openSocket(w http.ResponseWriter, r *http.Request, o options) (*channels, error) {
	kinds := []wsstream.ChannelType{
		remotecommand.StreamStdIn:  channelType(o.stdin, wsstream.ReadChannel),
		remotecommand.StreamStdOut: channelType(o.stdout, wsstream.WriteChannel),
		remotecommand.StreamStdErr: channelType(o.stderr, wsstream.WriteChannel),
		remotecommand.StreamErr:    wsstream.WriteChannel,
		remotecommand.StreamResize: wsstream.ReadChannel,
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		"":                                      {Binary: true, Channels: kinds},
		wsstream.ChannelWebSocketProtocol:       {Binary: true, Channels: kinds},
		wsstream.Base64ChannelWebSocketProtocol: {Binary: false, Channels: kinds},
		remotecommand.StreamProtocolV4Name:      {Binary: true, Channels: kinds},
		v4Base64:                                {Binary: false, Channels: kinds},
		remotecommand.StreamProtocolV5Name:      {Binary: true, Channels: kinds},
	})
	protocol, streams, err := conn.Open(w, r.WithContext(klog.NewContext(r.Context(), quiet())))
	if err != nil {
		return nil, nil // the library has answered
	}
	// What the client sees first: the connection is there.
	switch protocol {
	case wsstream.Base64ChannelWebSocketProtocol, v4Base64:
	default:
		if o.stdout {
			_, _ = streams[remotecommand.StreamStdOut].Write(nil)
		} else if o.stderr {
			_, _ = streams[remotecommand.StreamStdErr].Write(nil)
		}
	}
	c := &channels{outcome: streams[remotecommand.StreamErr], close: func() { _ = conn.Close() }}
	c.verbose = protocol == remotecommand.StreamProtocolV4Name || protocol == v4Base64 || protocol == remotecommand.StreamProtocolV5Name
	if o.stdin {
		c.stdin = streams[remotecommand.StreamStdIn]
	}
	if o.stdout {
		c.stdout = streams[remotecommand.StreamStdOut]
	}
	if o.stderr {
		c.stderr = streams[remotecommand.StreamStdErr]
	}
	if o.tty {
		c.resize = streams[remotecommand.StreamResize]
	}
	return c, nil
}

func channelType(wanted bool, kind wsstream.ChannelType) wsstream.ChannelType {
	if wanted {
		return kind
	}
	return wsstream.IgnoreChannel
}

// incoming is a stream that the client has opened.
type incoming struct {
	httpstream.Stream
	replied <-chan struct{}
}

// openSPDY upgrades to SPDY, of which the client opens a stream for each purpose. gone is called when the client has left, which SPDY may say before its
// connection ends.
func openSPDY(w http.ResponseWriter, r *http.Request, o options, gone func()) (*channels, error) {
	protocol := remotecommand.StreamProtocolV1Name
	if r.Header.Get(httpstream.HeaderProtocolVersion) != "" {
		var err error
		if protocol, err = httpstream.Handshake(r, w, remotecommand.SupportedStreamingProtocols); err != nil {
			return nil, nil // told
		}
	}
	arrived := make(chan incoming)
	conn := spdy.NewResponseUpgrader().UpgradeResponse(w, r, func(stream httpstream.Stream, replied <-chan struct{}) error {
		select {
		case arrived <- incoming{stream, replied}:
			return nil
		case <-r.Context().Done():
			return r.Context().Err()
		}
	})
	if conn == nil {
		return nil, nil // told
	}
	c := &channels{close: func() { _ = conn.Close() }}
	// The first version has its Status as text too; the fourth speaks JSON.
	c.verbose = protocol == remotecommand.StreamProtocolV4Name
	wanted := []string{kcorev1.StreamTypeError}
	for kind, is := range map[string]bool{
		kcorev1.StreamTypeStdin: o.stdin, kcorev1.StreamTypeStdout: o.stdout, kcorev1.StreamTypeStderr: o.stderr,
		kcorev1.StreamTypeResize: o.tty && slices.Contains([]string{remotecommand.StreamProtocolV3Name, remotecommand.StreamProtocolV4Name}, protocol),
	} {
		if is {
			wanted = append(wanted, kind)
		}
	}
	timeout := time.NewTimer(remotecommand.DefaultStreamCreationTimeout)
	defer timeout.Stop()
	for len(wanted) > 0 {
		select {
		case stream := <-arrived:
			kind := stream.Headers().Get(kcorev1.StreamType)
			i := slices.Index(wanted, kind)
			if i < 0 {
				_ = stream.Reset()
				continue
			}
			<-stream.replied
			wanted = slices.Delete(wanted, i, i+1)
			c.take(kind, stream)
		case <-conn.CloseChan():
			return nil, nil
		case <-timeout.C:
			_ = conn.Close()
			return nil, nil
		case <-r.Context().Done():
			_ = conn.Close()
			return nil, nil
		}
	}
	// Streams that come later were not asked for.
	go func() {
		for {
			select {
			case stream := <-arrived:
				_ = stream.Reset()
			case <-conn.CloseChan():
				gone()
				return
			}
		}
	}()
	return c, nil
}

// take puts a stream in its place.
func (c *channels) take(kind string, stream httpstream.Stream) {
	switch kind {
	case kcorev1.StreamTypeError:
		c.outcome = stream
	case kcorev1.StreamTypeStdin:
		c.stdin = stream
	case kcorev1.StreamTypeStdout:
		c.stdout = stream
	case kcorev1.StreamTypeStderr:
		c.stderr = stream
	case kcorev1.StreamTypeResize:
		c.resize = stream
	}
}
