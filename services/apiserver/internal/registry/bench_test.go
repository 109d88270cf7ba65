package registry

import (
	"context"
	"fmt"
	"testing"

	"dhow.dev/services/apiserver/internal/codec"
	"dhow.dev/services/apiserver/internal/encryption"
	"dhow.dev/services/apiserver/internal/patch"
	"dhow.dev/services/apiserver/internal/registry/fakestore"
	"dhow.dev/services/apiserver/internal/strategy"
)

// benchPod is a pod as a ReplicaSet makes it, with what a small web application has.
const benchPod = `
metadata: {name: %s, namespace: shop, labels: {app: web, pod-template-hash: 5d4f8c7b9d}, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web, uid: u, controller: true, blockOwnerDeletion: true}]}
spec:
  restartPolicy: Always
  containers:
  - name: web
    image: registry.example.com/web:1.2.3
    ports: [{name: http, containerPort: 8080, protocol: TCP}]
    env: [{name: A, value: "1"}, {name: B, valueFrom: {secretKeyRef: {name: db, key: password}}}]
    resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {memory: 128Mi}}
    readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 5}
    livenessProbe: {httpGet: {path: /live, port: 8080}, periodSeconds: 10}
    volumeMounts: [{name: config, mountPath: /etc/web}]
  volumes: [{name: config, configMap: {name: web}}]
`

const benchStatus = `
metadata: {name: %s, namespace: shop}
status:
  phase: Running
  podIP: 10.244.1.%d
  conditions: [{type: Ready, status: "True"}, {type: PodScheduled, status: "True"}, {type: Initialized, status: "True"}]
  containerStatuses: [{name: web, ready: true, restartCount: 0, image: "registry.example.com/web:1.2.3", imageID: sha, state: {running: {startedAt: "2026-01-01T00:00:00Z"}}}]
`

func newBench(b *testing.B) (*Registry, *codec.Codec, *fakestore.Store) {
	b.Helper()
	store := fakestore.New()
	structs, err := codec.New()
	if err != nil {
		b.Fatal(err)
	}
	ring, err := encryption.NewRing([]encryption.Key{{ID: 1}})
	if err != nil {
		b.Fatal(err)
	}
	r, err := New(Config{
		Store: store, Cache: &fakeCache{store: store, ring: ring}, Codec: structs, Strategies: strategy.New(strategy.Config{TolerationSeconds: 300}), Encryption: ring,
	})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := r.Create(b.Context(), namespaces, text(`metadata: {name: shop}`), WriteOptions{}); err != nil {
		b.Fatal(err)
	}
	return r, structs, store
}

func protobuf(b *testing.B, c *codec.Codec, document string) Input {
	b.Helper()
	o, _, err := c.DecodeText(pods, []byte(document), codec.Strict)
	if err != nil {
		b.Fatal(err)
	}
	data, err := c.EncodeProto(o)
	if err != nil {
		b.Fatal(err)
	}
	return Input{Data: data}
}

func BenchmarkCreatePod(b *testing.B) {
	r, c, _ := newBench(b)
	input := protobuf(b, c, fmt.Sprintf(benchPod, `"", generateName: web-`))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Create(b.Context(), pods, input, WriteOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkBind(b *testing.B) {
	r, c, _ := newBench(b)
	b.ReportAllocs()
	const batch = 256
	for b.Loop() {
		b.StopTimer()
		bindings := make([]Binding, batch)
		for i := range bindings {
			name := fmt.Sprintf("p%d", i)
			if _, err := r.Create(b.Context(), pods, protobuf(b, c, fmt.Sprintf(benchPod, name)), WriteOptions{}); err != nil {
				b.Fatal(err)
			}
			bindings[i] = Binding{Namespace: "shop", Name: name, NodeName: "n1"}
		}
		b.StartTimer()
		if errs, _ := r.Bind(b.Context(), bindings, nil); errs[0] != nil {
			b.Fatal(errs[0])
		}
		b.StopTimer()
		for _, x := range bindings {
			if _, err := r.Delete(b.Context(), pods, "shop", x.Name, DeleteOptions{GracePeriodSeconds: new(int64)}); err != nil {
				b.Fatal(err)
			}
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/pod")
}

// BenchmarkStatus is what a node does most: writing the status of a pod. The first case is a pod that nobody applied, which carries no
// managedFields; the second one whose managers are tracked; the size is what is stored.
func BenchmarkStatus(b *testing.B) {
	for _, tracked := range []bool{false, true} {
		b.Run(fmt.Sprintf("tracked=%v", tracked), func(b *testing.B) {
			r, c, store := newBench(b)
			ctx := b.Context()
			document := fmt.Sprintf(benchPod, "p")
			if err := prepare(ctx, r, document, tracked); err != nil {
				b.Fatal(err)
			}
			states := []Input{protobuf(b, c, fmt.Sprintf(benchStatus, "p", 1)), protobuf(b, c, fmt.Sprintf(benchStatus, "p", 2))}
			b.ReportAllocs()
			n := 0
			for b.Loop() {
				n++
				if _, err := r.Update(ctx, pods, states[n%2], WriteOptions{Subresource: "status", FieldManager: "node"}); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(len(store.Entry(Key(pods, "shop", "p")).GetValue())), "bytes/object")
		})
	}
}

func prepare(ctx context.Context, r *Registry, document string, tracked bool) error {
	if tracked {
		_, err := r.Apply(ctx, pods, text(document), WriteOptions{FieldManager: "me"})
		return err
	}
	_, err := r.Create(ctx, pods, text(document), WriteOptions{})
	return err
}

func BenchmarkApplyUnchanged(b *testing.B) {
	r, _, _ := newBench(b)
	document := text(fmt.Sprintf(benchPod, "p"))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Apply(b.Context(), pods, document, WriteOptions{FieldManager: "me"}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMergePatch(b *testing.B) {
	r, _, _ := newBench(b)
	if err := prepare(b.Context(), r, fmt.Sprintf(benchPod, "p"), false); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		input := PatchInput{Namespace: "shop", Name: "p", Type: patch.Merge, Data: fmt.Appendf(nil, `{"metadata":{"labels":{"n":"%d"}}}`, n)}
		if _, err := r.Patch(b.Context(), pods, input, WriteOptions{}); err != nil {
			b.Fatal(err)
		}
	}
}
