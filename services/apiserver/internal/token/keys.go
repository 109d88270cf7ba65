package token

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
)

const fileHeader = `Keys of service account tokens, PEM. The first private key signs, all keys (also public ones) verify; text between them is ignored.
To rotate: append the new key and restart the API servers, then move it to the top and restart them again. Keep the old keys until the tokens that
they signed have expired. All API servers of a cluster need the same file. Without it, no token that a pod holds is valid any more.

`

const (
	// keyBits are the bits of a key that is made here. It is RSA because many who federate with a cluster verify nothing but RS256.
	keyBits    = 2048
	privatePEM = "PRIVATE KEY"
	publicPEM  = "PUBLIC KEY"
	rsaPEM     = "RSA PRIVATE KEY"
	ecPEM      = "EC PRIVATE KEY"
)

var errNoPrivateKey = errors.New("token: no private key to sign with: put one first")

// Keys sign and verify tokens: the first private key signs, all keys verify. They are safe for concurrent use.
type Keys struct {
	signer     jose.Signer
	public     []publicKey
	byID       map[string]publicKey
	algorithms []jose.SignatureAlgorithm
	// set is the JSON of the public keys (RFC 7517), for those who verify tokens elsewhere.
	set []byte
}

type publicKey struct {
	id        string
	algorithm jose.SignatureAlgorithm
	key       crypto.PublicKey
}

// NewKeys returns keys of which the first private one signs.
func NewKeys(keys ...any) (*Keys, error) {
	k := &Keys{byID: map[string]publicKey{}}
	var set jose.JSONWebKeySet
	for _, key := range keys {
		private, isPrivate := key.(crypto.Signer)
		if isPrivate {
			key = private.Public()
		}
		public, err := describe(key)
		if err != nil {
			return nil, err
		}
		if isPrivate && k.signer == nil {
			own := jose.SigningKey{Algorithm: public.algorithm, Key: jose.JSONWebKey{Key: private, KeyID: public.id, Algorithm: string(public.algorithm)}}
			if k.signer, err = jose.NewSigner(own, nil); err != nil {
				return nil, fmt.Errorf("token: use key %s: %w", public.id, err)
			}
		}
		if _, known := k.byID[public.id]; known {
			continue
		}
		k.byID[public.id] = public
		k.public = append(k.public, public)
		k.algorithms = append(k.algorithms, public.algorithm)
		set.Keys = append(set.Keys, jose.JSONWebKey{Key: public.key, KeyID: public.id, Algorithm: string(public.algorithm), Use: "sig"})
	}
	if k.signer == nil {
		return nil, errNoPrivateKey
	}
	var err error
	if k.set, err = json.Marshal(set); err != nil {
		return nil, fmt.Errorf("token: encode the public keys: %w", err)
	}
	return k, nil
}

// describe names a public key as Kubernetes does, by the digest of its encoding, and says which signatures it verifies.
func describe(key crypto.PublicKey) (publicKey, error) {
	p := publicKey{key: key}
	switch key := key.(type) {
	case *rsa.PublicKey:
		if key.N.BitLen() < keyBits {
			return p, fmt.Errorf("token: an RSA key of %d bits: at least %d", key.N.BitLen(), keyBits)
		}
		p.algorithm = jose.RS256
	case *ecdsa.PublicKey:
		switch key.Curve {
		case elliptic.P256():
			p.algorithm = jose.ES256
		case elliptic.P384():
			p.algorithm = jose.ES384
		case elliptic.P521():
			p.algorithm = jose.ES512
		default:
			return p, fmt.Errorf("token: an ECDSA key on curve %s: use P-256, P-384 or P-521", key.Curve.Params().Name)
		}
	default:
		return p, fmt.Errorf("token: a key of type %T: use RSA or ECDSA", key)
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return p, fmt.Errorf("token: encode a public key: %w", err)
	}
	digest := sha256.Sum256(der)
	p.id = base64.RawURLEncoding.EncodeToString(digest[:])
	return p, nil
}

// sign returns the signed token of the claims.
func (k *Keys) sign(claims any) (string, error) {
	raw, err := jwt.Signed(k.signer).Claims(claims).Serialize()
	if err != nil {
		return "", fmt.Errorf("token: sign: %w", err)
	}
	return raw, nil
}

var errSignature = errors.New("service account token signature is invalid")

// verify checks the signature of a token and decodes its claims.
func (k *Keys) verify(raw string, claims any) error {
	parsed, err := jwt.ParseSigned(raw, k.algorithms)
	if err != nil || len(parsed.Headers) != 1 {
		return errSignature
	}
	candidates := k.public
	// Tokens of other issuers with this one's name may have no key id; those with one need the key of it.
	if id := parsed.Headers[0].KeyID; id != "" {
		known, ok := k.byID[id]
		if !ok {
			return errSignature
		}
		candidates = []publicKey{known}
	}
	for _, c := range candidates {
		if parsed.Headers[0].Algorithm == string(c.algorithm) && parsed.Claims(c.key, claims) == nil {
			return nil
		}
	}
	return errSignature
}

// LoadOrCreate reads the keys of a file, and makes the file with one new key when there is none. Several API servers may do this at once on one
// folder: all of them get the same key.
func LoadOrCreate(file string) (*Keys, error) {
	keys, err := Load(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return keys, err
	}
	if err := create(file); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("token: make the key file %s: %w", file, err)
	}
	return Load(file)
}

// Load reads the keys of a file. The error is fs.ErrNotExist when there is no file.
func Load(file string) (*Keys, error) {
	info, err := os.Stat(file)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("token: %s can be read by others (mode %04o); run: chmod 600 %s", file, info.Mode().Perm(), file)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	keys, err := parseKeys(data)
	if err != nil {
		return nil, fmt.Errorf("token: %s: %w", file, err)
	}
	k, err := NewKeys(keys...)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return k, nil
}

// parseKeys reads what openssl and kubeadm write (PKCS #1, PKCS #8, SEC 1, PKIX).
func parseKeys(data []byte) ([]any, error) {
	var keys []any
	for number := 1; ; number++ {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return keys, nil
		}
		var key any
		var err error
		switch block.Type {
		case privatePEM:
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case rsaPEM:
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		case ecPEM:
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case publicPEM:
			key, err = x509.ParsePKIXPublicKey(block.Bytes)
		default:
			err = fmt.Errorf("%q is no key", block.Type)
		}
		if err != nil {
			return nil, fmt.Errorf("PEM block %d: %w", number, err)
		}
		keys = append(keys, key)
	}
}

// create writes the file whole or not at all, and never over another one: a link fails when the name is taken.
func create(file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	key, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	draft, err := os.CreateTemp(filepath.Dir(file), ".token-keys-*")
	if err != nil {
		return err
	}
	defer os.Remove(draft.Name())
	_, err = draft.WriteString(fileHeader)
	if err == nil {
		err = pem.Encode(draft, &pem.Block{Type: privatePEM, Bytes: der})
	}
	if err = errors.Join(err, draft.Chmod(0o600), draft.Sync(), draft.Close()); err != nil {
		return err
	}
	return os.Link(draft.Name(), file)
}
