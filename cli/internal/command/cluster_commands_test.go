package command

import (
	"context"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"

	"dhow.dev/cli/internal/connect"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	schedulerv1 "dhow.dev/gen/go/dhow/scheduler/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/version"
)

func TestWhy(t *testing.T) {
	c := newCluster(t)
	asked := make(chan *schedulerv1.ExplainRequest, 10)
	pending := schedulerv1.ExplainResponse_builder{
		State: schedulerv1.PodState_POD_STATE_PENDING, Summary: "no node of 8 fits.",
		Rejections: []*schedulerv1.Rejection{
			schedulerv1.Rejection_builder{Filter: "NodeResourcesFit", Reason: "Insufficient cpu", Nodes: []string{"n1", "n2", "n3", "n4", "n5", "n6", "n7"}}.Build(),
			schedulerv1.Rejection_builder{Filter: "TaintToleration", Reason: "untolerated taint {a: b}", Nodes: []string{"n8"}}.Build(),
		},
		Suggestions: []*schedulerv1.Suggestion{
			schedulerv1.Suggestion_builder{Text: "lower the cpu request of container app from 4 to 1500m", NodeName: "n2"}.Build(),
			schedulerv1.Suggestion_builder{Text: "tolerate the taint a=b:NoSchedule", NodeName: "n8"}.Build(),
		},
	}.Build()
	running := schedulerv1.ExplainResponse_builder{
		State: schedulerv1.PodState_POD_STATE_RUNNING, NodeName: "n2", Summary: "runs on n2.",
		Scores: []*schedulerv1.Score{
			schedulerv1.Score_builder{NodeName: "n2", Total: 90, ByScorer: map[string]int64{"Spread": 40, "Balanced": 50}}.Build(),
			schedulerv1.Score_builder{NodeName: "n10", Total: 8, ByScorer: map[string]int64{"Balanced": 8}}.Build(),
		},
	}.Build()
	c.explain = func(q *schedulerv1.ExplainRequest, s grpc.ServerStreamingServer[schedulerv1.ExplainResponse]) error {
		asked <- q
		if err := s.Send(pending); err != nil || !q.GetFollow() {
			return err
		}
		return s.Send(running)
	}
	c.twoPods()
	const whyPending = `pod/web-0: no node of 8 fits.
  NODES   REASON                     FILTER             WHICH
  7       Insufficient cpu           NodeResourcesFit   n1, n2, n3, n4, n5 and 2 more
  1       untolerated taint {a: b}   TaintToleration    n8
Any one of these lets it run, smallest change first:
  1. lower the cpu request of container app from 4 to 1500m (then on n2)
  2. tolerate the taint a=b:NoSchedule (then on n8)
`
	equal(t, c.ok("why", "web-0"), whyPending)
	if q := <-asked; q.GetNamespace() != "default" || q.GetName() != "web-0" || q.GetFollow() {
		t.Errorf("asked for %v", q)
	}
	equal(t, c.ok("why", "po/web-0", "-w"), whyPending+`
pod/web-0: runs on n2.
  NODE   TOTAL   Balanced   Spread
  n2     90      50         40
  n10    8       8          0
`)
	c.fails([]string{"why"}, "name one pod: dhow why POD")
	c.fails([]string{"why", "deploy/web"}, "deploy/web: why answers for pods: name one")
}

func TestStatus(t *testing.T) {
	c := newCluster(t)
	r := c.dhow("status")
	if r.code != 0 || r.err != "" {
		t.Fatalf("%+v", r)
	}
	for _, line := range []string{"SERVICE     HEALTH    MESSAGE\n", "apiserver   Healthy   \n", "store       Healthy   \n", "scheduler   Healthy   \n", "NODE   STATUS   PODS   MESSAGE\n", "Dhow " + version.Version + ", revision "} {
		if !strings.Contains(r.out, line) {
			t.Errorf("%q is not in:\n%s", line, r.out)
		}
	}
	c.node("n1", `{"conditions":[{"type":"Ready","status":"True"}]}`)
	c.node("n2", `{"conditions":[{"type":"Ready","status":"Unknown","reason":"SessionLost","message":"the node's agent is gone"}]}`)
	c.applied("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  nodeName: n1\n  containers:\n  - {name: a, image: a}\n")
	r = c.fails([]string{"status"}, "error: 1 of 5 services and nodes are not healthy")
	if !strings.Contains(r.out, "NODE   STATUS     PODS   MESSAGE\nn1     Ready      1      \nn2     NotReady   0      the node's agent is gone\n") {
		t.Errorf("nodes:\n%s", r.out)
	}
}

// node makes a node with a status.
func (c *cluster) node(name, statusJSON string) {
	c.t.Helper()
	c.applied("apiVersion: v1\nkind: Node\nmetadata: {name: " + name + "}\n")
	nodes := client.For[*corev1.Node](c.admin)
	n, err := nodes.Get(context.Background(), "", name)
	if err != nil {
		c.t.Fatal(err)
	}
	var status corev1.NodeStatus
	if err := protojson.Unmarshal([]byte(statusJSON), &status); err != nil {
		c.t.Fatal(err)
	}
	n.SetStatus(&status)
	if _, err := nodes.UpdateStatus(context.Background(), n); err != nil {
		c.t.Fatal(err)
	}
}

