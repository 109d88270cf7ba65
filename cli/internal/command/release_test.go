package command

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	corek8s "k8s.io/api/core/v1"
	kmetav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"

	"dhow.dev/cli/internal/connect"
	"dhow.dev/cli/internal/release"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
	"sigs.k8s.io/yaml"
)

// outer is a cluster that a control plane is installed into, and what `dhow release certificates` makes there.
type outer struct {
	*cluster
	kubeconfig string
	secrets    corev1client.SecretInterface
}

func newOuter(t *testing.T) *outer {
	t.Helper()
	c := newCluster(t)
	c.pair("admin", adminRequest())
	config := clientcmdapi.NewConfig()
	config.Clusters["c"] = &clientcmdapi.Cluster{Server: "https://" + c.kubernetes, CertificateAuthority: filepath.Join(c.dir, "ca.crt")}
	config.AuthInfos["u"] = &clientcmdapi.AuthInfo{ClientCertificate: filepath.Join(c.dir, "admin.crt"), ClientKey: filepath.Join(c.dir, "admin.key")}
	config.Contexts["x"] = &clientcmdapi.Context{Cluster: "c", AuthInfo: "u"}
	config.CurrentContext = "x"
	content, err := clientcmd.Write(*config)
	if err != nil {
		t.Fatal(err)
	}
	o := &outer{cluster: c, kubeconfig: c.file("kubeconfig", string(content))}
	access, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	client, err := corev1client.NewForConfig(access)
	if err != nil {
		t.Fatal(err)
	}
	o.secrets = client.Secrets("default")
	return o
}

// certificates runs the command, with more arguments.
func (o *outer) certificates(args ...string) result {
	o.t.Helper()
	out, problems := newOutput(), newOutput()
	streams := Streams{In: strings.NewReader(""), Out: out, Err: problems}
	ctx, cancel := context.WithTimeout(o.t.Context(), patience)
	defer cancel()
	code := Main(ctx, append([]string{
		"release", "certificates", "--kubeconfig", o.kubeconfig, "--namespace", "default", "--name", "plane", "--label", "a=b", "--dir", o.dir,
		"--store-name", "*.plane-store-members", "--apiserver-name", "plane-apiserver,203.0.113.1", "--service-cidr", "10.50.0.0/16", "--server", "plane-apiserver:7443", "--kubernetes-server", "https://plane-apiserver:6443",
	}, args...), streams, NewRelease(streams))
	return result{code, out.String(), problems.String()}
}

func (o *outer) made(args ...string) string {
	o.t.Helper()
	r := o.certificates(args...)
	if r.code != 0 {
		o.t.Fatalf("exit code %d: %s%s", r.code, r.out, r.err)
	}
	return r.out
}

func (o *outer) secret(what string) *corek8s.Secret {
	o.t.Helper()
	found, err := o.secrets.Get(o.t.Context(), "plane-"+what, kmetav1.GetOptions{})
	if err != nil {
		o.t.Fatal(err)
	}
	return found
}

// all are the data of all Secrets.
func (o *outer) all() map[string]map[string][]byte {
	o.t.Helper()
	list, err := o.secrets.List(o.t.Context(), kmetav1.ListOptions{LabelSelector: "a=b"})
	if err != nil {
		o.t.Fatal(err)
	}
	all := map[string]map[string][]byte{}
	for _, s := range list.Items {
		all[s.Name] = s.Data
	}
	return all
}

func (o *outer) delete(what ...string) {
	o.t.Helper()
	for _, w := range what {
		if err := o.secrets.Delete(o.t.Context(), "plane-"+w, kmetav1.DeleteOptions{}); err != nil {
			o.t.Fatal(err)
		}
	}
}

