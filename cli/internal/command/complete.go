package command

import (
	"slices"
	"strings"

	"github.com/spf13/cobra"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

// completion proposes words for the shell. What the cluster does not answer is not proposed: an error would only disturb who types.
type completion = func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective)

// addCompletions gives the commands what the shell proposes for their arguments and flags.
func addCompletions(s *session, root *cobra.Command) {
	pods := s.completeNames(resource.For[*corev1.Pod]())
	nodes := s.completeNames(resource.For[*corev1.Node]())
	byName := map[string]completion{
		"get": s.completeTargets, "describe": s.completeTargets, "delete": s.completeTargets, "wait": s.completeTargets, "scale": s.completeTargets,
		"logs": first(pods), "exec": first(pods), "why": first(pods), "cordon": nodes, "uncordon": nodes,
	}
	for _, c := range root.Commands() {
		if f := byName[c.Name()]; f != nil {
			c.ValidArgsFunction = f
		}
		for _, below := range c.Commands() {
			if c.Name() == "rollout" {
				below.ValidArgsFunction = first(s.completeRollouts)
			}
		}
		for flag, words := range map[string][]string{"output": outputs[1:], "cascade": {"background", "foreground", "orphan"}, "dry-run": {"server", "none"}} {
			if c.Flags().Lookup(flag) != nil {
				c.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp))
			}
		}
	}
	namespaces := s.completeNames(resource.For[*corev1.Namespace]())
	root.RegisterFlagCompletionFunc("namespace", func(c *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return namespaces(c, nil, word)
	})
}

// first proposes something for the first argument only.
func first(f completion) completion {
	return func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return f(c, args, word)
	}
}

// names lists the objects of a kind.
func (s *session) names(c *cobra.Command, r *resource.Resource) []string {
	if s.conn == nil && s.open(c) != nil {
		return nil
	}
	list, err := client.Dynamic(s.conn, r).List(c.Context(), metav1.ListRequest_builder{Namespace: s.namespaceOf(r)}.Build())
	if err != nil {
		return nil
	}
	names := make([]string, 0, len(list.Items))
	for _, o := range list.Items {
		names = append(names, object.KeyOf(o).Name)
	}
	return names
}

// completeRollouts proposes what has rollouts, as KIND/NAME.
func (s *session) completeRollouts(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	var found []string
	for _, r := range []*resource.Resource{resource.For[*appsv1.Deployment](), resource.For[*appsv1.StatefulSet](), resource.For[*appsv1.DaemonSet]()} {
		for _, name := range s.names(c, r) {
			if full := r.Singular() + "/" + name; strings.HasPrefix(full, word) {
				found = append(found, full)
			}
		}
	}
	return found, cobra.ShellCompDirectiveNoFileComp
}

// completeNames proposes the names of a kind's objects.
func (s *session) completeNames(r *resource.Resource) completion {
	return func(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		if strings.Contains(word, "/") {
			return s.completeTargets(c, args, word)
		}
		var found []string
		for _, name := range s.names(c, r) {
			if strings.HasPrefix(name, word) && !slices.Contains(args, name) {
				found = append(found, name)
			}
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeTargets proposes kinds, then names of the kind.
func (s *session) completeTargets(c *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
	if kind, name, found := strings.Cut(word, "/"); found {
		var list []string
		if r, err := resource.Find(kind); err == nil {
			for _, n := range s.names(c, r) {
				if strings.HasPrefix(n, name) && !slices.Contains(args, kind+"/"+n) {
					list = append(list, kind+"/"+n)
				}
			}
		}
		return list, cobra.ShellCompDirectiveNoFileComp
	}
	if len(args) > 0 {
		r, err := resource.Find(args[0])
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return s.completeNames(r)(c, args[1:], word)
	}
	var kinds []string
	for _, r := range resource.Stored() {
		name := r.Plural
		if shortest, err := resource.Find(name); err != nil || shortest != r {
			name = r.String()
		}
		if strings.HasPrefix(name, word) {
			kinds = append(kinds, name)
		}
	}
	return kinds, cobra.ShellCompDirectiveNoFileComp
}
