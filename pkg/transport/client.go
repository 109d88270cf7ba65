package transport

import (
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/rawcodec"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"
)

// failover spreads clients over the servers and moves on to the next one when a server goes away.
const failover = `{"loadBalancingConfig":[{"pick_first":{"shuffleAddressList":true}}]}`

// TLSClient returns the credentials of a client that shows its certificate and expects the server to have one of the same
// authority for serverName.
func TLSClient(pair *pki.KeyPair, serverName string) credentials.TransportCredentials {
	return credentials.NewTLS(pki.ClientTLS(pair, serverName))
}

// Dial returns a client connection with the settings that all services share. The target is a gRPC target ("host:port",
// "unix:///path") or several "host:port" separated by commas, equal servers of which one that answers is used. It connects at the
// first call. Errors of calls are gRPC statuses; apistatus.FromGRPC makes API errors of them.
func Dial(target string, creds credentials.TransportCredentials, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	own := []grpc.DialOption{grpc.WithKeepaliveParams(keepalive.ClientParameters{
		// A node that lost power is noticed within 15 seconds; gRPC allows no shorter interval than 10 s.
		Time: 10 * time.Second, Timeout: 5 * time.Second, PermitWithoutStream: true,
	})}
	if strings.Contains(target, ",") {
		addresses, err := splitTargets(target)
		if err != nil {
			return nil, err
		}
		several := manual.NewBuilderWithScheme("dhow-servers")
		several.InitialState(resolver.State{Addresses: addresses})
		own = append(own, grpc.WithResolvers(several), grpc.WithDefaultServiceConfig(failover))
		target = several.Scheme() + ":///" + addresses[0].Addr
	}
	return dial(target, creds, append(own, options...))
}

func splitTargets(target string) ([]resolver.Address, error) {
	var addresses []resolver.Address
	for _, address := range strings.Split(target, ",") {
		address = strings.TrimSpace(address)
		if _, _, err := net.SplitHostPort(address); err != nil {
			return nil, fmt.Errorf("dial %q: %w: give host:port, separated by commas", target, err)
		}
		addresses = append(addresses, resolver.Address{Addr: address})
	}
	return addresses, nil
}

func dial(target string, creds credentials.TransportCredentials, options []grpc.DialOption) (*grpc.ClientConn, error) {
	if creds == nil {
		return nil, errors.New("dial: no credentials: use TLSClient or Memory.Dial")
	}
	common := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithStatsHandler(otelgrpc.NewClientHandler()),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(rawcodec.Codec{}),
			grpc.MaxCallRecvMsgSize(MaxMessageSize),
			grpc.MaxCallSendMsgSize(MaxMessageSize),
		),
		grpc.WithSharedWriteBuffer(true),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connectionWindow),
		// gRPC's default waits up to two minutes; a cluster that comes back must be whole in seconds.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 5 * time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
		// Idle mode would drop connections that watch nothing for 30 minutes, only to handshake again.
		grpc.WithIdleTimeout(0),
	}
	conn, err := grpc.NewClient(target, append(common, options...)...)
	if err != nil {
		return nil, fmt.Errorf("dial %q: %w", target, err)
	}
	return conn, nil
}
