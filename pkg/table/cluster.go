package table

import (
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	nodev1 "k8s.io/api/node/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
)

// clusterKinds are about the cluster as a whole: leases, classes, devices, flow control and metrics.
func clusterKinds() map[schema.GroupKind]definition {
	return map[schema.GroupKind]definition{
		{Group: coordinationv1.GroupName, Kind: "Lease"}:                     leaseTable(),
		{Group: schedulingv1.GroupName, Kind: "PriorityClass"}:               priorityClassTable(),
		{Group: nodev1.GroupName, Kind: "RuntimeClass"}:                      runtimeClassTable(),
		{Group: flowcontrolv1.GroupName, Kind: "FlowSchema"}:                 flowSchemaTable(),
		{Group: flowcontrolv1.GroupName, Kind: "PriorityLevelConfiguration"}: priorityLevelTable(),
		{Group: resourcev1.GroupName, Kind: "DeviceClass"}:                   deviceClassTable(),
		{Group: resourcev1.GroupName, Kind: "ResourceClaim"}:                 resourceClaimTable(),
		{Group: resourcev1.GroupName, Kind: "ResourceClaimTemplate"}:         resourceClaimTemplateTable(),
		{Group: resourcev1.GroupName, Kind: "ResourceSlice"}:                 resourceSliceTable(),
		{Group: metricsv1beta1.GroupName, Kind: "NodeMetrics"}:               nodeMetricsTable(),
		{Group: metricsv1beta1.GroupName, Kind: "PodMetrics"}:                podMetricsTable(),
	}
}

func leaseTable() definition {
	columns := []metav1.TableColumnDefinition{name(), text("Holder", doc(coordinationv1.LeaseSpec{}, "holderIdentity")), age()}
	return define(columns, func(l *coordinationv1.Lease, now time.Time) []any {
		return []any{l.Name, valueOr(l.Spec.HolderIdentity, ""), Age(l.CreationTimestamp, now)}
	})
}

func priorityClassTable() definition {
	of := schedulingv1.PriorityClass{}
	columns := []metav1.TableColumnDefinition{
		name(), number("Value", doc(of, "value")), boolean("Global-Default", doc(of, "globalDefault")), age(), text("PreemptionPolicy", doc(of, "preemptionPolicy")),
	}
	return define(columns, func(p *schedulingv1.PriorityClass, now time.Time) []any {
		return []any{p.Name, int64(p.Value), p.GlobalDefault, Age(p.CreationTimestamp, now), string(valueOr(p.PreemptionPolicy, ""))}
	})
}

func runtimeClassTable() definition {
	columns := []metav1.TableColumnDefinition{name(), text("Handler", doc(nodev1.RuntimeClass{}, "handler")), age()}
	return define(columns, func(c *nodev1.RuntimeClass, now time.Time) []any {
		return []any{c.Name, c.Handler, Age(c.CreationTimestamp, now)}
	})
}

func flowSchemaTable() definition {
	spec := flowcontrolv1.FlowSchemaSpec{}
	columns := []metav1.TableColumnDefinition{
		name(), text("PriorityLevel", doc(flowcontrolv1.PriorityLevelConfigurationReference{}, "name")), text("MatchingPrecedence", doc(spec, "matchingPrecedence")),
		text("DistinguisherMethod", doc(spec, "distinguisherMethod")), age(), text("MissingPL", "references a broken or non-existent PriorityLevelConfiguration"),
	}
	return define(columns, func(s *flowcontrolv1.FlowSchema, now time.Time) []any {
		method := "<none>"
		if m := s.Spec.DistinguisherMethod; m != nil {
			method = string(m.Type)
		}
		dangling := "?"
		for _, c := range s.Status.Conditions {
			if c.Type == flowcontrolv1.FlowSchemaConditionDangling {
				dangling = string(c.Status)
				break
			}
		}
		return []any{s.Name, s.Spec.PriorityLevelConfiguration.Name, int64(s.Spec.MatchingPrecedence), method, Age(s.CreationTimestamp, now), dangling}
	})
}

