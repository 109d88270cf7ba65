package controllermanager_test

import (
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	authenticationv1 "dhow.dev/gen/go/dhow/authentication/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
)

func tokenSecret(name, account string) *corev1.Secret {
	return corev1.Secret_builder{
		Metadata: metav1.ObjectMeta_builder{
			Namespace: proto.String("default"), Name: proto.String(name), Annotations: map[string]string{"kubernetes.io/service-account.name": account},
		}.Build(),
		Type: proto.String("kubernetes.io/service-account-token"),
	}.Build()
}

// review asks the API server whose token it is.
func (c *cluster) review(token []byte) *authenticationv1.TokenReviewStatus {
	c.t.Helper()
	answer, err := client.For[*authenticationv1.TokenReview](c.conn).Create(c.ctx, authenticationv1.TokenReview_builder{
		Spec: authenticationv1.TokenReviewSpec_builder{Token: proto.String(string(token))}.Build(),
	}.Build(), nil)
	if err != nil {
		c.t.Fatalf("review: %v", err)
	}
	return answer.GetStatus()
}

func TestTokenSecrets(t *testing.T) {
	c := newCluster(t, nil)
	account := create(c, corev1.ServiceAccount_builder{Metadata: meta("builder")}.Build())
	create(c, tokenSecret("filled", "builder"))
	filled := eventuallyOne(c, "default", "filled", "the token", func(s *corev1.Secret) bool { return len(s.GetData()["token"]) > 0 })
	if data := filled.GetData(); string(data["ca.crt"]) != "a certificate" || string(data["namespace"]) != "default" ||
		filled.GetMetadata().GetAnnotations()["kubernetes.io/service-account.uid"] != account.GetMetadata().GetUid() {
		t.Errorf("secret %v", filled)
	}
	token := filled.GetData()["token"]
	if status := c.review(token); !status.GetAuthenticated() || status.GetUser().GetUsername() != "system:serviceaccount:default:builder" ||
		status.GetUser().GetUid() != account.GetMetadata().GetUid() {
		t.Errorf("review %v", status)
	}

	// What is taken out is put back; what is there stays.
	edit(c, "default", "filled", func(s *corev1.Secret) { s.SetData(map[string][]byte{"token": token, "own": []byte("x")}) })
	again := eventuallyOne(c, "default", "filled", "the certificate again", func(s *corev1.Secret) bool { return len(s.GetData()["ca.crt"]) > 0 })
	if data := again.GetData(); string(data["token"]) != string(token) || string(data["own"]) != "x" {
		t.Errorf("secret %v", again)
	}

	// A Secret without an account goes, and one of an account goes with it; its token ends.
	create(c, tokenSecret("stray", "missing"))
	gone[*corev1.Secret](c, "default", "stray")
	remove[*corev1.ServiceAccount](c, "default", "builder", nil)
	gone[*corev1.Secret](c, "default", "filled")
	create(c, corev1.ServiceAccount_builder{Metadata: meta("builder")}.Build())
	if status := c.review(token); status.GetAuthenticated() || status.GetError() == "" {
		t.Errorf("after its account went: %v", status)
	}
}

func joinToken(id, expiration string) *corev1.Secret {
	return corev1.Secret_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String("kube-system"), Name: proto.String("bootstrap-token-" + id)}.Build(),
		Type:     proto.String("bootstrap.kubernetes.io/token"),
		Data: map[string][]byte{
			"token-id": []byte(id), "token-secret": []byte("0123456789abcdef"), "usage-bootstrap-authentication": []byte("true"), "expiration": []byte(expiration),
		},
	}.Build()
}

// Tokens to join with are deleted when their time is over, whether it was when the controller saw them first or comes later; others stay.
func TestExpiredBootstrapTokensAreDeleted(t *testing.T) {
	c := newCluster(t, nil)
	stays := create(c, joinToken("aaaaaa", time.Now().Add(time.Hour).UTC().Format(time.RFC3339)))
	create(c, joinToken("bbbbbb", ""))
	create(c, joinToken("cccccc", time.Now().Add(-time.Hour).UTC().Format(time.RFC3339)))
	create(c, joinToken("dddddd", time.Now().Add(2*time.Second).UTC().Format(time.RFC3339)))
	gone[*corev1.Secret](c, "kube-system", "bootstrap-token-cccccc")
	gone[*corev1.Secret](c, "kube-system", "bootstrap-token-dddddd")
	for _, name := range []string{"bootstrap-token-aaaaaa", "bootstrap-token-bbbbbb"} {
		if _, err := client.For[*corev1.Secret](c.conn).Get(c.ctx, "kube-system", name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	// One whose end is brought forward goes too.
	stays.GetData()["expiration"] = []byte("2020-01-01T00:00:00Z")
	edit(c, "kube-system", stays.GetMetadata().GetName(), func(s *corev1.Secret) { s.SetData(stays.GetData()) })
	gone[*corev1.Secret](c, "kube-system", "bootstrap-token-aaaaaa")
}
