package describe

import (
	"fmt"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/table"
)

func (d *document) pod(p *corev1.Pod) {
	d.fieldf("Priority", "%d", value(p.Spec.Priority))
	if p.Spec.PriorityClassName != "" {
		d.field("Priority Class Name", p.Spec.PriorityClassName)
	}
	d.field("Service Account", orNone(p.Spec.ServiceAccountName))
	node := orNone(p.Spec.NodeName)
	if p.Status.HostIP != "" {
		node += "/" + p.Status.HostIP
	}
	d.field("Node", node)
	if p.Status.StartTime != nil {
		d.field("Start Time", p.Status.StartTime.Format(time.RFC1123Z))
	}
	d.metadata(p)
	d.field("Status", table.PodStatus(p))
	if p.DeletionTimestamp != nil {
		d.fieldf("Terminating since", "%s, grace period %ds", table.Age(*p.DeletionTimestamp, d.now), value(p.DeletionGracePeriodSeconds))
	}
	if p.Status.Reason != "" {
		d.field("Reason", p.Status.Reason)
	}
	if p.Status.Message != "" {
		d.field("Message", p.Status.Message)
	}
	d.field("IP", orNone(p.Status.PodIP))
	d.controlledBy(p)
	d.containers("Init Containers", p.Spec.InitContainers, p.Status.InitContainerStatuses)
	d.containers("Containers", p.Spec.Containers, p.Status.ContainerStatuses)
	var rows [][]string
	for _, c := range p.Status.Conditions {
		rows = append(rows, []string{string(c.Type), string(c.Status), c.Reason, c.Message})
	}
	d.conditions(rows)
	d.volumes(p.Spec.Volumes)
	d.field("QoS Class", orNone(string(p.Status.QOSClass)))
	d.mapping("Node-Selectors", p.Spec.NodeSelector)
	var tolerations []string
	for _, t := range p.Spec.Tolerations {
		tolerations = append(tolerations, toleration(t))
	}
	d.list("Tolerations", tolerations)
}

func (d *document) containers(label string, containers []corev1.Container, statuses []corev1.ContainerStatus) {
	if len(containers) == 0 {
		return
	}
	d.section(label, func() {
		for _, c := range containers {
			var status *corev1.ContainerStatus
			for i := range statuses {
				if statuses[i].Name == c.Name {
					status = &statuses[i]
				}
			}
			d.section(c.Name, func() { d.container(c, status) })
		}
	})
}

func (d *document) container(c corev1.Container, s *corev1.ContainerStatus) {
	if s != nil && s.ContainerID != "" {
		d.field("Container ID", s.ContainerID)
	}
	d.field("Image", c.Image)
	if s != nil && s.ImageID != "" {
		d.field("Image ID", s.ImageID)
	}
	var ports []string
	for _, p := range c.Ports {
		ports = append(ports, fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol))
	}
	d.field("Ports", orNone(strings.Join(ports, ", ")))
	if len(c.Command) > 0 {
		d.list("Command", c.Command)
	}
	if len(c.Args) > 0 {
		d.list("Args", c.Args)
	}
	if s != nil {
		d.state("State", s.State)
		if s.LastTerminationState != (corev1.ContainerState{}) {
			d.state("Last State", s.LastTerminationState)
		}
		d.fieldf("Ready", "%t", s.Ready)
		d.fieldf("Restart Count", "%d", s.RestartCount)
	}
	d.resources("Limits", c.Resources.Limits)
	d.resources("Requests", c.Resources.Requests)
	for _, p := range []struct {
		name  string
		probe *corev1.Probe
	}{{"Liveness", c.LivenessProbe}, {"Readiness", c.ReadinessProbe}, {"Startup", c.StartupProbe}} {
		if p.probe != nil {
			d.field(p.name, describeProbe(p.probe))
		}
	}
	var env []string
	for _, e := range c.Env {
		env = append(env, e.Name+": "+envValue(e))
	}
	d.list("Environment", env)
	var mounts []string
	for _, m := range c.VolumeMounts {
		mode := "rw"
		if m.ReadOnly {
			mode = "ro"
		}
		mounts = append(mounts, fmt.Sprintf("%s from %s (%s)", m.MountPath, m.Name, mode))
	}
	d.list("Mounts", mounts)
}

func (d *document) state(label string, s corev1.ContainerState) {
	switch {
	case s.Running != nil:
		d.field(label, "Running")
		d.level++
		d.time("Started", s.Running.StartedAt)
		d.level--
	case s.Terminated != nil:
		d.field(label, "Terminated")
		d.level++
		d.field("Reason", s.Terminated.Reason)
		if s.Terminated.Message != "" {
			d.field("Message", s.Terminated.Message)
		}
		d.fieldf("Exit Code", "%d", s.Terminated.ExitCode)
		d.time("Started", s.Terminated.StartedAt)
		d.time("Finished", s.Terminated.FinishedAt)
		d.level--
	case s.Waiting != nil:
		d.field(label, "Waiting")
		d.level++
		d.field("Reason", s.Waiting.Reason)
		if s.Waiting.Message != "" {
			d.field("Message", s.Waiting.Message)
		}
		d.level--
	}
}

