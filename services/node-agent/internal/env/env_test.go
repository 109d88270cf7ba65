package env_test

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/node-agent/internal/downward"
	"dhow.dev/services/node-agent/internal/env"
	"dhow.dev/services/node-agent/internal/podtest"
	"google.golang.org/protobuf/proto"
)

func sources(t *testing.T, pod *corev1.Pod) env.Sources {
	return env.Sources{
		Pod: pod,
		Facts: downward.Facts{NodeName: "n1", HostIPs: []string{"192.0.2.1"}, PodIPs: []string{"10.244.1.9"}, Allocatable: map[string]*metav1.Quantity{
			"cpu": metav1.Quantity_builder{String: proto.String("4")}.Build(), "memory": metav1.Quantity_builder{String: proto.String("8Gi")}.Build()}},
		Services: env.VisibleServices(pod, []*corev1.Service{
			podtest.Service(t, `{metadata: {name: web-db, namespace: default}, spec: {clusterIP: 10.96.0.5, ports: [{name: sql, port: 5432}]}}`),
			podtest.Service(t, `{metadata: {name: other, namespace: elsewhere}, spec: {clusterIP: 10.96.0.6, ports: [{port: 1}]}}`),
			podtest.Service(t, `{metadata: {name: headless, namespace: default}, spec: {clusterIP: None, ports: [{port: 1}]}}`),
		}),
		ConfigMap: func(name string) (*corev1.ConfigMap, error) {
			if name != "config" {
				return nil, env.ErrMissing
			}
			return corev1.ConfigMap_builder{Data: map[string]string{"COLOR": "blue", "SIZE": "xl"}}.Build(), nil
		},
		Secret: func(name string) (*corev1.Secret, error) {
			if name != "keys" {
				return nil, env.ErrMissing
			}
			return corev1.Secret_builder{Data: map[string][]byte{"token": []byte("s3cret")}}.Build(), nil
		},
	}
}

func TestAllSources(t *testing.T) {
	pod := podtest.Pod(t, `
metadata: {name: web, labels: {app: guestbook}}
spec:
  serviceAccountName: robot
  containers:
  - name: main
    resources: {requests: {cpu: 250m}, limits: {memory: 64Mi}}
    envFrom:
    - {prefix: CFG_, configMapRef: {name: config}}
    - {configMapRef: {name: absent, optional: true}}
    - {secretRef: {name: keys}}
    env:
    - {name: A, value: one}
    - {name: B, value: "$(A)-two-$(NOPE)-$$(A)-$(WEB_DB_SERVICE_HOST)"}
    - {name: A, value: three}
    - {name: CFG_SIZE, value: overridden}
    - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: APP, valueFrom: {fieldRef: {fieldPath: "metadata.labels['app']"}}}
    - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: HOST, valueFrom: {fieldRef: {fieldPath: status.hostIP}}}
    - {name: SA, valueFrom: {fieldRef: {fieldPath: spec.serviceAccountName}}}
    - {name: CPU, valueFrom: {resourceFieldRef: {resource: requests.cpu, divisor: 1m}}}
    - {name: CPUS, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}
    - {name: MEM, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
    - {name: COLOR, valueFrom: {configMapKeyRef: {name: config, key: COLOR}}}
    - {name: TOKEN, valueFrom: {secretKeyRef: {name: keys, key: token}}}
    - {name: MAYBE, valueFrom: {secretKeyRef: {name: keys, key: nokey, optional: true}}}
`)
	list, err := env.Of(pod.GetSpec().GetContainers()[0], sources(t, pod))
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, v := range list {
		if _, twice := got[v.Name]; twice {
			t.Errorf("%s is set twice", v.Name)
		}
		got[v.Name] = v.Value
	}
	want := map[string]string{
		"CFG_COLOR": "blue", "CFG_SIZE": "overridden", "token": "s3cret", "A": "three", "B": "one-two-$(NOPE)-$(A)-10.96.0.5", "NAME": "web",
		"APP": "guestbook", "NODE": "n1", "IP": "10.244.1.9", "HOST": "192.0.2.1", "SA": "robot", "CPU": "250", "CPUS": "4", "MEM": "64", "COLOR": "blue",
		"TOKEN": "s3cret", "WEB_DB_SERVICE_HOST": "10.96.0.5", "WEB_DB_SERVICE_PORT": "5432", "WEB_DB_SERVICE_PORT_SQL": "5432",
		"WEB_DB_PORT": "tcp://10.96.0.5:5432", "WEB_DB_PORT_5432_TCP_ADDR": "10.96.0.5", "WEB_DB_PORT_5432_TCP_PROTO": "tcp",
	}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s = %q, want %q", k, got[k], v)
		}
	}
	for _, absent := range []string{"MAYBE", "OTHER_SERVICE_HOST", "HEADLESS_SERVICE_HOST", "CFG_"} {
		if v, there := got[absent]; there {
			t.Errorf("%s = %q, want it absent", absent, v)
		}
	}
}

