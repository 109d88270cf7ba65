package fieldtable_test

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"dhow.dev/services/apiserver/internal/fieldtable"
)

// document is an object as JSON.
type document = map[string]any

// bases are valid objects of each kind, to which fields are added.
var bases = map[string]string{
	"Pod":                                 `spec: {containers: [{name: c, image: "web:1"}], volumes: [{name: v, emptyDir: {}}]}`,
	"PodTemplate":                         `template: {spec: {containers: [{name: c, image: "web:1"}], volumes: [{name: v, emptyDir: {}}]}}`,
	"Deployment.apps":                     `spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: "web:1"}], volumes: [{name: v, emptyDir: {}}]}}}`,
	"StatefulSet.apps":                    `spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: "web:1"}], volumes: [{name: v, emptyDir: {}}]}}}`,
	"DaemonSet.apps":                      `spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: "web:1"}], volumes: [{name: v, emptyDir: {}}]}}}`,
	"ReplicaSet.apps":                     `spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: "web:1"}], volumes: [{name: v, emptyDir: {}}]}}}`,
	"ReplicationController":               `spec: {selector: {a: b}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: "web:1"}], volumes: [{name: v, emptyDir: {}}]}}}`,
	"Job.batch":                           `spec: {manualSelector: true, selector: {matchLabels: {a: b}}, completionMode: Indexed, completions: 3, backoffLimitPerIndex: 1, template: {metadata: {labels: {a: b}}, spec: {restartPolicy: Never, containers: [{name: c, image: "web:1"}], volumes: [{name: v, emptyDir: {}}]}}}`,
	"CronJob.batch":                       `spec: {schedule: "@hourly", jobTemplate: {spec: {completionMode: Indexed, completions: 3, backoffLimitPerIndex: 1, template: {spec: {restartPolicy: Never, containers: [{name: c, image: "web:1"}], volumes: [{name: v, emptyDir: {}}]}}}}}`,
	"HorizontalPodAutoscaler.autoscaling": `spec: {maxReplicas: 5, scaleTargetRef: {kind: Deployment, name: d}}`,
	"Service":                             `spec: {ports: [{port: 80}]}`,
	"EndpointSlice.discovery.k8s.io":      `{addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}], ports: [{port: 80}]}`,
	"Event":                               `{involvedObject: {kind: Pod, apiVersion: v1, namespace: default, name: p}, reportingComponent: a, reportingInstance: b, action: c, reason: d}`,
	"Event.events.k8s.io":                 `{eventTime: "2026-01-02T03:04:05.000000Z", reportingController: a, reportingInstance: b, action: c, reason: d, type: Normal, regarding: {kind: Pod, apiVersion: v1, namespace: default, name: p}}`,
	"PriorityClass.scheduling.k8s.io":     `value: 1`,
	"PersistentVolumeClaim":               `spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}`,
	"PersistentVolume":                    `spec: {accessModes: [ReadWriteOnce], capacity: {storage: 1Gi}, csi: {driver: d.example.com, volumeHandle: h}, nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}}}`,
	"RuntimeClass.node.k8s.io":            `handler: runc`,
	"StorageClass.storage.k8s.io":         `provisioner: example.com/x`,
	"VolumeAttachment.storage.k8s.io":     `spec: {attacher: d.example.com, nodeName: n1, source: {persistentVolumeName: pv}}`,

	"RoleBinding.rbac.authorization.k8s.io":        `roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: r}`,
	"ClusterRoleBinding.rbac.authorization.k8s.io": `roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: r}`,

	"CertificateSigningRequest.certificates.k8s.io": `spec: {signerName: example.com/x, usages: [client auth], request: ` + signingRequest + `}`,

	"ClusterTrustBundle.certificates.k8s.io": `{metadata: {name: "example.com:s:x"}, spec: {signerName: example.com/s, trustBundle: ` + trustAnchor + `}}`,

	"FlowSchema.flowcontrol.apiserver.k8s.io":                 `spec: {priorityLevelConfiguration: {name: l}}`,
	"PriorityLevelConfiguration.flowcontrol.apiserver.k8s.io": `spec: {type: Limited, limited: {limitResponse: {type: Reject}}}`,
}

