package command

import (
	"strconv"
	"strings"
	"testing"
)

const settings = `apiVersion: v1
kind: ConfigMap
metadata:
  name: settings
data:
  color: blue
`

// shop is a namespace and what is in it; the namespace comes last.
const shop = `apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  namespace: shop
spec:
  replicas: 2
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
      - name: web
        image: registry.dhow:5000/web:v1
---
apiVersion: v1
kind: Service
metadata:
  name: web
  namespace: shop
spec:
  selector: {app: web}
  ports:
  - port: 80
---
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  labels: {team: red}
`

func TestApplyTellsWhatItDid(t *testing.T) {
	c := newCluster(t)
	equal(t, c.applied(settings), "configmap/settings created\n")
	equal(t, c.applied(settings), "configmap/settings unchanged\n")
	red := strings.Replace(settings, "blue", "red", 1)
	equal(t, c.applied(red, "--dry-run"), "configmap/settings configured (server dry run)\n")
	equal(t, c.applied(settings, "--dry-run=server"), "configmap/settings unchanged (server dry run)\n")
	equal(t, c.applied(red), "configmap/settings configured\n")
	equal(t, c.applied(settings, "--atomic"), "configmap/settings configured\n")
	equal(t, c.applied(settings, "--atomic"), "configmap/settings unchanged\n")
	if got := c.ok("get", "configmap/settings", "-o", "yaml"); !strings.Contains(got, "color: blue") {
		t.Errorf("the last apply is not there:\n%s", got)
	}
	// A field that is no longer in the manifest goes; what another manager set stays.
	c.ok("apply", "-f", c.file("other.yaml", strings.Replace(settings, "color: blue", "size: big", 1)), "--field-manager", "other")
	equal(t, c.applied("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {shape: round}\n"), "configmap/settings configured\n")
	got := c.ok("get", "configmap/settings", "-o", "yaml")
	for text, wanted := range map[string]bool{"color": false, "size: big": true, "shape: round": true} {
		if strings.Contains(got, text) != wanted {
			t.Errorf("%q in it: %t\n%s", text, !wanted, got)
		}
	}
}

func TestApplyOfAFolder(t *testing.T) {
	c := newCluster(t)
	c.file("shop/a.yaml", shop)
	c.file("shop/more/b.json", `{"apiVersion":"v1","kind":"List","items":[{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"one","namespace":"shop"}},{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"two","namespace":"shop"}}]}`)
	c.file("shop/notes.txt", "no manifest")
	equal(t, c.ok("apply", "-f", c.dir+"/shop", "--dry-run"), "namespace/shop created (server dry run)\ndeployment.apps/web created (server dry run)\nservice/web created (server dry run)\n")
	c.fails([]string{"get", "namespace", "shop"}, `Error from server (NotFound): namespaces "shop" not found`)
	equal(t, c.ok("apply", "-f", c.dir+"/shop"), "namespace/shop created\ndeployment.apps/web created\nservice/web created\n")
	equal(t, c.ok("apply", "-R", "-f", c.dir+"/shop"), "namespace/shop unchanged\ndeployment.apps/web unchanged\nservice/web unchanged\nconfigmap/one created\nconfigmap/two created\n")
	equal(t, c.ok("delete", "namespace/shop", "--wait=false"), "namespace \"shop\" deleted\n")
}

func TestAtomicApplyOfANamespaceAndWhatIsInIt(t *testing.T) {
	c := newCluster(t)
	equal(t, c.applied(shop, "--atomic"), "namespace/shop created\ndeployment.apps/web created\nservice/web created\n")
	revisions := map[string]bool{}
	for _, what := range []string{"namespace/shop", "deployment/web", "service/web"} {
		out := c.ok("get", what, "-n", "shop", "-o", "json")
		_, rest, _ := strings.Cut(out, `"resourceVersion": "`)
		version, _, _ := strings.Cut(rest, `"`)
		revisions[version[:len(version)-3]] = true
	}
	if len(revisions) == 0 {
		t.Error("nothing was written")
	}
}

