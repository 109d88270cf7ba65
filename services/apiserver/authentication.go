package apiserver

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"path/filepath"

	kauthenticationv1 "k8s.io/api/authentication/v1"
	kschema "k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	authenticationv1 "dhow.dev/gen/go/dhow/authentication/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/resource"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/apiserver/internal/admission"
	"dhow.dev/services/apiserver/internal/authenticator"
	"dhow.dev/services/apiserver/internal/grpcapi"
	"dhow.dev/services/apiserver/internal/patch"
	"dhow.dev/services/apiserver/internal/registry"
	"dhow.dev/services/apiserver/internal/restapi"
	"dhow.dev/services/apiserver/internal/token"
)

// signingKeyFile is where the keys of tokens are, beside those that Secrets are encrypted with, unless Authentication says otherwise.
const signingKeyFile = "token-keys.pem"

// Authentication is what an operator chooses of how callers are known. The zero value is complete.
type Authentication = authenticator.Options

// authentication is who callers are, and what may be asked about it, at both doors.
type authentication struct {
	issuer   *token.Issuer
	verifier *authenticator.Verifier
	uses     *uses
	// issue passes requests for tokens through admission before the issuer.
	issue token.Issue
}

// admitted lets the admission of a registry decide about requests for tokens, and has uses written there. It is called before anybody is known.
func (a authentication) admitted(writes *registry.Registry) authentication {
	a.uses.registry = writes
	a.issue = func(ctx context.Context, namespace, name string, request *kauthenticationv1.TokenRequest) (*kauthenticationv1.TokenRequest, error) {
		asked := request.DeepCopy()
		if _, err := writes.Admit(ctx, admission.Create, accounts, "token", namespace, name, asked); err != nil {
			return nil, err
		}
		return a.issuer.Request(ctx, namespace, name, asked)
	}
	return a
}

var accounts = resource.For[*corev1.ServiceAccount]()

func newAuthentication(config Config, objects token.Objects) (authentication, error) {
	noted := &uses{logger: config.Logger}
	issuer, verifier, err := config.Authentication.Build(objects, filepath.Join(filepath.Dir(config.KeyFile), signingKeyFile), noted.note, config.Logger)
	return authentication{issuer: issuer, verifier: verifier, uses: noted}, err
}

// uses writes on the Secrets of tokens when they were used.
type uses struct {
	registry *registry.Registry
	logger   *slog.Logger
}

// note is token.Config.Used. What cannot be written is noted by a later request.
func (u *uses) note(ctx context.Context, secret types.NamespacedName, uid types.UID, label, day string) {
	data, err := json.Marshal(map[string]any{"metadata": map[string]any{"uid": uid, "labels": map[string]string{label: day}}})
	if err == nil {
		ctx = identity.NewContext(ctx, identity.Identity{Name: identity.APIServer, Groups: []string{identity.Masters}})
		_, err = u.registry.Patch(ctx, resource.For[*corev1.Secret](), registry.PatchInput{Namespace: secret.Namespace, Name: secret.Name, Type: patch.Merge, Data: data}, registry.WriteOptions{})
	}
	if err != nil {
		u.logger.LogAttrs(ctx, slog.LevelWarn, "use of a secret's token not noted", logkey.Err(err))
	}
}

// answers are the kinds of authentication.k8s.io at the gRPC door.
func (a authentication) answers() map[*resource.Resource]grpcapi.Answer {
	plain := func(answer func(context.Context, []byte) ([]byte, error)) grpcapi.Answer {
		return func(ctx context.Context, object []byte, _ registry.WriteOptions) ([]byte, error) {
			return answer(ctx, object)
		}
	}
	return map[*resource.Resource]grpcapi.Answer{
		resource.For[*authenticationv1.TokenRequest]():      plain(a.issue.Answer),
		resource.For[*authenticationv1.TokenReview]():       plain(a.verifier.AnswerReview),
		resource.For[*authenticationv1.SelfSubjectReview](): plain(a.verifier.AnswerSelf),
	}
}

// virtual, subresources and paths are the same at the Kubernetes door.
func (a authentication) virtual() map[kschema.GroupResource]http.Handler {
	return map[kschema.GroupResource]http.Handler{
		resource.For[*authenticationv1.TokenReview]().GroupResource():       a.verifier.ReviewHandler(),
		resource.For[*authenticationv1.SelfSubjectReview]().GroupResource(): a.verifier.SelfHandler(),
	}
}

func (a authentication) subresources() map[restapi.Subresource]http.Handler {
	return map[restapi.Subresource]http.Handler{{Resource: "serviceaccounts", Name: "token"}: a.issue.Handler()}
}

func (a authentication) paths() map[string]http.Handler {
	return map[string]http.Handler{token.ConfigurationPath: a.issuer.Configuration(), token.JWKSPath: a.issuer.JWKS()}
}
