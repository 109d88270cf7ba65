// Package component asks the cluster's services how they are.
package component

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
)

// Self is the name under which the API server itself is listed.
const Self = "apiserver"

// Config configures a Board.
type Config struct {
	// Services by name. A nil connection is a service that this API server was told nothing about, and is left out.
	Services map[string]grpc.ClientConnInterface
	// Self says what is wrong with this API server; nil error is healthy.
	Self func() error
	// Timeout bounds a check; 0: 2 s.
	Timeout time.Duration
}

// Board knows the services.
type Board struct{ config Config }

// New returns a board.
func New(config Config) *Board {
	if config.Timeout == 0 {
		config.Timeout = 2 * time.Second
	}
	return &Board{config: config}
}

// Status asks all services at once, and returns their health by name.
func (b *Board) Status(ctx context.Context) []*clusterv1.Component {
	ctx, cancel := context.WithTimeout(ctx, b.config.Timeout)
	defer cancel()
	var mu sync.Mutex
	all := []*clusterv1.Component{describe(Self, b.config.Self())}
	var asked sync.WaitGroup
	for name, conn := range b.config.Services {
		if conn == nil {
			continue
		}
		asked.Go(func() {
			answer := describe(name, check(ctx, conn))
			mu.Lock()
			defer mu.Unlock()
			all = append(all, answer)
		})
	}
	asked.Wait()
	slices.SortFunc(all, func(a, b *clusterv1.Component) int { return strings.Compare(a.GetName(), b.GetName()) })
	return all
}

func describe(name string, err error) *clusterv1.Component {
	c := clusterv1.Component_builder{Name: name, Healthy: err == nil}.Build()
	if err != nil {
		c.SetMessage(status.Convert(err).Message())
	}
	return c
}

type notServing struct {
	state healthpb.HealthCheckResponse_ServingStatus
}

func (e notServing) Error() string { return "it answers " + e.state.String() }

func check(ctx context.Context, conn grpc.ClientConnInterface) error {
	answer, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return err
	}
	if answer.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return notServing{answer.GetStatus()}
	}
	return nil
}
