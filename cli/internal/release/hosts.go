package release

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"dhow.dev/cli/internal/credentials"
	"dhow.dev/pkg/pki"
)

// Ports of services on plain hosts, the services' own defaults. deploy/systemd and deploy/compose name them too.
const (
	portMembers           = 6439
	portStore             = 6440
	portScheduler         = 6441
	portControllerManager = 6442
	portKubernetes        = 6443
	portAPI               = 7443
)

// HostsTTL is how long certificates on plain hosts are valid by default: somebody copies them, and once a year is what people expect of that.
const HostsTTL = 365 * 24 * time.Hour

// Folders of HostsConfig.Dir, and what a host's folder has beside a folder for each service.
const (
	authorityDir = "authority"
	keysDir      = "keys"
	adminDir     = "admin"
	hostsDir     = "hosts"

	environmentFile = "dhow.env"
	// certificateName is that of a service's files in its folder: tls.crt and tls.key.
	certificateName = "tls"
	// signerFile is the authority's key, beside its certificate, for the service that signs requests.
	signerFile = "ca.key"
)

// A Host is one machine of a cluster on plain hosts.
type Host struct {
	Name    string
	Address netip.Addr
}

// HostsConfig says which hosts there are, and where their files go.
type HostsConfig struct {
	// Dir gets a folder for each host, to be copied to its /etc/dhow, and what stays with the administrator: the authority, the keys, and access to the cluster.
	Dir string
	// Hosts run the control plane, Nodes only a node agent.
	Hosts, Nodes []Host
	// APIServerNames are names and addresses at which the API servers are reached beside their own, for example a load balancer's.
	APIServerNames []string
	// Services and Pods are the ranges of cluster IPs and of pod addresses.
	Services, Pods netip.Prefix
	// TTL is how long certificates are valid; 0: HostsTTL.
	TTL time.Duration
	// Out gets a line for each host.
	Out io.Writer
}

