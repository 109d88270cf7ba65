package command

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"
	corek8s "k8s.io/api/core/v1"
	rback8s "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/util/duration"

	"dhow.dev/cli/internal/connect"
	"dhow.dev/cli/internal/printer"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	rbacv1 "dhow.dev/gen/go/dhow/rbac/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/pki"
)

const (
	tokenNamespace = "kube-system"
	tokenPrefix    = "bootstrap-token-"
	// joiners is the group of tokens that are made here, and all that its members may is in joinRights.
	joiners = identity.Bootstrappers + ":dhow:join"
)

// joinRights bind roles that every cluster has, as kubeadm does: who joins may ask for a node's certificate and gets it, and nodes get their next one.
var joinRights = []struct{ name, role, group string }{
	{"dhow:join", "system:node-bootstrapper", joiners},
	{"dhow:join-approval", "system:certificates.k8s.io:certificatesigningrequests:nodeclient", joiners},
	{"dhow:node-renewal", "system:certificates.k8s.io:certificatesigningrequests:selfnodeclient", identity.Nodes},
}

func newToken(s *session) *cobra.Command {
	c := &cobra.Command{
		Use:   "token",
		Short: "Let machines join the cluster as nodes",
		Long:  "Let machines join the cluster as nodes: a token is a secret that is carried to the machine, where dhow join makes a certificate of it.",
	}
	c.AddCommand(newTokenCreate(s), newTokenList(s), newTokenDelete(s))
	return c
}

func newTokenCreate(s *session) *cobra.Command {
	var ttl time.Duration
	var servers string
	c := &cobra.Command{
		Use:     "create",
		Short:   "Make a token, and print the command that joins with it",
		Example: "  dhow token create --ttl 1h\n  ssh root@10.0.0.7 $(dhow token create --server 10.0.0.1:7443)",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			config, err := connect.Load(connect.File(s.configFile))
			if err != nil {
				return err
			}
			hash, err := authorityHash(config.CertificateAuthority)
			if err != nil {
				return err
			}
			if servers == "" {
				servers = strings.Join(config.Servers, ",")
				if host, _, err := net.SplitHostPort(config.Servers[0]); err == nil && net.ParseIP(host).IsLoopback() {
					fmt.Fprintf(s.Err, "%s is this machine itself: give --server with the address at which the other machine reaches the API server.\n", config.Servers[0])
				}
			}
			token, err := createToken(c.Context(), s, ttl, time.Now())
			if err != nil {
				return err
			}
			fmt.Fprintf(s.Out, "dhow join %s --token %s --ca-cert-hash %s\n", servers, token, hash)
			return nil
		},
	}
	c.Flags().DurationVar(&ttl, "ttl", 24*time.Hour, "how long the token is good; 0: until it is deleted")
	c.Flags().StringVar(&servers, "server", "", "addresses of API servers as the other machine sees them, host:port, separated by commas (default those of the configuration)")
	return c
}

func authorityHash(file string) (string, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return "", fmt.Errorf("%s holds no certificate", file)
	}
	authority, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	return pki.Hash(authority), nil
}

func createToken(ctx context.Context, s *session, ttl time.Duration, now time.Time) (string, error) {
	for _, right := range joinRights {
		binding := rbacv1.ClusterRoleBinding_builder{
			Metadata: metav1.ObjectMeta_builder{Name: proto.String(right.name)}.Build(),
			RoleRef:  rbacv1.RoleRef_builder{ApiGroup: proto.String(rback8s.GroupName), Kind: proto.String("ClusterRole"), Name: proto.String(right.role)}.Build(),
			Subjects: []*rbacv1.Subject{rbacv1.Subject_builder{ApiGroup: proto.String(rback8s.GroupName), Kind: proto.String(rback8s.GroupKind), Name: proto.String(right.group)}.Build()},
		}.Build()
		if _, err := client.For[*rbacv1.ClusterRoleBinding](s.conn).Apply(ctx, binding, metav1.WriteOptions_builder{FieldManager: "dhow-token"}.Build()); err != nil {
			return "", err
		}
	}
	// Text has 26 of 32 letters, 130 bits: 6 name the token and 16 are the secret, 80 bits.
	text := strings.ToLower(rand.Text())
	id, secret := text[:6], text[6:22]
	data := map[string][]byte{
		"token-id": []byte(id), "token-secret": []byte(secret), "usage-bootstrap-authentication": []byte("true"), "auth-extra-groups": []byte(joiners),
		"description": []byte("made by dhow token create"),
	}
	if ttl > 0 {
		data["expiration"] = []byte(now.Add(ttl).UTC().Format(time.RFC3339))
	}
	_, err := client.For[*corev1.Secret](s.conn).Create(ctx, corev1.Secret_builder{
		Metadata: metav1.ObjectMeta_builder{Namespace: proto.String(tokenNamespace), Name: proto.String(tokenPrefix + id)}.Build(),
		Type:     proto.String(string(corek8s.SecretTypeBootstrapToken)), Data: data,
	}.Build(), nil)
	return id + "." + secret, err
}

func newTokenList(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the tokens, without their secrets",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			list, err := client.For[*corev1.Secret](s.conn).List(c.Context(), metav1.ListRequest_builder{
				Namespace: tokenNamespace, FieldSelector: "type=" + string(corek8s.SecretTypeBootstrapToken),
			}.Build())
			if err != nil {
				return err
			}
			slices.SortFunc(list.Items, func(a, b *corev1.Secret) int {
				return strings.Compare(object.KeyOf(a).String(), object.KeyOf(b).String())
			})
			rows := [][]string{{"TOKEN", "TTL", "DESCRIPTION"}}
			for _, secret := range list.Items {
				rows = append(rows, []string{string(secret.GetData()["token-id"]), left(string(secret.GetData()["expiration"]), time.Now()), string(secret.GetData()["description"])})
			}
			if len(rows) == 1 {
				fmt.Fprintln(s.Err, "No tokens.")
				return nil
			}
			return printer.Align(s.Out, rows)
		},
	}
}

// left tells how long a token is good.
func left(expiration string, now time.Time) string {
	if expiration == "" {
		return "<forever>"
	}
	end, err := time.Parse(time.RFC3339, expiration)
	if err != nil {
		return "<invalid>"
	}
	if !now.Before(end) {
		return "<expired>"
	}
	return duration.HumanDuration(end.Sub(now))
}

func newTokenDelete(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "delete TOKEN...",
		Short: "Delete tokens: nobody joins with them any more; nodes that did stay",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			for _, token := range args {
				id, _, _ := strings.Cut(token, ".")
				if _, err := client.For[*corev1.Secret](s.conn).Delete(c.Context(), tokenNamespace, tokenPrefix+id, nil); err != nil {
					return err
				}
				fmt.Fprintf(s.Out, "token %s deleted\n", id)
			}
			return nil
		},
	}
}
