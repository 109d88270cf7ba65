package up

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

// onHosts is a cluster whose control plane has so many hosts, of which nothing is made.
func onHosts(t *testing.T, count int) *cluster {
	t.Helper()
	c := &cluster{dir: directory(t.TempDir()), config: Config{Listen: DefaultListen, Kubernetes: DefaultKubernetes, Hosts: count}, machine: machine{ID: "abc"}}
	for i := range count {
		c.machine.Hosts = append(c.machine.Hosts, host{
			Name: fmt.Sprintf("c%d", i+1), Address: netip.AddrFrom4([4]byte{10, 89, 0, byte(203 + i)}), NetNS: fmt.Sprintf("/run/netns/c%d", i+1),
		})
	}
	return c
}

// after is the argument that follows a flag.
func after(args []string, flag string) string {
	if i := slices.Index(args, flag); i >= 0 {
		return args[i+1]
	}
	return ""
}

// No host has two of a kind, each listens at its own address, and whoever needs a service knows all places of it.
func TestServicesOnHosts(t *testing.T) {
	c := onHosts(t, 3)
	s, err := newOnHosts(c)
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string][]string{}
	for _, one := range s.services {
		name := one.netns[strings.LastIndexByte(one.netns, '/')+1:]
		if one.name != one.kind+"-"+name {
			t.Errorf("%s is on host %s", one.name, name)
		}
		kinds[one.kind] = append(kinds[one.kind], name)
		i := slices.IndexFunc(c.machine.Hosts, func(h host) bool { return h.Name == name })
		if own := c.machine.Hosts[i].Address.String() + ":"; !strings.HasPrefix(after(one.args, "--listen"), own) {
			t.Errorf("%s listens at %s", one.name, after(one.args, "--listen"))
		}
		const apiservers = "10.89.0.203:7443,10.89.0.204:7443"
		switch one.kind {
		case "store":
			if want := "c1=10.89.0.203:6439,c2=10.89.0.204:6439,c3=10.89.0.205:6439"; after(one.args, "--members") != want || after(one.args, "--member") != name || after(one.args, "--members-token") != "abc" {
				t.Errorf("%s: %v", one.name, one.args)
			}
			if dir := after(one.args, "--data-dir"); dir != c.dir.path("store", name) {
				t.Errorf("%s has its data in %s", one.name, dir)
			}
		case "apiserver":
			if want := "10.89.0.203:6440,10.89.0.204:6440,10.89.0.205:6440"; after(one.args, "--store") != want {
				t.Errorf("%s: %v", one.name, one.args)
			}
			if after(one.args, "--scheduler") != "10.89.0.204:6441,10.89.0.205:6441" || after(one.args, "--controller-manager") != "10.89.0.205:6442,10.89.0.203:6442" {
				t.Errorf("%s: %v", one.name, one.args)
			}
		case "scheduler":
			if after(one.args, "--apiserver") != apiservers || after(one.args, "--instance") != one.name || after(one.args, "--leader-elect-lease-duration") != "3s" {
				t.Errorf("%s: %v", one.name, one.args)
			}
		case "controller-manager":
			if after(one.args, "--apiserver") != apiservers || after(one.args, "--leader-elect-identity") != one.name || after(one.args, "--leader-elect-lease-duration") != "3s" {
				t.Errorf("%s: %v", one.name, one.args)
			}
		}
	}
	if want := map[string][]string{"store": {"c1", "c2", "c3"}, "apiserver": {"c1", "c2"}, "scheduler": {"c2", "c3"}, "controller-manager": {"c3", "c1"}}; fmt.Sprint(kinds) != fmt.Sprint(want) {
		t.Errorf("services on hosts %v, want %v", kinds, want)
	}
	if got := strings.Join(s.clients(), " ") + " " + strings.Join(s.kubernetes(), " "); got != "10.89.0.203:7443 10.89.0.204:7443 10.89.0.203:6443 10.89.0.204:6443" {
		t.Errorf("clients find %s", got)
	}
	if !slices.Equal(s.servers(), s.clients()) || len(s.needed) > 0 {
		t.Errorf("nodes find %v; of this machine %v is needed", s.servers(), s.needed)
	}
}

// The only host has one of each, which needs no election, and the data where a cluster without hosts has it.
func TestServicesOnOneHost(t *testing.T) {
	c := onHosts(t, 1)
	s, err := newOnHosts(c)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.services) != 4 {
		t.Errorf("%d services", len(s.services))
	}
	for _, one := range s.services {
		if one.kind == "store" && (after(one.args, "--members") != "" || after(one.args, "--data-dir") != c.dir.path("store")) {
			t.Errorf("the only store: %v", one.args)
		}
		if elected := slices.Contains(one.args, "--leader-elect=false"); elected != (one.kind == "scheduler" || one.kind == "controller-manager") {
			t.Errorf("%s: %v", one.name, one.args)
		}
	}
}

func TestHostsAreChecked(t *testing.T) {
	for _, wrong := range []struct {
		config Config
		want   string
	}{
		{Config{Hosts: 2, Listen: DefaultListen}, "--hosts 2: give 1, 3 or 5"},
		{Config{Hosts: 3, Listen: "0.0.0.0:7443"}, "--listen 0.0.0.0:7443: with --hosts"},
		{Config{Hosts: 3, Listen: DefaultListen, Kubernetes: "10.0.0.1:6443"}, "--kubernetes-listen 10.0.0.1:6443: with --hosts"},
	} {
		if err := wrong.config.checkHosts(); err == nil || !strings.Contains(err.Error(), wrong.want) {
			t.Errorf("%+v: %v", wrong.config, err)
		}
	}
	right := Config{Hosts: 3, Listen: DefaultListen, Kubernetes: DefaultKubernetes}
	if err := right.checkHosts(); err != nil || !right.Separate {
		t.Errorf("%v, separate %v", err, right.Separate)
	}
	c := onHosts(t, 3)
	c.config.Listen = "127.0.0.1:6440"
	if _, err := newOnHosts(c); err == nil || !strings.Contains(err.Error(), "port 6440") {
		t.Errorf("a port twice: %v", err)
	}
}

// Each API server has a context.
func TestKubeconfigHasAllAPIServers(t *testing.T) {
	c := onHosts(t, 3)
	if err := c.writeKubeconfig([]string{"10.89.0.203:6443", "10.89.0.204:6443"}); err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.LoadFromFile(c.dir.kubeconfig())
	if err != nil {
		t.Fatal(err)
	}
	if config.CurrentContext != "dhow" || len(config.Contexts) != 2 {
		t.Errorf("%+v", config)
	}
	for name, server := range map[string]string{"dhow": "https://10.89.0.203:6443", "dhow-2": "https://10.89.0.204:6443"} {
		context := config.Contexts[name]
		if context == nil || config.Clusters[context.Cluster].Server != server || config.AuthInfos[context.AuthInfo].ClientCertificate == "" {
			t.Errorf("context %s: %+v", name, context)
		}
	}
	if err := c.writeKubeconfig(nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(c.dir.kubeconfig()); !os.IsNotExist(err) {
		t.Errorf("a kubeconfig without a Kubernetes API: %v", err)
	}
}
