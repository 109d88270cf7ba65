package command

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/spf13/cobra"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"dhow.dev/cli/internal/release"
)

// NewRelease makes what a control plane needs before there is one: in the cluster that the charts of helm/ install it into, where nobody types it, and for plain hosts. It needs
// no cluster of its own.
func NewRelease(streams Streams) *cobra.Command {
	c := &cobra.Command{
		Use:    "release",
		Short:  "Keep the certificates and keys of a control plane that Helm has installed, or that runs on plain hosts",
		Hidden: true,
	}
	c.AddCommand(newReleaseCertificates(streams), newReleaseKeys(), newReleaseHosts(streams))
	return c
}

func newReleaseCertificates(streams Streams) *cobra.Command {
	config := release.Config{Out: streams.Out}
	var kubeconfig, namespace, serviceCIDR string
	c := &cobra.Command{
		Use:   "certificates",
		Short: "Make and renew the Secrets of a control plane",
		Long: `Make the Secrets of a control plane, in the cluster that this runs in: the authority, a certificate for each service and the administrator, the keys that API servers share.
What is there and good stays; certificates are renewed when two thirds of their life are over; the authority and the keys are never replaced.`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := config.Validate(); err != nil {
				return err
			}
			if namespace == "" {
				return errors.New("give --namespace, that of the release")
			}
			var err error
			if config.ServiceCIDR, err = netip.ParsePrefix(serviceCIDR); err != nil {
				return fmt.Errorf("--service-cidr: %w", err)
			}
			access, err := accessTo(kubeconfig)
			if err != nil {
				return err
			}
			client, err := corev1client.NewForConfig(access)
			if err != nil {
				return err
			}
			config.Secrets = client.Secrets(namespace)
			return release.Ensure(c.Context(), config)
		},
	}
	flags := c.Flags()
	flags.StringVar(&kubeconfig, "kubeconfig", "", "the cluster that the release is in (default the one that this runs in)")
	flags.StringVar(&namespace, "namespace", "", "the release's namespace")
	flags.StringVar(&config.Name, "name", "", "the control plane's name, with which the names of Secrets begin")
	flags.StringToStringVar(&config.Labels, "label", nil, "labels of Secrets that are made")
	flags.StringSliceVar(&config.StoreNames, "store-name", nil, "DNS names at which stores reach each other")
	flags.StringSliceVar(&config.APIServerNames, "apiserver-name", nil, "names and addresses at which the API server is reached")
	flags.StringVar(&serviceCIDR, "service-cidr", "10.96.0.0/16", "the new cluster's range of cluster IPs")
	flags.StringSliceVar(&config.Servers, "server", nil, "where the administrator reaches the gRPC API, host:port")
	flags.StringVar(&config.Kubernetes, "kubernetes-server", "", "where the administrator reaches the Kubernetes API, https://host:port")
	flags.DurationVar(&config.TTL, "ttl", 0, "how long certificates are valid (default 90 days)")
	flags.BoolVar(&config.KeysOnly, "keys-only", false, "make the keys, and leave certificates to somebody else")
	flags.StringVar(&config.Dir, "dir", "", "folder, in memory if possible, for what is worked on (default the system's for temporary files)")
	return c
}

// accessTo is the cluster of a kubeconfig or, without, the one that this pod is in.
func accessTo(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", kubeconfig)
}

func newReleaseKeys() *cobra.Command {
	var from, to string
	c := &cobra.Command{
		Use:   "keys",
		Short: "Copy the keys of API servers to where nobody else reads them",
		Args:  cobra.NoArgs,
		RunE:  func(*cobra.Command, []string) error { return release.CopyKeys(from, to) },
	}
	c.Flags().StringVar(&from, "from", "", "folder with the keys")
	c.Flags().StringVar(&to, "to", "", "folder for them")
	return c
}

func newReleaseHosts(streams Streams) *cobra.Command {
	config := release.HostsConfig{Out: streams.Out}
	var nodes []string
	var services, pods string
	c := &cobra.Command{
		Use:   "hosts NAME=ADDRESS...",
		Short: "Make and renew the files of a control plane on plain hosts",
		Long: `Make a folder for each host of a control plane, to be copied to its /etc/dhow: certificates, keys, and the settings that the files of deploy/systemd and deploy/compose read.
The authority, the keys and the administrator's access stay in the folder: keep it, and let nobody read it. Run again, it renews certificates when two thirds of their life are
over, and leaves the rest alone.`,
		Example: "  dhow release hosts --dir cluster c1=10.0.0.1 c2=10.0.0.2 c3=10.0.0.3 --node n1=10.0.0.11",
		RunE: func(_ *cobra.Command, args []string) (err error) {
			if config.Hosts, err = hostsOf(args); err != nil {
				return err
			}
			if config.Nodes, err = hostsOf(nodes); err != nil {
				return err
			}
			if config.Services, err = netip.ParsePrefix(services); err != nil {
				return fmt.Errorf("--service-cidr: %w", err)
			}
			if config.Pods, err = netip.ParsePrefix(pods); err != nil {
				return fmt.Errorf("--pod-cidr: %w", err)
			}
			return release.EnsureHosts(config)
		},
	}
	flags := c.Flags()
	flags.StringVar(&config.Dir, "dir", "", "folder for the files")
	flags.StringSliceVar(&nodes, "node", nil, "machines that only run pods, NAME=ADDRESS")
	flags.StringSliceVar(&config.APIServerNames, "apiserver-name", nil, "names and addresses at which the API servers are reached beside the hosts' own, for example a load balancer's")
	flags.StringVar(&services, "service-cidr", "10.96.0.0/16", "the cluster's range of cluster IPs")
	flags.StringVar(&pods, "pod-cidr", "10.244.0.0/16", "the cluster's range of pod addresses")
	flags.DurationVar(&config.TTL, "ttl", release.HostsTTL, "how long certificates are valid")
	return c
}

// hostsOf reads NAME=ADDRESS.
func hostsOf(texts []string) ([]release.Host, error) {
	var hosts []release.Host
	for _, text := range texts {
		name, address, ok := strings.Cut(text, "=")
		if !ok {
			return nil, fmt.Errorf("%q: give NAME=ADDRESS", text)
		}
		parsed, err := netip.ParseAddr(address)
		if err != nil {
			return nil, fmt.Errorf("host %s: %w", name, err)
		}
		hosts = append(hosts, release.Host{Name: name, Address: parsed})
	}
	return hosts, nil
}
