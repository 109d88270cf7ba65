package strategy_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/codec"
)

// anchor returns a certificate in PEM.
func anchor(t *testing.T, authority bool) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(4e9, 0), IsCA: authority, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

func TestTrustBundles(t *testing.T) {
	s := newServer(t)
	res, err := resource.Find("clustertrustbundles")
	if err != nil {
		t.Fatal(err)
	}
	rules := s.set.For(res)
	first, second := anchor(t, true), anchor(t, true)
	bundle := func(name, signer, text string) codec.Object {
		return &certificatesv1beta1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: certificatesv1beta1.ClusterTrustBundleSpec{SignerName: signer, TrustBundle: text}}
	}
	for name, c := range map[string]struct{ name, signer, text, want string }{
		"nobody's":        {"public", "", "words\n" + first + "more\n" + second, ""},
		"a signer's":      {"example.com:s:public", "example.com/s", first, ""},
		"another's name":  {"example.com:t:public", "example.com/s", first, `metadata.name: Invalid value: "example.com:t:public": ClusterTrustBundle for signerName example.com/s must be named with prefix example.com:s:`},
		"somebody's name": {"example.com:s:public", "", first, `metadata.name: Invalid value: "example.com:s:public": ClusterTrustBundle without signer name must not have ":" in its name`},
		"odd name":        {"example.com:s:A", "example.com/s", first, `metadata.name: Invalid value: "example.com:s:A": a lowercase RFC 1123 subdomain…`},
		"odd signer":      {"s:public", "s", first, `spec.signerName: Invalid value: "s": must be a fully qualified domain and path of the form 'example.com/signer-name'`},
		"nothing":         {"public", "", "words", `spec.trustBundle: Invalid value: "<value omitted>": at least one trust anchor must be provided`},
		"one twice":       {"public", "", first + second + first, `spec.trustBundle: Invalid value: "<value omitted>": duplicate trust anchor (indices [0 2])`},
		"no authority":    {"public", "", anchor(t, false), `spec.trustBundle: Invalid value: "<value omitted>": entry 0 does not have the CA bit set`},
		"no certificate":  {"public", "", strings.ReplaceAll(first, "CERTIFICATE", "KEY"), `spec.trustBundle: Invalid value: "<value omitted>": entry 0 has bad block type: KEY`},
		"headers":         {"public", "", strings.Replace(first, "-----\n", "-----\nA: b\n\n", 1), `spec.trustBundle: Invalid value: "<value omitted>": entry 0 has PEM block headers`},
		"no X.509 in it":  {"public", "", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", `spec.trustBundle: Invalid value: "<value omitted>": entry 0 does not parse as X.509`},
	} {
		t.Run(name, func(t *testing.T) { want(t, rules.Validate(bundle(c.name, c.signer, c.text)), c.want) })
	}
	before := bundle("example.com:s:public", "example.com/s", first)
	want(t, rules.ValidateUpdate(bundle("example.com:s:public", "example.com/s", second), before), "")
	want(t, rules.ValidateUpdate(bundle("example.com:s:public", "example.com/t", first), before), `spec.signerName: Invalid value: "example.com/t": field is immutable`)
	want(t, rules.ValidateUpdate(bundle("example.com:s:public", "example.com/s", ""), before), `spec.trustBundle: Invalid value: "<value omitted>": at least one trust anchor must be provided`)
}
