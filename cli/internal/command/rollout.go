package command

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	"dhow.dev/cli/internal/structs"
	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

const (
	// revisionAnnotation numbers a deployment's templates; the deployment controller writes it on deployment and replica sets.
	revisionAnnotation = "deployment.kubernetes.io/revision"
	// podTemplateHash is the label that the deployment controller adds to a replica set's template.
	podTemplateHash = "pod-template-hash"
)

func newRollout(s *session) *cobra.Command {
	c := &cobra.Command{Use: "rollout", Short: "Follow and undo the rollout of a deployment, statefulset or daemonset"}
	c.AddCommand(newRolloutStatus(s), newRolloutUndo(s))
	return c
}

// rolledOut says that the kind replaces its pods when its template changes.
func rolledOut(r *resource.Resource) bool {
	switch r {
	case resource.For[*appsv1.Deployment](), resource.For[*appsv1.StatefulSet](), resource.For[*appsv1.DaemonSet]():
		return true
	}
	return false
}

func rolloutTarget(args []string) (target, error) {
	t, err := oneTarget(args)
	if err != nil {
		return t, err
	}
	if !rolledOut(t.resource) {
		return t, fmt.Errorf("%s: only deployments, statefulsets and daemonsets have rollouts: use deployment/NAME", t)
	}
	return t, nil
}

func newRolloutStatus(s *session) *cobra.Command {
	var timeout time.Duration
	var watch bool
	c := &cobra.Command{
		Use:     "status KIND/NAME",
		Short:   "Follow a rollout until it is complete",
		Example: "  dhow rollout status deploy/web",
		RunE: func(c *cobra.Command, args []string) error {
			t, err := rolloutTarget(args)
			if err != nil {
				return err
			}
			return s.rolloutStatus(c.Context(), t, timeout, watch)
		},
	}
	c.Flags().DurationVar(&timeout, "timeout", 0, "how long to wait; 0: as long as it takes")
	c.Flags().BoolVarP(&watch, "watch", "w", true, "wait until the rollout is complete")
	return c
}

func (s *session) rolloutStatus(ctx context.Context, t target, timeout time.Duration, watch bool) error {
	ctx, cancel := withTimeout(ctx, timeout)
	defer cancel()
	last := ""
	return s.follow(ctx, located{t, s.namespace}, func(o object.Object) (bool, error) {
		if o == nil && last != "" {
			return false, fmt.Errorf("%s was deleted while it was waited for", t)
		}
		if o == nil {
			return false, notFound(located{t, s.namespace})
		}
		message, done, err := rolloutProgress(o)
		if err != nil {
			return false, err
		}
		if message != last {
			fmt.Fprintln(s.Out, message)
			last = message
		}
		return done || !watch, nil
	})
}

// rolloutProgress says in kubectl's words how far a rollout is.
func rolloutProgress(o object.Object) (message string, done bool, err error) {
	switch o := o.(type) {
	case *appsv1.StatefulSet:
		return statefulSetProgress(o)
	case *appsv1.DaemonSet:
		return daemonSetProgress(o)
	default:
		return deploymentProgress(o.(*appsv1.Deployment))
	}
}

func deploymentProgress(d *appsv1.Deployment) (message string, done bool, err error) {
	spec, status := d.GetSpec(), d.GetStatus()
	name := d.GetMetadata().GetName()
	if d.GetMetadata().GetGeneration() > status.GetObservedGeneration() {
		return "Waiting for deployment spec update to be observed...", false, nil
	}
	for _, c := range status.GetConditions() {
		if c.GetType() == "Progressing" && c.GetReason() == "ProgressDeadlineExceeded" {
			return "", false, fmt.Errorf("deployment %q exceeded its progress deadline", name)
		}
	}
	switch {
	case spec.HasReplicas() && status.GetUpdatedReplicas() < spec.GetReplicas():
		return fmt.Sprintf("Waiting for deployment %q rollout to finish: %d out of %d new replicas have been updated...", name, status.GetUpdatedReplicas(), spec.GetReplicas()), false, nil
	case status.GetReplicas() > status.GetUpdatedReplicas():
		return fmt.Sprintf("Waiting for deployment %q rollout to finish: %d old replicas are pending termination...", name, status.GetReplicas()-status.GetUpdatedReplicas()), false, nil
	case status.GetAvailableReplicas() < status.GetUpdatedReplicas():
		return fmt.Sprintf("Waiting for deployment %q rollout to finish: %d of %d updated replicas are available...", name, status.GetAvailableReplicas(), status.GetUpdatedReplicas()), false, nil
	default:
		return fmt.Sprintf("deployment %q successfully rolled out", name), true, nil
	}
}

