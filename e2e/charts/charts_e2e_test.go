//go:build e2e

package charts

import (
	"bytes"
	"errors"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestLint: both versions of Helm that are in use find nothing wrong.
func TestLint(t *testing.T) {
	for _, chart := range all {
		args := []string{"lint", "--strict", archive(chart)}
		for _, set := range needed[chart] {
			args = append(args, "--set-json", set)
		}
		for _, version := range []string{"helm4", "helm3"} {
			if out, err := helmOf(t, version, args...); err != nil {
				t.Errorf("%s: %s: %v: %s", version, chart, err, out)
			}
		}
	}
}

// TestNotes: who has installed the control plane is told how to get in, how machines join, and what to keep.
func TestNotes(t *testing.T) {
	for name, c := range map[string]struct{ sets, want []string }{
		"from inside": {nil, []string{
			"kubectl get secret r-admin -n plane", "port-forward -n plane service/r-apiserver 7443 6443", "token create --server HOST:PORT", "dhow join", "r-ca and r-keys",
		}},
		"from outside": {
			[]string{`access={"server":"api:7443","kubernetesServer":"api:6443"}`},
			[]string{"kubectl --kubeconfig kubeconfig get namespaces", "token create --server api:7443"},
		},
		"with cert-manager": {[]string{managed}, []string{"kubectl get configmap r-admin -n plane"}},
	} {
		args := []string{"install", "r", archive("dhow"), "--namespace", "plane", "--dry-run=client"}
		for _, set := range c.sets {
			args = append(args, "--set-json", set)
		}
		out, err := helm(t, args...)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		_, notes, _ := strings.Cut(out, "NOTES:")
		for _, want := range c.want {
			if !strings.Contains(notes, want) {
				t.Errorf("%s: %q is not in:\n%s", name, want, notes)
			}
		}
	}
}

// TestRefused: what is no value of a chart, or none that it can work with, is refused and named.
func TestRefused(t *testing.T) {
	for _, chart := range all {
		for set, want := range refused[chart] {
			t.Run(chart+" "+set, func(t *testing.T) {
				t.Parallel()
				if _, err := tryRender(t, chart, set); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v, want %q", err, want)
				}
			})
		}
		t.Run(chart+" nosuch", func(t *testing.T) {
			t.Parallel()
			if _, err := tryRender(t, chart, "nosuch=1"); err == nil || !strings.Contains(err.Error(), "additional properties 'nosuch' not allowed") {
				t.Errorf("%v", err)
			}
		})
	}
}

// TestRestricted: pods of the control plane may run where the Pod Security Standard "restricted" is enforced (https://kubernetes.io/docs/concepts/security/pod-security-standards/).
func TestRestricted(t *testing.T) {
	pods := 0
	for _, o := range render(t, "dhow") {
		spec, _ := look(o.tree, "spec/template/spec").(map[string]any)
		if o.tree["kind"] == "CronJob" {
			spec, _ = look(o.tree, "spec/jobTemplate/spec/template/spec").(map[string]any)
		}
		if spec == nil {
			continue
		}
		pods++
		for _, key := range []string{"hostNetwork", "hostPID", "hostIPC"} {
			if spec[key] != nil {
				t.Errorf("%s: %s", o.name, key)
			}
		}
		containers, _ := spec["containers"].([]any)
		first, _ := spec["initContainers"].([]any)
		for _, container := range append(slices.Clone(first), containers...) {
			for path, want := range map[string]any{
				"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "runAsNonRoot": true, "runAsUser": float64(65532),
				"capabilities/drop/0": "ALL", "capabilities/add": nil, "seccompProfile/type": "RuntimeDefault", "privileged": nil,
			} {
				if got := look(container, "securityContext/"+path); got != want {
					t.Errorf("%s, container %v: %s is %v, want %v", o.name, look(container, "name"), path, got, want)
				}
			}
		}
		for _, volume := range spec["volumes"].([]any) {
			if look(volume, "hostPath") != nil {
				t.Errorf("%s: a volume of the machine: %v", o.name, volume)
			}
		}
	}
	if pods != 6 {
		t.Errorf("%d kinds of pods, want those of four services and two of jobs", pods)
	}
}

