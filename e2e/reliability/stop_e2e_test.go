//go:build e2e

package reliability

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"dhow.dev/e2e/cluster"
)

// stopping ends the whole control plane and starts it again. Stores end one after the other, so that the one that leads hands that over instead of waiting for members that are
// gone; what each has to do at its end it can do, because what it needs ends later.
func stopping(t *testing.T, c *cluster.Cluster, r *record) {
	transfers := func() (failed int) {
		for _, s := range c.Services(t, "store") {
			said, err := os.ReadFile(filepath.Join(c.DataDir, "services", s.Name+".log"))
			if err != nil {
				t.Fatal(err)
			}
			// The last one has nobody to hand it over to, and says so at once.
			failed += strings.Count(string(said), "leader transfer took too long")
		}
		return failed
	}
	before := transfers()
	began := time.Now()
	c.Kill(syscall.SIGINT)
	stopped := time.Since(began)
	c.Up()
	if failed := transfers() - before; failed > 0 {
		t.Errorf("%d stores could not hand the leadership over", failed)
	}
	r.add(t, "Ctrl-C of `dhow up`: until all services have ended, and until the cluster is ready when it is started again", seconds(stopped)+", "+seconds(time.Since(began)-stopped))
}
