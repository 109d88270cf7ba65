package explain

import (
	"encoding/json"
	"strings"
)

// operation is one of a JSON patch (RFC 6902).
type operation struct {
	Op    string `json:"op"`
	Path  string `json:"path"`
	Value any    `json:"value,omitempty"`
}

// path joins the parts of a JSON pointer (RFC 6901).
func path(parts ...string) string {
	escape := strings.NewReplacer("~", "~0", "/", "~1")
	var b strings.Builder
	for _, p := range parts {
		b.WriteByte('/')
		b.WriteString(escape.Replace(p))
	}
	return b.String()
}

func encode(ops []operation) []byte {
	encoded, err := json.Marshal(ops)
	if err != nil {
		// Values are strings, booleans, maps of strings, and structs of k8s.io/api.
		panic("explain: encode a patch: " + err.Error())
	}
	return encoded
}