func TestApplyListsAllErrorsAndWritesNothing(t *testing.T) {
	c := newCluster(t)
	bad := settings + `---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  labels: {"a b": c, "d": "e f"}
spec:
  selector:
    matchLabels: {app: web}
  template:
    metadata:
      labels: {app: web}
    spec:
      containers:
      - name: web
        image: web
---
apiVersion: v1
kind: Service
metadata:
  name: Web
spec:
  ports:
  - port: 80
`
	path := c.file("bad.yaml", bad)
	for _, args := range [][]string{{}, {"--atomic"}, {"--dry-run"}} {
		c.fails(append([]string{"apply", "-f", path}, args...),
			"error: nothing was written:",
			path+`, document 2: deployment.apps/web: metadata.labels: Invalid value: "a b"`,
			path+`, document 2: deployment.apps/web: metadata.labels: Invalid value: "e f"`,
			path+`, document 3: service/Web: metadata.name: Invalid value: "Web"`,
		)
	}
	c.fails([]string{"get", "configmap", "settings"}, "NotFound")
	// The only object of a manifest is named as well.
	one := c.file("one.yaml", strings.Replace(settings, "name: settings", "name: Set.Tings!", 1))
	c.fails([]string{"apply", "-f", one}, "error: nothing was written:", one+", document 1: configmap/Set.Tings!: metadata.name: Invalid value")
	// What is in a namespace that is wrong itself is not to blame.
	r := c.apply(strings.ReplaceAll(shop, "team: red", "a b: red"))
	if r.code != 1 || !strings.Contains(r.err, "standard input, document 3: namespace/shop: metadata.labels: Invalid value") || strings.Contains(r.err, "document 1") {
		t.Errorf("exit code %d, %s", r.code, r.err)
	}
}

// TestApplyNamesFields applies a deployment with several mistakes deep inside.
func TestApplyNamesFields(t *testing.T) {
	c := newCluster(t)
	bad := strings.NewReplacer(`, image: "web:v1"`, "", "labels: {app: web}", "labels: {app: other}", "replicas: 2", "replicas: -2").Replace(deployment)
	r := c.apply(settings + "---\n" + bad)
	for _, field := range []string{"spec.replicas: Invalid value: -2", "spec.template.metadata.labels: Invalid value", "spec.template.spec.containers[0].image: Required value"} {
		if line := "\n  standard input, document 2: deployment.apps/web: " + field; r.code != 1 || !strings.Contains(r.err, line) {
			t.Errorf("%q is not in:\n%s", line, r.err)
		}
	}
	// The same mistakes without a manifest, in kubectl's form.
	c.applied(deployment)
	c.fails([]string{"run", "x", "--image= "}, `The Pod "x" is invalid: spec.containers[0].image: Invalid value`)
}

func TestApplyRefusesBadManifests(t *testing.T) {
	c := newCluster(t)
	for name, test := range map[string]struct{ manifest, wanted string }{
		"unknown kind":    {"apiVersion: v1\nkind: Pot\nmetadata: {name: a}\n", `standard input, document 1: no matches for kind "Pot" in version "v1"`},
		"no name":         {"apiVersion: v1\nkind: Pod\n", "standard input, document 1: Pod: metadata.name: Required value"},
		"no kind":         {"apiVersion: v1\nmetadata: {name: a}\n", "standard input, document 1: kind: Required value"},
		"bad YAML":        {"kind: [\n", "standard input, document 1: "},
		"unknown field":   {settings + "dates: {}\n", "standard input, document 1: configmap/settings: "},
		"no namespace":    {strings.Replace(settings, "name: settings", "name: settings\n  namespace: nowhere", 1), `standard input, document 1: configmap/settings: namespaces "nowhere" not found`},
		"nothing":         {"# nothing\n", "no objects in -"},
		"twice":           {settings + "---\n" + settings, `standard input, document 2: configmap/settings: configmaps "settings" is in two operations of one commit`},
		"wrong type":      {strings.Replace(settings, "color: blue", "color: [1]", 1), "standard input, document 1: configmap/settings: "},
		"key given twice": {settings + "data: {}\n", "standard input, document 1: "},
	} {
		t.Run(name, func(t *testing.T) {
			r := c.apply(test.manifest)
			if r.code != 1 || r.out != "" || !strings.Contains(r.err, test.wanted) {
				t.Errorf("exit code %d, out %q, err:\n%s\nwanted: %s", r.code, r.out, r.err, test.wanted)
			}
		})
	}
	c.fails([]string{"apply"}, `required flag(s) "filename" not set`)
	c.fails([]string{"apply", "-f", "/nowhere.yaml"}, `error: the path "/nowhere.yaml" does not exist`)
	c.fails([]string{"apply", "-f", c.file("here.yaml", shop), "-n", "default"}, `does not match the namespace "default"`)
	c.fails([]string{"apply", "-f", "-", "--dry-run=client"}, `invalid argument "client" for "--dry-run" flag`, "use server or none")
	c.fails([]string{"apply", "-f", "-", "extra"}, `unknown command "extra" for "dhow apply"`)
}

