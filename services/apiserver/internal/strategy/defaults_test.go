package strategy_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"dhow.dev/services/apiserver/internal/codec"
)

// shown is an object as YAML without metadata and status, the way people read it.
func (s server) shown(obj codec.Object) map[string]any {
	s.t.Helper()
	data, err := yaml.Marshal(obj)
	if err != nil {
		s.t.Fatal(err)
	}
	var document map[string]any
	if err := yaml.Unmarshal(data, &document); err != nil {
		s.t.Fatal(err)
	}
	delete(document, "metadata")
	delete(document, "status")
	return document
}

// The defaults are those of Kubernetes v1.36, as `kubectl get -o yaml` shows them.
func TestDefaults(t *testing.T) {
	s := newServer(t)
	for name, c := range map[string]struct{ kind, document, want string }{
		"pod": {"pod", `spec: {containers: [{name: c, image: i}]}`, `spec:
  containers:
  - {name: c, image: i, imagePullPolicy: Always, resources: {}, terminationMessagePath: /dev/termination-log, terminationMessagePolicy: File}
  dnsPolicy: ClusterFirst
  enableServiceLinks: true
  preemptionPolicy: PreemptLowerPriority
  priority: 0
  restartPolicy: Always
  schedulerName: default-scheduler
  securityContext: {}
  serviceAccount: default
  serviceAccountName: default
  terminationGracePeriodSeconds: 30
  tolerations:
  - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 300}
  - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 300}
`},
		"all of a pod": {"pod", `spec:
  hostNetwork: true
  serviceAccountName: robot
  tolerations: [{operator: Exists}]
  volumes: [{name: a}, {name: b, hostPath: {path: /x}}, {name: d, configMap: {name: c}}, {name: e, projected: {sources: [{serviceAccountToken: {path: t}}]}}]
  initContainers: [{name: i, image: "i:1@sha256:0", restartPolicy: Always}]
  containers:
  - name: c
    image: reg:5000/i
    ports: [{containerPort: 80}]
    env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    resources: {limits: {cpu: 1, memory: 1Gi}, requests: {cpu: 500m}}
    livenessProbe: {httpGet: {port: 80}}
    readinessProbe: {grpc: {port: 80}, periodSeconds: 3}
    lifecycle: {preStop: {httpGet: {port: 80}}}`, `spec:
  hostNetwork: true
  volumes:
  - {name: a, emptyDir: {}}
  - {name: b, hostPath: {path: /x, type: ""}}
  - {name: d, configMap: {name: c, defaultMode: 420}}
  - {name: e, projected: {defaultMode: 420, sources: [{serviceAccountToken: {path: t, expirationSeconds: 3600}}]}}
  initContainers:
  - {name: i, image: "i:1@sha256:0", restartPolicy: Always, imagePullPolicy: IfNotPresent, resources: {}, terminationMessagePath: /dev/termination-log, terminationMessagePolicy: File}
  containers:
  - name: c
    image: reg:5000/i
    imagePullPolicy: Always
    ports: [{containerPort: 80, hostPort: 80, protocol: TCP}]
    env: [{name: A, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.name}}}]
    resources: {limits: {cpu: "1", memory: 1Gi}, requests: {cpu: 500m, memory: 1Gi}}
    livenessProbe: {httpGet: {port: 80, path: /, scheme: HTTP}, timeoutSeconds: 1, periodSeconds: 10, successThreshold: 1, failureThreshold: 3}
    readinessProbe: {grpc: {port: 80, service: ""}, timeoutSeconds: 1, periodSeconds: 3, successThreshold: 1, failureThreshold: 3}
    lifecycle: {preStop: {httpGet: {port: 80, path: /, scheme: HTTP}}}
    terminationMessagePath: /dev/termination-log
    terminationMessagePolicy: File
  dnsPolicy: ClusterFirst
  enableServiceLinks: true
  preemptionPolicy: PreemptLowerPriority
  priority: 0
  restartPolicy: Always
  schedulerName: default-scheduler
  securityContext: {}
  serviceAccount: robot
  serviceAccountName: robot
  terminationGracePeriodSeconds: 30
  tolerations: [{operator: Exists}]
`},
		// A template does not get what waits until there is a pod: limits as requests, service links, account, tolerations.
		"deployment": {"deploy", `spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: "i:latest", resources: {limits: {cpu: 1}}}]}}}`, `spec:
  replicas: 1
  progressDeadlineSeconds: 600
  revisionHistoryLimit: 10
  selector: {matchLabels: {a: b}}
  strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 25%, maxUnavailable: 25%}}
  template:
    metadata: {creationTimestamp: null, labels: {a: b}}
    spec:
      containers:
      - {name: c, image: "i:latest", imagePullPolicy: Always, resources: {limits: {cpu: "1"}}, terminationMessagePath: /dev/termination-log, terminationMessagePolicy: File}
      dnsPolicy: ClusterFirst
      restartPolicy: Always
      schedulerName: default-scheduler
      securityContext: {}
      terminationGracePeriodSeconds: 30
`},
		"service": {"svc", `spec: {ports: [{port: 80}, {name: b, port: 81, targetPort: web, protocol: UDP}]}`, `spec:
  internalTrafficPolicy: Cluster
  ports: [{port: 80, protocol: TCP, targetPort: 80}, {name: b, port: 81, protocol: UDP, targetPort: web}]
  sessionAffinity: None
  type: ClusterIP
`},
		"balanced service": {"svc", `spec: {type: LoadBalancer, sessionAffinity: ClientIP, ports: [{port: 80}]}`, `spec:
  allocateLoadBalancerNodePorts: true
  externalTrafficPolicy: Cluster
  internalTrafficPolicy: Cluster
  ports: [{port: 80, protocol: TCP, targetPort: 80}]
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 10800}}
  type: LoadBalancer
`},
		"external name":  {"svc", `spec: {type: ExternalName, externalName: a.b}`, `spec: {type: ExternalName, externalName: a.b, sessionAffinity: None}`},
		"secret":         {"secret", `data: {a: eA==}`, `{data: {a: eA==}, type: Opaque}`},
		"priority class": {"pc", `value: 1`, `{value: 1, preemptionPolicy: PreemptLowerPriority}`},
		"slice":          {"endpointslice", `{addressType: IPv4, endpoints: [], ports: [{port: 80}]}`, `{addressType: IPv4, endpoints: [], ports: [{name: "", port: 80, protocol: TCP}]}`},
		"namespace":      {"ns", `{}`, `spec: {finalizers: [kubernetes]}`},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			obj, _, err := s.create(c.kind, c.document)
			if err != nil {
				t.Fatal(err)
			}
			var want map[string]any
			if err := yaml.Unmarshal([]byte(c.want), &want); err != nil {
				t.Fatal(err)
			}
			got := s.shown(obj)
			forget(got)
			forget(want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
			// Defaulting again changes nothing.
			again := obj.DeepCopyObject().(codec.Object)
			res, _ := s.decode(c.kind, c.document)
			s.set.For(res).Default(again)
			if diff := cmp.Diff(s.shown(obj), s.shown(again)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// forget drops the empty structs and times that encoders of different versions show or not.
func forget(v any) {
	switch v := v.(type) {
	case map[string]any:
		delete(v, "creationTimestamp")
		delete(v, "loadBalancer")
		for _, child := range v {
			forget(child)
		}
	case []any:
		for _, child := range v {
			forget(child)
		}
	}
}

func TestQOSClass(t *testing.T) {
	s := newServer(t)
	for want, resources := range map[corev1.PodQOSClass]string{
		corev1.PodQOSBestEffort: `{}`, corev1.PodQOSBurstable: `{requests: {cpu: 1}}`, corev1.PodQOSGuaranteed: `{limits: {cpu: 1, memory: 1Gi}}`,
	} {
		obj, _, err := s.create("pod", `spec: {containers: [{name: c, image: i, resources: `+resources+`}]}`)
		if err != nil {
			t.Fatal(err)
		}
		if got := obj.(*corev1.Pod).Status; got.QOSClass != want || got.Phase != corev1.PodPending {
			t.Errorf("%s: %s, %s", resources, got.QOSClass, got.Phase)
		}
	}
	obj, _, err := s.create("pod", `spec: {schedulingGates: [{name: g}], containers: [{name: c, image: i}]}`)
	if err != nil {
		t.Fatal(err)
	}
	if c := obj.(*corev1.Pod).Status.Conditions; len(c) != 1 || c[0].Reason != corev1.PodReasonSchedulingGated {
		t.Errorf("conditions of a gated pod: %v", c)
	}
}

func TestAdmission(t *testing.T) {
	class := func(name string, value int32, standard bool, policy corev1.PreemptionPolicy) *schedulingv1.PriorityClass {
		return &schedulingv1.PriorityClass{ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value, GlobalDefault: standard, PreemptionPolicy: &policy}
	}
	s := newServer(t, class("high", 1000, false, corev1.PreemptNever), class("usual", 10, true, corev1.PreemptLowerPriority))
	pod := func(spec string) *corev1.Pod {
		t.Helper()
		obj, _, err := s.create("pod", `spec: {`+spec+`containers: [{name: c, image: i}]}`)
		if err != nil {
			t.Fatal(err)
		}
		return obj.(*corev1.Pod)
	}
	if p := pod(`priorityClassName: high, `); *p.Spec.Priority != 1000 || *p.Spec.PreemptionPolicy != corev1.PreemptNever {
		t.Errorf("high: %d %s", *p.Spec.Priority, *p.Spec.PreemptionPolicy)
	}
	if p := pod(``); *p.Spec.Priority != 10 || p.Spec.PriorityClassName != "usual" {
		t.Errorf("usual: %d %s", *p.Spec.Priority, p.Spec.PriorityClassName)
	}
	if p := pod(`priorityClassName: system-node-critical, `); *p.Spec.Priority != 2000001000 {
		t.Errorf("system-node-critical: %d", *p.Spec.Priority)
	}
	for spec, words := range map[string]string{
		`priorityClassName: none, `:              `pods "x" is forbidden: no PriorityClass with name none was found`,
		`priorityClassName: high, priority: 5, `: `pods "x" is forbidden: the integer value of priority (5) must not be provided in pod spec; priority admission controller computed 1000 from the given PriorityClass name`,
	} {
		if _, _, err := s.create("pod", `spec: {`+spec+`containers: [{name: c, image: i}]}`); !apierrors.IsForbidden(err) || err.Error() != words {
			t.Errorf("got %v, want %s", err, words)
		}
	}
}

// A client that changes nothing but the type of a service sends the rest as it read it.
func TestServiceTypeChange(t *testing.T) {
	s := newServer(t)
	obj, errs := s.update("svc", `spec: {type: LoadBalancer, loadBalancerClass: a/b, loadBalancerSourceRanges: [10.0.0.0/8], ports: [{port: 80}]}`,
		`spec: {type: ExternalName, externalName: a.b, loadBalancerClass: a/b, loadBalancerSourceRanges: [10.0.0.0/8], allocateLoadBalancerNodePorts: true, externalTrafficPolicy: Cluster, internalTrafficPolicy: Cluster, ports: [{port: 80}]}`)
	want(t, errs, "")
	spec := obj.(*corev1.Service).Spec
	if spec.LoadBalancerClass != nil || spec.LoadBalancerSourceRanges != nil || spec.AllocateLoadBalancerNodePorts != nil || spec.ExternalTrafficPolicy != "" || spec.InternalTrafficPolicy != nil {
		t.Errorf("%+v", spec)
	}
}
