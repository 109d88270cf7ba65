package token_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/services/node-agent/internal/podtest"
	"dhow.dev/services/node-agent/internal/token"
)

// server issues tokens with numbers.
type server struct {
	grpc.ClientConnInterface
	issued  int
	fails   bool
	request *corev1.ServiceAccountTokenRequest
}

func (s *server) Invoke(_ context.Context, method string, request, reply any, _ ...grpc.CallOption) error {
	if s.fails {
		return errors.New("out of order")
	}
	s.issued++
	s.request = request.(*corev1.ServiceAccountTokenRequest)
	answer := reply.(*corev1.ServiceAccountTokenResponse)
	answer.SetToken(fmt.Sprint(s.issued))
	answer.SetExpiration(metav1.Time_builder{Seconds: proto.Int64(time.Now().Unix() + s.request.GetExpirationSeconds())}.Build())
	return nil
}

func TestATokenIsReplacedInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{}
		var changed atomic.Int64
		k := token.New(token.Config{Conn: s, Logger: slog.New(slog.DiscardHandler), Changed: func(uids []string) { changed.Add(int64(len(uids))) }})
		p := podtest.Pod(t, `{metadata: {name: p}, spec: {serviceAccountName: robot}}`)
		get := func() string {
			t.Helper()
			raw, err := k.Get(t.Context(), p, "vault", 3600)
			if err != nil {
				t.Fatal(err)
			}
			return raw
		}
		if get() != "1" || get() != "1" {
			t.Error("a good token was replaced")
		}
		o := s.request.GetBoundObject()
		if s.request.GetName() != "robot" || o.GetKind() != "Pod" || o.GetName() != "p" || o.GetUid() != p.GetMetadata().GetUid() || s.request.GetAudiences()[0] != "vault" {
			t.Errorf("%v", s.request)
		}
		time.Sleep(47 * time.Minute)
		synctest.Wait()
		if changed.Load() != 0 || get() != "1" {
			t.Errorf("replaced before its time (%d)", changed.Load())
		}
		time.Sleep(2 * time.Minute) // beyond four fifths
		synctest.Wait()
		if changed.Load() != 1 {
			t.Errorf("told %d times", changed.Load())
		}
		// An API server that is away costs nothing while the token is good.
		s.fails = true
		if get() != "1" {
			t.Error("a token that is still good was thrown away")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if changed.Load() != 2 {
			t.Errorf("told %d times", changed.Load())
		}
		s.fails = false
		if get() != "2" {
			t.Error("not replaced")
		}
		s.fails = true
		time.Sleep(2 * time.Hour)
		if _, err := k.Get(t.Context(), p, "vault", 3600); err == nil {
			t.Error("a token that is over is given out")
		}
		k.Forget(p.GetMetadata().GetUid())
	})
}
