package validation

import (
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	utilvalidation "k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// pod is what the rules of a part look up in the rest of the pod.
type pod struct {
	spec    *corev1.PodSpec
	path    *field.Path
	volumes map[string]*corev1.Volume
	claims  names
	// template says that the pod is one to be made.
	template bool
}

// containers looks at the ordinary containers.
func (p *pod) containers(path *field.Path) field.ErrorList {
	list := p.spec.Containers
	if len(list) == 0 {
		return field.ErrorList{field.Required(path, "")}
	}
	var errs field.ErrorList
	seen, hostPorts := names{}, names{}
	for i := range list {
		c, at := &list[i], path.Index(i)
		errs = append(errs, p.container(at, c)...)
		if seen.taken(c.Name) {
			errs = append(errs, field.Duplicate(at.Child("name"), c.Name))
		}
		if c.Image != "" && strings.TrimSpace(c.Image) != c.Image {
			errs = append(errs, field.Invalid(at.Child("image"), c.Image, "must not have leading or trailing whitespace"))
		}
		if c.RestartPolicy != nil && *c.RestartPolicy != "" {
			errs = append(errs, oneOf(at.Child("restartPolicy"), *c.RestartPolicy,
				corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyOnFailure)...)
		}
		errs = append(errs, p.running(at, c)...)
		errs = append(errs, hostPortsApart(at.Child("ports"), c.Ports, hostPorts)...)
	}
	return errs
}

// initContainers looks at those that run before, and those that run beside: restartPolicy Always.
func (p *pod) initContainers(path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := names{}
	for _, c := range p.spec.Containers {
		seen.taken(c.Name)
	}
	for i := range p.spec.InitContainers {
		c, at := &p.spec.InitContainers[i], path.Index(i)
		errs = append(errs, p.container(at, c)...)
		if c.RestartPolicy != nil {
			errs = append(errs, oneOf(at.Child("restartPolicy"), *c.RestartPolicy,
				corev1.ContainerRestartPolicyAlways, corev1.ContainerRestartPolicyNever, corev1.ContainerRestartPolicyOnFailure)...)
		}
		if c.Name != "" && seen.taken(c.Name) {
			errs = append(errs, field.Duplicate(at.Child("name"), c.Name))
		}
		// Two init containers never run at once and may share a port; within one they may not.
		errs = append(errs, hostPortsApart(at.Child("ports"), c.Ports, names{})...)
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			errs = append(errs, p.running(at, c)...)
			continue
		}
		const only = "may not be set for init containers without restartPolicy=Always"
		for _, f := range []flag{
			{"lifecycle", c.Lifecycle != nil},
			{"livenessProbe", c.LivenessProbe != nil},
			{"readinessProbe", c.ReadinessProbe != nil},
			{"startupProbe", c.StartupProbe != nil},
		} {
			if f.set {
				errs = append(errs, field.Forbidden(at.Child(f.name), only))
			}
		}
	}
	return errs
}

// running looks at what makes sense for containers that are meant to go on.
func (p *pod) running(path *field.Path, c *corev1.Container) field.ErrorList {
	grace := p.spec.TerminationGracePeriodSeconds
	errs := p.lifecycle(path.Child("lifecycle"), c.Lifecycle, grace)
	errs = append(errs, probe(path.Child("livenessProbe"), c.LivenessProbe, grace)...)
	errs = append(errs, mustBeOne(path.Child("livenessProbe"), c.LivenessProbe)...)
	errs = append(errs, probe(path.Child("readinessProbe"), c.ReadinessProbe, grace)...)
	if c.ReadinessProbe != nil && c.ReadinessProbe.TerminationGracePeriodSeconds != nil {
		errs = append(errs, field.Invalid(path.Child("readinessProbe", "terminationGracePeriodSeconds"), *c.ReadinessProbe.TerminationGracePeriodSeconds,
			"must not be set for readinessProbes"))
	}
	errs = append(errs, probe(path.Child("startupProbe"), c.StartupProbe, grace)...)
	return append(errs, mustBeOne(path.Child("startupProbe"), c.StartupProbe)...)
}

