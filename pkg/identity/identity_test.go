package identity

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"slices"
	"strings"
	"testing"
)

func TestContext(t *testing.T) {
	if _, ok := FromContext(t.Context()); ok {
		t.Fatal("an empty context has an identity")
	}
	ctx := NewContext(t.Context(), Identity{Name: Admin, Groups: []string{Masters}})
	got, ok := FromContext(ctx)
	if !ok || got.Name != Admin || !got.InGroup(Masters) || got.InGroup(Nodes) {
		t.Fatalf("FromContext = %+v, %v", got, ok)
	}
}

func TestNodeName(t *testing.T) {
	for _, tc := range []struct {
		id   Identity
		want string
		ok   bool
	}{
		{Node("n1"), "n1", true},
		{Identity{Name: "system:node:n1"}, "", false},
		{Identity{Name: "system:node:", Groups: []string{Nodes}}, "", false},
		{Identity{Name: "n1", Groups: []string{Nodes}}, "", false},
	} {
		name, ok := tc.id.NodeName()
		if ok != tc.ok || (ok && name != tc.want) {
			t.Errorf("%+v: NodeName = %q, %v, want %q, %v", tc.id, name, ok, tc.want, tc.ok)
		}
	}
}

func TestFromCertificate(t *testing.T) {
	id, err := FromCertificate(&x509.Certificate{Subject: pkix.Name{CommonName: "system:node:a", Organization: []string{Nodes}}})
	if err != nil || id.Name != "system:node:a" || !slices.Equal(id.Groups, []string{Nodes}) {
		t.Fatalf("FromCertificate = %+v, %v", id, err)
	}
	if _, err := FromCertificate(&x509.Certificate{}); err == nil {
		t.Fatal("a certificate without common name was accepted")
	}
	named := func(uids ...string) *x509.Certificate {
		subject := pkix.Name{CommonName: "jane"}
		for _, uid := range uids {
			subject.Names = append(subject.Names, pkix.AttributeTypeAndValue{Type: oidUID, Value: uid})
		}
		return &x509.Certificate{Raw: []byte("der"), Subject: subject}
	}
	id, err = FromCertificate(named("42"))
	if err != nil || id.UID != "42" || !strings.HasPrefix(id.Extra[ExtraCredentialID][0], "X509SHA256=") {
		t.Fatalf("FromCertificate = %+v, %v", id, err)
	}
	if _, err := FromCertificate(named("1", "2")); err == nil {
		t.Fatal("a certificate with two UIDs was accepted")
	}
}

func TestServiceAccountName(t *testing.T) {
	for name, want := range map[string][2]string{
		ServiceAccount("default", "builder"): {"default", "builder"},
		"system:serviceaccount:default:":     {},
		"system:serviceaccount::x":           {},
		"system:serviceaccount:a:b:c":        {},
		"system:serviceaccount:a":            {},
		"jane":                               {},
	} {
		namespace, account, ok := Identity{Name: name}.ServiceAccountName()
		if namespace != want[0] || account != want[1] || ok != (want[0] != "") {
			t.Errorf("%q: %q, %q, %v", name, namespace, account, ok)
		}
	}
}

func TestAuthenticated(t *testing.T) {
	groups := make([]string, 1, 4)
	groups[0] = "a"
	id := Identity{Name: "jane", Groups: groups}
	got := id.Authenticated()
	if !slices.Equal(got.Groups, []string{"a", AllAuthenticated}) || !slices.Equal(got.Authenticated().Groups, got.Groups) {
		t.Fatalf("groups %v", got.Groups)
	}
	if other := append(groups, "b"); got.Groups[1] != AllAuthenticated || other[1] != "b" {
		t.Fatal("the groups share their memory")
	}
	if nobody := Unauthenticated().Authenticated(); nobody.InGroup(AllAuthenticated) {
		t.Fatalf("anonymous is in %v", nobody.Groups)
	}
}
