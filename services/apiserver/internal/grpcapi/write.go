package grpcapi

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/rawcodec"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/cache"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/patch"
	"dhow.dev/services/apiserver/internal/registry"
)

// warningKey is the response header metadata of warnings (dhow.meta.v1, requests.proto).
const warningKey = "dhow-warning-bin"

// writeVerbs are the verbs of the methods that carry an object.
var writeVerbs = map[string]string{"Create": "create", "Update": "update", "Apply": "patch"}

func (a *API) write(r *resource.Resource, service, name string) rpc {
	return unary(a, service, name, rule[*metav1.ObjectWriteRequest]{
		attributes: func(_ context.Context, q *metav1.ObjectWriteRequest) ([]authorizer.Attributes, error) {
			return a.writing(r, writeVerbs[name], q)
		},
	}, func(ctx context.Context, q *metav1.ObjectWriteRequest) (any, error) {
		namespace, _, err := cache.NameOf(q.GetObject())
		if err != nil {
			return nil, apierrors.NewBadRequest("object: " + err.Error())
		}
		in, options := registry.Input{Data: q.GetObject()}, a.writeOptions(r, namespace, q.GetOptions())
		var result registry.Result
		switch name {
		case "Create":
			result, err = a.config.Registry.Create(ctx, r, in, options)
		case "Update":
			result, err = a.config.Registry.Update(ctx, r, in, options)
		default:
			result, err = a.config.Registry.Apply(ctx, r, in, options)
		}
		return answer(ctx, result, err)
	})
}

// writing makes the attributes of a write of an encoded object. Kubernetes does not tell the authorizer the name of what is to be created.
func (a *API) writing(r *resource.Resource, verb string, q *metav1.ObjectWriteRequest) ([]authorizer.Attributes, error) {
	namespace, name, err := cache.NameOf(q.GetObject())
	if err != nil {
		return nil, apierrors.NewBadRequest("object: " + err.Error())
	}
	if verb == "create" {
		name = ""
	}
	own := to(verb, r, namespace, name)
	own.Subresource = q.GetOptions().GetSubresource()
	return []authorizer.Attributes{own}, nil
}

func (a *API) patch(r *resource.Resource, service string) rpc {
	return unary(a, service, "Patch", rule[*metav1.PatchRequest]{
		attributes: func(_ context.Context, q *metav1.PatchRequest) ([]authorizer.Attributes, error) {
			return a.patching(r, q), nil
		},
	}, func(ctx context.Context, q *metav1.PatchRequest) (any, error) {
		in, err := patchInput(q)
		if err != nil {
			return nil, err
		}
		result, err := a.config.Registry.Patch(ctx, r, in, a.writeOptions(r, q.GetNamespace(), q.GetOptions()))
		return answer(ctx, result, err)
	})
}

func (a *API) patching(r *resource.Resource, q *metav1.PatchRequest) []authorizer.Attributes {
	own := to("patch", r, q.GetNamespace(), q.GetName())
	own.Subresource = q.GetOptions().GetSubresource()
	return []authorizer.Attributes{own}
}

func (a *API) delete(r *resource.Resource, service string) rpc {
	return unary(a, service, "Delete", rule[*metav1.DeleteRequest]{
		attributes: func(_ context.Context, q *metav1.DeleteRequest) ([]authorizer.Attributes, error) {
			return []authorizer.Attributes{to("delete", r, q.GetNamespace(), q.GetName())}, nil
		},
	}, func(ctx context.Context, q *metav1.DeleteRequest) (any, error) {
		if q.GetName() == "" {
			return nil, apierrors.NewBadRequest("name is required")
		}
		result, err := a.config.Registry.Delete(ctx, r, q.GetNamespace(), q.GetName(), deleteOptions(q.GetOptions()))
		return answer(ctx, result, err)
	})
}

