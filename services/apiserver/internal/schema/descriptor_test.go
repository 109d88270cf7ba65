package schema

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/bufbuild/protocompile"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	// Everything that the comparison must see has to be linked in: pkg/resource brings the packages of all kinds.
	_ "dhow.dev/pkg/resource"
)

// kubernetesPackages are the packages that Dhow carries, with their name here. Several Kubernetes packages meet in dhow.meta.v1.
var kubernetesPackages = map[protoreflect.FullName]protoreflect.FullName{
	"k8s.io.api.resource.v1":                  "dhow.resource.v1",
	"k8s.io.api.node.v1":                      "dhow.runtime.v1",
	"k8s.io.api.flowcontrol.v1":               "dhow.flowcontrol.v1",
	"k8s.io.api.certificates.v1":              "dhow.certificates.v1",
	"k8s.io.api.certificates.v1beta1":         "dhow.certificates.v1beta1",
	"k8s.io.api.authorization.v1":             "dhow.authorization.v1",
	"k8s.io.api.authentication.v1":            "dhow.authentication.v1",
	"k8s.io.api.apps.v1":                      "dhow.apps.v1",
	"k8s.io.api.autoscaling.v1":               "dhow.autoscaling.v1",
	"k8s.io.metrics.pkg.apis.metrics.v1beta1": "dhow.metrics.v1beta1",
	"k8s.io.api.autoscaling.v2":               "dhow.autoscaling.v2",
	"k8s.io.api.batch.v1":                     "dhow.batch.v1",
	"k8s.io.api.coordination.v1":              "dhow.coordination.v1",
	"k8s.io.api.core.v1":                      "dhow.core.v1",
	"k8s.io.api.discovery.v1":                 "dhow.discovery.v1",
	"k8s.io.api.events.v1":                    "dhow.events.v1",
	"k8s.io.api.networking.v1":                "dhow.networking.v1",
	"k8s.io.api.policy.v1":                    "dhow.policy.v1",
	"k8s.io.api.rbac.v1":                      "dhow.rbac.v1",
	"k8s.io.api.scheduling.v1":                "dhow.scheduling.v1",
	"k8s.io.api.storage.v1":                   "dhow.storage.v1",
	"k8s.io.apimachinery.pkg.apis.meta.v1":    "dhow.meta.v1",
	"k8s.io.apimachinery.pkg.api.resource":    "dhow.meta.v1",
	"k8s.io.apimachinery.pkg.runtime":         "dhow.meta.v1",
	"k8s.io.apimachinery.pkg.util.intstr":     "dhow.meta.v1",
}

// notCarried are Kubernetes messages without a counterpart: the envelope of its protobuf encoding, which the REST door reads with apimachinery, and kinds that
// are served in another version, or that Kubernetes has off by default.
var notCarried = []protoreflect.FullName{
	"k8s.io.apimachinery.pkg.runtime.TypeMeta",
	"k8s.io.apimachinery.pkg.runtime.Unknown",
	"k8s.io.api.certificates.v1beta1.CertificateSigningRequest",
	"k8s.io.api.certificates.v1beta1.CertificateSigningRequestCondition",
	"k8s.io.api.certificates.v1beta1.CertificateSigningRequestList",
	"k8s.io.api.certificates.v1beta1.CertificateSigningRequestSpec",
	"k8s.io.api.certificates.v1beta1.CertificateSigningRequestStatus",
	"k8s.io.api.certificates.v1beta1.ExtraValue",
	"k8s.io.api.certificates.v1beta1.PodCertificateRequest",
	"k8s.io.api.certificates.v1beta1.PodCertificateRequestList",
	"k8s.io.api.certificates.v1beta1.PodCertificateRequestSpec",
	"k8s.io.api.certificates.v1beta1.PodCertificateRequestStatus",
}