func parsed(t *testing.T, data []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(data)
	if block == nil {
		t.Fatalf("no certificate: %s", data)
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return certificate
}

func TestReleaseMakesSecrets(t *testing.T) {
	o := newOuter(t)
	o.made()
	all := o.all()
	want := []string{"plane-admin", "plane-apiserver", "plane-ca", "plane-controller-manager", "plane-keys", "plane-scheduler", "plane-store"}
	if got := slices.Sorted(maps.Keys(all)); !slices.Equal(got, want) {
		t.Fatalf("secrets %v, want %v", got, want)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed(t, all["plane-ca"]["tls.crt"]))
	for name, id := range map[string]string{
		"store": identity.Store, "apiserver": identity.APIServer, "scheduler": identity.Scheduler, "controller-manager": identity.ControllerManager, "admin": identity.Admin,
	} {
		data := all["plane-"+name]
		certificate := parsed(t, data["tls.crt"])
		if certificate.Subject.CommonName != id {
			t.Errorf("%s is %s, want %s", name, certificate.Subject.CommonName, id)
		}
		options := x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
		if _, err := certificate.Verify(options); err != nil {
			t.Errorf("%s as a client: %v", name, err)
		}
		names := map[string]string{"store": "store.dhow", "apiserver": "apiserver.dhow", "scheduler": "scheduler.dhow", "controller-manager": "controller-manager.dhow"}
		if name != "admin" && certificate.VerifyHostname(names[name]) != nil {
			t.Errorf("%s is for %v", name, certificate.DNSNames)
		}
		files := pki.FilesIn(t.TempDir(), name)
		if err := files.Write(data["ca.crt"], data["tls.crt"], data["tls.key"]); err != nil {
			t.Fatal(err)
		}
		if _, err := pki.LoadKeyPair(files); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	apiserver := parsed(t, all["plane-apiserver"]["tls.crt"])
	for _, host := range []string{"plane-apiserver", "203.0.113.1", "10.50.0.1", "127.0.0.1", "localhost", "kubernetes.default.svc"} {
		if err := apiserver.VerifyHostname(host); err != nil {
			t.Error(err)
		}
	}
	if err := parsed(t, all["plane-store"]["tls.crt"]).VerifyHostname("plane-store-2.plane-store-members"); err != nil {
		t.Error(err)
	}
	if admin := parsed(t, all["plane-admin"]["tls.crt"]); !slices.Equal(admin.Subject.Organization, []string{identity.Masters}) {
		t.Errorf("the administrator's groups: %v", admin.Subject.Organization)
	}
	kubeconfig, err := clientcmd.RESTConfigFromKubeConfig(all["plane-admin"]["kubeconfig"])
	if err != nil {
		t.Fatal(err)
	}
	if kubeconfig.Host != "https://plane-apiserver:6443" || kubeconfig.ServerName != "apiserver.dhow" || !bytes.Equal(kubeconfig.CertData, all["plane-admin"]["tls.crt"]) {
		t.Errorf("kubeconfig: %s, %s", kubeconfig.Host, kubeconfig.ServerName)
	}
	var client connect.Config
	if err := yaml.UnmarshalStrict(all["plane-admin"]["client.yaml"], &client); err != nil || !slices.Equal(client.Servers, []string{"plane-apiserver:7443"}) || client.Key != "tls.key" {
		t.Errorf("client.yaml: %+v, %v", client, err)
	}
}

// TestReleaseStays: what is there and good is left alone, whoever made it and how often it is looked at.
func TestReleaseStays(t *testing.T) {
	o := newOuter(t)
	o.made()
	before := o.all()
	if out := o.made(); strings.Contains(out, "made") || strings.Contains(out, "renewed") {
		t.Errorf("the second time:\n%s", out)
	}
	if after := o.all(); !maps.EqualFunc(before, after, func(a, b map[string][]byte) bool { return maps.EqualFunc(a, b, bytes.Equal) }) {
		t.Error("the second time something was changed")
	}
}

// TestReleaseRenews: a certificate whose time has come, or that is for other names, or is damaged, is issued anew by the same authority; what others have put beside it stays.
func TestReleaseRenews(t *testing.T) {
	o := newOuter(t)
	o.made()
	ca, keys, store := o.secret("ca"), o.secret("keys"), o.secret("store")
	dir := t.TempDir()
	for key, file := range map[string]string{"tls.crt": "ca.crt", "tls.key": "ca.key"} {
		if err := os.WriteFile(filepath.Join(dir, file), ca.Data[key], 0o600); err != nil {
			t.Fatal(err)
		}
	}
	authority, err := pki.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	// Clocks may differ by five minutes, so it began five minutes ago: more than two thirds of its life are over.
	request := pki.Request{Identity: identity.Identity{Name: identity.Scheduler}, DNSNames: []string{"scheduler.dhow", "localhost"}, Server: true, Client: true, TTL: time.Minute}
	certificate, key, err := authority.Issue(request)
	if err != nil {
		t.Fatal(err)
	}
	old := o.secret("scheduler")
	old.Data["tls.crt"], old.Data["tls.key"], old.Data["mine"] = certificate, key, []byte("x")
	damaged := o.secret("controller-manager")
	damaged.Data["tls.key"] = []byte("?")
	for _, s := range []*corek8s.Secret{old, damaged} {
		if _, err := o.secrets.Update(t.Context(), s, kmetav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	out := o.made("--apiserver-name", "another")
	for _, name := range []string{"scheduler", "controller-manager", "apiserver"} {
		if !strings.Contains(out, "secret plane-"+name+": renewed") {
			t.Errorf("%s is not renewed:\n%s", name, out)
		}
	}
	renewed := o.secret("scheduler")
	if fresh := parsed(t, renewed.Data["tls.crt"]); fresh.NotAfter.Before(time.Now().Add(24*time.Hour)) || string(renewed.Data["mine"]) != "x" {
		t.Errorf("until %s, beside it %q", fresh.NotAfter, renewed.Data["mine"])
	}
	if err := parsed(t, o.secret("apiserver").Data["tls.crt"]).VerifyHostname("another"); err != nil {
		t.Error(err)
	}
	for what, before := range map[string]*corek8s.Secret{"ca": ca, "keys": keys, "store": store} {
		if !maps.EqualFunc(before.Data, o.secret(what).Data, bytes.Equal) {
			t.Errorf("%s was changed", what)
		}
	}
}

// TestReleaseReplacesNoSecretOfWhichThereIsOne: what was there and is gone is asked for, not made anew.
func TestReleaseReplacesNoSecretOfWhichThereIsOne(t *testing.T) {
	o := newOuter(t)
	o.made()
	fails := func(want string) {
		t.Helper()
		if r := o.certificates(); r.code != 1 || !strings.Contains(r.err, want) {
			t.Errorf("exit code %d: %s, want %q", r.code, r.err, want)
		}
	}
	keys, ca := o.secret("keys"), o.secret("ca")
	restore := func(s *corek8s.Secret) {
		t.Helper()
		s = s.DeepCopy()
		s.ObjectMeta = kmetav1.ObjectMeta{Name: s.Name, Labels: s.Labels}
		if _, err := o.secrets.Create(t.Context(), s, kmetav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	o.delete("keys")
	fails("secret plane-keys is missing, but plane-ca, which was made after it, is there: restore it from a backup")
	restore(keys)
	o.delete("ca")
	fails("secret plane-ca is missing, but plane-apiserver, which was made after it, is there: restore it from a backup")
	restore(ca)
	partly := o.secret("keys")
	delete(partly.Data, "encryption.key")
	if _, err := o.secrets.Update(t.Context(), partly, kmetav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	fails("secret plane-keys has no encryption.key: restore it from a backup")
	o.delete("keys", "ca", "apiserver", "admin", "store", "scheduler", "controller-manager")
	o.made()
}

// TestReleaseAtOnce: jobs that run at the same time make one authority.
func TestReleaseAtOnce(t *testing.T) {
	o := newOuter(t)
	results := make(chan result, 4)
	for range cap(results) {
		go func() { results <- o.certificates() }()
	}
	for range cap(results) {
		if r := <-results; r.code != 0 {
			t.Errorf("exit code %d: %s%s", r.code, r.out, r.err)
		}
	}
	authority := parsed(t, o.secret("ca").Data["tls.crt"])
	for _, name := range []string{"store", "apiserver", "scheduler", "controller-manager", "admin"} {
		if err := parsed(t, o.secret(name).Data["tls.crt"]).CheckSignatureFrom(authority); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReleaseKeysOnly(t *testing.T) {
	o := newOuter(t)
	o.made("--keys-only")
	if got := slices.Sorted(maps.Keys(o.all())); !slices.Equal(got, []string{"plane-keys"}) {
		t.Errorf("secrets %v", got)
	}
}

// TestReleaseKeys: the keys are for their owner alone, and a container that is started again finds them.
func TestReleaseKeys(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	for _, name := range release.KeyFiles {
		if err := os.WriteFile(filepath.Join(from, name), []byte(name), 0o444); err != nil {
			t.Fatal(err)
		}
	}
	copied := func() result {
		out := newOutput()
		streams := Streams{In: strings.NewReader(""), Out: out, Err: out}
		return result{Main(t.Context(), []string{"release", "keys", "--from", from, "--to", to}, streams, NewRelease(streams)), out.String(), out.String()}
	}
	for range 2 {
		if r := copied(); r.code != 0 {
			t.Fatalf("exit code %d: %s", r.code, r.err)
		}
	}
	for _, name := range release.KeyFiles {
		info, err := os.Stat(filepath.Join(to, name))
		if err != nil {
			t.Fatal(err)
		}
		if content, err := os.ReadFile(filepath.Join(to, name)); err != nil || string(content) != name || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %q, mode %o, %v", name, content, info.Mode().Perm(), err)
		}
	}
	if err := os.Remove(filepath.Join(from, release.KeyFiles[0])); err != nil {
		t.Fatal(err)
	}
	if r := copied(); r.code != 1 || !strings.Contains(r.err, release.KeyFiles[0]) {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
}

func TestReleaseSaysWhatIsMissing(t *testing.T) {
	for want, args := range map[string][]string{
		"give --name":      {},
		"give --server":    {"--name", "plane"},
		"give --namespace": {"--name", "plane", "--keys-only"},
		"--service-cidr":   {"--name", "plane", "--keys-only", "--namespace", "default", "--service-cidr", "all"},
	} {
		out := newOutput()
		streams := Streams{In: strings.NewReader(""), Out: out, Err: out}
		if code := Main(t.Context(), append([]string{"release", "certificates"}, args...), streams, NewRelease(streams)); code != 1 || !strings.Contains(strings.ToLower(out.String()), want) {
			t.Errorf("%v: exit code %d: %s, want %s", args, code, out.String(), want)
		}
	}
}
