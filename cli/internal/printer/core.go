package printer

import (
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"dhow.dev/cli/internal/structs"
)

func nodeTable() table {
	return table{
		columns: []Column{{"STATUS", false}, {"ROLES", false}, {"AGE", false}, {"VERSION", false}, {"INTERNAL-IP", true}, {"EXTERNAL-IP", true}, {"OS-IMAGE", true}, {"KERNEL-VERSION", true}, {"CONTAINER-RUNTIME", true}},
		noAge:   true,
		cells: func(o structs.Object, now time.Time) []string {
			node := o.(*corev1.Node)
			info := node.Status.NodeInfo
			return []string{
				NodeStatus(node), nodeRoles(node), Age(node.CreationTimestamp, now), info.KubeletVersion,
				nodeAddress(node, corev1.NodeInternalIP), nodeAddress(node, corev1.NodeExternalIP), orUnknown(info.OSImage), orUnknown(info.KernelVersion), orUnknown(info.ContainerRuntimeVersion),
			}
		},
	}
}

func orUnknown(s string) string {
	if s == "" {
		return "<unknown>"
	}
	return s
}

// NodeStatus is the STATUS column of a node.
func NodeStatus(o structs.Object) string {
	node := o.(*corev1.Node)
	status := "Unknown"
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			status = "NotReady"
			if c.Status == corev1.ConditionTrue {
				status = "Ready"
			}
		}
	}
	if node.Spec.Unschedulable {
		status += ",SchedulingDisabled"
	}
	return status
}

// nodeRoles reads the labels that name roles.
func nodeRoles(node *corev1.Node) string {
	var roles []string
	for label, value := range node.Labels {
		if role, found := strings.CutPrefix(label, "node-role.kubernetes.io/"); found && role != "" {
			roles = append(roles, role)
		} else if label == "kubernetes.io/role" && value != "" {
			roles = append(roles, value)
		}
	}
	sort.Strings(roles)
	return orNone(strings.Join(roles, ","))
}

func nodeAddress(node *corev1.Node, kind corev1.NodeAddressType) string {
	for _, a := range node.Status.Addresses {
		if a.Type == kind {
			return a.Address
		}
	}
	return "<none>"
}

func serviceTable() table {
	return table{
		columns: []Column{{"TYPE", false}, {"CLUSTER-IP", false}, {"EXTERNAL-IP", false}, {"PORT(S)", false}, {"SELECTOR", true}},
		cells: func(o structs.Object, _ time.Time) []string {
			s := o.(*corev1.Service)
			clusterIP := s.Spec.ClusterIP
			if len(s.Spec.ClusterIPs) > 0 {
				clusterIP = s.Spec.ClusterIPs[0]
			}
			return []string{string(s.Spec.Type), orNone(clusterIP), externalIP(s), servicePorts(s.Spec.Ports), selector(s.Spec.Selector)}
		},
	}
}

func externalIP(s *corev1.Service) string {
	ips := append([]string(nil), s.Spec.ExternalIPs...)
	switch s.Spec.Type {
	case corev1.ServiceTypeExternalName:
		return s.Spec.ExternalName
	case corev1.ServiceTypeLoadBalancer:
		var ingress []string
		for _, i := range s.Status.LoadBalancer.Ingress {
			if i.IP != "" {
				ingress = append(ingress, i.IP)
			} else if i.Hostname != "" {
				ingress = append(ingress, i.Hostname)
			}
		}
		ips = append(ingress, ips...)
		if len(ips) == 0 {
			return "<pending>"
		}
	}
	return orNone(strings.Join(ips, ","))
}

func servicePorts(ports []corev1.ServicePort) string {
	var list []string
	for _, p := range ports {
		if p.NodePort > 0 {
			list = append(list, fmt.Sprintf("%d:%d/%s", p.Port, p.NodePort, p.Protocol))
		} else {
			list = append(list, fmt.Sprintf("%d/%s", p.Port, p.Protocol))
		}
	}
	return orNone(strings.Join(list, ","))
}

// selector shows an equality selector.
func selector(labels map[string]string) string {
	list := make([]string, 0, len(labels))
	for k, v := range labels {
		list = append(list, k+"="+v)
	}
	sort.Strings(list)
	return orNone(strings.Join(list, ","))
}