// minimal is what a message must have, beside the field that is looked at.
var minimal = map[string]string{
	"Container": `{name: i, image: "web:1"}`, "ContainerPort": `containerPort: 80`, "EnvVar": `name: A`, "EnvFromSource": `configMapRef: {name: c}`,
	"ConfigMapEnvSource": `name: c`, "SecretEnvSource": `name: c`, "ConfigMapKeySelector": `{name: c, key: k}`, "SecretKeySelector": `{name: c, key: k}`,
	"ObjectFieldSelector": `fieldPath: metadata.name`, "ResourceFieldSelector": `{resource: limits.cpu, containerName: c}`, "FileKeySelector": `{volumeName: v, path: p, key: k}`,
	"Probe": `tcpSocket: {port: 80}`, "ExecAction": `command: [x]`, "HTTPGetAction": `port: 80`, "TCPSocketAction": `port: 80`, "GRPCAction": `port: 80`,
	"HTTPHeader": `{name: X, value: z}`, "SleepAction": `seconds: 1`, "LifecycleHandler": `exec: {command: [x]}`, "VolumeMount": `{name: v, mountPath: /m}`,
	"EnvVarSource": `fieldRef: {fieldPath: metadata.name}`,
	"VolumeDevice": `{name: b, devicePath: /d}`, "ContainerRestartRuleOnExitCodes": `{operator: In, values: [1]}`, "ContainerRestartRule": `{action: Restart, exitCodes: {operator: In, values: [1]}}`,
	"ContainerResizePolicy": `{resourceName: cpu, restartPolicy: NotRequired}`,

	"Volume": `name: w`, "HostPathVolumeSource": `path: /x`, "SecretVolumeSource": `secretName: s`, "ConfigMapVolumeSource": `name: c`, "KeyToPath": `{key: k, path: p}`,
	"DownwardAPIVolumeFile": `{path: p, fieldRef: {fieldPath: metadata.name}}`, "SecretProjection": `name: s`, "ConfigMapProjection": `name: s`,
	"ServiceAccountTokenProjection": `path: t`, "ProjectedVolumeSource": `sources: [{configMap: {name: c}}]`, "VolumeProjection": `configMap: {name: c}`,
	"PersistentVolumeClaimVolumeSource": `claimName: c`, "CSIVolumeSource": `driver: d.example.com`, "NFSVolumeSource": `{server: s, path: /p}`,
	"ISCSIVolumeSource": `{targetPortal: p, iqn: "iqn.2026-11.test:x", lun: 1, secretRef: {name: s}}`, "ISCSIPersistentVolumeSource": `{targetPortal: p, iqn: "iqn.2026-11.test:x", lun: 1, secretRef: {name: s}}`,
	"FlexVolumeSource": `driver: a/b`, "FlexPersistentVolumeSource": `driver: a/b`, "FCVolumeSource": `{targetWWNs: [a], lun: 1}`,
	"GitRepoVolumeSource": `repository: r`, "ImageVolumeSource": `reference: r`,
	"GCEPersistentDiskVolumeSource": `pdName: d`, "AWSElasticBlockStoreVolumeSource": `volumeID: v`, "AzureDiskVolumeSource": `{diskName: d, diskURI: "https://x"}`,
	"AzureFileVolumeSource": `{secretName: s, shareName: x}`, "AzureFilePersistentVolumeSource": `{secretName: s, shareName: x}`, "CinderVolumeSource": `volumeID: v`,
	"CinderPersistentVolumeSource": `volumeID: v`, "VsphereVirtualDiskVolumeSource": `volumePath: p`, "PortworxVolumeSource": `volumeID: v`,
	"TypedLocalObjectReference": `{kind: PersistentVolumeClaim, name: c}`, "TypedObjectReference": `{kind: PersistentVolumeClaim, name: c}`,
	"LocalVolumeSource": `path: /x`, "CSIPersistentVolumeSource": `{driver: d.example.com, volumeHandle: h}`, "SecretReference": `{name: s, namespace: d}`,
	"VolumeNodeAffinity":            `required: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: Exists}]}]}`,
	"PersistentVolumeClaimTemplate": `spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}`, "PersistentVolumeClaimSpec": `{accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}`,
	"VolumeResourceRequirements": `requests: {storage: 1Gi}`,
	"EphemeralVolumeSource":      `volumeClaimTemplate: {spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}`,

	"Toleration": `key: k`, "HostAlias": `{ip: 10.0.0.1, hostnames: [a]}`, "PodReadinessGate": `conditionType: a`, "PodSchedulingGate": `name: a`,
	"PodDNSConfigOption": `name: ndots`, "LocalObjectReference": `name: s`, "PodResourceClaim": `{name: r, resourceClaimName: c}`, "ResourceClaim": `name: r`,
	"TopologySpreadConstraint": `{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {a: b}}}`,
	"LabelSelectorRequirement": `{key: a, operator: Exists}`, "NodeSelectorRequirement": `{key: a, operator: Exists}`, "NodeSelector": `nodeSelectorTerms: [{}]`,
	"PodAffinityTerm": `{topologyKey: zone, labelSelector: {matchLabels: {a: b}}}`, "WeightedPodAffinityTerm": `{weight: 1, podAffinityTerm: {topologyKey: zone, labelSelector: {matchLabels: {a: b}}}}`,
	"PreferredSchedulingTerm": `{weight: 1, preference: {}}`, "SeccompProfile": `type: RuntimeDefault`, "AppArmorProfile": `type: RuntimeDefault`,
	"Sysctl": `{name: net.a, value: "1"}`, "EphemeralContainer": `{name: e, image: "web:1"}`, "PodOS": `name: linux`,

	"PodFailurePolicy": `rules: [{action: Ignore, onExitCodes: {operator: In, values: [1]}}]`, "PodFailurePolicyRule": `{action: Ignore, onExitCodes: {operator: In, values: [1]}}`,
	"PodFailurePolicyOnExitCodesRequirement": `{operator: In, values: [1]}`, "PodFailurePolicyOnPodConditionsPattern": `{type: a, status: "True"}`,
	"SuccessPolicy": `rules: [{succeededCount: 1}]`, "SuccessPolicyRule": `succeededCount: 1`,
	"MetricSpec": `{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 50}}}`, "HPAScalingPolicy": `{type: Pods, value: 1, periodSeconds: 1}`,

	"ServicePort": `{name: q, port: 81}`, "Taint": `{key: k, effect: NoSchedule}`, "EndpointSubset": `{addresses: [{ip: 10.0.0.1}], ports: [{port: 80}]}`,
	"EndpointAddress": `ip: 10.0.0.2`, "EndpointPort": `port: 80`, "Endpoint": `addresses: [10.0.0.1]`, "ForZone": `name: z`, "ForNode": `name: z`,
	"PolicyRule": `{verbs: [get], apiGroups: [""], resources: [pods]}`, "AggregationRule": `clusterRoleSelectors: [{matchLabels: {a: b}}]`,
	"Subject": `{kind: User, apiGroup: rbac.authorization.k8s.io, name: u}`, "RoleRef": `{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: r}`,
	"ObjectReference": `{kind: Pod, namespace: default, name: p}`, "EventSource": `component: c`,
}

