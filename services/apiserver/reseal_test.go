package apiserver_test

import (
	"bytes"
	"encoding/base64"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/transport"
)

// TestANewKeySealsOldSecrets: after a start with a new key, the store holds nothing that the old one has sealed, and the secrets are what they were.
func TestANewKeySealsOldSecrets(t *testing.T) {
	c := &cluster{t: t, memory: transport.NewMemory(), keys: filepath.Join(t.TempDir(), "keys")}
	c.startStore()
	stop := c.serve("apiserver", nil)
	secret := corev1.Secret_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("default"), Name: proto.String("db")}.Build(),
		Data:     map[string][]byte{"password": []byte("hunter2")},
	}.Build()
	made, err := client.For[*corev1.Secret](c.admin()).Create(within(t), secret, nil)
	if err != nil {
		t.Fatal(err)
	}
	stop()

	old, err := os.ReadFile(c.keys)
	if err != nil {
		t.Fatal(err)
	}
	line := "2 " + base64.StdEncoding.EncodeToString(bytes.Repeat([]byte{7}, 32)) + "\n"
	if err := os.WriteFile(c.keys, append([]byte(line), old...), 0o600); err != nil {
		t.Fatal(err)
	}
	stop = c.serve("apiserver", nil)
	watch, err := client.For[*corev1.Secret](c.admin()).Watch(within(t), metav1.WatchRequest_builder{Namespace: "default"}.Build())
	if err != nil {
		t.Fatal(err)
	}
	for sealed := false; !sealed; {
		batch, err := watch.Next()
		if err != nil {
			t.Fatal(err)
		}
		for _, change := range batch.Changes {
			// It is written anew, and nothing in it changes.
			sealed = change.Object.GetMetadata().GetResourceVersion() != made.GetMetadata().GetResourceVersion()
		}
	}
	for _, e := range c.entries("/registry/core/secrets/default/db") {
		if e.GetEncryptionKeyId() != 2 {
			t.Errorf("sealed with key %d", e.GetEncryptionKeyId())
		}
	}
	stop()

	if err := os.WriteFile(c.keys, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	c.serve("apiserver", nil)
	got, err := client.For[*corev1.Secret](c.admin()).Get(within(t), "default", "db")
	if err != nil || string(got.GetData()["password"]) != "hunter2" {
		t.Errorf("%v, %v", got.GetData(), err)
	}
}
