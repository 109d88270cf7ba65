package openapi

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	openapiv2 "github.com/google/gnostic-models/openapiv2"
	openapiv3 "github.com/google/gnostic-models/openapiv3"
	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/pkg/resource"
)

// The schemas of all types, made by generate/generate.sh.
var (
	//go:embed definitions.v2.json.gz
	definitionsV2 []byte
	//go:embed definitions.v2.pb.gz
	definitionsV2Protobuf []byte
	//go:embed definitions.v3.json.gz
	definitionsV3 []byte
)

const (
	v2Protobuf = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
	v3Protobuf = "application/com.github.proto-openapi.spec.v3.v1.0+protobuf"
)

// groupVersion is what one document of version 3 describes.
type groupVersion struct {
	group, version string
	resources      []*resource.Resource
}

// schemas returns the definitions of version 3 with the names that kinds have in both versions.
func schemas() (definitions map[string]json.RawMessage, models map[schema.GroupVersionKind]string, err error) {
	if definitions, err = load(definitionsV3); err != nil {
		return nil, nil, err
	}
	models, err = modelsOf(definitions)
	return definitions, models, err
}

func versionsOf(resources []*resource.Resource) []*groupVersion {
	var versions []*groupVersion
	for _, r := range resources {
		at := slices.IndexFunc(versions, func(v *groupVersion) bool { return v.group == r.Group && v.version == r.Version })
		if at < 0 {
			at = len(versions)
			versions = append(versions, &groupVersion{group: r.Group, version: r.Version})
		}
		versions[at].resources = append(versions[at].resources, r)
	}
	return versions
}

// buildV3 makes a document of each group and version, those of the other paths, and their index.
func buildV3(config Config) (*documents, error) {
	definitions, models, err := schemas()
	if err != nil {
		return nil, err
	}
	versions := versionsOf(config.Resources)
	paths := otherPaths(versions)
	for _, v := range versions {
		paths[rootOf(v.group, v.version)] = pathsOf(v.group, v.version, v.resources, models)
	}
	all := &documents{byPath: map[string]*document{}}
	links := object{}
	for name, paths := range paths {
		d, err := groupDocument(config, paths, definitions)
		if err != nil {
			return nil, fmt.Errorf("openapi: %s: %w", name, err)
		}
		all.byPath[name] = d
		links[name] = object{"serverRelativeURL": location(name, d.hash)}
	}
	index, err := json.Marshal(object{"paths": links})
	if err != nil {
		return nil, err
	}
	all.index, err = newDocument(index, "", nil)
	return all, err
}

func load(compressed []byte) (map[string]json.RawMessage, error) {
	text, err := decompress(compressed)
	if err != nil {
		return nil, err
	}
	definitions := map[string]json.RawMessage{}
	return definitions, json.Unmarshal(text, &definitions)
}

// modelsOf names the definition of each kind.
func modelsOf(definitions map[string]json.RawMessage) (map[schema.GroupVersionKind]string, error) {
	models := map[schema.GroupVersionKind]string{}
	for name, text := range definitions {
		var kinds struct {
			List []schema.GroupVersionKind `json:"x-kubernetes-group-version-kind"`
		}
		if err := json.Unmarshal(text, &kinds); err != nil {
			return nil, fmt.Errorf("openapi: definition %s: %w", name, err)
		}
		for _, gvk := range kinds.List {
			models[gvk] = name
		}
	}
	return models, nil
}

func info(config Config) object { return object{"title": "Kubernetes", "version": config.Version} }

const bearer = "Bearer Token authentication"

// groupDocument makes the document of some paths and of the schemas that they need.
func groupDocument(config Config, paths []path, definitions map[string]json.RawMessage) (*document, error) {
	forms := object{}
	for _, p := range paths {
		forms[p.path] = p.v3()
	}
	pathsText, err := json.Marshal(forms)
	if err != nil {
		return nil, err
	}
	needed := map[string]json.RawMessage{}
	if err := need(pathsText, definitions, needed); err != nil {
		return nil, err
	}
	text, err := json.Marshal(object{
		"openapi": "3.0.0", "info": info(config), "paths": json.RawMessage(pathsText),
		"components": object{
			"schemas":         needed,
			"securitySchemes": object{"BearerToken": object{"type": "apiKey", "name": "authorization", "in": "header", "description": bearer}},
		},
		"security": []object{{"BearerToken": []string{}}},
	})
	if err != nil {
		return nil, err
	}
	var d *document
	d, err = newDocument(text, v3Protobuf, func() ([]byte, error) {
		text, err := decompress(d.json)
		if err != nil {
			return nil, err
		}
		parsed, err := openapiv3.ParseDocument(text)
		if err != nil {
			return nil, err
		}
		return proto.Marshal(parsed)
	})
	return d, err
}

// need adds to needed the definitions that a text refers to, and those that they refer to.
func need(text []byte, definitions, needed map[string]json.RawMessage) error {
	prefix := []byte(`"#/components/schemas/`)
	for {
		at := bytes.Index(text, prefix)
		if at < 0 {
			return nil
		}
		text = text[at+len(prefix):]
		end := bytes.IndexByte(text, '"')
		name := string(text[:max(end, 0)])
		if needed[name] != nil {
			continue
		}
		definition, found := definitions[name]
		if !found {
			return fmt.Errorf("no schema %q: run go generate", name)
		}
		needed[name] = definition
		if err := need(definition, definitions, needed); err != nil {
			return err
		}
	}
}

// buildV2 makes the document of everything. Its protobuf form is the encoded schemas behind the encoded rest: protobuf reads both as one message.
func buildV2(config Config) (*document, error) {
	_, models, err := schemas()
	if err != nil {
		return nil, err
	}
	paths, shared := object{}, newShared()
	versions := versionsOf(config.Resources)
	// In this order, because parameters of one name are told apart by it.
	for _, v := range versions {
		for _, p := range pathsOf(v.group, v.version, v.resources, models) {
			paths[p.path] = p.v2(shared)
		}
	}
	for _, others := range otherPaths(versions) {
		for _, p := range others {
			paths[p.path] = p.v2(shared)
		}
	}
	definitions, err := load(definitionsV2)
	if err != nil {
		return nil, err
	}
	rest := object{
		"swagger": "2.0", "info": info(config), "paths": paths, "parameters": shared.forms,
		"securityDefinitions": object{"BearerToken": object{"type": "apiKey", "name": "authorization", "in": "header", "description": bearer}},
		"security":            []object{{"BearerToken": []string{}}},
	}
	restText, err := json.Marshal(rest)
	if err != nil {
		return nil, err
	}
	compressed, err := compress(restText)
	if err != nil {
		return nil, err
	}
	whole := maps.Clone(rest)
	whole["definitions"] = definitions
	text, err := json.Marshal(whole)
	if err != nil {
		return nil, err
	}
	return newDocument(text, v2Protobuf, func() ([]byte, error) {
		restText, err := decompress(compressed)
		if err != nil {
			return nil, err
		}
		parsed, err := openapiv2.ParseDocument(restText)
		if err != nil {
			return nil, err
		}
		encoded, err := proto.Marshal(parsed)
		if err != nil {
			return nil, err
		}
		schemas, err := decompress(definitionsV2Protobuf)
		if err != nil {
			return nil, err
		}
		return append(encoded, schemas...), nil
	})
}