// unions are fields of which one may be set.
var unions = map[string][]string{
	"Probe": {"exec", "httpGet", "tcpSocket", "grpc"}, "LifecycleHandler": {"exec", "httpGet", "tcpSocket", "sleep"}, "EnvVar": {"value", "valueFrom"},
	"EnvFromSource": {"configMapRef", "secretRef"}, "DownwardAPIVolumeFile": {"fieldRef", "resourceFieldRef"},
	"EnvVarSource":         {"fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"},
	"PodFailurePolicyRule": {"onExitCodes", "onPodConditions"},
	"PersistentVolumeSpec": {"gcePersistentDisk", "awsElasticBlockStore", "hostPath", "glusterfs", "nfs", "rbd", "iscsi", "cinder", "cephfs", "fc", "flocker", "flexVolume", "azureFile",
		"vsphereVolume", "quobyte", "azureDisk", "photonPersistentDisk", "portworxVolume", "scaleIO", "local", "storageos", "csi"},
	"FCVolumeSource":         {"targetWWNs", "wwids"},
	"VolumeAttachmentSource": {"persistentVolumeName", "inlineVolumeSpec"},
	"VolumeProjection":       {"secret", "configMap", "downwardAPI", "serviceAccountToken", "clusterTrustBundle", "podCertificate"},
}

