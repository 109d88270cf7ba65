// Package describe shows one object in full, as text for people, with the events about it.
package describe

import (
	"encoding/json"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"dhow.dev/cli/internal/structs"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/table"
)

// Related is what else is known about an object.
type Related struct {
	// Events about it, the newest last.
	Events []*corev1.Event
	// Pods on a node.
	Pods []*corev1.Pod
	// EndpointSlices of a service.
	EndpointSlices []*discoveryv1.EndpointSlice
	// ReplicaSets of a deployment.
	ReplicaSets []*appsv1.ReplicaSet
}

// Object writes the description of an object.
func Object(w io.Writer, r *resource.Resource, o structs.Object, related Related, now time.Time) error {
	d := &document{now: now}
	d.field("Name", o.GetName())
	if r.Namespaced {
		d.field("Namespace", o.GetNamespace())
	}
	switch o := o.(type) {
	case *corev1.Pod:
		d.pod(o)
	case *corev1.Node:
		d.node(o, related.Pods)
	case *corev1.Service:
		d.service(o, related.EndpointSlices)
	case *corev1.Secret:
		d.secret(o)
	case *corev1.ConfigMap:
		d.configMap(o)
	case *appsv1.Deployment:
		d.deployment(o, related.ReplicaSets)
	case *appsv1.ReplicaSet:
		d.replicaSet(o)
	case *appsv1.StatefulSet:
		d.statefulSet(o)
	case *appsv1.DaemonSet:
		d.daemonSet(o)
	default:
		if err := d.generic(o); err != nil {
			return err
		}
	}
	d.events(related.Events)
	return d.write(w)
}

// document is lines of `label: value`, indented, whose values stand under each other within a level.
type document struct {
	now   time.Time
	level int
	lines []line
}

type line struct {
	level        int
	label, value string
	// table lines are aligned among themselves and have no label.
	table []string
}

func (d *document) field(label, value string) {
	d.lines = append(d.lines, line{level: d.level, label: label + ":", value: value})
}

func (d *document) fieldf(label, format string, args ...any) {
	d.field(label, fmt.Sprintf(format, args...))
}

// time writes when something was, if it was.
func (d *document) time(label string, t metav1.Time) {
	if !t.IsZero() {
		d.field(label, t.Format(time.RFC1123Z))
	}
}

// section writes a label and what f writes one level deeper.
func (d *document) section(label string, f func()) {
	d.field(label, "")
	d.level++
	f()
	d.level--
}

func (d *document) row(cells ...string) {
	d.lines = append(d.lines, line{level: d.level, table: cells})
}

// metadata writes labels and annotations.
func (d *document) metadata(o metav1.Object) {
	d.mapping("Labels", o.GetLabels())
	annotations := map[string]string{}
	for k, v := range o.GetAnnotations() {
		if k != corev1.LastAppliedConfigAnnotation {
			annotations[k] = v
		}
	}
	d.mapping("Annotations", annotations)
}

// mapping writes a map, a line each.
func (d *document) mapping(label string, m map[string]string) {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	if len(keys) == 0 {
		d.field(label, "<none>")
		return
	}
	for i, k := range keys {
		if i > 0 {
			d.lines = append(d.lines, line{level: d.level, label: "", value: k + "=" + m[k]})
			continue
		}
		d.field(label, k+"="+m[k])
	}
}

// list writes values, a line each.
func (d *document) list(label string, values []string) {
	if len(values) == 0 {
		d.field(label, "<none>")
		return
	}
	d.field(label, values[0])
	for _, v := range values[1:] {
		d.lines = append(d.lines, line{level: d.level, value: v})
	}
}

func (d *document) controlledBy(o metav1.Object) {
	if owner := metav1.GetControllerOf(o); owner != nil {
		d.field("Controlled By", owner.Kind+"/"+owner.Name)
	}
}

