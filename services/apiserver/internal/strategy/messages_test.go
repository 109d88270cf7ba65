package strategy_test

import "testing"

const label = `a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')`

// The words are those that Kubernetes answers with.
func TestMessages(t *testing.T) {
	s := newServer(t)
	workload := func(spec string) string {
		return `{spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: "i:1"}]}}, ` + spec + `}}`
	}
	for name, c := range map[string]struct{ kind, document, want string }{
		"pod without containers":  {"pod", `spec: {}`, `spec.containers: Required value`},
		"image":                   {"pod", `spec: {containers: [{name: c}]}`, `spec.containers[0].image: Required value`},
		"image in a template":     {"deploy", `spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c}]}}}`, `spec.template.spec.containers[0].image: Required value`},
		"padded image":            {"pod", `spec: {containers: [{name: c, image: " i"}]}`, `spec.containers[0].image: Invalid value: " i": must not have leading or trailing whitespace`},
		"container name":          {"pod", `spec: {containers: [{name: C_1, image: i}]}`, `spec.containers[0].name: Invalid value: "C_1": ` + label},
		"same container twice":    {"pod", `spec: {containers: [{name: c, image: i}, {name: c, image: i}]}`, `spec.containers[1].name: Duplicate value: "c"`},
		"restart policy":          {"pod", `spec: {restartPolicy: Sometimes, containers: [{name: c, image: i}]}`, `spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure"`},
		"pull policy":             {"pod", `spec: {containers: [{name: c, image: i, imagePullPolicy: Maybe}]}`, `spec.containers[0].imagePullPolicy: Unsupported value: "Maybe": supported values: "Always", "IfNotPresent", "Never"`},
		"dns policy":              {"pod", `spec: {dnsPolicy: None, containers: [{name: c, image: i}]}`, "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"},
		"port":                    {"pod", `spec: {containers: [{name: c, image: i, ports: [{containerPort: 70000}]}]}`, `spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive`},
		"no port":                 {"pod", `spec: {containers: [{name: c, image: i, ports: [{name: web}]}]}`, `spec.containers[0].ports[0].containerPort: Required value`},
		"port protocol":           {"pod", `spec: {containers: [{name: c, image: i, ports: [{containerPort: 80, protocol: ICMP}]}]}`, `spec.containers[0].ports[0].protocol: Unsupported value: "ICMP": supported values: "SCTP", "TCP", "UDP"`},
		"host port twice":         {"pod", `spec: {containers: [{name: c, image: i, ports: [{containerPort: 80, hostPort: 80}, {containerPort: 81, hostPort: 80}]}]}`, `spec.containers[0].ports[1].hostPort: Duplicate value: "TCP//80"`},
		"host network port":       {"pod", `spec: {hostNetwork: true, containers: [{name: c, image: i, ports: [{containerPort: 80, hostPort: 81}]}]}`, "spec.containers[0].ports[0].containerPort: Invalid value: 80: must match `hostPort` when `hostNetwork` is true"},
		"env name":                {"pod", `spec: {containers: [{name: c, image: i, env: [{value: x}]}]}`, `spec.containers[0].env[0].name: Required value`},
		"env twice":               {"pod", `spec: {containers: [{name: c, image: i, env: [{name: A, value: x, valueFrom: {secretKeyRef: {name: s, key: k}}}]}]}`, "spec.containers[0].env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"},
		"env field":               {"pod", `spec: {containers: [{name: c, image: i, env: [{name: A, valueFrom: {fieldRef: {fieldPath: status.phase}}}]}]}`, `spec.containers[0].env[0].valueFrom.fieldRef.fieldPath: Unsupported value: "status.phase": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"`},
		"envFrom":                 {"pod", `spec: {containers: [{name: c, image: i, envFrom: [{}]}]}`, "spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`"},
		"mount of nothing":        {"pod", `spec: {containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /x}]}]}`, `spec.containers[0].volumeMounts[0].name: Not found: "v"`},
		"mounts at one place":     {"pod", `spec: {volumes: [{name: v}, {name: w}], containers: [{name: c, image: i, volumeMounts: [{name: v, mountPath: /x}, {name: w, mountPath: /x}]}]}`, `spec.containers[0].volumeMounts[1].mountPath: Invalid value: "/x": must be unique`},
		"volume of two types":     {"pod", `spec: {volumes: [{name: v, emptyDir: {}, hostPath: {path: /x}}], containers: [{name: c, image: i}]}`, `spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type`},
		"volume twice":            {"pod", `spec: {volumes: [{name: v}, {name: v}], containers: [{name: c, image: i}]}`, `spec.volumes[1].name: Duplicate value: "v"`},
		"file mode":               {"pod", `spec: {volumes: [{name: v, configMap: {name: c, defaultMode: 1000}}], containers: [{name: c, image: i}]}`, `spec.volumes[0].configMap.defaultMode: Invalid value: 1000: must be a number between 0 and 0777 (octal), both inclusive`},
		"file that climbs":        {"pod", `spec: {volumes: [{name: v, secret: {secretName: s, items: [{key: k, path: ../x}]}}], containers: [{name: c, image: i}]}`, `spec.volumes[0].secret.items[0].path: Invalid value: "../x": must not contain '..'`},
		"request over limit":      {"pod", `spec: {containers: [{name: c, image: i, resources: {requests: {cpu: 2}, limits: {cpu: 1}}}]}`, `spec.containers[0].resources.requests: Invalid value: "2": must be less than or equal to cpu limit of 1`},
		"negative request":        {"pod", `spec: {containers: [{name: c, image: i, resources: {requests: {memory: -1}}}]}`, `spec.containers[0].resources.requests[memory]: Invalid value: "-1": must be greater than or equal to 0`},
		"unknown resource":        {"pod", `spec: {containers: [{name: c, image: i, resources: {limits: {gpu: 1}}}]}`, "spec.containers[0].resources.limits[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified\nspec.containers[0].resources.limits[gpu]: Invalid value: \"gpu\": must be a standard resource for containers\nspec.containers[0].resources.requests[gpu]: Invalid value: \"gpu\": must be a standard resource type or fully qualified\nspec.containers[0].resources.requests[gpu]: Invalid value: \"gpu\": must be a standard resource for containers"},
		"part of a device":        {"pod", `spec: {containers: [{name: c, image: i, resources: {limits: {example.com/gpu: 500m}}}]}`, "spec.containers[0].resources.limits[example.com/gpu]: Invalid value: \"500m\": must be an integer\nspec.containers[0].resources.requests[example.com/gpu]: Invalid value: \"500m\": must be an integer"},
		"probe without handler":   {"pod", `spec: {containers: [{name: c, image: i, readinessProbe: {}}]}`, `spec.containers[0].readinessProbe: Required value: must specify a handler type`},
		"probe of two handlers":   {"pod", `spec: {containers: [{name: c, image: i, livenessProbe: {exec: {command: [x]}, tcpSocket: {port: 80}}}]}`, `spec.containers[0].livenessProbe.tcpSocket: Forbidden: may not specify more than 1 handler type`},
		"liveness successes":      {"pod", `spec: {containers: [{name: c, image: i, livenessProbe: {successThreshold: 2, tcpSocket: {port: 80}}}]}`, `spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1`},
		"probe of an init":        {"pod", `spec: {initContainers: [{name: a, image: i, startupProbe: {tcpSocket: {port: 80}}}], containers: [{name: c, image: i}]}`, `spec.initContainers[0].startupProbe: Forbidden: may not be set for init containers without restartPolicy=Always`},
		"privileges":              {"pod", `spec: {containers: [{name: c, image: i, securityContext: {privileged: true, allowPrivilegeEscalation: false}}]}`, "spec.containers[0].securityContext: Invalid value: \"<container security context>\": cannot set `allowPrivilegeEscalation` to false and `privileged` to true"},
		"seccomp":                 {"pod", `spec: {securityContext: {seccompProfile: {type: Localhost}}, containers: [{name: c, image: i}]}`, `spec.securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost`},
		"toleration":              {"pod", `spec: {tolerations: [{key: k, operator: Exists, value: v}], containers: [{name: c, image: i}]}`, "spec.tolerations[0].operator: Invalid value: \"v\": value must be empty when `operator` is 'Exists'"},
		"node affinity":           {"pod", `spec: {affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: []}}}, containers: [{name: c, image: i}]}`, `spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms: Required value: must have at least one node selector term`},
		"weight":                  {"pod", `spec: {affinity: {nodeAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 101, preference: {}}]}}, containers: [{name: c, image: i}]}`, `spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution[0].weight: Invalid value: 101: must be in the range 1-100`},
		"spread":                  {"pod", `spec: {topologySpreadConstraints: [{maxSkew: 0, topologyKey: zone, whenUnsatisfiable: Never}], containers: [{name: c, image: i}]}`, "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero\nspec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: \"Never\": supported values: \"DoNotSchedule\", \"ScheduleAnyway\""},
		"deadline":                {"pod", `spec: {activeDeadlineSeconds: 0, containers: [{name: c, image: i}]}`, `spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive`},
		"gated and placed":        {"pod", `spec: {nodeName: a, schedulingGates: [{name: g}], containers: [{name: c, image: i}]}`, `spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared`},
		"ephemeral container":     {"pod", `spec: {ephemeralContainers: [{name: e, image: i}], containers: [{name: c, image: i}]}`, `spec.ephemeralContainers: Forbidden: cannot be set on create`},
		"selector":                {"deploy", `spec: {template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}`, "spec.selector: Required value\nspec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`"},
		"empty selector":          {"rs", `spec: {selector: {}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}`, `spec.selector: Invalid value: {}: empty selector is invalid for deployment`},
		"selector and labels":     {"deploy", `spec: {selector: {matchLabels: {a: c}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}`, "spec.template.metadata.labels: Invalid value: {\"a\":\"b\"}: `selector` does not match template `labels`"},
		"template restarts":       {"deploy", `spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}`, `spec.template.spec.restartPolicy: Unsupported value: "Never": supported values: "Always"`},
		"replicas":                {"deploy", workload(`replicas: -1`), `spec.replicas: Invalid value: -1: must be greater than or equal to 0`},
		"nothing may move":        {"deploy", workload(`strategy: {rollingUpdate: {maxSurge: 0, maxUnavailable: 0}}`), "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0"},
		"more than all":           {"deploy", workload(`strategy: {rollingUpdate: {maxUnavailable: 101%}}`), `spec.strategy.rollingUpdate.maxUnavailable: Invalid value: "101%": must not be greater than 100%`},
		"recreate with numbers":   {"deploy", workload(`strategy: {type: Recreate, rollingUpdate: {maxSurge: 1}}`), "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'"},
		"progress deadline":       {"deploy", workload(`minReadySeconds: 600`), `spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds`},
		"service without ports":   {"svc", `spec: {selector: {a: b}}`, `spec.ports: Required value`},
		"service port name":       {"svc", `spec: {ports: [{port: 80}, {name: b, port: 81}]}`, `spec.ports[0].name: Required value`},
		"service port twice":      {"svc", `spec: {ports: [{name: a, port: 80}, {name: b, port: 80}]}`, `spec.ports[1]: Duplicate value: {"protocol":"TCP","port":80,"targetPort":0}`},
		"service type":            {"svc", `spec: {type: Best, ports: [{port: 80}]}`, `spec.type: Unsupported value: "Best": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"`},
		"node port of cluster IP": {"svc", `spec: {ports: [{port: 80, nodePort: 30000}]}`, "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"},
		"headless node port":      {"svc", `spec: {type: NodePort, clusterIP: None, ports: [{port: 80}]}`, `spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for NodePort services`},
		"external name":           {"svc", `spec: {type: ExternalName}`, `spec.externalName: Required value`},
		"local to the inside":     {"svc", `spec: {externalTrafficPolicy: Local, ports: [{port: 80}]}`, `spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services`},
		"affinity time":           {"svc", `spec: {sessionAffinity: ClientIP, sessionAffinityConfig: {clientIP: {timeoutSeconds: 90000}}, ports: [{port: 80}]}`, `spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 90000: must be greater than 0 and less than 86400`},
		"service name":            {"svc", `{metadata: {name: 1a}, spec: {ports: [{port: 80}]}}`, `metadata.name: Invalid value: "1a": a DNS-1035 label…`},
		"config key":              {"cm", `data: {"a b": x}`, `data[a b]: Invalid value: "a b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')`},
		"config key twice":        {"cm", `{data: {a: x}, binaryData: {a: eA==}}`, `data[a]: Invalid value: "a": duplicate of key present in binaryData`},
		"tls secret":              {"secret", `type: kubernetes.io/tls`, "data[tls.crt]: Required value\ndata[tls.key]: Required value"},
		"pull secret":             {"secret", `{type: kubernetes.io/dockerconfigjson, data: {.dockerconfigjson: eA==}}`, `data[.dockerconfigjson]: Invalid value: "<secret contents redacted>": invalid character 'x' looking for beginning of value`},
		"taint twice":             {"node", `spec: {taints: [{key: k, effect: NoSchedule}, {key: k, value: v, effect: NoSchedule}]}`, `spec.taints[1]: Duplicate value: {"key":"k","value":"v","effect":"NoSchedule"}: taints must be unique by key and effect pair`},
		"taint effect":            {"node", `spec: {taints: [{key: k, effect: Never}]}`, `spec.taints[0].effect: Unsupported value: "Never": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"`},
		"slice of no type":        {"endpointslice", `endpoints: [{addresses: []}]`, "addressType: Required value\nendpoints[0].addresses: Required value"},
		"empty subset":            {"endpoints", `subsets: [{ports: [{port: 80}]}]`, "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"},
		"loopback endpoint":       {"endpoints", `subsets: [{addresses: [{ip: 127.0.0.1}]}]`, `subsets[0].addresses[0].ip: Invalid value: "127.0.0.1": may not be in the loopback range (127.0.0.0/8, ::1/128)`},
		"lease":                   {"lease", `spec: {leaseDurationSeconds: 0}`, `spec.leaseDurationSeconds: Invalid value: 0: must be greater than 0`},
		"system priority":         {"pc", `{metadata: {name: system-mine}, value: 1}`, `metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only`},
		"priority of users":       {"pc", `value: 1000000001`, `value: Forbidden: maximum allowed value of a user defined priority is 1000000000`},
		"event elsewhere":         {"events", `involvedObject: {kind: Pod, apiVersion: v1, namespace: other, name: p}`, `involvedObject.namespace: Invalid value: "other": does not match event.namespace`},
		"host alias":              {"pod", `spec: {hostAliases: [{ip: x}], containers: [{name: c, image: i}]}`, `spec.hostAliases[0].ip: Invalid value: "x": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)`},
		"daemon set":              {"ds", `spec: {selector: {matchLabels: {a: b}}, updateStrategy: {rollingUpdate: {maxUnavailable: 1, maxSurge: 1}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c}]}}}`, "spec.template.spec.containers[0].image: Required value\nspec.updateStrategy.rollingUpdate.maxSurge: Invalid value: 1: may not be set when maxUnavailable is non-zero"},
		"stateful set":            {"sts", `spec: {podManagementPolicy: Odd, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}`, `spec.podManagementPolicy: Unsupported value: "Odd": supported values: "OrderedReady", "Parallel"`},
		"job that goes on":        {"job", `spec: {template: {spec: {containers: [{name: c, image: i}]}}}`, `spec.template.spec.restartPolicy: Required value: valid values: "OnFailure", "Never"`},
		"indexed job":             {"job", `spec: {completionMode: Indexed, parallelism: 2, template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}`, `spec.completions: Required value: when completion mode is Indexed`},
		"cron job":                {"cj", `spec: {schedule: "* * *", jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: i}]}}}}}`, `spec.schedule: Invalid value: "* * *": expected exactly 5 fields, found 3: [* * *]`},
		"controller of nothing":   {"rc", `spec: {}`, "spec.selector: Required value\nspec.template: Required value"},
		"claim":                   {"pvc", `spec: {resources: {requests: {storage: 1Gi}}}`, `spec.accessModes: Required value: at least 1 access mode is required`},
		"budget":                  {"pdb", `spec: {minAvailable: 101%}`, `spec.minAvailable: Invalid value: "101%": must not be greater than 100%`},
		"autoscaler":              {"hpa", `spec: {minReplicas: 3, maxReplicas: 2, scaleTargetRef: {kind: Deployment, name: d}}`, "spec.maxReplicas: Invalid value: 2: must be greater than or equal to `minReplicas`"},
		"role":                    {"role", `rules: [{apiGroups: [""], resources: [pods]}]`, `rules[0].verbs: Required value: verbs must contain at least one value`},
		"role binding":            {"rolebinding", `{roleRef: {kind: Role, name: r}, subjects: [{kind: Robot, name: a}]}`, `subjects[0].kind: Unsupported value: "Robot": supported values: "ServiceAccount", "User", "Group"`},
		"storage class":           {"sc", `reclaimPolicy: Recycle`, "provisioner: Required value\nreclaimPolicy: Unsupported value: \"Recycle\": supported values: \"Delete\", \"Retain\""},
		"stored template":         {"podtemplates", `template: {spec: {containers: [{name: c}]}}`, `template.spec.containers[0].image: Required value`},
	} {
		t.Run(name, func(t *testing.T) {
			s := s.in(t)
			_, errs, err := s.create(c.kind, c.document)
			if err != nil {
				t.Fatal(err)
			}
			want(t, errs, c.want)
		})
	}
}