// values are those of fields that do not take any value, as JSON or YAML, by message and name.
var values = map[string]string{
	"PodSpec.restartPolicy": "Always", "PodSpec.dnsPolicy": "Default", "PodSpec.runtimeClassName": "gvisor", "PodSpec.priorityClassName": "system-cluster-critical", "PodSpec.priority": "0",
	"PodSpec.containers":                   `[{name: c, image: "web:1"}]`,
	"PodSpec.serviceAccount":               "default",
	"PodSpec.automountServiceAccountToken": "true", "PodSpec.hostUsers": "false", "PodSpec.preemptionPolicy": "Never", "PodSpec.volumes": `[{name: v, emptyDir: {}}]`,
	"PodOS.name":      "windows",
	"Container.image": `"web:2"`, "Container.restartPolicy": "Never", "Container.terminationMessagePolicy": "File", "Container.imagePullPolicy": "Never",
	"Container.restartPolicyRules": "[{action: Restart, exitCodes: {operator: In, values: [1]}}]", "ContainerRestartRule.action": "Restart",
	"ContainerRestartRuleOnExitCodes.operator": "NotIn", "ContainerRestartRuleOnExitCodes.values": "[2]", "ContainerPort.protocol": "UDP", "ContainerPort.hostIP": "10.0.0.1",
	"EnvVar.name": "B", "HTTPGetAction.scheme": "HTTPS", "VolumeMount.mountPropagation": "HostToContainer", "VolumeMount.recursiveReadOnly": "IfPossible",
	"VolumeMount.subPath": "a", "VolumeMount.name": "v", "Probe.successThreshold": "1", "Lifecycle.stopSignal": "SIGUSR1", "SleepAction.seconds": "2",
	"AzureDiskVolumeSource.cachingMode": "None", "AzureDiskVolumeSource.kind": "Dedicated", "AzureDiskVolumeSource.diskURI": `"https://y"`,
	"VolumeAttachmentSource.inlineVolumeSpec": `{accessModes: [ReadWriteOnce], csi: {driver: d.example.com, volumeHandle: h}}`,
	"StorageClass.reclaimPolicy":              "Retain", "StorageClass.volumeBindingMode": "WaitForFirstConsumer",
	"ImageVolumeSource.pullPolicy": "Always", "VolumeDevice.name": "b", "VolumeDevice.devicePath": "/e", "VolumeResourceRequirements.requests": "{storage: 2Gi}",
	"PersistentVolumeSpec.accessModes": "[ReadOnlyMany]", "PersistentVolumeSpec.volumeMode": "Block", "PersistentVolumeSpec.persistentVolumeReclaimPolicy": "Delete",
	"PersistentVolumeSpec.capacity": "{storage: 2Gi}", "TypedLocalObjectReference.kind": "PersistentVolumeClaim", "TypedObjectReference.kind": "PersistentVolumeClaim",
	"PersistentVolumeClaimSpec.accessModes": "[ReadWriteOncePod]", "PersistentVolumeClaimSpec.volumeMode": "Block",
	"PodDisruptionBudgetSpec.unhealthyPodEvictionPolicy": "AlwaysAllow", "ContainerResizePolicy.resourceName": "memory", "ContainerResizePolicy.restartPolicy": "RestartContainer", "ServiceAccountTokenProjection.expirationSeconds": "700",
	"ObjectFieldSelector.apiVersion": "v1", "ObjectFieldSelector.fieldPath": "metadata.uid", "ResourceFieldSelector.resource": "requests.cpu",
	"SecurityContext.procMount": "Default", "SecurityContext.allowPrivilegeEscalation": "true", "SeccompProfile.type": "Unconfined", "AppArmorProfile.type": "Unconfined",
	"SeccompProfile.localhostProfile": "p", "AppArmorProfile.localhostProfile": "p", "PodSecurityContext.supplementalGroupsPolicy": "Strict",
	"PodSecurityContext.fsGroupChangePolicy": "OnRootMismatch", "PodSecurityContext.seLinuxChangePolicy": "Recursive",
	"NFSVolumeSource.path": "/q", "ISCSIVolumeSource.iqn": "naa.0123456789abcdef0123456789abcdef", "ISCSIPersistentVolumeSource.iqn": "eui.0123456789abcdef",
	"ISCSIVolumeSource.initiatorName": `"iqn.2026-11.test:me"`, "ISCSIPersistentVolumeSource.initiatorName": `"iqn.2026-11.test:me"`, "HostPathVolumeSource.type": "Directory", "EmptyDirVolumeSource.medium": "HugePages", "EmptyDirVolumeSource.sizeLimit": `"1"`,
	"NodeSelectorRequirement.operator": "Exists", "NodeSelectorRequirement.values": "[v]", "LabelSelectorRequirement.operator": "Exists", "LabelSelectorRequirement.values": "[v]",
	"Toleration.operator": "Equal", "Toleration.effect": "NoExecute", "HostAlias.ip": "10.0.0.2", "PodDNSConfig.nameservers": "[10.0.0.1]",
	"TopologySpreadConstraint.whenUnsatisfiable": "ScheduleAnyway", "TopologySpreadConstraint.nodeAffinityPolicy": "Honor", "TopologySpreadConstraint.nodeTaintsPolicy": "Honor",
	"PodSpec.ephemeralContainers": `[{name: e, image: "web:1"}]`,

	"StatefulSetSpec.podManagementPolicy": "Parallel", "StatefulSetUpdateStrategy.type": "OnDelete", "DaemonSetUpdateStrategy.type": "OnDelete",
	"StatefulSetPersistentVolumeClaimRetentionPolicy.whenDeleted": "Delete", "StatefulSetPersistentVolumeClaimRetentionPolicy.whenScaled": "Delete",
	"StatefulSetSpec.volumeClaimTemplates": "[{metadata: {name: d}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}}]",
	"DeploymentStrategy.type":              "RollingUpdate", "RollingUpdateDeployment.maxUnavailable": "50%", "DeploymentSpec.progressDeadlineSeconds": "900",

	"JobSpec.completionMode": "Indexed", "JobSpec.podReplacementPolicy": "Failed", "JobSpec.managedBy": "example.com/x", "PodFailurePolicyRule.action": "Count",
	"PodFailurePolicyOnExitCodesRequirement.containerName": "c", "PodFailurePolicyOnExitCodesRequirement.operator": "NotIn", "PodFailurePolicyOnExitCodesRequirement.values": "[2]",
	"PodFailurePolicyOnPodConditionsPattern.status": `"False"`, "SuccessPolicyRule.succeededIndexes": `"1"`,
	"CronJobSpec.schedule": `"@daily"`, "CronJobSpec.timeZone": "UTC", "CronJobSpec.concurrencyPolicy": "Forbid",
	"HPAScalingRules.selectPolicy": "Min", "HPAScalingPolicy.type": "Percent",

	"ServiceSpec.clusterIP": "10.96.0.7", "ServiceSpec.clusterIPs": "[10.96.0.7]", "ServiceSpec.type": "LoadBalancer", "ServiceSpec.externalIPs": "[192.0.2.1]",
	"ServiceSpec.sessionAffinity": "None", "ServiceSpec.externalTrafficPolicy": "Local", "ServiceSpec.ipFamilies": "[IPv4]", "ServiceSpec.ipFamilyPolicy": "SingleStack",
	"ServiceSpec.internalTrafficPolicy": "Local", "ServiceSpec.trafficDistribution": "PreferClose", "ServiceSpec.loadBalancerSourceRanges": "[10.0.0.0/8]",
	"ServiceSpec.loadBalancerIP": "192.0.2.1", "ServicePort.protocol": "UDP", "ServicePort.nodePort": "30080",

	"EndpointAddress.ip": "10.0.0.3", "EndpointPort.protocol": "UDP", "Endpoint.addresses": "[10.0.0.2]", "EndpointSlice.addressType": "IPv4",
	"NodeSpec.podCIDR": "10.244.0.0/24", "NodeSpec.podCIDRs": "[10.244.0.0/24]", "Taint.effect": "NoExecute", "Secret.type": "Opaque",
	"Event.type": "Normal", "Event.eventTime": `"2026-01-02T03:04:05.000000Z"`, "ObjectReference.namespace": "default", "ObjectReference.kind": "Pod", "ObjectReference.apiVersion": "v1",
	"PriorityClass.preemptionPolicy": "Never", "ControllerRevision.data": "{a: b}", "LeaseSpec.preferredHolder": "a",

	"CertificateSigningRequestSpec.request": signingRequest, "CertificateSigningRequestSpec.signerName": "example.com/y", "CertificateSigningRequestSpec.usages": "[server auth]",
	"CertificateSigningRequestSpec.expirationSeconds": "700",
	"ClusterTrustBundleSpec.signerName":               "example.com/s", "ClusterTrustBundleSpec.trustBundle": trustAnchor,
}

