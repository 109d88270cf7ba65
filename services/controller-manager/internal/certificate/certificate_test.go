package certificate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	certificatesv1 "dhow.dev/gen/go/dhow/certificates/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/services/controller-manager/internal/apitime"
)

func TestRules(t *testing.T) {
	const toAPI, kubelet, serving = "kubernetes.io/kube-apiserver-client", "kubernetes.io/kube-apiserver-client-kubelet", "kubernetes.io/kubelet-serving"
	named := func(name string, groups ...string) x509.CertificateRequest {
		return x509.CertificateRequest{Subject: pkix.Name{CommonName: name, Organization: groups}}
	}
	node := func(change func(*x509.CertificateRequest)) x509.CertificateRequest {
		r := named("system:node:n1", identity.Nodes)
		change(&r)
		return r
	}
	nothing := func(*x509.CertificateRequest) {}
	reached := func(r *x509.CertificateRequest) {
		r.DNSNames, r.IPAddresses = []string{"n1"}, []net.IP{net.IPv4(10, 0, 0, 1)}
	}
	for name, tc := range map[string]struct {
		signer  string
		request x509.CertificateRequest
		usages  string
		refusal string
	}{
		"a user":                     {toAPI, named("ann", "staff"), "client auth", ""},
		"a user with all usages":     {toAPI, named("ann"), "client auth,digital signature,key encipherment", ""},
		"a user that serves":         {toAPI, named("ann"), "client auth,server auth", "invalid usage for client certificate: server auth"},
		"a user that is no client":   {toAPI, named("ann"), "digital signature", "missing required usage for client certificate: client auth"},
		"a master":                   {toAPI, named("ann", "staff", identity.Masters), "client auth", "system:masters"},
		"an API server":              {toAPI, named(identity.APIServer), "client auth", "that of the cluster itself"},
		"a node":                     {kubelet, node(nothing), "client auth,digital signature", ""},
		"a node with RSA":            {kubelet, node(nothing), "key encipherment,client auth,digital signature", ""},
		"a node without signature":   {kubelet, node(nothing), "client auth", "usages did not match [client auth digital signature key encipherment]"},
		"a node that serves":         {kubelet, node(nothing), "client auth,digital signature,server auth", "usages did not match"},
		"a node of no name":          {kubelet, named("n1", identity.Nodes), "client auth,digital signature", "subject common name does not begin with system:node:"},
		"a node of more groups":      {kubelet, named("system:node:n1", identity.Nodes, "staff"), "client auth,digital signature", "subject organization is not system:nodes"},
		"a node with DNS names":      {kubelet, node(reached), "client auth,digital signature", "DNS subjectAltNames are not allowed"},
		"a node with addresses":      {kubelet, node(func(r *x509.CertificateRequest) { r.IPAddresses = []net.IP{net.IPv4(1, 1, 1, 1)} }), "client auth,digital signature", "IP subjectAltNames are not allowed"},
		"a node with a mailbox":      {kubelet, node(func(r *x509.CertificateRequest) { r.EmailAddresses = []string{"a@b"} }), "client auth,digital signature", "email subjectAltNames are not allowed"},
		"a node with a URI":          {kubelet, node(func(r *x509.CertificateRequest) { r.URIs = []*url.URL{{}} }), "client auth,digital signature", "URI subjectAltNames are not allowed"},
		"a server":                   {serving, node(reached), "server auth,digital signature,key encipherment", ""},
		"a server that calls":        {serving, node(reached), "client auth,digital signature", "usages did not match [digital signature key encipherment server auth]"},
		"a server without address":   {serving, node(nothing), "server auth,digital signature", "DNS or IP subjectAltName is required"},
		"a server of nobody's group": {serving, named("system:node:n1"), "server auth,digital signature", "subject organization is not system:nodes"},
		"a server with a URI": {serving, node(func(r *x509.CertificateRequest) {
			reached(r)
			r.URIs = []*url.URL{{}}
		}), "server auth,digital signature", "URI subjectAltNames are not allowed"},
		"a server of the cluster": {serving, node(func(r *x509.CertificateRequest) { r.DNSNames = []string{"Store.dhow."} }), "server auth,digital signature", "that of the cluster itself"},
	} {
		t.Run(name, func(t *testing.T) {
			err := signers[tc.signer](&tc.request, strings.Split(tc.usages, ","))
			if (err == nil) != (tc.refusal == "") || err != nil && !strings.Contains(err.Error(), tc.refusal) {
				t.Errorf("%v, want %q", err, tc.refusal)
			}
		})
	}
}

func TestTTL(t *testing.T) {
	for asked, want := range map[int32]time.Duration{1: 10 * time.Minute, 600: 10 * time.Minute, 3600: time.Hour, 1 << 30: 365 * 24 * time.Hour} {
		if got := ttl(certificatesv1.CertificateSigningRequestSpec_builder{ExpirationSeconds: proto.Int32(asked)}.Build()); got != want {
			t.Errorf("of %d: %s, want %s", asked, got, want)
		}
	}
	if got := ttl(&certificatesv1.CertificateSigningRequestSpec{}); got != 365*24*time.Hour {
		t.Errorf("of no time: %s", got)
	}
}

// endingAt returns a certificate that ends then.
func endingAt(t *testing.T, end time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func TestExpiry(t *testing.T) {
	made := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	decided := made.Add(30 * time.Minute)
	is := func(kind string) *certificatesv1.CertificateSigningRequestCondition {
		return certificatesv1.CertificateSigningRequestCondition_builder{Type: proto.String(kind), Status: proto.String("True"), LastUpdateTime: apitime.Of(decided)}.Build()
	}
	type conditions = []*certificatesv1.CertificateSigningRequestCondition
	for name, tc := range map[string]struct {
		conditions  conditions
		certificate []byte
		want        time.Time
	}{
		"pending":                 {want: made.Add(24 * time.Hour)},
		"approved, not signed":    {conditions: conditions{is("Approved")}},
		"signed":                  {conditions: conditions{is("Approved")}, certificate: endingAt(t, made.Add(9*time.Hour)), want: decided.Add(time.Hour)},
		"signed for a short time": {conditions: conditions{is("Approved")}, certificate: endingAt(t, decided.Add(10*time.Minute)), want: decided.Add(10 * time.Minute)},
		"signed with nonsense":    {conditions: conditions{is("Approved")}, certificate: []byte("x"), want: decided.Add(time.Hour)},
		"denied":                  {conditions: conditions{is("Denied")}, want: decided.Add(time.Hour)},
		"failed":                  {conditions: conditions{is("Approved"), is("Failed")}, want: decided.Add(time.Hour)},
		"a condition of others":   {conditions: conditions{is("Looking")}},
	} {
		t.Run(name, func(t *testing.T) {
			got := expiry(certificatesv1.CertificateSigningRequest_builder{
				Metadata: metav1.ObjectMeta_builder{CreationTimestamp: apitime.Of(made)}.Build(),
				Status:   certificatesv1.CertificateSigningRequestStatus_builder{Conditions: tc.conditions, Certificate: tc.certificate}.Build(),
			}.Build())
			if !got.Equal(tc.want) {
				t.Errorf("%s, want %s", got, tc.want)
			}
		})
	}
}