func (a *API) deleteCollection(r *resource.Resource, service string) rpc {
	return unary(a, service, "DeleteCollection", rule[*metav1.DeleteCollectionRequest]{
		attributes: func(_ context.Context, q *metav1.DeleteCollectionRequest) ([]authorizer.Attributes, error) {
			return []authorizer.Attributes{selecting("deletecollection", r, q.GetNamespace(), q.GetFieldSelector())}, nil
		},
	}, func(ctx context.Context, q *metav1.DeleteCollectionRequest) (any, error) {
		deleted, err := a.config.Registry.DeleteCollection(ctx, r, q.GetNamespace(), q.GetLabelSelector(), q.GetFieldSelector(), deleteOptions(q.GetOptions()))
		if err != nil {
			return nil, err
		}
		return metav1.DeleteCollectionResponse_builder{Deleted: deleted}.Build(), nil
	})
}

func (a *API) commitObjects(service string) rpc {
	return unary(a, service, "Commit", rule[*clusterv1.CommitRequest]{
		attributes: func(_ context.Context, q *clusterv1.CommitRequest) ([]authorizer.Attributes, error) {
			var all []authorizer.Attributes
			for _, op := range q.GetOperations() {
				wanted, err := a.operating(op)
				if err != nil {
					return nil, err
				}
				all = append(all, wanted...)
			}
			return all, nil
		},
	}, func(ctx context.Context, q *clusterv1.CommitRequest) (any, error) {
		operations := make([]registry.Operation, 0, len(q.GetOperations()))
		for _, op := range q.GetOperations() {
			o, err := a.operation(op)
			if err != nil {
				return nil, err
			}
			operations = append(operations, o)
		}
		results, revision, err := a.config.Registry.Commit(ctx, operations, q.GetDryRun())
		if err != nil {
			return nil, err
		}
		out := make([]*clusterv1.CommitResponse_Result, len(results))
		for i, result := range results {
			out[i] = clusterv1.CommitResponse_Result_builder{Object: encode(result).Bytes(), Warnings: result.Warnings}.Build()
		}
		return clusterv1.CommitResponse_builder{Results: out, Revision: revision}.Build(), nil
	})
}

// operating makes the attributes of one operation of a commit.
func (a *API) operating(op *clusterv1.Operation) ([]authorizer.Attributes, error) {
	r, err := lookup(op.GetGroup(), op.GetResource())
	if err != nil {
		return nil, err
	}
	switch op.WhichAction() {
	case clusterv1.Operation_Create_case:
		return a.writing(r, "create", op.GetCreate())
	case clusterv1.Operation_Update_case:
		return a.writing(r, "update", op.GetUpdate())
	case clusterv1.Operation_Patch_case:
		return a.patching(r, op.GetPatch()), nil
	case clusterv1.Operation_Apply_case:
		return a.writing(r, "patch", op.GetApply())
	case clusterv1.Operation_Delete_case:
		return []authorizer.Attributes{to("delete", r, op.GetDelete().GetNamespace(), op.GetDelete().GetName())}, nil
	}
	return nil, errNoAction
}

var errNoAction = apierrors.NewBadRequest("operations: each needs one of create, update, patch, apply and delete")

func (a *API) operation(op *clusterv1.Operation) (registry.Operation, error) {
	r, err := lookup(op.GetGroup(), op.GetResource())
	if err != nil {
		return registry.Operation{}, err
	}
	o := registry.Operation{Resource: r}
	carry := func(action registry.Action, q *metav1.ObjectWriteRequest) {
		var namespace string
		namespace, _, err = cache.NameOf(q.GetObject())
		o.Action, o.Input, o.Options = action, registry.Input{Data: q.GetObject()}, a.writeOptions(r, namespace, q.GetOptions())
	}
	switch op.WhichAction() {
	case clusterv1.Operation_Create_case:
		carry(registry.ActionCreate, op.GetCreate())
	case clusterv1.Operation_Update_case:
		carry(registry.ActionUpdate, op.GetUpdate())
	case clusterv1.Operation_Apply_case:
		carry(registry.ActionApply, op.GetApply())
	case clusterv1.Operation_Patch_case:
		o.Action, o.Options = registry.ActionPatch, a.writeOptions(r, op.GetPatch().GetNamespace(), op.GetPatch().GetOptions())
		o.Patch, err = patchInput(op.GetPatch())
	case clusterv1.Operation_Delete_case:
		q := op.GetDelete()
		o.Action, o.Namespace, o.Name, o.Delete = registry.ActionDelete, q.GetNamespace(), q.GetName(), deleteOptions(q.GetOptions())
	default:
		err = errNoAction
	}
	return o, err
}

