package controllermanager

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"dhow.dev/pkg/daemon"
	"dhow.dev/pkg/pki"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/transport"
)

// apiServerName is in the certificate of the API server.
const apiServerName = "apiserver.dhow"

// Main runs the service of a process of its own, with flags instead of a Config.
func Main(ctx context.Context, arguments []string, stderr io.Writer) error {
	var config Config
	var listen, apiServer, signingCertificate, signingKey, metricsAPI, metricsAuthority string
	d := daemon.New("dhow-controller-manager", stderr)
	d.StringVar(&listen, "listen", "127.0.0.1:6442", "address of health and reflection")
	d.StringVar(&apiServer, "apiserver", "127.0.0.1:7443", "address of the API server; several, separated by commas, are equal")
	d.BoolVar(&config.LeaderElect, "leader-elect", true, "work only while holding the lease kube-system/kube-controller-manager")
	d.StringVar(&config.Identity, "leader-elect-identity", "", "name of this process in the lease (default host name and process id)")
	d.DurationVar(&config.LeaseDuration, "leader-elect-lease-duration", 15*time.Second, "how long a leader that has vanished is waited for")
	d.StringVar(&signingCertificate, "cluster-signing-cert-file", "", "certificate of the authority that signs approved certificate requests; empty: nothing signs them")
	d.StringVar(&signingKey, "cluster-signing-key-file", "", "key of that authority")
	d.Float64Var(&config.NodeEvictionRate, "node-eviction-rate", 0.1, "nodes a second in a zone that may begin to lose their pods")
	d.DurationVar(&config.EvictionStartGrace, "eviction-start-grace", 40*time.Second, "for this long after the start nothing is evicted from nodes that were not ready before; negative: no such time")
	d.IntVar(&config.FinishedPods, "finished-pods", 12500, "how many finished pods may stay; negative: any number")
	d.DurationVar(&config.OrphanQuarantine, "orphan-quarantine", 40*time.Second, "how long a node must be missing before its pods are removed; negative: no time")
	d.StringVar(&metricsAPI, "metrics-api", "", "URL of a server of custom.metrics.k8s.io and external.metrics.k8s.io, for autoscalers; empty: metrics of types Pods, Object and External cannot be had")
	d.StringVar(&metricsAuthority, "metrics-api-cacert", "", "authority that has signed that server's certificate; empty: the cluster's")
	d.Require("apiserver")
	if err := d.Parse(arguments); err != nil {
		return err
	}
	if (signingCertificate == "") != (signingKey == "") {
		return errors.New("--cluster-signing-cert-file and --cluster-signing-key-file belong together: give both or neither")
	}
	d.Instance = config.Identity
	return d.Run(ctx, func(ctx context.Context, env daemon.Environment) (err error) {
		// The authority's certificate is also what is put into every namespace.
		if config.CACert, err = os.ReadFile(d.Files.Authority); err != nil {
			return fmt.Errorf("--tls-cacert: %w", err)
		}
		if signingKey != "" {
			if config.ClusterSigner, err = pki.LoadFiles(signingCertificate, signingKey); err != nil {
				return fmt.Errorf("--cluster-signing-cert-file, --cluster-signing-key-file: %w", err)
			}
		}
		if metricsAPI != "" {
			if config.MetricsAPI, config.MetricsClient, err = metricsCaller(metricsAPI, metricsAuthority, env.Pair); err != nil {
				return err
			}
		}
		conn, err := transport.Dial(apiServer, transport.TLSClient(env.Pair, apiServerName))
		if err != nil {
			return err
		}
		defer conn.Close()
		defer telemetry.Report(telemetry.SendTo(conn))()
		config.APIServer, config.Credentials, config.Logger, config.Ready = conn, transport.TLSServer(env.Pair), env.Logger, env.Ready
		if config.Listener, err = transport.Listen(ctx, listen, env.Logger); err != nil {
			return err
		}
		return Run(ctx, config)
	})
}

// metricsTimeout bounds a call of the metrics API: a look at an autoscaler waits for it.
const metricsTimeout = 10 * time.Second

// metricsCaller calls a metrics API with this process's certificate.
func metricsCaller(address, authority string, pair *pki.KeyPair) (*url.URL, *http.Client, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return nil, nil, fmt.Errorf("--metrics-api %q: want https://HOST[:PORT]", address)
	}
	config := pki.ClientTLS(pair, u.Hostname())
	if authority != "" {
		certificates, err := os.ReadFile(authority)
		if err != nil {
			return nil, nil, fmt.Errorf("--metrics-api-cacert: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(certificates) {
			return nil, nil, fmt.Errorf("--metrics-api-cacert: %s has no certificate", authority)
		}
		config.InsecureSkipVerify, config.VerifyConnection, config.RootCAs = false, nil, roots
	}
	return u, &http.Client{Timeout: metricsTimeout, Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}}, nil
}