// conditions writes a table of type, status, reason and message.
func (d *document) conditions(rows [][]string) {
	if len(rows) == 0 {
		return
	}
	d.section("Conditions", func() {
		d.row("Type", "Status", "Reason", "Message")
		d.row("----", "------", "------", "-------")
		for _, r := range rows {
			d.row(r...)
		}
	})
}

func (d *document) events(events []*corev1.Event) {
	if len(events) == 0 {
		d.field("Events", "<none>")
		return
	}
	d.section("Events", func() {
		d.row("Type", "Reason", "Age", "From", "Message")
		d.row("----", "------", "----", "----", "-------")
		for _, e := range events {
			age := table.EventAge(e, d.now)
			if e.Count > 1 {
				age = fmt.Sprintf("%s (x%d over %s)", age, e.Count, table.Age(e.FirstTimestamp, d.now))
			}
			from := e.Source.Component
			if from == "" {
				from = e.ReportingController
			}
			d.row(e.Type, e.Reason, age, from, strings.TrimSpace(e.Message))
		}
	})
}

// generic shows any kind: its metadata, then its other fields as YAML.
func (d *document) generic(o structs.Object) error {
	d.metadata(o)
	d.time("CreationTimestamp", o.GetCreationTimestamp())
	encoded, err := json.Marshal(o)
	if err != nil {
		return err
	}
	var fields map[string]any
	if err := json.Unmarshal(encoded, &fields); err != nil {
		return err
	}
	keys := make([]string, 0, len(fields))
	for k := range fields {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	for _, k := range keys {
		if k == "metadata" || k == "kind" || k == "apiVersion" {
			continue
		}
		text, err := yaml.Marshal(fields[k])
		if err != nil {
			return err
		}
		lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
		label := strings.ToUpper(k[:1]) + k[1:]
		if len(lines) == 1 {
			d.field(label, lines[0])
			continue
		}
		d.section(label, func() {
			for _, l := range lines {
				d.row(l)
			}
		})
	}
	return nil
}

func (d *document) write(w io.Writer) error {
	// Values of one run of lines of one level stand under each other; so do the cells of one run of table rows.
	for i := 0; i < len(d.lines); {
		j := i
		for j < len(d.lines) && (d.lines[j].table == nil) == (d.lines[i].table == nil) && (d.lines[i].table == nil || d.lines[j].level == d.lines[i].level) {
			j++
		}
		var err error
		if d.lines[i].table == nil {
			err = writeFields(w, d.lines[i:j])
		} else {
			err = writeTable(w, d.lines[i:j])
		}
		if err != nil {
			return err
		}
		i = j
	}
	return nil
}

func writeFields(w io.Writer, lines []line) error {
	widths := map[int]int{}
	for _, l := range lines {
		if l.value != "" {
			widths[l.level] = max(widths[l.level], len(l.label))
		}
	}
	for _, l := range lines {
		text := strings.Repeat("  ", l.level) + l.label
		if l.value != "" {
			// A value of several lines stands under its first one; escape characters are shown, not obeyed.
			indent := "\n" + strings.Repeat(" ", 2*l.level+widths[l.level]+2)
			l.value = strings.ReplaceAll(strings.ReplaceAll(l.value, "\n", indent), "\x1b", "^[")
			text += strings.Repeat(" ", widths[l.level]-len(l.label)+2) + l.value
		}
		if _, err := fmt.Fprintln(w, text); err != nil {
			return err
		}
	}
	return nil
}

func writeTable(w io.Writer, lines []line) error {
	var widths []int
	for _, l := range lines {
		for i, cell := range l.table {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], len(cell))
		}
	}
	for _, l := range lines {
		text := strings.Repeat("  ", l.level)
		for i, cell := range l.table {
			text += strings.ReplaceAll(cell, "\x1b", "^[")
			if i < len(l.table)-1 {
				text += strings.Repeat(" ", widths[i]-len(cell)+2)
			}
		}
		if _, err := fmt.Fprintln(w, strings.TrimRight(text, " ")); err != nil {
			return err
		}
	}
	return nil
}
