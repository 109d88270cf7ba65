package daemon

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"dhow.dev/pkg/identity"
	"dhow.dev/pkg/pki"
)

func TestFlagsThatAreWrong(t *testing.T) {
	tls := []string{"--tls-cacert=a", "--tls-cert=b", "--tls-key=c"}
	for _, c := range []struct {
		arguments []string
		want      string
	}{
		{nil, "--tls-cacert is required"},
		{tls[:2], "--tls-key is required"},
		{tls, "--name is required"},
		{append(tls, "--name=x", "serve"), `unexpected argument "serve": all settings are flags`},
		{append(tls, "--name=x", "--nosuch"), "flag provided but not defined: -nosuch"},
		{[]string{"--help"}, flag.ErrHelp.Error()},
	} {
		d := New("dhow-test", io.Discard)
		d.String("name", "", "a flag of the service's own")
		d.Require("name")
		if err := d.Parse(c.arguments); err == nil || err.Error() != c.want {
			t.Errorf("%v: %v, want %s", c.arguments, err, c.want)
		}
	}
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	authority, err := pki.LoadOrCreate(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := pki.FilesIn(dir, "test")
	if _, err := authority.Ensure(files, pki.Request{Identity: identity.Identity{Name: "test"}, Client: true}); err != nil {
		t.Fatal(err)
	}
	valid := []string{"--metrics-listen=127.0.0.1:0", "--tls-cacert=" + files.Authority, "--tls-cert=" + files.Certificate, "--tls-key=" + files.Key}
	failed := errors.New("served badly")
	for name, c := range map[string]struct {
		more []string
		want string
	}{
		"the service's error":   {nil, failed.Error()},
		"a level of no meaning": {[]string{"--log-level=loud"}, "log level"},
		"no such certificate":   {[]string{"--tls-cert=/nosuch"}, "no such file"},
		"no such address":       {[]string{"--metrics-listen=nosuch"}, "nosuch"},
	} {
		t.Run(name, func(t *testing.T) {
			var log bytes.Buffer
			d := New("dhow-test", &log)
			if err := d.Parse(append(slices.Clone(valid), c.more...)); err != nil {
				t.Fatal(err)
			}
			ctx, stop := context.WithCancel(t.Context())
			defer stop()
			err := d.Run(ctx, func(_ context.Context, env Environment) error {
				env.Logger.Info("serving")
				if env.Pair == nil {
					t.Error("no certificate")
				}
				readyz(t, &log, http.StatusServiceUnavailable)
				env.Ready.Lacks(nil)
				readyz(t, &log, http.StatusOK)
				stop()
				readyz(t, &log, http.StatusServiceUnavailable)
				return failed
			})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %s", err, c.want)
			}
			if errors.Is(err, failed) != strings.Contains(log.String(), "serving") {
				t.Errorf("the log: %s", log.String())
			}
		})
	}
}

// readyz asks the daemon at the address that its log names.
func readyz(t *testing.T, log *bytes.Buffer, want int) {
	t.Helper()
	address := regexp.MustCompile(`msg="serving metrics".* address=(\S+)`).FindStringSubmatch(log.String())
	if address == nil {
		t.Fatalf("no address in the log: %s", log)
	}
	response, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + address[1] + "/readyz")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != want {
		t.Errorf("/readyz: %d, want %d", response.StatusCode, want)
	}
}
