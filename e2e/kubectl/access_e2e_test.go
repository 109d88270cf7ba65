//go:build e2e

package kubectl

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

func contains(text, part string) bool { return strings.Contains(text, part) }

// tokenConfig is the cluster's kubeconfig without its user, for callers that show a token.
func (k kubectl) tokenConfig() string {
	k.t.Helper()
	config, err := clientcmd.LoadFromFile(k.config)
	if err != nil {
		k.t.Fatal(err)
	}
	for _, c := range config.Clusters {
		// The copy is in another folder than the files that the original names.
		if err := clientcmd.ResolveLocalPaths(config); err != nil {
			k.t.Fatalf("%s: %v", c.Server, err)
		}
	}
	for name := range config.AuthInfos {
		config.AuthInfos[name].ClientCertificate, config.AuthInfos[name].ClientCertificateData = "", nil
		config.AuthInfos[name].ClientKey, config.AuthInfos[name].ClientKeyData = "", nil
	}
	path := k.file("token.kubeconfig", "")
	if err := clientcmd.WriteToFile(*config, path); err != nil {
		k.t.Fatal(err)
	}
	return path
}

// request is a certificate request of a user, as a CertificateSigningRequest holds it.
func request(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "ann", Organization: []string{"painters"}}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}
