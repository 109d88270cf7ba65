package identity

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"slices"
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
}
