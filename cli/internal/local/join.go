package local

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"dhow.dev/cli/internal/command"
	"dhow.dev/pkg/pki"
	nodeagent "dhow.dev/services/node-agent"
)

// joinDir is where a machine that joined a cluster keeps everything.
const joinDir = "/var/lib/dhow/node"

// joined is how the agent of a machine was started last, for who ends what it left running.
type joined struct {
	Node      string   `json:"node"`
	Arguments []string `json:"arguments"`
}

func joinedFile(dataDir string) string { return filepath.Join(dataDir, "join.json") }

func (j joined) write(dataDir string) error {
	content, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(joinedFile(dataDir), content, 0o600)
}

func readJoined(dataDir string) (j joined, err error) {
	content, err := os.ReadFile(joinedFile(dataDir))
	if errors.Is(err, fs.ErrNotExist) {
		return j, fmt.Errorf("%s is no node's folder: no `dhow join` has run with it", dataDir)
	}
	if err == nil {
		err = json.Unmarshal(content, &j)
	}
	return j, err
}

func newJoin(streams command.Streams) *cobra.Command {
	var token, hash, name, dataDir string
	var certificateOnly bool
	c := &cobra.Command{
		Use:   "join SERVER[,SERVER] [-- AGENT-FLAG...]",
		Short: "Run this machine as a node of a cluster elsewhere",
		Long: `Run this machine as a node of a cluster elsewhere, until it is interrupted: pods stay, and the next start finds them. The first time it needs what dhow token create prints;
after that the machine has a certificate, which it renews by itself. The node dials the API server and needs no open port.

What follows -- goes to the node agent: dhow-node-agent -h lists its flags.`,
		Example: "  dhow join 10.0.0.1:7443 --token abcdef.0123456789abcdef --ca-cert-hash sha256:…\n  dhow join 10.0.0.1:7443 -- --label zone=b --max-pods 50",
		Args:    cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if at := c.ArgsLenAtDash(); at != 1 && (at != -1 || len(args) != 1) {
				return fmt.Errorf("give the servers as one word, separated by commas, and what is for the node agent behind --")
			}
			if name == "" {
				host, err := os.Hostname()
				if err != nil {
					return fmt.Errorf("this machine has no name, so give --node-name: %w", err)
				}
				name = strings.ToLower(host)
			}
			files := pki.FilesIn(filepath.Join(dataDir, "pki"), "node")
			logger := slog.New(slog.NewTextHandler(streams.Err, nil))
			if err := nodeagent.Join(c.Context(), nodeagent.JoinConfig{Servers: args[0], Token: token, CACertHash: hash, NodeName: name, Files: files, Logger: logger}); err != nil {
				return err
			}
			arguments := append([]string{
				"--node-name", name, "--apiserver", args[0], "--data-dir", dataDir, "--rotate-certificates",
				"--tls-cacert", files.Authority, "--tls-cert", files.Certificate, "--tls-key", files.Key,
			}, args[1:]...)
			// Also for an agent that something else runs: dhow leave ends what that leaves behind.
			if err := (joined{Node: name, Arguments: arguments}).write(dataDir); err != nil || certificateOnly {
				return err
			}
			return nodeagent.Main(c.Context(), arguments, streams.Err)
		},
	}
	c.Flags().StringVar(&token, "token", "", "a token of dhow token create; not needed again")
	c.Flags().StringVar(&hash, "ca-cert-hash", "", "hash of the cluster's authority, printed with the token")
	c.Flags().StringVar(&name, "node-name", "", "the node's name (default the machine's)")
	c.Flags().BoolVar(&certificateOnly, "certificate-only", false, "make the machine's certificate and end: something else runs dhow-node-agent with it")
	c.Flags().StringVar(&dataDir, "data-dir", joinDir, "where the node keeps pods, logs, images and its certificate")
	return c
}

func newLeave(streams command.Streams) *cobra.Command {
	var dataDir string
	var purge bool
	c := &cobra.Command{
		Use:   "leave",
		Short: "End what dhow join has left on this machine: pods and their runtime",
		Long: `End what dhow join, which must have been interrupted, has left running on this machine: all pods and their container runtime. Drain the node before, and
delete it after: dhow kubectl drain NODE --ignore-daemonsets, dhow delete node NODE.`,
		Example: "  dhow leave --purge",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			j, err := readJoined(dataDir)
			if err != nil {
				return err
			}
			if err := nodeagent.Leave(c.Context(), j.Arguments, purge, streams.Err); err != nil {
				return err
			}
			if !purge {
				fmt.Fprintf(streams.Out, "Stopped. `dhow join` goes on with what is in %s; `dhow delete node %s` takes the node out of the cluster.\n", dataDir, j.Node)
				return nil
			}
			if err := errors.Join(os.RemoveAll(filepath.Join(dataDir, "pki")), os.Remove(joinedFile(dataDir))); err != nil {
				return err
			}
			fmt.Fprintf(streams.Out, "Stopped, and deleted what was in %s. `dhow delete node %s` takes the node out of the cluster.\n", dataDir, j.Node)
			return nil
		},
	}
	c.Flags().StringVar(&dataDir, "data-dir", joinDir, "the node's folder, as for dhow join")
	c.Flags().BoolVar(&purge, "purge", false, "delete the data too, and the node's certificate")
	return c
}
