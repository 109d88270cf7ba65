// Package registry is the write core of the API server: every change of every object goes through it, whichever front door it came by.
//
// A write is planned against what is known (the cache, or what the store said), validated, and committed on the conditions that the plan rests
// on; when the store refuses, it says why, and the write is planned again. The cache may therefore be behind: a negative answer (a conflict, no such
// object) or one that writes nothing is given only after the store confirmed what it rests on.
//
// Objects are bytes at both ends. Inside they are the structs of k8s.io/api (docs/decisions/0001-two-representations.md).
package registry

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
	"k8s.io/apimachinery/pkg/runtime/schema"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/admission"
	"dhow.dev/services/apiserver/internal/allocator"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/patch"
	"dhow.dev/services/apiserver/internal/strategy"
)

// Entry is an object as it is stored (decrypted), without its resourceVersion, which Revision says. Immutable.
type Entry struct {
	Object   []byte
	Revision int64
}

// Cache is what the registry needs of the read path.
type Cache interface {
	// Current returns the object as the cache has it now, and false when the cache has none. It does not wait; it may be behind the store.
	Current(res *resource.Resource, namespace, name string) (Entry, bool)
	// Select returns the names of the objects that a list with these selectors gives, consistent with the store.
	Select(ctx context.Context, res *resource.Resource, namespace, labelSelector, fieldSelector string) ([]Name, error)
	// Each calls visit with the objects of a kind, of all namespaces when namespace is empty, as the cache has them now, until visit returns false.
	Each(res *resource.Resource, namespace string, visit func(Name, Entry) bool) error
	// WaitFor waits until the cache has reached a revision.
	WaitFor(ctx context.Context, revision int64) error
}

// Name names an object of a kind. Namespace is empty for kinds without namespaces.
type Name struct{ Namespace, Name string }

// Encryption seals what the store must not be able to read. Keys are store keys: a value opens only under the key that it was sealed for.
type Encryption interface {
	Seal(key string, plain []byte) (sealed []byte, keyID uint32, err error)
	// Open returns values of key id 0 as they are.
	Open(key string, keyID uint32, value []byte) ([]byte, error)
	// IsCurrent says whether Seal uses this key.
	IsCurrent(keyID uint32) bool
}

// Config is what a registry is made of.
type Config struct {
	Store      storev1.StoreClient
	Cache      Cache
	Codec      *codec.Codec
	Strategies *strategy.Set
	// Allocators by the resource that they serve. May be nil.
	Allocators map[schema.GroupResource]allocator.Allocator
	// Admission changes and refuses writes by what else is in the cluster. May be nil.
	Admission *admission.Chain
	// Encryption seals Secrets.
	Encryption Encryption
	// Tracer makes a span per step of a write. Nil: none.
	Tracer trace.Tracer
	// Now is the clock, nil for the real one.
	Now func() time.Time
}

// Registry writes objects. It is safe for concurrent use.
type Registry struct {
	store      storev1.StoreClient
	cache      Cache
	codec      *codec.Codec
	strategies *strategy.Set
	allocators map[schema.GroupResource]allocator.Allocator
	admission  *admission.Chain
	turns      *turns
	settling   settling
	encryption Encryption
	patches    *patch.Patcher
	tracer     trace.Tracer
	now        func() time.Time
}

// New returns a registry.
func New(cfg Config) (*Registry, error) {
	if cfg.Store == nil || cfg.Cache == nil || cfg.Codec == nil || cfg.Strategies == nil || cfg.Encryption == nil {
		return nil, fmt.Errorf("registry: Store, Cache, Codec, Strategies and Encryption are required")
	}
	r := &Registry{
		store: cfg.Store, cache: cfg.Cache, codec: cfg.Codec, strategies: cfg.Strategies, allocators: cfg.Allocators, encryption: cfg.Encryption,
		admission: cfg.Admission, turns: &turns{byKey: map[string]*turn{}},
		patches: patch.New(cfg.Codec, cfg.Strategies), tracer: cfg.Tracer, now: cfg.Now,
	}
	if r.tracer == nil {
		r.tracer = noop.NewTracerProvider().Tracer("")
	}
	if r.now == nil {
		r.now = time.Now
	}
	return r, nil
}

// Input is an object or an apply configuration as a front door took it.
type Input struct {
	// Namespace and Name are those of the request's path, empty when the request has none (gRPC); the object must not contradict them.
	Namespace, Name string
	// Data is protobuf, or JSON or YAML when Text is set.
	Data []byte
	Text bool
}

// PatchInput is a patch of one object.
type PatchInput struct {
	Namespace, Name string
	Type            patch.Type
	Data            []byte
}

