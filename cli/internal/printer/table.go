// Package printer shows objects as kubectl users know them: tables with Kubernetes' columns, YAML, JSON and names.
package printer

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"dhow.dev/cli/internal/structs"
	"dhow.dev/pkg/resource"
)

// Column is one column of a kind's table.
type Column struct {
	Name string
	// Wide columns are shown by `-o wide` only.
	Wide bool
}

// table says how a kind is shown: its columns between NAME and AGE, and one row's cells.
type table struct {
	columns []Column
	cells   func(o structs.Object, now time.Time) []string
	// noAge: the columns hold AGE themselves, or the kind has none.
	noAge bool
	// noName: the columns hold NAME themselves.
	noName bool
}

// Options say what is shown.
type Options struct {
	Wide          bool
	WithNamespace bool
	WithKind      bool
	NoHeaders     bool
	ShowLabels    bool
	Now           time.Time
}

// Table writes the objects of one kind as a table.
func Table(w io.Writer, r *resource.Resource, objects []structs.Object, options Options) error {
	rows := make([][]string, 0, len(objects)+1)
	if !options.NoHeaders {
		rows = append(rows, Header(r, options))
	}
	for _, o := range objects {
		rows = append(rows, Row(r, o, options))
	}
	return Align(w, rows)
}

// Header returns the names of a kind's columns.
func Header(r *resource.Resource, options Options) []string {
	t := tableOf(r)
	var row []string
	if options.WithNamespace {
		row = append(row, "NAMESPACE")
	}
	if !t.noName {
		row = append(row, "NAME")
	}
	aged := t.noAge
	for _, c := range t.columns {
		if c.Wide && !aged {
			row, aged = append(row, "AGE"), true
		}
		if !c.Wide || options.Wide {
			row = append(row, c.Name)
		}
	}
	if !aged {
		row = append(row, "AGE")
	}
	if options.ShowLabels {
		row = append(row, "LABELS")
	}
	return row
}

// Row returns one object's cells.
func Row(r *resource.Resource, o structs.Object, options Options) []string {
	t := tableOf(r)
	var row []string
	if options.WithNamespace {
		row = append(row, o.GetNamespace())
	}
	name := o.GetName()
	if options.WithKind {
		name = strings.ToLower(r.Kind)
		if r.Group != "" {
			name += "." + r.Group
		}
		name += "/" + o.GetName()
	}
	if !t.noName {
		row = append(row, name)
	}
	age := Age(o.GetCreationTimestamp(), options.Now)
	aged := t.noAge
	var cells []string
	if t.cells != nil {
		cells = t.cells(o, options.Now)
	}
	for i, c := range t.columns {
		if c.Wide && !aged {
			row, aged = append(row, age), true
		}
		if !c.Wide || options.Wide {
			row = append(row, cells[i])
		}
	}
	if !aged {
		row = append(row, age)
	}
	if options.ShowLabels {
		row = append(row, metav1.FormatLabelSelector(metav1.SetAsLabelSelector(o.GetLabels())))
	}
	return row
}

// Age is how long ago something was, in few characters.
func Age(t metav1.Time, now time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t.Time))
}

const (
	// columnGap is what kubectl puts between columns.
	columnGap = 3
	// columnWidth is the least that a column takes, its gap included.
	columnWidth = 6
)

// Align writes rows with their cells under each other.
func Align(w io.Writer, rows [][]string) error { return NewRows(w).Write(rows) }

// Rows aligns rows with those that were written before them.
type Rows struct {
	w      io.Writer
	begun  bool
	widths []int
}

// NewRows returns Rows without any.
func NewRows(w io.Writer) *Rows { return &Rows{w: w} }

// Begun says whether something was written, or Begin called.
func (r *Rows) Begun() bool { return r.begun }

// Begin says that something was written, by another way than Write.
func (r *Rows) Begin() { r.begun = true }

// Write writes rows. It changes the slice of rows, not the rows.
func (r *Rows) Write(rows [][]string) error {
	r.begun = true
	for n, row := range rows {
		row = oneLine(row)
		rows[n] = row
		for i, cell := range row {
			if i == len(r.widths) {
				r.widths = append(r.widths, columnWidth)
			}
			r.widths[i] = max(r.widths[i], utf8.RuneCountInString(cell)+columnGap)
		}
	}
	for _, row := range rows {
		var line strings.Builder
		for i, cell := range row {
			line.WriteString(cell)
			if i < len(row)-1 {
				line.WriteString(strings.Repeat(" ", r.widths[i]-utf8.RuneCountInString(cell)))
			}
		}
		if _, err := fmt.Fprintln(r.w, line.String()); err != nil {
			return err
		}
	}
	return nil
}

// oneLine cuts cells at their first line's end, and shows the escape character: what containers say must not steer the terminal.
func oneLine(row []string) []string {
	clean := make([]string, len(row))
	for i, cell := range row {
		if at := strings.IndexAny(cell, "\n\r\f"); at >= 0 {
			cell = cell[:at] + "..."
		}
		clean[i] = strings.ReplaceAll(cell, "\x1b", "^[")
	}
	return clean
}

// tableOf returns how a kind is shown; kinds without columns of their own have NAME and AGE.
func tableOf(r *resource.Resource) table {
	return tables()[r.String()]
}

// orNone is what an empty cell shows.
func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}
