package command

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/proto"

	appsv1 "dhow.dev/gen/go/dhow/apps/v1"
	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/client"
	"dhow.dev/pkg/object"
	"dhow.dev/pkg/resource"
)

type runOptions struct {
	image    string
	replicas int32
	port     int32
	env      []string
	command  bool
	dryRun   dryRun
}

func newRun(s *session) *cobra.Command {
	var o runOptions
	c := &cobra.Command{
		Use:   "run NAME --image=IMAGE [--replicas=N] [-- ARG...]",
		Short: "Run an image: as one pod, or with --replicas as a deployment",
		Example: `  dhow run web --image=registry.dhow:5000/guestbook:v1 --replicas=100
  dhow run once --image=registry.dhow:5000/tools:v1 --command -- sh -c 'echo hello'`,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) == 0 || c.ArgsLenAtDash() == 0 {
				return fmt.Errorf("NAME is required: dhow run NAME --image=IMAGE")
			}
			if at := c.ArgsLenAtDash(); at > 1 || at < 0 && len(args) > 1 {
				return fmt.Errorf("unexpected %q: put the container's arguments behind --", args[1])
			}
			if o.replicas < 0 {
				return fmt.Errorf("--replicas=%d: give the number of replicas, 0 or more", o.replicas)
			}
			container, err := o.container(args[0], args[1:])
			if err != nil {
				return err
			}
			if c.Flags().Changed("replicas") {
				return s.run(c.Context(), newDeployment(s.namespace, args[0], o.replicas, container), o)
			}
			return s.run(c.Context(), newPod(s.namespace, args[0], container), o)
		},
	}
	flags := c.Flags()
	flags.StringVar(&o.image, "image", "", "the image to run")
	flags.Int32Var(&o.replicas, "replicas", 1, "run a deployment of this many pods")
	flags.Int32Var(&o.port, "port", 0, "the port that the container listens on")
	flags.StringArrayVar(&o.env, "env", nil, "an environment variable, NAME=VALUE; may be repeated")
	flags.BoolVar(&o.command, "command", false, "what stands behind -- replaces the image's command, not its arguments")
	addDryRun(flags, &o.dryRun)
	c.MarkFlagRequired("image")
	return c
}

// run creates an object.
func (s *session) run(ctx context.Context, o object.Object, options runOptions) error {
	t := target{resource.ByMessage(o), o.GetMetadata().GetName()}
	header, warn := s.warn(t)
	write := metav1.WriteOptions_builder{FieldManager: runManager, DryRun: bool(options.dryRun)}.Build()
	_, err := client.Dynamic(s.conn, t.resource).Create(ctx, o, write, header)
	warn()
	if err != nil {
		return err
	}
	suffix := ""
	if options.dryRun {
		suffix = dryRunSuffix
	}
	fmt.Fprintf(s.Out, "%s created%s\n", t, suffix)
	return nil
}

// runLabels are the labels that kubectl run gives.
func runLabels(name string) map[string]string { return map[string]string{"run": name} }

func (o runOptions) container(name string, args []string) (*corev1.Container, error) {
	container := corev1.Container_builder{Name: proto.String(name), Image: proto.String(o.image)}.Build()
	if o.command {
		if len(args) == 0 {
			return nil, fmt.Errorf("--command needs a command behind --")
		}
		container.SetCommand(args)
	} else {
		container.SetArgs(args)
	}
	if o.port != 0 {
		container.SetPorts([]*corev1.ContainerPort{corev1.ContainerPort_builder{ContainerPort: proto.Int32(o.port)}.Build()})
	}
	var env []*corev1.EnvVar
	for _, pair := range o.env {
		key, value, found := strings.Cut(pair, "=")
		if !found || key == "" {
			return nil, fmt.Errorf("--env=%s: write NAME=VALUE", pair)
		}
		env = append(env, corev1.EnvVar_builder{Name: proto.String(key), Value: proto.String(value)}.Build())
	}
	container.SetEnv(env)
	return container, nil
}

func newPod(namespace, name string, container *corev1.Container) *corev1.Pod {
	return corev1.Pod_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String(name), Namespace: proto.String(namespace), Labels: runLabels(name)}.Build(),
		Spec:     corev1.PodSpec_builder{Containers: []*corev1.Container{container}}.Build(),
	}.Build()
}

func newDeployment(namespace, name string, replicas int32, container *corev1.Container) *appsv1.Deployment {
	return appsv1.Deployment_builder{
		Metadata: metav1.ObjectMeta_builder{Name: proto.String(name), Namespace: proto.String(namespace), Labels: runLabels(name)}.Build(),
		Spec: appsv1.DeploymentSpec_builder{
			Replicas: proto.Int32(replicas),
			Selector: metav1.LabelSelector_builder{MatchLabels: runLabels(name)}.Build(),
			Template: corev1.PodTemplateSpec_builder{
				Metadata: metav1.ObjectMeta_builder{Labels: runLabels(name)}.Build(),
				Spec:     corev1.PodSpec_builder{Containers: []*corev1.Container{container}}.Build(),
			}.Build(),
		}.Build(),
	}.Build()
}
