package strategy_test

import (
	"testing"

	"dhow.dev/services/apiserver/internal/strategy"
)

// What reports a status is held to its arithmetic, as in Kubernetes.
func TestStatusMessages(t *testing.T) {
	const pod = `spec: {restartPolicy: Never, containers: [{name: c, image: i}]}`
	const rule = `spec: {restartPolicy: Never, containers: [{name: c, image: i, restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}]}]}`
	const all = `spec: {restartPolicy: Never, initContainers: [{name: s, image: i, restartPolicy: Always, restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}]}], containers: [{name: c, image: i}]}`
	const deployment = `spec: {selector: {matchLabels: {a: b}}, template: {metadata: {labels: {a: b}}, spec: {containers: [{name: c, image: i}]}}}`
	for name, c := range map[string]struct{ kind, spec, was, is, want string }{
		"more updated than all": {"deploy", deployment, ``, `status: {replicas: 1, updatedReplicas: 2}`, `status.updatedReplicas: Invalid value: 2: cannot be greater than status.replicas`},
		"available, not ready":  {"deploy", deployment, ``, `status: {replicas: 2, readyReplicas: 1, availableReplicas: 2}`, `status.availableReplicas: Invalid value: 2: cannot be greater than readyReplicas`},
		"collisions undone":     {"deploy", deployment, `status: {collisionCount: 2}`, `status: {collisionCount: 1}`, `status.collisionCount: Invalid value: 1: cannot be decremented`},
		"negative":              {"rs", deployment, ``, `status: {replicas: -1}`, "status.replicas: Invalid value: -1: must be greater than or equal to 0\nstatus.fullyLabeledReplicas: Invalid value: 0: cannot be greater than status.replicas\nstatus.readyReplicas: Invalid value: 0: cannot be greater than status.replicas\nstatus.availableReplicas: Invalid value: 0: cannot be greater than status.replicas"},
		"ended container runs": {"pod", pod, `status: {containerStatuses: [{name: c, image: i, imageID: i, ready: false, restartCount: 0, state: {terminated: {exitCode: 1}}}]}`,
			`status: {containerStatuses: [{name: c, image: i, imageID: i, ready: true, restartCount: 0, state: {running: {}}}]}`,
			`status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state`},
		"ended container runs by a rule": {"pod", rule, `status: {containerStatuses: [{name: c, image: i, imageID: i, ready: false, restartCount: 0, state: {terminated: {exitCode: 42}}}]}`,
			`status: {containerStatuses: [{name: c, image: i, imageID: i, ready: true, restartCount: 1, state: {running: {}}}]}`, ``},
		"ended container runs without a rule": {"pod", rule, `status: {containerStatuses: [{name: c, image: i, imageID: i, ready: false, restartCount: 0, state: {terminated: {exitCode: 41}}}]}`,
			`status: {containerStatuses: [{name: c, image: i, imageID: i, ready: true, restartCount: 1, state: {running: {}}}]}`,
			`status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state`},
		"ended container runs with all others": {"pod", all, `status: {containerStatuses: [{name: c, image: i, imageID: i, ready: false, restartCount: 0, state: {terminated: {exitCode: 0}}}]}`,
			`status: {containerStatuses: [{name: c, image: i, imageID: i, ready: true, restartCount: 1, state: {running: {}}}]}`, ``},
		"two addresses of a family": {"pod", pod, ``, `status: {podIPs: [{ip: 10.0.0.1}, {ip: 10.0.0.2}]}`, `status.podIPs: Invalid value: [{"ip":"10.0.0.1"},{"ip":"10.0.0.2"}]: may specify no more than one IP for each IP family`},
		"ending namespace":          {"ns", `{}`, ``, `status: {phase: Terminating}`, "status.phase: Invalid value: \"Terminating\": may only be 'Active' if `deletionTimestamp` is empty"},
		"node address twice":        {"node", `{}`, ``, `status: {addresses: [{type: InternalIP, address: 10.0.0.1}, {type: InternalIP, address: 10.0.0.1}]}`, `status.addresses[1]: Duplicate value: {"type":"InternalIP","address":"10.0.0.1"}`},
		"balancer of cluster IP":    {"svc", `spec: {ports: [{port: 80}]}`, ``, `status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}`, "status.loadBalancer.ingress: Forbidden: may only be used when `spec.type` is 'LoadBalancer'"},
		"fine":                      {"deploy", deployment, ``, `status: {replicas: 2, updatedReplicas: 2, readyReplicas: 2, availableReplicas: 1, unavailableReplicas: 1}`, ``},
	} {
		t.Run(name, func(t *testing.T) {
			s := newServer(t)
			old, errs, err := s.create(c.kind, c.spec)
			if err != nil || len(errs) > 0 {
				t.Fatal(err, errs)
			}
			write := func(document string) {
				res, obj := s.decode(c.kind, document)
				rules := s.set.For(res)
				rules.Default(obj)
				obj = strategy.PrepareForStatusUpdate(obj, old)
				rules.PrepareForStatusUpdate(obj, old)
				errs = rules.ValidateStatusUpdate(obj, old)
				old = obj
			}
			if c.was != "" {
				if write(c.was); len(errs) > 0 {
					t.Fatal(errs)
				}
			}
			write(c.is)
			want(t, errs, c.want)
		})
	}
}
