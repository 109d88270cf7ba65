package shutdown

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/godbus/dbus/v5"
)

// Names of systemd and logind on the system bus (org.freedesktop.login1(5)).
const (
	loginService    = "org.freedesktop.login1"
	loginPath       = dbus.ObjectPath("/org/freedesktop/login1")
	loginManager    = "org.freedesktop.login1.Manager"
	systemdService  = "org.freedesktop.systemd1"
	systemdPath     = dbus.ObjectPath("/org/freedesktop/systemd1")
	systemdManager  = "org.freedesktop.systemd1.Manager"
	prepareShutdown = "PrepareForShutdown"
)

// ConfDir is where logind looks for settings beside its own, and confFile the one that is written, by Kubernetes' name.
const (
	ConfDir  = "/etc/systemd/logind.conf.d"
	confFile = "99-kubelet.conf"
)

// reloading is how long logind may take to read its settings again.
const reloading = 3 * time.Second

// inhibitor is what keeps the machine from shutting down until it is closed.
type inhibitor interface{ Close() error }

// logind is the machine's, as far as it is about shutdowns.
type logind interface {
	// delay is how long a shutdown waits for inhibitors at most.
	delay() (time.Duration, error)
	// extend makes logind wait longer.
	extend(ctx context.Context, delay time.Duration) error
	inhibit() (inhibitor, error)
	// announcements tells when a shutdown begins (true), or was called off; closed when the bus is lost.
	announcements() <-chan bool
	close()
}

// bus is a connection to the system bus.
type bus struct {
	conn      *dbus.Conn
	announced chan bool
	confDir   string
}

// dial connects to the system bus, where DBUS_SYSTEM_BUS_ADDRESS says that it is or where it always is.
func dial(confDir string) (logind, error) {
	conn, err := dbus.ConnectSystemBus()
	if err != nil {
		return nil, fmt.Errorf("system bus: %w", err)
	}
	b := &bus{conn: conn, announced: make(chan bool), confDir: confDir}
	// Signals that come one after the other must not be lost: a shutdown that is called off at once would be forgotten.
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	if err := conn.AddMatchSignal(dbus.WithMatchInterface(loginManager), dbus.WithMatchMember(prepareShutdown), dbus.WithMatchObjectPath(loginPath)); err != nil {
		b.close()
		return nil, fmt.Errorf("system bus: signal %s: %w", prepareShutdown, err)
	}
	go func() {
		defer close(b.announced)
		for s := range signals {
			if s.Name != loginManager+"."+prepareShutdown || len(s.Body) == 0 {
				continue
			}
			begins, ok := s.Body[0].(bool)
			if !ok {
				continue
			}
			select {
			case b.announced <- begins:
			case <-conn.Context().Done():
				return
			}
		}
	}()
	return b, nil
}

func (b *bus) announcements() <-chan bool { return b.announced }

func (b *bus) close() { _ = b.conn.Close() } // nothing is left to be sent

func (b *bus) delay() (time.Duration, error) {
	v, err := b.conn.Object(loginService, loginPath).GetProperty(loginManager + ".InhibitDelayMaxUSec")
	if err != nil {
		return 0, fmt.Errorf("logind: InhibitDelayMaxUSec: %w", err)
	}
	microseconds, ok := v.Value().(uint64)
	if !ok {
		return 0, fmt.Errorf("logind: InhibitDelayMaxUSec is a %s, not a number of microseconds", v.Signature())
	}
	return time.Duration(microseconds) * time.Microsecond, nil
}

func (b *bus) extend(ctx context.Context, delay time.Duration) error {
	if err := os.MkdirAll(b.confDir, 0o755); err != nil {
		return fmt.Errorf("settings of logind: %w", err)
	}
	text := fmt.Sprintf("# What pods of this node are given to end when the machine shuts down.\n[Login]\nInhibitDelayMaxSec=%.0f\n", delay.Seconds())
	if err := os.WriteFile(filepath.Join(b.confDir, confFile), []byte(text), 0o644); err != nil {
		return fmt.Errorf("settings of logind: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, reloading)
	defer cancel()
	const hangUp = int32(1)
	call := b.conn.Object(systemdService, systemdPath).CallWithContext(ctx, systemdManager+".KillUnit", 0, "systemd-logind.service", "all", hangUp)
	if call.Err != nil {
		return fmt.Errorf("reload of logind: %w", call.Err)
	}
	// Nothing tells when it has read them.
	for wait := 50 * time.Millisecond; ; wait *= 2 {
		now, err := b.delay()
		if err != nil || now >= delay {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("logind delays a shutdown by %s at most, although %s says %s", now, filepath.Join(b.confDir, confFile), delay)
		case <-time.After(wait):
		}
	}
}

func (b *bus) inhibit() (inhibitor, error) {
	var fd dbus.UnixFD
	err := b.conn.Object(loginService, loginPath).Call(loginManager+".Inhibit", 0, "shutdown", "dhow-node-agent", "Pods are given time to end", "delay").Store(&fd)
	if err != nil {
		return nil, fmt.Errorf("logind: inhibit: %w", err)
	}
	return os.NewFile(uintptr(fd), "inhibitor of shutdowns"), nil
}
