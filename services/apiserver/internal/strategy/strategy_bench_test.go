package strategy_test

import (
	"testing"

	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/strategy"
)

const typicalPod = `spec:
  volumes: [{name: config, configMap: {name: web}}, {name: tmp, emptyDir: {}}]
  nodeSelector: {disk: ssd}
  containers:
  - name: web
    image: registry.example.com/web:1.2.3
    ports: [{name: http, containerPort: 8080}]
    env: [{name: DB, value: db}, {name: PASSWORD, valueFrom: {secretKeyRef: {name: db, key: password}}}, {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {memory: 128Mi}}
    volumeMounts: [{name: config, mountPath: /etc/web}, {name: tmp, mountPath: /tmp}]
    readinessProbe: {httpGet: {path: /ready, port: http}}
    livenessProbe: {httpGet: {path: /live, port: http}}
    securityContext: {runAsNonRoot: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}`

// BenchmarkCreate is what defaulting, admission, validation and warnings add to the creation of a typical pod.
func BenchmarkCreate(b *testing.B) {
	s := newServer(b)
	res, pod := s.decode("pod", typicalPod)
	rules := s.set.For(res)
	admitter := rules.(strategy.Admitter)
	run := func() {
		o := pod.DeepCopyObject().(codec.Object)
		rules.Default(o)
		strategy.PrepareForCreate(res, o)
		rules.PrepareForCreate(o)
		if err := admitter.Admit(b.Context(), o, nil); err != nil {
			b.Fatal(err)
		}
		if errs := append(strategy.ValidateMeta(res, o), rules.Validate(o)...); len(errs) > 0 {
			b.Fatal(errs)
		}
		rules.Warnings(o, nil)
	}
	run() // reads the table of fields
	b.ReportAllocs()
	for b.Loop() {
		run()
	}
}

// BenchmarkCopy is the part of BenchmarkCreate that is the benchmark's own.
func BenchmarkCopy(b *testing.B) {
	_, pod := newServer(b).decode("pod", typicalPod)
	b.ReportAllocs()
	for b.Loop() {
		pod.DeepCopyObject()
	}
}
