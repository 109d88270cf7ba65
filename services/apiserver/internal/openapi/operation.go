package openapi

import (
	"cmp"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"dhow.dev/pkg/resource"
	"dhow.dev/services/apiserver/internal/discovery"
)

// path is a path with its methods, in no version's form yet.
type path struct {
	path string
	// parameters belong to all methods.
	parameters []parameter
	operations []operation
}

type parameter struct {
	name, description string
	// kind is the JSON type. As in Kubernetes' documents, lists are described by the type of one value: they are written as name=a&name=b.
	kind string
	// in is "path" or "query".
	in string
}

// operation is a method of a path.
type operation struct {
	method, id, description string
	// tag names the group and version; action is what x-kubernetes-action says.
	tag, action string
	kind        schema.GroupVersionKind
	parameters  []parameter
	// takes is the model of the body, or empty. It may be left out where optional says so.
	takes    string
	optional bool
	// gives is the model of the answer, or empty for text; codes are the successful ones.
	gives string
	codes []int
	// forms are the content types of the answer where they are not those of resources.
	forms []string
	// streams says that the answer may be a watch's events.
	streams bool
	// patches says that the body is a patch.
	patches bool
}

const (
	models    = "io.k8s.apimachinery.pkg.apis.meta.v1."
	anyStream = "*/*"
)

// builder makes the paths of one group and version.
type builder struct {
	group, version string
	// models names the model of each kind.
	models map[schema.GroupVersionKind]string
	paths  []path
}

// pathsOf returns the paths of the resources of one group and version, sorted.
func pathsOf(group, version string, resources []*resource.Resource, models map[schema.GroupVersionKind]string) []path {
	b := &builder{group: group, version: version, models: models}
	b.add(path{path: b.root() + "/", operations: []operation{{
		method: "get", id: "get" + b.name() + "APIResources", description: "get available resources", tag: b.tag(), gives: modelOf("APIResourceList"), codes: []int{200},
	}}})
	for _, r := range resources {
		b.resource(r)
	}
	slices.SortFunc(b.paths, func(a, b path) int { return cmp.Compare(a.path, b.path) })
	return b.paths
}

func modelOf(kind string) string { return models + kind }

func (b *builder) add(p path) {
	if len(p.operations) > 0 {
		b.paths = append(b.paths, p)
	}
}

// root is where the group and version is served.
func (b *builder) root() string { return "/" + rootOf(b.group, b.version) }

func rootOf(group, version string) string {
	if group == "" {
		return "api/" + version
	}
	return "apis/" + group + "/" + version
}

// name is how operations call the group and version, for example CoreV1 or RbacAuthorizationV1.
func (b *builder) name() string {
	var name strings.Builder
	for _, part := range strings.Split(strings.TrimSuffix(cmp.Or(b.group, "core"), ".k8s.io"), ".") {
		name.WriteString(strings.ToUpper(part[:1]) + part[1:])
	}
	return name.String() + strings.ToUpper(b.version[:1]) + b.version[1:]
}

// tag is for example core_v1 or rbacAuthorization_v1.
func (b *builder) tag() string {
	name := b.name()
	name = name[:len(name)-len(b.version)]
	return strings.ToLower(name[:1]) + name[1:] + "_" + b.version
}

// resource adds the paths of one resource and its subresources.
func (b *builder) resource(r *resource.Resource) {
	model := b.models[r.GroupVersionKind()]
	scope, collection := "", b.root()+"/"+r.Plural
	pretty := []parameter{pretty()}
	if r.Namespaced {
		scope, collection = "Namespaced", b.root()+"/namespaces/{namespace}/"+r.Plural
		pretty = append(pretty, inPath("namespace", "object name and auth scope, such as for teams and projects"))
	}
	of := operation{tag: b.tag(), kind: r.GroupVersionKind()}
	b.collection(r, of, collection, scope, model, pretty)
	if r.Namespaced && r.Allows("list") {
		list := of.to("get", "list", "list"+b.name()+r.Kind+"ForAllNamespaces", "list or watch objects of kind "+r.Kind)
		list.gives, list.codes, list.streams = b.listModel(r), []int{200}, true
		b.add(path{b.root() + "/" + r.Plural, append(listParameters(), pretty[0]), []operation{list}})
	}
	b.watches(r, of, scope, pretty)
	named := slices.Concat([]parameter{inPath("name", "name of the "+r.Kind)}, pretty)
	p := path{path: collection + "/{name}", parameters: named}
	for _, verb := range []string{"get", "update", "patch", "delete"} {
		if r.Allows(verb) {
			p.operations = append(p.operations, b.single(of, verb, scope+r.Kind, "the specified "+r.Kind, model))
		}
	}
	b.add(p)
	for _, s := range discovery.Subresources(r) {
		b.subresource(r, s, collection, scope, named)
	}
}

