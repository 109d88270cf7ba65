package registry

import (
	"slices"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"

	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/patch"
)

// Fields that Kubernetes v1.36 has behind gates that are closed by default.
const (
	offPod  = `schedulingGroup: {podGroupName: g}, containers: [{name: c, image: i}], volumes: [{name: v, projected: {sources: [{podCertificate: {signerName: a.b/c, keyType: ED25519, credentialBundlePath: p}}]}}]`
	offWhat = `: dropped: off by default in Kubernetes v1.36 (gate `
)

func isClean(spec *corev1.PodSpec) bool {
	return spec.SchedulingGroup == nil && len(spec.Volumes) == 1 && len(spec.Volumes[0].Projected.Sources) == 1 && spec.Volumes[0].Projected.Sources[0].PodCertificate == nil
}

// Every kind of write drops them, and says so each time.
func TestFieldsThatAreOffAreDropped(t *testing.T) {
	k := newCluster(t)
	template := `template: {metadata: {labels: {a: b}}, spec: {` + offPod + `}}`
	podOf := func(o codec.Object) *corev1.PodSpec { return &o.(*corev1.Pod).Spec }
	expect := func(r Result, spec *corev1.PodSpec, at string) {
		t.Helper()
		if !isClean(spec) {
			t.Errorf("kept: %+v", spec)
		}
		for _, want := range []string{at + "schedulingGroup" + offWhat + "GenericWorkload)", at + "volumes[].projected.sources[].podCertificate" + offWhat + "PodCertificateRequest)"} {
			if !slices.Contains(r.Warnings, want) {
				t.Errorf("%q lacks %q", r.Warnings, want)
			}
		}
	}
	pod := `{metadata: {name: p}, spec: {` + offPod + `}}`
	o, r := k.create("pod", pod)
	expect(r, podOf(o), "spec.")
	// The pod has one source, which says nothing: what is not there is not an unset field for an update either.
	o, r = k.update("pod", pod, WriteOptions{})
	expect(r, podOf(o), "spec.")
	o, r = k.patch("pod", "p", `{metadata: {labels: {a: b}}, spec: {schedulingGroup: {podGroupName: other}}}`, patch.Merge)
	if !isClean(podOf(o)) || len(r.Warnings) != 1 || !strings.HasPrefix(r.Warnings[0], "spec.schedulingGroup"+offWhat) {
		t.Errorf("patched: %+v %q", podOf(o), r.Warnings)
	}
	applied := strings.Replace(pod, "name: p}", "name: q}", 1)
	o, r = k.apply("pod", applied, "me")
	expect(r, podOf(o), "spec.")
	_, again := k.apply("pod", applied, "me")
	expect(again, podOf(k.stored("pod", "q")), "spec.")
	if again.Revision != r.Revision {
		t.Error("an apply that changes nothing but what is dropped was written")
	}

	for word, c := range map[string]struct {
		document, at string
		spec         func(codec.Object) *corev1.PodSpec
	}{
		"deploy":      {`{metadata: {name: w}, spec: {selector: {matchLabels: {a: b}}, ` + template + `}}`, "spec.template.spec.", func(o codec.Object) *corev1.PodSpec { return &o.(*appsv1.Deployment).Spec.Template.Spec }},
		"podtemplate": {`{metadata: {name: w}, ` + template + `}`, "template.spec.", func(o codec.Object) *corev1.PodSpec { return &o.(*corev1.PodTemplate).Template.Spec }},
		"cronjob": {`{metadata: {name: w}, spec: {schedule: "@hourly", jobTemplate: {spec: {` + strings.Replace(template, "spec: {", "spec: {restartPolicy: Never, ", 1) + `}}}}`, "spec.jobTemplate.spec.template.spec.",
			func(o codec.Object) *corev1.PodSpec { return &o.(*batchv1.CronJob).Spec.JobTemplate.Spec.Template.Spec }},
	} {
		o, r := k.create(word, c.document)
		expect(r, c.spec(o), c.at)
	}

	o, r = k.create("csidriver", `{metadata: {name: d.example.com}, spec: {preventPodSchedulingIfMissing: false}}`)
	if o.(*storagev1.CSIDriver).Spec.PreventPodSchedulingIfMissing != nil || !slices.Contains(r.Warnings, "spec.preventPodSchedulingIfMissing"+offWhat+"VolumeLimitScaling)") {
		t.Errorf("%+v %q", o, r.Warnings)
	}
}

// What an object has from a time when it was on stays when it is written again, and may change; what it does not have is dropped beside it.
func TestFieldsThatAreOffStayWhereTheyWere(t *testing.T) {
	k := newCluster(t)
	const plain = `{metadata: {name: t}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}`
	o, _ := k.create("podtemplate", plain)
	o.(*corev1.PodTemplate).Template.Spec.SchedulingGroup = &corev1.PodSchedulingGroup{PodGroupName: new("of old")}
	data, err := k.codec.EncodeProto(o)
	if err != nil {
		t.Fatal(err)
	}
	op := &storev1.Operation{}
	op.SetKey([]byte(Key(res("podtemplate"), "shop", "t")))
	op.SetPut(data)
	write := &storev1.CommitRequest{}
	write.SetOperations([]*storev1.Operation{op})
	if _, err := k.store.Commit(t.Context(), write); err != nil {
		t.Fatal(err)
	}
	o, r := k.update("podtemplate", `{metadata: {name: t}, template: {metadata: {labels: {a: b}}, spec: {`+offPod+`}}}`, WriteOptions{})
	spec := o.(*corev1.PodTemplate).Template.Spec
	if g := spec.SchedulingGroup; g == nil || *g.PodGroupName != "g" || spec.Volumes[0].Projected.Sources[0].PodCertificate != nil {
		t.Errorf("%+v", spec)
	}
	dropped := slices.DeleteFunc(r.Warnings, func(w string) bool { return !strings.Contains(w, offWhat) })
	if len(dropped) != 1 || !strings.Contains(dropped[0], "podCertificate") {
		t.Errorf("%q", dropped)
	}
	o, _ = k.patch("podtemplate", "t", `{metadata: {labels: {a: b}}}`, patch.Merge)
	if o.(*corev1.PodTemplate).Template.Spec.SchedulingGroup == nil {
		t.Error("a patch of something else drops it")
	}
	o, _ = k.update("podtemplate", plain, WriteOptions{})
	o, _ = k.update("podtemplate", strings.Replace(plain, "containers:", "schedulingGroup: {podGroupName: g}, containers:", 1), WriteOptions{})
	if o.(*corev1.PodTemplate).Template.Spec.SchedulingGroup != nil {
		t.Error("what was given up comes back")
	}
}
