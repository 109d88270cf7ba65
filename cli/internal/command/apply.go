package command

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/cli/internal/manifest"
	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

// maxOperations is what one Commit may hold (proto/dhow/cluster/v1/cluster.proto).
const maxOperations = 500

type applyOptions struct {
	files          []string
	recursive      bool
	atomic         bool
	dryRun         dryRun
	forceConflicts bool
	fieldManager   string
	// forced are the objects, by source, whose conflicts are only with this command line's other commands.
	forced map[string]bool
}

func newApply(s *session) *cobra.Command {
	var o applyOptions
	c := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Make the cluster's objects what the manifests say",
		Long: `Make the cluster's objects what the manifests say (server-side apply): the fields that the manifests set are owned by this command's field
manager, all others are left alone. What was made or changed by hand with dhow itself (run, scale, rollout undo) gives way to the manifest; fields that others own
are a conflict. Everything is validated before anything is written.`,
		Example: "  dhow apply -f examples/guestbook/manifests\n  dhow apply --atomic -f shop.yaml",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			o.forced = map[string]bool{}
			return s.apply(c.Context(), o)
		},
	}
	flags := c.Flags()
	flags.StringArrayVarP(&o.files, "filename", "f", nil, "a file, a folder, or - for standard input; may be repeated")
	flags.BoolVarP(&o.recursive, "recursive", "R", false, "go into folders of folders")
	flags.BoolVar(&o.atomic, "atomic", false, "write everything in one commit, or nothing")
	addDryRun(flags, &o.dryRun)
	flags.BoolVar(&o.forceConflicts, "force-conflicts", false, "take over fields that other managers own")
	flags.StringVar(&o.fieldManager, "field-manager", fieldManager, "who owns the fields")
	c.MarkFlagRequired("filename")
	return c
}

func (s *session) apply(ctx context.Context, o applyOptions) error {
	objects, err := manifest.Read(manifest.Options{Paths: o.files, Recursive: o.recursive, In: s.In, Namespace: s.namespace, Enforce: s.explicit})
	if err != nil {
		return err
	}
	if len(objects) > maxOperations {
		return fmt.Errorf("%d objects: at most %d are applied at once: split the manifests", len(objects), maxOperations)
	}
	namespacesFirst(objects)
	before, err := s.versions(ctx, objects)
	if err != nil {
		return err
	}
	// One dry commit validates all objects as they would be together: a namespace and what is in it.
	results, err := s.validate(ctx, objects, o)
	if err != nil {
		return refused(err, objects)
	}
	suffix := dryRunSuffix
	switch {
	case bool(o.dryRun):
	case o.atomic:
		suffix = ""
		if results, err = s.commit(ctx, objects, o, false); err != nil {
			return refused(err, objects)
		}
	default:
		return s.applyEach(ctx, objects, before, o)
	}
	for i, r := range results {
		s.warnings(objects[i], r.GetWarnings())
		after := objects[i].Resource.New()
		if err := proto.Unmarshal(r.GetObject(), after); err != nil {
			return err
		}
		fmt.Fprintf(s.Out, "%s %s%s\n", objects[i], changeWord(before[i], after), suffix)
	}
	return nil
}

// changeWord says what an apply did, from the object before (nil: none) and after. Who owns the fields is no change of the object.
func changeWord(before, after object.Object) string {
	switch {
	case before == nil:
		return "created"
	case sameButVersion(before, after):
		return "unchanged"
	default:
		return "configured"
	}
}

// sameButVersion compares two states of an object, which may be one that a dry run would have stored.
func sameButVersion(a, b object.Object) bool {
	a, b = proto.Clone(a).(object.Object), proto.Clone(b).(object.Object)
	for _, o := range []object.Object{a, b} {
		o.GetMetadata().ClearResourceVersion()
		o.GetMetadata().SetManagedFields(nil)
	}
	return proto.Equal(a, b)
}