// ownMessages are Dhow's messages in packages that mirror Kubernetes', beside the WriteRequest and WatchResponse of each kind.
var ownMessages = []protoreflect.FullName{
	"dhow.core.v1.PodAttachRequest",
	"dhow.core.v1.PodAttachResponse",
	"dhow.core.v1.PodBindRequest",
	"dhow.core.v1.PodBindResponse",
	"dhow.core.v1.PodExecRequest",
	"dhow.core.v1.PodExecResponse",
	"dhow.core.v1.PodLogRequest",
	"dhow.core.v1.PodLogResponse",
	"dhow.core.v1.PodPortForwardRequest",
	"dhow.core.v1.PodPortForwardResponse",
	"dhow.core.v1.ServiceAccountTokenRequest",
	"dhow.core.v1.ServiceAccountTokenResponse",
	"dhow.meta.v1.DeleteCollectionRequest",
	"dhow.meta.v1.DeleteCollectionResponse",
	"dhow.meta.v1.DeleteRequest",
	"dhow.meta.v1.DeletionOptions",
	"dhow.meta.v1.GetRequest",
	"dhow.meta.v1.ListRequest",
	"dhow.meta.v1.ObjectChange",
	"dhow.meta.v1.ObjectWriteRequest",
	"dhow.meta.v1.PatchRequest",
	"dhow.meta.v1.WatchRequest",
	"dhow.meta.v1.WatchResponse",
	"dhow.meta.v1.WriteOptions",
}

// jsonNames are the fields whose name in Kubernetes' JSON is not the one in its generated.proto; Dhow follows the JSON.
var jsonNames = map[protoreflect.FullName]string{
	"k8s.io.api.networking.v1.IngressClassParametersReference.aPIGroup": "apiGroup",
	"k8s.io.api.authentication.v1.BoundObjectReference.uID":             "uid",
}

// field is all of a field that decides how it is encoded.
type field struct {
	kind        string
	cardinality protoreflect.Cardinality
	presence    bool
	packed      bool
	jsonName    string
}

type message map[protoreflect.FieldNumber]field

func TestDescriptorsMatchKubernetes(t *testing.T) {
	want, got := kubernetesMessages(t), dhowMessages(t, dhowFiles())
	if len(want) < 350 {
		t.Fatalf("only %d Kubernetes messages were found", len(want))
	}
	fields := 0
	for _, m := range want {
		fields += len(m)
	}
	t.Logf("%d messages, %d fields", len(want), fields)
	for _, d := range differences(want, got) {
		t.Error(d)
	}
}

