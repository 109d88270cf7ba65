// Package command holds the commands of dhow, a file for each.
package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"dhow.dev/cli/internal/connect"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry"
)

// Streams are where a command reads and writes.
type Streams struct {
	In       io.Reader
	Out, Err io.Writer
}

// Field managers: who owns the fields that dhow writes, by way of writing.
const (
	fieldManager   = "dhow"
	editManager    = fieldManager + "-edit"
	rolloutManager = fieldManager + "-rollout"
	runManager     = fieldManager + "-run"
)

// exitInterrupted is the exit code of a command that SIGINT has ended, as shells give it.
const exitInterrupted = 130

// exitError ends the program with a code of its own, without a message.
type exitError int

func (e exitError) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// Main runs one command line and returns the exit code.
func Main(ctx context.Context, args []string, streams Streams, extra ...*cobra.Command) int {
	root := New(streams, extra...)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err != nil && strings.HasPrefix(err.Error(), "unknown command") {
		err = fmt.Errorf("%w\nSee 'dhow --help' for the commands", err)
	}
	var exit exitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return int(exit)
	default:
		fmt.Fprintln(streams.Err, describeError(err))
		return 1
	}
}

// session is what the commands that talk to a cluster share.
type session struct {
	Streams
	configFile string
	namespace  string

	conn  grpc.ClientConnInterface
	close func()
	// report sends the spans that are left.
	report func()
	// explicit says that the namespace was given on the command line.
	explicit bool
}

// New returns the command tree, with the extra commands in it.
func New(streams Streams, extra ...*cobra.Command) *cobra.Command {
	s := &session{Streams: streams, report: func() {}}
	root := &cobra.Command{
		Use:           "dhow",
		Short:         "Run containers on one machine or many, with the Kubernetes object model",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetIn(streams.In)
	root.SetOut(streams.Out)
	root.SetErr(streams.Err)
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return fmt.Errorf("%w\nSee '%s --help' for usage", err, c.CommandPath())
	})
	flags := root.PersistentFlags()
	flags.StringVar(&s.configFile, "config", "", "the file that says how to reach the cluster (default $"+connect.Environment+" or "+connect.Default+")")
	flags.StringVarP(&s.namespace, "namespace", "n", "", "the namespace (by default the one of the configuration, or \"default\")")
	clusterCommands := []*cobra.Command{
		newApply(s), newGet(s), newDescribe(s), newDelete(s), newLogs(s), newExec(s), newRun(s), newScale(s), newRollout(s), newWait(s),
		newCordon(s), newUncordon(s), newWhy(s), newTrace(s), newStatus(s), newBackup(s), newToken(s),
	}
	for _, c := range clusterCommands {
		connectFirst(s, c)
	}
	root.AddCommand(clusterCommands...)
	root.AddCommand(newVersion(s), newKubectl())
	root.AddCommand(extra...)
	for _, g := range []struct {
		id, title string
		commands  []string
	}{
		{"cluster", "A cluster:", []string{"up", "down", "join", "leave", "token", "status", "backup", "restore", "version", "kubectl"}},
		{groupChange, "Change what runs:", []string{"apply", "run", "scale", "rollout", "delete", "cordon", "uncordon"}},
		{"look", "Look at what runs:", []string{"get", "describe", "logs", "exec", "wait", "why", "trace"}},
	} {
		root.AddGroup(&cobra.Group{ID: g.id, Title: g.title})
		for _, c := range root.Commands() {
			if slices.Contains(g.commands, c.Name()) {
				c.GroupID = g.id
			}
		}
	}
	for _, c := range root.Commands() {
		if c.HasSubCommands() && c.Run == nil && c.RunE == nil {
			c.RunE = onlyBelow
		}
	}
	addCompletions(s, root)
	return root
}

// onlyBelow is what a command that only has others below it does: of one that is not there Cobra would print the help, as if all were well.
func onlyBelow(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		return c.Help()
	}
	var names []string
	for _, below := range c.Commands() {
		names = append(names, below.Name())
	}
	return fmt.Errorf("unknown command %q for %q: one of %s", args[0], c.CommandPath(), strings.Join(names, ", "))
}

// groupChange is the group of the commands that change what runs.
const groupChange = "change"

// groupOf is the group of a command, or of the one that it is below.
func groupOf(c *cobra.Command) string {
	for ; c != nil; c = c.Parent() {
		if c.GroupID != "" {
			return c.GroupID
		}
	}
	return ""
}

