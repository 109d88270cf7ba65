package apiserver_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	storev1 "dhow.dev/gen/go/dhow/store/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/rawcodec"
)

// unreadable is a config map that nothing can decode: behind good metadata comes a map whose entry is none.
func unreadable(t *testing.T, name string) []byte {
	t.Helper()
	m := &corev1.ConfigMap{ObjectMeta: kmetav1.ObjectMeta{Name: name, Namespace: "default", UID: "u", Labels: map[string]string{"app": "unreadable"}}}
	data, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	data = protowire.AppendTag(data, 2, protowire.BytesType)
	data = protowire.AppendBytes(data, []byte{0xff, 0xff, 0xff})
	if new(corev1.ConfigMap).Unmarshal(data) == nil {
		t.Fatal("the object can be decoded")
	}
	return data
}

// TestBytesPassUnread: what is stored goes out to get, list and watch as it is, in protobuf: an object that cannot be decoded at all is answered like any other, so nothing
// on the way decodes. Asked for as JSON, which needs the object, it is an error.
func TestBytesPassUnread(t *testing.T) {
	k := newKubernetesCluster(t)
	ctx := within(t)
	store := storev1.NewStoreClient(k.dial("store", identity.Identity{Name: identity.APIServer}))
	var bodies [][]byte
	for _, name := range []string{"x", "y"} {
		data := unreadable(t, name)
		bodies = append(bodies, data)
		put := storev1.Operation_builder{Key: []byte("/registry/core/configmaps/default/" + name), Put: data}.Build()
		if _, err := store.Commit(ctx, storev1.CommitRequest_builder{Operations: []*storev1.Operation{put}}.Build()); err != nil {
			t.Fatal(err)
		}
	}
	web, err := rest.HTTPClientFor(k.root)
	if err != nil {
		t.Fatal(err)
	}
	const maps = "/api/v1/namespaces/default/configmaps"
	ask := func(path, accept string) *http.Response {
		t.Helper()
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, k.root.Host+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Accept", accept)
		w, err := web.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { w.Body.Close() })
		return w
	}
	for path, want := range map[string][][]byte{
		maps + "/x": bodies[:1], maps: bodies, maps + "?labelSelector=app%3Dunreadable": bodies, maps + "?fieldSelector=metadata.name%3Dy": bodies[1:], "/api/v1/configmaps?limit=500": bodies,
	} {
		w := ask(path, protobufType)
		body, err := io.ReadAll(w.Body)
		if err != nil || w.StatusCode != http.StatusOK {
			t.Errorf("%s: %d %q %v", path, w.StatusCode, body, err)
		}
		for _, data := range want {
			if !bytes.Contains(body, data) {
				t.Errorf("%s: the stored bytes are not in the answer", path)
			}
		}
	}
	// The state of a watch comes in frames, each its length before it.
	w := ask(maps+"?watch=1&labelSelector=app%3Dunreadable", protobufType+";stream=watch")
	for range bodies {
		var length uint32
		if err := binary.Read(w.Body, binary.BigEndian, &length); err != nil {
			t.Fatal(err)
		}
		frame := make([]byte, length)
		if _, err := io.ReadFull(w.Body, frame); err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(frame, []byte("ADDED")) || !bytes.Contains(frame, bodies[0]) && !bytes.Contains(frame, bodies[1]) {
			t.Errorf("%q", frame)
		}
	}
	if w := ask(maps+"/x", jsonType); w.StatusCode != http.StatusInternalServerError {
		t.Errorf("as JSON: %d", w.StatusCode)
	}
	k.byGRPC(ctx, t, bodies)
}

// byGRPC asks the typed door for the same, and takes the messages as they arrive.
func (k *kubernetesCluster) byGRPC(ctx context.Context, t *testing.T, bodies [][]byte) {
	t.Helper()
	conn := k.admin()
	var frame rawcodec.Frame
	if err := conn.Invoke(ctx, "/dhow.core.v1.ConfigMaps/Get", metav1.GetRequest_builder{Namespace: "default", Name: "x"}.Build(), &frame); err != nil || !bytes.Contains(frame.Bytes(), bodies[0]) {
		t.Errorf("get over gRPC: %q, %v", frame.Bytes(), err)
	}
	for method, request := range map[string]proto.Message{
		"/dhow.core.v1.ConfigMaps/List":  metav1.ListRequest_builder{Namespace: "default", LabelSelector: "app=unreadable"}.Build(),
		"/dhow.core.v1.ConfigMaps/Watch": metav1.WatchRequest_builder{Namespace: "default", LabelSelector: "app=unreadable"}.Build(),
	} {
		stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(stream.SendMsg(request), stream.CloseSend()); err != nil {
			t.Fatal(err)
		}
		var seen []byte
		for !bytes.Contains(seen, bodies[0]) || !bytes.Contains(seen, bodies[1]) {
			var frame rawcodec.Frame
			if err := stream.RecvMsg(&frame); err != nil {
				t.Fatalf("%s: %v after %q", method, err, seen)
			}
			seen = append(seen, frame.Bytes()...)
		}
	}
}
