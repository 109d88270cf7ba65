//go:build e2e

package nodeagent_test

import (
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/protobuf/proto"

	certificatesv1beta1 "dhow.dev/gen/go/dhow/certificates/v1beta1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	runtimev1 "dhow.dev/gen/go/dhow/runtime/v1"
	"dhow.dev/services/node-agent/internal/apitest"
)

// pods are started all together; each is looked at by a part of TestTheWholePodOnTheRealRuntime.
var wholePods = []string{
	// Order is written down outside of the pod.
	`{metadata: {name: sidecars}, spec: {restartPolicy: Never, terminationGracePeriodSeconds: 30, volumes: [{name: log, hostPath: {path: %[1]s}}],
	  initContainers: [
	    {name: first, image: "dhow.test/busybox:1", restartPolicy: Always, volumeMounts: [{name: log, mountPath: /log}],
	     command: [sh, -c, "trap 'echo first stopped >> /log/sidecars; exit 0' TERM; echo first >> /log/sidecars; touch /up; while true; do usleep 20000; done"],
	     startupProbe: {exec: {command: [test, -e, /up]}, periodSeconds: 1}},
	    {name: once, image: "dhow.test/busybox:1", volumeMounts: [{name: log, mountPath: /log}], command: [sh, -c, "echo once >> /log/sidecars"]},
	    {name: second, image: "dhow.test/busybox:1", restartPolicy: Always, volumeMounts: [{name: log, mountPath: /log}],
	     command: [sh, -c, "trap 'echo second stopped >> /log/sidecars; exit 0' TERM; echo second >> /log/sidecars; touch /up; while true; do usleep 20000; done"],
	     startupProbe: {exec: {command: [test, -e, /up]}, periodSeconds: 1}}],
	  containers: [{name: main, image: "dhow.test/busybox:1", volumeMounts: [{name: log, mountPath: /log}], command: [sh, -c, "echo main >> /log/sidecars"]}]}}`,
	`{metadata: {name: rules}, spec: {restartPolicy: Always, volumes: [{name: v, emptyDir: {}}], containers: [{name: c, image: "dhow.test/busybox:1", restartPolicy: Never,
	  restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [42]}}], volumeMounts: [{name: v, mountPath: /v}],
	  command: [sh, -c, "test -e /v/ran && exit 3; touch /v/ran; exit 42"]}]}}`,
	// What stays of it is in the volume: who started when, and with which address.
	`{metadata: {name: inplace}, spec: {restartPolicy: Never, terminationGracePeriodSeconds: 0, volumes: [{name: v, emptyDir: {}}],
	  initContainers: [
	    {name: once, image: "dhow.test/busybox:1", volumeMounts: [{name: v, mountPath: /v}], command: [sh, -c, "echo once >> /v/order"]},
	    {name: side, image: "dhow.test/busybox:1", restartPolicy: Always, volumeMounts: [{name: v, mountPath: /v}], command: [sh, -c, "echo side >> /v/order; touch /up; exec sleep 1000000"],
	     startupProbe: {exec: {command: [test, -e, /up]}, periodSeconds: 1}}],
	  containers: [
	    {name: asks, image: "dhow.test/busybox:1", volumeMounts: [{name: v, mountPath: /v}], env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}],
	     restartPolicy: Never, restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}],
	     command: [sh, -c, "echo asks >> /v/order; echo $IP >> /v/ips; test -e /v/ran && exec sleep 1000000; touch /v/ran; until test -e /v/other; do usleep 20000; done; exit 42"]},
	    {name: other, image: "dhow.test/busybox:1", volumeMounts: [{name: v, mountPath: /v}], command: [sh, -c, "touch /v/other; exec sleep 1000000"]}]}}`,
	`{metadata: {name: secure}, spec: {terminationGracePeriodSeconds: 0, securityContext: {runAsUser: 1000, runAsGroup: 2000, runAsNonRoot: true, fsGroup: 3000, supplementalGroups: [4000],
	  sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "80"}], seccompProfile: {type: RuntimeDefault}},
	  volumes: [{name: v, emptyDir: {}}], containers: [
	    {name: locked, image: "dhow.test/busybox:1", command: [sleep, "1000000"], volumeMounts: [{name: v, mountPath: /v}],
	     securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}},
	    {name: other, image: "dhow.test/busybox:1", command: [sleep, "1000000"], securityContext: {runAsUser: 1001, capabilities: {add: [SYS_TIME], drop: [CHOWN]}, seccompProfile: {type: Localhost, localhostProfile: nomkdir.json}}}]}}`,
	`{metadata: {name: mighty}, spec: {terminationGracePeriodSeconds: 0, hostPID: true, hostIPC: true, hostNetwork: true, dnsPolicy: Default, hostAliases: [{ip: 192.0.2.7, hostnames: [seven, siete]}],
	  containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], securityContext: {privileged: true}}]}}`,
	`{metadata: {name: asking}, spec: {terminationGracePeriodSeconds: 0, hostNetwork: true, dnsPolicy: ClusterFirstWithHostNet, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"]}]}}`,
	`{metadata: {name: users}, spec: {terminationGracePeriodSeconds: 0, hostUsers: false, volumes: [{name: v, emptyDir: {}}],
	  containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], volumeMounts: [{name: v, mountPath: /v}], securityContext: {procMount: Unmasked}}]}}`,
	`{metadata: {name: names}, spec: {terminationGracePeriodSeconds: 0, shareProcessNamespace: true, hostname: host, subdomain: sub, setHostnameAsFQDN: true,
	  hostAliases: [{ip: 192.0.2.8, hostnames: [eight]}], dnsPolicy: None, dnsConfig: {nameservers: [192.0.2.53], searches: [a.example], options: [{name: ndots, value: "2"}]},
	  containers: [{name: a, image: "dhow.test/busybox:1", command: [sleep, "1000000"]}, {name: b, image: "dhow.test/busybox:1", command: [sleep, "2000000"]}]}}`,
	`{metadata: {name: named}, spec: {terminationGracePeriodSeconds: 0, hostnameOverride: my.own.name, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"]}]}}`,
	`{metadata: {name: words}, spec: {restartPolicy: Never, containers: [
	  {name: file, image: "dhow.test/busybox:1", terminationMessagePath: /tmp/last, command: [sh, -c, "head -c 5000 /dev/zero | tr '\\0' x > /tmp/last; exit 0"]},
	  {name: log, image: "dhow.test/busybox:1", terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, "head -c 3000 /dev/zero | tr '\\0' y; exit 5"]},
	  {name: quiet, image: "dhow.test/busybox:1", terminationMessagePolicy: FallbackToLogsOnError, command: [sh, -c, "echo fine; exit 0"]},
	  {name: signal, image: "dhow.test/busybox:1", command: [sh, -c, "sleep 1000 & kill -KILL $!; wait $!"]}]}}`,
	`{metadata: {name: missing}, spec: {terminationGracePeriodSeconds: 0, containers: [{name: c, image: "dhow.test/busybox:1", command: [/no/such/program]}]}}`,
	`{metadata: {name: slow}, spec: {terminationGracePeriodSeconds: 0, activeDeadlineSeconds: 2, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"]}]}}`,
	`{metadata: {name: hooks}, spec: {terminationGracePeriodSeconds: 30, volumes: [{name: log, hostPath: {path: %[1]s}}], containers: [
	  {name: c, image: "dhow.test/busybox:1", volumeMounts: [{name: log, mountPath: /log}],
	   command: [sh, -c, "trap 'echo USR1 >> /log/hooks; exit 0' USR1; mkdir /w; echo ok > /w/ok; httpd -p 8080 -h /w; while true; do usleep 20000; done"],
	   startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 60},
	   readinessProbe: {httpGet: {path: /ok, port: 8080}, periodSeconds: 1},
	   lifecycle: {stopSignal: SIGUSR1, postStart: {exec: {command: [sh, -c, "echo postStart >> /log/hooks"]}}, preStop: {exec: {command: [sh, -c, "echo preStop >> /log/hooks"]}}}},
	  {name: sleepy, image: "dhow.test/busybox:1", command: [sh, -c, "trap 'exit 0' TERM; while true; do usleep 20000; done"], lifecycle: {preStop: {sleep: {seconds: 1}}}}]}}`,
	`{metadata: {name: unwell}, spec: {terminationGracePeriodSeconds: 600, containers: [{name: c, image: "dhow.test/busybox:1", command: [sh, -c, "trap '' TERM; while true; do usleep 20000; done"],
	  livenessProbe: {exec: {command: [test, -e, /healthy]}, periodSeconds: 1, failureThreshold: 1, terminationGracePeriodSeconds: 1}}]}}`,
	`{metadata: {name: sized}, spec: {terminationGracePeriodSeconds: 0, resources: {limits: {memory: 96Mi}}, containers: [
	  {name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {memory: 32Mi}}},
	  {name: again, image: "dhow.test/busybox:1", command: [sleep, "1000000"], resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}], resources: {requests: {memory: 16Mi}, limits: {memory: 16Mi}}},
	  {name: unbound, image: "dhow.test/busybox:1", command: [sleep, "1000000"]}]}}`,
	`{metadata: {name: classy}, spec: {terminationGracePeriodSeconds: 0, runtimeClassName: real, overhead: {memory: 8Mi}, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], resources: {limits: {memory: 16Mi}}}]}}`,
	`{metadata: {name: classless}, spec: {terminationGracePeriodSeconds: 0, runtimeClassName: unreal, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"]}]}}`,
	`{metadata: {name: filed}, spec: {terminationGracePeriodSeconds: 0, volumes: [{name: v, emptyDir: {}}],
	  initContainers: [{name: i, image: "dhow.test/busybox:1", volumeMounts: [{name: v, mountPath: /v}], command: [sh, -c, "echo \"WORD='of the init container'\" > /v/env"]}],
	  containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], env: [{name: WORD, valueFrom: {fileKeyRef: {volumeName: v, path: env, key: WORD}}}]}]}}`,
	`{metadata: {name: astray}, spec: {terminationGracePeriodSeconds: 0, volumes: [{name: v, emptyDir: {}}],
	  initContainers: [{name: i, image: "dhow.test/busybox:1", volumeMounts: [{name: v, mountPath: /v}], command: [sh, -c, "ln -s /etc/passwd /v/away"]}],
	  containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], env: [{name: WORD, valueFrom: {fileKeyRef: {volumeName: v, path: away, key: WORD, optional: true}}}]}]}}`,
	// What is mounted in one of them while all run: %[2]s is in the agent's folder, which is shared.
	`{metadata: {name: mounts}, spec: {terminationGracePeriodSeconds: 0, volumes: [{name: v, hostPath: {path: %[2]s, type: DirectoryOrCreate}}], containers: [
	  {name: giver, image: "dhow.test/busybox:1", command: [sleep, "1000000"], securityContext: {privileged: true}, volumeMounts: [{name: v, mountPath: /v, mountPropagation: Bidirectional}]},
	  {name: taker, image: "dhow.test/busybox:1", command: [sleep, "1000000"], volumeMounts: [{name: v, mountPath: /v, mountPropagation: HostToContainer}]},
	  {name: alone, image: "dhow.test/busybox:1", command: [sleep, "1000000"], volumeMounts: [{name: v, mountPath: /v, mountPropagation: None}]}]}}`,
	`{metadata: {name: group-always}, spec: {terminationGracePeriodSeconds: 0, securityContext: {fsGroup: 3000, fsGroupChangePolicy: Always}, volumes: [{name: v, persistentVolumeClaim: {claimName: always}}],
	  containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], volumeMounts: [{name: v, mountPath: /v}]}]}}`,
	`{metadata: {name: group-once}, spec: {terminationGracePeriodSeconds: 0, securityContext: {fsGroup: 3000, fsGroupChangePolicy: OnRootMismatch}, volumes: [{name: v, persistentVolumeClaim: {claimName: once}}],
	  containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], volumeMounts: [{name: v, mountPath: /v}]}]}}`,
	`{metadata: {name: kept}, spec: {terminationGracePeriodSeconds: 0, volumes: [{name: v, persistentVolumeClaim: {claimName: kept}}],
	  containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], volumeMounts: [{name: v, mountPath: /v}]}]}}`,
	`{metadata: {name: small}, spec: {terminationGracePeriodSeconds: 0, volumes: [{name: v, emptyDir: {medium: Memory, sizeLimit: 2Mi}}],
	  containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], volumeMounts: [{name: v, mountPath: /v}]}]}}`,
	`{metadata: {name: trusting}, spec: {terminationGracePeriodSeconds: 0, volumes: [{name: v, projected: {sources: [
	    {clusterTrustBundle: {name: public, path: public.pem}}, {clusterTrustBundle: {signerName: example.com/signer, labelSelector: {matchLabels: {use: this}}, path: signer.pem}},
	    {clusterTrustBundle: {name: missing, optional: true, path: missing.pem}}]}}],
	  containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"], volumeMounts: [{name: v, mountPath: /v}]}]}}`,
	`{metadata: {name: forbidden}, spec: {securityContext: {sysctls: [{name: kernel.msgmax, value: "1000"}]}, containers: [{name: c, image: "dhow.test/busybox:1", command: [sleep, "1000000"]}]}}`,
}

