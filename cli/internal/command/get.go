package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"dhow.dev/cli/internal/printer"
	"dhow.dev/cli/internal/structs"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

type getOptions struct {
	allNamespaces bool
	labels        string
	fields        string
	watch         bool
	output        string
	noHeaders     bool
	showLabels    bool
}

var outputs = []string{"", "wide", "yaml", "json", "name"}

func newGet(s *session) *cobra.Command {
	var o getOptions
	c := &cobra.Command{
		Use:     "get KIND[/NAME] [NAME...]",
		Short:   "Show objects",
		Example: "  dhow get pods -A -o wide\n  dhow get deploy/web -o yaml\n  dhow get pods -l app=web -w",
		RunE: func(c *cobra.Command, args []string) error {
			if !slices.Contains(outputs, o.output) {
				return fmt.Errorf("unknown output format %q: use wide, yaml, json or name", o.output)
			}
			return s.get(c.Context(), args, o)
		},
	}
	flags := c.Flags()
	flags.BoolVarP(&o.allNamespaces, "all-namespaces", "A", false, "objects of all namespaces")
	flags.StringVarP(&o.labels, "selector", "l", "", "only objects with these labels, for example app=web,tier!=data")
	flags.StringVar(&o.fields, "field-selector", "", "only objects with these fields, for example status.phase=Running")
	flags.BoolVarP(&o.watch, "watch", "w", false, "go on showing changes")
	flags.StringVarP(&o.output, "output", "o", "", "wide, yaml, json or name")
	flags.BoolVar(&o.noHeaders, "no-headers", false, "leave the column names out")
	flags.BoolVar(&o.showLabels, "show-labels", false, "show labels in a last column")
	return c
}

func (s *session) get(ctx context.Context, args []string, o getOptions) error {
	list, err := targets(args)
	if err != nil {
		return err
	}
	if o.watch {
		if len(list) != 1 {
			return fmt.Errorf("watch is only supported on one kind or one object, %d were named: leave --watch out, or name one", len(list))
		}
		return s.watch(ctx, list[0], o)
	}
	var groups []group
	var errs []error
	for _, t := range list {
		objects, err := s.find(ctx, t, o)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		groups = addGroup(groups, t.resource, objects)
	}
	if err := s.print(groups, list, o, len(errs) > 0); err != nil {
		return err
	}
	return errors.Join(errs...)
}

// group is the found objects of one kind.
type group struct {
	resource *resource.Resource
	objects  []structs.Object
}

// addGroup keeps kinds together in the order of the command line.
func addGroup(groups []group, r *resource.Resource, objects []structs.Object) []group {
	if n := len(groups); n > 0 && groups[n-1].resource == r {
		groups[n-1].objects = append(groups[n-1].objects, objects...)
		return groups
	}
	return append(groups, group{r, objects})
}

// find returns the objects that a target means.
func (s *session) find(ctx context.Context, t target, o getOptions) ([]structs.Object, error) {
	kind := client.Dynamic(s.conn, t.resource)
	namespace := s.namespaceOf(t.resource)
	if t.name != "" {
		if o.labels != "" || o.fields != "" || o.allNamespaces && t.resource.Namespaced {
			return nil, fmt.Errorf("%s: a resource cannot be retrieved by name together with a selector or across all namespaces: leave the name or the flag out", t)
		}
		m, err := kind.Get(ctx, namespace, t.name)
		if err != nil {
			return nil, err
		}
		found, err := structs.From(m)
		return []structs.Object{found}, err
	}
	if o.allNamespaces {
		namespace = ""
	}
	list, err := kind.List(ctx, metav1.ListRequest_builder{Namespace: namespace, LabelSelector: o.labels, FieldSelector: o.fields}.Build())
	if err != nil {
		return nil, err
	}
	objects := make([]structs.Object, 0, len(list.Items))
	for _, m := range list.Items {
		found, err := structs.From(m)
		if err != nil {
			return nil, err
		}
		objects = append(objects, found)
	}
	if t.resource.Plural == "events" && t.resource.Group == "" {
		sortEvents(objects)
	}
	return objects, nil
}

// sortEvents puts the newest last, where a terminal's reader looks.
func sortEvents(objects []structs.Object) {
	slices.SortStableFunc(objects, func(a, b structs.Object) int { return lastSeen(a.(*corev1.Event)).Compare(lastSeen(b.(*corev1.Event))) })
}

func lastSeen(e *corev1.Event) time.Time {
	switch {
	case e.Series != nil && !e.Series.LastObservedTime.IsZero():
		return e.Series.LastObservedTime.Time
	case !e.LastTimestamp.IsZero():
		return e.LastTimestamp.Time
	case !e.EventTime.IsZero():
		return e.EventTime.Time
	default:
		return e.CreationTimestamp.Time
	}
}

