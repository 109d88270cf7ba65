package command

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"

	"dhow.dev/cli/internal/describe"
	"dhow.dev/cli/internal/structs"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/resource"
)

func newDescribe(s *session) *cobra.Command {
	var o getOptions
	c := &cobra.Command{
		Use:     "describe KIND[/NAME] [NAME...]",
		Short:   "Show an object in full, with its events",
		Example: "  dhow describe pod web-0\n  dhow describe deploy/web",
		RunE: func(c *cobra.Command, args []string) error {
			list, err := targets(args)
			if err != nil {
				return err
			}
			first := true
			for _, t := range list {
				objects, err := s.find(c.Context(), t, o)
				if err != nil {
					return err
				}
				for _, found := range objects {
					if !first {
						fmt.Fprint(s.Out, "\n\n")
					}
					first = false
					events, err := s.eventsOf(c.Context(), found)
					if err != nil {
						return err
					}
					if err := describe.Object(s.Out, t.resource, found, events, time.Now()); err != nil {
						return err
					}
				}
			}
			if first {
				fmt.Fprintf(s.Err, "No resources found in %s namespace.\n", s.namespace)
			}
			return nil
		},
	}
	c.Flags().StringVarP(&o.labels, "selector", "l", "", "objects with these labels")
	c.Flags().BoolVarP(&o.allNamespaces, "all-namespaces", "A", false, "objects of all namespaces")
	return c
}

// eventsOf lists the events about an object, the newest last.
func (s *session) eventsOf(ctx context.Context, o structs.Object) ([]*corev1.Event, error) {
	events, err := resource.Find("events")
	if err != nil {
		return nil, err
	}
	list, err := client.Dynamic(s.conn, events).List(ctx, metav1.ListRequest_builder{
		Namespace: o.GetNamespace(), FieldSelector: "involvedObject.uid=" + string(o.GetUID()),
	}.Build())
	if err != nil {
		return nil, err
	}
	var found []structs.Object
	for _, m := range list.Items {
		e, err := structs.From(m)
		if err != nil {
			return nil, err
		}
		found = append(found, e)
	}
	sortEvents(found)
	typed := make([]*corev1.Event, len(found))
	for i, e := range found {
		typed[i] = e.(*corev1.Event)
	}
	return typed, nil
}
