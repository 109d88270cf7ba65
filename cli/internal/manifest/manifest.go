// Package manifest reads objects from files, folders and standard input: YAML or JSON, several documents in one, lists.
package manifest

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"dhow.dev/pkg/resource"
)

// Object is one object of a manifest.
type Object struct {
	Resource  *resource.Resource
	Namespace string
	Name      string
	// JSON is the object as it was written, in JSON.
	JSON []byte
	// Source says where it stands, for example `web.yaml, document 2`.
	Source string
}

// String names the object as the command line does, for example `deployment.apps/web`.
func (o Object) String() string {
	name := o.Resource.Singular()
	if o.Resource.Group != "" {
		name += "." + o.Resource.Group
	}
	return name + "/" + o.Name
}

// Options say what to read.
type Options struct {
	// Paths are files, folders, or `-` for In.
	Paths []string
	// Recursive goes into folders of folders.
	Recursive bool
	In        io.Reader
	// Namespace is given to objects of kinds with namespaces that name none. An object that names another one is an error when Enforce is set.
	Namespace string
	Enforce   bool
}

// Read reads all objects, in order: paths as given, files of a folder by name, documents as they stand. It reads everything before it answers, and
// returns all errors together.
func Read(options Options) ([]Object, error) {
	var objects []Object
	var errs []error
	for _, path := range options.Paths {
		files, err := list(path, options.Recursive)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		for _, file := range files {
			found, err := readFile(file, options)
			objects = append(objects, found...)
			if err != nil {
				errs = append(errs, err)
			}
		}
	}
	if len(errs) == 0 && len(objects) == 0 {
		errs = append(errs, fmt.Errorf("no objects in %s", strings.Join(options.Paths, ", ")))
	}
	return objects, errors.Join(errs...)
}

// list returns the manifests at a path.
func list(path string, recursive bool) ([]string, error) {
	if path == "-" {
		return []string{path}, nil
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("the path %q does not exist", path)
	}
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	var files []string
	err = filepath.WalkDir(path, func(file string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && file != path && !recursive:
			return filepath.SkipDir
		case !d.IsDir() && slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(file)):
			files = append(files, file)
		}
		return nil
	})
	return files, err
}

func readFile(file string, options Options) ([]Object, error) {
	in, source := options.In, "standard input"
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in, source = f, file
	}
	var objects []Object
	var errs []error
	documents := utilyaml.NewYAMLReader(bufio.NewReader(in))
	for i := 1; ; i++ {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, errors.Join(errs...)
		}
		where := fmt.Sprintf("%s, document %d", source, i)
		if err != nil {
			return objects, errors.Join(append(errs, fmt.Errorf("%s: %w", where, err))...)
		}
		found, err := parse(document, where, options)
		objects = append(objects, found...)
		if err != nil {
			errs = append(errs, err)
		}
	}
}

// header is what every object says of itself.
type header struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`
	Metadata   struct {
		Name         string `json:"name"`
		GenerateName string `json:"generateName"`
		Namespace    string `json:"namespace"`
	} `json:"metadata"`
	Items []json.RawMessage `json:"items"`
}

func parse(document []byte, where string, options Options) ([]Object, error) {
	asJSON, err := yaml.YAMLToJSONStrict(document)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	if bytes.Equal(bytes.TrimSpace(asJSON), []byte("null")) {
		return nil, nil // a document of comments
	}
	var h header
	if err := json.Unmarshal(asJSON, &h); err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	if h.Kind == "" || h.APIVersion == "" {
		missing := "kind"
		if h.Kind != "" {
			missing = "apiVersion"
		}
		return nil, fmt.Errorf("%s: %s: Required value", where, missing)
	}
	if strings.HasSuffix(h.Kind, "List") && h.Items != nil {
		var objects []Object
		var errs []error
		for i, item := range h.Items {
			found, err := parse(item, fmt.Sprintf("%s, items[%d]", where, i), options)
			objects = append(objects, found...)
			if err != nil {
				errs = append(errs, err)
			}
		}
		return objects, errors.Join(errs...)
	}
	group, version, found := strings.Cut(h.APIVersion, "/")
	if !found {
		group, version = "", h.APIVersion
	}
	r := resource.ByGVK(schema.GroupVersionKind{Group: group, Version: version, Kind: h.Kind})
	if r == nil {
		return nil, fmt.Errorf("%s: no matches for kind %q in version %q", where, h.Kind, h.APIVersion)
	}
	o := Object{Resource: r, Name: h.Metadata.Name, Namespace: h.Metadata.Namespace, JSON: asJSON, Source: where}
	switch {
	case o.Name == "" && h.Metadata.GenerateName != "":
		return nil, fmt.Errorf("%s: %s: metadata.generateName cannot be applied: give it metadata.name", where, h.Kind)
	case o.Name == "":
		return nil, fmt.Errorf("%s: %s: metadata.name: Required value", where, h.Kind)
	case !r.Namespaced && o.Namespace != "":
		return nil, fmt.Errorf("%s: %s: metadata.namespace: Forbidden: the kind has no namespaces", where, o)
	case r.Namespaced && o.Namespace == "":
		o.Namespace = options.Namespace
	case r.Namespaced && options.Enforce && o.Namespace != options.Namespace:
		return nil, fmt.Errorf("%s: %s: the namespace from the manifest %q does not match the namespace %q of the command: leave --namespace out, or change the manifest", where, o, o.Namespace, options.Namespace)
	}
	return []Object{o}, nil
}
