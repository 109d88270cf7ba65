// Package release makes and renews the secrets of a control plane: the authority, a certificate for each service and the administrator, the key that the cluster's Secrets are
// encrypted with, and those of its tokens. Ensure keeps them in Secrets of the cluster that a release of the charts of helm/ is in, EnsureHosts in a folder from which they are
// copied to plain hosts.
//
// Both may run at any time, and Ensure several times at once: what is there and good stays as it is. What cannot be made again without harm, the authority and the keys, is made
// once and never replaced.
package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"dhow.dev/cli/internal/credentials"
	"dhow.dev/pkg/pki"
)

// Keys of the Secrets' data.
const (
	certificateKey = corev1.TLSCertKey
	privateKey     = corev1.TLSPrivateKeyKey
	authorityKey   = "ca.crt"
)

// Config says for which control plane, and where.
type Config struct {
	// Secrets are those of the release's namespace.
	Secrets corev1client.SecretInterface
	// Name is the control plane's: each Secret is called by it, a dash and what it is for.
	Name string
	// Labels are put on Secrets that are made.
	Labels map[string]string
	// StoreNames are the DNS names at which stores reach each other; a * stands for the first label.
	StoreNames []string
	// APIServerNames are DNS names and addresses at which the API server is reached, beside its own.
	APIServerNames []string
	// ServiceCIDR is the range of the new cluster's cluster IPs: the first one is its API server's.
	ServiceCIDR netip.Prefix
	// Servers (host:port) and Kubernetes (a URL) are where the administrator reaches the two APIs.
	Servers    []string
	Kubernetes string
	// TTL is how long certificates are valid; 0: pki.DefaultTTL.
	TTL time.Duration
	// KeysOnly leaves certificates to somebody else, for example cert-manager.
	KeysOnly bool
	// Dir is a folder, in memory if possible, for what is worked on.
	Dir string
	// Out gets a line for each Secret.
	Out io.Writer
}

// Ensure makes the Secrets what they should be.
func Ensure(ctx context.Context, config Config) error {
	dir, err := os.MkdirTemp(config.Dir, "release-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	m := maker{Config: config, dir: dir}
	if err := m.keys(ctx); err != nil || config.KeysOnly {
		return err
	}
	authority, err := m.authority(ctx)
	if err != nil {
		return err
	}
	for _, holder := range append(credentials.ControlPlane(m.addresses()), credentials.Admin()) {
		holder.Request.TTL = config.TTL
		if err := m.certificate(ctx, authority, holder); err != nil {
			return err
		}
	}
	return nil
}

type maker struct {
	Config
	dir string
}

func (m maker) secret(what string) string { return m.Name + "-" + what }

// addresses splits what the API server is called into names and addresses.
func (m maker) addresses() credentials.Addresses {
	at := credentials.Addresses{StoreNames: m.StoreNames}
	if m.ServiceCIDR.IsValid() {
		at.APIServerIPs = append(at.APIServerIPs, m.ServiceCIDR.Masked().Addr().Next().AsSlice())
	}
	for _, name := range m.APIServerNames {
		if ip := net.ParseIP(name); ip != nil {
			at.APIServerIPs = append(at.APIServerIPs, ip)
		} else {
			at.APIServerNames = append(at.APIServerNames, name)
		}
	}
	return at
}

// find returns a Secret, or nil when there is none.
func (m maker) find(ctx context.Context, name string) (*corev1.Secret, error) {
	found, err := m.Secrets.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return found, err
}

// absent returns an error when any of the Secrets exists: the one that is missing was there before and cannot be made again.
func (m maker) absent(ctx context.Context, missing, consequence string, witnesses ...string) error {
	for _, name := range witnesses {
		found, err := m.find(ctx, m.secret(name))
		if err != nil {
			return err
		}
		if found == nil {
			continue
		}
		// Another job may have made both just now: then the missing one is there.
		if again, err := m.find(ctx, missing); err != nil || again == nil {
			return errors.Join(err, fmt.Errorf("secret %s is missing, but %s, which was made after it, is there: restore it from a backup: %s; to begin a new cluster, delete the other Secrets of %s too", missing, found.Name, consequence, m.Name))
		}
	}
	return nil
}

func (m maker) create(ctx context.Context, name string, kind corev1.SecretType, data map[string][]byte) (*corev1.Secret, error) {
	made, err := m.Secrets.Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: m.Labels}, Type: kind, Data: data,
	}, metav1.CreateOptions{})
	if err == nil {
		m.say(name, "made")
	}
	return made, err
}

func (m maker) say(name, what string) { fmt.Fprintf(m.Out, "secret %s: %s\n", name, what) }

// keys makes what the API servers share. It is made first: whoever has an authority has keys.
func (m maker) keys(ctx context.Context) error {
	name := m.secret("keys")
	found, err := m.find(ctx, name)
	if err != nil {
		return err
	}
	if found == nil {
		if err := m.absent(ctx, name, "without its encryption.key no Secret of the cluster can be read", "ca", "apiserver"); err != nil {
			return err
		}
		data, err := newKeys()
		if err != nil {
			return err
		}
		found, err = m.create(ctx, name, corev1.SecretTypeOpaque, data)
		if apierrors.IsAlreadyExists(err) { // another one was faster
			found, err = m.Secrets.Get(ctx, name, metav1.GetOptions{})
		}
		if err != nil {
			return err
		}
	} else {
		m.say(name, "stays")
	}
	for _, key := range KeyFiles {
		if len(found.Data[key]) == 0 {
			return fmt.Errorf("secret %s has no %s: restore it from a backup", name, key)
		}
	}
	return nil
}

