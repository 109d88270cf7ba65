package image_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/services/node-agent/internal/cri/fake"
	"dhow.dev/services/node-agent/internal/image"
)

func request(name, policy string) image.Request {
	return image.Request{PodUID: "u", Image: name, Policy: policy, Event: func(bool, string, string) {}}
}

func reason(err error) string {
	var f *image.Failure
	if errors.As(err, &f) {
		return f.Reason
	}
	return ""
}

func pulls(r *fake.Runtime) int {
	n := 0
	for _, c := range r.Calls() {
		if strings.HasPrefix(c, "PullImage") {
			n++
		}
	}
	return n
}

func TestPolicies(t *testing.T) {
	for _, c := range []struct {
		image, policy string
		pulls         int
		reason        string
	}{
		{"here:1", "IfNotPresent", 0, ""},
		{"here:1", "Never", 0, ""},
		{"here:1", "Always", 1, ""},
		{"here:1", "", 0, ""},
		{"absent:1", "IfNotPresent", 1, ""},
		{"absent:1", "Never", 0, image.ReasonErrImageNeverPull},
		{"absent", "", 1, ""},
		{"reg.example:5000/here", "", 1, ""},
	} {
		r := fake.New("here:1", "reg.example:5000/here")
		_, err := image.New(r, 1).Ensure(t.Context(), request(c.image, c.policy))
		if got := reason(err); got != c.reason || (err == nil) != (c.reason == "") {
			t.Errorf("%+v: %v", c, err)
		}
		if got := pulls(r); got != c.pulls {
			t.Errorf("%+v: %d pulls", c, got)
		}
	}
}

func TestBackoffDoublesToItsBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := fake.New()
		p := image.New(r, 1)
		for _, want := range []time.Duration{10, 20, 40, 80, 160, 300, 300} {
			r.Fail("PullImage", errors.New("registry is down"))
			_, err := p.Ensure(t.Context(), request("app:1", ""))
			if reason(err) != image.ReasonErrImagePull {
				t.Fatalf("%v", err)
			}
			var f *image.Failure
			_, err = p.Ensure(t.Context(), request("app:1", ""))
			if !errors.As(err, &f) || f.Reason != image.ReasonImagePullBackOff || !strings.Contains(f.Message, "registry is down") {
				t.Fatalf("%v", err)
			}
			if got := time.Until(f.RetryAt); got != want*time.Second {
				t.Fatalf("waits %v, want %v", got, want*time.Second)
			}
			time.Sleep(time.Until(f.RetryAt))
		}
		if _, err := p.Ensure(t.Context(), request("app:1", "")); err != nil {
			t.Fatal(err)
		}
		r.Fail("PullImage", errors.New("down again"))
		_, err := p.Ensure(t.Context(), request("app:1", "Always"))
		var f *image.Failure
		if !errors.As(err, &f) || time.Until(f.RetryAt) != 10*time.Second {
			t.Errorf("after a success the back-off begins anew: %v", err)
		}
	})
}

func TestOnePullForAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := fake.New()
		release := r.Block("PullImage")
		p := image.New(r, 2)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := p.Ensure(t.Context(), request("app:1", "")); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		release()
		wg.Wait()
		if n := pulls(r); n != 1 {
			t.Errorf("%d pulls", n)
		}
	})
}

func TestAuths(t *testing.T) {
	secret := corev1.Secret_builder{Data: map[string][]byte{".dockerconfigjson": []byte(
		`{"auths":{"https://reg.example:5000/v2/":{"auth":"dTpwOnE="},"other.example":{"username":"x"}}}`)}}.Build()
	auths, err := image.Auths("reg.example:5000/app:1", []*corev1.Secret{secret})
	if err != nil || len(auths) != 1 || auths[0].GetUsername() != "u" || auths[0].GetPassword() != "p:q" {
		t.Errorf("%v %v", auths, err)
	}
}