var hostName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?$`)

// Validate says what no cluster can be made of.
func (c HostsConfig) Validate() error {
	if c.Dir == "" {
		return errors.New("give --dir, a folder for the files")
	}
	if n := len(c.Hosts); n != 1 && n != 3 && n != 5 {
		return fmt.Errorf("%d hosts: give 1, 3 or 5 of them as NAME=ADDRESS: stores decide by majority", n)
	}
	names, addresses := map[string]bool{}, map[netip.Addr]bool{}
	for _, h := range slices.Concat(c.Hosts, c.Nodes) {
		switch {
		case !hostName.MatchString(h.Name):
			return fmt.Errorf("host %q: a name has lower-case letters, digits, dashes and dots: it is the node's name too", h.Name)
		case !h.Address.Is4() || h.Address.IsUnspecified() || h.Address.IsLoopback():
			return fmt.Errorf("host %s: %s: give the IPv4 address at which the other hosts reach it", h.Name, h.Address)
		case names[h.Name] || addresses[h.Address]:
			return fmt.Errorf("host %s=%s: another host has that name or address", h.Name, h.Address)
		}
		names[h.Name], addresses[h.Address] = true, true
	}
	for name, p := range map[string]netip.Prefix{"--service-cidr": c.Services, "--pod-cidr": c.Pods} {
		if !p.IsValid() || !p.Addr().Is4() {
			return fmt.Errorf("%s: give an IPv4 network", name)
		}
	}
	if c.Services.Bits() > 28 {
		return fmt.Errorf("--service-cidr %s: the name servers have its tenth address: give a /28 or larger", c.Services)
	}
	return nil
}

// EnsureHosts makes the files what they should be. What is there and good stays as it is; the authority and the keys are made once and never replaced.
func EnsureHosts(config HostsConfig) error {
	if err := config.Validate(); err != nil {
		return err
	}
	if config.TTL == 0 {
		config.TTL = HostsTTL
	}
	h := hostsMaker{config}
	if err := h.check(); err != nil {
		return err
	}
	// The keys come first, as in a cluster: whoever has an authority has keys.
	keys, err := h.keys()
	if err != nil {
		return err
	}
	authority, err := pki.LoadOrCreate(h.path(authorityDir))
	if err != nil {
		return err
	}
	if err := h.admin(authority); err != nil {
		return err
	}
	token, err := h.membersToken(authority)
	if err != nil {
		return err
	}
	for _, host := range config.Hosts {
		if err := h.controlPlane(host, authority, keys); err != nil {
			return fmt.Errorf("host %s: %w", host.Name, err)
		}
	}
	for _, host := range slices.Concat(config.Hosts, config.Nodes) {
		if err := h.environment(host, token); err != nil {
			return fmt.Errorf("host %s: %w", host.Name, err)
		}
		fmt.Fprintf(config.Out, "host %s: copy %s to /etc/dhow on %s\n", host.Name, h.path(hostsDir, host.Name), host.Address)
	}
	return nil
}

type hostsMaker struct{ HostsConfig }

func (h hostsMaker) path(parts ...string) string {
	return filepath.Join(append([]string{h.Dir}, parts...)...)
}

// check refuses what would part a cluster that exists.
func (h hostsMaker) check() error {
	if err := os.MkdirAll(h.Dir, 0o700); err != nil {
		return err
	}
	made, err := os.ReadDir(h.path(hostsDir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, folder := range []string{keysDir, authorityDir} {
		if _, err := os.Stat(h.path(folder)); errors.Is(err, fs.ErrNotExist) && len(made) > 0 {
			return fmt.Errorf("%s is missing, but %s, which was made after it, is there: restore it from a backup, or begin a new cluster in another folder", h.path(folder), h.path(hostsDir, made[0].Name()))
		}
	}
	for _, entry := range made {
		old, err := os.ReadFile(h.path(hostsDir, entry.Name(), environmentFile))
		if errors.Is(err, fs.ErrNotExist) { // never finished
			continue
		}
		if err != nil {
			return err
		}
		stores := lineOf(old, "DHOW_STORES=")
		if stores == "" { // of a machine that only runs pods, which may go anywhere
			continue
		}
		same := slices.ContainsFunc(h.Hosts, func(host Host) bool {
			return host.Name == entry.Name() && host.Address.String() == lineOf(old, "DHOW_ADDRESS=")
		})
		before, now := strings.Split(stores, ","), h.list(portStore)
		slices.Sort(before)
		slices.Sort(now)
		if !same || !slices.Equal(before, now) {
			return fmt.Errorf("%s: the stores of this cluster are on other hosts, and cannot move: back it up (dhow backup) and restore it into a cluster that another --dir is for", h.path(hostsDir))
		}
	}
	return nil
}

func lineOf(content []byte, prefix string) string {
	for line := range strings.Lines(string(content)) {
		if value, ok := strings.CutPrefix(line, prefix); ok {
			return strings.TrimSuffix(value, "\n")
		}
	}
	return ""
}

// keys returns what API servers share.
func (h hostsMaker) keys() (map[string][]byte, error) {
	keys := map[string][]byte{}
	if _, err := os.Stat(h.path(keysDir)); errors.Is(err, fs.ErrNotExist) {
		if keys, err = newKeys(); err != nil {
			return nil, err
		}
		// All of them or none, whenever this process ends.
		temporary := h.path(keysDir + ".new")
		if err := errors.Join(os.RemoveAll(temporary), os.Mkdir(temporary, 0o700)); err != nil {
			return nil, err
		}
		for name, content := range keys {
			if err := writePrivate(filepath.Join(temporary, name), content); err != nil {
				return nil, err
			}
		}
		return keys, os.Rename(temporary, h.path(keysDir))
	}
	for _, name := range KeyFiles {
		var err error
		if keys[name], err = os.ReadFile(h.path(keysDir, name)); err != nil {
			return nil, fmt.Errorf("%w: restore it from a backup", err)
		}
	}
	return keys, nil
}

// addresses are all hosts' at a port, separated by commas.
func (h hostsMaker) addresses(port uint16) string { return strings.Join(h.list(port), ",") }

func (h hostsMaker) list(port uint16) []string {
	var all []string
	for _, host := range h.Hosts {
		all = append(all, netip.AddrPortFrom(host.Address, port).String())
	}
	return all
}

// admin makes the access of the administrator.
func (h hostsMaker) admin(authority *pki.Authority) error {
	holder := credentials.Admin()
	holder.Request.TTL = h.TTL
	files := pki.FilesIn(h.path(adminDir), certificateName)
	if _, err := authority.Ensure(files, holder.Request); err != nil {
		return err
	}
	data := map[string][]byte{}
	for key, file := range map[string]string{authorityKey: files.Authority, certificateKey: files.Certificate, privateKey: files.Key} {
		var err error
		if data[key], err = os.ReadFile(file); err != nil {
			return err
		}
	}
	var kubernetes []string
	for _, address := range h.list(portKubernetes) {
		kubernetes = append(kubernetes, "https://"+address)
	}
	if err := configure(data, h.list(portAPI), kubernetes); err != nil {
		return err
	}
	for _, name := range []string{kubeconfigFile, clientFile} {
		if err := keep(h.path(adminDir, name), data[name]); err != nil {
			return err
		}
	}
	return nil
}

// controlPlane makes the certificates and keys of a host's services.
func (h hostsMaker) controlPlane(host Host, authority *pki.Authority, keys map[string][]byte) error {
	// Its services' users go through it; what others may not read is in folders below it.
	if err := makeDir(h.path(hostsDir, host.Name), 0o755); err != nil {
		return err
	}
	at := maker{Config: Config{ServiceCIDR: h.Services, APIServerNames: h.APIServerNames}}.addresses()
	at.All = []net.IP{host.Address.AsSlice()}
	for _, holder := range credentials.ControlPlane(at) {
		dir := h.path(hostsDir, host.Name, holder.Name)
		holder.Request.TTL = h.TTL
		if _, err := authority.Ensure(pki.FilesIn(dir, certificateName), holder.Request); err != nil {
			return err
		}
		var more map[string][]byte
		switch holder.Name {
		case "apiserver":
			more = keys
		case "controller-manager":
			_, file := pki.AuthorityFiles(h.path(authorityDir))
			key, err := os.ReadFile(file)
			if err != nil {
				return err
			}
			more = map[string][]byte{signerFile: key}
		}
		for name, content := range more {
			if err := keep(filepath.Join(dir, name), content); err != nil {
				return err
			}
		}
	}
	return nil
}

// membersToken tells this cluster's database from others.
func (h hostsMaker) membersToken(authority *pki.Authority) (string, error) {
	block, _ := pem.Decode(authority.CertificatePEM())
	if block == nil {
		return "", fmt.Errorf("%s holds no certificate", h.path(authorityDir))
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", err
	}
	_, hash, _ := strings.Cut(pki.Hash(certificate), ":")
	return hash[:16], nil
}

// members are the arguments of a store that is one of several, none of the only one.
func (h hostsMaker) members(host Host, token string) string {
	if len(h.Hosts) == 1 {
		return ""
	}
	var all []string
	for _, other := range h.Hosts {
		all = append(all, other.Name+"="+netip.AddrPortFrom(other.Address, portMembers).String())
	}
	return fmt.Sprintf("--member=%s --members=%s --member-listen=%s --members-token=%s", host.Name, strings.Join(all, ","), netip.AddrPortFrom(host.Address, portMembers), token)
}

// environment writes the settings of a host, which systemd and compose read alike: no quotes, and what is for several words is separated by spaces.
func (h hostsMaker) environment(host Host, token string) error {
	if err := makeDir(h.path(hostsDir, host.Name), 0o755); err != nil {
		return err
	}
	dns := h.Services.Masked().Addr()
	for range 10 {
		dns = dns.Next()
	}
	var text strings.Builder
	text.WriteString("# Made by dhow release hosts, which writes it anew. Settings of one's own go into local.env.\n")
	set := func(name, value string) { fmt.Fprintf(&text, "DHOW_%s=%s\n", name, value) }
	set("HOST", host.Name)
	set("ADDRESS", host.Address.String())
	set("APISERVERS", h.addresses(portAPI))
	set("SERVICE_CIDR", h.Services.Masked().String())
	set("POD_CIDR", h.Pods.Masked().String())
	set("DNS_ADDRESS", dns.String())
	if slices.Contains(h.Hosts, host) {
		set("STORES", h.addresses(portStore))
		set("STORE_MEMBERS", h.members(host, token))
		set("SCHEDULERS", h.addresses(portScheduler))
		set("CONTROLLER_MANAGERS", h.addresses(portControllerManager))
	}
	return os.WriteFile(h.path(hostsDir, host.Name, environmentFile), []byte(text.String()), 0o644)
}

func makeDir(dir string, mode fs.FileMode) error {
	// Whatever the umask is.
	return errors.Join(os.MkdirAll(dir, mode), os.Chmod(dir, mode))
}

// keep writes a file that only its owner reads, unless it is as it should be.
func keep(file string, content []byte) error {
	if old, err := os.ReadFile(file); err == nil && bytes.Equal(old, content) {
		return nil
	}
	return writePrivate(file, content)
}