// connectFirst makes a command, and those below it, open the connection before they run, and run in a trace.
func connectFirst(s *session, c *cobra.Command) {
	for _, below := range c.Commands() {
		connectFirst(s, below)
	}
	run := c.RunE
	if run == nil {
		return
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		// Before the connection, which reports its calls to the tracing that it finds.
		ctx, done, err := s.traced(c.Context(), c.CommandPath(), groupOf(c) == groupChange)
		if err != nil {
			return err
		}
		c.SetContext(ctx)
		if err = s.open(c); err == nil {
			err = run(c, args)
		}
		if ctx.Err() != nil {
			err = exitError(exitInterrupted) // who pressed Ctrl-C knows why
		}
		done(err)
		return err
	}
}

func (s *session) open(c *cobra.Command) error {
	s.explicit = c.Flags().Changed("namespace")
	config, err := connect.Load(connect.File(s.configFile))
	if err != nil {
		return err
	}
	if s.namespace == "" {
		s.namespace = config.Namespace
	}
	if s.namespace == "" {
		s.namespace = "default"
	}
	conn, err := config.Dial()
	if err != nil {
		return fmt.Errorf("%s: %w", connect.File(s.configFile), err)
	}
	s.conn, s.close, s.report = conn, func() { conn.Close() }, telemetry.Report(telemetry.SendTo(conn))
	return nil
}

// namespaceOf is the namespace to look for a kind's objects in.
func (s *session) namespaceOf(r *resource.Resource) string {
	if r.Namespaced {
		return s.namespace
	}
	return ""
}

// warn is a call option that catches a response's header, and a function that prints the warnings in it, about what.
func (s *session) warn(about fmt.Stringer) (grpc.CallOption, func()) {
	var header metadata.MD
	return grpc.Header(&header), func() { s.warnings(about, client.Warnings(header)) }
}

func (s *session) warnings(about fmt.Stringer, texts []string) {
	for _, text := range texts {
		fmt.Fprintf(s.Err, "Warning: %s: %s\n", about, text)
	}
}

// target is one object that a command line names.
type target struct {
	resource *resource.Resource
	name     string
}

// String names the target as kubectl does in messages, for example `deployment.apps/web`.
func (t target) String() string {
	if t.name == "" {
		return kindName(t.resource)
	}
	return kindName(t.resource) + "/" + t.name
}

// kindName is the singular with its group.
func kindName(r *resource.Resource) string {
	if r.Group == "" {
		return r.Singular()
	}
	return r.Singular() + "." + r.Group
}

// targets parses `KIND NAME...`, `KIND/NAME...` and `KIND,KIND`. A target without a name means all of its kind.
func targets(args []string) ([]target, error) {
	if len(args) == 0 {
		return nil, errors.New("you must specify the type of resource, and which, for example `pods` or `deployment/web`")
	}
	if strings.Contains(args[0], "/") {
		var list []target
		for _, arg := range args {
			kind, name, found := strings.Cut(arg, "/")
			if !found || name == "" || kind == "" {
				return nil, fmt.Errorf("%q: arguments of the form KIND/NAME may not be mixed with others", arg)
			}
			r, err := resource.Find(kind)
			if err != nil {
				return nil, err
			}
			list = append(list, target{r, name})
		}
		return list, nil
	}
	var kinds []*resource.Resource
	for word := range strings.SplitSeq(args[0], ",") {
		if word == "all" {
			for _, r := range resource.Stored() {
				if r.In("all") {
					kinds = append(kinds, r)
				}
			}
			continue
		}
		r, err := resource.Find(word)
		if err != nil {
			return nil, err
		}
		kinds = append(kinds, r)
	}
	var list []target
	for _, r := range kinds {
		if len(args) == 1 {
			list = append(list, target{r, ""})
		}
		for _, name := range args[1:] {
			if strings.Contains(name, "/") {
				return nil, fmt.Errorf("%q: arguments of the form KIND/NAME may not be mixed with others", name)
			}
			list = append(list, target{r, name})
		}
	}
	return list, nil
}

// oneTarget parses a command line that must name one object.
func oneTarget(args []string) (target, error) {
	list, err := targets(args)
	if err != nil {
		return target{}, err
	}
	if len(list) != 1 || list[0].name == "" {
		return target{}, fmt.Errorf("name one object, as KIND/NAME")
	}
	return list[0], nil
}
