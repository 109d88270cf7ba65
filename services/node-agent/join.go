package nodeagent

import (
	"context"
	"fmt"
	"io"
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

// Leave ends what an agent with these flags (Main's) has left running: its container runtime with all pods. Purge deletes its data too. The agent itself must
// have ended.
func Leave(ctx context.Context, arguments []string, purge bool, stderr io.Writer) error {
	d, config, _, err := configure(arguments, stderr)
	if err != nil {
		return err
	}
	if config.Runtime == nil {
		return fmt.Errorf("the node uses the runtime %s, which is not Dhow's to stop", config.CRISocket)
	}
	config.Logger = slog.New(slog.NewTextHandler(d.Output(), &slog.HandlerOptions{Level: slog.LevelWarn}))
	return Stop(ctx, config, purge)
}
