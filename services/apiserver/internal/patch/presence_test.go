package patch

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"k8s.io/apimachinery/pkg/runtime"
	kjson "k8s.io/apimachinery/pkg/util/json"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/strategy"
)

func newPatcher(t testing.TB) (*Patcher, *codec.Codec) {
	t.Helper()
	c, err := codec.New()
	if err != nil {
		t.Fatal(err)
	}
	return New(c, strategy.New(strategy.Config{})), c
}

// golden returns the folder of the objects, every field set, that k8s.io/api is tested with.
func golden(t *testing.T) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "k8s.io/api").Output()
	if err != nil {
		t.Fatal(err)
	}
	return filepath.Join(strings.TrimSpace(string(out)), "testdata", "HEAD")
}

// With every field set, a configuration made from protobuf is the JSON that Kubernetes makes of the same object.
func TestConfigurationsAreKubernetesJSON(t *testing.T) {
	p, _ := newPatcher(t)
	dir := golden(t)
	for _, res := range resource.Stored() {
		t.Run(res.String(), func(t *testing.T) {
			group := res.Group
			if group == "" {
				group = "core"
			}
			base := filepath.Join(dir, fmt.Sprintf("%s.%s.%s", group, res.Version, res.Kind))
			envelope, err := os.ReadFile(base + ".pb")
			if err != nil {
				t.Fatal(err)
			}
			var unknown runtime.Unknown
			if err := unknown.Unmarshal(bytes.TrimPrefix(envelope, []byte("k8s\x00"))); err != nil {
				t.Fatal(err)
			}
			config, err := p.ParseProto(res, unknown.Raw)
			if err != nil {
				t.Fatal(err)
			}
			text, err := os.ReadFile(base + ".json")
			if err != nil {
				t.Fatal(err)
			}
			var want map[string]any
			if err := kjson.Unmarshal(text, &want); err != nil {
				t.Fatal(err)
			}
			delete(want["metadata"].(map[string]any), "creationTimestamp")
			compare(t, "", config.tree.Object, want)
		})
	}
}

// compare reports where two trees differ. The golden protobuf holds empty values of fields that JSON omits.
func compare(t *testing.T, path string, got, want any) {
	t.Helper()
	g, isMap := got.(map[string]any)
	w, wantMap := want.(map[string]any)
	if !isMap || !wantMap {
		gl, isList := got.([]any)
		wl, wantList := want.([]any)
		if isList && wantList && len(gl) == len(wl) {
			for i := range gl {
				compare(t, fmt.Sprintf("%s[%d]", path, i), gl[i], wl[i])
			}
			return
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v (%T), want %v (%T)", path, got, got, want, want)
		}
		return
	}
	for key, value := range w {
		if g[key] == nil && value != nil {
			t.Errorf("%s.%s is missing: want %v", path, key, value)
			continue
		}
		compare(t, path+"."+key, g[key], value)
	}
	for key, value := range g {
		if _, ok := w[key]; !ok && !reflect.ValueOf(value).IsZero() {
			if m, isMap := value.(map[string]any); isMap && len(m) == 0 {
				continue
			}
			t.Errorf("%s.%s: got %v, want nothing", path, key, value)
		}
	}
}

func TestZeroValuesArePresent(t *testing.T) {
	p, _ := newPatcher(t)
	data, err := proto.Marshal(appsv1.Deployment_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String("d")}.Build(),
		Spec:     appsv1.DeploymentSpec_builder{Replicas: proto.Int32(0), Paused: proto.Bool(false)}.Build(),
	}.Build())
	if err != nil {
		t.Fatal(err)
	}
	config, err := p.ParseProto(resource.Lookup("apps", "deployments"), data)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.Marshal(config.tree.Object)
	want := `{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"d"},"spec":{"paused":false,"replicas":0}}`
	if err != nil || string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// BenchmarkSchema is what the first apply of a server's life pays: the schema of all kinds is parsed then.
func BenchmarkSchema(b *testing.B) {
	for b.Loop() {
		p, _ := newPatcher(b)
		if _, err := p.managers.get(resource.Lookup("", "pods"), ""); err != nil {
			b.Fatal(err)
		}
	}
}