func priorityLevelTable() definition {
	queuing := flowcontrolv1.QueuingConfiguration{}
	columns := []metav1.TableColumnDefinition{
		name(), text("Type", doc(flowcontrolv1.PriorityLevelConfigurationSpec{}, "type")),
		text("NominalConcurrencyShares", doc(flowcontrolv1.LimitedPriorityLevelConfiguration{}, "nominalConcurrencyShares")),
		text("Queues", doc(queuing, "queues")), text("HandSize", doc(queuing, "handSize")), text("QueueLengthLimit", doc(queuing, "queueLengthLimit")), age(),
	}
	return define(columns, func(p *flowcontrolv1.PriorityLevelConfiguration, now time.Time) []any {
		const none = "<none>"
		var shares, queues, hand, length any = none, none, none, none
		if limited := p.Spec.Limited; limited != nil {
			if limited.NominalConcurrencyShares != nil {
				shares = int64(*limited.NominalConcurrencyShares)
			}
			if q := limited.LimitResponse.Queuing; q != nil {
				queues, hand, length = int64(q.Queues), int64(q.HandSize), int64(q.QueueLengthLimit)
			}
		}
		return []any{p.Name, string(p.Spec.Type), shares, queues, hand, length, Age(p.CreationTimestamp, now)}
	})
}

func deviceClassTable() definition {
	return define([]metav1.TableColumnDefinition{name(), age()}, func(c *resourcev1.DeviceClass, now time.Time) []any {
		return []any{c.Name, Age(c.CreationTimestamp, now)}
	})
}

func resourceClaimTable() definition {
	columns := []metav1.TableColumnDefinition{name(), text("State", "A summary of the current state (allocated, pending, reserved, etc.)."), age()}
	return define(columns, func(c *resourcev1.ResourceClaim, now time.Time) []any {
		var states []string
		if c.DeletionTimestamp != nil {
			states = append(states, "deleted")
		}
		switch {
		case c.Status.Allocation != nil:
			states = append(states, "allocated")
			if len(c.Status.ReservedFor) > 0 {
				states = append(states, "reserved")
			}
		case c.DeletionTimestamp == nil:
			states = append(states, "pending")
		}
		return []any{c.Name, strings.Join(states, ","), Age(c.CreationTimestamp, now)}
	})
}

func resourceClaimTemplateTable() definition {
	return define([]metav1.TableColumnDefinition{name(), age()}, func(t *resourcev1.ResourceClaimTemplate, now time.Time) []any {
		return []any{t.Name, Age(t.CreationTimestamp, now)}
	})
}

func resourceSliceTable() definition {
	spec := resourcev1.ResourceSliceSpec{}
	columns := []metav1.TableColumnDefinition{name(), text("Node", doc(spec, "nodeName")), text("Driver", doc(spec, "driver")), text("Pool", doc(resourcev1.ResourcePool{}, "name")), age()}
	return define(columns, func(s *resourcev1.ResourceSlice, now time.Time) []any {
		return []any{s.Name, valueOr(s.Spec.NodeName, ""), s.Spec.Driver, s.Spec.Pool.Name, Age(s.CreationTimestamp, now)}
	})
}

// metricsColumns are those of Kubernetes' metrics server, which is no part of Kubernetes itself.
func metricsColumns() []metav1.TableColumnDefinition {
	window := text("window", "The interval over which the usage was measured.")
	window.Format = "duration"
	return []metav1.TableColumnDefinition{name(), {Name: "cpu", Type: "string", Format: "quantity"}, {Name: "memory", Type: "string", Format: "quantity"}, window}
}

func usageCells(name string, usage corev1.ResourceList, window metav1.Duration) []any {
	cpu, memory := usage[corev1.ResourceCPU], usage[corev1.ResourceMemory]
	return []any{name, cpu.String(), memory.String(), window.Duration.String()}
}

func nodeMetricsTable() definition {
	return define(metricsColumns(), func(m *metricsv1beta1.NodeMetrics, _ time.Time) []any { return usageCells(m.Name, m.Usage, m.Window) })
}

func podMetricsTable() definition {
	return define(metricsColumns(), func(m *metricsv1beta1.PodMetrics, _ time.Time) []any {
		total := corev1.ResourceList{}
		for _, c := range m.Containers {
			for resource, used := range c.Usage {
				sum := total[resource]
				sum.Add(used)
				total[resource] = sum
			}
		}
		return usageCells(m.Name, total, m.Window)
	})
}