// versions reads the objects as they are now; nil for one that does not exist.
func (s *session) versions(ctx context.Context, objects []manifest.Object) ([]object.Object, error) {
	before := make([]object.Object, len(objects))
	for i, o := range objects {
		found, err := client.Dynamic(s.conn, o.Resource).Get(ctx, o.Namespace, o.Name)
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("%s: %s: %w", o.Source, o, err)
		}
		if err == nil {
			before[i] = found
		}
	}
	return before, nil
}

func (o applyOptions) patch(m manifest.Object, dryRun bool) *metav1.PatchRequest {
	return metav1.PatchRequest_builder{
		Namespace: m.Namespace, Name: m.Name, Type: metav1.PatchType_PATCH_TYPE_APPLY, Patch: m.JSON,
		Options: metav1.WriteOptions_builder{FieldManager: o.fieldManager, Force: o.forceConflicts || o.forced[m.Source], DryRun: dryRun}.Build(),
	}.Build()
}

// validate is a dry commit. It marks the objects that may be forced.
func (s *session) validate(ctx context.Context, objects []manifest.Object, o applyOptions) ([]*clusterv1.CommitResponse_Result, error) {
	for {
		results, err := s.commit(ctx, objects, o, true)
		again := false
		for _, p := range problems(err, objects) {
			if source := objects[p.index].Source; !o.forced[source] && p.isOwnConflict() {
				o.forced[source] = true
				again = true
			}
		}
		if !again {
			return results, err
		}
	}
}

var conflictingManager = regexp.MustCompile(`^conflict with "([^"]+)"`)

// isOwnConflict says whether an error is a conflict with nobody but this command line's other commands: one user's two ways to change an object.
// Kubernetes' apply without managed fields lets the manifest win there, and so does this one.
func (p problem) isOwnConflict() bool {
	if p.reason != kmetav1.StatusReasonConflict {
		return false
	}
	for _, cause := range p.causes {
		manager := conflictingManager.FindStringSubmatch(cause.Message)
		if cause.Type != kmetav1.CauseTypeFieldManagerConflict || manager == nil || !slices.Contains([]string{runManager, editManager, rolloutManager}, manager[1]) {
			return false
		}
	}
	return len(p.causes) > 0
}

func (s *session) commit(ctx context.Context, objects []manifest.Object, o applyOptions, dryRun bool) ([]*clusterv1.CommitResponse_Result, error) {
	request := &clusterv1.CommitRequest{}
	request.SetDryRun(dryRun)
	operations := make([]*clusterv1.Operation, len(objects))
	for i, m := range objects {
		operations[i] = clusterv1.Operation_builder{Group: m.Resource.Group, Resource: m.Resource.Plural, Patch: o.patch(m, dryRun)}.Build()
	}
	request.SetOperations(operations)
	response, err := clusterv1.NewObjectsClient(s.conn).Commit(ctx, request)
	if err != nil {
		return nil, apistatus.FromGRPC(err)
	}
	return response.GetResults(), nil
}

// problem is why one object of a commit cannot be written.
type problem struct {
	index   int
	reason  kmetav1.StatusReason
	message string
	causes  []kmetav1.StatusCause
}

var (
	operationPrefix = regexp.MustCompile(`^operations\[(\d+)\](?:\.|: )?`)
	operationField  = regexp.MustCompile(`^operations\[(\d+)\]$`)
)