func mustBeOne(path *field.Path, p *corev1.Probe) field.ErrorList {
	if p == nil || p.SuccessThreshold == 1 {
		return nil
	}
	return field.ErrorList{field.Invalid(path.Child("successThreshold"), p.SuccessThreshold, "must be 1")}
}

// container looks at what all containers share.
func (p *pod) container(path *field.Path, c *corev1.Container) field.ErrorList {
	var errs field.ErrorList
	if c.Name == "" {
		errs = append(errs, field.Required(path.Child("name"), ""))
	} else {
		errs = append(errs, dnsLabel(path.Child("name"), c.Name)...)
	}
	errs = append(errs, required(path.Child("image"), c.Image)...)
	errs = append(errs, requiredOneOf(path.Child("terminationMessagePolicy"), c.TerminationMessagePolicy,
		corev1.TerminationMessageReadFile, corev1.TerminationMessageFallbackToLogsOnError)...)
	errs = append(errs, ports(path.Child("ports"), c.Ports)...)
	errs = append(errs, env(path.Child("env"), c.Env)...)
	errs = append(errs, envFrom(path.Child("envFrom"), c.EnvFrom)...)
	devices := names{}
	for _, d := range c.VolumeDevices {
		devices[d.DevicePath] = true
	}
	errs = append(errs, p.volumeMounts(path.Child("volumeMounts"), c, devices)...)
	errs = append(errs, p.volumeDevices(path.Child("volumeDevices"), c)...)
	errs = append(errs, requiredOneOf(path.Child("imagePullPolicy"), c.ImagePullPolicy, corev1.PullAlways, corev1.PullIfNotPresent, corev1.PullNever)...)
	errs = append(errs, p.resources(path.Child("resources"), &c.Resources)...)
	errs = append(errs, resizePolicy(path.Child("resizePolicy"), c.ResizePolicy, p.spec.RestartPolicy)...)
	errs = append(errs, restartRules(path, c)...)
	return append(errs, p.securityContext(path.Child("securityContext"), c.SecurityContext)...)
}

func ports(path *field.Path, list []corev1.ContainerPort) field.ErrorList {
	var errs field.ErrorList
	seen := names{}
	for i, port := range list {
		at := path.Index(i)
		if port.Name != "" {
			if messages := utilvalidation.IsValidPortName(port.Name); len(messages) > 0 {
				errs = append(errs, each(at.Child("name"), port.Name, messages)...)
			} else if seen.taken(port.Name) {
				errs = append(errs, field.Duplicate(at.Child("name"), port.Name))
			}
		}
		if port.ContainerPort == 0 {
			errs = append(errs, field.Required(at.Child("containerPort"), ""))
		} else {
			errs = append(errs, portNumber(at.Child("containerPort"), port.ContainerPort)...)
		}
		if port.HostPort != 0 {
			errs = append(errs, portNumber(at.Child("hostPort"), port.HostPort)...)
		}
		errs = append(errs, requiredOneOf(at.Child("protocol"), port.Protocol, corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP)...)
		if port.HostIP != "" {
			errs = append(errs, utilvalidation.IsValidIPForLegacyField(at.Child("hostIP"), port.HostIP, false, nil)...)
		}
	}
	return errs
}

// hostPortsApart complains about host ports that are taken.
func hostPortsApart(path *field.Path, list []corev1.ContainerPort, taken names) field.ErrorList {
	var errs field.ErrorList
	for i, port := range list {
		if port.HostPort == 0 {
			continue
		}
		name := fmt.Sprintf("%s/%s/%d", port.Protocol, port.HostIP, port.HostPort)
		if taken.taken(name) {
			errs = append(errs, field.Duplicate(path.Index(i).Child("hostPort"), name))
		}
	}
	return errs
}

