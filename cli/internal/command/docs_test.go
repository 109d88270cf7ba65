package command

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	schedulerv1 "dhow.dev/gen/go/dhow/scheduler/v1"
	"dhow.dev/pkg/version"
)

var update = flag.Bool("update", false, "write what the commands answer into docs/cli.md; read it before you commit it")

const docs = "../../../docs/cli.md"

// TestDocs runs the commands of docs/cli.md. Blocks marked `console` hold commands behind `$` and what they answer; a comment `file NAME` makes the block
// below it that file of the working folder; a comment `then NAME` is where the test does what the cluster's other services would do.
func TestDocs(t *testing.T) {
	content, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	before := version.Version
	version.Version = "v0.1.0"
	t.Cleanup(func() { version.Version = before })
	c := newCluster(t)
	c.explain = explainPending
	c.withContainers(&fakeContainers{log: logOfWeb, exec: execInWeb})
	page := &page{cluster: c, code: 0}
	var out strings.Builder
	lines := strings.SplitAfter(string(content), "\n")
	name := ""
	for i := 0; i < len(lines); i++ {
		line := strings.TrimSpace(lines[i])
		out.WriteString(lines[i])
		switch {
		case strings.HasPrefix(line, "<!-- file "):
			name = strings.Fields(line)[2]
		case strings.HasPrefix(line, "<!-- then "):
			page.then(strings.Fields(line)[2])
		case strings.HasPrefix(line, "```"):
			var block strings.Builder
			for i++; !strings.HasPrefix(lines[i], "```"); i++ {
				block.WriteString(lines[i])
			}
			if name != "" {
				c.file(name, block.String())
				name = ""
			}
			answered := block.String()
			if line == "```console" {
				answered = page.run(block.String())
			}
			out.WriteString(answered + lines[i])
		}
	}
	if *update {
		if err := os.WriteFile(docs, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// page is the state of a page that is run.
type page struct {
	*cluster
	// code is the exit code of the last command.
	code int
}

// run runs a block and returns it with what the commands answer now.
func (p *page) run(block string) string {
	var out strings.Builder
	for _, part := range regexp.MustCompile(`(?m)^\$ `).Split(block, -1)[1:] {
		command, want, _ := strings.Cut(part, "\n")
		got := p.answer(command)
		if !*update && alike(got) != alike(want) {
			p.t.Errorf("$ %s\n%s\nbut docs/cli.md says:\n%s", command, got, want)
		}
		out.WriteString("$ " + command + "\n" + got)
	}
	return out.String()
}

func (p *page) answer(command string) string {
	if command == "echo $?" {
		return fmt.Sprintln(p.code)
	}
	command, in, _ := strings.Cut(strings.TrimPrefix(command, "dhow "), " < ")
	var words []string
	for _, m := range regexp.MustCompile(`'([^']*)'|(\S+)`).FindAllStringSubmatch(command, -1) {
		word := m[1] + m[2]
		if _, err := os.Stat(filepath.Join(p.dir, word)); err == nil {
			word = filepath.Join(p.dir, word)
		}
		words = append(words, word)
	}
	input, err := os.ReadFile(filepath.Join(p.dir, in))
	if in != "" && err != nil {
		p.t.Fatal(err)
	}
	// Both streams in one, as a terminal shows them.
	both := newOutput()
	code := Main(p.t.Context(), append([]string{"--config", p.config}, words...), Streams{In: strings.NewReader(string(input)), Out: both, Err: both})
	p.code = code
	text := strings.ReplaceAll(both.String(), p.dir+"/", "")
	return regexp.MustCompile(`\b[01]s\b`).ReplaceAllString(text, "2m")
}

// alike leaves out of a text what differs from run to run.
func alike(text string) string {
	for pattern, replacement := range map[string]string{
		`\b\d+[smhd]\b`: "AGE", `10\.\d+\.\d+\.\d+`: "IP", `go1\.[\d.]+`: "GO", `revision \d+`: "revision N", `(uid|resourceVersion|creationTimestamp): .*`: "$1: X",
		`[A-Z][a-z]{2}, \d+ [A-Z][a-z]{2} \d{4} [\d:]+ \+\d{4}`: "TIME", `linux/\w+`: "PLATFORM",
	} {
		text = regexp.MustCompile(pattern).ReplaceAllString(text, replacement)
	}
	text = regexp.MustCompile(`[ \t]+`).ReplaceAllString(text, " ")
	return regexp.MustCompile(`(?m) $`).ReplaceAllString(text, "")
}

// then does what other services do.
func (p *page) then(name string) {
	p.t.Helper()
	const revision = "7d9f4c8b6"
	switch name {
	case "nodes-join":
		for i := range 3 {
			p.node(fmt.Sprintf("n%d", i+1), `{"conditions":[{"type":"Ready","status":"True"}],"nodeInfo":{"machineID":"","systemUUID":"","bootID":"","kernelVersion":"","osImage":"","containerRuntimeVersion":"","kubeletVersion":"v0.1.0","kubeProxyVersion":"","operatingSystem":"","architecture":""}}`)
		}
	case "web-runs":
		p.replicaSet("web-"+revision, "1", "registry.dhow:5000/guestbook:v1")
		for i, suffix := range []string{"k4kzq", "x2x8v"} {
			p.applied(fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata:\n  name: web-%s-%s\n  labels: {app: web}\n  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-%s, uid: x, controller: true}]\nspec:\n  nodeName: n%d\n  containers:\n  - {name: web, image: \"registry.dhow:5000/guestbook:v1\"}\n", revision, suffix, revision, i+1))
			p.podStatus("web-"+revision+"-"+suffix, fmt.Sprintf(`{"phase":"Running","podIP":"10.244.%d.2","podIPs":[{"ip":"10.244.%d.2"}],"conditions":[{"type":"Ready","status":"True"}],"containerStatuses":[{"name":"web","ready":true,"restartCount":0,"image":"","imageID":"","state":{"running":{}}}]}`, i, i))
		}
		p.deploymentStatus(`{"replicas":2,"updatedReplicas":2,"readyReplicas":2,"availableReplicas":2,"conditions":[{"type":"Available","status":"True","reason":"MinimumReplicasAvailable"}]}`)
	case "v2-runs":
		p.replicaSet("web-5c4d8f7b9", "2", "registry.dhow:5000/guestbook:v2")
		p.deploymentStatus(`{"replicas":2,"updatedReplicas":2,"readyReplicas":2,"availableReplicas":2}`)
	case "batch-waits":
		p.podStatus("batch", `{"phase":"Pending"}`)
	default:
		p.t.Fatalf("docs/cli.md: nothing is known of %q", name)
	}
}

func logOfWeb(q *corev1.PodLogRequest, s grpc.ServerStreamingServer[corev1.PodLogResponse]) error {
	return s.Send(corev1.PodLogResponse_builder{Data: []byte("listening on :8080\nGET / 200\n")}.Build())
}

// execInWeb knows two commands: hostname, and sh -c 'exit N'.
func execInWeb(s grpc.BidiStreamingServer[corev1.PodExecRequest, corev1.PodExecResponse]) error {
	first, err := s.Recv()
	if err != nil {
		return err
	}
	start := first.GetStart()
	words := strings.Fields(start.GetCommand()[len(start.GetCommand())-1])
	code, err := strconv.ParseInt(words[len(words)-1], 10, 32)
	if err != nil {
		code = 0
		if err := s.Send(corev1.PodExecResponse_builder{Stdout: []byte(start.GetName() + "\n")}.Build()); err != nil {
			return err
		}
	}
	return s.Send(corev1.PodExecResponse_builder{ExitCode: proto.Int32(int32(code))}.Build())
}

func explainPending(_ *schedulerv1.ExplainRequest, s grpc.ServerStreamingServer[schedulerv1.ExplainResponse]) error {
	return s.Send(schedulerv1.ExplainResponse_builder{
		State: schedulerv1.PodState_POD_STATE_PENDING, Summary: "waits for a node: none of 3 nodes fits.",
		Rejections: []*schedulerv1.Rejection{
			schedulerv1.Rejection_builder{Filter: "NodeResourcesFit", Reason: "Insufficient cpu", Nodes: []string{"n1", "n2"}}.Build(),
			schedulerv1.Rejection_builder{Filter: "NodeUnschedulable", Reason: "node(s) were unschedulable", Nodes: []string{"n3"}}.Build(),
		},
		Suggestions: []*schedulerv1.Suggestion{
			schedulerv1.Suggestion_builder{Text: "uncordon node n3", NodeName: "n3"}.Build(),
			schedulerv1.Suggestion_builder{Text: "lower the cpu request of container batch from 4 to 1500m", NodeName: "n2"}.Build(),
		},
	}.Build())
}

// TestDocsNameEveryFlag holds the page to the commands: each has a section, and its flags are in it.
func TestDocsNameEveryFlag(t *testing.T) {
	content, err := os.ReadFile(docs)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range New(Streams{}).Commands() {
		if c.Name() == "help" || c.Name() == "completion" || c.Name() == "uncordon" {
			continue
		}
		_, section, found := strings.Cut(string(content), "\n### dhow "+c.Name()+"\n")
		if !found {
			t.Errorf("docs/cli.md has no section `### dhow %s`", c.Name())
			continue
		}
		section, _, _ = strings.Cut(section, "\n### ")
		section, _, _ = strings.Cut(section, "\n## ")
		for _, one := range append(c.Commands(), c) {
			one.LocalNonPersistentFlags().VisitAll(func(f *pflag.Flag) {
				if f.Name != "help" && !strings.Contains(section, "`--"+f.Name) {
					t.Errorf("docs/cli.md, dhow %s: --%s is missing", c.Name(), f.Name)
				}
			})
		}
		for _, m := range regexp.MustCompile("(?m)^\\| `(--[a-z-]+)").FindAllStringSubmatch(section, -1) {
			known := false
			for _, one := range append(c.Commands(), c) {
				known = known || one.Flags().Lookup(m[1][2:]) != nil
			}
			if !known {
				t.Errorf("docs/cli.md, dhow %s: there is no %s", c.Name(), m[1])
			}
		}
	}
}
