// Package token gets the tokens of service accounts that pods' projected volumes hold, and says when they have to be written anew.
package token

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	"dhow.dev/pkg/apistatus"
	"dhow.dev/pkg/telemetry/logkey"
)

const (
	// A token is replaced when 80 % of its time are over, and at the latest after a day, as Kubernetes does.
	maxAge = 24 * time.Hour
	// jitter spreads the tokens that were made together.
	jitter = 10 * time.Second
	// retry is how long a refresh that failed waits; the token is still good then.
	retry = 30 * time.Second
)

// Config configures a Keeper.
type Config struct {
	Conn grpc.ClientConnInterface
	// Changed is told the UIDs of pods whose tokens have to be got again. It must not block.
	Changed func(uids []string)
	Logger  *slog.Logger
}

// Keeper keeps the tokens of the node's pods in memory.
type Keeper struct {
	accounts corev1.ServiceAccountsClient
	changed  func([]string)
	logger   *slog.Logger

	mu sync.Mutex
	// tokens are by pod UID, then by what was asked for.
	tokens map[string]map[string]*held
}

// held is one token.
type held struct {
	token          string
	refresh, until time.Time
	timer          *time.Timer
}

// New returns a keeper.
func New(config Config) *Keeper {
	return &Keeper{accounts: corev1.NewServiceAccountsClient(config.Conn), changed: config.Changed, logger: config.Logger, tokens: map[string]map[string]*held{}}
}

// Get returns a token of the pod's service account for an audience (empty: the API server), bound to the pod.
func (k *Keeper) Get(ctx context.Context, pod *corev1.Pod, audience string, seconds int64) (string, error) {
	m := pod.GetMetadata()
	uid, key := m.GetUid(), strings.Join([]string{pod.GetSpec().GetServiceAccountName(), audience, fmt.Sprint(seconds)}, "\x00")
	k.mu.Lock()
	have := k.tokens[uid][key]
	k.mu.Unlock()
	now := time.Now()
	if have != nil && now.Before(have.refresh) {
		return have.token, nil
	}
	request := corev1.ServiceAccountTokenRequest_builder{
		Namespace: m.GetNamespace(), Name: pod.GetSpec().GetServiceAccountName(), ExpirationSeconds: proto.Int64(seconds),
		BoundObject: corev1.ServiceAccountTokenRequest_BoundObject_builder{ApiVersion: "v1", Kind: "Pod", Name: m.GetName(), Uid: uid}.Build(),
	}.Build()
	if audience != "" {
		request.SetAudiences([]string{audience})
	}
	answer, err := k.accounts.Token(ctx, request)
	if err != nil {
		err = apistatus.FromGRPC(err)
		if have == nil || !now.Before(have.until) {
			return "", fmt.Errorf("failed to fetch token: %w", err)
		}
		k.logger.WarnContext(ctx, "token of a pod not renewed, trying again", logkey.Pod(m.GetNamespace(), m.GetName()), logkey.Err(err), logkey.Delay(retry))
		k.keep(uid, key, &held{token: have.token, refresh: now.Add(retry), until: have.until})
		return have.token, nil
	}
	until := time.Unix(answer.GetExpiration().GetSeconds(), 0)
	k.keep(uid, key, &held{token: answer.GetToken(), refresh: renewal(now, until), until: until})
	return answer.GetToken(), nil
}

// renewal is when a token is to be replaced.
func renewal(now, until time.Time) time.Time {
	return now.Add(min(until.Sub(now)*4/5, maxAge) - rand.N(jitter))
}

// keep remembers a token and asks for a new one in time.
func (k *Keeper) keep(uid, key string, h *held) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.tokens[uid] == nil {
		k.tokens[uid] = map[string]*held{}
	}
	if before := k.tokens[uid][key]; before != nil {
		before.timer.Stop()
	}
	h.timer = time.AfterFunc(max(time.Until(h.refresh), 0), func() { k.changed([]string{uid}) })
	k.tokens[uid][key] = h
}

// Forget drops the tokens of a pod.
func (k *Keeper) Forget(uid string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for _, h := range k.tokens[uid] {
		h.timer.Stop()
	}
	delete(k.tokens, uid)
}
