package defaulting

import (
	"strings"
	"unicode"

	corev1 "k8s.io/api/core/v1"
)

func container(c *corev1.Container) {
	orDefault(&c.ImagePullPolicy, pullPolicy(c.Image))
	orDefault(&c.TerminationMessagePath, corev1.TerminationMessagePathDefault)
	orDefault(&c.TerminationMessagePolicy, corev1.TerminationMessageReadFile)
	for i := range c.Ports {
		orDefault(&c.Ports[i].Protocol, corev1.ProtocolTCP)
	}
	for i := range c.Env {
		source := c.Env[i].ValueFrom
		if source != nil && source.FieldRef != nil {
			orDefault(&source.FieldRef.APIVersion, "v1")
		}
		if source != nil && source.FileKeyRef != nil {
			orPointer(&source.FileKeyRef.Optional, false)
		}
	}
	probe(c.LivenessProbe)
	probe(c.ReadinessProbe)
	probe(c.StartupProbe)
	if c.Lifecycle != nil {
		lifecycleHandler(c.Lifecycle.PostStart)
		lifecycleHandler(c.Lifecycle.PreStop)
	}
}

// pullPolicy pulls what may have moved since: images that name neither a digest nor a tag other than latest.
func pullPolicy(image string) corev1.PullPolicy {
	name, digest, pinned := strings.Cut(image, "@")
	slash := strings.LastIndexByte(name, '/')
	repository, tag, tagged := strings.Cut(name[slash+1:], ":")
	// Kubernetes does not look further at a reference that it cannot parse.
	if repository == "" || pinned && digest == "" || strings.IndexFunc(repository, unicode.IsUpper) >= 0 {
		return corev1.PullIfNotPresent
	}
	if tag == "latest" || !tagged && !pinned {
		return corev1.PullAlways
	}
	return corev1.PullIfNotPresent
}

func probe(p *corev1.Probe) {
	if p == nil {
		return
	}
	orDefault(&p.TimeoutSeconds, 1)
	orDefault(&p.PeriodSeconds, 10)
	orDefault(&p.SuccessThreshold, 1)
	orDefault(&p.FailureThreshold, 3)
	httpGet(p.HTTPGet)
	if p.GRPC != nil {
		orPointer(&p.GRPC.Service, "")
	}
}

func lifecycleHandler(h *corev1.LifecycleHandler) {
	if h != nil {
		httpGet(h.HTTPGet)
	}
}

func httpGet(action *corev1.HTTPGetAction) {
	if action == nil {
		return
	}
	orDefault(&action.Path, "/")
	orDefault(&action.Scheme, corev1.URISchemeHTTP)
}