// signingRequest is a PKCS#10 request of no use, in PEM, as JSON has bytes.
const signingRequest = "LS0tLS1CRUdJTiBDRVJUSUZJQ0FURSBSRVFVRVNULS0tLS0KTUlIR01HNENBUUF3RERFS01BZ0dBMVVFQXhNQmVEQlpNQk1HQnlxR1NNNDlBZ0VHQ0NxR1NNNDlBd0VIQTBJQQpCQmNvRjU5TlRsY2l0RHowaWlpNE9ReTFGRVl4QlFpU1d0VGVTZmozSHRYSm9mb0J5dUdsN3RSOTYwSzJLaDlKCmdjQzdCcURleGRmQ3hEYkJ0U1JoY0lhZ0FEQUtCZ2dxaGtqT1BRUURBZ05JQURCRkFpRUFoZ0dBT2UyWUV0UWQKblNxVWdwM1RKZyt1eWM2enVNWkxjbWwzVUZ5d21YSUNJQi9pUjdGVFVsWnhXaG00dkF6VEpBN2VBWnZDYjJZeQpsL01ySGh6VmRNSDMKLS0tLS1FTkQgQ0VSVElGSUNBVEUgUkVRVUVTVC0tLS0tCg=="

// trustAnchor is the certificate of an authority.
const trustAnchor = `"-----BEGIN CERTIFICATE-----\nMIIBLjCB4aADAgECAhQ/zP2SPhRgL1T1U8VQuSNLvApTYzAFBgMrZXAwDDEKMAgG\nA1UEAwwBeDAgFw0yNjExMjIwMjQwNThaGA8yMTI2MTAyOTAyNDA1OFowDDEKMAgG\nA1UEAwwBeDAqMAUGAytlcAMhAEMxBYgck8Bp6qSeUV021zDi9k7QZb8pdblTaPNn\n4LTao1MwUTAdBgNVHQ4EFgQU0XjHZPkiJs71/kClKxFcAtFQpFEwHwYDVR0jBBgw\nFoAU0XjHZPkiJs71/kClKxFcAtFQpFEwDwYDVR0TAQH/BAUwAwEB/zAFBgMrZXAD\nQQDNlIPkmTtZHSJVS9eI8ivjKYFlx6Pwfzi6mRyuzb4lDbYYEoSD9HnFhYIvi9/p\nHY7T+eI5fT79GT5Q9wHXfQUA\n-----END CERTIFICATE-----\n"`