func namespaceTable() table {
	return table{
		columns: []Column{{"STATUS", false}},
		cells: func(o structs.Object, _ time.Time) []string {
			return []string{string(o.(*corev1.Namespace).Status.Phase)}
		},
	}
}

func configMapTable() table {
	return table{
		columns: []Column{{"DATA", false}},
		cells: func(o structs.Object, _ time.Time) []string {
			m := o.(*corev1.ConfigMap)
			return []string{strconv.Itoa(len(m.Data) + len(m.BinaryData))}
		},
	}
}

func secretTable() table {
	return table{
		columns: []Column{{"TYPE", false}, {"DATA", false}},
		cells: func(o structs.Object, _ time.Time) []string {
			s := o.(*corev1.Secret)
			return []string{string(s.Type), strconv.Itoa(len(s.Data))}
		},
	}
}

func serviceAccountTable() table {
	return table{
		columns: []Column{{"SECRETS", false}},
		cells: func(o structs.Object, _ time.Time) []string {
			return []string{strconv.Itoa(len(o.(*corev1.ServiceAccount).Secrets))}
		},
	}
}

// maxEndpoints is how many addresses a cell shows.
const maxEndpoints = 3

func endpointsTable() table {
	return table{
		columns: []Column{{"ENDPOINTS", false}},
		cells: func(o structs.Object, _ time.Time) []string {
			var list []string
			for _, subset := range o.(*corev1.Endpoints).Subsets {
				if len(subset.Ports) == 0 {
					for _, address := range subset.Addresses {
						list = append(list, address.IP)
					}
				}
				for _, port := range subset.Ports {
					for _, address := range subset.Addresses {
						list = append(list, net.JoinHostPort(address.IP, strconv.Itoa(int(port.Port))))
					}
				}
			}
			return []string{someOf(list)}
		},
	}
}

// someOf shows the first few of a list and how many more there are.
func someOf(list []string) string {
	if len(list) > maxEndpoints {
		return fmt.Sprintf("%s + %d more...", strings.Join(list[:maxEndpoints], ","), len(list)-maxEndpoints)
	}
	return orNone(strings.Join(list, ","))
}

func eventTable() table {
	return table{
		columns: []Column{
			{"LAST SEEN", false}, {"TYPE", false}, {"REASON", false}, {"OBJECT", false}, {"SUBOBJECT", true}, {"SOURCE", true}, {"MESSAGE", false},
			{"FIRST SEEN", true}, {"COUNT", true}, {"NAME", true},
		},
		noAge: true, noName: true,
		cells: func(o structs.Object, now time.Time) []string {
			e := o.(*corev1.Event)
			object := strings.ToLower(e.InvolvedObject.Kind)
			if e.InvolvedObject.Name != "" {
				object += "/" + e.InvolvedObject.Name
			}
			first := Age(e.FirstTimestamp, now)
			if e.FirstTimestamp.IsZero() && !e.EventTime.IsZero() {
				first = durationSince(e.EventTime.Time, now)
			}
			count := max(e.Count, 1)
			if e.Series != nil {
				count = e.Series.Count
			}
			return []string{
				EventAge(e, now), e.Type, e.Reason, object, e.InvolvedObject.FieldPath, eventSource(e), strings.TrimSpace(e.Message),
				first, strconv.Itoa(int(count)), e.Name,
			}
		},
	}
}

func eventSource(e *corev1.Event) string {
	component, host := e.Source.Component, e.Source.Host
	if component == "" {
		component, host = e.ReportingController, e.ReportingInstance
	}
	if host != "" {
		return component + ", " + host
	}
	return component
}

// EventAge is when an event was last seen.
func EventAge(e *corev1.Event, now time.Time) string {
	switch {
	case e.Series != nil && !e.Series.LastObservedTime.IsZero():
		return durationSince(e.Series.LastObservedTime.Time, now)
	case !e.LastTimestamp.IsZero():
		return Age(e.LastTimestamp, now)
	case !e.EventTime.IsZero():
		return durationSince(e.EventTime.Time, now)
	default:
		return Age(e.CreationTimestamp, now)
	}
}