// print shows what was found. Nothing found is said, unless an error says why.
func (s *session) print(groups []group, list []target, o getOptions, failed bool) error {
	total := 0
	for _, g := range groups {
		total += len(g.objects)
	}
	switch o.output {
	case "yaml", "json":
		single := len(list) == 1 && list[0].name != ""
		return printObjects(s.Out, groups, single, o.output)
	case "name":
		for _, g := range groups {
			for _, found := range g.objects {
				fmt.Fprintln(s.Out, target{g.resource, found.GetName()})
			}
		}
		return nil
	}
	if total == 0 {
		if !failed {
			s.nothingFound(o.allNamespaces || !slices.ContainsFunc(groups, func(g group) bool { return g.resource.Namespaced }))
		}
		return nil
	}
	first := true
	for _, g := range groups {
		if len(g.objects) == 0 {
			continue
		}
		if !first {
			fmt.Fprintln(s.Out)
		}
		first = false
		if err := printer.Table(s.Out, g.resource, g.objects, s.tableOptions(g.resource, o, len(groups) > 1)); err != nil {
			return err
		}
	}
	return nil
}

func (s *session) nothingFound(anywhere bool) {
	if anywhere {
		fmt.Fprintln(s.Err, "No resources found")
	} else {
		fmt.Fprintf(s.Err, "No resources found in %s namespace.\n", s.namespace)
	}
}

func (s *session) tableOptions(r *resource.Resource, o getOptions, withKind bool) printer.Options {
	return printer.Options{
		Wide: o.output == "wide", WithNamespace: o.allNamespaces && r.Namespaced, WithKind: withKind,
		NoHeaders: o.noHeaders, ShowLabels: o.showLabels, Now: time.Now(),
	}
}

// printObjects writes one object, or a List of them, as kubectl does: without managed fields.
func printObjects(w io.Writer, groups []group, single bool, format string) error {
	var items []any
	for _, g := range groups {
		for _, o := range g.objects {
			o.SetManagedFields(nil)
			items = append(items, o)
		}
	}
	var value any
	switch {
	case single && len(items) == 1:
		value = items[0]
	case single:
		return nil
	default:
		if items == nil {
			items = []any{}
		}
		value = map[string]any{"apiVersion": "v1", "kind": "List", "metadata": map[string]any{"resourceVersion": ""}, "items": items}
	}
	return printValue(w, value, format)
}

func printValue(w io.Writer, value any, format string) error {
	encoded, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if format == "yaml" {
		encoded, err = yaml.JSONToYAML(encoded)
	} else {
		encoded, err = indented(encoded)
	}
	if err != nil {
		return err
	}
	_, err = w.Write(encoded)
	return err
}

// indented sorts the keys, as kubectl shows them, and keeps numbers as they are written.
func indented(encoded []byte) ([]byte, error) {
	decoder := json.NewDecoder(bytes.NewReader(encoded))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, err
	}
	encoded, err := json.MarshalIndent(value, "", "    ")
	return append(encoded, '\n'), err
}

// watch shows the state and then each change, a row or a document each, until the user ends it.
func (s *session) watch(ctx context.Context, t target, o getOptions) error {
	fields, namespace := o.fields, s.namespaceOf(t.resource)
	if t.name != "" {
		fields = strings.TrimPrefix(fields+",metadata.name="+t.name, ",")
	}
	if o.allNamespaces {
		namespace = ""
	}
	rows := printer.NewRows(s.Out)
	var initial []object.Object
	synced := false
	restart := func() { initial, synced = nil, false }
	request := metav1.WatchRequest_builder{Namespace: namespace, LabelSelector: o.labels, FieldSelector: fields}.Build()
	return s.batches(ctx, t.resource, request, restart, func(batch client.Batch[object.Object]) (bool, error) {
		var changed []object.Object
		for _, change := range batch.Changes {
			changed = append(changed, change.Object)
		}
		if !synced {
			// The state is shown at once, so that its columns are as wide as they must be.
			initial = append(initial, changed...)
			if !batch.Synced {
				return false, nil
			}
			synced, changed = true, initial
			if t.name != "" && len(initial) == 0 {
				return false, notFound(located{t, namespace})
			}
		}
		return false, s.printChanged(rows, t.resource, changed, o)
	})
}

func (s *session) printChanged(rows *printer.Rows, r *resource.Resource, changed []object.Object, o getOptions) error {
	options := s.tableOptions(r, o, false)
	var table [][]string
	for _, m := range changed {
		found, err := structs.From(m)
		if err != nil {
			return err
		}
		switch o.output {
		case "yaml", "json":
			if o.output == "yaml" && rows.Begun() {
				fmt.Fprintln(s.Out, "---")
			}
			rows.Begin()
			if err := printObjects(s.Out, []group{{r, []structs.Object{found}}}, true, o.output); err != nil {
				return err
			}
		case "name":
			fmt.Fprintln(s.Out, target{r, found.GetName()})
		default:
			row, err := printer.Row(r, found, options)
			if err != nil {
				return err
			}
			table = append(table, row)
		}
	}
	if len(table) == 0 {
		return nil
	}
	if !rows.Begun() && !o.noHeaders {
		table = append([][]string{printer.Header(r, options)}, table...)
	}
	return rows.Write(table)
}
