package pki

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Files says where a key pair and the authority's certificate are.
type Files struct {
	Certificate, Key, Authority string
}

// FilesIn names the files of one holder in a folder: NAME.crt, NAME.key and the shared ca.crt.
func FilesIn(dir, name string) Files {
	return Files{
		Certificate: filepath.Join(dir, name+".crt"),
		Key:         filepath.Join(dir, name+".key"),
		Authority:   filepath.Join(dir, authorityCertificate),
	}
}

func (f Files) all() []string { return []string{f.Certificate, f.Key, f.Authority} }

// Write replaces the three files, PEM each. A reader between the writes sees a pair that does not belong together and keeps what it has.
func (f Files) Write(authority, certificate, key []byte) error {
	for _, path := range f.all() {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
	}
	return errors.Join(writeFile(f.Authority, authority), writeFile(f.Key, key), writeFile(f.Certificate, certificate))
}

// ReadAuthority returns the authority's certificates, PEM.
func (f Files) ReadAuthority() ([]byte, error) {
	_, data, err := readCertificates(f.Authority)
	return data, err
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// writeFile replaces a file in one step: readers see the old content or the new, also after a crash.
func writeFile(path string, data []byte) error {
	temporary, err := writeTemporary(path, data)
	if err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		os.Remove(temporary)
		return fmt.Errorf("write %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

// createFile is writeFile for a file that must not be there yet: the error is fs.ErrExist when it is, and then nothing changed.
func createFile(path string, data []byte) error {
	temporary, err := writeTemporary(path, data)
	if err != nil {
		return err
	}
	defer os.Remove(temporary)
	// A rename would replace the file of a process that was faster; a hard link fails.
	if err := os.Link(temporary, path); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

func writeTemporary(path string, data []byte) (string, error) {
	// CreateTemp makes files with mode 0600, which is what keys need and harmless for certificates.
	file, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	_, err = file.Write(data)
	if err == nil {
		err = file.Sync()
	}
	if closing := file.Close(); err == nil {
		err = closing
	}
	if err != nil {
		os.Remove(file.Name())
		return "", fmt.Errorf("write %s: %w", path, err)
	}
	return file.Name(), nil
}

func syncDir(dir string) error {
	handle, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer handle.Close()
	if err := handle.Sync(); err != nil {
		return fmt.Errorf("sync folder %s: %w", dir, err)
	}
	return nil
}

func readFile(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read %s: %w: give the path of an existing file, or have the cluster's authority issue it", path, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("read %s: %w: run as the file's owner", path, err)
	case err != nil:
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return data, nil
}

func readKey(path string) (crypto.Signer, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(data)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w: restore it from a backup, or issue a new pair", path, err)
	}
	return key, nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, errors.New("no PEM block")
	}
	var parsed any
	var err error
	switch block.Type {
	case "PRIVATE KEY":
		parsed, err = x509.ParsePKCS8PrivateKey(block.Bytes)
	case "EC PRIVATE KEY": // what openssl and older tools write
		parsed, err = x509.ParseECPrivateKey(block.Bytes)
	default:
		return nil, fmt.Errorf("PEM block %q, want PRIVATE KEY", block.Type)
	}
	if err != nil {
		return nil, err
	}
	signer, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T cannot sign", parsed)
	}
	return signer, nil
}

// readCertificates returns at least one certificate, and the file's content.
func readCertificates(path string) ([]*x509.Certificate, []byte, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, nil, err
	}
	certificates, err := parseCertificates(data)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w: restore it from a backup, or issue a new pair", path, err)
	}
	return certificates, data, nil
}

func parseCertificates(data []byte) ([]*x509.Certificate, error) {
	var certificates []*x509.Certificate
	for {
		var block *pem.Block
		block, data = pem.Decode(data)
		if block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		certificates = append(certificates, certificate)
	}
	if len(certificates) == 0 {
		return nil, errors.New("no certificate in it")
	}
	return certificates, nil
}
