package command

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

// mergePatch changes one object by a JSON merge patch.
func (s *session) mergePatch(ctx context.Context, t target, patch any) (object.Object, error) {
	encoded, err := json.Marshal(patch)
	if err != nil {
		return nil, err
	}
	header, warn := s.warn(t)
	defer warn()
	return client.Dynamic(s.conn, t.resource).Patch(ctx, metav1.PatchRequest_builder{
		Namespace: s.namespaceOf(t.resource), Name: t.name, Type: metav1.PatchType_PATCH_TYPE_MERGE, Patch: encoded,
		Options: metav1.WriteOptions_builder{FieldManager: editManager}.Build(),
	}.Build(), header)
}

// hasReplicas says whether a kind can be scaled.
func hasReplicas(t target) bool {
	spec := t.resource.Descriptor().Fields().ByName("spec")
	return spec != nil && spec.Message() != nil && spec.Message().Fields().ByName("replicas") != nil
}

func newScale(s *session) *cobra.Command {
	replicas := -1
	c := &cobra.Command{
		Use:     "scale KIND/NAME --replicas=N",
		Short:   "Set how many replicas a workload has",
		Example: "  dhow scale deployment/web --replicas=5",
		RunE: func(c *cobra.Command, args []string) error {
			list, err := targets(args)
			if err != nil {
				return err
			}
			if replicas < 0 {
				return fmt.Errorf("--replicas=%d: give the number of replicas, 0 or more", replicas)
			}
			for _, t := range list {
				if t.name == "" || !hasReplicas(t) {
					return fmt.Errorf("%s cannot be scaled: name something that has replicas, for example deployment/web", t)
				}
				if _, err := s.mergePatch(c.Context(), t, map[string]any{"spec": map[string]any{"replicas": replicas}}); err != nil {
					return err
				}
				fmt.Fprintf(s.Out, "%s scaled\n", t)
			}
			return nil
		},
	}
	c.Flags().IntVar(&replicas, "replicas", -1, "the number of replicas")
	c.MarkFlagRequired("replicas")
	return c
}

func newCordon(s *session) *cobra.Command {
	return s.cordonCommand("cordon", "Let no new pods onto a node", true)
}

func newUncordon(s *session) *cobra.Command {
	return s.cordonCommand("uncordon", "Let new pods onto a node again", false)
}

// nodeWords lets a node be called NAME, node/NAME or no/NAME.
func nodeWords(name string) []string {
	if strings.Contains(name, "/") {
		return []string{name}
	}
	return []string{"node", name}
}

func (s *session) cordonCommand(word, short string, unschedulable bool) *cobra.Command {
	return &cobra.Command{
		Use:     word + " NODE...",
		Short:   short,
		Example: "  dhow " + word + " n1",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return fmt.Errorf("name at least one: dhow %s NODE...", word)
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			for _, name := range args {
				list, err := targets(nodeWords(name))
				if err != nil {
					return err
				}
				node := list[0]
				if node.resource != resource.For[*corev1.Node]() {
					return fmt.Errorf("%s: only nodes can be %sed", name, word)
				}
				before, err := client.Dynamic(s.conn, node.resource).Get(c.Context(), "", node.name)
				if err != nil {
					return err
				}
				// null removes the field, as a node that was never cordoned has none.
				var value any
				if unschedulable {
					value = true
				}
				after, err := s.mergePatch(c.Context(), node, map[string]any{"spec": map[string]any{"unschedulable": value}})
				if err != nil {
					return err
				}
				if object.Revision(before) == object.Revision(after) {
					fmt.Fprintf(s.Out, "%s already %sed\n", node, word)
				} else {
					fmt.Fprintf(s.Out, "%s %sed\n", node, word)
				}
			}
			return nil
		},
	}
}
