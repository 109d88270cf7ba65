// Package encryption seals what the store must not be able to read.
//
// A value is sealed with AES-256-GCM under a key of its own, derived (HKDF-SHA256) from a key of the ring and a random salt that travels with
// the value, so that no key ever meets the same nonce twice however many values are written. The store's key of the value is authenticated with
// it: a sealed value copied to another key does not open. Which key of the ring it was, the store keeps beside the value.
package encryption

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
)

const (
	// KeySize is the size of a key in bytes.
	KeySize = 32
	// layout is the first byte of a sealed value. An unknown one is refused.
	layout   byte = 1
	saltSize      = 32
	purpose       = "dhow value encryption v1"
)

// Key is one key of a ring.
type Key struct {
	// ID is stored with what the key sealed; never 0, never used for another key.
	ID     uint32
	Secret [KeySize]byte
}

// Ring is a set of keys: the first one seals, all of them open. It is safe for concurrent use.
type Ring struct {
	writer Key
	byID   map[uint32]Key
}

// NewRing returns a ring of the keys, of which there must be one at least.
func NewRing(keys []Key) (*Ring, error) {
	if len(keys) == 0 {
		return nil, errors.New("encryption: a key ring needs at least one key")
	}
	r := &Ring{writer: keys[0], byID: make(map[uint32]Key, len(keys))}
	for _, k := range keys {
		if k.ID == 0 {
			return nil, errors.New("encryption: key id 0 stands for values that are not encrypted; give the key another one")
		}
		if _, taken := r.byID[k.ID]; taken {
			return nil, fmt.Errorf("encryption: two keys have the id %d; every key needs its own", k.ID)
		}
		r.byID[k.ID] = k
	}
	return r, nil
}

// Seal encrypts a value for the store key that it is written under.
func (r *Ring) Seal(storeKey string, plain []byte) (sealed []byte, keyID uint32, err error) {
	sealed = make([]byte, 1+saltSize, 1+saltSize+len(plain)+16)
	sealed[0] = layout
	rand.Read(sealed[1:]) // never fails: the runtime ends the process instead
	aead, nonce, err := derive(r.writer, sealed[1:])
	if err != nil {
		return nil, 0, err
	}
	return aead.Seal(sealed, nonce, plain, []byte(storeKey)), r.writer.ID, nil
}

// Open decrypts a value. A value of key id 0 was never encrypted and is returned as it is.
func (r *Ring) Open(storeKey string, keyID uint32, value []byte) ([]byte, error) {
	if keyID == 0 {
		return value, nil
	}
	key, ok := r.byID[keyID]
	if !ok {
		return nil, fmt.Errorf("encryption: %s is sealed with key %d, which the key file does not have; put that key back behind the first", storeKey, keyID)
	}
	if len(value) < 1+saltSize || value[0] != layout {
		return nil, fmt.Errorf("encryption: %s is not a sealed value of this version", storeKey)
	}
	aead, nonce, err := derive(key, value[1:1+saltSize])
	if err != nil {
		return nil, err
	}
	plain, err := aead.Open(nil, nonce, value[1+saltSize:], []byte(storeKey))
	if err != nil {
		return nil, fmt.Errorf("encryption: %s does not open with key %d: it was changed, or sealed for another key of the store, or the key file's key %d is another one", storeKey, keyID, keyID)
	}
	return plain, nil
}

// IsCurrent says whether a value is sealed with the key that seals now; others are written anew when keys rotate.
func (r *Ring) IsCurrent(keyID uint32) bool { return keyID == r.writer.ID }

// derive makes the cipher of one value. Its key serves one value, so that the nonce can be derived along with it.
func derive(key Key, salt []byte) (cipher.AEAD, []byte, error) {
	const nonceSize = 12
	material, err := hkdf.Key(sha256.New, key.Secret[:], salt, purpose, KeySize+nonceSize)
	if err != nil {
		return nil, nil, fmt.Errorf("encryption: derive a key: %w", err)
	}
	block, err := aes.NewCipher(material[:KeySize])
	if err != nil {
		return nil, nil, fmt.Errorf("encryption: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, nil, fmt.Errorf("encryption: %w", err)
	}
	return aead, material[KeySize:], nil
}