// authority returns the control plane's, and makes it when there is none.
func (m maker) authority(ctx context.Context) (*pki.Authority, error) {
	name := m.secret("ca")
	found, err := m.find(ctx, name)
	if err != nil {
		return nil, err
	}
	folder := filepath.Join(m.dir, "ca")
	certificateFile, keyFile := pki.AuthorityFiles(folder)
	if found == nil {
		if err := m.absent(ctx, name, "nothing with a certificate of the old one would trust a new one", "apiserver", "admin"); err != nil {
			return nil, err
		}
		if _, err := pki.LoadOrCreate(folder); err != nil {
			return nil, err
		}
		data := map[string][]byte{}
		for key, file := range map[string]string{certificateKey: certificateFile, privateKey: keyFile, authorityKey: certificateFile} {
			if data[key], err = os.ReadFile(file); err != nil {
				return nil, err
			}
		}
		found, err = m.create(ctx, name, corev1.SecretTypeTLS, data)
		if apierrors.IsAlreadyExists(err) {
			found, err = m.Secrets.Get(ctx, name, metav1.GetOptions{})
		}
		if err != nil {
			return nil, err
		}
	} else {
		m.say(name, "stays")
	}
	files := pki.Files{Certificate: filepath.Join(folder, "unused.crt"), Key: keyFile, Authority: certificateFile}
	if err := files.Write(found.Data[certificateKey], nil, found.Data[privateKey]); err != nil {
		return nil, err
	}
	authority, err := pki.Load(folder)
	if err != nil {
		return nil, fmt.Errorf("secret %s: %w", name, err)
	}
	return authority, nil
}

// attempts bounds how often a Secret is read again that others write.
const attempts = 5

// certificate makes or renews a holder's.
func (m maker) certificate(ctx context.Context, authority *pki.Authority, holder credentials.Holder) error {
	name := m.secret(holder.Name)
	for range attempts {
		found, err := m.find(ctx, name)
		if err != nil {
			return err
		}
		data := map[string][]byte{}
		if found != nil {
			data = maps.Clone(found.Data)
		}
		wanted, until, err := m.issue(authority, holder, data)
		if err != nil {
			return fmt.Errorf("secret %s: %w", name, err)
		}
		switch {
		case found == nil:
			_, err = m.create(ctx, name, corev1.SecretTypeTLS, wanted)
		case same(found.Data, wanted):
			m.say(name, "good until "+until)
			return nil
		default:
			found.Data = wanted
			if _, err = m.Secrets.Update(ctx, found, metav1.UpdateOptions{}); err == nil {
				m.say(name, "renewed, good until "+until)
			}
		}
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
	return fmt.Errorf("secret %s is written by somebody else all the time", name)
}

// issue returns a Secret's data with a certificate as requested: the same when the one that is there is.
func (m maker) issue(authority *pki.Authority, holder credentials.Holder, data map[string][]byte) (wanted map[string][]byte, until string, err error) {
	files := pki.FilesIn(filepath.Join(m.dir, "holders"), holder.Name)
	// What is missing or damaged is written too: Ensure issues anew what it cannot read.
	if err := files.Write(data[authorityKey], data[certificateKey], data[privateKey]); err != nil {
		return nil, "", err
	}
	pair, err := authority.Ensure(files, holder.Request)
	if err != nil {
		return nil, "", err
	}
	wanted = maps.Clone(data)
	if wanted == nil {
		wanted = map[string][]byte{}
	}
	for key, file := range map[string]string{authorityKey: files.Authority, certificateKey: files.Certificate, privateKey: files.Key} {
		if wanted[key], err = os.ReadFile(file); err != nil {
			return nil, "", err
		}
	}
	if holder.Name == credentials.Admin().Name {
		if err := configure(wanted, m.Servers, []string{m.Kubernetes}); err != nil {
			return nil, "", err
		}
	}
	return wanted, pair.Certificate().NotAfter.UTC().Format(time.RFC3339), nil
}

func same(a, b map[string][]byte) bool { return maps.EqualFunc(a, b, bytes.Equal) }

// CopyKeys puts the keys where nobody but this user reads them, as the API server wants it: files of a Secret's volume are root's, and its pod's group reads them.
func CopyKeys(from, to string) error {
	var failed []error
	for _, name := range KeyFiles {
		content, err := os.ReadFile(filepath.Join(from, name))
		if err == nil {
			err = writePrivate(filepath.Join(to, name), content)
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// writePrivate replaces a file; a container that is started again finds the one of before.
func writePrivate(file string, content []byte) error {
	temporary := file + ".new"
	if err := os.WriteFile(temporary, content, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, file)
}

// Validate says what is missing of a configuration.
func (c Config) Validate() error {
	switch {
	case c.Name == "":
		return errors.New("the control plane's name is missing: give --name")
	case !c.KeysOnly && (len(c.Servers) == 0 || !strings.HasPrefix(c.Kubernetes, "https://")):
		return errors.New("where does the administrator reach the APIs? Give --server host:port and --kubernetes-server https://host:port")
	}
	return nil
}