func TestApplyConflict(t *testing.T) {
	c := newCluster(t)
	c.applied(settings, "--field-manager", "painter")
	red := strings.Replace(settings, "blue", "red", 1)
	for _, args := range [][]string{nil, {"--atomic"}, {"--dry-run"}} {
		r := c.apply(red, args...)
		if r.code != 1 || !strings.Contains(r.err, "standard input, document 1: configmap/settings: ") || !strings.Contains(r.err, `conflict with "painter"`) || !strings.Contains(r.err, ".data.color") || !strings.Contains(r.err, "--force-conflicts") {
			t.Errorf("%v: exit code %d\n%s", args, r.code, r.err)
		}
	}
	equal(t, c.applied(red, "--force-conflicts"), "configmap/settings configured\n")
}

// TestApplyAfterChangesByHand applies over what scale has written: one user's other commands are no conflict, others are.
func TestApplyAfterChangesByHand(t *testing.T) {
	c := newCluster(t)
	const manifest = deployment
	c.applied(strings.Replace(manifest, "web:v1", "web:v0", 1))
	c.ok("scale", "deployment/web", "--replicas=5")
	for _, args := range [][]string{{"--dry-run"}, {}} {
		if r := c.apply(manifest, args...); r.code != 0 || !strings.HasPrefix(r.out, "deployment.apps/web configured") {
			t.Errorf("%v: %+v", args, r)
		}
	}
	if got := c.ok("get", "deploy/web", "-o", "yaml"); !strings.Contains(got, "replicas: 2\n") || !strings.Contains(got, "image: web:v1\n") {
		t.Errorf("the manifest has not won:\n%s", got)
	}
	c.ok("scale", "deployment/web", "--replicas=5")
	equal(t, c.applied(manifest, "--atomic"), "deployment.apps/web configured\n")
	c.replicaSet("old", "1", "web:v0")
	c.replicaSet("new", "2", "web:v1")
	c.ok("rollout", "undo", "deployment/web")
	equal(t, c.applied(manifest), "deployment.apps/web configured\n")
	// A third party's field in the same object.
	c.applied(strings.Replace(manifest, "replicas: 2", "replicas: 7", 1), "--field-manager=autoscaler", "--force-conflicts")
	if r := c.apply(manifest); r.code != 1 || !strings.Contains(r.err, `conflict with "autoscaler"`) {
		t.Errorf("%+v", r)
	}
}

// TestApplyAfterRun applies a manifest of what run has created.
func TestApplyAfterRun(t *testing.T) {
	c := newCluster(t)
	c.ok("run", "web", "--image=web:v0", "--replicas=5")
	manifest := strings.ReplaceAll(deployment, "app: web", "run: web")
	for _, args := range [][]string{{"--dry-run"}, {}} {
		if r := c.apply(manifest, args...); r.code != 0 || !strings.HasPrefix(r.out, "deployment.apps/web configured") {
			t.Errorf("%v: %+v", args, r)
		}
	}
	if got := c.ok("get", "deploy/web", "-o", "yaml"); !strings.Contains(got, "replicas: 2\n") || !strings.Contains(got, "image: web:v1\n") {
		t.Errorf("the manifest has not won:\n%s", got)
	}
}

// TestApplyGuestbook applies the example's manifests twice.
func TestApplyGuestbook(t *testing.T) {
	c := newCluster(t)
	const manifests = "../../../examples/guestbook/manifests"
	first := c.dhow("apply", "-f", manifests)
	if first.code != 0 || strings.Count(first.out, "created\n") != strings.Count(first.out, "\n") || !strings.HasPrefix(first.out, "namespace/guestbook created\n") {
		t.Errorf("%+v", first)
	}
	again := c.dhow("apply", "-f", manifests)
	if again.code != 0 || strings.Count(again.out, "unchanged\n") != strings.Count(again.out, "\n") {
		t.Errorf("%+v", again)
	}
	// The namespace goes last: with it all else would be gone, and not found.
	if r := c.dhow("delete", "-f", manifests, "--wait=false"); r.code != 0 || !strings.HasSuffix(r.out, "\nnamespace \"guestbook\" deleted\n") {
		t.Errorf("%+v", r)
	}
}

func TestApplyShowsWarnings(t *testing.T) {
	c := newCluster(t)
	const ingress = "apiVersion: networking.k8s.io/v1\nkind: Ingress\nmetadata: {name: web}\nspec: {defaultBackend: {service: {name: web, port: {number: 2}}}}\n"
	for _, args := range [][]string{{"--dry-run"}, {"--atomic"}, {}} {
		r := c.apply(strings.Replace(ingress, "2", strconv.Itoa(3+len(args)), 1), args...)
		if r.code != 0 || r.out == "" || !strings.HasPrefix(r.err, "Warning: ingress.networking.k8s.io/web: ") || !strings.Contains(r.err, "not enforced yet") {
			t.Errorf("%v: exit code %d\n%s%s", args, r.code, r.out, r.err)
		}
	}
}