// problems says which objects a commit's error is about, and what is wrong with each; none when it is about no object.
func problems(err error, objects []manifest.Object) []problem {
	var api apierrors.APIStatus
	if !errors.As(err, &api) {
		return nil
	}
	s := api.Status()
	var causes []kmetav1.StatusCause
	if s.Details != nil {
		causes = slices.Clone(s.Details.Causes)
	}
	var all []problem
	for _, cause := range causes {
		// Of several operations, each one's causes begin with one about the operation itself: its reason and message.
		if m := operationField.FindStringSubmatch(cause.Field); m != nil {
			i, _ := strconv.Atoi(m[1])
			all = append(all, problem{index: i, reason: kmetav1.StatusReason(cause.Type), message: cause.Message})
		} else if len(all) > 0 {
			last := &all[len(all)-1]
			cause.Field = unnumbered(cause.Field)
			last.causes = append(last.causes, cause)
		}
	}
	if len(all) == 0 {
		only := problem{reason: s.Reason, message: unnumbered(s.Message), causes: causes}
		// The commit of a single operation does not number it.
		if m := operationPrefix.FindStringSubmatch(s.Message); m != nil {
			only.index, _ = strconv.Atoi(m[1])
		} else if len(objects) != 1 || status.Code(err) == codes.Unavailable {
			return nil
		}
		for i := range only.causes {
			only.causes[i].Field = unnumbered(only.causes[i].Field)
		}
		all = []problem{only}
	}
	return slices.DeleteFunc(all, func(p problem) bool { return p.index >= len(objects) })
}

func unnumbered(text string) string { return operationPrefix.ReplaceAllString(text, "") }

// describe says what is wrong with the object, a line per field.
func (p problem) describe(object manifest.Object) string {
	where := fmt.Sprintf("%s: %s: ", object.Source, object)
	// A refusal that is not about fields (a namespace that is being deleted) says more in its message than in its causes.
	if len(p.causes) == 0 || p.reason == kmetav1.StatusReasonForbidden {
		return where + p.message
	}
	if p.reason == kmetav1.StatusReasonConflict {
		return where + p.message + ": apply the fields with the value that they have, leave them out, or take them over with --force-conflicts"
	}
	lines := make([]string, len(p.causes))
	for i, cause := range p.causes {
		lines[i] = where + describeCause(cause)
	}
	return strings.Join(lines, "\n  ")
}

// maxErrors bounds how many objects' errors are told.
const maxErrors = 20

// refused says what is wrong with the objects of a commit that was not written.
func refused(err error, objects []manifest.Object) error {
	all := problems(err, objects)
	if len(all) == 0 {
		return err
	}
	var texts []string
	lost := map[string]bool{}
	for _, p := range all {
		object := objects[p.index]
		if object.Resource == resource.For[*corev1.Namespace]() {
			lost[object.Name] = true
		}
		// What is in a namespace that is wrong itself is not to blame.
		if lost[object.Namespace] && p.reason == kmetav1.StatusReasonNotFound {
			continue
		}
		if len(texts) == maxErrors {
			texts = append(texts, "there are more")
			break
		}
		texts = append(texts, p.describe(object))
	}
	return nothingWritten(texts)
}

func nothingWritten(texts []string) error {
	return fmt.Errorf("nothing was written:\n  %s", strings.Join(texts, "\n  "))
}

// namespacesFirst lets a folder hold a namespace and what is in it, in files of any names.
func namespacesFirst(objects []manifest.Object) {
	slices.SortStableFunc(objects, func(a, b manifest.Object) int { return place(a) - place(b) })
}

func place(o manifest.Object) int {
	if o.Resource == resource.For[*corev1.Namespace]() {
		return 0
	}
	return 1
}

// applyEach writes one object after the other, and goes on after an error.
func (s *session) applyEach(ctx context.Context, objects []manifest.Object, before []object.Object, o applyOptions) error {
	failed := 0
	for i, m := range objects {
		header, warn := s.warn(m)
		after, err := client.Dynamic(s.conn, m.Resource).Patch(ctx, o.patch(m, false), header)
		warn()
		if err != nil {
			failed++
			fmt.Fprintf(s.Err, "%s: %s\n", m.Source, describeError(err))
			continue
		}
		fmt.Fprintf(s.Out, "%s %s\n", m, changeWord(before[i], after))
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d objects were not applied", failed, len(objects))
	}
	return nil
}
