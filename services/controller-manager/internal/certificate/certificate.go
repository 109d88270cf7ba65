// Package certificate answers CertificateSigningRequests: those that were approved for one of the cluster's own signers get a certificate, and those that are
// answered, or that nobody answers, go after a while.
//
// To approve is a user's part, but for the client certificates of nodes, which are approved when whoever asks may have them. What a signer makes certificates of, and when requests go, is as in Kubernetes
// (https://kubernetes.io/docs/reference/access-authn-authz/certificate-signing-requests/).
package certificate

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	certificatesk8s "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	authorizationv1 "dhow.dev/gen/go/dhow/authorization/v1"
	certificatesv1 "dhow.dev/gen/go/dhow/certificates/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/informer"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/pki"
	"dhow.dev/services/controller-manager/internal/apitime"
	"dhow.dev/services/controller-manager/internal/podstate"
	"dhow.dev/services/controller-manager/internal/reconcile"
)

const (
	// maxTTL is how long certificates are valid that are asked for without a time, or for longer. Kubernetes: --cluster-signing-duration, one year.
	maxTTL = 365 * 24 * time.Hour
	// minTTL is what a request gets at least, whatever it says.
	minTTL = 10 * time.Minute
)

// Config is what the controller is made of.
type Config struct {
	Conn   grpc.ClientConnInterface
	Logger *slog.Logger
	Now    func() time.Time
	// Authority signs. Nil: nothing is signed here; requests are removed all the same.
	Authority *pki.Authority
	Workers   int
}

// Controller reconciles requests, by their names. It reads nothing else, and no other controller reads them, and so it watches them itself.
type Controller struct {
	runner    *reconcile.Runner[string]
	informer  *informer.Informer
	requests  *informer.Store[*certificatesv1.CertificateSigningRequest]
	client    *client.Client[*certificatesv1.CertificateSigningRequest]
	reviews   *client.Client[*authorizationv1.SubjectAccessReview]
	authority *pki.Authority
	logger    *slog.Logger
	now       func() time.Time
}

// New returns the controller.
func New(cfg Config) *Controller {
	c := &Controller{
		informer: informer.New(cfg.Conn, cfg.Logger), client: client.For[*certificatesv1.CertificateSigningRequest](cfg.Conn),
		reviews:   client.For[*authorizationv1.SubjectAccessReview](cfg.Conn),
		authority: cfg.Authority, logger: cfg.Logger, now: cfg.Now,
	}
	c.requests = informer.Add(c.informer, informer.Options[*certificatesv1.CertificateSigningRequest]{})
	c.runner = reconcile.New(reconcile.Config[string]{
		Name: "certificate", Source: c.informer, Workers: cfg.Workers, Reconcile: c.reconcile, Logger: cfg.Logger,
	})
	c.requests.OnChangeTraced(func(_, csr *certificatesv1.CertificateSigningRequest, cause *informer.Trace) {
		if csr != nil {
			c.runner.Add(csr.GetMetadata().GetName(), cause)
		}
	})
	return c
}

// Run works until ctx ends.
func (c *Controller) Run(ctx context.Context) error {
	tasks, running := errgroup.WithContext(ctx)
	tasks.Go(func() error { return c.informer.Run(running) })
	tasks.Go(func() error { return c.runner.Run(running) })
	return tasks.Wait()
}

func (c *Controller) reconcile(ctx context.Context, turn *reconcile.Turn[string]) error {
	csr, ok := c.requests.Get("", turn.Key)
	if !ok || object.IsDeleted(csr) {
		return nil
	}
	if due := expiry(csr); !due.IsZero() {
		left := due.Sub(c.now())
		if left <= 0 {
			return c.remove(ctx, csr)
		}
		turn.Again(left)
	}
	if len(csr.GetStatus().GetCertificate()) == 0 && condition(csr, certificatesk8s.CertificateApproved) == nil && condition(csr, certificatesk8s.CertificateDenied) == nil {
		return c.approve(ctx, turn, csr)
	}
	if c.authority == nil || !isApproved(csr) || condition(csr, certificatesk8s.CertificateFailed) != nil || len(csr.GetStatus().GetCertificate()) > 0 {
		return nil
	}
	rule, ours := signers[csr.GetSpec().GetSignerName()]
	if !ours {
		return nil
	}
	return c.answer(ctx, turn, csr, rule)
}

// answer signs a request, or says why not. Two managers that do so at once, during a change of leader, are told apart by the request's version.
func (c *Controller) answer(ctx context.Context, turn *reconcile.Turn[string], csr *certificatesv1.CertificateSigningRequest, rule rule) error {
	request, err := parse(csr.GetSpec().GetRequest())
	if err != nil {
		return fmt.Errorf("certificate request %s: %w", turn.Key, err)
	}
	next := proto.Clone(csr).(*certificatesv1.CertificateSigningRequest)
	if refusal := rule(request, csr.GetSpec().GetUsages()); refusal != nil {
		next.GetStatus().SetConditions(append(next.GetStatus().GetConditions(), certificatesv1.CertificateSigningRequestCondition_builder{
			Type: proto.String(string(certificatesk8s.CertificateFailed)), Status: proto.String(podstate.True), Reason: proto.String("SignerValidationFailure"),
			Message: proto.String(refusal.Error()), LastUpdateTime: apitime.Of(c.now()), LastTransitionTime: apitime.Of(c.now()),
		}.Build()))
	} else {
		terms := termsOf(csr.GetSpec().GetUsages())
		terms.TTL = ttl(csr.GetSpec())
		signed, err := c.authority.Sign(request, terms)
		if err != nil {
			return fmt.Errorf("certificate request %s: %w", turn.Key, err)
		}
		next.GetStatus().SetCertificate(signed)
	}
	written, err := c.client.UpdateStatus(ctx, next)
	switch {
	case err == nil:
		turn.Wrote(written)
		c.logger.InfoContext(ctx, "certificate request answered", slog.String("request", turn.Key), slog.String("signer", csr.GetSpec().GetSignerName()),
			slog.Bool("signed", len(next.GetStatus().GetCertificate()) > 0))
		return nil
	case apierrors.IsNotFound(err):
		return nil
	}
	return fmt.Errorf("status of certificate request %s: %w", turn.Key, err)
}

// ttl is how long the certificate of a request is valid.
func ttl(spec *certificatesv1.CertificateSigningRequestSpec) time.Duration {
	if !spec.HasExpirationSeconds() {
		return maxTTL
	}
	return min(max(time.Duration(spec.GetExpirationSeconds())*time.Second, minTTL), maxTTL)
}

// remove deletes a request that was looked at, and no other of its name.
func (c *Controller) remove(ctx context.Context, csr *certificatesv1.CertificateSigningRequest) error {
	m := csr.GetMetadata()
	options := metav1.DeletionOptions_builder{Uid: m.GetUid(), ResourceVersion: m.GetResourceVersion()}.Build()
	if _, err := c.client.Delete(ctx, "", m.GetName(), options); err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("remove certificate request %s: %w", m.GetName(), err)
	}
	return nil
}

func parse(data []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("spec.request is no certificate request in PEM")
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("spec.request: %w", err)
	}
	return request, nil
}
