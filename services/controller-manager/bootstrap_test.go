package controllermanager_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"net"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	certificatesk8s "k8s.io/api/certificates/v1"
	corek8s "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metak8s "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	certificatesv1 "dhow.dev/gen/go/dhow/certificates/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/apiserver"
	controllermanager "dhow.dev/services/controller-manager"
)

// keyed is a private key and a request for a certificate by it, both PEM.
type keyed struct{ key, request []byte }

func newKeyed(t *testing.T, template x509.CertificateRequest) keyed {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &template, key)
	if err != nil {
		t.Fatal(err)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return keyed{
		key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), request: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
	}
}

// TestNodeJoinsByItsToken is a kubelet's way into a cluster: with a bootstrap token it asks for a client certificate, which is approved because the token's group may
// have such, and signed; with the certificate it is a node at the door, and asks for the next one itself. All of it as a kubelet does it, with client-go.
func TestNodeJoinsByItsToken(t *testing.T) {
	const name, doorName = "system:node:n9", "apiserver.dhow"
	dir := t.TempDir()
	authority, err := pki.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	serving, err := authority.Ensure(pki.FilesIn(dir, "apiserver"), pki.Request{Identity: identity.Identity{Name: identity.APIServer}, DNSNames: []string{doorName}, Server: true})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := transport.Listen(t.Context(), "127.0.0.1:0", slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().(*net.TCPAddr).String()
	c := newControlPlaneWith(t, func(config *apiserver.Config) { config.Kubernetes, config.KubernetesTLS = listener, serving })
	c.startControllers(func(config *controllermanager.Config) { config.ClusterSigner = authority })
	connect := func(credentials func(*rest.Config)) *kubernetes.Clientset {
		config := &rest.Config{Host: "https://" + address, TLSClientConfig: rest.TLSClientConfig{CAData: authority.CertificatePEM(), ServerName: doorName}}
		credentials(config)
		clientset, err := kubernetes.NewForConfig(config)
		if err != nil {
			t.Fatal(err)
		}
		return clientset
	}
	files := pki.FilesIn(dir, "admin")
	if _, err := authority.Ensure(files, pki.Request{Identity: identity.Identity{Name: identity.Admin, Groups: []string{identity.Masters}}, Client: true}); err != nil {
		t.Fatal(err)
	}
	admin := connect(func(config *rest.Config) { config.CertFile, config.KeyFile = files.Certificate, files.Key })
	_, err = admin.CoreV1().Secrets("kube-system").Create(c.ctx, &corek8s.Secret{
		ObjectMeta: metak8s.ObjectMeta{Name: "bootstrap-token-abcdef"}, Type: corek8s.SecretTypeBootstrapToken,
		StringData: map[string]string{"token-id": "abcdef", "token-secret": "0123456789abcdef", "usage-bootstrap-authentication": "true"},
	}, metak8s.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for role, group := range map[string]string{
		"system:node-bootstrapper": identity.Bootstrappers,
		"system:certificates.k8s.io:certificatesigningrequests:nodeclient":     identity.Bootstrappers,
		"system:certificates.k8s.io:certificatesigningrequests:selfnodeclient": identity.Nodes,
	} {
		_, err := admin.RbacV1().ClusterRoleBindings().Create(c.ctx, &rbacv1.ClusterRoleBinding{
			ObjectMeta: metak8s.ObjectMeta{GenerateName: "join-"}, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "ClusterRole", Name: role},
			Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.GroupKind, Name: group}},
		}, metak8s.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	asNode := x509.CertificateRequest{Subject: pkix.Name{CommonName: name, Organization: []string{identity.Nodes}}}
	ask := func(as *kubernetes.Clientset, called, signer string, k keyed, usages ...certificatesk8s.KeyUsage) {
		t.Helper()
		_, err := as.CertificatesV1().CertificateSigningRequests().Create(c.ctx, &certificatesk8s.CertificateSigningRequest{
			ObjectMeta: metak8s.ObjectMeta{Name: called}, Spec: certificatesk8s.CertificateSigningRequestSpec{Request: k.request, SignerName: signer, Usages: usages},
		}, metak8s.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
	}
	answered := func(called, message string) []byte {
		t.Helper()
		csr := eventuallyOne(c, "", called, "the request is approved and signed", func(csr *certificatesv1.CertificateSigningRequest) bool {
			return len(csr.GetStatus().GetCertificate()) > 0
		})
		if approval := csr.GetStatus().GetConditions()[0]; approval.GetType() != "Approved" || approval.GetReason() != "AutoApproved" || approval.GetMessage() != message {
			t.Errorf("%v", approval)
		}
		return csr.GetStatus().GetCertificate()
	}
	join := connect(func(config *rest.Config) { config.BearerToken = "abcdef.0123456789abcdef" })
	serve := asNode
	serve.DNSNames = []string{"n9"}
	ask(join, "serving", certificatesk8s.KubeletServingSignerName, newKeyed(t, serve), "digital signature", "server auth")
	first := newKeyed(t, asNode)
	ask(join, "first", certificatesk8s.KubeAPIServerClientKubeletSignerName, first, "digital signature", "client auth")
	certificate := answered("first", "Auto approving kubelet client certificate after SubjectAccessReview.")

	node := connect(func(config *rest.Config) { config.CertData, config.KeyData = certificate, first.key })
	self, err := node.AuthenticationV1().SelfSubjectReviews().Create(c.ctx, &authenticationv1.SelfSubjectReview{}, metak8s.CreateOptions{})
	if err != nil || self.Status.UserInfo.Username != name || self.Status.UserInfo.Groups[0] != identity.Nodes {
		t.Fatalf("who am I: %+v, %v", self, err)
	}
	if _, err := node.CoreV1().Nodes().Create(c.ctx, &corek8s.Node{ObjectMeta: metak8s.ObjectMeta{Name: "n9"}}, metak8s.CreateOptions{}); err != nil {
		t.Error(err)
	}
	if _, err := node.CoreV1().Nodes().Create(c.ctx, &corek8s.Node{ObjectMeta: metak8s.ObjectMeta{Name: "n8"}}, metak8s.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("another node: %v", err)
	}
	second := newKeyed(t, asNode)
	ask(node, "second", certificatesk8s.KubeAPIServerClientKubeletSignerName, second, "digital signature", "client auth")
	certificate = answered("second", "Auto approving self kubelet client certificate after SubjectAccessReview.")
	node = connect(func(config *rest.Config) { config.CertData, config.KeyData = certificate, second.key })
	if _, err := node.CoreV1().Nodes().Get(c.ctx, "n9", metak8s.GetOptions{}); err != nil {
		t.Error(err)
	}
	// What serves is for a person to approve; and another node's is not the node's to have.
	other := asNode
	other.Subject.CommonName = "system:node:n8"
	ask(node, "others", certificatesk8s.KubeAPIServerClientKubeletSignerName, newKeyed(t, other), "digital signature", "client auth")
	third := newKeyed(t, asNode)
	ask(node, "third", certificatesk8s.KubeAPIServerClientKubeletSignerName, third, "digital signature", "client auth")
	answered("third", "Auto approving self kubelet client certificate after SubjectAccessReview.")
	for _, called := range []string{"serving", "others"} {
		if csr := get[*certificatesv1.CertificateSigningRequest](c, "", called); len(csr.GetStatus().GetConditions()) != 0 {
			t.Errorf("%s: %v", called, csr.GetStatus())
		}
	}
}
