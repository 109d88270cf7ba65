package table_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	autoscalingv2 "k8s.io/api/autoscaling/v2"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	eventsv1 "k8s.io/api/events/v1"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	networkingv1 "k8s.io/api/networking/v1"
	nodev1 "k8s.io/api/node/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	resourcev1 "k8s.io/api/resource/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	metricsv1beta1 "k8s.io/metrics/pkg/apis/metrics/v1beta1"
	"sigs.k8s.io/yaml"

	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/table"
)

// now is when everything is shown.
var now = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

// resourceOf needs no row of the resource table: columns hang on group and kind alone.
func resourceOf(group, kind string) *resource.Resource {
	return &resource.Resource{Group: group, Kind: kind}
}

func read(t *testing.T, text string, into runtime.Object) {
	t.Helper()
	if err := yaml.UnmarshalStrict([]byte(text), into); err != nil {
		t.Fatal(err)
	}
}

// rowOf returns the cells as they are printed.
func rowOf(t *testing.T, r *resource.Resource, o runtime.Object) []string {
	t.Helper()
	rows, err := table.Rows(r, o, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 1 || len(rows[0].Cells) != len(table.Columns(r)) {
		t.Fatalf("%d rows, %d cells for %d columns", len(rows), len(rows[0].Cells), len(table.Columns(r)))
	}
	var cells []string
	for _, c := range rows[0].Cells {
		cells = append(cells, fmt.Sprint(c))
	}
	return cells
}

// TestRows shows an object of each kind: `*` marks wide columns.
func TestRows(t *testing.T) {
	const meta = `metadata: {name: x, namespace: shop, creationTimestamp: "2026-01-02T11:00:00Z"}, `
	const template = `template: {spec: {containers: [{name: web, image: "web:v1"}, {name: side, image: side}]}}`
	for _, test := range []struct {
		group, kind string
		object      runtime.Object
		yaml        string
		columns     string
		cells       string
	}{
		{"", "PodTemplate", &corev1.PodTemplate{}, `{` + meta + `template: {metadata: {labels: {a: b}}, spec: {containers: [{name: web, image: i}]}}}`, "Name|Containers|Images|Pod Labels", "x|web|i|a=b"},
		{"", "ReplicationController", &corev1.ReplicationController{}, `{` + meta + `spec: {replicas: 2, selector: {a: b}, ` + template + `}, status: {replicas: 1}}`,
			"Name|Desired|Current|Ready|Age|*Containers|*Images|*Selector", "x|2|1|0|60m|web,side|web:v1,side|a=b"},
		{"", "ReplicationController", &corev1.ReplicationController{}, `{` + meta + `}`, "Name|Desired|Current|Ready|Age|*Containers|*Images|*Selector", "x|1|0|0|60m|||<none>"},
		{"", "ResourceQuota", &corev1.ResourceQuota{}, `{` + meta + `status: {hard: {requests.cpu: "2", pods: "4", limits.memory: 1Gi}, used: {pods: "1"}}}`, "Name|Request|Limit|Age", "x|pods: 1/4, requests.cpu: 0/2|limits.memory: 0/1Gi|60m"},
		{"", "ComponentStatus", &corev1.ComponentStatus{}, `{` + meta + `conditions: [{type: Healthy, status: "True", message: ok}]}`, "Name|Status|Message|Error", "x|Healthy|ok|"},
		{"", "PersistentVolume", &corev1.PersistentVolume{}, `{` + meta + `spec: {capacity: {storage: 5Gi}, accessModes: [ReadWriteMany, ReadWriteOnce], persistentVolumeReclaimPolicy: Retain, claimRef: {namespace: a, name: b}, storageClassName: fast, volumeMode: Block}, status: {phase: Bound}}`,
			"Name|Capacity|Access Modes|Reclaim Policy|Status|Claim|StorageClass|VolumeAttributesClass|Reason|Age|*VolumeMode", "x|5Gi|RWO,RWX|Retain|Bound|a/b|fast|<unset>||60m|Block"},
		{"", "PersistentVolumeClaim", &corev1.PersistentVolumeClaim{}, `{metadata: {name: x, deletionTimestamp: "2026-01-02T11:00:00Z", annotations: {volume.beta.kubernetes.io/storage-class: old}}, spec: {storageClassName: new, volumeName: v}, status: {phase: Bound, accessModes: [ReadWriteOncePod], capacity: {storage: 1Gi}}}`,
			"Name|Status|Volume|Capacity|Access Modes|StorageClass|VolumeAttributesClass|Age|*VolumeMode", "x|Terminating|v|1Gi|RWOP|old|<unset>|<unknown>|<unset>"},
		{"", "Service", &corev1.Service{}, `{` + meta + `spec: {type: LoadBalancer, clusterIP: 10.0.0.1, externalIPs: [1.1.1.1]}, status: {loadBalancer: {ingress: [{hostname: lb}, {ip: 2.2.2.2}]}}}`,
			"Name|Type|Cluster-IP|External-IP|Port(s)|Age|*Selector", "x|LoadBalancer|10.0.0.1|2.2.2.2,lb,1.1.1.1|<none>|60m|<none>"},
		{"", "LimitRange", &corev1.LimitRange{}, `{` + meta + `}`, "Name|Created At", "x|2026-01-02T11:00:00Z"},
		{"", "Event", &corev1.Event{}, `{metadata: {name: x}, type: Normal, reason: Seen, message: " hi ", eventTime: "2026-01-02T11:00:00.000000Z", involvedObject: {kind: Node}, reportingComponent: c, reportingInstance: i, series: {count: 7, lastObservedTime: "2026-01-02T11:59:00.000000Z"}}`,
			"Last Seen|Type|Reason|Object|*Subobject|*Source|Message|*First Seen|*Count|*Name", "60s|Normal|Seen|node||c, i|hi|60m|7|x"},
		{"events.k8s.io", "Event", &eventsv1.Event{}, `{metadata: {name: x}, type: Normal, reason: Seen, note: hi, eventTime: "2026-01-02T11:00:00.000000Z", regarding: {kind: Pod, name: p, fieldPath: f}, reportingController: c}`,
			"Last Seen|Type|Reason|Object|*Subobject|*Source|Message|*First Seen|*Count|*Name", "60m|Normal|Seen|pod/p|f|c|hi|60m|1|x"},
		{"apps", "Deployment", &appsv1.Deployment{}, `{` + meta + `spec: {replicas: 0, selector: {matchExpressions: [{key: k, operator: Exists}]}, ` + template + `}}`,
			"Name|Ready|Up-to-date|Available|Age|*Containers|*Images|*Selector", "x|0/0|0|0|60m|web,side|web:v1,side|k"},
		{"apps", "ControllerRevision", &appsv1.ControllerRevision{}, `{metadata: {name: x, ownerReferences: [{apiVersion: apps/v1, kind: StatefulSet, name: s, uid: u, controller: true}]}, revision: 3}`, "Name|Controller|Revision|Age", "x|statefulset.apps/s|3|<unknown>"},
		{"batch", "CronJob", &batchv1.CronJob{}, `{` + meta + `spec: {schedule: "* * * * *", suspend: false, jobTemplate: {spec: {` + template + `}}}, status: {active: [{name: a}], lastScheduleTime: "2026-01-02T11:59:00Z"}}`,
			"Name|Schedule|Timezone|Suspend|Active|Last Schedule|Age|*Containers|*Images|*Selector", "x|* * * * *|<none>|False|1|60s|60m|web,side|web:v1,side|<none>"},
		{"autoscaling", "HorizontalPodAutoscaler", &autoscalingv2.HorizontalPodAutoscaler{}, `{` + meta + `spec: {scaleTargetRef: {kind: Deployment, name: d}, maxReplicas: 9, metrics: [{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 80}}}, {type: Pods, pods: {metric: {name: q}, target: {type: AverageValue, averageValue: "5"}}}, {type: External, external: {metric: {name: q}, target: {type: Value, value: "5"}}}]}, status: {currentReplicas: 2, currentMetrics: [{type: Resource, resource: {name: cpu, current: {averageUtilization: 40}}}]}}`,
			"Name|Reference|Targets|MinPods|MaxPods|Replicas|Age", "x|Deployment/d|cpu: 40%/80%, <unknown>/5 + 1 more...|<unset>|9|2|60m"},
		{"autoscaling", "HorizontalPodAutoscaler", &autoscalingv1.HorizontalPodAutoscaler{}, `{` + meta + `spec: {scaleTargetRef: {kind: Deployment, name: d}, minReplicas: 1, maxReplicas: 9, targetCPUUtilizationPercentage: 50}}`,
			"Name|Reference|Targets|MinPods|MaxPods|Replicas|Age", "x|Deployment/d|cpu: <unknown>/50%|1|9|0|60m"},
		{"autoscaling", "Scale", &autoscalingv1.Scale{}, `{` + meta + `spec: {replicas: 3}, status: {replicas: 2}}`, "Name|Desired|Available|Age", "x|3|2|60m"},
		{"discovery.k8s.io", "EndpointSlice", &discoveryv1.EndpointSlice{}, `{` + meta + `addressType: IPv6, ports: [{name: "", port: 8}], endpoints: [{addresses: [a]}]}`, "Name|AddressType|Ports|Endpoints|Age", "x|IPv6|8|a|60m"},
		{"networking.k8s.io", "Ingress", &networkingv1.Ingress{}, `{` + meta + `spec: {ingressClassName: c, tls: [{}], rules: [{host: a}, {host: b}, {host: c}, {host: d}, {host: e}]}, status: {loadBalancer: {ingress: [{ip: 2.2.2.2}]}}}`,
			"Name|Class|Hosts|Address|Ports|Age", "x|c|a,b,c + 2 more...|2.2.2.2|80, 443|60m"},
		{"networking.k8s.io", "Ingress", &networkingv1.Ingress{}, `{` + meta + `}`, "Name|Class|Hosts|Address|Ports|Age", "x|<none>|*||80|60m"},
		{"networking.k8s.io", "IngressClass", &networkingv1.IngressClass{}, `{` + meta + `spec: {controller: c, parameters: {apiGroup: g.io, kind: K, name: nd}}}`, "Name|Controller|Parameters|Age", "x|c|K.g.io/nd|60m"},
		{"networking.k8s.io", "NetworkPolicy", &networkingv1.NetworkPolicy{}, `{` + meta + `spec: {podSelector: {}}}`, "Name|Pod-Selector|Age", "x|<none>|60m"},
		{"networking.k8s.io", "ServiceCIDR", &networkingv1.ServiceCIDR{}, `{` + meta + `spec: {cidrs: [10.0.0.0/8, "fd00::/112"]}}`, "Name|CIDRs|Age", "x|10.0.0.0/8,fd00::/112|60m"},
		{"networking.k8s.io", "IPAddress", &networkingv1.IPAddress{}, `{` + meta + `spec: {parentRef: {resource: services, namespace: default, name: kubernetes}}}`, "Name|ParentRef", "x|services/default/kubernetes"},
		{"storage.k8s.io", "StorageClass", &storagev1.StorageClass{}, `{metadata: {name: x, annotations: {storageclass.kubernetes.io/is-default-class: "true"}}, provisioner: p}`,
			"Name|Provisioner|ReclaimPolicy|VolumeBindingMode|AllowVolumeExpansion|Age", "x (default)|p|Delete|Immediate|false|<unknown>"},
		{"storage.k8s.io", "VolumeAttributesClass", &storagev1.VolumeAttributesClass{}, `{` + meta + `driverName: d}`, "Name|DriverName|Age", "x|d|60m"},
		{"storage.k8s.io", "VolumeAttachment", &storagev1.VolumeAttachment{}, `{` + meta + `spec: {attacher: a, nodeName: nd, source: {persistentVolumeName: v}}, status: {attached: true}}`, "Name|Attacher|PV|Node|Attached|Age", "x|a|v|nd|true|60m"},
		{"storage.k8s.io", "CSINode", &storagev1.CSINode{}, `{` + meta + `spec: {drivers: [{name: a, nodeID: b}]}}`, "Name|Drivers|Age", "x|1|60m"},
		{"storage.k8s.io", "CSIDriver", &storagev1.CSIDriver{}, `{` + meta + `spec: {volumeLifecycleModes: [Persistent, Ephemeral], tokenRequests: [{audience: a}, {audience: b}]}}`,
			"Name|AttachRequired|PodInfoOnMount|StorageCapacity|TokenRequests|RequiresRepublish|Modes|Age", "x|true|false|false|a,b|false|Persistent,Ephemeral|60m"},
		{"storage.k8s.io", "CSIStorageCapacity", &storagev1.CSIStorageCapacity{}, `{` + meta + `storageClassName: c, capacity: 1Gi}`, "Name|StorageClassName|Capacity", "x|c|1Gi"},
		{"rbac.authorization.k8s.io", "Role", &rbacv1.Role{}, `{` + meta + `}`, "Name|Created At", "x|2026-01-02T11:00:00Z"},
		{"rbac.authorization.k8s.io", "RoleBinding", &rbacv1.RoleBinding{}, `{` + meta + `roleRef: {kind: Role, name: r}, subjects: [{kind: User, name: u}, {kind: User, name: v}, {kind: Group, name: g}, {kind: ServiceAccount, namespace: nd, name: s}]}`,
			"Name|Role|Age|*Users|*Groups|*ServiceAccounts", "x|Role/r|60m|u, v|g|nd/s"},
		{"rbac.authorization.k8s.io", "ClusterRoleBinding", &rbacv1.ClusterRoleBinding{}, `{` + meta + `roleRef: {kind: ClusterRole, name: r}}`, "Name|Role|Age|*Users|*Groups|*ServiceAccounts", "x|ClusterRole/r|60m|||"},
		{"certificates.k8s.io", "CertificateSigningRequest", &certificatesv1.CertificateSigningRequest{}, `{` + meta + `spec: {request: "", signerName: s, username: u, expirationSeconds: 3600}, status: {certificate: YQ==, conditions: [{type: Approved, status: "True"}]}}`,
			"Name|Age|SignerName|Requestor|RequestedDuration|Condition", "x|60m|s|u|60m|Approved,Issued"},
		{"scheduling.k8s.io", "PriorityClass", &schedulingv1.PriorityClass{}, `{` + meta + `value: 5, preemptionPolicy: Never}`, "Name|Value|Global-Default|Age|PreemptionPolicy", "x|5|false|60m|Never"},
		{"node.k8s.io", "RuntimeClass", &nodev1.RuntimeClass{}, `{` + meta + `handler: runsc}`, "Name|Handler|Age", "x|runsc|60m"},
		{"flowcontrol.apiserver.k8s.io", "FlowSchema", &flowcontrolv1.FlowSchema{}, `{` + meta + `spec: {priorityLevelConfiguration: {name: p}, matchingPrecedence: 7, distinguisherMethod: {type: ByUser}}, status: {conditions: [{type: Dangling, status: "False"}]}}`,
			"Name|PriorityLevel|MatchingPrecedence|DistinguisherMethod|Age|MissingPL", "x|p|7|ByUser|60m|False"},
		{"flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", &flowcontrolv1.PriorityLevelConfiguration{}, `{` + meta + `spec: {type: Limited, limited: {nominalConcurrencyShares: 5, limitResponse: {type: Queue, queuing: {queues: 1, handSize: 2, queueLengthLimit: 3}}}}}`,
			"Name|Type|NominalConcurrencyShares|Queues|HandSize|QueueLengthLimit|Age", "x|Limited|5|1|2|3|60m"},
		{"flowcontrol.apiserver.k8s.io", "PriorityLevelConfiguration", &flowcontrolv1.PriorityLevelConfiguration{}, `{` + meta + `spec: {type: Exempt}}`,
			"Name|Type|NominalConcurrencyShares|Queues|HandSize|QueueLengthLimit|Age", "x|Exempt|<none>|<none>|<none>|<none>|60m"},
		{"resource.k8s.io", "DeviceClass", &resourcev1.DeviceClass{}, `{` + meta + `}`, "Name|Age", "x|60m"},
		{"resource.k8s.io", "ResourceClaim", &resourcev1.ResourceClaim{}, `{` + meta + `status: {allocation: {}, reservedFor: [{resource: pods, name: p, uid: u}]}}`, "Name|State|Age", "x|allocated,reserved|60m"},
		{"resource.k8s.io", "ResourceClaim", &resourcev1.ResourceClaim{}, `{` + meta + `}`, "Name|State|Age", "x|pending|60m"},
		{"resource.k8s.io", "ResourceClaimTemplate", &resourcev1.ResourceClaimTemplate{}, `{` + meta + `}`, "Name|Age", "x|60m"},
		{"resource.k8s.io", "ResourceSlice", &resourcev1.ResourceSlice{}, `{` + meta + `spec: {driver: d, nodeName: nd, pool: {name: p, generation: 1, resourceSliceCount: 1}}}`, "Name|Node|Driver|Pool|Age", "x|nd|d|p|60m"},
		{"metrics.k8s.io", "PodMetrics", &metricsv1beta1.PodMetrics{}, `{` + meta + `window: 15s, containers: [{name: a, usage: {cpu: 100m, memory: 1Mi}}, {name: b, usage: {cpu: 50m, memory: 1Mi}}]}`, "Name|cpu|memory|window", "x|150m|2Mi|15s"},
		{"metrics.k8s.io", "NodeMetrics", &metricsv1beta1.NodeMetrics{}, `{` + meta + `window: 15s, usage: {cpu: 100m, memory: 1Mi}}`, "Name|cpu|memory|window", "x|100m|1Mi|15s"},
	} {
		t.Run(test.group+"/"+test.kind, func(t *testing.T) {
			read(t, test.yaml, test.object)
			r := resourceOf(test.group, test.kind)
			var columns []string
			for _, c := range table.Columns(r) {
				if c.Name == "" || c.Type == "" || c.Description == "" && test.group != "metrics.k8s.io" {
					t.Errorf("column %+v is not complete", c)
				}
				if c.Priority > 0 {
					c.Name = "*" + c.Name
				}
				columns = append(columns, c.Name)
			}
			if got := strings.Join(columns, "|"); got != test.columns {
				t.Errorf("columns %s, not %s", got, test.columns)
			}
			if got := strings.Join(rowOf(t, r, test.object), "|"); got != test.cells {
				t.Errorf("cells %s, not %s", got, test.cells)
			}
		})
	}
}

// TestList shows a list's items in order, and pods that have ended as completed.
func TestList(t *testing.T) {
	list := &corev1.PodList{}
	read(t, `{items: [{metadata: {name: a}}, {metadata: {name: b}, status: {phase: Failed}}]}`, list)
	rows, err := table.Rows(resourceOf("", "Pod"), list, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 2 || rows[0].Cells[0] != "a" || rows[1].Cells[0] != "b" || rows[0].Conditions != nil {
		t.Errorf("rows %+v", rows)
	}
	want := []metav1.TableRowCondition{{Type: metav1.RowCompleted, Status: metav1.ConditionTrue, Reason: "Failed", Message: "The pod failed."}}
	if !reflect.DeepEqual(rows[1].Conditions, want) {
		t.Errorf("conditions %+v", rows[1].Conditions)
	}
}

// TestWrongKind: an object of another kind is refused, not shown wrongly.
func TestWrongKind(t *testing.T) {
	for _, r := range resource.All() {
		if _, err := table.Rows(r, &metav1.Status{}, now); err == nil {
			t.Errorf("%s: a Status has a row", r)
		}
	}
}