func TestVersion(t *testing.T) {
	c := newCluster(t)
	out := c.ok("version")
	if !strings.HasPrefix(out, "Client Version: "+version.Version+"\n") || !strings.HasSuffix(out, "\nServer Version: "+version.Version+"\n") || !strings.Contains(out, "Kubernetes API: "+version.Kubernetes+"\n") {
		t.Errorf("version:\n%s", out)
	}
	// The client's version needs no cluster.
	r := startWith(t, nil, "version", "--config", filepath.Join(t.TempDir(), "none.yaml")).end()
	if r.code != 1 || !strings.HasPrefix(r.out, "Client Version: ") || !strings.Contains(r.err, "error: no cluster is configured") {
		t.Errorf("%+v", r)
	}
	r = startWith(t, nil, "version", "--client").end()
	if r.code != 0 || strings.Contains(r.out, "Server") {
		t.Errorf("%+v", r)
	}
}

// TestWithoutCluster runs commands where none is configured, or the configured one does not answer.
func TestWithoutCluster(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "client.yaml")
	t.Setenv(connect.Environment, missing)
	for _, args := range [][]string{{"get", "pods"}, {"status"}, {"apply", "-f", "-"}, {"rollout", "status", "deploy/web"}} {
		r := startWith(t, strings.NewReader(""), args...).end()
		want := "error: no cluster is configured: " + missing + " does not exist: start one with `dhow up`, or name another file with --config or DHOW_CONFIG\n"
		if r.code != 1 || r.out != "" || r.err != want {
			t.Errorf("dhow %s: %+v", strings.Join(args, " "), r)
		}
	}
	c := newCluster(t)
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	for _, address := range []string{closed.Addr().String(), "127.0.0.1:1," + closed.Addr().String()} {
		c.config = c.configFor(address)
		for _, args := range [][]string{{"get", "pods"}, {"status"}, {"get", "pods", "-w"}, {"rollout", "status", "deploy/web"}} {
			r := c.dhow(args...)
			if r.code != 1 || r.out != "" || !strings.HasPrefix(r.err, "The connection to the server failed: ") || !strings.Contains(r.err, "connection refused") || !strings.Contains(r.err, "`dhow up`") || strings.Count(r.err, "\n") != 1 {
				t.Errorf("dhow %s: %+v", strings.Join(args, " "), r)
			}
		}
	}
	// A scheduler that is gone is no lost connection.
	c = newCluster(t)
	c.explain = func(*schedulerv1.ExplainRequest, grpc.ServerStreamingServer[schedulerv1.ExplainResponse]) error {
		return &fs.PathError{Op: "open", Path: "x", Err: fs.ErrInvalid}
	}
	c.twoPods()
	c.fails([]string{"why", "web-0"}, "Error from server (InternalError): an internal error occurred")
}

func TestConfigurationErrors(t *testing.T) {
	dir := t.TempDir()
	for content, want := range map[string]string{
		"servers: [127.0.0.1:1]\ncertificate: a\nkey: b\n":                          "certificateAuthority: required value",
		"certificateAuthority: a\ncertificate: a\nkey: b\n":                         "servers: required value",
		"servers: [127.0.0.1:1]\ncertificateAuthority: a\ncertificate: a\nkey: b\n": ": read " + dir,
		"server: 127.0.0.1:1\n": `unknown field "server"`,
	} {
		file := filepath.Join(dir, "client.yaml")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		r := startWith(t, nil, "get", "pods", "--config", file).end()
		if r.code != 1 || !strings.HasPrefix(r.err, "error: "+file+": ") || !strings.Contains(r.err, want) {
			t.Errorf("%q: %+v", content, r)
		}
	}
}

func TestHelpAndCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if r := startWith(t, nil, "completion", shell).end(); r.code != 0 || !strings.Contains(r.out, "dhow") {
			t.Errorf("%s: exit code %d, %s", shell, r.code, r.err)
		}
	}
	r := startWith(t, nil, "__complete", "get", "deplo").end()
	if r.code != 0 || !strings.HasPrefix(r.out, "deployments\n") {
		t.Errorf("%+v", r)
	}
	c := newCluster(t)
	c.twoPods()
	for words, want := range map[string]string{"get pods": "db-0\nweb-0\n", "delete pod web-0": "db-0\n", "logs": "db-0\nweb-0\n", "why": "db-0\nweb-0\n", "get pod/": "pod/db-0\npod/web-0\n", "wait po/": "po/db-0\npo/web-0\n"} {
		args := strings.Fields(words)
		if !strings.HasSuffix(words, "/") {
			args = append(args, "")
		}
		r := startWith(t, nil, append([]string{"__complete", "--config", c.config}, args...)...).end()
		if r.code != 0 || !strings.HasPrefix(r.out, want+":") {
			t.Errorf("%s: %+v", words, r)
		}
	}
	for _, command := range New(Streams{}).Commands() {
		if command.Short == "" || command.Name() != "version" && command.Name() != "status" && command.Name() != "help" && command.Name() != "completion" && command.Example == "" && !command.HasSubCommands() {
			t.Errorf("%s: no help", command.Name())
		}
	}
}
