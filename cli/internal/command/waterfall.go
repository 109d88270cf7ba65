package command

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"

	"dhow.dev/cli/internal/printer"
	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	"dhow.dev/pkg/apistatus"
)

// barWidth is the width of the picture of a trace's time, in columns.
const barWidth = 40

func newTrace(s *session) *cobra.Command {
	var id, output string
	var all bool
	c := &cobra.Command{
		Use:   "trace KIND/NAME",
		Short: "Show what followed from the last change of an object, in every service and on every node",
		Long: `Show what followed from the last change of an object, in every service and on every node.

API servers remember the last changes for a while, in memory: those made with dhow, and some of those made by other programs.`,
		Example: `  dhow trace deployment/web
  dhow trace deployment/web --id 4bf92f3577b34da6a3ce929d0e0e4736   # an earlier one
  dhow trace pod/web-5d9c7b6f4-x2x8v --all                          # each call between services, too`,
		RunE: func(c *cobra.Command, args []string) error {
			list, err := targets(args)
			if err != nil {
				return err
			}
			if len(list) != 1 || list[0].name == "" {
				return fmt.Errorf("name one object: dhow trace KIND/NAME")
			}
			if output != "" && output != "json" {
				return fmt.Errorf("-o %s: a trace is printed as a picture, or as json", output)
			}
			r := list[0].resource
			answer, err := clusterv1.NewClusterClient(s.conn).Trace(c.Context(), clusterv1.TraceRequest_builder{
				Group: r.Group, Resource: r.Plural, Namespace: s.namespaceOf(r), Name: list[0].name, TraceId: id,
			}.Build())
			if err != nil {
				return apistatus.FromGRPC(err)
			}
			if output == "json" {
				raw, err := protojson.Marshal(answer)
				if err != nil {
					return err
				}
				// Protojson varies its spaces on purpose.
				encoder := json.NewEncoder(s.Out)
				encoder.SetIndent("", "    ")
				return encoder.Encode(json.RawMessage(raw))
			}
			return s.waterfall(list[0], answer, all)
		},
	}
	c.Flags().StringVar(&id, "id", "", "one of the earlier traces")
	c.Flags().BoolVar(&all, "all", false, "show the calls between services and the API server's single steps, too")
	c.Flags().StringVarP(&output, "output", "o", "", "json: all that is known")
	return c
}

// row is a span of a waterfall.
type row struct {
	*clusterv1.Span
	depth int
}

// waterfall draws a trace: a line for each span, below the one that it follows from, with its time as a bar.
func (s *session) waterfall(t target, answer *clusterv1.TraceResponse, all bool) error {
	rows := arrange(answer.GetSpans(), all)
	if !all {
		rows = about(rows, t, s.namespaceOf(t.resource))
	}
	if len(rows) == 0 {
		return fmt.Errorf("of trace %s nothing is remembered any more", answer.GetTraceId())
	}
	begin, end := rows[0].GetStartUnixNanoseconds(), int64(0)
	processes, instances := map[string]bool{}, map[string]map[string]bool{}
	for _, r := range rows {
		begin, end = min(begin, r.GetStartUnixNanoseconds()), max(end, r.GetStartUnixNanoseconds()+r.GetDurationNanoseconds())
		processes[r.GetService()+"/"+r.GetInstance()] = true
		name := where(r.Span)
		if instances[name] == nil {
			instances[name] = map[string]bool{}
		}
		instances[name][r.GetInstance()] = true
	}
	fmt.Fprintf(s.Out, "%s: %s %s, %s in %d processes, trace %s\n\n", t, rows[0].GetName(), time.Unix(0, begin).UTC().Format(time.RFC3339),
		short(end-begin), len(processes), answer.GetTraceId())
	lines := [][]string{{"START", "TOOK", "", "WHERE", "WHAT"}}
	for _, r := range rows {
		what := strings.Repeat("  ", r.depth) + r.GetName()
		if d := detail(r.Span); d != "" {
			what += "  " + d
		}
		if r.GetFailed() {
			what += "  FAILED"
		}
		// An agent's process is the node's name; others are named where there are several of their service.
		process := where(r.Span)
		if r.GetService() == "dhow-node-agent" || len(instances[process]) > 1 {
			process += " " + r.GetInstance()
		}
		lines = append(lines, []string{short(r.GetStartUnixNanoseconds() - begin), short(r.GetDurationNanoseconds()), bar(r.GetStartUnixNanoseconds()-begin, r.GetDurationNanoseconds(), end-begin), process, what})
	}
	if err := printer.Align(s.Out, lines); err != nil {
		return err
	}
	if sentence := reachable(rows); sentence != "" {
		fmt.Fprintln(s.Out, "\n"+sentence)
	}
	if others := answer.GetOthers(); len(others) > 0 {
		fmt.Fprintln(s.Out, "\nOther changes (--id):")
		for _, o := range others {
			fmt.Fprintf(s.Out, "  %s  %s  %s\n", o.GetTraceId(), time.Unix(0, o.GetStartUnixNanoseconds()).UTC().Format(time.RFC3339), o.GetName())
		}
	}
	return nil
}

