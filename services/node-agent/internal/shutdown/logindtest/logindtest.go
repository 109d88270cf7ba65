// Package logindtest is a system bus for tests: a real dbus-daemon on a socket of its own, and beside it what of logind and systemd shutdowns are about.
package logindtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/prop"
)

const (
	login   = "org.freedesktop.login1"
	systemd = "org.freedesktop.systemd1"
	path    = dbus.ObjectPath("/org/freedesktop/login1")
)

const config = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>dhow-test</type>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow send_type="signal"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
  </policy>
</busconfig>
`

// Logind is a machine's logind as far as it is about shutdowns.
type Logind struct {
	// Address is the bus', for DBUS_SYSTEM_BUS_ADDRESS.
	Address string
	// ConfDir is where this logind looks for settings when it is reloaded.
	ConfDir string

	conn       *dbus.Conn
	properties *prop.Properties
	// given are ends of pipes that are being sent.
	given chan *os.File

	mu      sync.Mutex
	held    int
	changed chan struct{}
}

// Start starts the bus and a logind whose longest delay is given, until the test ends.
func Start(t testing.TB, longest time.Duration) *Logind {
	t.Helper()
	program, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Fatalf("%v: install Debian's package dbus-daemon", err)
	}
	dir := t.TempDir()
	l := &Logind{Address: "unix:path=" + filepath.Join(dir, "bus"), ConfDir: filepath.Join(dir, "logind.conf.d"), changed: make(chan struct{}), given: make(chan *os.File, 16)}
	file := filepath.Join(dir, "bus.conf")
	if err := os.WriteFile(file, fmt.Appendf(nil, config, filepath.Join(dir, "bus")), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command(program, "--nofork", "--print-address", "--config-file="+file)
	ready, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	daemon.Stderr = os.Stderr
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait() // killed
	})
	// It prints its address once it listens.
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		t.Fatalf("dbus-daemon: %v", err)
	}
	go func() { _, _ = io.Copy(io.Discard, ready) }()
	if l.conn, err = dbus.Connect(l.Address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.conn.Close() })
	monitor, err := dbus.Connect(l.Address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = monitor.Close() })
	if err := l.handOver(monitor); err != nil {
		t.Fatal(err)
	}
	l.properties, err = prop.Export(l.conn, path, prop.Map{login + ".Manager": {
		"InhibitDelayMaxUSec": {Value: uint64(longest / time.Microsecond), Emit: prop.EmitConst},
	}})
	if err == nil {
		err = l.conn.ExportMethodTable(map[string]any{"Inhibit": l.inhibit}, path, login+".Manager")
	}
	if err == nil {
		err = l.conn.ExportMethodTable(map[string]any{"KillUnit": l.killUnit}, "/org/freedesktop/systemd1", systemd+".Manager")
	}
	for _, name := range []string{login, systemd} {
		if err == nil {
			_, err = l.conn.RequestName(name, dbus.NameFlagDoNotQueue)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// inhibit is the method of this name: the caller's inhibitor is the one end of a pipe, and is gone when that is closed.
func (l *Logind) inhibit(what, who, why, mode string) (dbus.UnixFD, *dbus.Error) {
	if what != "shutdown" || mode != "delay" || who == "" || why == "" {
		return 0, dbus.MakeFailedError(fmt.Errorf("inhibit %q %q %q %q", what, who, why, mode))
	}
	mine, theirs, err := os.Pipe()
	if err != nil {
		return 0, dbus.MakeFailedError(err)
	}
	l.hold(1)
	go func() {
		_, _ = io.Copy(io.Discard, mine)
		_ = mine.Close()
		l.hold(-1)
	}()
	l.given <- theirs
	return dbus.UnixFD(theirs.Fd()), nil
}

// handOver closes this process' ends of inhibitors once they are on their way: the bus shows what it has taken to those who monitor it.
func (l *Logind) handOver(monitor *dbus.Conn) error {
	if err := monitor.BusObject().Call("org.freedesktop.DBus.Monitoring.BecomeMonitor", 0, []string{"type='method_return'"}, uint32(0)).Err; err != nil {
		return fmt.Errorf("monitor of the bus: %w", err)
	}
	seen := make(chan *dbus.Message, 64)
	monitor.Eavesdrop(seen)
	go func() {
		for message := range seen {
			for _, part := range message.Body {
				if copied, ok := part.(dbus.UnixFD); ok {
					_ = syscall.Close(int(copied))
					_ = (<-l.given).Close()
				}
			}
		}
	}()
	return nil
}

var setting = regexp.MustCompile(`(?m)^InhibitDelayMaxSec=(\d+)$`)

// killUnit is systemd's: logind reads its settings again on SIGHUP.
func (l *Logind) killUnit(unit, who string, signal int32) *dbus.Error {
	if unit != "systemd-logind.service" || who != "all" || signal != 1 {
		return dbus.MakeFailedError(fmt.Errorf("kill %q of %q with %d", who, unit, signal))
	}
	files, err := filepath.Glob(filepath.Join(l.ConfDir, "*.conf"))
	if err != nil {
		return dbus.MakeFailedError(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			return dbus.MakeFailedError(err)
		}
		if found := setting.FindSubmatch(text); found != nil {
			seconds, err := strconv.ParseUint(string(found[1]), 10, 64)
			if err != nil {
				return dbus.MakeFailedError(err)
			}
			l.properties.SetMust(login+".Manager", "InhibitDelayMaxUSec", seconds*1_000_000)
		}
	}
	return nil
}

func (l *Logind) hold(n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.held += n
	close(l.changed)
	l.changed = make(chan struct{})
}

// Await waits until so many inhibitors are held.
func (l *Logind) Await(ctx context.Context, n int) error {
	for {
		l.mu.Lock()
		held, changed := l.held, l.changed
		l.mu.Unlock()
		if held == n {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d inhibitors are held, not %d: %w", held, n, ctx.Err())
		case <-changed:
		}
	}
}

// Held returns how many inhibitors there are.
func (l *Logind) Held() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held
}

// Shutdown announces that a shutdown begins, or was called off.
func (l *Logind) Shutdown(begins bool) error {
	return l.conn.Emit(path, login+".Manager.PrepareForShutdown", begins)
}

// Longest returns the longest delay now.
func (l *Logind) Longest() (time.Duration, error) {
	v, ok := l.properties.GetMust(login+".Manager", "InhibitDelayMaxUSec").(uint64)
	if !ok {
		return 0, errors.New("InhibitDelayMaxUSec is no number")
	}
	return time.Duration(v) * time.Microsecond, nil
}
