// Package printer lays the tables of package table out for a terminal, as kubectl does.
package printer

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/cli/internal/structs"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/table"
)

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
		row, err := Row(r, o, options)
		if err != nil {
			return err
		}
		rows = append(rows, row)
	}
	return Align(w, rows)
}

// Header returns the names of a kind's columns.
func Header(r *resource.Resource, options Options) []string {
	var row []string
	if options.WithNamespace {
		row = append(row, "NAMESPACE")
	}
	for _, c := range table.Columns(r) {
		if c.Priority == 0 || options.Wide {
			row = append(row, strings.ToUpper(c.Name))
		}
	}
	if options.ShowLabels {
		row = append(row, "LABELS")
	}
	return row
}

// Row returns one object's cells.
func Row(r *resource.Resource, o structs.Object, options Options) ([]string, error) {
	rows, err := table.Rows(r, o, options.Now)
	if err != nil {
		return nil, err
	}
	var row []string
	if options.WithNamespace {
		row = append(row, o.GetNamespace())
	}
	named := false
	for i, c := range table.Columns(r) {
		cell := fmt.Sprint(rows[0].Cells[i])
		if c.Format == "name" && !named {
			named = true
			if options.WithKind {
				cell = strings.ToLower(schema.GroupKind{Group: r.Group, Kind: r.Kind}.String()) + "/" + cell
			}
		}
		if c.Priority == 0 || options.Wide {
			row = append(row, cell)
		}
	}
	if options.ShowLabels {
		row = append(row, metav1.FormatLabelSelector(metav1.SetAsLabelSelector(o.GetLabels())))
	}
	return row, nil
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
