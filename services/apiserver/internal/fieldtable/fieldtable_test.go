package fieldtable

import (
	"reflect"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
)

func kindOf(t testing.TB, res *resource.Resource) *Kind {
	t.Helper()
	c, err := codec.New()
	if err != nil {
		t.Fatal(err)
	}
	k, err := Of(res, reflect.TypeOf(c.New(res)).Elem())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// Every field of every kind has exactly one verdict: Of refuses all else.
func TestEveryFieldHasOneVerdict(t *testing.T) {
	for _, res := range resource.All() {
		if res.Virtual || resource.Lookup(res.Group, res.Plural) != res {
			continue
		}
		t.Run(res.String(), func(t *testing.T) {
			k := kindOf(t, res)
			seen := map[string]bool{}
			for _, f := range k.Fields() {
				if seen[f.Path] {
					t.Errorf("%s is listed twice", f.Path)
				}
				seen[f.Path] = true
			}
		})
	}
}

// A mistake in the table is told, whatever it is.
func TestMistakes(t *testing.T) {
	pods := resource.Lookup("", "pods")
	for name, c := range map[string]struct {
		change func(*message)
		want   string
	}{
		"no verdict":   {func(m *message) { m.accepted = fields(strings.Replace(string(m.accepted), "hostNetwork", "", 1)) }, "core.v1.PodSpec.hostNetwork has no verdict"},
		"two verdicts": {func(m *message) { m.notEnforced += " hostNetwork" }, "core.v1.PodSpec.hostNetwork has two verdicts"},
		"no field":     {func(m *message) { m.accepted += " hostNetworks" }, "core.v1.PodSpec has no field hostNetworks"},
		"no field far": {func(m *message) { m.accepted += " containers.images" }, "core.v1.PodSpec: containers.images does not exist"},
		"stray note":   {func(m *message) { m.notes = map[string]string{"containerz": "?"} }, "a note on containerz"},
	} {
		t.Run(name, func(t *testing.T) {
			row := table["core.v1.PodSpec"]
			defer func() { table["core.v1.PodSpec"] = row }()
			changed := row
			c.change(&changed)
			table["core.v1.PodSpec"] = changed
			if _, err := Of(pods, reflect.TypeFor[corev1.Pod]()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

// What an object has from a time when it was on stays, and is not said to be dropped.
func TestDropKeepsWhatWasThere(t *testing.T) {
	kind := kindOf(t, resource.Lookup("", "pods"))
	pod := func() *corev1.Pod {
		return &corev1.Pod{Spec: corev1.PodSpec{
			SchedulingGroup: &corev1.PodSchedulingGroup{PodGroupName: new("g")},
			Volumes: []corev1.Volume{{}, {VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
				{PodCertificate: &corev1.PodCertificateProjection{SignerName: "a.b/c"}}, {PodCertificate: &corev1.PodCertificateProjection{SignerName: "a.b/d"}}}}}}},
		}}
	}
	fresh := pod()
	if told := kind.Drop(fresh, &corev1.Pod{}); len(told) != 2 || fresh.Spec.SchedulingGroup != nil || fresh.Spec.Volumes[1].Projected.Sources[1].PodCertificate != nil {
		t.Errorf("%q %+v", told, fresh)
	}
	old := pod()
	old.Spec.SchedulingGroup = nil
	kept := pod()
	if told := kind.Drop(kept, old); len(told) != 1 || kept.Spec.SchedulingGroup != nil || kept.Spec.Volumes[1].Projected.Sources[0].PodCertificate == nil {
		t.Errorf("%q %+v", told, kept)
	}
	if told := kind.Warnings(kept); len(told) != 1 || !strings.HasPrefix(told[0], "spec.volumes[].projected.sources[].podCertificate: accepted and stored, but not enforced yet") {
		t.Errorf("what is kept has no effect: %q", told)
	}
}