func (o operation) to(method, action, id, description string) operation {
	o.method, o.action, o.id, o.description = method, action, id, description
	return o
}

func (b *builder) listModel(r *resource.Resource) string {
	kind := r.GroupVersionKind()
	kind.Kind += "List"
	return b.models[kind]
}

func (b *builder) collection(r *resource.Resource, of operation, at, scope, model string, pretty []parameter) {
	p := path{path: at, parameters: pretty}
	if r.Allows("list") {
		words := "list or watch objects of kind "
		if !r.Allows("watch") {
			words = "list objects of kind "
		}
		o := of.to("get", "list", "list"+b.name()+scope+r.Kind, words+r.Kind)
		o.parameters, o.gives, o.codes, o.streams = listParameters(), b.listModel(r), []int{200}, true
		p.operations = append(p.operations, o)
	}
	if r.Allows("create") {
		o := of.to("post", "post", "create"+b.name()+scope+r.Kind, "create "+withArticle(r.Kind))
		o.parameters, o.takes, o.gives, o.codes = writeParameters(metav1.CreateOptions{}), model, model, []int{200, 201, 202}
		p.operations = append(p.operations, o)
	}
	if r.Allows("deletecollection") {
		o := of.to("delete", "deletecollection", "delete"+b.name()+"Collection"+scope+r.Kind, "delete collection of "+r.Kind)
		list := slices.DeleteFunc(listParameters(), func(p parameter) bool { return p.name == "watch" || p.name == "allowWatchBookmarks" })
		o.parameters = append(list, deleteParameters()...)
		o.takes, o.optional, o.gives, o.codes = modelOf("DeleteOptions"), true, modelOf("Status"), []int{200}
		p.operations = append(p.operations, o)
	}
	b.add(p)
}

func withArticle(kind string) string {
	if kind == "Endpoints" {
		return kind
	}
	if strings.ContainsRune("AEIOU", rune(kind[0])) {
		return "an " + kind
	}
	return "a " + kind
}

// single is an operation on one object or a part of it. What is named in words, suffix in the operation's id.
func (b *builder) single(of operation, verb, suffix, words, model string) operation {
	var o operation
	switch verb {
	case "get":
		o = of.to("get", "get", "read"+b.name()+suffix, "read "+words)
		o.codes = []int{200}
	case "create":
		o = of.to("post", "post", "create"+b.name()+suffix, "create "+words)
		o.parameters, o.takes, o.codes = writeParameters(metav1.CreateOptions{}), model, []int{200, 201, 202}
	case "update":
		o = of.to("put", "put", "replace"+b.name()+suffix, "replace "+words)
		o.parameters, o.takes, o.codes = writeParameters(metav1.UpdateOptions{}), model, []int{200, 201}
	case "patch":
		o = of.to("patch", "patch", "patch"+b.name()+suffix, "partially update "+words)
		o.parameters, o.takes, o.patches, o.codes = writeParameters(metav1.PatchOptions{}), modelOf("Patch"), true, []int{200, 201}
	case "delete":
		o = of.to("delete", "delete", "delete"+b.name()+suffix, "delete "+withArticle(of.kind.Kind))
		o.parameters, o.takes, o.optional, o.codes = deleteParameters(), modelOf("DeleteOptions"), true, []int{200, 202}
		if o.gives = modelOf("Status"); discovery.ReturnsDeleted(of.kind.GroupKind()) {
			o.gives = model
		}
		return o
	}
	o.gives = model
	return o
}

// watches adds the paths that came before the parameter watch.
func (b *builder) watches(r *resource.Resource, of operation, scope string, pretty []parameter) {
	if !r.Allows("watch") {
		return
	}
	watch := func(at, action, id string, parameters []parameter) {
		words := "watch individual changes to a list of " + r.Kind + ". deprecated: use the 'watch' parameter with a list operation instead."
		if action == "watch" {
			words = "watch changes to an object of kind " + r.Kind + ". deprecated: use the 'watch' parameter with a list operation instead, filtered to a single item with the 'fieldSelector' parameter."
		}
		o := of.to("get", action, id, words)
		o.gives, o.codes, o.streams = modelOf("WatchEvent"), []int{200}, true
		b.add(path{at, append(listParameters(), parameters...), []operation{o}})
	}
	in := "/" + r.Plural
	if r.Namespaced {
		watch(b.root()+"/watch/"+r.Plural, "watchlist", "watch"+b.name()+r.Kind+"ListForAllNamespaces", pretty[:1])
		in = "/namespaces/{namespace}/" + r.Plural
	}
	watch(b.root()+"/watch"+in, "watchlist", "watch"+b.name()+scope+r.Kind+"List", pretty)
	watch(b.root()+"/watch"+in+"/{name}", "watch", "watch"+b.name()+scope+r.Kind, slices.Concat([]parameter{inPath("name", "name of the "+r.Kind)}, pretty))
}