// endings are the values of fields that mean something else where they are.
var endings = map[string]string{
	"matchFields": "[{key: metadata.name, operator: In, values: [a]}]", "matchFields[].key": "metadata.name", "matchFields[].operator": "In", "matchFields[].values": "[b]",
	"selector.matchExpressions[].key": "a", "selector.matchExpressions[].values": "[b]",
}

// kindly are the values of fields that only one kind wants so, by kind and path.
var kindly = map[string]string{
	"Job.batch spec.template.spec.restartPolicy": "Never", "CronJob.batch spec.jobTemplate.spec.template.spec.restartPolicy": "Never",
	"CronJob.batch spec.jobTemplate.spec.manualSelector": "false",
	// A container that never restarts is not restarted to be resized.
	"Job.batch spec.template.spec.initContainers[].resizePolicy[].restartPolicy": "NotRequired", "Job.batch spec.template.spec.containers[].resizePolicy[].restartPolicy": "NotRequired",
	"CronJob.batch spec.jobTemplate.spec.template.spec.initContainers[].resizePolicy[].restartPolicy": "NotRequired",
	"CronJob.batch spec.jobTemplate.spec.template.spec.containers[].resizePolicy[].restartPolicy":     "NotRequired",
}

// company is what else must be set when a field is, by a part of its path.
var company = []struct{ suffix, also string }{
	{"initContainers[].livenessProbe", "initContainers[].restartPolicy=Always"},
	{"initContainers[].readinessProbe", "initContainers[].restartPolicy=Always"},
	{"initContainers[].startupProbe", "initContainers[].restartPolicy=Always"},
	{"initContainers[].lifecycle", "initContainers[].restartPolicy=Always"},
	{"initContainers[].restartPolicyRules", "initContainers[].restartPolicy=Always"},
	{"containers[].restartPolicyRules", "containers[].restartPolicy=Always"},
	{"lifecycle.stopSignal", "os.name=linux"},
	{"seccompProfile.localhostProfile", "seccompProfile.type=Localhost"},
	{"appArmorProfile.localhostProfile", "appArmorProfile.type=Localhost"},
	{"tolerations[].tolerationSeconds", "tolerations[].effect=NoExecute"},
	{"matchExpressions[].values", "matchExpressions[].operator=In"},
	{"recursiveReadOnly", "volumeMounts[].readOnly=true"},
	{"resources.claims", "resourceClaims=[{name: r, resourceClaimName: c}]"},
	{"volumeDevices", "volumes=[{name: v, emptyDir: {}}, {name: b, persistentVolumeClaim: {claimName: c}}]"},
	{"sessionAffinityConfig", "sessionAffinity=ClientIP"},
	{"externalName", "type=ExternalName"},
	{"externalTrafficPolicy", "type=NodePort"},
	{"nodePort", "spec.type=NodePort"},
	{"allocateLoadBalancerNodePorts", "type=LoadBalancer"},
	{"loadBalancerSourceRanges", "type=LoadBalancer"},
	{"loadBalancerClass", "type=LoadBalancer"},
	{"spec.preferredHolder", "spec.strategy=OldestEmulationVersion"},
	{"spec.clusterIPs", "spec.clusterIP=10.96.0.7"},
	{"strategy.rollingUpdate", "strategy.type=RollingUpdate"},
	{"updateStrategy.rollingUpdate", "updateStrategy.type=RollingUpdate"},
	{"rollingUpdate.maxSurge", "rollingUpdate.maxUnavailable=0"},
	{"minDomains", "topologySpreadConstraints[].whenUnsatisfiable=DoNotSchedule"},
	{"requests", "limits={cpu: \"1\"}"},
	{"matchFields[]", "matchFields=[{key: metadata.name, operator: In, values: [a]}]"},
	{"spec.preemptionPolicy", "spec.priorityClassName=batch"},
	{"hostNetwork", "containers[].ports=[]"},
	{"healthCheckNodePort", "type=LoadBalancer"},
	{"healthCheckNodePort", "externalTrafficPolicy=Local"},
}

