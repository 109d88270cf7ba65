package nodeagent

import (
	"context"
	"fmt"
	"log/slog"

	"dhow.dev/pkg/pki"
	"dhow.dev/services/node-agent/internal/credential"
)

// JoinConfig configures Join.
type JoinConfig struct {
	// Servers are the addresses of API servers, host:port, separated by commas.
	Servers string
	// Token is a bootstrap token and CACertHash that of the cluster's authority, as `dhow token create` prints them. Not needed by a machine that has a certificate.
	Token, CACertHash string
	// NodeName is the node's name; Files are where its certificate is to be.
	NodeName string
	Files    pki.Files
	// Logger gets what is done. Nil discards it.
	Logger *slog.Logger
}

// Join makes the files hold a client certificate of the node, so that an agent can run with them.
func Join(ctx context.Context, config JoinConfig) error {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	if err := credential.Join(ctx, credential.JoinConfig{
		Servers: config.Servers, Token: config.Token, Hash: config.CACertHash, Node: config.NodeName, Files: config.Files, Logger: config.Logger,
	}); err != nil {
		return fmt.Errorf("join %s as %s: %w", config.Servers, config.NodeName, err)
	}
	return nil
}