// connects are what options the streams and proxies take.
func connects() map[string]any {
	return map[string]any{
		"pods/attach": corev1.PodAttachOptions{}, "pods/exec": corev1.PodExecOptions{}, "pods/portforward": corev1.PodPortForwardOptions{},
		"pods/proxy": corev1.PodProxyOptions{}, "services/proxy": corev1.ServiceProxyOptions{}, "nodes/proxy": corev1.NodeProxyOptions{},
	}
}

func (b *builder) subresource(r *resource.Resource, s discovery.Subresource, collection, scope string, named []parameter) {
	title := strings.ToUpper(s.Name[:1]) + s.Name[1:]
	suffix := scope + r.Kind + title
	of := operation{tag: b.tag(), kind: s.Kind}
	at := path{path: collection + "/{name}/" + s.Name, parameters: named}
	options, connects := connects()[r.Plural+"/"+s.Name]
	switch {
	case connects:
		// Streams and proxied requests are text, and have no parameter pretty.
		at.parameters = slices.DeleteFunc(slices.Clone(named), func(p parameter) bool { return p.name == "pretty" })
		at.parameters = append(at.parameters, parametersOf(options)...)
		b.add(connected(at, b, s, r, suffix, of))
		if s.Name == "proxy" {
			at.path += "/{path}"
			at.parameters = append(slices.Clone(at.parameters), inPath("path", "path to the resource"))
			b.add(connected(at, b, s, r, suffix+"WithPath", of))
		}
		return
	case r.Plural == "pods" && s.Name == "log":
		o := b.single(of, "get", suffix, "log of the specified Pod", "")
		at.parameters = append(slices.Clone(named), parametersOf(corev1.PodLogOptions{})...)
		at.operations = []operation{o}
	default:
		for _, verb := range []string{"get", "create", "update", "patch"} {
			if s.Allows(verb) {
				at.operations = append(at.operations, b.single(of, verb, suffix, s.Name+" of the specified "+r.Kind, b.models[s.Kind]))
			}
		}
	}
	b.add(at)
}

// connected returns at with a method for each verb.
func connected(at path, b *builder, s discovery.Subresource, r *resource.Resource, suffix string, of operation) path {
	methods := []string{"get", "post"}
	if s.Name == "proxy" {
		methods = []string{"delete", "get", "head", "options", "patch", "post", "put"}
	}
	at.operations = nil
	for _, method := range methods {
		title := strings.ToUpper(method[:1]) + method[1:]
		o := of.to(method, "connect", "connect"+b.name()+title+suffix, "connect "+strings.ToUpper(method)+" requests to "+s.Name+" of "+r.Kind)
		o.codes = []int{200}
		at.operations = append(at.operations, o)
	}
	return at
}

func inPath(name, description string) parameter {
	return parameter{name: name, description: description, kind: "string", in: "path"}
}

func pretty() parameter {
	return parameter{name: "pretty", in: "query", kind: "string", description: "If 'true', then the output is pretty printed. Defaults to 'false'."}
}

func listParameters() []parameter { return parametersOf(metav1.ListOptions{}) }

func deleteParameters() []parameter {
	return slices.DeleteFunc(parametersOf(metav1.DeleteOptions{}), func(p parameter) bool { return p.name == "preconditions" })
}

func writeParameters(options any) []parameter { return parametersOf(options) }

// parametersOf returns the fields of an options struct: what a query may say. Fields that are objects have no place there.
func parametersOf(options any) []parameter {
	docs := map[string]string{}
	if documented, ok := options.(interface{ SwaggerDoc() map[string]string }); ok {
		docs = documented.SwaggerDoc()
	}
	var list []parameter
	for _, field := range reflect.VisibleFields(reflect.TypeOf(options)) {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		if name == "" || field.Anonymous || name == "kind" || name == "apiVersion" {
			continue
		}
		p := parameter{name: name, in: "query", description: docs[name]}
		of := field.Type
		if of.Kind() == reflect.Pointer {
			of = of.Elem()
		}
		if of.Kind() == reflect.Slice {
			of = of.Elem()
		}
		switch of.Kind() {
		case reflect.String:
			p.kind = "string"
		case reflect.Bool:
			p.kind = "boolean"
		case reflect.Int32, reflect.Int64:
			p.kind = "integer"
		default:
			continue
		}
		list = append(list, p)
	}
	slices.SortFunc(list, func(a, b parameter) int { return cmp.Compare(a.name, b.name) })
	return list
}