func newRolloutUndo(s *session) *cobra.Command {
	var to int64
	c := &cobra.Command{
		Use:     "undo KIND/NAME",
		Short:   "Go back to an earlier revision",
		Example: "  dhow rollout undo deploy/web\n  dhow rollout undo deploy/web --to-revision=3",
		RunE: func(c *cobra.Command, args []string) error {
			t, err := rolloutTarget(args)
			if err != nil {
				return err
			}
			if to < 0 {
				return fmt.Errorf("--to-revision=%d: give a revision, or 0 for the one before the present one", to)
			}
			return s.rolloutUndo(c.Context(), t, to)
		},
	}
	c.Flags().Int64Var(&to, "to-revision", 0, "the revision to go back to; 0: the one before the present one")
	return c
}

// rolloutUndo puts the template of an earlier revision back.
func (s *session) rolloutUndo(ctx context.Context, t target, to int64) error {
	if t.resource != resource.For[*appsv1.Deployment]() {
		return s.revisionUndo(ctx, t, to)
	}
	deployments := client.For[*appsv1.Deployment](s.conn)
	d, err := deployments.Get(ctx, s.namespace, t.name)
	if err != nil {
		return err
	}
	if d.GetSpec().GetPaused() {
		return fmt.Errorf("you cannot roll back the paused deployment %q: set its spec.paused to false and try again", t.name)
	}
	sets, err := client.For[*appsv1.ReplicaSet](s.conn).List(ctx, metav1.ListRequest_builder{Namespace: s.namespace}.Build())
	if err != nil {
		return err
	}
	chosen, err := revisionToRestore(d, sets.Items, to)
	if err != nil {
		return err
	}
	template := proto.CloneOf(chosen.GetSpec().GetTemplate())
	labels := template.GetMetadata().GetLabels()
	delete(labels, podTemplateHash)
	template.GetMetadata().SetLabels(labels)
	was, err := templateJSON(d.GetSpec())
	if err != nil {
		return err
	}
	restored := &appsv1.DeploymentSpec{}
	restored.SetTemplate(template)
	is, err := templateJSON(restored)
	if err != nil {
		return err
	}
	if slices.Equal(was, is) {
		fmt.Fprintf(s.Out, "%s skipped rollback (current template already matches revision %d)\n", t, revisionOf(chosen))
		return nil
	}
	// A JSON patch replaces the whole template, so that nothing of the newer one stays. The test keeps a change of the spec in between from being lost; the
	// controllers' changes of the status, which come all the time, do not fail it.
	patch, err := json.Marshal([]map[string]any{
		{"op": "test", "path": "/metadata/generation", "value": d.GetMetadata().GetGeneration()},
		{"op": "replace", "path": "/spec/template", "value": json.RawMessage(is)},
	})
	if err != nil {
		return err
	}
	header, warn := s.warn(t)
	defer warn()
	_, err = deployments.Patch(ctx, metav1.PatchRequest_builder{
		Namespace: s.namespace, Name: t.name, Type: metav1.PatchType_PATCH_TYPE_JSON, Patch: patch,
		Options: metav1.WriteOptions_builder{FieldManager: rolloutManager}.Build(),
	}.Build(), header)
	if err != nil {
		return err
	}
	fmt.Fprintf(s.Out, "%s rolled back\n", t)
	return nil
}

// templateJSON is a deployment's template as Kubernetes writes it.
func templateJSON(spec *appsv1.DeploymentSpec) ([]byte, error) {
	d := &appsv1.Deployment{}
	d.SetSpec(spec)
	o, err := structs.From(d)
	if err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	var parts struct {
		Spec struct {
			Template json.RawMessage `json:"template"`
		} `json:"spec"`
	}
	err = json.Unmarshal(encoded, &parts)
	return parts.Spec.Template, err
}

func revisionOf(o object.Object) int64 {
	n, err := strconv.ParseInt(o.GetMetadata().GetAnnotations()[revisionAnnotation], 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// revisionToRestore picks the replica set of a revision, or of the one before the newest.
func revisionToRestore(d *appsv1.Deployment, sets []*appsv1.ReplicaSet, to int64) (*appsv1.ReplicaSet, error) {
	var own []*appsv1.ReplicaSet
	for _, r := range sets {
		if c := object.ControllerOf(r); c != nil && c.GetUid() == d.GetMetadata().GetUid() {
			own = append(own, r)
		}
	}
	slices.SortFunc(own, func(a, b *appsv1.ReplicaSet) int { return int(revisionOf(b) - revisionOf(a)) })
	if to == 0 {
		if len(own) < 2 {
			return nil, fmt.Errorf("no rollout history found for deployment %q: there is no earlier revision to go back to", d.GetMetadata().GetName())
		}
		return own[1], nil
	}
	for _, r := range own {
		if revisionOf(r) == to {
			return r, nil
		}
	}
	var known []string
	for _, r := range own {
		known = append(known, strconv.FormatInt(revisionOf(r), 10))
	}
	return nil, fmt.Errorf("unable to find specified revision %d in history: there are %s", to, strings.Join(known, ", "))
}
