package openapi

import (
	"slices"
	"strconv"
)

// object is a JSON object. Its keys are written sorted, so that a document is the same bytes each time.
type object = map[string]any

var (
	readTypes  = []string{"application/json", "application/yaml", "application/vnd.kubernetes.protobuf"}
	watchTypes = []string{"application/json;stream=watch", "application/vnd.kubernetes.protobuf;stream=watch"}
	patchTypes = []string{"application/json-patch+json", "application/merge-patch+json", "application/strategic-merge-patch+json", "application/apply-patch+yaml"}
)

// types are the content types of an operation's answer.
func (o operation) types() []string {
	switch {
	case o.forms != nil:
		return o.forms
	case o.action == "connect":
		return []string{anyStream}
	case o.gives == "":
		return append([]string{"text/plain"}, readTypes...)
	case o.streams:
		return slices.Concat(readTypes, watchTypes)
	default:
		return readTypes
	}
}

func (o operation) extensions() object {
	form := object{"operationId": o.id, "description": o.description, "tags": []string{o.tag}}
	if o.action != "" {
		form["x-kubernetes-action"] = o.action
		form["x-kubernetes-group-version-kind"] = object{"group": o.kind.Group, "version": o.kind.Version, "kind": o.kind.Kind}
	}
	return form
}

var meanings = map[int]string{200: "OK", 201: "Created", 202: "Accepted"}

// sharedParameters are the query parameters that the paths of version 2 refer to.
type sharedParameters struct {
	forms object
	keys  map[parameter]string
}

func newShared() *sharedParameters {
	return &sharedParameters{forms: object{}, keys: map[parameter]string{}}
}

// key returns the name that a parameter is shared by. Parameters of one name can differ: the first keeps the plain name.
func (s *sharedParameters) key(p parameter) string {
	key, found := s.keys[p]
	if found {
		return key
	}
	key = p.name
	for n := 2; s.forms[key] != nil; n++ {
		key = p.name + "-" + strconv.Itoa(n)
	}
	s.keys[p], s.forms[key] = key, p.v2()
	return key
}

func (p parameter) v2() object {
	form := object{"name": p.name, "in": p.in, "type": p.kind, "uniqueItems": true}
	if p.description != "" {
		form["description"] = p.description
	}
	if p.in == "path" {
		form["required"] = true
	}
	return form
}

// v2 is the path in OpenAPI 2.0. Query parameters stand in shared once.
func (p path) v2(shared *sharedParameters) object {
	form := object{}
	if list := parametersV2(p.parameters, shared); len(list) > 0 {
		form["parameters"] = list
	}
	for _, o := range p.operations {
		method := o.extensions()
		method["schemes"] = []string{"https"}
		method["produces"] = o.types()
		method["consumes"] = []string{anyStream}
		if o.patches {
			method["consumes"] = patchTypes
		}
		list := parametersV2(o.parameters, shared)
		if o.takes != "" {
			list = append(list, object{"name": "body", "in": "body", "required": !o.optional, "schema": object{"$ref": "#/definitions/" + o.takes}})
		}
		if len(list) > 0 {
			method["parameters"] = list
		}
		answer := object{"type": "string"}
		if o.gives != "" {
			answer = object{"$ref": "#/definitions/" + o.gives}
		}
		responses := object{"401": object{"description": "Unauthorized"}}
		for _, code := range o.codes {
			responses[strconv.Itoa(code)] = object{"description": meanings[code], "schema": answer}
		}
		method["responses"] = responses
		form[o.method] = method
	}
	return form
}

// parametersV2 refers to shared parameters; those of the path stand where they are used.
func parametersV2(parameters []parameter, shared *sharedParameters) []any {
	var list []any
	for _, p := range parameters {
		if p.in == "path" {
			list = append(list, p.v2())
		} else {
			list = append(list, object{"$ref": "#/parameters/" + shared.key(p)})
		}
	}
	return list
}

// v3 is the path in OpenAPI 3.0.
func (p path) v3() object {
	form := object{}
	if list := parametersV3(p.parameters); len(list) > 0 {
		form["parameters"] = list
	}
	for _, o := range p.operations {
		method := o.extensions()
		if list := parametersV3(o.parameters); len(list) > 0 {
			method["parameters"] = list
		}
		if o.takes != "" {
			types := []string{anyStream}
			if o.patches {
				types = patchTypes
			}
			body := object{"content": content(types, object{"$ref": "#/components/schemas/" + o.takes})}
			if !o.optional {
				body["required"] = true
			}
			method["requestBody"] = body
		}
		answer := object{"type": "string"}
		if o.gives != "" {
			answer = object{"$ref": "#/components/schemas/" + o.gives}
		}
		responses := object{"401": object{"description": "Unauthorized"}}
		for _, code := range o.codes {
			responses[strconv.Itoa(code)] = object{"description": meanings[code], "content": content(o.types(), answer)}
		}
		method["responses"] = responses
		form[o.method] = method
	}
	return form
}

func content(types []string, schema object) object {
	form := object{}
	for _, t := range types {
		form[t] = object{"schema": schema}
	}
	return form
}

func parametersV3(parameters []parameter) []any {
	var list []any
	for _, p := range parameters {
		form := object{"name": p.name, "in": p.in, "schema": object{"type": p.kind, "uniqueItems": true}}
		if p.description != "" {
			form["description"] = p.description
		}
		if p.in == "path" {
			form["required"] = true
		}
		list = append(list, form)
	}
	return list
}
