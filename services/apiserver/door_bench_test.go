package apiserver_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"testing"

	"go.opentelemetry.io/otel"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// BenchmarkDoorCreate is a pod's creation through the Kubernetes door: request, admission, a store in memory, the cache, answer. Its bytes are the server's and those of a client that does
// not encode or decode.
func BenchmarkDoorCreate(b *testing.B) {
	// As in a process that is not asked for traces: spans have identities, and are not recorded.
	otel.SetTracerProvider(sdktrace.NewTracerProvider(sdktrace.WithSampler(sdktrace.NeverSample())))
	k := newKubernetesCluster(b)
	clients, err := kubernetes.NewForConfig(k.root)
	if err != nil {
		b.Fatal(err)
	}
	if _, err := clients.CoreV1().Namespaces().Create(b.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "load"}}, metav1.CreateOptions{}); err != nil {
		b.Fatal(err)
	}
	pod := podNamed("", func(p *corev1.Pod) { p.GenerateName = "web-" })
	var body bytes.Buffer
	if err := scheme.Codecs.EncoderForVersion(protobuf.NewSerializer(scheme.Scheme, scheme.Scheme), corev1.SchemeGroupVersion).Encode(pod, &body); err != nil {
		b.Fatal(err)
	}
	client, err := rest.HTTPClientFor(k.root)
	if err != nil {
		b.Fatal(err)
	}
	url := k.root.Host + "/api/v1/namespaces/load/pods"
	b.ReportAllocs()
	b.SetParallelism(16)
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			request, err := http.NewRequestWithContext(b.Context(), http.MethodPost, url, bytes.NewReader(body.Bytes()))
			if err != nil {
				b.Error(err)
				return
			}
			request.Header.Set("Content-Type", runtime.ContentTypeProtobuf)
			request.Header.Set("Accept", runtime.ContentTypeProtobuf)
			response, err := client.Do(request)
			if err != nil {
				b.Error(err)
				return
			}
			answer, err := io.ReadAll(response.Body)
			response.Body.Close()
			if err != nil || response.StatusCode != http.StatusCreated {
				b.Error(fmt.Errorf("%d %s: %w", response.StatusCode, answer, err))
				return
			}
		}
	})
}
