package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/client-go/tools/clientcmd"
)

// TestParse: what the real kind takes is taken, what it refuses is refused.
func TestParse(t *testing.T) {
	for line, want := range map[string]string{
		"create cluster --name a --image=i --config - --kubeconfig f --wait 5m": "",
		"create cluster -n a --retain -q":                                       "",
		"create cluster --name":                                                 "flag needs an argument",
		"create cluster --wait 5":                                               "invalid argument",
		"create cluster --workers 3":                                            "unknown flag: --workers",
		"create cluster a":                                                      "does not take the arguments",
		"create":                                                                "no command",
		"create node":                                                           "unknown command",
		"load image-archive a.tar b.tar --name a --nodes x,y":                   "",
		"load image-archive --name a":                                           "does not take the arguments",
		"load image-archive a.tar --kubeconfig f":                               "unknown flag: --kubeconfig",
		"delete cluster --name a --kubeconfig f":                                "",
		"delete cluster a":                                                      "does not take the arguments",
	} {
		c, err := parse(strings.Fields(line))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("kind %s: %v, want %q", line, err, want)
		}
		if want == "" && c.flags["name"] != "a" {
			t.Errorf("kind %s: name %q", line, c.flags["name"])
		}
	}
}

const access = `{apiVersion: v1, kind: Config, current-context: dhow, clusters: [{name: c, cluster: {server: "https://127.0.0.1:6443"}}], users: [{name: u, user: {token: t}}],
  contexts: [{name: dhow, context: {cluster: c, user: u}}]}`

// TestLife: a cluster is made once, named as kind names it, and gone from the kubeconfig when it is deleted, which may happen twice.
func TestLife(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"recorded.json": `{"DataDir": "` + dir + `"}`, "data": "", "kubeconfig": access} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "given")
	does := func(line, stdin, want string) {
		t.Helper()
		if err := run(dir, strings.Fields(line), strings.NewReader(stdin)); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("kind %s: %v, want %q", line, err, want)
		}
	}
	const config = "{kind: Cluster, apiVersion: kind.x-k8s.io/v1alpha4, nodes: [{role: control-plane}, {role: worker}]}"
	create := "create cluster --name a --image i --config - --kubeconfig " + file
	does(create, `{kind: Cluster, apiVersion: v1}`, "unknown apiVersion")
	does(create, strings.Replace(config, "worker", "agent", 1), "not a valid node role")
	does(create, strings.Replace(config, "control-plane", "worker", 1), "at least one control-plane")
	does(create, strings.Replace(config, "nodes", "node", 1), "unable to decode config")
	does("load image-archive --name a "+file, "", "no nodes found")
	does(create, config, "")
	does(create, config, "already exist")
	got, err := clientcmd.LoadFromFile(file)
	if err != nil || got.CurrentContext != "kind-a" || got.Clusters[got.Contexts["kind-a"].Cluster].Server != "https://127.0.0.1:6443" {
		t.Errorf("%+v, %v", got, err)
	}
	does("delete cluster --name a --kubeconfig "+file, "", "")
	does("delete cluster --name a --kubeconfig "+file, "", "")
	if got, err := clientcmd.LoadFromFile(file); err != nil || len(got.Contexts) > 0 {
		t.Errorf("after the deletion: %+v, %v", got, err)
	}
	if record, err := os.ReadFile(filepath.Join(dir, "record")); err != nil || strings.Count(string(record), "\n") != 9 {
		t.Errorf("recorded: %s, %v", record, err)
	}
}
