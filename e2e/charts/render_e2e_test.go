//go:build e2e

package charts

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	serializer "k8s.io/apimachinery/pkg/runtime/serializer/json"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// version is what the packed charts install.
const version = "v0.0.0-test"

// packed is the folder with the packed charts.
var packed string

func TestMain(m *testing.M) {
	code, err := func() (int, error) {
		dir, err := os.MkdirTemp("", "dhow-charts-")
		if err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		packed = filepath.Join(dir, "charts")
		pack := exec.Command(filepath.Join("..", "..", "tools", "charts.sh"), packed)
		pack.Env = append(os.Environ(), "VERSION="+version, "HOME="+dir)
		if out, err := pack.CombinedOutput(); err != nil {
			return 1, fmt.Errorf("tools/charts.sh: %w: %s", err, out)
		}
		return m.Run(), nil
	}()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	os.Exit(code)
}

// archive is a packed chart.
func archive(chart string) string { return filepath.Join(packed, chart+"-0.1.0.tgz") }

func helmProgram(t *testing.T, version string) string {
	t.Helper()
	program, err := filepath.Abs(filepath.Join("..", "..", "bin", version))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v: tools/helm.sh makes it", err)
	}
	return program
}

// helm runs a helm command line that needs no cluster.
func helm(t *testing.T, args ...string) (string, error) {
	t.Helper()
	return helmOf(t, "helm4", args...)
}

func helmOf(t *testing.T, version string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), helmProgram(t, version), args...)
	cmd.Env = append(os.Environ(), "HOME="+filepath.Dir(packed))
	var out, problems bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &problems
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w: %s", err, problems.String())
	}
	return out.String(), nil
}

// object is a rendered one.
type object struct {
	name   string // Kind/name
	source []byte
	tree   map[string]any
}

// needed are values without which a chart refuses to be rendered.
var needed = map[string][]string{"node-agent": {`join.tokenSecret="join"`}}

// tryRender renders a chart in the namespace plane as release r with values in JSON.
func tryRender(t *testing.T, chart string, sets ...string) ([]object, error) {
	t.Helper()
	args := []string{"template", "r", archive(chart), "--namespace", "plane"}
	for _, set := range append(append([]string{}, needed[chart]...), sets...) {
		args = append(args, "--set-json", set)
	}
	out, err := helm(t, args...)
	if err != nil {
		return nil, err
	}
	var objects []object
	reader := utilyaml.NewYAMLReader(bufio.NewReader(strings.NewReader(out)))
	for {
		document, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, err
		}
		o := object{source: document}
		if err := yaml.Unmarshal(document, &o.tree); err != nil {
			return nil, err
		}
		if len(o.tree) == 0 {
			continue // only comments
		}
		o.name = fmt.Sprintf("%v/%v", o.tree["kind"], at(o.tree, []string{"metadata", "name"}))
		objects = append(objects, o)
	}
}

func render(t *testing.T, chart string, sets ...string) []object {
	t.Helper()
	objects, err := tryRender(t, chart, sets...)
	if err != nil {
		t.Fatalf("helm template %s %v: %v", chart, sets, err)
	}
	return objects
}

// find returns the object of a name (Kind/name), nil when there is none.
func find(objects []object, name string) map[string]any {
	for _, o := range objects {
		if o.name == name {
			return o.tree
		}
	}
	return nil
}

// look returns what is at a path of an object: keys and indices between slashes.
func look(tree any, path string) any {
	if path == "" {
		return tree
	}
	for key := range strings.SplitSeq(path, "/") {
		switch in := tree.(type) {
		case map[string]any:
			tree = in[strings.ReplaceAll(key, "~", "/")]
		case []any:
			i, err := strconv.Atoi(key)
			if err != nil || i >= len(in) {
				return nil
			}
			tree = in[i]
		default:
			return nil
		}
	}
	return tree
}

// foreign are kinds of others, which the API of Kubernetes does not have.
var foreign = map[string]bool{"monitoring.coreos.com": true, "cert-manager.io": true}

// strict decodes an object as an API server would that refuses unknown fields.
func strict(o object) error {
	version, _ := o.tree["apiVersion"].(string)
	if group, _, ok := strings.Cut(version, "/"); ok && foreign[group] {
		return nil
	}
	_, _, err := serializer.NewSerializerWithOptions(serializer.DefaultMetaFactory, scheme.Scheme, scheme.Scheme, serializer.SerializerOptions{Yaml: true, Strict: true}).Decode(o.source, nil, nil)
	if runtime.IsNotRegisteredError(err) {
		return fmt.Errorf("no kind of Kubernetes: %w", err)
	}
	return err
}
