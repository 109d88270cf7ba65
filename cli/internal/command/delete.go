package command

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/cli/internal/manifest"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
)

type deleteOptions struct {
	files          []string
	recursive      bool
	labels         string
	all            bool
	wait           bool
	force          bool
	gracePeriod    int64
	timeout        time.Duration
	cascade        string
	ignoreNotFound bool
}

var propagation = map[string]metav1.PropagationPolicy{
	"background": metav1.PropagationPolicy_PROPAGATION_POLICY_BACKGROUND,
	"foreground": metav1.PropagationPolicy_PROPAGATION_POLICY_FOREGROUND,
	"orphan":     metav1.PropagationPolicy_PROPAGATION_POLICY_ORPHAN,
}

func newDelete(s *session) *cobra.Command {
	var o deleteOptions
	c := &cobra.Command{
		Use:     "delete (KIND/NAME... | KIND NAME... | KIND -l SELECTOR | KIND --all | -f FILE)",
		Short:   "Delete objects",
		Example: "  dhow delete deployment/web\n  dhow delete -f examples/guestbook/manifests",
		RunE:    func(c *cobra.Command, args []string) error { return s.delete(c.Context(), args, o) },
	}
	flags := c.Flags()
	flags.StringArrayVarP(&o.files, "filename", "f", nil, "delete what these manifests hold; may be repeated")
	flags.BoolVarP(&o.recursive, "recursive", "R", false, "go into folders of folders")
	flags.StringVarP(&o.labels, "selector", "l", "", "delete what has these labels")
	flags.BoolVar(&o.all, "all", false, "delete all objects of the kind in the namespace")
	flags.BoolVar(&o.wait, "wait", true, "wait until the objects are gone")
	flags.BoolVar(&o.force, "force", false, "with --grace-period=0: do not wait for the node to confirm that a pod has ended")
	flags.Int64Var(&o.gracePeriod, "grace-period", -1, "seconds that a pod has to end; -1: the pod's own")
	flags.DurationVar(&o.timeout, "timeout", 0, "how long to wait; 0: as long as it takes")
	flags.StringVar(&o.cascade, "cascade", "background", "what becomes of dependents: background, foreground or orphan")
	flags.BoolVar(&o.ignoreNotFound, "ignore-not-found", false, "an object that does not exist is no error")
	return c
}

// located is a target with its namespace.
type located struct {
	target
	namespace string
}

func (s *session) delete(ctx context.Context, args []string, o deleteOptions) error {
	policy, ok := propagation[o.cascade]
	if !ok {
		return fmt.Errorf("--cascade=%s: use background, foreground or orphan", o.cascade)
	}
	if o.force && o.gracePeriod > 0 {
		return errors.New("--force and --grace-period greater than 0 cannot be specified together")
	}
	if o.gracePeriod < -1 {
		return fmt.Errorf("--grace-period=%d: give seconds, 0 or more, or -1 for the pod's own", o.gracePeriod)
	}
	if o.gracePeriod == 0 && !o.force {
		// As kubectl does: without --force the node still confirms, in the shortest time there is.
		o.gracePeriod = 1
	}
	if o.force && o.gracePeriod < 0 {
		o.gracePeriod = 0
	}
	if o.force {
		fmt.Fprintln(s.Err, "Warning: Immediate deletion does not wait for confirmation that the running resource has been terminated. The resource may continue to run on the cluster indefinitely.")
	}
	list, err := s.toDelete(ctx, args, o)
	if err != nil {
		return err
	}
	if s.explicit && slices.ContainsFunc(list, func(l located) bool { return !l.resource.Namespaced }) {
		fmt.Fprintln(s.Err, "Warning: deleting cluster-scoped resources, not scoped to the provided namespace")
	}
	options := metav1.DeletionOptions_builder{PropagationPolicy: policy}.Build()
	if o.gracePeriod >= 0 {
		options.SetGracePeriodSeconds(o.gracePeriod)
	}
	var deleted []located
	var uids []string
	var errs []error
	for _, l := range list {
		last, err := client.Dynamic(s.conn, l.resource).Delete(ctx, l.namespace, l.name, options)
		if apierrors.IsNotFound(err) && o.ignoreNotFound {
			continue
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		word := "deleted"
		if o.gracePeriod == 0 {
			word = "force deleted"
		}
		fmt.Fprintf(s.Out, "%s %q %s%s\n", kindName(l.resource), l.name, word, inNamespace(l))
		deleted, uids = append(deleted, l), append(uids, last.GetMetadata().GetUid())
	}
	if o.wait {
		ctx, cancel := withTimeout(ctx, o.timeout)
		defer cancel()
		for i, l := range deleted {
			if err := s.waitGone(ctx, l, uids[i]); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errors.Join(errs...)
}

func inNamespace(l located) string {
	if l.namespace == "" {
		return ""
	}
	return fmt.Sprintf(" from %s namespace", l.namespace)
}

func (s *session) toDelete(ctx context.Context, args []string, o deleteOptions) ([]located, error) {
	var list []located
	if len(o.files) > 0 {
		if len(args) > 0 {
			return nil, errors.New("name objects or manifests, not both")
		}
		objects, err := manifest.Read(manifest.Options{Paths: o.files, Recursive: o.recursive, In: s.In, Namespace: s.namespace, Enforce: s.explicit})
		if err != nil {
			return nil, err
		}
		slices.SortStableFunc(objects, func(a, b manifest.Object) int { return place(b) - place(a) })
		for _, m := range objects {
			list = append(list, located{target{m.Resource, m.Name}, m.Namespace})
		}
		return list, nil
	}
	named, err := targets(args)
	if err != nil {
		return nil, err
	}
	for _, t := range named {
		switch {
		case t.name != "" && (o.labels != "" || o.all):
			return nil, errors.New("name cannot be provided when a selector or --all is specified")
		case t.name != "":
			list = append(list, located{t, s.namespaceOf(t.resource)})
		case o.labels == "" && !o.all:
			return nil, errors.New("resource(s) were provided, but no name was specified: name objects, or use -l or --all")
		default:
			found, err := client.Dynamic(s.conn, t.resource).List(ctx, metav1.ListRequest_builder{Namespace: s.namespaceOf(t.resource), LabelSelector: o.labels}.Build())
			if err != nil {
				return nil, err
			}
			for _, m := range found.Items {
				key := object.KeyOf(m)
				list = append(list, located{target{t.resource, key.Name}, key.Namespace})
			}
		}
	}
	if len(list) == 0 {
		fmt.Fprintln(s.Out, "No resources found")
	}
	return list, nil
}

// waitGone waits until no object of that name has the UID any more.
func (s *session) waitGone(ctx context.Context, l located, uid string) error {
	return s.follow(ctx, l, func(o object.Object) (bool, error) {
		return o == nil || o.GetMetadata().GetUid() != uid, nil
	})
}