func (d *document) resources(label string, list corev1.ResourceList) {
	if len(list) == 0 {
		return
	}
	m := map[string]string{}
	for name, q := range list {
		m[string(name)] = q.String()
	}
	d.mapping(label, m)
}

func (d *document) volumes(volumes []corev1.Volume) {
	if len(volumes) == 0 {
		return
	}
	d.section("Volumes", func() {
		for _, v := range volumes {
			d.field(v.Name, volumeSource(v))
		}
	})
}

func volumeSource(v corev1.Volume) string {
	switch {
	case v.EmptyDir != nil:
		if v.EmptyDir.Medium != "" {
			return "EmptyDir (" + string(v.EmptyDir.Medium) + ")"
		}
		return "EmptyDir"
	case v.HostPath != nil:
		return "HostPath " + v.HostPath.Path
	case v.ConfigMap != nil:
		return "ConfigMap " + v.ConfigMap.Name
	case v.Secret != nil:
		return "Secret " + v.Secret.SecretName
	case v.PersistentVolumeClaim != nil:
		return "PersistentVolumeClaim " + v.PersistentVolumeClaim.ClaimName
	case v.Projected != nil:
		return "Projected"
	case v.DownwardAPI != nil:
		return "DownwardAPI"
	default:
		return "other"
	}
}

func describeProbe(p *corev1.Probe) string {
	action := "unknown"
	switch {
	case p.Exec != nil:
		action = fmt.Sprintf("exec %v", p.Exec.Command)
	case p.HTTPGet != nil:
		action = fmt.Sprintf("http-get %s://%s:%s%s", strings.ToLower(string(p.HTTPGet.Scheme)), p.HTTPGet.Host, p.HTTPGet.Port.String(), p.HTTPGet.Path)
	case p.TCPSocket != nil:
		action = fmt.Sprintf("tcp-socket %s:%s", p.TCPSocket.Host, p.TCPSocket.Port.String())
	case p.GRPC != nil:
		action = fmt.Sprintf("grpc :%d", p.GRPC.Port)
	}
	return fmt.Sprintf("%s delay=%ds timeout=%ds period=%ds #success=%d #failure=%d", action, p.InitialDelaySeconds, p.TimeoutSeconds, p.PeriodSeconds, p.SuccessThreshold, p.FailureThreshold)
}

func envValue(e corev1.EnvVar) string {
	if e.ValueFrom == nil {
		return e.Value
	}
	switch from := e.ValueFrom; {
	case from.FieldRef != nil:
		return "(" + from.FieldRef.APIVersion + ":" + from.FieldRef.FieldPath + ")"
	case from.ResourceFieldRef != nil:
		return "(" + from.ResourceFieldRef.Resource + ")"
	case from.ConfigMapKeyRef != nil:
		return fmt.Sprintf("<set to the key '%s' of config map '%s'>", from.ConfigMapKeyRef.Key, from.ConfigMapKeyRef.Name)
	case from.SecretKeyRef != nil:
		return fmt.Sprintf("<set to the key '%s' in secret '%s'>", from.SecretKeyRef.Key, from.SecretKeyRef.Name)
	default:
		return ""
	}
}

func toleration(t corev1.Toleration) string {
	text := t.Key
	if t.Value != "" {
		text += "=" + t.Value
	}
	if t.Effect != "" {
		text += ":" + string(t.Effect)
	}
	if t.Operator == corev1.TolerationOpExists {
		text += " op=Exists"
	}
	if t.TolerationSeconds != nil {
		text += fmt.Sprintf(" for %ds", *t.TolerationSeconds)
	}
	return strings.TrimSpace(text)
}

func (d *document) secret(s *corev1.Secret) {
	d.metadata(s)
	d.field("Type", string(s.Type))
	d.section("Data", func() {
		for _, k := range sorted(s.Data) {
			d.fieldf(k, "%d bytes", len(s.Data[k]))
		}
	})
}

func (d *document) configMap(m *corev1.ConfigMap) {
	d.metadata(m)
	d.section("Data", func() {
		for _, k := range sorted(m.Data) {
			lines := strings.Split(strings.TrimRight(m.Data[k], "\n"), "\n")
			d.list(k, lines)
		}
	})
	d.section("BinaryData", func() {
		for _, k := range sorted(m.BinaryData) {
			d.fieldf(k, "%d bytes", len(m.BinaryData[k]))
		}
	})
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func value[T any](p *T) T {
	var zero T
	if p == nil {
		return zero
	}
	return *p
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

func labelSelector(s *metav1.LabelSelector) string { return metav1.FormatLabelSelector(s) }
