package scheduler

import (
	"context"
	"io"
	"time"

	"dhow.dev/pkg/daemon"
	"dhow.dev/pkg/telemetry"
	"dhow.dev/pkg/transport"
	"dhow.dev/services/scheduler/internal/loop"
)

// apiServerName is the name in the API servers' certificates.
const apiServerName = "apiserver.dhow"

// Main runs the service of a process of its own, with flags instead of a Config.
func Main(ctx context.Context, arguments []string, stderr io.Writer) error {
	var config Config
	var listen, apiServer string
	d := daemon.New("dhow-scheduler", stderr)
	d.StringVar(&listen, "listen", "127.0.0.1:6441", "address to listen on")
	d.StringVar(&apiServer, "apiserver", "127.0.0.1:7443", "address of the API server; several, separated by commas, are equal")
	d.StringVar(&config.SchedulerName, "scheduler-name", loop.DefaultSchedulerName, "which pods to place: those whose spec.schedulerName is this")
	d.BoolVar(&config.LeaderElect, "leader-elect", true, "be one of several schedulers, of which one is active")
	d.DurationVar(&config.LeaseDuration, "leader-elect-lease-duration", 15*time.Second, "how long an active scheduler that has vanished is waited for")
	d.StringVar(&config.Instance, "instance", "", "name of this process among schedulers; empty: host name and process id")
	d.Uint64Var(&config.Seed, "seed", 0, "decides between equally good nodes")
	d.Require("apiserver")
	if err := d.Parse(arguments); err != nil {
		return err
	}
	d.Instance = config.Instance
	return d.Run(ctx, func(ctx context.Context, env daemon.Environment) error {
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