// arrange puts spans below those that they follow from. Unless all are wanted, calls between services and the steps inside of a write are left out, and what is below
// them moves up.
func arrange(spans []*clusterv1.Span, all bool) []row {
	known, below := map[string]*clusterv1.Span{}, map[string][]*clusterv1.Span{}
	for _, span := range spans {
		known[span.GetId()] = span
	}
	for _, span := range spans {
		parent := span.GetParentId()
		if known[parent] == nil {
			parent = "" // not remembered: it was made where nothing is reported from
		}
		below[parent] = append(below[parent], span)
	}
	var rows []row
	var place func(parent string, depth int)
	place = func(parent string, depth int) {
		for _, span := range below[parent] {
			next := depth
			if all || telling(span, known[span.GetParentId()]) {
				rows = append(rows, row{span, depth})
				next++
			}
			place(span.GetId(), next)
		}
	}
	place("", 0)
	return rows
}

// telling says whether a span tells something to who does not look for a fault in Dhow itself.
func telling(span, parent *clusterv1.Span) bool {
	if parent == nil {
		return true
	}
	if strings.Contains(span.GetScope(), "/otelgrpc") {
		return false
	}
	step, ok := strings.CutPrefix(span.GetName(), "registry.")
	return !ok || writes[step] && span.GetScope() != parent.GetScope()
}

// writes are the spans of the API server that are a write as a whole; its others are steps of one.
var writes = map[string]bool{
	"create": true, "update": true, "patch": true, "apply": true, "delete": true, "deletecollection": true, "bind": true, "evict": true, "commit-operations": true,
}

// about leaves of the rows of a change of several objects those that lead to one of them and what follows from it, and drops the looks of controllers that led to nothing.
func about(rows []row, t target, namespace string) []row {
	key := t.name
	if namespace != "" {
		key = namespace + "/" + t.name
	}
	// What is below row i is the rows behind it that are deeper.
	end := func(i int) int {
		j := i + 1
		for j < len(rows) && rows[j].depth > rows[i].depth {
			j++
		}
		return j
	}
	keep, found := make([]bool, len(rows)), false
	var path []int
	for i := 0; i < len(rows); i++ {
		path = append(path[:min(rows[i].depth, len(path))], i)
		a := rows[i].GetAttributes()
		if a["key"] != key && (a["k8s.pod.name"] != t.name || a["k8s.namespace.name"] != namespace) {
			continue
		}
		found = true
		for _, above := range path {
			keep[above] = true
		}
		last := end(i)
		for j := i; j < last; j++ {
			keep[j] = true
		}
		i = last - 1
	}
	var left []row
	for i, r := range rows {
		idle := strings.HasPrefix(r.GetName(), "reconcile ") && end(i) == i+1 && !r.GetFailed()
		if (keep[i] || !found) && !idle {
			left = append(left, r)
		}
	}
	return left
}

// reachable says when the first pod was ready, and when it could be reached.
func reachable(rows []row) string {
	begin := rows[0].GetStartUnixNanoseconds()
	first := func(name string, after int64) int64 {
		var at int64
		for _, r := range rows {
			end := r.GetStartUnixNanoseconds() + r.GetDurationNanoseconds()
			if r.GetName() == name && r.GetStartUnixNanoseconds() >= after && (at == 0 || end < at) {
				at = end
			}
		}
		return at
	}
	ready := first("pod ready", 0)
	if ready == 0 {
		return ""
	}
	sentence := "First pod ready after " + short(ready-begin)
	if at := first("proxy.program", ready); at != 0 {
		sentence += ", reachable through its Service after " + short(at-begin)
	}
	return sentence + "."
}

// where names the service of a span. In one process the services are told apart by the part of the program.
func where(span *clusterv1.Span) string {
	name := strings.TrimPrefix(span.GetService(), "dhow-")
	if _, part, ok := strings.Cut(span.GetScope(), "dhow.dev/services/"); ok && span.GetService() == "dhow" {
		name, _, _ = strings.Cut(part, "/")
	}
	return name
}

// detail is what a span was about.
func detail(span *clusterv1.Span) string {
	a := span.GetAttributes()
	var words []string
	for _, key := range []string{"key", "resource", "k8s.namespace.name", "k8s.pod.name", "k8s.container.name"} {
		if a[key] != "" {
			words = append(words, a[key])
		}
	}
	return strings.Join(words, " ")
}

// bar draws a time of a whole.
func bar(start, took, whole int64) string {
	if whole <= 0 {
		whole = 1
	}
	from := min(int(start*barWidth/whole), barWidth-1)
	width := min(max(int((start+took)*barWidth/whole)-from, 1), barWidth-from)
	return strings.Repeat("·", from) + strings.Repeat("█", width) + strings.Repeat("·", barWidth-from-width)
}

// short is a duration with three digits.
func short(nanoseconds int64) string {
	d := time.Duration(nanoseconds)
	switch {
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	case d >= time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d >= 10*time.Millisecond:
		return d.Round(100 * time.Microsecond).String()
	default:
		return d.Round(10 * time.Microsecond).String()
	}
}
