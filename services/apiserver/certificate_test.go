package apiserver_test

import (
	"crypto/tls"
	"net/http"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
)

// TestForeignCertificates: who shows a certificate of another authority is told that he is not known, as by Kubernetes; the connection does not break.
func TestForeignCertificates(t *testing.T) {
	k := newKubernetesCluster(t)
	other, err := pki.LoadOrCreate(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	admin := pki.Request{Identity: identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}}, Client: true}
	certificate, key, err := other.Issue(admin)
	if err != nil {
		t.Fatal(err)
	}
	shown, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	config := k.as("", strings.TrimPrefix(k.root.Host, "https://"))
	secure, err := rest.TLSConfigFor(config)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := clientset(t, k.root).CoreV1().ServiceAccounts("default").CreateToken(within(t), "default", &authenticationv1.TokenRequest{}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Go's clients would keep it to themselves: the server names its authority.
	secure.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &shown, nil }
	for _, two := range []bool{false, true} {
		transport := &http.Transport{TLSClientConfig: secure.Clone(), ForceAttemptHTTP2: two}
		t.Cleanup(transport.CloseIdleConnections)
		foreign := &http.Client{Transport: transport}
		for _, path := range []string{"/api/v1/namespaces/default/configmaps", "/livez", "/api"} {
			exchange{method: "GET", path: path, code: 401, reason: "Unauthorized"}.run(t, foreign, k.root.Host)
		}
		// With a token that is known he is, whatever else he shows.
		for token, code := range map[string]int{issued.Status.Token: http.StatusOK, issued.Status.Token + "x": http.StatusUnauthorized} {
			r, err := http.NewRequestWithContext(within(t), http.MethodGet, k.root.Host+"/api", nil)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Authorization", "Bearer "+token)
			w, err := foreign.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			w.Body.Close()
			if w.StatusCode != code {
				t.Errorf("with a token: %d, want %d", w.StatusCode, code)
			}
		}
	}
}
