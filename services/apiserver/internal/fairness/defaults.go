package fairness

import (
	"strings"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
)

const (
	autoUpdate = "apf.kubernetes.io/autoupdate-spec"
	exempt     = flowcontrolv1.PriorityLevelConfigurationNameExempt
	catchAll   = flowcontrolv1.PriorityLevelConfigurationNameCatchAll
)

// The rows of the two kinds. Nil in a build whose table has none.
var (
	flowSchemas    = resource.Lookup(flowcontrolv1.GroupName, "flowschemas")
	priorityLevels = resource.Lookup(flowcontrolv1.GroupName, "prioritylevelconfigurations")
)

func meta(name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Annotations: map[string]string{autoUpdate: "true"}}
}

// Levels returns the default priority levels, mandatory ones first.
func Levels() []*flowcontrolv1.PriorityLevelConfiguration {
	limited := func(name string, shares, lendable int32, response flowcontrolv1.LimitResponse) *flowcontrolv1.PriorityLevelConfiguration {
		return &flowcontrolv1.PriorityLevelConfiguration{ObjectMeta: meta(name), Spec: flowcontrolv1.PriorityLevelConfigurationSpec{
			Type: flowcontrolv1.PriorityLevelEnablementLimited,
			Limited: &flowcontrolv1.LimitedPriorityLevelConfiguration{
				NominalConcurrencyShares: &shares, LendablePercent: &lendable, LimitResponse: response,
			},
		}}
	}
	queue := func(queues, hand int32) flowcontrolv1.LimitResponse {
		return flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeQueue, Queuing: &flowcontrolv1.QueuingConfiguration{
			Queues: queues, HandSize: hand, QueueLengthLimit: 50,
		}}
	}
	var none int32
	return []*flowcontrolv1.PriorityLevelConfiguration{
		{ObjectMeta: meta(exempt), Spec: flowcontrolv1.PriorityLevelConfigurationSpec{
			Type:   flowcontrolv1.PriorityLevelEnablementExempt,
			Exempt: &flowcontrolv1.ExemptPriorityLevelConfiguration{NominalConcurrencyShares: &none, LendablePercent: &none},
		}},
		limited(catchAll, 5, 0, flowcontrolv1.LimitResponse{Type: flowcontrolv1.LimitResponseTypeReject}),
		limited("system", 30, 33, queue(64, 6)),
		limited("node-high", 40, 25, queue(64, 6)),
		limited("leader-election", 10, 0, queue(16, 4)),
		limited("workload-high", 40, 50, queue(128, 6)),
		limited("workload-low", 100, 90, queue(128, 6)),
		limited("global-default", 20, 50, queue(128, 6)),
	}
}