// builder makes objects of a kind in which one field is set.
type builder struct {
	t    *testing.T
	kind string
	// namespaced says that objects of the kind are in a namespace.
	namespaced bool
	byPath     map[string]fieldtable.Field
}

func parse(t *testing.T, text string) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return v
}

// base returns a valid object.
func (b builder) base() document {
	doc := document{}
	if text := bases[b.kind]; text != "" {
		doc = parse(b.t, text).(document)
	}
	meta, _ := doc["metadata"].(document)
	if meta == nil {
		meta = document{}
		doc["metadata"] = meta
	}
	if meta["name"] == nil {
		meta["name"] = "x"
	}
	if b.namespaced {
		meta["namespace"] = "default"
	}
	return doc
}

// typeOf is the message that a field holds, or that each of its items is.
func typeOf(f fieldtable.Field) string { return strings.TrimPrefix(f.Type, "list of ") }

// with returns an object with the field set to a value, or to a sample if value is empty.
func (b builder) with(f fieldtable.Field, value string) document {
	b.t.Helper()
	doc := b.base()
	var v any
	switch known := values[strings.TrimPrefix(f.Message[strings.LastIndex(f.Message, ".")+1:]+"."+f.Name, ".")]; {
	case value != "":
		v = parse(b.t, value)
	case kindly[b.kind+" "+f.Path] != "":
		v = parse(b.t, kindly[b.kind+" "+f.Path])
	case ending(f.Path) != "":
		v = parse(b.t, ending(f.Path))
	case known != "":
		v = parse(b.t, known)
	default:
		v = b.sample(f)
	}
	for _, c := range company {
		// What is given is a value that is meant to be fine by itself.
		if value != "" {
			break
		}
		if strings.Contains("."+f.Path+".", "."+c.suffix+".") || strings.Contains(f.Path, "."+c.suffix+"[].") || strings.HasSuffix(c.suffix, "[]") && strings.Contains(f.Path, "."+c.suffix+".") {
			b.accompany(doc, f.Path, c.suffix, c.also)
		}
	}
	if empty, ok := v.(document); ok && len(empty) == 0 && b.inBase(f.Path) {
		return doc
	}
	b.set(doc, f.Path, v)
	return doc
}

