package token

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// Paths of what others need to verify tokens on their own (OpenID Connect Discovery 1.0).
const (
	ConfigurationPath = "/.well-known/openid-configuration"
	JWKSPath          = "/openid/v1/jwks"
)

// discovery is the document under ConfigurationPath, as Kubernetes writes it.
func discovery(issuer, jwksURI string, keys *Keys) ([]byte, error) {
	if jwksURI == "" {
		jwksURI = strings.TrimSuffix(issuer, "/") + JWKSPath
	}
	// OIDC wants both to be https URLs; an issuer that is none still issues tokens that this API server accepts.
	if u, err := url.Parse(jwksURI); err != nil {
		return nil, fmt.Errorf("token: the address of the public keys, %q, is no URL: %w", jwksURI, err)
	} else if u.Scheme != "https" && strings.HasPrefix(issuer, "https:") {
		return nil, fmt.Errorf("token: the address of the public keys, %q, must be an https URL", jwksURI)
	}
	var algorithms []string
	for _, algorithm := range keys.algorithms {
		algorithms = append(algorithms, string(algorithm))
	}
	slices.Sort(algorithms)
	return json.Marshal(struct {
		Issuer     string   `json:"issuer"`
		JWKSURI    string   `json:"jwks_uri"`
		Responses  []string `json:"response_types_supported"`
		Subjects   []string `json:"subject_types_supported"`
		Algorithms []string `json:"id_token_signing_alg_values_supported"`
	}{issuer, jwksURI, []string{"id_token"}, []string{"public"}, slices.Compact(algorithms)})
}

// Configuration answers ConfigurationPath.
func (i *Issuer) Configuration() http.Handler { return document("application/json", i.configuration) }

// JWKS answers JWKSPath.
func (i *Issuer) JWKS() http.Handler { return document("application/jwk-set+json", i.publicKeys) }

func document(contentType string, body []byte) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		w.Header().Set("Content-Type", contentType)
		// Kubernetes' value: a rotated key should be known within the hour.
		w.Header().Set("Cache-Control", "public, max-age=3600")
		_, _ = w.Write(body) // the client may be gone
	})
}
