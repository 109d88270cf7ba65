package command

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	klabels "k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/resource"
)

// defaultContainer is the annotation that names the container to log and to run commands in.
const defaultContainer = "kubectl.kubernetes.io/default-container"

type logOptions struct {
	container  string
	follow     bool
	previous   bool
	tail       int64
	since      time.Duration
	timestamps bool
	limit      int64
}

func newLogs(s *session) *cobra.Command {
	var o logOptions
	c := &cobra.Command{
		Use:     "logs POD|KIND/NAME [CONTAINER]",
		Short:   "Show a container's log",
		Example: "  dhow logs -f deploy/web\n  dhow logs web-0 --previous --tail=20",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 && len(args) != 2 {
				return fmt.Errorf("name one pod, or what has pods: dhow logs POD, or dhow logs deployment/NAME")
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 2 {
				if o.container != "" {
					return fmt.Errorf("the container is given twice: as %q and with -c", args[1])
				}
				o.container = args[1]
			}
			if o.tail < -1 {
				return fmt.Errorf("--tail=%d: give a number of lines, or -1 for all", o.tail)
			}
			if o.since < 0 || c.Flags().Changed("since") && o.since == 0 {
				return fmt.Errorf("--since=%s: give a duration above 0, for example 5m", o.since)
			}
			return s.logs(c.Context(), args[0], o)
		},
	}
	flags := c.Flags()
	flags.StringVarP(&o.container, "container", "c", "", "the container; by default the pod's only or first one")
	flags.BoolVarP(&o.follow, "follow", "f", false, "go on as the log grows")
	flags.BoolVarP(&o.previous, "previous", "p", false, "the log of the container's previous run")
	flags.Int64Var(&o.tail, "tail", -1, "the last lines only; -1: all")
	flags.DurationVar(&o.since, "since", 0, "only what is newer than this, for example 5m")
	flags.BoolVar(&o.timestamps, "timestamps", false, "put the time before each line")
	flags.Int64Var(&o.limit, "limit-bytes", 0, "at most this many bytes; 0: all")
	return c
}

func (s *session) logs(ctx context.Context, word string, o logOptions) error {
	pod, err := s.podOf(ctx, word)
	if err != nil {
		return err
	}
	container, err := s.containerOf(pod, o.container)
	if err != nil {
		return err
	}
	request := corev1.PodLogRequest_builder{
		Namespace: s.namespace, Name: pod.GetMetadata().GetName(), Container: container,
		Follow: o.follow, Previous: o.previous, Timestamps: o.timestamps,
	}.Build()
	if o.tail >= 0 {
		request.SetTailLines(o.tail)
	}
	if o.since > 0 {
		request.SetSinceSeconds(int64(max(o.since.Seconds(), 1)))
	}
	if o.limit > 0 {
		request.SetLimitBytes(o.limit)
	}
	stream, err := corev1.NewPodsClient(s.conn).Log(ctx, request)
	if err != nil {
		return apistatus.FromGRPC(err)
	}
	for {
		piece, err := stream.Recv()
		if errors.Is(err, io.EOF) || o.follow && ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return apistatus.FromGRPC(err)
		}
		if _, err := s.Out.Write(piece.GetData()); err != nil {
			return err
		}
	}
}

