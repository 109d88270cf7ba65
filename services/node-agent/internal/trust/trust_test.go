package trust_test

import (
	"context"
	"encoding/pem"
	"log/slog"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	certificatesv1beta1 "dhow.dev/gen/go/dhow/certificates/v1beta1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/node-agent/internal/apitest"
	"dhow.dev/services/node-agent/internal/podtest"
	"dhow.dev/services/node-agent/internal/trust"
)

func block(text string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(text)}))
}

func bundle(name, signer, use, text string) *certificatesv1beta1.ClusterTrustBundle {
	spec := certificatesv1beta1.ClusterTrustBundleSpec_builder{TrustBundle: proto.String(text)}.Build()
	if signer != "" {
		spec.SetSignerName(signer)
	}
	return certificatesv1beta1.ClusterTrustBundle_builder{Metadata: metav1.ObjectMeta_builder{Name: proto.String(name), Labels: map[string]string{"use": use}}.Build(), Spec: spec}.Build()
}

// TestBundlesOfAPod: by name or by signer and labels, each certificate once; the pods that show bundles are told of changes, and no others.
func TestBundlesOfAPod(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	api, memory := apitest.New(), transport.NewMemory()
	server := transport.NewServer(transport.ServerConfig{Credentials: memory.ServerCredentials(), Logger: slog.New(slog.DiscardHandler), Lifetime: ctx, Options: api.Options()})
	api.Register(server)
	served := make(chan error, 1)
	serving, end := context.WithCancel(context.Background())
	go func() { served <- transport.Serve(serving, server, memory.Listen("apiserver")) }()
	defer func() { end(); <-served }()
	conn, err := memory.Dial("apiserver", identity.Node("n1"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	api.Put(bundle("public", "", "x", "# a comment\n"+block("one")+block("one")+"more words\n"))
	api.Put(bundle("example.com:s:a", "example.com/s", "this", block("two")))
	api.Put(bundle("example.com:s:b", "example.com/s", "that", block("three")+block("two")))
	shows := podtest.Pod(t, `{metadata: {name: shows, uid: shows}, spec: {volumes: [{name: v, projected: {sources: [{clusterTrustBundle: {name: public, path: p}}]}}]}}`)
	other := podtest.Pod(t, `{metadata: {name: other, uid: other}, spec: {volumes: [{name: v, projected: {sources: [{configMap: {name: c}}]}}]}}`)
	changed := make(chan []string, 64)
	k := trust.New(trust.Config{Conn: conn, Pods: func() []*corev1.Pod { return []*corev1.Pod{shows, other} }, Logger: slog.New(slog.DiscardHandler), Changed: func(uids []string) { changed <- uids }})
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- k.Run(running) }()
	get := func(text string) (string, error) {
		p := podtest.Pod(t, `{metadata: {name: p}, spec: {volumes: [{name: v, projected: {sources: [{clusterTrustBundle: `+text+`}]}}]}}`)
		got, err := k.Get(ctx, p.GetSpec().GetVolumes()[0].GetVolumeSource().GetProjected().GetSources()[0].GetClusterTrustBundle())
		return string(got), err
	}
	for text, want := range map[string][]string{
		`{name: public, path: p}`: {"one"},
		`{signerName: example.com/s, labelSelector: {matchLabels: {use: this}}, path: p}`:                                     {"two"},
		`{signerName: example.com/s, labelSelector: {matchExpressions: [{key: use, operator: In, values: [that]}]}, path: p}`: {"two", "three"},
		`{signerName: example.com/s, labelSelector: {}, path: p}`:                                                             {"two", "three"},
		`{name: none, optional: true, path: p}`:                                                                               nil,
		`{signerName: example.com/s, optional: true, path: p}`:                                                                nil,
	} {
		got, err := get(text)
		if err != nil || strings.Count(got, "BEGIN") != len(want) || strings.Contains(got, "words") {
			t.Errorf("%s: %q, %v", text, got, err)
		}
		for _, one := range want {
			if !strings.Contains(got, block(one)) {
				t.Errorf("%s lacks %q: %q", text, one, got)
			}
		}
	}
	for text, words := range map[string]string{
		`{name: none, path: p}`:                                   `clustertrustbundle "none" not found`,
		`{signerName: example.com/s, path: p}`:                    "matched zero ClusterTrustBundles",
		`{signerName: example.com/t, labelSelector: {}, path: p}`: "matched zero ClusterTrustBundles",
	} {
		if _, err := get(text); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v", text, err)
		}
	}
	for len(changed) > 0 {
		<-changed
	}
	api.Put(bundle("public", "", "x", block("four")))
	for {
		select {
		case uids := <-changed:
			if len(uids) != 1 || uids[0] != "shows" {
				t.Errorf("told are %q", uids)
			}
		case <-ctx.Done():
			t.Fatal("nobody is told of a change")
		}
		if got, err := get(`{name: public, path: p}`); err == nil && got == block("four") {
			break
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