// configurations are those whose arguments the real programs are shown.
var configurations = map[string][]string{
	"as it is": nil,
	"three stores": {
		"global.stores=3", `global.otlpEndpoint="http://127.0.0.1:4317"`, `apiserver.maxRequestsInflight=9`, `apiserver.network.dnsAddress="10.96.0.9"`,
		`apiserver.authentication.issuers=["https://a"]`, `apiserver.authentication.audiences=["a"]`, `apiserver.audit.policy="kind: Policy"`,
	},
	"etcd of one's own": {
		`store.etcd={"endpoints":["https://e:2379"],"certificateSecret":"etcd","maxTxnOps":4096,"maxRequestBytes":4194304}`, `apiserver.authentication.configuration="x"`,
		"controller-manager.signing.enabled=false", managed,
	},
	"agents": {
		"install.nodeAgent=true", `node-agent.join.tokenSecret="t"`, "node-agent.network.mtu=1400", `node-agent.nodeLabels={"a":"b"}`, `node-agent.nodeTaints=["a=b:NoSchedule"]`,
		`node-agent.reserved={"memory":"1Gi"}`, `node-agent.runtime.plainRegistries=["a:1"]`,
	},
	"agents with a runtime of the machine's": {"install.nodeAgent=true", `node-agent.certificateSecret="own"`, `node-agent.nodeName="n1"`, `node-agent.runtime.criSocket="/run/c/c.sock"`},
}

// TestProgramsTakeTheArguments: each service's program, given the arguments that a chart renders, gets as far as to look for what is only there in the pod.
func TestProgramsTakeTheArguments(t *testing.T) {
	programs := regexp.MustCompile(`^dhow\.dev/([a-z-]+):`)
	inPod := strings.NewReplacer("$(POD_IP)", "10.0.0.1", "$(POD_NAME)", "r-store-0", "$(NODE_NAME)", "n1", "$(TOKEN)", "abcdef.0123456789abcdef", "$(CA_CERT_HASH)", "sha256:"+strings.Repeat("0", 64),
		// This machine may have what a pod has.
		"/etc/dhow/", "/nonexistent/etc/dhow/", "/var/lib/dhow/", "/nonexistent/var/lib/dhow/")
	for name, sets := range configurations {
		t.Run(name, func(t *testing.T) {
			for _, o := range render(t, "dhow", sets...) {
				if err := strict(o); err != nil {
					t.Errorf("%s: %v\n%s", o.name, err, o.source)
				}
				spec, _ := look(o.tree, "spec/template/spec").(map[string]any)
				if spec == nil {
					continue
				}
				containers, _ := spec["containers"].([]any)
				first, _ := spec["initContainers"].([]any)
				for _, container := range append(slices.Clone(first), containers...) {
					image := programs.FindStringSubmatch(look(container, "image").(string))
					if image == nil {
						t.Fatalf("%s: image %v", o.name, look(container, "image"))
					}
					program := "dhow"
					if image[1] != "dhow" {
						program = "dhow-" + image[1]
					}
					var args []string
					for _, arg := range look(container, "args").([]any) {
						args = append(args, inPod.Replace(arg.(string)))
					}
					if args[0] == "join" {
						continue // it would go on asking the servers; TestSelfHosting joins
					}
					cmd := exec.CommandContext(t.Context(), filepath.Join("..", "..", "bin", program), args...)
					cmd.Env = []string{"HOME=/nonexistent", "PATH=/nonexistent", "DHOW_RUNTIME_DIR=" + runtimeDir(t)}
					var said bytes.Buffer
					cmd.Stdout, cmd.Stderr = &said, &said
					err := cmd.Run()
					var exit *exec.ExitError
					if !errors.As(err, &exit) {
						t.Fatalf("%s %s: %v", program, strings.Join(args, " "), err)
					}
					if text := said.String(); !strings.Contains(text, "/nonexistent/") && !strings.Contains(text, "in-cluster") {
						t.Errorf("%s: %s %s says: %s", o.name, program, strings.Join(args, " "), text)
					}
				}
			}
		})
	}
}

func runtimeDir(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs(filepath.Join("..", "..", "bin", "runtime"))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestMetricsExist: what the dashboard and the alerts ask for is what services serve, as docs/observability.md names it, and each alert is explained there.
func TestMetricsExist(t *testing.T) {
	documented := read(t, filepath.Join("..", "..", "docs", "observability.md"))
	for _, alert := range regexp.MustCompile(`alert: (\w+)`).FindAllStringSubmatch(read(t, filepath.Join("..", "..", "helm", "dhow", "files", "alerts.yaml")), -1) {
		if !strings.Contains(documented, "| "+alert[1]+" |") {
			t.Errorf("the alert %s is not in the documentation", alert[1])
		}
	}
	names := regexp.MustCompile(`\b(dhow|rpc|http|process)_[a-z_]+`)
	found := 0
	for _, file := range []string{"dashboard.json", "alerts.yaml"} {
		for _, name := range names.FindAllString(read(t, filepath.Join("..", "..", "helm", "dhow", "files", file)), -1) {
			name = regexp.MustCompile(`_(bucket|count|sum)$`).ReplaceAllString(name, "")
			if name == "rpc_method" {
				continue
			}
			found++
			// Those of the process are named by what they begin with.
			if !strings.Contains(documented, "`"+name+"`") && !strings.HasPrefix(name, "process_") {
				t.Errorf("%s asks for %s, which is no metric of the documentation", file, name)
			}
		}
	}
	if found < 30 {
		t.Errorf("%d metrics found", found)
	}
}
