//go:build e2e

package charts

import (
	"context"
	"fmt"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"dhow.dev/e2e/cluster"
)

// load is a client that writes and reads without a pause, and takes no failure for an answer.
type load struct {
	client *kubernetes.Clientset
	cancel context.CancelFunc
	ended  chan struct{}

	mu     sync.Mutex
	rounds int
	failed []error
}

func startLoad(t *testing.T, client *kubernetes.Clientset) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{client: client, cancel: cancel, ended: make(chan struct{})}
	t.Cleanup(cancel)
	go func() {
		defer close(l.ended)
		for i := 0; ctx.Err() == nil; i++ {
			err := l.round(ctx, i)
			if ctx.Err() != nil {
				return // the last one was cut short
			}
			l.mu.Lock()
			l.rounds++
			if err != nil {
				l.failed = append(l.failed, fmt.Errorf("round %d: %w", i, err))
			}
			l.mu.Unlock()
		}
	}()
	return l
}

// round writes an object, changes it, and reads what was written.
func (l *load) round(ctx context.Context, i int) error {
	maps := l.client.CoreV1().ConfigMaps("default")
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("load-%d", i), Labels: map[string]string{"load": "yes"}}, Data: map[string]string{"round": fmt.Sprint(i)}}
	made, err := maps.Create(ctx, object, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create: %w", err)
	}
	made.Data["changed"] = "yes"
	if made, err = maps.Update(ctx, made, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update: %w", err)
	}
	read, err := maps.Get(ctx, made.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("get: %w", err)
	}
	if read.ResourceVersion != made.ResourceVersion {
		return fmt.Errorf("read %s, written %s", read.ResourceVersion, made.ResourceVersion)
	}
	return nil
}

func (l *load) so() (int, []error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rounds, l.failed
}

// goesOn waits until the client has done some rounds more.
func (l *load) goesOn(t *testing.T) {
	t.Helper()
	before, _ := l.so()
	cluster.Eventually(t, func(context.Context) error {
		if now, _ := l.so(); now < before+10 {
			return fmt.Errorf("%d rounds, %d before", now, before)
		}
		return nil
	})
}

// end stops the client: nothing failed, and nothing that was acknowledged is lost.
func (l *load) end(t *testing.T) {
	t.Helper()
	l.cancel()
	<-l.ended
	rounds, failed := l.so()
	for _, err := range failed {
		t.Error(err)
	}
	list, err := l.client.CoreV1().ConfigMaps("default").List(t.Context(), metav1.ListOptions{LabelSelector: "load=yes"})
	if err != nil {
		t.Fatal(err)
	}
	// The last round may have been cut short after it wrote.
	if n := len(list.Items); n < rounds-len(failed) || n > rounds+1 {
		t.Errorf("%d rounds, %d objects", rounds, n)
	}
	t.Logf("%d rounds of three requests", rounds)
}