// answer is a write's answer, with its warnings as header.
func answer(ctx context.Context, result registry.Result, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	if len(result.Warnings) > 0 {
		header := metadata.MD{}
		header.Append(warningKey, result.Warnings...)
		if err := grpc.SetHeader(ctx, header); err != nil {
			return nil, err
		}
	}
	return encode(result), nil
}

func encode(result registry.Result) rawcodec.Frame {
	if result.Revision == 0 {
		return rawcodec.New(result.Object)
	}
	return cache.WithRevision(result.Object, result.Revision)
}

// writeOptions are the options of a write of an object of the kind, which may turn out to create it.
func (a *API) writeOptions(r *resource.Resource, namespace string, o *metav1.WriteOptions) registry.WriteOptions {
	options := writeOptions(o)
	options.MayCreate = func(ctx context.Context) error {
		own := to("create", r, namespace, "")
		own.User, _ = identity.FromContext(ctx)
		return a.config.Authorizer.Authorize(ctx, own)
	}
	return options
}

func writeOptions(o *metav1.WriteOptions) registry.WriteOptions {
	options := registry.WriteOptions{
		FieldManager: o.GetFieldManager(), DryRun: o.GetDryRun(), Force: o.GetForce(), Subresource: o.GetSubresource(), FieldValidation: codec.Strict,
	}
	switch o.GetFieldValidation() {
	case metav1.FieldValidation_FIELD_VALIDATION_IGNORE:
		options.FieldValidation = codec.Ignore
	case metav1.FieldValidation_FIELD_VALIDATION_WARN:
		options.FieldValidation = codec.Warn
	}
	return options
}

var patchTypes = map[metav1.PatchType]patch.Type{
	metav1.PatchType_PATCH_TYPE_JSON:            patch.JSON,
	metav1.PatchType_PATCH_TYPE_MERGE:           patch.Merge,
	metav1.PatchType_PATCH_TYPE_STRATEGIC_MERGE: patch.StrategicMerge,
	metav1.PatchType_PATCH_TYPE_APPLY:           patch.Apply,
}

func patchInput(q *metav1.PatchRequest) (registry.PatchInput, error) {
	if q.GetName() == "" {
		return registry.PatchInput{}, apierrors.NewBadRequest("name is required")
	}
	kind, ok := patchTypes[q.GetType()]
	if !ok {
		return registry.PatchInput{}, apierrors.NewBadRequest("type: must be one of JSON, MERGE, STRATEGIC_MERGE and APPLY")
	}
	return registry.PatchInput{Namespace: q.GetNamespace(), Name: q.GetName(), Type: kind, Data: q.GetPatch()}, nil
}

var propagations = map[metav1.PropagationPolicy]registry.Propagation{
	metav1.PropagationPolicy_PROPAGATION_POLICY_ORPHAN:     registry.PropagationOrphan,
	metav1.PropagationPolicy_PROPAGATION_POLICY_BACKGROUND: registry.PropagationBackground,
	metav1.PropagationPolicy_PROPAGATION_POLICY_FOREGROUND: registry.PropagationForeground,
}

func deleteOptions(o *metav1.DeletionOptions) registry.DeleteOptions {
	options := registry.DeleteOptions{
		Propagation: propagations[o.GetPropagationPolicy()], DryRun: o.GetDryRun(), UID: o.GetUid(), ResourceVersion: o.GetResourceVersion(),
	}
	if o.HasGracePeriodSeconds() {
		seconds := o.GetGracePeriodSeconds()
		options.GracePeriodSeconds = &seconds
	}
	return options
}
