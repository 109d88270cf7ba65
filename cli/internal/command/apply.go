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
manager, all others are left alone. What was changed by hand with dhow itself (scale, rollout undo) gives way to the manifest; fields that others own
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
		return s.allErrors(ctx, objects, o, err)
	}
	suffix := dryRunSuffix
	switch {
	case bool(o.dryRun):
	case o.atomic:
		suffix = ""
		if results, err = s.commit(ctx, objects, o, false); err != nil {
			i, text := placeError(err, objects)
			if i < 0 {
				return err
			}
			return nothingWritten([]string{text})
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
		i, _ := placeError(err, objects)
		if i < 0 || o.forced[objects[i].Source] || !ownConflict(err) {
			return results, err
		}
		o.forced[objects[i].Source] = true
	}
}

var conflictingManager = regexp.MustCompile(`^conflict with "([^"]+)"`)

// ownConflict says whether an error is a conflict with nobody but this command line's other commands: one user's two ways to change an object. Kubernetes'
// apply without managed fields lets the manifest win there, and so does this one.
func ownConflict(err error) bool {
	var api apierrors.APIStatus
	if !errors.As(err, &api) || api.Status().Reason != kmetav1.StatusReasonConflict || api.Status().Details == nil {
		return false
	}
	causes := api.Status().Details.Causes
	for _, cause := range causes {
		manager := conflictingManager.FindStringSubmatch(cause.Message)
		if cause.Type != kmetav1.CauseTypeFieldManagerConflict || manager == nil || !slices.Contains([]string{editManager, rolloutManager}, manager[1]) {
			return false
		}
	}
	return len(causes) > 0
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

var operationPrefix = regexp.MustCompile(`^operations\[(\d+)\](?:\.|: )?`)

// placeError says which object of which file a commit's error is about, and what is wrong with it. The index is -1 when it is about none.
func placeError(err error, objects []manifest.Object) (int, string) {
	var api apierrors.APIStatus
	if !errors.As(err, &api) {
		return -1, ""
	}
	s := api.Status()
	i := 0
	// The commit of a single operation does not number it.
	if m := operationPrefix.FindStringSubmatch(s.Message); m != nil {
		i, _ = strconv.Atoi(m[1])
	} else if len(objects) != 1 || status.Code(err) == codes.Unavailable {
		return -1, ""
	}
	if i >= len(objects) {
		return -1, ""
	}
	where := fmt.Sprintf("%s: %s: ", objects[i].Source, objects[i])
	unnumbered := func(text string) string { return operationPrefix.ReplaceAllString(text, "") }
	// A refusal that is not about fields (a namespace that is being deleted) says more in its message than in its causes.
	if s.Details == nil || len(s.Details.Causes) == 0 || s.Reason == kmetav1.StatusReasonForbidden {
		return i, where + unnumbered(s.Message)
	}
	if s.Reason == kmetav1.StatusReasonConflict {
		return i, where + unnumbered(s.Message) + ": apply the fields with the value that they have, leave them out, or take them over with --force-conflicts"
	}
	var lines []string
	for _, cause := range s.Details.Causes {
		cause.Field = unnumbered(cause.Field)
		lines = append(lines, where+describeCause(cause))
	}
	return i, strings.Join(lines, "\n  ")
}

// maxErrors bounds how many objects' errors are looked for.
const maxErrors = 20

// allErrors finds out what else is wrong, because a commit tells of one object only: it tries again without those that are known to be.
func (s *session) allErrors(ctx context.Context, objects []manifest.Object, o applyOptions, err error) error {
	var texts []string
	lost := map[string]bool{}
	for len(objects) > 0 && err != nil {
		i, text := placeError(err, objects)
		if i < 0 {
			if len(texts) == 0 {
				return err
			}
			break
		}
		bad := objects[i]
		// What is in a namespace that is wrong itself is not to blame.
		if !lost[bad.Namespace] || !apierrors.IsNotFound(err) {
			texts = append(texts, text)
		}
		if bad.Resource == resource.For[*corev1.Namespace]() {
			lost[bad.Name] = true
		}
		if len(texts) == maxErrors {
			texts = append(texts, "there may be more")
			break
		}
		objects = slices.Delete(slices.Clone(objects), i, i+1)
		if len(objects) > 0 {
			_, err = s.validate(ctx, objects, o)
		}
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