func resizePolicy(path *field.Path, list []corev1.ContainerResizePolicy, restart corev1.RestartPolicy) field.ErrorList {
	var errs field.ErrorList
	seen := names{}
	for i, policy := range list {
		at := path.Index(i)
		if seen.taken(string(policy.ResourceName)) {
			errs = append(errs, field.Duplicate(at, policy.ResourceName))
		}
		errs = append(errs, requiredOneOf(at, policy.ResourceName, corev1.ResourceCPU, corev1.ResourceMemory)...)
		errs = append(errs, requiredOneOf(at, policy.RestartPolicy, corev1.NotRequired, corev1.RestartContainer)...)
		if restart == corev1.RestartPolicyNever && policy.RestartPolicy != corev1.NotRequired {
			errs = append(errs, field.Invalid(at, policy.RestartPolicy, "must be 'NotRequired' when `restartPolicy` is 'Never'"))
		}
	}
	return errs
}

// maxRestartRules is Kubernetes' limit on rules, and maxExitCodes that on the exit codes of one.
const (
	maxRestartRules = 20
	maxExitCodes    = 255
)

func restartRules(path *field.Path, c *corev1.Container) field.ErrorList {
	var errs field.ErrorList
	at := path.Child("restartPolicyRules")
	if len(c.RestartPolicyRules) > 0 && c.RestartPolicy == nil {
		errs = append(errs, field.Required(path.Child("restartPolicy"), "must specify restartPolicy when restart rules are used"))
	}
	if len(c.RestartPolicyRules) > maxRestartRules {
		errs = append(errs, field.TooMany(at, len(c.RestartPolicyRules), maxRestartRules))
	}
	for i, rule := range c.RestartPolicyRules {
		errs = append(errs, requiredOneOf(at.Index(i).Child("action"), rule.Action, corev1.ContainerRestartRuleActionRestart, corev1.ContainerRestartRuleActionRestartAllContainers)...)
		codes := at.Index(i).Child("exitCodes")
		if rule.ExitCodes == nil {
			errs = append(errs, field.Required(codes, "must be specified"))
			continue
		}
		errs = append(errs, requiredOneOf(codes.Child("operator"), rule.ExitCodes.Operator,
			corev1.ContainerRestartRuleOnExitCodesOpIn, corev1.ContainerRestartRuleOnExitCodesOpNotIn)...)
		if len(rule.ExitCodes.Values) > maxExitCodes {
			errs = append(errs, field.TooMany(codes.Child("values"), len(rule.ExitCodes.Values), maxExitCodes))
		}
	}
	return errs
}

func (p *pod) ephemeralContainers(path *field.Path) field.ErrorList {
	var errs field.ErrorList
	seen := names{}
	for _, list := range [][]corev1.Container{p.spec.Containers, p.spec.InitContainers} {
		for _, c := range list {
			seen.taken(c.Name)
		}
	}
	for i := range p.spec.EphemeralContainers {
		ec, at := &p.spec.EphemeralContainers[i], path.Index(i)
		c := corev1.Container(ec.EphemeralContainerCommon)
		errs = append(errs, p.container(at, &c)...)
		if seen.taken(c.Name) {
			errs = append(errs, field.Duplicate(at.Child("name"), c.Name))
		}
		const never = "cannot be set for an Ephemeral Container"
		for _, f := range []flag{
			{"lifecycle", c.Lifecycle != nil},
			{"livenessProbe", c.LivenessProbe != nil},
			{"readinessProbe", c.ReadinessProbe != nil},
			{"startupProbe", c.StartupProbe != nil},
			{"ports", c.Ports != nil},
			{"resizePolicy", c.ResizePolicy != nil},
			{"restartPolicy", c.RestartPolicy != nil},
			{"resources", len(c.Resources.Limits) > 0 || len(c.Resources.Requests) > 0},
		} {
			if f.set {
				errs = append(errs, field.Forbidden(at.Child(f.name), never))
			}
		}
		if target := ec.TargetContainerName; target != "" {
			found := false
			for _, list := range [][]corev1.Container{p.spec.Containers, p.spec.InitContainers} {
				for _, c := range list {
					found = found || c.Name == target
				}
			}
			if !found {
				errs = append(errs, field.NotFound(at.Child("targetContainerName"), target))
			}
		}
	}
	return errs
}