// resizing says whether a status tells of a resize that is under way or waits.
func resizing(s *corev1.PodStatus) bool {
	return slices.ContainsFunc(s.GetConditions(), func(c *corev1.PodCondition) bool { return strings.HasPrefix(c.GetType(), "PodResize") })
}

// anchor returns a block of PEM. The API server, which the one of this test is not, looks whether it is a certificate.
func anchor(text string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(text)}))
}

func trustBundle(c *cluster, name, signer, use, text string) {
	spec := certificatesv1beta1.ClusterTrustBundleSpec_builder{TrustBundle: proto.String(text)}.Build()
	if signer != "" {
		spec.SetSignerName(signer)
	}
	c.api.Put(certificatesv1beta1.ClusterTrustBundle_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String(name), Labels: map[string]string{"use": use}}.Build(), Spec: spec}.Build())
}

// ownedVolume makes a claim and a volume whose folder is group 3000's, with a file that is group 7's.
func ownedVolume(t *testing.T, c *cluster, name string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "file")
	err := errors.Join(os.WriteFile(file, nil, 0o600), os.Chown(file, -1, 7), os.Chown(dir, -1, 3000), os.Chmod(dir, 0o775|os.ModeSetgid))
	if err != nil {
		t.Fatal(err)
	}
	boundVolume(c, name, corev1.PersistentVolumeSource_builder{Local: corev1.LocalVolumeSource_builder{Path: proto.String(dir)}.Build()}.Build())
}

