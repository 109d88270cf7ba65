package openapi

import "strings"

// otherPaths are those that belong to no group and version, by the name of their document of version 3.
func otherPaths(versions []*groupVersion) map[string][]path {
	get := func(at, id, description, tag, gives string, types ...string) []path {
		return []path{{path: at, operations: []operation{{method: "get", id: id, description: description, tag: tag, gives: gives, codes: []int{200}, forms: types}}}}
	}
	others := map[string][]path{
		"api":     get("/api/", "getCoreAPIVersions", "get available API versions", "core", modelOf("APIVersions")),
		"apis":    get("/apis/", "getAPIVersions", "get available API versions", "apis", modelOf("APIGroupList")),
		"version": get("/version/", "getCodeVersion", "get the version information for this server", "version", "io.k8s.apimachinery.pkg.version.Info", "application/json"),
		".well-known/openid-configuration": get("/.well-known/openid-configuration/", "getServiceAccountIssuerOpenIDConfiguration",
			"get service account issuer OpenID configuration, also known as the 'OIDC discovery doc'", "WellKnown", "", "application/json"),
		"openid/v1/jwks": get("/openid/v1/jwks/", "getServiceAccountIssuerOpenIDKeyset",
			"get service account issuer OpenID JSON Web Key Set (contains public token verification keys)", "openid", "", "application/jwk-set+json"),
	}
	for _, v := range versions {
		if v.group == "" {
			continue
		}
		b := &builder{group: v.group, version: v.version}
		name := strings.TrimSuffix(b.name(), strings.ToUpper(v.version[:1])+v.version[1:])
		tag, _, _ := strings.Cut(b.tag(), "_")
		others["apis/"+v.group] = get("/apis/"+v.group+"/", "get"+name+"APIGroup", "get information of a group", tag, modelOf("APIGroup"))
	}
	return others
}
