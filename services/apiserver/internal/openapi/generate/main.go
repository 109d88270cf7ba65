//go:build openapi

// Generate writes the schemas of package definitions, which generate.sh lets kube-openapi's generator make, as documents that package openapi embeds.
package main

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"

	openapiv2 "github.com/google/gnostic-models/openapiv2"
	"google.golang.org/protobuf/proto"
	appsv1 "k8s.io/api/apps/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/version"
	wrap "k8s.io/kube-openapi/pkg/builder3/util"
	"k8s.io/kube-openapi/pkg/common"
	"k8s.io/kube-openapi/pkg/schemamutation"
	"k8s.io/kube-openapi/pkg/validation/spec"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"

	"dhow.dev/services/apiserver/internal/openapi/generate/definitions"
)

const (
	v2Prefix = "#/definitions/"
	v3Prefix = "#/components/schemas/"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "openapi:", err)
		os.Exit(1)
	}
}

func run(folder string) error {
	kinds, err := groupVersionKinds()
	if err != nil {
		return err
	}
	v2 := schemas(v2Prefix, kinds, func(s spec.Schema) spec.Schema {
		if embedded, found := s.Extensions[common.ExtensionV2Schema].(spec.Schema); found {
			return embedded
		}
		return *withoutDefaults(&s)
	})
	if err := write(filepath.Join(folder, "definitions.v2.json.gz"), v2); err != nil {
		return err
	}
	v3 := schemas(v3Prefix, kinds, func(s spec.Schema) spec.Schema {
		s.Extensions = maps.Clone(s.Extensions)
		delete(s.Extensions, common.ExtensionV2Schema)
		return *wrap.WrapRefs(&s)
	})
	if err := write(filepath.Join(folder, "definitions.v3.json.gz"), v3); err != nil {
		return err
	}
	encoded, err := protobuf(v2)
	if err != nil {
		return err
	}
	return compress(filepath.Join(folder, "definitions.v2.pb.gz"), encoded)
}

// withoutDefaults drops defaults: old clients take the ones of version 2 for values that the user has written.
func withoutDefaults(s *spec.Schema) *spec.Schema {
	walker := schemamutation.Walker{RefCallback: schemamutation.RefCallbackNoop, SchemaCallback: func(s *spec.Schema) *spec.Schema {
		if s.Default == nil {
			return s
		}
		changed := *s
		changed.Default = nil
		return &changed
	}}
	return walker.WalkSchema(s)
}

// schemas returns the schemas of all types that the kinds need, in one version's form.
func schemas(prefix string, kinds map[string][]any, form func(spec.Schema) spec.Schema) spec.Definitions {
	all := definitions.GetOpenAPIDefinitions(func(name string) spec.Ref { return spec.MustCreateRef(prefix + name) })
	needed := spec.Definitions{}
	var need func(name string)
	need = func(name string) {
		if _, done := needed[name]; done {
			return
		}
		definition, found := all[name]
		if !found {
			panic(fmt.Sprintf("openapi: no definition of %s: its package is missing in the file packages", name))
		}
		schema := form(definition.Schema)
		if gvks := kinds[name]; len(gvks) > 0 {
			schema.Extensions = maps.Clone(schema.Extensions)
			schema.AddExtension("x-kubernetes-group-version-kind", gvks)
		}
		needed[name] = schema
		for _, d := range definition.Dependencies {
			need(d)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(kinds)) {
		need(name)
	}
	return needed
}

// groupVersionKinds returns the types that requests carry by their names, with the kinds that they are.
func groupVersionKinds() (map[string][]any, error) {
	scheme := runtime.NewScheme()
	builder := runtime.SchemeBuilder{
		appsv1.AddToScheme, authenticationv1.AddToScheme, authorizationv1.AddToScheme, autoscalingv1.AddToScheme, autoscalingv2.AddToScheme, batchv1.AddToScheme,
		certificatesv1.AddToScheme, certificatesv1beta1.AddToScheme, coordinationv1.AddToScheme, corev1.AddToScheme, discoveryv1.AddToScheme, eventsv1.AddToScheme, flowcontrolv1.AddToScheme,
		networkingv1.AddToScheme, nodev1.AddToScheme, policyv1.AddToScheme, rbacv1.AddToScheme, resourcev1.AddToScheme, schedulingv1.AddToScheme, storagev1.AddToScheme,
		metricsv1beta1.AddToScheme,
	}
	if err := builder.AddToScheme(scheme); err != nil {
		return nil, err
	}
	kinds := map[string][]any{}
	for gvk, goType := range scheme.AllKnownTypes() {
		// Options are parameters of paths, not bodies; only DeleteOptions is one.
		if gvk.Version == runtime.APIVersionInternal || strings.HasSuffix(gvk.Kind, "Options") && gvk.Kind != "DeleteOptions" {
			continue
		}
		if name, found := modelName(goType); found {
			kinds[name] = append(kinds[name], map[string]any{"group": gvk.Group, "version": gvk.Version, "kind": gvk.Kind})
		}
	}
	for _, of := range kinds {
		slices.SortFunc(of, func(a, b any) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	}
	// These have no kind of their own in a group, but paths answer with them.
	for _, plain := range []any{metav1.Patch{}, metav1.APIResourceList{}, metav1.APIGroup{}, metav1.APIGroupList{}, metav1.APIVersions{}, version.Info{}} {
		if name, found := modelName(reflect.TypeOf(plain)); found && kinds[name] == nil {
			kinds[name] = nil
		}
	}
	return kinds, nil
}

func modelName(t reflect.Type) (string, bool) {
	named, ok := reflect.Zero(t).Interface().(interface{ OpenAPIModelName() string })
	if !ok {
		return "", false
	}
	return named.OpenAPIModelName(), true
}

// protobuf returns a document of the definitions alone. Documents that are encoded one after the other are one document.
func protobuf(v2 spec.Definitions) ([]byte, error) {
	text, err := json.Marshal(map[string]any{"swagger": "2.0", "info": map[string]any{"title": "", "version": ""}, "paths": map[string]any{}, "definitions": v2})
	if err != nil {
		return nil, err
	}
	document, err := openapiv2.ParseDocument(text)
	if err != nil {
		return nil, err
	}
	return proto.MarshalOptions{Deterministic: true}.Marshal(&openapiv2.Document{Definitions: document.Definitions})
}

func write(path string, all spec.Definitions) error {
	text, err := json.Marshal(all)
	if err != nil {
		return err
	}
	return compress(path, text)
}

// compress writes without a time, so that the same input is the same file.
func compress(path string, content []byte) error {
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := w.Write(content); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	fmt.Printf("%s: %d bytes, %d compressed\n", filepath.Base(path), len(content), b.Len())
	return os.WriteFile(path, b.Bytes(), 0o644)
}
