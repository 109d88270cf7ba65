package session

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	nodev1 "dhow.dev/gen/go/dhow/node/v1"
	"dhow.dev/pkg/telemetry/logkey"
)

// Usage implements dhow.node.v1.Sessions: what the nodes attached here use.
func (m *Manager) Usage(context.Context, *nodev1.UsageRequest) (*nodev1.UsageResponse, error) {
	var known []*nodev1.UsageResponse_Node
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, s := range m.sessions {
		if usage := s.usage.Load(); usage != nil {
			known = append(known, nodev1.UsageResponse_Node_builder{Name: name, Usage: usage}.Build())
		}
	}
	return nodev1.UsageResponse_builder{Nodes: known}.Build(), nil
}

// Used returns what every node of the cluster uses, by name. Nodes of an API server that does not answer are missing. The values must not be changed.
func (m *Manager) Used(ctx context.Context) map[string]*nodev1.NodeUsage {
	all := map[string]*nodev1.NodeUsage{}
	m.Ask(ctx, func(ctx context.Context, peer grpc.ClientConnInterface) error {
		answer, err := nodev1.NewSessionsClient(peer).Usage(ctx, &nodev1.UsageRequest{})
		for _, n := range answer.GetNodes() {
			all[n.GetName()] = n.GetUsage()
		}
		return err
	})
	own, err := m.Usage(ctx, nil)
	if err != nil {
		return all
	}
	for _, n := range own.GetNodes() {
		all[n.GetName()] = n.GetUsage()
	}
	return all
}

// Ask implements grpcapi.Peers.
func (m *Manager) Ask(ctx context.Context, ask func(context.Context, grpc.ClientConnInterface) error) {
	if incoming, ok := metadata.FromIncomingContext(ctx); ok && len(incoming.Get(forwardedKey)) > 0 {
		return
	}
	for address, conn := range m.otherServers() {
		if err := ask(metadata.AppendToOutgoingContext(ctx, forwardedKey, m.id), conn); err != nil {
			m.config.Logger.WarnContext(ctx, "another API server does not answer", logkey.Address(address), logkey.Err(err))
		}
	}
}

// otherServers connects to all other live API servers. One that cannot be reached is left out.
func (m *Manager) otherServers() map[string]grpc.ClientConnInterface {
	m.mu.Lock()
	defer m.mu.Unlock()
	others := map[string]grpc.ClientConnInterface{}
	for id, address := range m.servers {
		if id == m.id {
			continue
		}
		if conn, err := m.connect(address); err == nil {
			others[address] = conn
		}
	}
	return others
}
