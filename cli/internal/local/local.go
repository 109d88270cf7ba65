// Package local holds the commands that run a cluster on this machine. They need the services themselves; package command needs none.
package local

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"dhow.dev/cli/internal/command"
	"dhow.dev/cli/internal/up"
	nodeagent "dhow.dev/services/node-agent"
)

// Commands returns them.
func Commands(streams command.Streams) []*cobra.Command {
	return []*cobra.Command{newUp(streams), newDown(streams), newRestore(streams), newJoin(streams), newLeave(streams), newNodeAgent(streams)}
}

func newUp(streams command.Streams) *cobra.Command {
	config := up.Config{Out: streams.Out, Err: streams.Err}
	c := &cobra.Command{
		Use:   "up",
		Short: "Run a cluster on this machine",
		Long: `Run a cluster on this machine: the control plane in this process, and nodes in network namespaces of their own, each with an agent and a container
runtime that outlive it. Data survives restarts, kill -9 included. Ctrl-C stops the control plane and leaves pods running; dhow down stops all.`,
		Example: "  dhow up --nodes 3\n  dhow up --nodes 3 --hosts 3",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return up.Run(c.Context(), config) },
	}
	flags := c.Flags()
	flags.IntVar(&config.Nodes, "nodes", 1, "how many nodes")
	flags.StringVar(&config.DataDir, "data-dir", up.DefaultDataDir, "where everything is kept")
	flags.StringVar(&config.Listen, "listen", up.DefaultListen, "the gRPC API's address and port")
	flags.StringVar(&config.Kubernetes, "kubernetes-listen", up.DefaultKubernetes, "the Kubernetes API's address and port; empty: it is not served")
	flags.BoolVar(&config.Separate, "separate", false, "run every service in a process of its own, over mutual TLS, two API servers among them")
	flags.IntVar(&config.Hosts, "hosts", 0, "run these processes on so many hosts of their own beside the nodes, 1, 3 or 5: a store on each, the other services on two; implies --separate")
	flags.StringSliceVar(&config.Without, "without", nil, "leave services out, separated by commas, to see what the others do")
	flags.DurationVar(&config.NodeGrace, "node-grace", 5*time.Second, "how long a node may be silent before it counts as lost")
	flags.DurationVar(&config.EvictAfter, "evict-after", 5*time.Second, "how long pods wait for a lost node, where they do not say themselves")
	flags.StringVar(&config.RuntimeDir, "runtime-dir", "", "the bundled container runtime (default: bin/runtime beside this program, where make setup builds it)")
	flags.StringVar(&config.Metrics, "metrics-listen", "", "address of /metrics, /livez and /readyz; empty: none")
	flags.StringVar(&config.OTLP, "otlp-endpoint", "", "URL of an OpenTelemetry collector, for traces, metrics and logs; empty: none")
	flags.StringVar(&config.LogLevel, "log-level", "warn", "debug, info, warn or error")
	return c
}

func newDown(streams command.Streams) *cobra.Command {
	config := up.DownConfig{Out: streams.Out, Err: streams.Err}
	c := &cobra.Command{
		Use:   "down",
		Short: "Stop a cluster of this machine, and its pods",
		Args:  cobra.NoArgs,
		RunE:  func(c *cobra.Command, _ []string) error { return up.Down(c.Context(), config) },
	}
	c.Flags().StringVar(&config.DataDir, "data-dir", up.DefaultDataDir, "where the cluster is kept")
	c.Flags().StringVar(&config.RuntimeDir, "runtime-dir", "", "the bundled container runtime, as for dhow up")
	c.Flags().BoolVar(&config.Purge, "purge", false, "delete the data too")
	return c
}

func newRestore(streams command.Streams) *cobra.Command {
	config := up.RestoreConfig{Out: streams.Out}
	c := &cobra.Command{
		Use:   "restore FILE",
		Short: "Give a cluster of this machine the data of a backup",
		Long: `Give a cluster of this machine, which is not running, the data that dhow backup wrote. The directory may not hold data already (dhow down --purge deletes it,
its keys too), and needs the folder pki of the cluster that the backup is of: Secrets are encrypted with a key in it.`,
		Example: "  dhow restore /backup/2026-01-31 --data-dir /var/lib/dhow",
		Args:    cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			config.File = args[0]
			return up.Restore(c.Context(), config)
		},
	}
	c.Flags().StringVar(&config.DataDir, "data-dir", up.DefaultDataDir, "where the cluster is kept")
	return c
}

// newNodeAgent is what `dhow up` starts for each node: the node agent's own command line.
func newNodeAgent(streams command.Streams) *cobra.Command {
	return &cobra.Command{
		Use:                "node-agent",
		Short:              "Run this machine as a node (started by dhow up)",
		Hidden:             true,
		DisableFlagParsing: true,
		RunE: func(c *cobra.Command, args []string) error {
			if err := nodeagent.Main(c.Context(), args, os.Stderr); err != nil {
				return fmt.Errorf("node agent: %w", err)
			}
			return nil
		},
	}
}
