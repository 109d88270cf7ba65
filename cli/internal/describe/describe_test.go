package describe_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/yaml"

	"dhow.dev/cli/internal/describe"
	"dhow.dev/cli/internal/structs"
	"dhow.dev/pkg/resource"
)

var update = flag.Bool("update", false, "write the golden files anew; read them before you commit them")

// TestDescriptions describes the first object of each file in testdata; those behind it are related to it. The .txt beside it is what must come out.
func TestDescriptions(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no fixtures", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			content, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var described structs.Object
			var kind *resource.Resource
			var related describe.Related
			for document := range strings.SplitSeq(string(content), "---\n") {
				var header struct{ Kind string }
				if err := yaml.Unmarshal([]byte(document), &header); err != nil {
					t.Fatal(err)
				}
				r, err := resource.Find(header.Kind)
				if err != nil {
					t.Fatal(err)
				}
				o, err := structs.New(r)
				if err == nil {
					err = yaml.UnmarshalStrict([]byte(document), o)
				}
				if err != nil {
					t.Fatal(err)
				}
				if described == nil {
					described, kind = o, r
					continue
				}
				switch o := o.(type) {
				case *corev1.Event:
					related.Events = append(related.Events, o)
				case *corev1.Pod:
					related.Pods = append(related.Pods, o)
				case *discoveryv1.EndpointSlice:
					related.EndpointSlices = append(related.EndpointSlices, o)
				case *appsv1.ReplicaSet:
					related.ReplicaSets = append(related.ReplicaSets, o)
				}
			}
			var b strings.Builder
			if err := describe.Object(&b, kind, described, related, time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)); err != nil {
				t.Fatal(err)
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(b.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if b.String() != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
			}
		})
	}
}
