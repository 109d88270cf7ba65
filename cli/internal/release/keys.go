package release

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
)

const (
	encryptionFile = "encryption.key"
	tokenFile      = "token-keys.pem"
	// secretSize and tokenBits are what the API server makes when it has no files.
	secretSize = 32
	tokenBits  = 2048
)

// KeyFiles are the files that the API servers of one cluster share (--encryption-key-file and --service-account-signing-key-file).
var KeyFiles = []string{encryptionFile, tokenFile}

// newKeys makes both files, as the API server would.
func newKeys() (map[string][]byte, error) {
	secret := make([]byte, secretSize)
	rand.Read(secret) // never fails: the runtime ends the process instead
	signer, err := rsa.GenerateKey(rand.Reader, tokenBits)
	if err != nil {
		return nil, fmt.Errorf("make the key of tokens: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		return nil, fmt.Errorf("encode the key of tokens: %w", err)
	}
	return map[string][]byte{
		encryptionFile: []byte("# Keys that Secrets are encrypted with, an id and 32 bytes a line: the first one encrypts, all decrypt. Put a new one first, and keep the old ones.\n1 " +
			base64.StdEncoding.EncodeToString(secret) + "\n"),
		tokenFile: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	}, nil
}
