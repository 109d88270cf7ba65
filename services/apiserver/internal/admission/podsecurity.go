package admission

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
)

var namespaces = resource.Lookup("", "namespaces")

// podSecurity holds pods to the level of the Pod Security Standards that their namespace's labels name, and warns of those that it will hold them to.
type podSecurity struct{}

// Labels of namespaces.
const (
	securityPrefix = "pod-security.kubernetes.io/"
	modeEnforce    = "enforce"
	modeAudit      = "audit"
	modeWarn       = "warn"
)

// level is a level of the Pod Security Standards.
type level string

const (
	privileged level = "privileged"
	baseline   level = "baseline"
	restricted level = "restricted"
)

// latest is the version of the newest rules.
const latest = 1 << 30

// policy is a level, as of a minor version of Kubernetes.
type policy struct {
	level   level
	version int
}

func (p policy) String() string {
	if p.version == latest {
		return string(p.level) + ":latest"
	}
	return fmt.Sprintf("%s:v1.%d", p.level, p.version)
}

// policyOf reads what a namespace's labels say about a mode, and what is wrong with them. An unreadable level enforces the strictest, and audits and warns of
// nothing, as in Kubernetes.
func policyOf(labels map[string]string, mode string) (policy, field.ErrorList) {
	at := field.NewPath("metadata", "labels")
	p := policy{level: privileged, version: latest}
	var errs field.ErrorList
	if value, ok := labels[securityPrefix+mode]; ok {
		p.level = level(value)
		if !slices.Contains([]level{privileged, baseline, restricted}, p.level) {
			errs = append(errs, field.Invalid(at.Key(securityPrefix+mode), value, "must be one of privileged, baseline, restricted"))
			p.level = privileged
			if mode == modeEnforce {
				p.level = restricted
			}
		}
	}
	if value, ok := labels[securityPrefix+mode+"-version"]; ok && value != "latest" {
		minor, isMinor := strings.CutPrefix(value, "v1.")
		n, err := strconv.Atoi(minor)
		if !isMinor || err != nil || n < 0 || strconv.Itoa(n) != minor {
			errs = append(errs, field.Invalid(at.Key(securityPrefix+mode+"-version"), value, `must be "latest" or "v1.x"`))
		} else {
			p.version = n
		}
	}
	return p, errs
}

func (s podSecurity) validate(ctx context.Context, q *Request) error {
	if q.Operation != Create && q.Operation != Update {
		return nil
	}
	if ns, ok := q.Object.(*corev1.Namespace); ok {
		return s.namespace(ctx, q, ns)
	}
	meta, spec := podOf(q.Object)
	if spec == nil || !s.concerns(q) {
		return nil
	}
	ns, found, err := get[*corev1.Namespace](ctx, q.View, namespaces, "", q.Namespace)
	if err != nil || !found {
		return err
	}
	enforce, wrong := policyOf(ns.Labels, modeEnforce)
	audit, wrongAudit := policyOf(ns.Labels, modeAudit)
	warn, wrongWarn := policyOf(ns.Labels, modeWarn)
	if wrong = append(append(wrong, wrongAudit...), wrongWarn...); len(wrong) > 0 {
		q.audit(securityPrefix+"error", fmt.Sprintf("Failed to parse policy: %v", wrong.ToAggregate()))
	}
	if violations := audit.violations(meta, spec); violations != "" {
		q.audit(securityPrefix+"audit-violations", fmt.Sprintf("would violate PodSecurity %q: %s", audit, violations))
	}
	if _, isPod := q.Object.(*corev1.Pod); isPod {
		q.audit(securityPrefix+"enforce-policy", enforce.String())
		if violations := enforce.violations(meta, spec); violations != "" {
			return q.forbidden("violates PodSecurity %q: %s", enforce, violations)
		}
	}
	if violations := warn.violations(meta, spec); violations != "" {
		q.warn("would violate PodSecurity %q: %s", warn, violations)
	}
	return nil
}

// concerns says whether a write of a pod, or of what makes pods, can change how it does.
func (podSecurity) concerns(q *Request) bool {
	if q.Subresource != "" && !q.on("", "pods", "ephemeralcontainers") {
		return false
	}
	pod, isPod := q.Object.(*corev1.Pod)
	old, hasOld := q.Old.(*corev1.Pod)
	if !isPod || !hasOld {
		return true
	}
	// What else may change of a pod is no matter of security.
	return !slices.Equal(significant(pod), significant(old))
}

// significant is what may change of a pod that exists, and matters: images, containers that are added, and the annotations of the versions that had nothing else.
func significant(pod *corev1.Pod) []string {
	all := []string{pod.Annotations[seccompPodAnnotation]}
	eachContainer(&pod.Spec, func(c *corev1.Container) {
		all = append(all, c.Name, c.Image, pod.Annotations[seccompAnnotation+c.Name])
	})
	return all
}

