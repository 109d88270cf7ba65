package command

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/cli/internal/manifest"
	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
)

// maxOperations is what one Commit may hold (proto/dhow/cluster/v1/cluster.proto).
const maxOperations = 500

type applyOptions struct {
	files          []string
	recursive      bool
	atomic         bool
	dryRun         bool
	forceConflicts bool
	fieldManager   string
}

func newApply(s *session) *cobra.Command {
	var o applyOptions
	c := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Make the cluster's objects what the manifests say",
		Long: `Make the cluster's objects what the manifests say (server-side apply): the fields that the manifests set are owned by this command's field
manager, all others are left alone. Everything is validated before anything is written.`,
		Example: "  dhow apply -f examples/guestbook/manifests\n  dhow apply --atomic -f shop.yaml",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return s.apply(c.Context(), o) },
	}
	flags := c.Flags()
	flags.StringArrayVarP(&o.files, "filename", "f", nil, "a file, a folder, or - for standard input; may be repeated")
	flags.BoolVarP(&o.recursive, "recursive", "R", false, "go into folders of folders")
	flags.BoolVar(&o.atomic, "atomic", false, "write everything in one commit, or nothing")
	flags.BoolVar(&o.dryRun, "dry-run", false, "validate everything on the server and write nothing")
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
	before, err := s.versions(ctx, objects)
	if err != nil {
		return err
	}
	// One dry commit validates all objects as they would be together: a namespace and what is in it.
	results, err := s.commit(ctx, objects, o, true)
	if err != nil {
		return err
	}
	suffix := " (dry run)"
	switch {
	case o.dryRun:
	case o.atomic:
		suffix = ""
		if results, err = s.commit(ctx, objects, o, false); err != nil {
			return err
		}
	default:
		return s.applyEach(ctx, objects, before, o)
	}
	for i, r := range results {
		for _, w := range r.GetWarnings() {
			fmt.Fprintf(s.Err, "Warning: %s: %s\n", objects[i], w)
		}
		after := objects[i].Resource.New()
		if err := proto.Unmarshal(r.GetObject(), after); err != nil {
			return err
		}
		fmt.Fprintf(s.Out, "%s %s%s\n", objects[i], changeWord(before[i], after, o.dryRun), suffix)
	}
	return nil
}

// changeWord says what an apply did, from the object before (nil: none) and after.
func changeWord(before, after object.Object, dryRun bool) string {
	switch {
	case before == nil:
		return "created"
	case dryRun && sameButVersion(before, after), !dryRun && object.Revision(before) == object.Revision(after):
		return "unchanged"
	default:
		return "configured"
	}
}

// sameButVersion compares what a dry run would have stored with what is stored.
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
		Options: metav1.WriteOptions_builder{FieldManager: o.fieldManager, Force: o.forceConflicts, DryRun: dryRun}.Build(),
	}.Build()
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
		return nil, placeErrors(apistatus.FromGRPC(err), objects)
	}
	return response.GetResults(), nil
}

var operationPrefix = regexp.MustCompile(`^operations\[(\d+)\](?:\.|: )?`)

// placeErrors says of each cause of a commit's error which object of which file it is about.
func placeErrors(err error, objects []manifest.Object) error {
	var api apierrors.APIStatus
	if !errors.As(err, &api) {
		return err
	}
	place := func(text string) (string, bool) {
		m := operationPrefix.FindStringSubmatch(text)
		if m == nil {
			return text, false
		}
		i, parseErr := strconv.Atoi(m[1])
		if parseErr != nil || i >= len(objects) {
			return text, false
		}
		return fmt.Sprintf("%s: %s: %s", objects[i].Source, objects[i], strings.TrimPrefix(text, m[0])), true
	}
	var lines []string
	if details := api.Status().Details; details != nil {
		for _, cause := range details.Causes {
			if where, ok := place(cause.Field); ok {
				lines = append(lines, where+": "+cause.Message)
			}
		}
	}
	if len(lines) == 0 {
		if message, ok := place(api.Status().Message); ok {
			lines = append(lines, message)
		}
	}
	if len(lines) == 0 {
		return err
	}
	return fmt.Errorf("nothing was written:\n  %s", strings.Join(lines, "\n  "))
}

// applyEach writes one object after the other, and goes on after an error.
func (s *session) applyEach(ctx context.Context, objects []manifest.Object, before []object.Object, o applyOptions) error {
	failed := 0
	for i, m := range objects {
		header, warn := s.warn()
		after, err := client.Dynamic(s.conn, m.Resource).Patch(ctx, o.patch(m, false), header)
		warn()
		if err != nil {
			failed++
			fmt.Fprintf(s.Err, "%s: %s\n", m.Source, describeError(err))
			continue
		}
		fmt.Fprintf(s.Out, "%s %s\n", m, changeWord(before[i], after, false))
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d objects were not applied", failed, len(objects))
	}
	return nil
}