// boundVolume makes a claim and its volume.
func boundVolume(c *cluster, name string, source *corev1.PersistentVolumeSource) {
	ref := corev1.ObjectReference_builder{Namespace: proto.String("default"), Name: proto.String(name), Uid: proto.String("uid-of-" + name)}.Build()
	c.api.Put(corev1.PersistentVolume_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String("pv-" + name)}.Build(), Spec: corev1.PersistentVolumeSpec_builder{
		ClaimRef: ref, AccessModes: []string{"ReadWriteOnce"}, VolumeMode: proto.String("Filesystem"), PersistentVolumeSource: source}.Build()}.Build())
	c.api.Put(corev1.PersistentVolumeClaim_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String(name), Uid: proto.String("uid-of-" + name)}.Build(),
		Spec:     corev1.PersistentVolumeClaimSpec_builder{VolumeName: proto.String("pv-" + name)}.Build(),
		Status:   corev1.PersistentVolumeClaimStatus_builder{Phase: proto.String("Bound")}.Build()}.Build())
}

// memoryLimit reads the limit of a pod's cgroup.
func (c *cluster) memoryLimit(class, pod string) (string, error) {
	folder := filepath.Join(c.config.Runtime.CgroupParent, "kubepods", class, "poduid-of-"+pod)
	limit, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/memory", folder, "memory.limit_in_bytes"))
	if os.IsNotExist(err) {
		limit, err = os.ReadFile(filepath.Join("/sys/fs/cgroup", folder, "memory.max"))
	}
	return strings.TrimSpace(string(limit)), err
}

