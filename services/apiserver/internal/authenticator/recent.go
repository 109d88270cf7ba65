package authenticator

import (
	"crypto/sha256"
	"sync"
	"time"
)

// maxRecent bounds how many verified tokens are remembered in each of the two generations.
const maxRecent = 16 << 10

// recent remembers credentials whose signature was verified a short while ago. There are two generations: what is older than one and not asked for
// is forgotten with the older one, so that nothing has to be swept.
type recent struct {
	ttl time.Duration
	now func() time.Time

	mu         sync.Mutex
	young, old map[[sha256.Size]byte]verified
	// began is when the young generation did.
	began time.Time
}

type verified struct {
	credential credential
	at         time.Time
}

func newRecent(ttl time.Duration, now func() time.Time) *recent {
	return &recent{ttl: ttl, now: now, young: map[[sha256.Size]byte]verified{}, began: now()}
}

// digest is what a token is remembered by: the token itself is kept nowhere.
func digest(raw string) [sha256.Size]byte { return sha256.Sum256([]byte(raw)) }

func (r *recent) get(key [sha256.Size]byte) credential {
	r.mu.Lock()
	defer r.mu.Unlock()
	found, ok := r.young[key]
	if !ok {
		found, ok = r.old[key]
	}
	if !ok || r.now().Sub(found.at) >= r.ttl {
		return nil
	}
	return found.credential
}

func (r *recent) put(key [sha256.Size]byte, c credential) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := r.now()
	if now.Sub(r.began) >= r.ttl || len(r.young) >= maxRecent {
		r.old, r.young, r.began = r.young, map[[sha256.Size]byte]verified{}, now
	}
	r.young[key] = verified{credential: c, at: now}
}
