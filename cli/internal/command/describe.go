package command

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	kappsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	kdiscoveryv1 "k8s.io/api/discovery/v1"

	"dhow.dev/cli/internal/describe"
	"dhow.dev/cli/internal/structs"
	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	dhowcorev1 "dhow.dev/gen/go/dhow/core/v1"
	discoveryv1 "dhow.dev/gen/go/dhow/discovery/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
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
			var errs []error
			for _, t := range list {
				objects, err := s.find(c.Context(), t, o)
				if err != nil {
					errs = append(errs, err)
					continue
				}
				for _, found := range objects {
					if !first {
						fmt.Fprint(s.Out, "\n\n")
					}
					first = false
					related, err := s.related(c.Context(), found)
					if err != nil {
						return err
					}
					if err := describe.Object(s.Out, t.resource, found, related, time.Now()); err != nil {
						return err
					}
				}
			}
			if first && len(errs) == 0 {
				s.nothingFound(o.allNamespaces || !list[0].resource.Namespaced)
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().StringVarP(&o.labels, "selector", "l", "", "objects with these labels")
	c.Flags().BoolVarP(&o.allNamespaces, "all-namespaces", "A", false, "objects of all namespaces")
	return c
}

// related reads what a description shows besides the object.
func (s *session) related(ctx context.Context, o structs.Object) (describe.Related, error) {
	var related describe.Related
	var err error
	events := metav1.ListRequest_builder{Namespace: o.GetNamespace(), FieldSelector: "involvedObject.uid=" + string(o.GetUID())}.Build()
	if related.Events, err = list[*dhowcorev1.Event, *corev1.Event](ctx, s, events); err != nil {
		return related, err
	}
	slices.SortStableFunc(related.Events, func(a, b *corev1.Event) int { return lastSeen(a).Compare(lastSeen(b)) })
	switch o := o.(type) {
	case *corev1.Node:
		related.Pods, err = list[*dhowcorev1.Pod, *corev1.Pod](ctx, s, metav1.ListRequest_builder{FieldSelector: "spec.nodeName=" + o.Name}.Build())
	case *corev1.Service:
		of := metav1.ListRequest_builder{Namespace: o.Namespace, LabelSelector: kdiscoveryv1.LabelServiceName + "=" + o.Name}.Build()
		related.EndpointSlices, err = list[*discoveryv1.EndpointSlice, *kdiscoveryv1.EndpointSlice](ctx, s, of)
	case *kappsv1.Deployment:
		related.ReplicaSets, err = list[*appsv1.ReplicaSet, *kappsv1.ReplicaSet](ctx, s, metav1.ListRequest_builder{Namespace: o.Namespace}.Build())
	}
	return related, err
}

// list returns the objects that a request selects, as the structs of their kind.
func list[M object.Object, S structs.Object](ctx context.Context, s *session, request *metav1.ListRequest) ([]S, error) {
	found, err := client.For[M](s.conn).List(ctx, request)
	if err != nil {
		return nil, err
	}
	typed := make([]S, len(found.Items))
	for i, m := range found.Items {
		o, err := structs.From(m)
		if err != nil {
			return nil, err
		}
		typed[i] = o.(S)
	}
	return typed, nil
}
