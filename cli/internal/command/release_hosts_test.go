package command

import (
	"bytes"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/tools/clientcmd"

	"dhow.dev/cli/internal/connect"
	"dhow.dev/cli/internal/release"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
)

var threeHosts = []string{"c1=192.0.2.1", "c2=192.0.2.2", "c3=192.0.2.3"}

// releaseHosts runs the command.
func releaseHosts(t *testing.T, dir string, args ...string) result {
	t.Helper()
	out, problems := newOutput(), newOutput()
	streams := Streams{In: strings.NewReader(""), Out: out, Err: problems}
	code := Main(t.Context(), append([]string{"release", "hosts", "--dir", dir}, args...), streams, NewRelease(streams))
	return result{code, out.String(), problems.String()}
}

func madeHosts(t *testing.T, dir string, args ...string) string {
	t.Helper()
	r := releaseHosts(t, dir, args...)
	if r.code != 0 {
		t.Fatalf("exit code %d: %s%s", r.code, r.out, r.err)
	}
	return r.out
}

// filesBelow are the contents of all files, by path.
func filesBelow(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	if err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		all[name] = string(content)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// hostSettings reads a host's dhow.env.
func hostSettings(t *testing.T, dir, host string) map[string]string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(dir, "hosts", host, "dhow.env"))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]string{}
	for line := range strings.Lines(string(content)) {
		name, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if !ok && !strings.HasPrefix(line, "#") || strings.ContainsAny(line, `"'$\`) && ok {
			t.Errorf("a line that systemd and compose do not read alike: %q", line)
		}
		if ok {
			all[name] = value
		}
	}
	return all
}

func TestReleaseHostsMakesTheirFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cluster")
	madeHosts(t, dir, append(threeHosts, "--node", "n1=192.0.2.11", "--apiserver-name", "api.example,203.0.113.9", "--service-cidr", "10.50.0.0/16")...)
	wanted := map[string][]string{
		"store": {"tls.crt", "tls.key", "ca.crt"}, "apiserver": {"tls.crt", "tls.key", "ca.crt", "encryption.key", "token-keys.pem"},
		"scheduler": {"tls.crt", "tls.key", "ca.crt"}, "controller-manager": {"tls.crt", "tls.key", "ca.crt", "ca.key"},
	}
	identities := map[string]string{"store": identity.Store, "apiserver": identity.APIServer, "scheduler": identity.Scheduler, "controller-manager": identity.ControllerManager}
	for i, host := range []string{"c1", "c2", "c3"} {
		folder := filepath.Join(dir, "hosts", host)
		if info, err := os.Stat(folder); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v: services with users of their own go through it", folder, info, err)
		}
		for service, files := range wanted {
			for _, name := range files {
				info, err := os.Stat(filepath.Join(folder, service, name))
				if err != nil || info.Mode().Perm() != 0o600 {
					t.Errorf("%s/%s/%s: %v, %v", host, service, name, info, err)
				}
			}
			if info, err := os.Stat(filepath.Join(folder, service)); err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("%s/%s: %v, %v", host, service, info, err)
			}
			pair, err := pki.LoadKeyPair(pki.FilesIn(filepath.Join(folder, service), "tls"))
			if err != nil {
				t.Fatal(err)
			}
			certificate := pair.Certificate()
			own, other := netip.MustParseAddr("192.0.2.1"), "192.0.2.2"
			for range i {
				own = own.Next()
			}
			if i == 1 {
				other = "192.0.2.1"
			}
			names := []string{service + ".dhow", own.String(), "127.0.0.1"}
			if service == "apiserver" {
				names = append(names, "api.example", "203.0.113.9", "10.50.0.1", "kubernetes.default.svc")
			}
			for _, name := range names {
				if err := certificate.VerifyHostname(name); err != nil {
					t.Errorf("%s/%s: %v", host, service, err)
				}
			}
			if certificate.VerifyHostname(other) == nil || certificate.Subject.CommonName != identities[service] {
				t.Errorf("%s/%s is %s, and for %s", host, service, certificate.Subject, other)
			}
			if left := time.Until(certificate.NotAfter); left < release.HostsTTL-time.Hour {
				t.Errorf("%s/%s ends in %s", host, service, left)
			}
		}
		env := hostSettings(t, dir, host)
		for name, want := range map[string]string{
			"DHOW_HOST": host, "DHOW_APISERVERS": "192.0.2.1:7443,192.0.2.2:7443,192.0.2.3:7443", "DHOW_STORES": "192.0.2.1:6440,192.0.2.2:6440,192.0.2.3:6440",
			"DHOW_SERVICE_CIDR": "10.50.0.0/16", "DHOW_DNS_ADDRESS": "10.50.0.10", "DHOW_POD_CIDR": "10.244.0.0/16",
		} {
			if env[name] != want {
				t.Errorf("%s: %s=%s, want %s", host, name, env[name], want)
			}
		}
		if members := env["DHOW_STORE_MEMBERS"]; !strings.HasPrefix(members, "--member="+host+" --members=c1=192.0.2.1:6439,c2=192.0.2.2:6439,c3=192.0.2.3:6439 --member-listen="+env["DHOW_ADDRESS"]+":6439 --members-token=") ||
			members[len(members)-17:] != hostSettings(t, dir, "c1")["DHOW_STORE_MEMBERS"][len(members)-17:] {
			t.Errorf("%s: members %s", host, members)
		}
	}
	if files := slices.Sorted(maps.Keys(filesBelow(t, filepath.Join(dir, "hosts", "n1")))); !slices.Equal(files, []string{"dhow.env"}) || hostSettings(t, dir, "n1")["DHOW_STORES"] != "" {
		t.Errorf("a machine that only runs pods has %v", files)
	}
	client, err := connect.Load(filepath.Join(dir, "admin", "client.yaml"))
	if err != nil || len(client.Servers) != 3 {
		t.Errorf("client.yaml: %+v, %v", client, err)
	}
	if _, err := pki.LoadKeyPair(pki.Files{Authority: client.CertificateAuthority, Certificate: client.Certificate, Key: client.Key}); err != nil {
		t.Error(err)
	}
	kubeconfig, err := clientcmd.LoadFromFile(filepath.Join(dir, "admin", "kubeconfig"))
	if err != nil || len(kubeconfig.Contexts) != 3 || kubeconfig.CurrentContext != "dhow" || kubeconfig.Clusters["dhow-2"].Server != "https://192.0.2.2:6443" {
		t.Errorf("kubeconfig: %+v, %v", kubeconfig, err)
	}
}

func TestReleaseHostsOfOneHost(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cluster")
	madeHosts(t, dir, "c1=192.0.2.1")
	if env := hostSettings(t, dir, "c1"); env["DHOW_STORE_MEMBERS"] != "" || env["DHOW_STORES"] != "192.0.2.1:6440" {
		t.Errorf("settings %v", env)
	}
}

// TestReleaseHostsRenews: run again it changes nothing but certificates that are due, or for other names; what cannot be made again is asked for.
func TestReleaseHostsRenews(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cluster")
	madeHosts(t, dir, threeHosts...)
	before := filesBelow(t, dir)
	madeHosts(t, dir, threeHosts...)
	if after := filesBelow(t, dir); !maps.Equal(before, after) {
		t.Error("the second time something was changed")
	}
	madeHosts(t, dir, append(threeHosts, "--apiserver-name", "another", "--node", "n1=192.0.2.11")...)
	for name, content := range filesBelow(t, dir) {
		renewed := strings.Contains(name, "/apiserver/tls.") || strings.HasPrefix(name, "hosts/n1/")
		if renewed == (before[name] == content) {
			t.Errorf("%s: renewed %v", name, !renewed)
		}
	}
	authority, err := pki.Load(filepath.Join(dir, "authority"))
	if err != nil {
		t.Fatal(err)
	}
	// Clocks may differ by five minutes, so it began five minutes ago: more than two thirds of its life are over.
	certificate, key, err := authority.Issue(pki.Request{Identity: identity.Identity{Name: identity.Scheduler}, DNSNames: []string{"scheduler.dhow", "localhost"}, Server: true, Client: true, TTL: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	files := pki.FilesIn(filepath.Join(dir, "hosts", "c2", "scheduler"), "tls")
	if err := files.Write(authority.CertificatePEM(), certificate, key); err != nil {
		t.Fatal(err)
	}
	madeHosts(t, dir, threeHosts...)
	if renewed, err := os.ReadFile(files.Certificate); err != nil || bytes.Equal(renewed, certificate) {
		t.Errorf("a certificate that is due was not renewed: %v", err)
	}

	for _, gone := range []string{"keys", "authority"} {
		path := filepath.Join(dir, gone)
		if err := os.Rename(path, path+".away"); err != nil {
			t.Fatal(err)
		}
		if r := releaseHosts(t, dir, threeHosts...); r.code != 1 || !strings.Contains(r.err, path+" is missing") || !strings.Contains(r.err, "restore it from a backup") {
			t.Errorf("without %s: exit code %d: %s", gone, r.code, r.err)
		}
		if err := os.Rename(path+".away", path); err != nil {
			t.Fatal(err)
		}
	}
	madeHosts(t, dir, threeHosts...)
}

func TestReleaseHostsRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cluster")
	madeHosts(t, dir, threeHosts...)
	before := filesBelow(t, dir)
	for want, args := range map[string][]string{
		"give 1, 3 or 5":              {"c1=192.0.2.1", "c2=192.0.2.2"},
		"give NAME=ADDRESS":           {"c1"},
		"host c1: ":                   {"c1=here"},
		"give the IPv4 address":       {"c1=127.0.0.1"},
		"a name has lower-case":       {"C1=192.0.2.1"},
		"another host has that":       {"c1=192.0.2.1", "--node", "n1=192.0.2.1"},
		"--pod-cidr":                  {"c1=192.0.2.1", "--pod-cidr", "fd00::/64"},
		"tenth address":               {"c1=192.0.2.1", "--service-cidr", "10.0.0.0/30"},
		"stores of this cluster are":  {"c1=192.0.2.1"},
		"are on other hosts, and can": {"c1=192.0.2.1", "c2=192.0.2.2", "c3=192.0.2.4"},
		"back it up (dhow backup)":    {"d1=192.0.2.7"},
		"cannot move":                 {"c2=192.0.2.1", "c1=192.0.2.2", "c3=192.0.2.3"},
	} {
		if r := releaseHosts(t, dir, args...); r.code != 1 || !strings.Contains(r.err, want) {
			t.Errorf("%v: exit code %d: %s, want %s", args, r.code, r.err, want)
		}
	}
	if after := filesBelow(t, dir); !maps.Equal(before, after) {
		t.Error("what was refused has changed files")
	}
	if r := releaseHosts(t, "", threeHosts...); r.code != 1 || !strings.Contains(r.err, "--dir") {
		t.Errorf("without a folder: exit code %d: %s", r.code, r.err)
	}
}
