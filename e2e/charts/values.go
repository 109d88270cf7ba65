// Package charts tests the Helm charts of helm/: what they render, that every value does what it says, and a control plane that real helm installs on a cluster of Dhow's
// own.
//
// A chart's values.yaml is the source of its values.schema.json and of the table in its README.md: `go test -tags e2e ./charts -run TestDocumented -update` writes both.
package charts

import (
	"encoding/json"
	"fmt"
	"math"
	"regexp"
	"strings"

	"sigs.k8s.io/yaml"
)

// Value is one value of a chart.
type Value struct {
	// Path is its name, with dots.
	Path string
	// Default is what values.yaml gives it, as JSON decodes it.
	Default any
	// Text is the comment above it.
	Text string
	// Constraints are those of its schema beside the type: the JSON behind @schema in the comment. With "free", the content of an object is whatever Kubernetes takes.
	Constraints map[string]any
}

var keyLine = regexp.MustCompile(`^( *)([A-Za-z][A-Za-z0-9-]*):(?: |$)`)

const schemaMark = "@schema "

// Values reads a values.yaml: blocks of comments, each above its key, at two blanks a level.
func Values(content []byte) ([]Value, error) {
	var tree map[string]any
	if err := yaml.Unmarshal(content, &tree); err != nil {
		return nil, err
	}
	var values []Value
	var comment, path []string
	free := ""
	for number, line := range strings.Split(string(content), "\n") {
		trimmed := strings.TrimSpace(line)
		if text, ok := strings.CutPrefix(trimmed, "#"); ok {
			comment = append(comment, strings.TrimSpace(text))
			continue
		}
		found := keyLine.FindStringSubmatch(line)
		if found == nil {
			if trimmed != "" && free == "" {
				return nil, fmt.Errorf("line %d: neither a comment nor a key: %q", number+1, line)
			}
			comment = nil
			continue
		}
		depth := len(found[1]) / 2
		if depth > len(path) {
			return nil, fmt.Errorf("line %d: indented by more than two blanks", number+1)
		}
		path = append(path[:depth], found[2])
		name := strings.Join(path, ".")
		if free != "" && strings.HasPrefix(name, free+".") {
			continue
		}
		free = ""
		value, err := newValue(name, at(tree, path), comment)
		if err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", number+1, name, err)
		}
		comment = nil
		if section, ok := value.Default.(map[string]any); ok && len(section) > 0 && value.Constraints == nil {
			continue // a section: its values follow
		}
		if value.Text == "" {
			return nil, fmt.Errorf("line %d: %s has no comment", number+1, name)
		}
		free = name
		values = append(values, value)
	}
	return values, nil
}

func newValue(name string, byDefault any, comment []string) (Value, error) {
	value := Value{Path: name, Default: byDefault}
	var text []string
	for _, line := range comment {
		constraints, ok := strings.CutPrefix(line, schemaMark)
		if !ok {
			text = append(text, line)
			continue
		}
		if err := json.Unmarshal([]byte(constraints), &value.Constraints); err != nil {
			return value, fmt.Errorf("@schema: %w", err)
		}
	}
	value.Text = strings.Join(text, " ")
	return value, nil
}

// at returns what is at a path of a tree, nil when nothing is.
func at(tree any, path []string) any {
	for _, key := range path {
		section, ok := tree.(map[string]any)
		if !ok {
			return nil
		}
		tree = section[key]
	}
	return tree
}

// Patterns of strings whose default shows what they are.
var patterns = []struct{ like, pattern string }{
	{`^[0-9]+(ms|s|m|h)$`, `^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$`},
	{`^[0-9.]+/[0-9]+$`, `^[0-9a-f.:]+/[0-9]+$`},
	{`^[0-9]+(Mi|Gi)$`, `^[0-9]+(\.[0-9]+)?(k|M|G|T|Ki|Mi|Gi|Ti)?$`},
}

// Schema is the value's own.
func (v Value) Schema() map[string]any {
	schema := map[string]any{"description": v.Text}
	switch d := v.Default.(type) {
	case string:
		schema["type"] = "string"
		for _, p := range patterns {
			if regexp.MustCompile(p.like).MatchString(d) {
				schema["pattern"] = p.pattern
			}
		}
	case bool:
		schema["type"] = "boolean"
	case float64:
		schema["type"] = "number"
		if d == math.Trunc(d) {
			schema["type"] = "integer"
		}
	case []any:
		schema["type"] = "array"
	case map[string]any:
		schema["type"] = "object"
	}
	for key, constraint := range v.Constraints {
		if key != "free" {
			schema[key] = constraint
		}
	}
	return schema
}

// library is the chart that all others are made of. It has no values.
const library = "dhow-library"

// Schema is a chart's values.schema.json: it refuses what is no value of the chart.
func Schema(values []Value) ([]byte, error) {
	root := section()
	root["$schema"] = "http://json-schema.org/draft-07/schema#"
	for _, v := range values {
		in := root
		path := strings.Split(v.Path, ".")
		for _, key := range path[:len(path)-1] {
			properties := in["properties"].(map[string]any)
			if properties[key] == nil {
				properties[key] = section()
			}
			in = properties[key].(map[string]any)
		}
		in["properties"].(map[string]any)[path[len(path)-1]] = v.Schema()
	}
	// Helm gives every chart a section for each chart that it is made of.
	root["properties"].(map[string]any)[library] = map[string]any{"type": "object"}
	text, err := json.MarshalIndent(root, "", "  ")
	return append(text, '\n'), err
}

func section() map[string]any {
	return map[string]any{"type": "object", "additionalProperties": false, "properties": map[string]any{}}
}

// Where the table of values is in a README.md.
const (
	tableBegin = "<!-- The table is made from values.yaml. -->\n"
	tableEnd   = "<!-- End of the table. -->\n"
)

// Table is the part of a README.md that tells the values.
func Table(values []Value) (string, error) {
	var table strings.Builder
	table.WriteString(tableBegin + "\n| value | default | what it is |\n|---|---|---|\n")
	for _, v := range values {
		byDefault, err := json.Marshal(v.Default)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&table, "| `%s` | `%s` | %s |\n", v.Path, byDefault, strings.ReplaceAll(v.Text, "|", `\|`))
	}
	return table.String() + "\n" + tableEnd, nil
}