// TestDescriptorComparisonFails breaks one thing at a time and expects exactly that to be found.
func TestDescriptorComparisonFails(t *testing.T) {
	want := kubernetesMessages(t)
	for _, tc := range []struct {
		name    string
		breakIt func(*descriptorpb.DescriptorProto)
		found   string
	}{
		{"number", func(m *descriptorpb.DescriptorProto) { find(m, "node_name").Number = proto.Int32(1010) }, "PodSpec"},
		{"kind", func(m *descriptorpb.DescriptorProto) {
			find(m, "priority").Type = descriptorpb.FieldDescriptorProto_TYPE_INT64.Enum()
		}, "PodSpec field 25: kind int32 in Kubernetes, int64 here"},
		{"sign encoding", func(m *descriptorpb.DescriptorProto) {
			find(m, "priority").Type = descriptorpb.FieldDescriptorProto_TYPE_SINT32.Enum()
		}, "PodSpec field 25: kind int32 in Kubernetes, sint32 here"},
		{"message type", func(m *descriptorpb.DescriptorProto) {
			find(m, "affinity").TypeName = proto.String(".dhow.core.v1.PodOS")
		},
			"PodSpec field 18: kind message dhow.core.v1.Affinity in Kubernetes, message dhow.core.v1.PodOS here"},
		{"cardinality", func(m *descriptorpb.DescriptorProto) {
			find(m, "containers").Label = descriptorpb.FieldDescriptorProto_LABEL_OPTIONAL.Enum()
		}, "PodSpec field 2: "},
		{"presence", func(m *descriptorpb.DescriptorProto) { dropPresence(m, "priority") }, "PodSpec field 25: presence true in Kubernetes, false here"},
		{"JSON name", func(m *descriptorpb.DescriptorProto) { find(m, "host_pid").JsonName = proto.String("hostPid") },
			"PodSpec field 12: JSON name hostPID in Kubernetes, hostPid here"},
		{"missing field", func(m *descriptorpb.DescriptorProto) {
			dropPresence(m, "hostname")
			m.Field = slices.DeleteFunc(m.Field, func(f *descriptorpb.FieldDescriptorProto) bool { return f.GetName() == "hostname" })
		}, "PodSpec field 16 (hostname): missing here"},
		{"extra field", func(m *descriptorpb.DescriptorProto) {
			m.Field = append(m.Field, &descriptorpb.FieldDescriptorProto{Name: proto.String("extra"), JsonName: proto.String("extra"), Number: proto.Int32(999),
				Type: descriptorpb.FieldDescriptorProto_TYPE_BYTES.Enum(), Label: descriptorpb.FieldDescriptorProto_LABEL_REPEATED.Enum()})
		}, "PodSpec field 999 (extra): not in Kubernetes"},
	} {
		t.Run(tc.name, func(t *testing.T) { expectOne(t, want, "PodSpec", tc.breakIt, tc.found) })
	}
	t.Run("packed", func(t *testing.T) {
		expectOne(t, want, "PodSecurityContext", func(m *descriptorpb.DescriptorProto) { find(m, "supplemental_groups").Options = nil },
			"PodSecurityContext field 4: packed false in Kubernetes, true here")
	})
	t.Run("missing message", func(t *testing.T) {
		got := dhowMessages(t, dhowFiles())
		delete(got, "dhow.core.v1.PodSpec")
		expectDifferences(t, differences(want, got), "dhow.core.v1.PodSpec: missing here")
	})
	t.Run("extra message", func(t *testing.T) {
		got := dhowMessages(t, dhowFiles())
		got["dhow.core.v1.Gizmo"] = message{}
		expectDifferences(t, differences(want, got), "dhow.core.v1.Gizmo: neither in Kubernetes nor listed as Dhow's own")
	})
}

// expectOne breaks one message of Dhow's and expects all differences to be about what was broken.
func expectOne(t *testing.T, want map[protoreflect.FullName]message, name string, breakIt func(*descriptorpb.DescriptorProto), found string) {
	t.Helper()
	files := dhowFiles()
	for _, f := range files {
		for _, m := range f.GetMessageType() {
			if f.GetPackage() == "dhow.core.v1" && m.GetName() == name {
				breakIt(m)
			}
		}
	}
	expectDifferences(t, differences(want, dhowMessages(t, files)), found)
}

func expectDifferences(t *testing.T, diffs []string, found string) {
	t.Helper()
	if len(diffs) == 0 {
		t.Fatal("the comparison did not notice")
	}
	for _, d := range diffs {
		if !strings.Contains(d, found) {
			t.Errorf("found %q, want something about %q", d, found)
		}
	}
}

func find(m *descriptorpb.DescriptorProto, name string) *descriptorpb.FieldDescriptorProto {
	for _, f := range m.GetField() {
		if f.GetName() == name {
			return f
		}
	}
	panic("no field " + name)
}

// dropPresence takes the `optional` from a field: the synthetic oneof goes, and those after it move up.
func dropPresence(m *descriptorpb.DescriptorProto, name string) {
	f := find(m, name)
	gone := f.GetOneofIndex()
	f.OneofIndex, f.Proto3Optional = nil, nil
	m.OneofDecl = slices.Delete(m.OneofDecl, int(gone), int(gone)+1)
	for _, other := range m.GetField() {
		if other.OneofIndex != nil && other.GetOneofIndex() > gone {
			other.OneofIndex = proto.Int32(other.GetOneofIndex() - 1)
		}
	}
}

