package controllermanager

import (
	"crypto/tls"
	"encoding/pem"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
)

// TestTheMetricsAPIIsCalledWithACertificate has a server whose certificate is of an authority of its own, and that asks who calls.
func TestTheMetricsAPIIsCalledWithACertificate(t *testing.T) {
	dir := t.TempDir()
	authority, err := pki.LoadOrCreate(filepath.Join(dir, "ca"))
	if err != nil {
		t.Fatal(err)
	}
	pair, err := authority.Ensure(pki.FilesIn(dir, "controller-manager"), pki.Request{Identity: identity.Identity{Name: identity.ControllerManager}, Client: true})
	if err != nil {
		t.Fatal(err)
	}
	callers := make(chan string, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { callers <- r.TLS.PeerCertificates[0].Subject.CommonName }))
	server.TLS = &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	server.StartTLS()
	defer server.Close()
	file := filepath.Join(dir, "adapter.crt")
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	get := func(authority string) error {
		t.Helper()
		address, client, err := metricsCaller(server.URL, authority, pair)
		if err != nil {
			t.Fatal(err)
		}
		defer client.CloseIdleConnections()
		answer, err := client.Get(address.String())
		if err == nil {
			err = answer.Body.Close()
		}
		return err
	}
	if err := get(file); err != nil {
		t.Fatal(err)
	}
	if who := <-callers; who != identity.ControllerManager {
		t.Errorf("called by %q", who)
	}
	if err := get(""); err == nil {
		t.Error("a certificate that the cluster's authority has not signed is taken")
	}
	for _, address := range []string{"http://adapter", "adapter:6443", "https://"} {
		if _, _, err := metricsCaller(address, "", pair); err == nil {
			t.Errorf("%s is taken", address)
		}
	}
	if _, _, err := metricsCaller(server.URL, filepath.Join(dir, "none"), pair); err == nil {
		t.Error("a file that is not there is taken")
	}
}