// TestTheWholePodOnTheRealRuntime has a pod for each thing that a pod can ask for, and looks from inside whether it got it.
func TestTheWholePodOnTheRealRuntime(t *testing.T) {
	c := newCluster(t)
	log := filepath.Join(t.TempDir(), "log")
	profiles := filepath.Join(c.config.DataDir, "seccomp")
	for _, dir := range []string{log, profiles} {
		if err := os.MkdirAll(dir, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(profiles, "nomkdir.json"), []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, handler := range map[string]string{"real": "runc", "unreal": "no-such-handler"} {
		c.api.Put(runtimev1.RuntimeClass_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String(name)}.Build(), Handler: proto.String(handler)}.Build())
	}
	shared := filepath.Join(c.config.DataDir, "shared")
	boundVolume(c, "kept", corev1.PersistentVolumeSource_builder{HostPath: corev1.HostPathVolumeSource_builder{Path: proto.String(log)}.Build()}.Build())
	for _, name := range []string{"always", "once"} {
		ownedVolume(t, c, name)
	}
	first, second := anchor("first"), anchor("second")
	trustBundle(c, "public", "", "none", "# of the public\n"+first+first)
	trustBundle(c, "example.com:signer:a", "example.com/signer", "this", second)
	trustBundle(c, "example.com:signer:b", "example.com/signer", "other", first)
	mounted := mountables(t, c)
	stop := c.start()
	defer func() { stop(syscall.SIGTERM) }()
	c.awaitNode()
	for _, text := range append(wholePods, mountedPod) {
		c.run(strings.NewReplacer("%[1]s", log, "%[2]s", shared).Replace(text))
	}
	running := func(t *testing.T, name string) *corev1.Pod {
		t.Helper()
		c.t = t
		c.await(name+" is ready", func() bool { return ready(c.pod(name)) })
		return c.pod(name)
	}
	sees := func(t *testing.T, pod, container string, wants map[string]string) {
		t.Helper()
		running(t, pod)
		for command, want := range wants {
			out, errs, code := c.execIn(pod, container, "", "sh", "-c", command)
			if code != 0 || strings.TrimSpace(out) != want {
				t.Errorf("%s: %q %q, code %d; want %q", command, out, errs, code, want)
			}
		}
	}
	read := func(t *testing.T, name string) string {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(log, name))
		if err != nil {
			t.Error(err)
		}
		return strings.Join(strings.Fields(string(text)), " ")
	}

	t.Run("volumes that the node mounts", func(t *testing.T) {
		sees(t, "mounted", "c", map[string]string{
			"cat /share/file": "of the server",
			"touch /share/x 2>/dev/null; test -e /share/x || echo ro": "ro",
			"echo kept > /flex/file; cat /flex/file":                  "kept",
			"stat -c %g /flex":                                        "3000",
			"grep -c '\"greeting\":\"hello\"' /flex/options":          "1",
		})
		if text, err := os.ReadFile(filepath.Join(mounted, "flex/file")); err != nil || string(text) != "kept\n" {
			t.Errorf("the driver has %q, %v", text, err)
		}
	})
	t.Run("a process of its own", func(t *testing.T) {
		sees(t, "secure", "locked", map[string]string{
			"id -u; id -g; id -G":                               "1000\n2000\n2000 3000 4000",
			"touch /x 2>/dev/null || touch /v/x && echo $?":     "0",
			"stat -c %g /v":                                     "3000",
			"touch /no 2>/dev/null; test -e /no || echo ro":     "ro",
			"grep CapEff /proc/self/status":                     "CapEff:\t0000000000000000",
			"grep CapBnd /proc/self/status":                     "CapBnd:\t0000000000000000",
			"grep NoNewPrivs /proc/self/status":                 "NoNewPrivs:\t1",
			"grep ^Seccomp: /proc/self/status":                  "Seccomp:\t2",
			"cat /proc/sys/net/ipv4/ip_unprivileged_port_start": "80",
			"cat /proc/kcore 2>/dev/null | wc -c":               "0",
		})
		sees(t, "secure", "other", map[string]string{
			"id -u": "1001",
			"mkdir /tmp/x 2>/dev/null || echo refused": "refused",
			"grep NoNewPrivs /proc/self/status":        "NoNewPrivs:\t0",
			// Bit 0 is CHOWN, bit 25 SYS_TIME.
			"printf '%d' $((0x$(grep CapBnd /proc/self/status | cut -f2) >> 25 & 1)); printf '%d' $((0x$(grep CapBnd /proc/self/status | cut -f2) & 1))": "10",
		})
		user := running(t, "secure").GetStatus().GetContainerStatuses()[0].GetUser().GetLinux()
		if user.GetUid() != 1000 || user.GetGid() != 2000 || fmt.Sprint(user.GetSupplementalGroups()) != "[2000 3000 4000]" {
			t.Errorf("user in the status %v", user)
		}
	})
	t.Run("the machine's namespaces", func(t *testing.T) {
		wants := map[string]string{"cat /etc/resolv.conf | grep -c 10.96.0.10; true": "0", "grep -o seven /etc/hosts": "seven",
			"printf '%d' $((0x$(grep CapEff /proc/self/status | cut -f2) >> 21 & 1))": "1"}
		for _, namespace := range []string{"pid", "ipc"} {
			link, err := os.Readlink("/proc/self/ns/" + namespace)
			if err != nil {
				t.Fatal(err)
			}
			wants["readlink /proc/self/ns/"+namespace] = link
		}
		wants["ip -4 -o addr show dev eth0 | grep -c "+running(t, "mighty").GetStatus().GetPodIp()] = "1"
		sees(t, "mighty", "c", wants)
	})
	t.Run("the cluster's names in the machine's network", func(t *testing.T) {
		sees(t, "asking", "c", map[string]string{"grep -c 10.96.0.10 /etc/resolv.conf": "1", "ip -4 -o addr show dev eth0 | grep -c " + running(t, "asking").GetStatus().GetPodIp(): "1"})
	})
	t.Run("mounts in the mounts of others", func(t *testing.T) {
		sees(t, "mounts", "giver", map[string]string{"mkdir /v/m && mount -t tmpfs none /v/m && touch /v/m/inside && ls /v/m": "inside"})
		// What it has mounted is on the machine, and stays there unless it is taken down.
		defer sees(t, "mounts", "giver", map[string]string{"umount /v/m && ls /v/m": ""})
		sees(t, "mounts", "taker", map[string]string{"ls /v/m": "inside"})
		sees(t, "mounts", "alone", map[string]string{"ls /v; ls /v/m": "m"})
	})
	t.Run("groups of volumes", func(t *testing.T) {
		sees(t, "group-always", "c", map[string]string{"stat -c %g /v/file": "3000"})
		sees(t, "group-once", "c", map[string]string{"stat -c %g /v/file": "7"})
	})
	t.Run("a persistent volume of the machine's files", func(t *testing.T) {
		if err := os.WriteFile(filepath.Join(log, "kept"), []byte("from the machine"), 0o600); err != nil {
			t.Fatal(err)
		}
		sees(t, "kept", "c", map[string]string{"cat /v/kept": "from the machine", "echo written > /v/written && cat /v/written": "written"})
		if got := read(t, "written"); got != "written" {
			t.Errorf("the machine sees %q", got)
		}
	})
	t.Run("certificates of authorities", func(t *testing.T) {
		sees(t, "trusting", "c", map[string]string{"cat /v/public.pem": strings.TrimSpace(first), "cat /v/signer.pem": strings.TrimSpace(second), "cat /v/missing.pem; ls /v": "missing.pem\npublic.pem\nsigner.pem"})
		trustBundle(c, "public", "", "none", second)
		// The container waits for it by itself.
		sees(t, "trusting", "c", map[string]string{`while test "$(cat /v/public.pem)" != "$(cat /v/signer.pem)"; do usleep 50000; done; echo new`: "new"})
	})
	t.Run("a volume in memory is as large as its limit", func(t *testing.T) {
		sees(t, "small", "c", map[string]string{"df -k /v | awk 'END {print $2}'": "2048", "head -c 3000000 /dev/zero > /v/x 2>/dev/null; stat -c %s /v/x": "2097152"})
	})
	t.Run("users of its own", func(t *testing.T) {
		sees(t, "users", "c", map[string]string{
			"id -u": "0",
			"test $(awk '{print $2}' /proc/self/uid_map) -ge 65536 && echo mapped": "mapped",
			"awk '{print $1, $3}' /proc/self/uid_map":                              "0 65536",
			"touch /v/mine && stat -c %u /v/mine":                                  "0",
			"grep -c /proc/kcore /proc/mounts; true":                               "0",
		})
	})
	t.Run("variables from a file", func(t *testing.T) {
		sees(t, "filed", "c", map[string]string{"echo $WORD": "of the init container"})
		c.await("a file outside of the volume is not read", func() bool {
			s := c.pod("astray").GetStatus().GetContainerStatuses()
			return len(s) == 1 && s[0].GetState().GetWaiting().GetReason() == "CreateContainerConfigError"
		})
	})
	t.Run("names", func(t *testing.T) {
		sees(t, "names", "a", map[string]string{
			"hostname": "host.sub.default.svc.cluster.local",
			"grep -c 'host.sub.default.svc.cluster.local.host' /etc/hosts": "1",
			"grep eight /etc/hosts | tr '\\t' ' '":                         "192.0.2.8 eight",
			"cat /etc/resolv.conf":                                         "search a.example\nnameserver 192.0.2.53\noptions ndots:2",
			"ps | grep -c '[s]leep 2000000'":                               "1",
		})
		sees(t, "named", "c", map[string]string{"hostname": "my.own.name"})
	})
	t.Run("classes", func(t *testing.T) {
		running(t, "classy")
		// 16 MiB are the container's, 8 MiB its runtime's.
		if limit, err := c.memoryLimit("burstable", "classy"); limit != "25165824" {
			t.Errorf("the pod's cgroup has %q, %v", limit, err)
		}
		c.await("the class without a handler is told of", func() bool { return c.event("classless", "FailedCreatePodSandBox", "no-such-handler") })
	})
	t.Run("sysctls that may not be", func(t *testing.T) {
		c.t = t
		c.await("forbidden failed", func() bool {
			s := c.pod("forbidden").GetStatus()
			return s.GetPhase() == "Failed" && s.GetReason() == "SysctlForbidden"
		})
	})
	t.Run("last words", func(t *testing.T) {
		// A message has 4096 bytes, and those of four containers together 12 KiB.
		c.t = t
		c.await("words failed", func() bool { return c.pod("words").GetStatus().GetPhase() == "Failed" })
		for _, s := range c.pod("words").GetStatus().GetContainerStatuses() {
			e := s.GetState().GetTerminated()
			got := fmt.Sprintf("%d %s %d", e.GetExitCode(), e.GetReason(), len(e.GetMessage()))
			if want := map[string]string{"file": "0 Completed 3072", "log": "5 Error 2048", "quiet": "0 Completed 0", "signal": "137 Error 0"}[s.GetName()]; got != want {
				t.Errorf("%s: %s, want %s", s.GetName(), got, want)
			}
		}
	})
	t.Run("a program that is missing", func(t *testing.T) {
		c.t = t
		c.await("missing backs off", func() bool {
			s := c.pod("missing").GetStatus().GetContainerStatuses()
			return len(s) == 1 && s[0].GetState().GetWaiting().GetReason() == "CrashLoopBackOff" && c.event("missing", "BackOff", "Back-off restarting failed container") &&
				c.event("missing", "Failed", "/no/such/program")
		})
		if last := c.pod("missing").GetStatus().GetContainerStatuses()[0].GetLastState().GetTerminated(); last.GetReason() != "StartError" || last.GetExitCode() != 128 {
			t.Errorf("%v", last)
		}
	})
	t.Run("a deadline", func(t *testing.T) {
		c.t = t
		c.await("slow failed", func() bool {
			s := c.pod("slow").GetStatus()
			return s.GetPhase() == "Failed" && s.GetReason() == "DeadlineExceeded" && !s.GetContainerStatuses()[0].GetState().HasRunning()
		})
	})
	t.Run("a probe's own grace", func(t *testing.T) {
		c.t = t
		c.await("unwell was restarted", func() bool {
			s := c.pod("unwell").GetStatus().GetContainerStatuses()
			return len(s) == 1 && s[0].GetRestartCount() > 0 && s[0].GetLastState().GetTerminated().GetExitCode() == 137
		})
	})
	t.Run("restart rules", func(t *testing.T) {
		c.t = t
		c.await("rules failed", func() bool { return c.pod("rules").GetStatus().GetPhase() == "Failed" })
		if s := c.pod("rules").GetStatus().GetContainerStatuses()[0]; s.GetRestartCount() != 1 || s.GetState().GetTerminated().GetExitCode() != 3 || s.GetLastState().GetTerminated().GetExitCode() != 42 {
			t.Errorf("%v", s)
		}
	})
	t.Run("one container's end restarts all in place", func(t *testing.T) {
		c.t = t
		c.await("inplace runs again", func() bool {
			s := c.pod("inplace").GetStatus().GetContainerStatuses()
			return len(s) == 2 && s[0].GetRestartCount() == 1 && s[1].GetRestartCount() == 1 && ready(c.pod("inplace"))
		})
		sees(t, "inplace", "asks", map[string]string{"echo $(cat /v/order)": "once side asks once side asks", "sort -u /v/ips | wc -l; wc -l < /v/ips": "1\n2"})
		s := c.pod("inplace").GetStatus()
		for _, status := range slices.Concat(s.GetInitContainerStatuses(), s.GetContainerStatuses()) {
			if status.GetRestartCount() != 1 || status.GetLastState().GetTerminated().GetReason() != "RestartingAllContainers" {
				t.Errorf("%v", status)
			}
		}
		if !slices.ContainsFunc(s.GetConditions(), func(c *corev1.PodCondition) bool {
			return c.GetType() == "AllContainersRestarting" && c.GetStatus() == "False"
		}) {
			t.Errorf("%v", s.GetConditions())
		}
	})
	t.Run("resize", func(t *testing.T) {
		before := running(t, "sized")
		p := proto.CloneOf(before)
		for _, container := range p.GetSpec().GetContainers() {
			for _, list := range []map[string]*metav1.Quantity{container.GetResources().GetRequests(), container.GetResources().GetLimits()} {
				if list == nil {
					continue
				}
				list["memory"] = metav1.Quantity_builder{String: proto.String("40Mi")}.Build()
			}
		}
		c.api.Put(p)
		c.await("the new resources are there", func() bool {
			s := c.pod("sized").GetStatus().GetContainerStatuses()
			return s[0].GetResources().GetLimits()["memory"].GetString() == "40Mi" && s[1].GetResources().GetLimits()["memory"].GetString() == "40Mi" && ready(c.pod("sized"))
		})
		after := c.pod("sized").GetStatus().GetContainerStatuses()
		if after[0].GetContainerId() != before.GetStatus().GetContainerStatuses()[0].GetContainerId() || after[0].GetRestartCount() != 0 || after[1].GetRestartCount() != 1 {
			t.Errorf("%v", after)
		}
		const memoryOf = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null; true"
		sees(t, "sized", "c", map[string]string{memoryOf: "41943040"})
		sees(t, "sized", "unbound", map[string]string{memoryOf: "100663296"})
		// The pod as a whole; what its containers have of their own stays, and who has no limit has the pod's.
		p = proto.CloneOf(c.pod("sized"))
		p.GetSpec().GetResources().GetLimits()["memory"] = metav1.Quantity_builder{String: proto.String("112Mi")}.Build()
		c.api.Put(p)
		c.await("the pod has its new limit", func() bool {
			s := c.pod("sized").GetStatus()
			return s.GetResources().GetLimits()["memory"].GetString() == "112Mi" && !resizing(s)
		})
		sees(t, "sized", "c", map[string]string{memoryOf: "41943040"})
		sees(t, "sized", "unbound", map[string]string{memoryOf: "117440512"})
		if limit, err := c.memoryLimit("burstable", "sized"); limit != "117440512" {
			t.Errorf("the pod's cgroup has %q, %v", limit, err)
		}
		again := c.pod("sized").GetStatus().GetContainerStatuses()
		for i, s := range again {
			if s.GetContainerId() != after[i].GetContainerId() {
				t.Errorf("%s was restarted for the pod's sake", s.GetName())
			}
		}
	})
	t.Run("sidecars begin and end in order, and end with the pod's work", func(t *testing.T) {
		c.t = t
		c.await("sidecars succeeded", func() bool {
			s := c.pod("sidecars").GetStatus()
			return s.GetPhase() == "Succeeded" && s.GetInitContainerStatuses()[0].GetState().HasTerminated()
		})
		if got, want := read(t, "sidecars"), "first once second main second stopped first stopped"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
	t.Run("hooks and signals", func(t *testing.T) {
		running(t, "hooks")
		c.api.DeletePod("default", "hooks", 30)
		c.await("hooks is gone", func() bool { return c.pod("hooks") == nil })
		if got, want := read(t, "hooks"), "postStart preStop USR1"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
	})
	c.t = t
	for _, p := range apitest.List[*corev1.Pod](c.api) {
		c.api.DeletePod("default", p.GetMetadata().GetName(), 0)
	}
	c.await("all pods are gone", func() bool { return len(apitest.List[*corev1.Pod](c.api)) == 0 })
}
