package table

import (
	"fmt"
	"sort"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// coreKinds are those of the core group that are about nodes, configuration and bookkeeping.
func coreKinds() map[schema.GroupKind]definition {
	return map[schema.GroupKind]definition{
		{Kind: "Pod"}:                           podTable(),
		{Kind: "PodTemplate"}:                   podTemplateTable(),
		{Kind: "Node"}:                          nodeTable(),
		{Kind: "Namespace"}:                     namespaceTable(),
		{Kind: "ConfigMap"}:                     configMapTable(),
		{Kind: "Secret"}:                        secretTable(),
		{Kind: "ServiceAccount"}:                serviceAccountTable(),
		{Kind: "ResourceQuota"}:                 resourceQuotaTable(),
		{Kind: "ComponentStatus"}:               componentStatusTable(),
		{Kind: "Event"}:                         eventTable(),
		{Group: "events.k8s.io", Kind: "Event"}: eventTable(),
	}
}

func podTemplateTable() definition {
	columns := []metav1.TableColumnDefinition{name(), containerNames(), containerImages(), text("Pod Labels", "The labels for the pod template.")}
	return define(columns, func(t *corev1.PodTemplate, _ time.Time) []any {
		names, images := containers(t.Template.Spec.Containers)
		return []any{t.Name, names, images, labels.FormatLabels(t.Template.Labels)}
	})
}

func nodeTable() definition {
	info := corev1.NodeSystemInfo{}
	addresses := doc(corev1.NodeStatus{}, "addresses")
	columns := []metav1.TableColumnDefinition{
		name(), text("Status", "The status of the node"), text("Roles", "The roles of the node"), age(), text("Version", doc(info, "kubeletVersion")),
		wide(text("Internal-IP", addresses)), wide(text("External-IP", addresses)), wide(text("OS-Image", doc(info, "osImage"))),
		wide(text("Kernel-Version", doc(info, "kernelVersion"))), wide(text("Container-Runtime", doc(info, "containerRuntimeVersion"))),
	}
	return define(columns, func(node *corev1.Node, now time.Time) []any {
		info := node.Status.NodeInfo
		return []any{
			node.Name, NodeStatus(node), nodeRoles(node), Age(node.CreationTimestamp, now), info.KubeletVersion,
			nodeAddress(node, corev1.NodeInternalIP), nodeAddress(node, corev1.NodeExternalIP), orElse(info.OSImage, "<unknown>"),
			orElse(info.KernelVersion, "<unknown>"), orElse(info.ContainerRuntimeVersion, "<unknown>"),
		}
	})
}

// NodeStatus is the Status column of a node.
func NodeStatus(node *corev1.Node) string {
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
	roles := map[string]bool{}
	for label, value := range node.Labels {
		if role, found := strings.CutPrefix(label, "node-role.kubernetes.io/"); found && role != "" {
			roles[role] = true
		} else if label == "kubernetes.io/role" && value != "" {
			roles[value] = true
		}
	}
	return orNone(strings.Join(sortedKeys(roles), ","))
}

func sortedKeys(set map[string]bool) []string {
	keys := make([]string, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func nodeAddress(node *corev1.Node, kind corev1.NodeAddressType) string {
	for _, a := range node.Status.Addresses {
		if a.Type == kind {
			return a.Address
		}
	}
	return "<none>"
}

func namespaceTable() definition {
	return define([]metav1.TableColumnDefinition{name(), text("Status", "The status of the namespace"), age()}, func(n *corev1.Namespace, now time.Time) []any {
		return []any{n.Name, string(n.Status.Phase), Age(n.CreationTimestamp, now)}
	})
}

func configMapTable() definition {
	return define([]metav1.TableColumnDefinition{name(), text("Data", doc(corev1.ConfigMap{}, "data")), age()}, func(m *corev1.ConfigMap, now time.Time) []any {
		return []any{m.Name, int64(len(m.Data) + len(m.BinaryData)), Age(m.CreationTimestamp, now)}
	})
}

func secretTable() definition {
	columns := []metav1.TableColumnDefinition{name(), text("Type", doc(corev1.Secret{}, "type")), text("Data", doc(corev1.Secret{}, "data")), age()}
	return define(columns, func(s *corev1.Secret, now time.Time) []any {
		return []any{s.Name, string(s.Type), int64(len(s.Data)), Age(s.CreationTimestamp, now)}
	})
}

func serviceAccountTable() definition {
	columns := []metav1.TableColumnDefinition{name(), text("Secrets", doc(corev1.ServiceAccount{}, "secrets")), age()}
	return define(columns, func(s *corev1.ServiceAccount, now time.Time) []any {
		return []any{s.Name, int64(len(s.Secrets)), Age(s.CreationTimestamp, now)}
	})
}

func resourceQuotaTable() definition {
	columns := []metav1.TableColumnDefinition{
		name(),
		text("Request", "Request represents a minimum amount of cpu/memory that a container may consume."),
		text("Limit", "Limits control the maximum amount of cpu/memory that a container may use independent of contention on the node."),
		age(),
	}
	return define(columns, func(q *corev1.ResourceQuota, now time.Time) []any {
		hard := map[string]bool{}
		for resource := range q.Status.Hard {
			hard[string(resource)] = true
		}
		var requests, limits []string
		for _, resource := range sortedKeys(hard) {
			used, bound := q.Status.Used[corev1.ResourceName(resource)], q.Status.Hard[corev1.ResourceName(resource)]
			entry := fmt.Sprintf("%s: %s/%s", resource, used.String(), bound.String())
			if strings.HasPrefix(resource, "limits.") {
				limits = append(limits, entry)
			} else {
				requests = append(requests, entry)
			}
		}
		return []any{q.Name, strings.Join(requests, ", "), strings.Join(limits, ", "), Age(q.CreationTimestamp, now)}
	})
}

func componentStatusTable() definition {
	columns := []metav1.TableColumnDefinition{
		name(), text("Status", "Status of the component conditions"), text("Message", "Message of the component conditions"), text("Error", "Error of the component conditions"),
	}
	return define(columns, func(s *corev1.ComponentStatus, _ time.Time) []any {
		for _, c := range s.Conditions {
			if c.Type != corev1.ComponentHealthy {
				continue
			}
			status := "Unhealthy"
			if c.Status == corev1.ConditionTrue {
				status = "Healthy"
			}
			return []any{s.Name, status, c.Message, c.Error}
		}
		return []any{s.Name, "Unknown", "", ""}
	})
}

// eventTable shows events of both groups, which are the same objects.
func eventTable() definition {
	of := corev1.Event{}
	nameColumn := name()
	columns := []metav1.TableColumnDefinition{
		text("Last Seen", doc(of, "lastTimestamp")), text("Type", doc(of, "type")), text("Reason", doc(of, "reason")), text("Object", doc(of, "involvedObject")),
		wide(text("Subobject", doc(corev1.ObjectReference{}, "fieldPath"))), wide(text("Source", doc(of, "source"))), text("Message", doc(of, "message")),
		wide(text("First Seen", doc(of, "firstTimestamp"))), wide(text("Count", doc(of, "count"))), wide(nameColumn),
	}
	return definition{columns: columns, cells: func(o runtime.Object, now time.Time) ([]any, error) {
		var event *corev1.Event
		switch e := o.(type) {
		case *corev1.Event:
			event = e
		case *eventsv1.Event:
			event = coreEvent(e)
		default:
			return nil, fmt.Errorf("table: a row of an event was asked for %T", o)
		}
		return eventCells(event, now), nil
	}}
}

// coreEvent names the fields of an events.k8s.io event as the core group does.
func coreEvent(e *eventsv1.Event) *corev1.Event {
	event := &corev1.Event{
		ObjectMeta: e.ObjectMeta, InvolvedObject: e.Regarding, Reason: e.Reason, Message: e.Note, Type: e.Type, EventTime: e.EventTime,
		ReportingController: e.ReportingController, ReportingInstance: e.ReportingInstance, Source: e.DeprecatedSource,
		FirstTimestamp: e.DeprecatedFirstTimestamp, LastTimestamp: e.DeprecatedLastTimestamp, Count: e.DeprecatedCount,
	}
	if e.Series != nil {
		event.Series = &corev1.EventSeries{Count: e.Series.Count, LastObservedTime: e.Series.LastObservedTime}
	}
	return event
}

func eventCells(e *corev1.Event, now time.Time) []any {
	object := strings.ToLower(e.InvolvedObject.Kind)
	if e.InvolvedObject.Name != "" {
		object += "/" + e.InvolvedObject.Name
	}
	count := max(e.Count, 1)
	if e.Series != nil {
		count = e.Series.Count
	}
	return []any{
		EventAge(e, now), e.Type, e.Reason, object, e.InvolvedObject.FieldPath, eventSource(e), strings.TrimSpace(e.Message),
		firstSeen(e, now), int64(count), e.Name,
	}
}

// EventAge is when an event was last seen.
func EventAge(e *corev1.Event, now time.Time) string {
	switch {
	case e.Series != nil:
		return microAge(e.Series.LastObservedTime, now)
	case !e.LastTimestamp.IsZero():
		return Age(e.LastTimestamp, now)
	default:
		return firstSeen(e, now)
	}
}

func firstSeen(e *corev1.Event, now time.Time) string {
	if e.FirstTimestamp.IsZero() {
		return microAge(e.EventTime, now)
	}
	return Age(e.FirstTimestamp, now)
}

func eventSource(e *corev1.Event) string {
	component, host := orElse(e.Source.Component, e.ReportingController), orElse(e.Source.Host, e.ReportingInstance)
	if host != "" {
		return component + ", " + host
	}
	return component
}