func TestUpdateMessages(t *testing.T) {
	s := newServer(t)
	const pod = `spec: {containers: [{name: c, image: "i:1"}], tolerations: [{key: k, operator: Exists}], activeDeadlineSeconds: 10}`
	deployment := func(spec string) string {
		return `spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b, c: d}}, spec: {containers: [{name: c, image: "i:1"}]}}` + spec + `}`
	}
	for name, c := range map[string]struct{ kind, from, to, want string }{
		"image":             {"pod", pod, `spec: {containers: [{name: c, image: "i:2"}], tolerations: [{key: k, operator: Exists}], activeDeadlineSeconds: 5}`, ""},
		"command":           {"pod", pod, `spec: {containers: [{name: c, image: "i:1", command: [x]}], tolerations: [{key: k, operator: Exists}], activeDeadlineSeconds: 10}`, "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)…"},
		"container":         {"pod", pod, `spec: {containers: [{name: c, image: "i:1"}, {name: d, image: "i:1"}]}`, `spec.containers: Forbidden: pod updates may not add or remove containers`},
		"deadline":          {"pod", pod, `spec: {containers: [{name: c, image: "i:1"}], tolerations: [{key: k, operator: Exists}], activeDeadlineSeconds: 11}`, `spec.activeDeadlineSeconds: Invalid value: 11: must be less than or equal to previous value`},
		"no toleration":     {"pod", pod, `spec: {containers: [{name: c, image: "i:1"}], activeDeadlineSeconds: 10}`, `spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds`},
		"more tolerations":  {"pod", pod, `spec: {containers: [{name: c, image: "i:1"}], tolerations: [{key: k, operator: Exists}, {key: l, operator: Exists}], activeDeadlineSeconds: 10}`, ""},
		"new gate":          {"pod", `spec: {containers: [{name: c, image: i}]}`, `spec: {schedulingGates: [{name: g}], containers: [{name: c, image: i}]}`, `spec.schedulingGates[0]: Forbidden: only deletion is allowed, but found new scheduling gate 'g'`},
		"gate gone":         {"pod", `spec: {schedulingGates: [{name: g}], containers: [{name: c, image: i}]}`, `spec: {nodeSelector: {a: b}, containers: [{name: c, image: i}]}`, ""},
		"gated, moved":      {"pod", `spec: {nodeSelector: {a: b}, schedulingGates: [{name: g}], containers: [{name: c, image: i}]}`, `spec: {nodeSelector: {a: c}, schedulingGates: [{name: g}], containers: [{name: c, image: i}]}`, `spec.nodeSelector: Invalid value: {"a":"c"}: only additions to spec.nodeSelector are allowed (no mutations or deletions)`},
		"selector":          {"deploy", deployment(""), `spec: {selector: {matchLabels: {c: d}}, template: {metadata: {labels: {a: b, c: d}}, spec: {containers: [{name: c, image: "i:1"}]}}}`, `spec.selector: Invalid value: {"matchLabels":{"c":"d"}}: field is immutable`},
		"replicas":          {"deploy", deployment(""), deployment(", replicas: 7"), ""},
		"cluster IP":        {"svc", `spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7], ports: [{port: 80}]}`, `spec: {clusterIP: 10.96.0.8, clusterIPs: [10.96.0.8], ports: [{port: 80}]}`, `spec.clusterIPs[0]: Invalid value: ["10.96.0.8"]: may not change once set`},
		"to the outside":    {"svc", `spec: {ports: [{port: 80}]}`, `spec: {type: NodePort, ports: [{port: 80}]}`, ""},
		"back inside":       {"svc", `spec: {type: NodePort, ports: [{port: 80}]}`, `spec: {type: ClusterIP, externalTrafficPolicy: Cluster, ports: [{port: 80}]}`, ""},
		"no balancer":       {"svc", `spec: {type: LoadBalancer, loadBalancerClass: a/b, ports: [{port: 80}]}`, `spec: {allocateLoadBalancerNodePorts: true, loadBalancerClass: a/b, externalTrafficPolicy: Cluster, ports: [{port: 80}]}`, ""},
		"frozen config":     {"cm", `{immutable: true, data: {a: b}}`, `{immutable: true, data: {a: c}}`, "data: Forbidden: field is immutable when `immutable` is set"},
		"thawed config":     {"cm", `{immutable: true, data: {a: b}}`, `{data: {a: b}}`, "immutable: Forbidden: field is immutable when `immutable` is set"},
		"secret type":       {"secret", `type: a/b`, `type: c/d`, `type: Invalid value: "c/d": field is immutable`},
		"frozen secret":     {"secret", `{immutable: true, data: {a: eA==}}`, `{immutable: true}`, "data: Forbidden: field is immutable when `immutable` is set"},
		"priority":          {"pc", `value: 1`, `value: 2`, `value: Forbidden: may not be changed in an update.`},
		"preemption":        {"pc", `value: 1`, `{value: 1, preemptionPolicy: Never}`, `preemptionPolicy: Invalid value: "Never": field is immutable`},
		"address type":      {"endpointslice", `{addressType: IPv4, endpoints: []}`, `{addressType: IPv6, endpoints: []}`, `addressType: Invalid value: "IPv6": field is immutable`},
		"provider":          {"node", `spec: {providerID: a}`, `spec: {providerID: b}`, `spec.providerID: Forbidden: node updates may not change providerID except from "" to valid`},
		"namespace stays":   {"ns", `{}`, `spec: {finalizers: []}`, ""},
		"stateful set":      {"sts", `spec: {serviceName: a, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}`, `spec: {serviceName: b, selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}`, `spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden`},
		"role of a binding": {"rolebinding", `{roleRef: {kind: Role, name: r}}`, `{roleRef: {kind: Role, name: s}}`, `roleRef: Invalid value: {"apiGroup":"rbac.authorization.k8s.io","kind":"Role","name":"s"}: cannot change roleRef`},
		"provisioner":       {"sc", `provisioner: a`, `provisioner: b`, `provisioner: Forbidden: updates to provisioner are forbidden.`},
	} {
		t.Run(name, func(t *testing.T) {
			_, errs := s.in(t).update(c.kind, c.from, c.to)
			want(t, errs, c.want)
		})
	}
}
