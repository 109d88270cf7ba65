package connect_test

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"dhow.dev/cli/internal/connect"
)

func TestFile(t *testing.T) {
	t.Setenv(connect.Environment, "")
	if got := connect.File(""); got != connect.Default {
		t.Errorf("by default: %s", got)
	}
	t.Setenv(connect.Environment, "/env.yaml")
	if got := connect.File(""); got != "/env.yaml" {
		t.Errorf("by the environment: %s", got)
	}
	if got := connect.File("/flag.yaml"); got != "/flag.yaml" {
		t.Errorf("by the flag: %s", got)
	}
}

func TestWriteAndLoad(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "client.yaml")
	config := connect.Config{Servers: []string{"127.0.0.1:7443", "127.0.0.1:7444"}, CertificateAuthority: "ca.crt", Certificate: "pki/admin.crt", Key: "/abs/admin.key", Namespace: "shop"}
	if err := config.Write(file); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("others may read it: %v, %v", info.Mode(), err)
	}
	got, err := connect.Load(file)
	if err != nil {
		t.Fatal(err)
	}
	config.CertificateAuthority, config.Certificate = filepath.Join(dir, "ca.crt"), filepath.Join(dir, "pki/admin.crt")
	if !reflect.DeepEqual(got, config) {
		t.Errorf("got %+v, not %+v", got, config)
	}
	if _, err := got.Dial(); err == nil || !strings.Contains(err.Error(), "ca.crt") && !strings.Contains(err.Error(), "admin") {
		t.Errorf("certificates that do not exist: %v", err)
	}
}

func TestLoadErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "client.yaml")
	if _, err := connect.Load(file); err == nil || !strings.Contains(err.Error(), file+" does not exist: start one with `dhow up`") {
		t.Errorf("no file: %v", err)
	}
	for content, want := range map[string]string{
		"": "servers: required value",
		"servers: [a]\ncertificateAuthority: a\ncertificate: a\n": "key: required value",
		"servers: a\n": "servers",
		"server: a\n":  `unknown field "server"`,
		"[":            "yaml",
	} {
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := connect.Load(file); err == nil || !strings.HasPrefix(err.Error(), file+": ") || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", content, err)
		}
	}
}