// differences compares in both directions; the answer is sorted and empty when the schemas are one.
func differences(want, got map[protoreflect.FullName]message) []string {
	var diffs []string
	for name, w := range want {
		g, ok := got[name]
		if !ok {
			diffs = append(diffs, fmt.Sprintf("%s: missing here", name))
			continue
		}
		for number, wf := range w {
			gf, ok := g[number]
			if !ok {
				diffs = append(diffs, fmt.Sprintf("%s field %d (%s): missing here", name, number, wf.jsonName))
				continue
			}
			diffs = append(diffs, wf.differences(fmt.Sprintf("%s field %d", name, number), gf)...)
		}
		for number, gf := range g {
			if _, ok := w[number]; !ok {
				diffs = append(diffs, fmt.Sprintf("%s field %d (%s): not in Kubernetes", name, number, gf.jsonName))
			}
		}
	}
	for name := range got {
		if _, ok := want[name]; !ok && !isOwn(name, want) {
			diffs = append(diffs, fmt.Sprintf("%s: neither in Kubernetes nor listed as Dhow's own", name))
		}
	}
	slices.Sort(diffs)
	return diffs
}

func (f field) differences(where string, here field) []string {
	var diffs []string
	report := func(what string, want, got any) {
		if want != got {
			diffs = append(diffs, fmt.Sprintf("%s: %s %v in Kubernetes, %v here", where, what, want, got))
		}
	}
	report("kind", f.kind, here.kind)
	report("cardinality", f.cardinality, here.cardinality)
	report("presence", f.presence, here.presence)
	report("packed", f.packed, here.packed)
	report("JSON name", f.jsonName, here.jsonName)
	return diffs
}

// isOwn says whether a message is Dhow's own: listed, or the request or watch response of a kind that Kubernetes has.
func isOwn(name protoreflect.FullName, want map[protoreflect.FullName]message) bool {
	if slices.Contains(ownMessages, name) {
		return true
	}
	for _, suffix := range []string{"WriteRequest", "WatchResponse"} {
		if kind, ok := strings.CutSuffix(string(name), suffix); ok && want[protoreflect.FullName(kind)] != nil {
			return true
		}
	}
	return false
}

// TestExceptionsAreNeeded keeps the lists of exceptions from outliving what they except.
func TestExceptionsAreNeeded(t *testing.T) {
	want, got := kubernetesMessages(t), dhowMessages(t, dhowFiles())
	for _, name := range ownMessages {
		if got[name] == nil || want[name] != nil {
			t.Errorf("%s: listed as Dhow's own, but it does not exist or is Kubernetes'", name)
		}
	}
	for _, name := range notCarried {
		if _, err := kubernetesFiles(t).FindDescriptorByName(name); err != nil {
			t.Errorf("%s: listed as not carried: %v", name, err)
		}
	}
	for name, json := range jsonNames {
		d, err := kubernetesFiles(t).FindDescriptorByName(name)
		if err != nil {
			t.Errorf("%s: listed with another JSON name: %v", name, err)
		} else if d.(protoreflect.FieldDescriptor).JSONName() == json {
			t.Errorf("%s: the exception is not needed", name)
		}
	}
}

// dhowFiles returns a fresh copy of the definitions of every package that mirrors Kubernetes, and of what they import.
func dhowFiles() []*descriptorpb.FileDescriptorProto {
	var files []*descriptorpb.FileDescriptorProto
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		if strings.HasPrefix(f.Path(), "dhow/") {
			files = append(files, protodesc.ToFileDescriptorProto(f))
		}
		return true
	})
	return files
}

func dhowMessages(t *testing.T, files []*descriptorpb.FileDescriptorProto) map[protoreflect.FullName]message {
	t.Helper()
	registry, err := protodesc.NewFiles(&descriptorpb.FileDescriptorSet{File: files})
	if err != nil {
		t.Fatal(err)
	}
	mirrored := map[protoreflect.FullName]bool{}
	for _, p := range kubernetesPackages {
		mirrored[p] = true
	}
	messages := map[protoreflect.FullName]message{}
	registry.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		if mirrored[f.Package()] {
			collect(f, messages)
		}
		return true
	})
	return messages
}

