package registry

import (
	"slices"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/services/apiserver/internal/admission"
	"dhow.dev/services/apiserver/internal/audit/annotation"
	"dhow.dev/services/apiserver/internal/patch"
)

// TestPodSecurityOfWhatExists: pods that were there before their namespace's level keep living, until something is changed that matters.
func TestPodSecurityOfWhatExists(t *testing.T) {
	k := guarded(t, admission.Config{})
	for _, name := range []string{"b", "a", "c"} {
		k.create("pod", pod(name, ", securityContext: {privileged: true}"))
	}
	k.create("pod", `{metadata: {name: net}, spec: {hostNetwork: true, containers: [{name: c, image: nginx}]}}`)
	label := func(labels string) []string {
		_, r := k.patch("ns", "shop", `metadata: {labels: {`+labels+`}}`, patch.Merge)
		return r.Warnings
	}
	want := []string{
		`existing pods in namespace "shop" violate the new PodSecurity enforce level "baseline:v1.30"`, "a (and 2 other pods): privileged", "net: host namespaces",
	}
	if got := label(`pod-security.kubernetes.io/enforce: baseline, pod-security.kubernetes.io/enforce-version: v1.30`); !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if got := label(`x: z`); len(got) != 0 {
		t.Errorf("nothing of the level was changed: %q", got)
	}
	if got := label(`pod-security.kubernetes.io/enforce: restricted`); len(got) != 3 {
		t.Errorf("a stricter level: %q", got)
	}
	if got := label(`pod-security.kubernetes.io/enforce: baseline`); len(got) != 0 {
		t.Errorf("a looser level of the same version: %q", got)
	}
	if got := label(`pod-security.kubernetes.io/enforce-version: latest`); len(got) != 3 {
		t.Errorf("another version: %q", got)
	}
	k.patch("pod", "a", `metadata: {labels: {x: z}}`, patch.Merge)
	k.patch("pod", "a", `spec: {activeDeadlineSeconds: 5}`, patch.Merge)
	k.update("pod", `{metadata: {name: a}, status: {phase: Running}}`, WriteOptions{Subresource: "status"})
	_, err := k.Patch(t.Context(), res("pod"), k.patchOf("pod", "a", `{spec: {containers: [{name: c, image: other}]}}`, patch.StrategicMerge), WriteOptions{})
	fails(t, err, apierrors.IsForbidden, `pods "a" is forbidden: violates PodSecurity "baseline:latest": privileged`)
	_, err = k.Patch(t.Context(), res("pod"), k.patchOf("pod", "a", `{spec: {ephemeralContainers: [{name: e, image: i}]}}`, patch.StrategicMerge), WriteOptions{Subresource: "ephemeralcontainers"})
	fails(t, err, apierrors.IsForbidden, `violates PodSecurity "baseline:latest": privileged`)
}

// TestPodSecurityOfTemplates: all kinds that make pods are warned about, and none refused.
func TestPodSecurityOfTemplates(t *testing.T) {
	k := guarded(t, admission.Config{})
	k.patch("ns", "shop", `metadata: {labels: {pod-security.kubernetes.io/enforce: baseline, pod-security.kubernetes.io/audit: restricted, pod-security.kubernetes.io/warn: baseline}}`, patch.Merge)
	const template = `template: {metadata: {labels: {a: b}}, spec: {hostPID: true, containers: [{name: c, image: i}]}}`
	const selector = `selector: {matchLabels: {a: b}}, `
	const restarting = `template: {metadata: {labels: {a: b}}, spec: {restartPolicy: Never, hostPID: true, containers: [{name: c, image: i}]}}`
	for word, document := range map[string]string{
		"deploy": `{metadata: {name: x}, spec: {` + selector + template + `}}`, "rs": `{metadata: {name: x}, spec: {` + selector + template + `}}`,
		"ds": `{metadata: {name: x}, spec: {` + selector + template + `}}`, "sts": `{metadata: {name: x}, spec: {serviceName: s, ` + selector + template + `}}`,
		"rc": `{metadata: {name: x}, spec: {selector: {a: b}, ` + template + `}}`, "podtemplate": `{metadata: {name: x}, ` + template + `}`,
		"job": `{metadata: {name: x}, spec: {` + restarting + `}}`, "cj": `{metadata: {name: x}, spec: {schedule: "* * * * *", jobTemplate: {spec: {` + restarting + `}}}}`,
	} {
		ctx, notes := annotation.NewContext(t.Context())
		result, err := k.Create(ctx, res(word), place(word, document), WriteOptions{})
		if err != nil {
			t.Errorf("%s: %v", word, err)
			continue
		}
		if !slices.Contains(result.Warnings, `would violate PodSecurity "baseline:latest": host namespaces (hostPID=true)`) {
			t.Errorf("%s: %q", word, result.Warnings)
		}
		values, _ := notes.Values()
		if got := values["pod-security.kubernetes.io/audit-violations"]; got == "" || values["pod-security.kubernetes.io/enforce-policy"] != "" {
			t.Errorf("%s: %v", word, values)
		}
	}
	// A pod that is refused is in the audit all the same.
	ctx, notes := annotation.NewContext(t.Context())
	_, err := k.Create(ctx, res("pod"), place("pod", `{metadata: {name: p}, spec: {hostPID: true, containers: [{name: c, image: i}]}}`), WriteOptions{})
	fails(t, err, apierrors.IsForbidden, `violates PodSecurity "baseline:latest": host namespaces (hostPID=true)`)
	values, _ := notes.Values()
	if values["pod-security.kubernetes.io/enforce-policy"] != "baseline:latest" || values["pod-security.kubernetes.io/audit-violations"] == "" {
		t.Errorf("%v", values)
	}
}