// WriteOptions are Kubernetes' options of create, update, patch and apply.
type WriteOptions struct {
	// FieldManager owns the fields that the write sets. Apply requires it.
	FieldManager string
	DryRun       bool
	// Force takes over fields of other managers. Apply only.
	Force bool
	// Metadata lets a write of the status or of an approval change labels, annotations, finalizers and owners as well, as Kubernetes does.
	Metadata bool
	// MayCreate is asked before an update or apply creates the object; an error of it is the answer. Nil: it may.
	MayCreate func(ctx context.Context) error
	// FieldValidation is for JSON and YAML; empty is strict.
	FieldValidation codec.FieldValidation
	// Subresource is empty, `status`, or one that the kind has besides (subresource.go). The input of `scale` is an autoscaling/v1 Scale, and so is
	// the result; all others take and give the object itself.
	Subresource string
}

// Propagation says what becomes of an object's dependents.
type Propagation int

// The propagation policies. The zero value keeps what the object's finalizers say, which is background for an object without them.
const (
	PropagationDefault Propagation = iota
	PropagationOrphan
	PropagationBackground
	PropagationForeground
)

// DeleteOptions are Kubernetes' options of delete.
type DeleteOptions struct {
	// GracePeriodSeconds is nil for the object's own.
	GracePeriodSeconds *int64
	Propagation        Propagation
	DryRun             bool
	// UID and ResourceVersion are preconditions when they are not empty.
	UID, ResourceVersion string
}

// Result is an object after a write.
type Result struct {
	// Object is the encoded object, without its resourceVersion; of a deletion the last state. It must not be changed.
	Object []byte
	// Revision is the object's resourceVersion; 0 for an object that a dry run would have created.
	Revision int64
	Warnings []string
	// Created and Deleted say that the write made the object, or that the object is gone.
	Created, Deleted bool
}

// Action is what an operation of a commit does.
type Action int

// The actions of Commit.
const (
	ActionCreate Action = iota + 1
	ActionUpdate
	ActionPatch
	ActionApply
	ActionDelete
)

// Operation is one write of a commit.
type Operation struct {
	Resource *resource.Resource
	Action   Action
	// Input is for create, update and apply; Patch for patch; Namespace and Name for delete.
	Input           Input
	Patch           PatchInput
	Namespace, Name string
	Options         WriteOptions
	Delete          DeleteOptions

	// view is the row that the caller named, when objects of it are stored as Resource.
	view *resource.Resource
}

// Binding places one pod on one node.
type Binding struct {
	Namespace, Name, UID, NodeName string
}

// Unschedulable says why a pod cannot be placed now.
type Unschedulable struct {
	Namespace, Name, UID, Reason, Message string
}

// Key returns an object's key in the store.
func Key(res *resource.Resource, namespace, name string) string {
	return Prefix(res) + segment(namespace) + "/" + name
}

// Prefix returns what the store keys of all objects of a kind begin with.
func Prefix(res *resource.Resource) string {
	group := res.Group
	if group == "" {
		group = "core"
	}
	return "/registry/" + group + "/" + res.Plural + "/"
}

// namespaceClaim is the key whose existence says that a namespace takes new objects.
func namespaceClaim(namespace string) string { return "/claims/namespaces/" + namespace }

func segment(namespace string) string {
	if namespace == "" {
		return "-"
	}
	return namespace
}

// Create writes a new object.
func (r *Registry) Create(ctx context.Context, res *resource.Resource, in Input, options WriteOptions) (Result, error) {
	return r.one(ctx, "create", options.DryRun, Operation{Resource: res, Action: ActionCreate, Input: in, Options: options})
}

// Update replaces an object, or its status or finalizers as the subresource says. Without a resourceVersion it is unconditional. A missing object is created if
// its kind is one of those that Kubernetes creates so (createdByUpdate).
func (r *Registry) Update(ctx context.Context, res *resource.Resource, in Input, options WriteOptions) (Result, error) {
	return r.one(ctx, "update", options.DryRun, Operation{Resource: res, Action: ActionUpdate, Input: in, Options: options})
}

// Patch changes an object by a patch, again and again while the object changes underneath. A patch of type Apply is Apply of JSON or YAML.
func (r *Registry) Patch(ctx context.Context, res *resource.Resource, in PatchInput, options WriteOptions) (Result, error) {
	return r.one(ctx, "patch", options.DryRun, Operation{Resource: res, Action: ActionPatch, Patch: in, Options: options})
}

// Apply is server-side apply: the fields present in the configuration become what it says and owned by the field manager; what the manager applied
// before and left out now is given up. A missing object is created.
func (r *Registry) Apply(ctx context.Context, res *resource.Resource, in Input, options WriteOptions) (Result, error) {
	return r.one(ctx, "apply", options.DryRun, Operation{Resource: res, Action: ActionApply, Input: in, Options: options})
}

// Delete deletes an object, or begins to: finalizers and grace periods keep it until they are over.
func (r *Registry) Delete(ctx context.Context, res *resource.Resource, namespace, name string, options DeleteOptions) (Result, error) {
	return r.one(ctx, "delete", options.DryRun, Operation{Resource: res, Action: ActionDelete, Namespace: namespace, Name: name, Delete: options})
}