// inBase says whether the base has the field.
func (b builder) inBase(path string) bool {
	doc := b.base()
	for part := range strings.SplitSeq(path, ".") {
		next, ok := doc[part].(document)
		if !ok {
			return false
		}
		doc = next
	}
	return true
}

func ending(path string) string {
	for end, value := range endings {
		if strings.HasSuffix(path, "."+end) {
			return value
		}
	}
	return ""
}

// accompany sets what goes with a field: beside it, or further up in the object.
func (b builder) accompany(doc document, path, suffix, also string) {
	name, value, _ := strings.Cut(also, "=")
	first, _, _ := strings.Cut(strings.TrimSuffix(name, "[]"), ".")
	first = strings.TrimSuffix(first, "[]")
	at := strings.Index(path, suffix)
	parent := path[:at]
	// The neighbour is in the message that the suffix begins in, or in one above it.
	for {
		if _, ok := b.byPath[parent+first]; ok {
			b.set(doc, parent+name, parse(b.t, value))
			return
		}
		cut := strings.LastIndex(strings.TrimSuffix(parent, "."), ".")
		if parent == "" {
			b.t.Fatalf("%s: %s is nowhere above", path, name)
		}
		parent = parent[:cut+1]
	}
}

// sample is a value of the field's type.
func (b builder) sample(f fieldtable.Field) any {
	if text, ok := minimal[typeOf(f)]; ok {
		v := parse(b.t, text)
		if strings.HasPrefix(f.Type, "list of ") {
			return []any{v}
		}
		return v
	}
	switch f.Type {
	case "string":
		return "x"
	case "int32", "int64", "IntOrString":
		return 1
	case "bool":
		return true
	case "bytes", "map of bytes":
		if f.Type == "bytes" {
			return "eA=="
		}
		return document{"k": "eA=="}
	case "map of string":
		return document{"a": "b"}
	case "Quantity":
		return "1"
	case "map of Quantity":
		return document{"cpu": "1"}
	case "Time":
		return "2026-01-02T03:04:05Z"
	case "MicroTime":
		return "2026-01-02T03:04:05.000000Z"
	case "list of string":
		return []any{"x"}
	case "list of int64":
		return []any{1}
	}
	if strings.HasPrefix(f.Type, "list of ") {
		return []any{document{}}
	}
	return document{}
}

// set puts a value at a path, and makes what is missing on the way.
func (b builder) set(doc document, path string, value any) {
	b.t.Helper()
	parts := strings.Split(path, ".")
	at, parent := "", "the object"
	for i, part := range parts {
		name, list := strings.CutSuffix(part, "[]")
		at = strings.TrimPrefix(at+"."+name, ".")
		for _, other := range b.others(parent, name) {
			delete(doc, other)
		}
		if i == len(parts)-1 {
			doc[name] = value
			return
		}
		f, ok := b.byPath[at]
		if !ok {
			b.t.Fatalf("%s: %s is no field", path, at)
		}
		if doc[name] == nil {
			doc[name] = b.sample(f)
		}
		if items, ok := doc[name].([]any); ok && len(items) == 0 {
			doc[name] = b.sample(f)
		}
		if list {
			doc = doc[name].([]any)[0].(document)
			at += "[]"
		} else {
			doc = doc[name].(document)
		}
		parent = typeOf(f)
	}
}

// others are the fields that cannot be set beside this one.
func (b builder) others(message, name string) []string {
	union := unions[message]
	if message == "Volume" && name != "name" {
		var sources []string
		for path, f := range b.byPath {
			if strings.HasSuffix(path, ".volumes[]."+f.Name) && f.Name != "name" {
				sources = append(sources, f.Name)
			}
		}
		union = sources
	}
	found := false
	var others []string
	for _, n := range union {
		if n == name {
			found = true
		} else {
			others = append(others, n)
		}
	}
	if !found {
		return nil
	}
	return others
}

func (b builder) encode(doc document) []byte {
	b.t.Helper()
	data, err := json.Marshal(maps.Clone(doc))
	if err != nil {
		b.t.Fatal(err)
	}
	return data
}
