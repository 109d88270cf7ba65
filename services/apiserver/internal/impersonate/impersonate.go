// Package impersonate lets a caller act as somebody else, when he may: Kubernetes' headers Impersonate-User, -Group, -Uid and -Extra-KEY
// (https://kubernetes.io/docs/reference/access-authn-authz/authentication/#user-impersonation).
package impersonate

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"

	authenticationv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"dhow.dev/pkg/identity"
	"dhow.dev/services/apiserver/internal/audit/annotation"
	"dhow.dev/services/apiserver/internal/authorizer"
	"dhow.dev/services/apiserver/internal/respond"
)

// Config is what the filter needs.
type Config struct {
	// Authorizer decides whether the caller may act as each user, group, UID and extra value that he names, with the verb `impersonate`.
	Authorizer authorizer.Authorizer
	// Logger may be nil.
	Logger *slog.Logger
}

// Filter changes the identity of requests that ask for it.
type Filter struct{ config Config }

// New returns the filter.
func New(config Config) *Filter {
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	return &Filter{config}
}

// Wrap returns a handler that calls next as whom the request asks to act as. The headers do not reach next.
func (f *Filter) Wrap(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !asked(r.Header) {
			next.ServeHTTP(w, r)
			return
		}
		caller, ok := identity.FromContext(r.Context())
		if !ok {
			respond.Error(w, r, apierrors.NewInternalError(errors.New("no user found for request")))
			return
		}
		as, err := f.become(r.Context(), caller, r.Header)
		if err != nil {
			respond.Error(w, r, err)
			return
		}
		annotation.Impersonated(r.Context(), as)
		f.config.Logger.DebugContext(r.Context(), "caller acts as another", slog.String("identity", caller.Name), slog.String("impersonated", as.Name))
		r = r.WithContext(identity.NewContext(r.Context(), as))
		r.Header = r.Header.Clone()
		for name := range r.Header {
			if ours(name) {
				delete(r.Header, name)
			}
		}
		next.ServeHTTP(w, r)
	})
}

const prefix = "Impersonate-"

func ours(header string) bool {
	return header == authenticationv1.ImpersonateUserHeader || header == authenticationv1.ImpersonateGroupHeader || header == authenticationv1.ImpersonateUIDHeader ||
		strings.HasPrefix(header, authenticationv1.ImpersonateUserExtraHeaderPrefix)
}

func asked(headers http.Header) bool {
	for name := range headers {
		if strings.HasPrefix(name, prefix) && ours(name) {
			return true
		}
	}
	return false
}

// become authorizes and returns the new identity.
func (f *Filter) become(ctx context.Context, caller identity.Identity, headers http.Header) (identity.Identity, error) {
	as := identity.Identity{Name: headers.Get(authenticationv1.ImpersonateUserHeader), UID: headers.Get(authenticationv1.ImpersonateUIDHeader)}
	groups := headers.Values(authenticationv1.ImpersonateGroupHeader)
	extra := map[string][]string{}
	for name, values := range headers {
		if key, ok := strings.CutPrefix(name, authenticationv1.ImpersonateUserExtraHeaderPrefix); ok {
			key = extraKey(key)
			extra[key] = append(extra[key], values...)
		}
	}
	if as.Name == "" {
		if as.UID == "" && len(groups) == 0 && len(extra) == 0 {
			return caller, nil
		}
		return as, apierrors.NewBadRequest("requested " + describe(as.UID, groups, extra) + " without impersonating a user")
	}
	if err := f.authorize(ctx, caller, as, groups, extra); err != nil {
		return as, err
	}
	namespace, _, isAccount := as.ServiceAccountName()
	as.Groups = slices.Clone(groups)
	if isAccount && len(groups) == 0 {
		as.Groups = []string{identity.ServiceAccounts, identity.ServiceAccountGroup(namespace)}
	}
	// The groups that the request names are the last word, those about authentication included.
	switch {
	case as.InGroup(identity.AllUnauthenticated):
	case as.Name == identity.Anonymous:
		as.Groups = append(as.Groups, identity.AllUnauthenticated)
	case !as.InGroup(identity.AllAuthenticated):
		as.Groups = append(as.Groups, identity.AllAuthenticated)
	}
	if len(extra) > 0 {
		as.Extra = extra
	}
	return as, nil
}

func (f *Filter) authorize(ctx context.Context, caller, as identity.Identity, groups []string, extra map[string][]string) error {
	wanted := []authorizer.Attributes{{Resource: "users", Name: as.Name}}
	if namespace, name, ok := as.ServiceAccountName(); ok {
		wanted[0] = authorizer.Attributes{Resource: "serviceaccounts", Namespace: namespace, Name: name}
	}
	for _, g := range groups {
		wanted = append(wanted, authorizer.Attributes{Resource: "groups", Name: g})
	}
	for key, values := range extra {
		for _, v := range values {
			wanted = append(wanted, authorizer.Attributes{Group: authenticationv1.GroupName, Version: "v1", Resource: "userextras", Subresource: key, Name: v})
		}
	}
	if as.UID != "" {
		wanted = append(wanted, authorizer.Attributes{Group: authenticationv1.GroupName, Version: "v1", Resource: "uids", Name: as.UID})
	}
	for _, a := range wanted {
		a.User, a.Verb = caller, "impersonate"
		if err := f.config.Authorizer.Authorize(ctx, a); err != nil {
			return err
		}
	}
	return nil
}

// extraKey is the key of a header, which is in lower case and may be escaped as in a path. One that cannot be unescaped is taken as it is.
func extraKey(header string) string {
	key := strings.ToLower(header)
	if unescaped, err := url.PathUnescape(key); err == nil {
		return unescaped
	}
	return key
}

func describe(uid string, groups []string, extra map[string][]string) string {
	var parts []string
	if len(groups) > 0 {
		parts = append(parts, fmt.Sprintf("groups %q", groups))
	}
	if len(extra) > 0 {
		parts = append(parts, fmt.Sprintf("extra %q", extra))
	}
	if uid != "" {
		parts = append(parts, fmt.Sprintf("UID %q", uid))
	}
	return strings.Join(parts, " and ")
}