// podOf returns the pod that a word means: its name, pod/NAME, or one of the pods of a deployment or replica set, a ready one if there is any.
func (s *session) podOf(ctx context.Context, word string) (*corev1.Pod, error) {
	pods := client.For[*corev1.Pod](s.conn)
	t, err := oneTarget([]string{word})
	if err != nil {
		if strings.Contains(word, "/") {
			return nil, err
		}
		return pods.Get(ctx, s.namespace, word)
	}
	var selector *metav1.LabelSelector
	switch t.resource {
	case resource.For[*corev1.Pod]():
		return pods.Get(ctx, s.namespace, t.name)
	case resource.For[*appsv1.Deployment]():
		d, err := client.For[*appsv1.Deployment](s.conn).Get(ctx, s.namespace, t.name)
		if err != nil {
			return nil, err
		}
		selector = d.GetSpec().GetSelector()
	case resource.For[*appsv1.ReplicaSet]():
		r, err := client.For[*appsv1.ReplicaSet](s.conn).Get(ctx, s.namespace, t.name)
		if err != nil {
			return nil, err
		}
		selector = r.GetSpec().GetSelector()
	case resource.For[*appsv1.StatefulSet]():
		set, err := client.For[*appsv1.StatefulSet](s.conn).Get(ctx, s.namespace, t.name)
		if err != nil {
			return nil, err
		}
		selector = set.GetSpec().GetSelector()
	case resource.For[*appsv1.DaemonSet]():
		set, err := client.For[*appsv1.DaemonSet](s.conn).Get(ctx, s.namespace, t.name)
		if err != nil {
			return nil, err
		}
		selector = set.GetSpec().GetSelector()
	default:
		return nil, fmt.Errorf("%s: cannot tell its pods: name a pod, deployment, statefulset, daemonset or replicaset", t)
	}
	text, err := selectorText(selector)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", t, err)
	}
	list, err := pods.List(ctx, metav1.ListRequest_builder{Namespace: s.namespace, LabelSelector: text}.Build())
	if err != nil {
		return nil, err
	}
	if len(list.Items) == 0 {
		return nil, fmt.Errorf("%s has no pods", t)
	}
	chosen := slices.IndexFunc(list.Items, func(p *corev1.Pod) bool {
		return slices.ContainsFunc(p.GetStatus().GetConditions(), func(c *corev1.PodCondition) bool { return c.GetType() == "Ready" && c.GetStatus() == "True" })
	})
	pod := list.Items[max(chosen, 0)]
	if len(list.Items) > 1 {
		fmt.Fprintf(s.Err, "Found %d pods, using pod/%s\n", len(list.Items), pod.GetMetadata().GetName())
	}
	return pod, nil
}

// selectorText writes a label selector in the syntax of the command line.
func selectorText(selector *metav1.LabelSelector) (string, error) {
	set := klabels.SelectorFromSet(selector.GetMatchLabels())
	for _, e := range selector.GetMatchExpressions() {
		operators := map[string]selection.Operator{
			"In": selection.In, "NotIn": selection.NotIn, "Exists": selection.Exists, "DoesNotExist": selection.DoesNotExist,
		}
		r, err := klabels.NewRequirement(e.GetKey(), operators[e.GetOperator()], e.GetValues())
		if err != nil {
			return "", err
		}
		set = set.Add(*r)
	}
	return set.String(), nil
}

// containerOf checks the name of a container, or picks the default one.
func (s *session) containerOf(pod *corev1.Pod, name string) (string, error) {
	var names []string
	for _, c := range pod.GetSpec().GetContainers() {
		names = append(names, c.GetName())
	}
	all, shown := slices.Clone(names), slices.Clone(names)
	for _, c := range pod.GetSpec().GetInitContainers() {
		all = append(all, c.GetName())
		shown = append(shown, c.GetName()+" (init)")
	}
	if name == "" {
		name = pod.GetMetadata().GetAnnotations()[defaultContainer]
	}
	switch {
	case name != "" && slices.Contains(all, name):
		return name, nil
	case name != "":
		return "", fmt.Errorf("container %s is not valid for pod %s: use one of %s", name, pod.GetMetadata().GetName(), strings.Join(all, ", "))
	case len(names) == 0:
		return "", fmt.Errorf("pod %s has no containers", pod.GetMetadata().GetName())
	case len(all) > 1:
		fmt.Fprintf(s.Err, "Defaulted container %q out of: %s\n", names[0], strings.Join(shown, ", "))
	}
	return names[0], nil
}