// podOf returns the pod in an object: itself, or the template that it makes pods of. Nil for other kinds.
func podOf(o runtime.Object) (*metav1.ObjectMeta, *corev1.PodSpec) {
	var t *corev1.PodTemplateSpec
	switch o := o.(type) {
	case *corev1.Pod:
		return &o.ObjectMeta, &o.Spec
	case *corev1.PodTemplate:
		t = &o.Template
	case *corev1.ReplicationController:
		t = o.Spec.Template
	case *appsv1.ReplicaSet:
		t = &o.Spec.Template
	case *appsv1.Deployment:
		t = &o.Spec.Template
	case *appsv1.DaemonSet:
		t = &o.Spec.Template
	case *appsv1.StatefulSet:
		t = &o.Spec.Template
	case *batchv1.Job:
		t = &o.Spec.Template
	case *batchv1.CronJob:
		t = &o.Spec.JobTemplate.Spec.Template
	}
	if t == nil {
		return nil, nil
	}
	return &t.ObjectMeta, &t.Spec
}

// maxWarnedPods bounds how many pods a namespace's new level is tried on, as Kubernetes' 3000 do.
const maxWarnedPods = 3000

// namespace looks at a namespace's labels, and warns of pods that a new level would refuse.
func (s podSecurity) namespace(ctx context.Context, q *Request, ns *corev1.Namespace) error {
	if q.Subresource != "" {
		return nil
	}
	var errs field.ErrorList
	for _, mode := range []string{modeEnforce, modeAudit, modeWarn} {
		_, bad := policyOf(ns.Labels, mode)
		errs = append(errs, bad...)
	}
	old, hasOld := q.Old.(*corev1.Namespace)
	if len(errs) > 0 {
		// Labels that were wrong before do not stand in the way of other changes.
		if hasOld {
			kept := true
			for _, mode := range []string{modeEnforce, modeAudit, modeWarn} {
				for _, key := range []string{securityPrefix + mode, securityPrefix + mode + "-version"} {
					kept = kept && ns.Labels[key] == old.Labels[key]
				}
			}
			if kept {
				return nil
			}
		}
		return apierrors.NewInvalid(q.Resource.GroupVersionKind().GroupKind(), ns.Name, errs)
	}
	if !hasOld {
		return nil
	}
	was, _ := policyOf(old.Labels, modeEnforce)
	is, _ := policyOf(ns.Labels, modeEnforce)
	if is == was || is.level == privileged || is.version == was.version && stricter[is.level] < stricter[was.level] {
		return nil
	}
	return s.tryOn(ctx, q, ns.Name, is)
}

// stricter orders the levels.
var stricter = map[level]int{privileged: 0, baseline: 1, restricted: 2}

// tryOn warns of the pods in a namespace that a policy would refuse, those of one reason together.
func (podSecurity) tryOn(ctx context.Context, q *Request, namespace string, is policy) error {
	type finding struct {
		first string
		count int
	}
	found := map[string]*finding{}
	total, tried := 0, 0
	err := q.View.List(ctx, pods, namespace, func(o codec.Object) bool {
		pod, ok := o.(*corev1.Pod)
		if !ok {
			return true
		}
		if total++; tried == maxWarnedPods {
			return true
		}
		tried++
		why := is.reasons(&pod.ObjectMeta, &pod.Spec)
		if why == "" {
			return true
		}
		f := found[why]
		if f == nil {
			f = &finding{first: pod.Name}
			found[why] = f
		}
		f.first = min(f.first, pod.Name)
		f.count++
		return true
	})
	if err != nil {
		return err
	}
	if tried < total {
		q.warn("new PodSecurity enforce level only checked against the first %d of %d existing pods", tried, total)
	}
	if len(found) == 0 {
		return nil
	}
	q.warn("existing pods in namespace %q violate the new PodSecurity enforce level %q", namespace, is)
	var lines []string
	for why, f := range found {
		switch f.count {
		case 1:
			lines = append(lines, fmt.Sprintf("%s: %s", f.first, why))
		case 2:
			lines = append(lines, fmt.Sprintf("%s (and 1 other pod): %s", f.first, why))
		default:
			lines = append(lines, fmt.Sprintf("%s (and %d other pods): %s", f.first, f.count-1, why))
		}
	}
	slices.Sort(lines)
	q.Warnings = append(q.Warnings, lines...)
	return nil
}

// violations says what a pod does that the policy forbids, in Kubernetes' words; empty when nothing.
func (p policy) violations(meta *metav1.ObjectMeta, spec *corev1.PodSpec) string {
	var all []string
	p.each(meta, spec, func(v violation) {
		if v.detail == "" {
			all = append(all, v.reason)
		} else {
			all = append(all, fmt.Sprintf("%s (%s)", v.reason, v.detail))
		}
	})
	return strings.Join(all, ", ")
}

// reasons is violations without the details.
func (p policy) reasons(meta *metav1.ObjectMeta, spec *corev1.PodSpec) string {
	var all []string
	p.each(meta, spec, func(v violation) { all = append(all, v.reason) })
	return strings.Join(all, ", ")
}

func (p policy) each(meta *metav1.ObjectMeta, spec *corev1.PodSpec, visit func(violation)) {
	if p.level == privileged {
		return
	}
	subject := subject{meta: meta, spec: spec, version: p.version}
	for _, c := range checks {
		if p.version < c.since || c.level == restricted && p.level != restricted || c.replaced > 0 && p.level == restricted && p.version >= c.replaced {
			continue
		}
		if v := c.check(subject); v != nil {
			visit(*v)
		}
	}
}