func TestErrorsNameTheObject(t *testing.T) {
	for source, want := range map[string]string{
		`{envFrom: [{configMapRef: {name: absent}}]}`:                                                    `configmap "absent" not found`,
		`{envFrom: [{secretRef: {name: absent}}]}`:                                                       `secret "absent" not found`,
		`{env: [{name: X, valueFrom: {secretKeyRef: {name: keys, key: nokey}}}]}`:                        `couldn't find key nokey in Secret default/keys`,
		`{env: [{name: X, valueFrom: {configMapKeyRef: {name: absent, key: k}}}]}`:                       `configmap "absent" not found`,
		`{env: [{name: X, valueFrom: {fieldRef: {fieldPath: spec.nope}}}]}`:                              `env "X": fieldPath "spec.nope"`,
		`{env: [{name: X, valueFrom: {resourceFieldRef: {containerName: nope, resource: limits.cpu}}}]}`: `no container "nope"`,
	} {
		pod := podtest.Pod(t, fmt.Sprintf("{metadata: {name: p}, spec: {containers: [%s]}}", source))
		_, err := env.Of(pod.GetSpec().GetContainers()[0], sources(t, pod))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q in it", source, err, want)
		}
	}
}

// TestVariablesFromAFile reads what an init container may have left.
func TestVariablesFromAFile(t *testing.T) {
	files := map[string]string{
		"good":  "# a comment\n\n  A='one'\nB='two\nlines = $(A)' # behind it\nA='last'\nEMPTY=''",
		"bare":  "A=one",
		"open":  "A='one",
		"twice": "A='one''two'",
		"large": strings.Repeat("#", env.MaxFile+1),
	}
	for _, c := range []struct{ file, key, optional, want, fails string }{
		{"good", "A", "", "last", ""},
		{"good", "B", "", "two\nlines = $(A)", ""},
		{"good", "EMPTY", "", "", ""},
		{"good", "C", "", "", `couldn't find key "C"`},
		{"good", "C", ", optional: true", "absent", ""},
		{"none", "A", ", optional: true", "absent", ""},
		{"none", "A", "", "", "file does not exist"},
		{"bare", "A", "", "", "line 1: want NAME='VALUE'"},
		{"open", "A", ", optional: true", "", "line 1: the value of A has no end"},
		{"twice", "A", "", "", "line 1: more than a value"},
		{"large", "A", "", "", "larger than"},
	} {
		pod := podtest.Pod(t, fmt.Sprintf(`{metadata: {name: p}, spec: {containers: [{name: c, env: [{name: X, valueFrom: {fileKeyRef: {volumeName: v, path: %s, key: %s%s}}}]}]}}`, c.file, c.key, c.optional))
		s := sources(t, pod)
		s.File = func(volume, path string) ([]byte, error) {
			if text, ok := files[path]; ok && volume == "v" {
				return []byte(text), nil
			}
			return nil, fs.ErrNotExist
		}
		list, err := env.Of(pod.GetSpec().GetContainers()[0], s)
		got := "absent"
		for _, v := range list {
			if v.Name == "X" {
				got = v.Value
			}
		}
		switch {
		case c.fails != "" && (err == nil || !strings.Contains(err.Error(), c.fails)), c.fails == "" && err != nil:
			t.Errorf("%+v: %v", c, err)
		case c.fails == "" && got != c.want:
			t.Errorf("%+v: %q", c, got)
		}
	}
}

func TestServiceLinksOff(t *testing.T) {
	pod := podtest.Pod(t, `{metadata: {name: p}, spec: {enableServiceLinks: false, containers: [{name: c}]}}`)
	visible := env.VisibleServices(pod, []*corev1.Service{
		podtest.Service(t, `{metadata: {name: a, namespace: default}, spec: {clusterIP: 10.96.0.5, ports: [{port: 1}]}}`),
		podtest.Service(t, `{metadata: {name: kubernetes, namespace: default}, spec: {clusterIP: 10.96.0.1, ports: [{port: 443}]}}`),
	})
	if len(visible) != 1 || visible[0].GetMetadata().GetName() != "kubernetes" {
		t.Errorf("visible: %v", visible)
	}
}

func FuzzExpand(f *testing.F) {
	for _, s := range []string{"", "$", "$$", "$(A)", "$(A", "$()", "a$(A)b$$c", "$$(A)", "$(B)$"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		// Without a $ nothing changes, and what is not known is kept.
		got := env.Expand(s, func(string) (string, bool) { return "", false })
		if strings.Count(got, "$") > strings.Count(s, "$") {
			t.Errorf("%q became %q", s, got)
		}
	})
}
