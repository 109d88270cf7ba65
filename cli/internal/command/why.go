package command

import (
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"dhow.dev/cli/internal/printer"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	schedulerv1 "dhow.dev/gen/go/dhow/scheduler/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/resource"
)

func newWhy(s *session) *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use:   "why POD",
		Short: "Say why a pod is where it is, or why it is pending and what would let it run",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("name one pod: dhow why POD")
			}
			return nil
		},
		Example: `  dhow why web-5d9c7b6f4-x2x8v
  dhow why web-5d9c7b6f4-x2x8v -w`,
		RunE: func(c *cobra.Command, args []string) error {
			name := args[0]
			if kind, rest, found := strings.Cut(name, "/"); found {
				r, err := resource.Find(kind)
				if err != nil || r != resource.For[*corev1.Pod]() {
					return fmt.Errorf("%s: why answers for pods: name one", name)
				}
				name = rest
			}
			stream, err := schedulerv1.NewSchedulerClient(s.conn).Explain(c.Context(), schedulerv1.ExplainRequest_builder{Namespace: s.namespace, Name: name, Follow: follow}.Build())
			if err != nil {
				return apistatus.FromGRPC(err)
			}
			for first := true; ; first = false {
				answer, err := stream.Recv()
				if errors.Is(err, io.EOF) || c.Context().Err() != nil {
					return nil
				}
				if err != nil {
					return apistatus.FromGRPC(err)
				}
				if !first {
					fmt.Fprintln(s.Out)
				}
				if err := s.explain(name, answer); err != nil {
					return err
				}
			}
		},
	}
	c.Flags().BoolVarP(&follow, "watch", "w", false, "go on until the pod runs or is gone")
	return c
}

// maxNodes is how many nodes of a group are named.
const maxNodes = 5

// explain writes one answer for people.
func (s *session) explain(name string, a *schedulerv1.ExplainResponse) error {
	fmt.Fprintf(s.Out, "pod/%s: %s\n", name, a.GetSummary())
	if len(a.GetRejections()) > 0 {
		rows := [][]string{{"  NODES", "REASON", "FILTER", "WHICH"}}
		for _, r := range a.GetRejections() {
			nodes := r.GetNodes()
			which := strings.Join(nodes[:min(len(nodes), maxNodes)], ", ")
			if more := len(nodes) - maxNodes; more > 0 {
				which += fmt.Sprintf(" and %d more", more)
			}
			rows = append(rows, []string{fmt.Sprintf("  %d", len(nodes)), r.GetReason(), r.GetFilter(), which})
		}
		if err := printer.Align(s.Out, rows); err != nil {
			return err
		}
	}
	if len(a.GetSuggestions()) > 0 {
		fmt.Fprintln(s.Out, "Any one of these lets it run, smallest change first:")
		for i, suggestion := range a.GetSuggestions() {
			where := ""
			if n := suggestion.GetNodeName(); n != "" {
				where = " (then on " + n + ")"
			}
			fmt.Fprintf(s.Out, "  %d. %s%s\n", i+1, suggestion.GetText(), where)
		}
	}
	if len(a.GetScores()) > 0 {
		names := map[string]bool{}
		for _, score := range a.GetScores() {
			for scorer := range score.GetByScorer() {
				names[scorer] = true
			}
		}
		var scorers []string
		for scorer := range names {
			scorers = append(scorers, scorer)
		}
		sort.Strings(scorers)
		rows := [][]string{append([]string{"  NODE", "TOTAL"}, scorers...)}
		for _, score := range a.GetScores() {
			row := []string{"  " + score.GetNodeName(), fmt.Sprint(score.GetTotal())}
			for _, scorer := range scorers {
				row = append(row, fmt.Sprint(score.GetByScorer()[scorer]))
			}
			rows = append(rows, row)
		}
		return printer.Align(s.Out, rows)
	}
	return nil
}
