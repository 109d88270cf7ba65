package admission

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// fine is what the level restricted asks of a container, and of its pod.
const (
	fine    = `{allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}`
	finePod = `runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}`
)

// TestPodSecurityChecks tries every control of the standards: what it says, in Kubernetes' words, and from which version on. The pods are otherwise fine, so that
// nothing but the control speaks.
func TestPodSecurityChecks(t *testing.T) {
	spec := func(pod, container string) string {
		return `spec: {securityContext: {` + finePod + `}, containers: [{name: a, securityContext: ` + fine + container + `}]` + pod + `}`
	}
	security := func(container string) string {
		return `spec: {securityContext: {` + finePod + `}, containers: [{name: a, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}` + container + `}}]}`
	}
	podSecurity := func(pod string) string {
		return `spec: {securityContext: {` + pod + `}, containers: [{name: a, securityContext: ` + fine + `}, {name: b, securityContext: ` + fine + `}]}`
	}
	users := func(security string) string {
		return `spec: {hostUsers: false, securityContext: {seccompProfile: {type: RuntimeDefault}` + security + `}, containers: [{name: a, securityContext: ` + fine + `}]}`
	}
	for name, c := range map[string]struct {
		pod string
		// baseline and restricted are what the levels say, in the newest version if none is given.
		baseline, restricted string
		version              int
	}{
		"fine":              {pod: spec("", "")},
		"host namespaces":   {pod: spec(", hostNetwork: true, hostPID: true, hostIPC: true", ""), baseline: "host namespaces (hostNetwork=true, hostPID=true, hostIPC=true)", restricted: "host namespaces (hostNetwork=true, hostPID=true, hostIPC=true)"},
		"host path":         {pod: spec(`, volumes: [{name: v, hostPath: {path: /}}, {name: w, hostPath: {path: /}}]`, ""), baseline: `hostPath volumes (volumes "v", "w")`, restricted: `restricted volume types (volumes "v", "w" use restricted volume type "hostPath")`},
		"other volumes":     {pod: spec(`, volumes: [{name: v, nfs: {server: s, path: /}}, {name: w, image: {reference: i}}]`, ""), restricted: `restricted volume types (volumes "v", "w" use restricted volume types "nfs", "unknown")`},
		"fine volumes":      {pod: spec(`, volumes: [{name: a, configMap: {name: c}}, {name: b, csi: {driver: d}}, {name: c, downwardAPI: {}}, {name: d, emptyDir: {}}, {name: e, ephemeral: {}}, {name: f, persistentVolumeClaim: {claimName: c}}, {name: g, projected: {}}, {name: h, secret: {secretName: s}}]`, "")},
		"host port":         {pod: spec("", ", ports: [{containerPort: 80, hostPort: 8080}, {containerPort: 81, hostPort: 81}, {containerPort: 82}]"), baseline: `hostPort (container "a" uses hostPorts 81, 8080)`, restricted: `hostPort (container "a" uses hostPorts 81, 8080)`},
		"probe host":        {pod: spec("", ", livenessProbe: {httpGet: {port: 80, host: x}}, lifecycle: {preStop: {tcpSocket: {port: 80, host: z}}}"), baseline: `probe or lifecycle host (container "a" uses probe or lifecycle hosts "x", "z")`, restricted: `probe or lifecycle host (container "a" uses probe or lifecycle hosts "x", "z")`},
		"probe host 1.33":   {version: 33, pod: spec("", ", livenessProbe: {httpGet: {port: 80, host: x}}")},
		"privileged":        {pod: `spec: {containers: [{name: a, securityContext: {privileged: true}}]}`, baseline: `privileged (container "a" must not set securityContext.privileged=true)`, restricted: `privileged (container "a" must not set securityContext.privileged=true), allowPrivilegeEscalation != false (container "a" must set securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container "a" must set securityContext.capabilities.drop=["ALL"]), runAsNonRoot != true (pod or container "a" must set securityContext.runAsNonRoot=true), seccompProfile (pod or container "a" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")`},
		"escalation 1.7":    {version: 7, pod: `spec: {securityContext: {runAsNonRoot: true}, containers: [{name: a}]}`},
		"capabilities":      {pod: `spec: {securityContext: {` + finePod + `}, initContainers: [{name: i, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL], add: [SYS_ADMIN, NET_BIND_SERVICE, CHOWN]}}}], containers: [{name: a, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [NET_RAW]}}}]}`, baseline: `non-default capabilities (container "i" must not include "SYS_ADMIN" in securityContext.capabilities.add)`, restricted: `unrestricted capabilities (container "a" must set securityContext.capabilities.drop=["ALL"]; container "i" must not include "CHOWN", "SYS_ADMIN" in securityContext.capabilities.add)`},
		"capabilities 1.21": {version: 21, pod: `spec: {securityContext: {` + finePod + `}, containers: [{name: a, securityContext: {allowPrivilegeEscalation: false, capabilities: {add: [SYS_ADMIN, CHOWN]}}}]}`, baseline: `non-default capabilities (container "a" must not include "SYS_ADMIN" in securityContext.capabilities.add)`, restricted: `non-default capabilities (container "a" must not include "SYS_ADMIN" in securityContext.capabilities.add)`},
		"apparmor": {
			pod:      `{metadata: {annotations: {container.apparmor.security.beta.kubernetes.io/a: unconfined, container.apparmor.security.beta.kubernetes.io/b: runtime/default}}, spec: {securityContext: {` + finePod + `, appArmorProfile: {type: Unconfined}}, containers: [{name: a, securityContext: ` + fine + `}]}}`,
			baseline: `forbidden AppArmor profiles (pod and annotation must not set AppArmor profile type to "Unconfined", "container.apparmor.security.beta.kubernetes.io/a="unconfined"")`, restricted: `forbidden AppArmor profiles (pod and annotation must not set AppArmor profile type to "Unconfined", "container.apparmor.security.beta.kubernetes.io/a="unconfined"")`,
		},
		"proc mount":          {pod: security(", procMount: Unmasked"), baseline: `procMount (container "a" must not set securityContext.procMount to "Unmasked")`, restricted: `procMount (container "a" must not set securityContext.procMount to "Unmasked")`},
		"proc mount, users":   {pod: `spec: {hostUsers: false, securityContext: {seccompProfile: {type: RuntimeDefault}}, containers: [{name: a, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, procMount: Unmasked}}]}`, restricted: `procMount (container "a" must not set securityContext.procMount to "Unmasked")`},
		"proc mount 1.34":     {version: 34, pod: `spec: {hostUsers: false, securityContext: {` + finePod + `}, containers: [{name: a, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}, procMount: Unmasked}}]}`, baseline: `procMount (container "a" must not set securityContext.procMount to "Unmasked")`, restricted: `procMount (container "a" must not set securityContext.procMount to "Unmasked")`},
		"selinux":             {pod: security(", seLinuxOptions: {type: x_t, user: u, role: r}"), baseline: `seLinuxOptions (container "a" set forbidden securityContext.seLinuxOptions: type "x_t"; user may not be set; role may not be set)`, restricted: `seLinuxOptions (container "a" set forbidden securityContext.seLinuxOptions: type "x_t"; user may not be set; role may not be set)`},
		"selinux engine":      {pod: security(", seLinuxOptions: {type: container_engine_t}")},
		"selinux 1.30":        {version: 30, pod: security(", seLinuxOptions: {type: container_engine_t}"), baseline: `seLinuxOptions (container "a" set forbidden securityContext.seLinuxOptions: type "container_engine_t")`, restricted: `seLinuxOptions (container "a" set forbidden securityContext.seLinuxOptions: type "container_engine_t")`},
		"seccomp":             {pod: podSecurity("runAsNonRoot: true, seccompProfile: {type: Unconfined}"), baseline: `seccompProfile (pod must not set securityContext.seccompProfile.type to "Unconfined")`, restricted: `seccompProfile (pod must not set securityContext.seccompProfile.type to "Unconfined")`},
		"no seccomp":          {pod: podSecurity("runAsNonRoot: true"), restricted: `seccompProfile (pod or containers "a", "b" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")`},
		"seccomp 1.18":        {version: 18, pod: `{metadata: {annotations: {seccomp.security.alpha.kubernetes.io/pod: unconfined, container.seccomp.security.alpha.kubernetes.io/none: unconfined}}, ` + podSecurity("runAsNonRoot: true") + `}`, baseline: `seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod="unconfined")`, restricted: `seccompProfile (forbidden annotation seccomp.security.alpha.kubernetes.io/pod="unconfined")`},
		"sysctls":             {pod: podSecurity(finePod + `, sysctls: [{name: kernel.msgmax, value: "1"}, {name: net.ipv4.tcp_rmem, value: "1"}]`), baseline: "forbidden sysctls (kernel.msgmax)", restricted: "forbidden sysctls (kernel.msgmax)"},
		"sysctls 1.31":        {version: 31, pod: podSecurity(finePod + `, sysctls: [{name: net.ipv4.tcp_rmem, value: "1"}]`), baseline: "forbidden sysctls (net.ipv4.tcp_rmem)", restricted: "forbidden sysctls (net.ipv4.tcp_rmem)"},
		"host process":        {pod: podSecurity(finePod + `, windowsOptions: {hostProcess: true}`), baseline: "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)", restricted: "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)"},
		"root by pod":         {pod: `spec: {securityContext: {runAsNonRoot: false, seccompProfile: {type: Localhost}}, containers: [{name: a, securityContext: {allowPrivilegeEscalation: false, runAsNonRoot: true, capabilities: {drop: [ALL]}}}]}`, restricted: "runAsNonRoot != true (pod must not set securityContext.runAsNonRoot=false)"},
		"root by container":   {pod: security(", runAsNonRoot: false"), restricted: `runAsNonRoot != true (container "a" must not set securityContext.runAsNonRoot=false)`},
		"root by number":      {pod: podSecurity(finePod + ", runAsUser: 0"), restricted: "runAsUser=0 (pod must not set runAsUser=0)"},
		"number 1.22":         {version: 22, pod: podSecurity(finePod + ", runAsUser: 0")},
		"root among users":    {pod: users(", runAsNonRoot: false, runAsUser: 0")},
		"among users 1.34":    {version: 34, pod: users(", runAsNonRoot: false, runAsUser: 0"), restricted: "runAsNonRoot != true (pod must not set securityContext.runAsNonRoot=false), runAsUser=0 (pod must not set runAsUser=0)"},
		"windows":             {pod: `spec: {os: {name: windows}, securityContext: {runAsNonRoot: true}, containers: [{name: a}]}`},
		"windows 1.24":        {version: 24, pod: `spec: {os: {name: windows}, securityContext: {runAsNonRoot: true}, containers: [{name: a, securityContext: {capabilities: {drop: [ALL]}}}]}`, restricted: `allowPrivilegeEscalation != false (container "a" must set securityContext.allowPrivilegeEscalation=false), seccompProfile (pod or container "a" must set securityContext.seccompProfile.type to "RuntimeDefault" or "Localhost")`},
		"ephemeral container": {pod: `spec: {securityContext: {` + finePod + `}, containers: [{name: a, securityContext: ` + fine + `}], ephemeralContainers: [{name: e, securityContext: {privileged: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}}]}`, baseline: `privileged (container "e" must not set securityContext.privileged=true)`, restricted: `privileged (container "e" must not set securityContext.privileged=true)`},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{}
			if err := yaml.UnmarshalStrict([]byte(c.pod), pod); err != nil {
				t.Fatal(err)
			}
			version := c.version
			if version == 0 {
				version = latest
			}
			for l, want := range map[level]string{privileged: "", baseline: c.baseline, restricted: c.restricted} {
				if got := (policy{level: l, version: version}).violations(&pod.ObjectMeta, &pod.Spec); got != want {
					t.Errorf("%s:\ngot  %s\nwant %s", l, got, want)
				}
			}
		})
	}
}

func TestPolicyOfLabels(t *testing.T) {
	for label, c := range map[string]struct {
		value string
		want  string
		wrong bool
	}{
		"enforce":         {"baseline", "baseline:latest", false},
		"audit":           {"restricted", "restricted:latest", false},
		"warn":            {"strict", "privileged:latest", true},
		"enforce-version": {"v1.28", "privileged:v1.28", false},
		"audit-version":   {"1.28", "privileged:latest", true},
		"warn-version":    {"v1.028", "privileged:latest", true},
	} {
		mode := label
		if i := len(label) - len("-version"); i > 0 && label[i:] == "-version" {
			mode = label[:i]
		}
		got, errs := policyOf(map[string]string{securityPrefix + label: c.value}, mode)
		if got.String() != c.want || (len(errs) > 0) != c.wrong {
			t.Errorf("%s=%s: %s %v", label, c.value, got, errs)
		}
	}
	if p, _ := policyOf(map[string]string{securityPrefix + "enforce": "strict"}, modeEnforce); p.level != restricted {
		t.Errorf("an unreadable level enforces %s", p)
	}
}
