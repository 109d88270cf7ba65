package command

import (
	"fmt"
	"runtime"
	"strconv"

	"github.com/spf13/cobra"
	apicorev1 "k8s.io/api/core/v1"

	"dhow.dev/cli/internal/printer"
	"dhow.dev/cli/internal/structs"
	clusterv1 "dhow.dev/gen/go/dhow/cluster/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/table"
	"dhow.dev/pkg/version"
)

func newStatus(s *session) *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the health of every service and node; exit code 1 when one is not healthy",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			status, err := clusterv1.NewClusterClient(s.conn).Status(c.Context(), &clusterv1.StatusRequest{})
			if err != nil {
				return apistatus.FromGRPC(err)
			}
			nodes, err := client.For[*corev1.Node](s.conn).List(c.Context(), &metav1.ListRequest{})
			if err != nil {
				return err
			}
			unhealthy := 0
			rows := [][]string{{"SERVICE", "HEALTH", "MESSAGE"}}
			for _, component := range status.GetComponents() {
				health := "Healthy"
				if !component.GetHealthy() {
					health = "Unhealthy"
					unhealthy++
				}
				rows = append(rows, []string{component.GetName(), health, component.GetMessage()})
			}
			if err := printer.Align(s.Out, rows); err != nil {
				return err
			}
			fmt.Fprintln(s.Out)
			rows = [][]string{{"NODE", "STATUS", "PODS", "MESSAGE"}}
			for _, n := range nodes.Items {
				row, ready, err := s.nodeRow(c, n)
				if err != nil {
					return err
				}
				if !ready {
					unhealthy++
				}
				rows = append(rows, row)
			}
			if err := printer.Align(s.Out, rows); err != nil {
				return err
			}
			fmt.Fprintf(s.Out, "\nDhow %s, revision %d\n", status.GetVersion(), status.GetRevision())
			if unhealthy > 0 {
				return fmt.Errorf("%d of %d services and nodes are not healthy", unhealthy, len(status.GetComponents())+len(nodes.Items))
			}
			return nil
		},
	}
}

// nodeRow shows one node as `get nodes` does, with its pods and why it is not ready.
func (s *session) nodeRow(c *cobra.Command, n *corev1.Node) (row []string, ready bool, err error) {
	o, err := structs.From(n)
	if err != nil {
		return nil, false, err
	}
	name := n.GetMetadata().GetName()
	pods, err := client.For[*corev1.Pod](s.conn).List(c.Context(), metav1.ListRequest_builder{FieldSelector: "spec.nodeName=" + name}.Build())
	if err != nil {
		return nil, false, err
	}
	message := "no Ready condition"
	for _, condition := range n.GetStatus().GetConditions() {
		if condition.GetType() == "Ready" {
			ready = condition.GetStatus() == "True"
			message = condition.GetMessage()
		}
	}
	if ready {
		message = ""
	}
	return []string{name, table.NodeStatus(o.(*apicorev1.Node)), strconv.Itoa(len(pods.Items)), message}, ready, nil
}

func newVersion(s *session) *cobra.Command {
	var clientOnly bool
	c := &cobra.Command{
		Use:     "version",
		Short:   "Show the version of this program and of the cluster",
		Example: "  dhow version\n  dhow version --client",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			fmt.Fprintf(s.Out, "Client Version: %s\nKubernetes API: %s\nPlatform: %s/%s, %s\n", version.Version, version.Kubernetes, runtime.GOOS, runtime.GOARCH, runtime.Version())
			if clientOnly {
				return nil
			}
			if err := s.open(c); err != nil {
				return err
			}
			defer s.close()
			status, err := clusterv1.NewClusterClient(s.conn).Status(c.Context(), &clusterv1.StatusRequest{})
			if err != nil {
				return apistatus.FromGRPC(err)
			}
			fmt.Fprintf(s.Out, "Server Version: %s\n", status.GetVersion())
			return nil
		},
	}
	c.Flags().BoolVar(&clientOnly, "client", false, "of this program only")
	return c
}