// collect takes the top-level messages of a file; those nested in them belong to Dhow's requests, or are map entries.
func collect(f protoreflect.FileDescriptor, into map[protoreflect.FullName]message) {
	for i := range f.Messages().Len() {
		d := f.Messages().Get(i)
		if slices.Contains(notCarried, d.FullName()) {
			continue
		}
		m := message{}
		for j := range d.Fields().Len() {
			fd := d.Fields().Get(j)
			jsonName := cmp.Or(jsonNames[fd.FullName()], fd.JSONName())
			m[fd.Number()] = field{kind: kindOf(fd), cardinality: fd.Cardinality(), presence: fd.HasPresence(), packed: fd.IsPacked(), jsonName: jsonName}
		}
		into[translate(d.FullName())] = m
	}
}

func kindOf(fd protoreflect.FieldDescriptor) string {
	switch {
	case fd.IsMap():
		return fmt.Sprintf("map<%s, %s>", kindOf(fd.MapKey()), kindOf(fd.MapValue()))
	case fd.Message() != nil:
		return fmt.Sprintf("%s %s", fd.Kind(), translate(fd.Message().FullName()))
	case fd.Enum() != nil:
		return fmt.Sprintf("%s %s", fd.Kind(), fd.Enum().FullName())
	default:
		return fd.Kind().String()
	}
}

// translate gives the name that a Kubernetes message has here; other names stay.
func translate(name protoreflect.FullName) protoreflect.FullName {
	if p, ok := kubernetesPackages[name.Parent()]; ok {
		return p.Append(name.Name())
	}
	return name
}

func kubernetesMessages(t *testing.T) map[protoreflect.FullName]message {
	t.Helper()
	messages := map[protoreflect.FullName]message{}
	kubernetesFiles(t).RangeFiles(func(f protoreflect.FileDescriptor) bool {
		collect(f, messages)
		return true
	})
	return messages
}

var compileKubernetes = sync.OnceValues(func() (*protoregistry.Files, error) {
	dirs := map[string]string{}
	for _, path := range []string{"k8s.io/api", "k8s.io/apimachinery", "k8s.io/metrics"} {
		dir, err := moduleDir(path)
		if err != nil {
			return nil, err
		}
		dirs[path] = dir
	}
	open := func(path string) (*os.File, error) {
		for module, dir := range dirs {
			if rest, ok := strings.CutPrefix(path, module+"/"); ok {
				return os.Open(filepath.Join(dir, rest))
			}
		}
		return nil, fmt.Errorf("%s: %w", path, os.ErrNotExist)
	}
	return compile(open)
})

func kubernetesFiles(t *testing.T) *protoregistry.Files {
	t.Helper()
	files, err := compileKubernetes()
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// moduleDir finds the source of a module at the version that this module uses: the files that the compiled k8s.io/api structs came with.
func moduleDir(path string) (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", path).Output()
	if err != nil {
		return "", fmt.Errorf("find module %s (does `go mod download` work?): %w", path, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// compile reads the generated.proto files of all carried packages. Every file that they import is one of them.
func compile(open func(string) (*os.File, error)) (*protoregistry.Files, error) {
	compiler := protocompile.Compiler{Resolver: &protocompile.SourceResolver{
		Accessor: func(path string) (io.ReadCloser, error) { return open(path) },
	}}
	var paths []string
	for name := range kubernetesPackages {
		// The package k8s.io.api.core.v1 is in k8s.io/api/core/v1/generated.proto.
		dir := "k8s.io/" + strings.ReplaceAll(strings.TrimPrefix(string(name), "k8s.io."), ".", "/")
		paths = append(paths, dir+"/generated.proto")
	}
	compiled, err := compiler.Compile(context.Background(), paths...)
	if err != nil {
		return nil, fmt.Errorf("compile Kubernetes' generated.proto files: %w", err)
	}
	files := &protoregistry.Files{}
	for _, f := range compiled {
		if err := files.RegisterFile(f); err != nil {
			return nil, err
		}
	}
	return files, nil
}