// Schemas returns the default flow schemas, mandatory ones first.
func Schemas() []*flowcontrolv1.FlowSchema {
	const byUser, byNamespace = flowcontrolv1.FlowDistinguisherMethodByUserType, flowcontrolv1.FlowDistinguisherMethodByNamespaceType
	system := metav1.NamespaceSystem
	leases := []flowcontrolv1.ResourcePolicyRule{on("get create update", "coordination.k8s.io", "leases", all, false)}
	return []*flowcontrolv1.FlowSchema{
		schema(exempt, exempt, 1, "", anything(group(identity.Masters))),
		schema(catchAll, catchAll, 10000, byUser, anything(group(identity.AllUnauthenticated), group(identity.AllAuthenticated))),
		schema("probes", exempt, 2, "", flowcontrolv1.PolicyRulesWithSubjects{
			Subjects:         []flowcontrolv1.Subject{group(identity.AllUnauthenticated), group(identity.AllAuthenticated)},
			NonResourceRules: []flowcontrolv1.NonResourcePolicyRule{{Verbs: []string{"get"}, NonResourceURLs: []string{"/healthz", "/readyz", "/livez"}}},
		}),
		schema("system-leader-election", "leader-election", 100, byUser, flowcontrolv1.PolicyRulesWithSubjects{
			Subjects:      []flowcontrolv1.Subject{user(identity.ControllerManager), user(identity.Scheduler), account(system, all)},
			ResourceRules: leases,
		}),
		schema("endpoint-controller", "workload-high", 150, byUser, flowcontrolv1.PolicyRulesWithSubjects{
			Subjects: []flowcontrolv1.Subject{user(identity.ControllerManager), account(system, "endpoint-controller"), account(system, "endpointslicemirroring-controller")},
			ResourceRules: []flowcontrolv1.ResourcePolicyRule{
				on("get create update", "", "endpoints", all, false), on("get create update", "discovery.k8s.io", "endpointslices", all, false),
			},
		}),
		schema("workload-leader-election", "leader-election", 200, byUser, flowcontrolv1.PolicyRulesWithSubjects{
			Subjects: []flowcontrolv1.Subject{account(system, all)}, ResourceRules: leases,
		}),
		schema("system-node-high", "node-high", 400, byUser, flowcontrolv1.PolicyRulesWithSubjects{
			Subjects: []flowcontrolv1.Subject{group(identity.Nodes)},
			ResourceRules: []flowcontrolv1.ResourcePolicyRule{
				on(all, "", "nodes nodes/status", all, true), on(all, "coordination.k8s.io", "leases", all, false),
			},
		}),
		schema("system-nodes", "system", 500, byUser, anything(group(identity.Nodes))),
		schema("kube-controller-manager", "workload-high", 800, byNamespace, anything(user(identity.ControllerManager))),
		schema("kube-scheduler", "workload-high", 800, byNamespace, anything(user(identity.Scheduler))),
		schema("kube-system-service-accounts", "workload-high", 900, byNamespace, anything(account(system, all))),
		schema("service-accounts", "workload-low", 9000, byUser, anything(group(identity.ServiceAccounts))),
		schema("global-default", "global-default", 9900, byUser, anything(group(identity.AllUnauthenticated), group(identity.AllAuthenticated))),
	}
}

func schema(name, level string, precedence int32, distinguisher flowcontrolv1.FlowDistinguisherMethodType, rules ...flowcontrolv1.PolicyRulesWithSubjects) *flowcontrolv1.FlowSchema {
	s := &flowcontrolv1.FlowSchema{ObjectMeta: meta(name), Spec: flowcontrolv1.FlowSchemaSpec{
		PriorityLevelConfiguration: flowcontrolv1.PriorityLevelConfigurationReference{Name: level}, MatchingPrecedence: precedence, Rules: rules,
	}}
	if distinguisher != "" {
		s.Spec.DistinguisherMethod = &flowcontrolv1.FlowDistinguisherMethod{Type: distinguisher}
	}
	return s
}

// anything is a rule on all requests of the subjects.
func anything(subjects ...flowcontrolv1.Subject) flowcontrolv1.PolicyRulesWithSubjects {
	return flowcontrolv1.PolicyRulesWithSubjects{
		Subjects:         subjects,
		ResourceRules:    []flowcontrolv1.ResourcePolicyRule{on(all, all, all, all, true)},
		NonResourceRules: []flowcontrolv1.NonResourcePolicyRule{{Verbs: []string{all}, NonResourceURLs: []string{all}}},
	}
}

func on(verbs, group, resources, namespace string, clusterScope bool) flowcontrolv1.ResourcePolicyRule {
	return flowcontrolv1.ResourcePolicyRule{
		Verbs: strings.Fields(verbs), APIGroups: []string{group}, Resources: strings.Fields(resources), Namespaces: []string{namespace}, ClusterScope: clusterScope,
	}
}

func user(name string) flowcontrolv1.Subject {
	return flowcontrolv1.Subject{Kind: flowcontrolv1.SubjectKindUser, User: &flowcontrolv1.UserSubject{Name: name}}
}

func group(name string) flowcontrolv1.Subject {
	return flowcontrolv1.Subject{Kind: flowcontrolv1.SubjectKindGroup, Group: &flowcontrolv1.GroupSubject{Name: name}}
}

func account(namespace, name string) flowcontrolv1.Subject {
	return flowcontrolv1.Subject{Kind: flowcontrolv1.SubjectKindServiceAccount, ServiceAccount: &flowcontrolv1.ServiceAccountSubject{Namespace: namespace, Name: name}}
}
