// Package table holds the columns that people know of every kind, and what their cells say: names, types, priorities and values are those of
// Kubernetes v1.36's server-side tables (https://kubernetes.io/docs/reference/using-api/api-concepts/#receiving-resources-as-tables). The Kubernetes
// door answers `as=Table` with them and `dhow get` prints them, so that both look alike.
package table

import (
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/duration"

	"dhow.dev/pkg/resource"
)

// Columns returns the columns of a kind. Those of priority 0 are shown always, the others by `-o wide`. The slice is shared and must not be changed.
func Columns(r *resource.Resource) []metav1.TableColumnDefinition {
	return definitionOf(r).columns
}

// Rows returns a row for an object, or for each item of a list, as of now. A row's Object is left empty: what goes with a row is the caller's choice
// (includeObject). The object is a struct of k8s.io/api; one of another kind than r's is an error.
func Rows(r *resource.Resource, object runtime.Object, now time.Time) ([]metav1.TableRow, error) {
	d := definitionOf(r)
	if !meta.IsListType(object) {
		row, err := d.row(object, now)
		if err != nil {
			return nil, err
		}
		return []metav1.TableRow{row}, nil
	}
	rows := make([]metav1.TableRow, 0, meta.LenList(object))
	err := meta.EachListItem(object, func(item runtime.Object) error {
		row, err := d.row(item, now)
		rows = append(rows, row)
		return err
	})
	if err != nil {
		return nil, err
	}
	return rows, nil
}

// definition says how a kind is shown.
type definition struct {
	columns []metav1.TableColumnDefinition
	// cells returns as many cells as there are columns, the wide ones included.
	cells func(o runtime.Object, now time.Time) ([]any, error)
}

func (d definition) row(o runtime.Object, now time.Time) (metav1.TableRow, error) {
	cells, err := d.cells(o, now)
	if err != nil {
		return metav1.TableRow{}, err
	}
	return metav1.TableRow{Cells: cells, Conditions: completed(o)}, nil
}

// completed marks the rows of pods that have ended, so that clients can leave them out.
func completed(o runtime.Object) []metav1.TableRowCondition {
	pod, ok := o.(*corev1.Pod)
	if !ok {
		return nil
	}
	message := ""
	switch pod.Status.Phase {
	case corev1.PodSucceeded:
		message = "The pod has completed successfully."
	case corev1.PodFailed:
		message = "The pod failed."
	default:
		return nil
	}
	return []metav1.TableRowCondition{{Type: metav1.RowCompleted, Status: metav1.ConditionTrue, Reason: string(pod.Status.Phase), Message: message}}
}

// define makes a definition of a kind whose struct is T.
func define[T runtime.Object](columns []metav1.TableColumnDefinition, cells func(o T, now time.Time) []any) definition {
	return definition{columns: columns, cells: func(o runtime.Object, now time.Time) ([]any, error) {
		object, ok := o.(T)
		if !ok {
			var want T
			return nil, fmt.Errorf("table: a row of %T was asked for %T", want, o)
		}
		return cells(object, now), nil
	}}
}

// definitions is filled on first use: most processes never show a table.
var definitions = sync.OnceValue(func() map[schema.GroupKind]definition {
	all := map[schema.GroupKind]definition{}
	for _, group := range []map[schema.GroupKind]definition{coreKinds(), workloadKinds(), networkKinds(), storageKinds(), accessKinds(), clusterKinds()} {
		for kind, d := range group {
			all[kind] = d
		}
	}
	return all
})

func definitionOf(r *resource.Resource) definition {
	if d, found := definitions()[schema.GroupKind{Group: r.Group, Kind: r.Kind}]; found {
		return d
	}
	return plain()
}

// plain is how kinds without columns of their own are shown.
func plain() definition {
	return definition{
		columns: []metav1.TableColumnDefinition{
			name(),
			{Name: "Created At", Type: "date", Description: metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]},
		},
		cells: func(o runtime.Object, _ time.Time) ([]any, error) {
			m, err := meta.Accessor(o)
			if err != nil {
				return nil, err
			}
			return []any{m.GetName(), m.GetCreationTimestamp().UTC().Format(time.RFC3339)}, nil
		},
	}
}

// documented is what the structs of k8s.io/api know of their fields.
type documented interface{ SwaggerDoc() map[string]string }

// name is the column that names the object.
func name() metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: "Name", Type: "string", Format: "name", Description: metav1.ObjectMeta{}.SwaggerDoc()["name"]}
}

func age() metav1.TableColumnDefinition {
	return text("Age", metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"])
}

func text(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "string", Description: description}
}

func number(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "integer", Description: description}
}

func boolean(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "boolean", Description: description}
}

// wide makes a column one that is only shown when asked for.
func wide(c metav1.TableColumnDefinition) metav1.TableColumnDefinition {
	c.Priority = 1
	return c
}

// doc is what a struct says of one of its fields.
func doc(of documented, field string) string { return of.SwaggerDoc()[field] }

// Age is how long ago something was, in few characters.
func Age(t metav1.Time, now time.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(t.Time))
}

func microAge(t metav1.MicroTime, now time.Time) string { return Age(metav1.Time{Time: t.Time}, now) }

// orElse is what an empty cell shows.
func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

func orNone(s string) string { return orElse(s, "<none>") }

// valueOr returns what p points to, or a default.
func valueOr[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}

// shown is how many items of a list a cell shows.
const shown = 3

// someOf shows the first items of a list and how many more there are.
func someOf(list []string, empty string) string {
	if len(list) > shown {
		return fmt.Sprintf("%s + %d more...", strings.Join(list[:shown], ","), len(list)-shown)
	}
	return orElse(strings.Join(list, ","), empty)
}
