package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

const (
	// maxManifest is the size that the OCI distribution specification asks registries to accept at least.
	maxManifest = 4 << 20
	// defaultMaxUpload bounds one pushed blob, which the registry's protocol library holds in memory until it is complete.
	defaultMaxUpload = 512 << 20
	defaultPushes    = 4
)

// RegistryConfig configures a Registry.
type RegistryConfig struct {
	// Dir keeps blobs and manifests across restarts.
	Dir string
	// AllowPush accepts images over HTTP. Without it only this process can add images (Registry.Add), so that nothing that
	// can reach the address, pods for example, can replace one.
	AllowPush bool
	// MaxUpload bounds each pushed blob in bytes; 0 means 512 MiB. At most 4 pushes run at once.
	MaxUpload int64
	Logger    *slog.Logger
}

// Registry serves images over plain HTTP on addresses that are private to this machine. It speaks the OCI distribution API.
type Registry struct {
	cfg    RegistryConfig
	inner  http.Handler
	pushes chan struct{}

	mu sync.Mutex // orders manifest writes to disk with those to inner
}

// storedManifest is a manifest's file on disk. The library keeps manifests in memory only.
type storedManifest struct {
	Path        string `json:"path"` // request path: /v2/NAME/manifests/REFERENCE
	ContentType string `json:"contentType"`
	Body        []byte `json:"body"`
}

// NewRegistry opens the registry over its folder, with every image that was added before.
func NewRegistry(cfg RegistryConfig) (*Registry, error) {
	if cfg.Dir == "" {
		return nil, errors.New("registry: Dir is required")
	}
	if cfg.MaxUpload == 0 {
		cfg.MaxUpload = defaultMaxUpload
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Registry{cfg: cfg, pushes: make(chan struct{}, defaultPushes)}
	for _, dir := range []string{r.blobDir(), r.manifestDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("registry: %w", err)
		}
	}
	r.inner = registry.New(
		registry.WithBlobHandler(registry.NewDiskBlobHandler(r.blobDir())),
		registry.Logger(slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug)),
	)
	if err := r.reload(); err != nil {
		return nil, err
	}
	return r, nil
}

func (r *Registry) blobDir() string     { return filepath.Join(r.cfg.Dir, "blobs") }
func (r *Registry) manifestDir() string { return filepath.Join(r.cfg.Dir, "manifests") }

// reload gives the library the manifests on disk, images before the indexes that refer to them.
func (r *Registry) reload() error {
	names, err := filepath.Glob(filepath.Join(r.manifestDir(), "*.json"))
	if err != nil {
		return err
	}
	pending := make([]storedManifest, 0, len(names))
	for _, file := range names {
		var m storedManifest
		data, err := os.ReadFile(file)
		if err == nil {
			err = json.Unmarshal(data, &m)
		}
		if err != nil {
			return fmt.Errorf("registry: manifest %s is damaged, delete it and push its image again: %w", file, err)
		}
		pending = append(pending, m)
	}
	// An index is refused until its members are known, and indexes may nest: go round until nothing more is accepted.
	for len(pending) > 0 {
		var refused []storedManifest
		for _, m := range pending {
			req, err := http.NewRequest(http.MethodPut, m.Path, bytes.NewReader(m.Body))
			if err != nil {
				return fmt.Errorf("registry: manifest of %s: %w", m.Path, err)
			}
			req.Header.Set("Content-Type", m.ContentType)
			answer := newRecorder()
			r.inner.ServeHTTP(answer, req)
			if answer.status != http.StatusCreated {
				refused = append(refused, m)
			}
		}
		if len(refused) == len(pending) {
			return fmt.Errorf("registry: manifest of %s refers to images that are gone: delete %s and push again", refused[0].Path, r.cfg.Dir)
		}
		pending = refused
	}
	return nil
}

// Add puts an image into the registry under "NAME:TAG", a repository name and a tag without a host.
func (r *Registry) Add(ctx context.Context, reference string, img v1.Image) error {
	// The host is never dialled: requests go to this registry's handler.
	ref, err := name.NewTag("registry.invalid/"+reference, name.StrictValidation, name.Insecure)
	if err != nil {
		return fmt.Errorf("image reference %q: expected NAME:TAG: %w", reference, err)
	}
	if err := remote.Write(ref, img, remote.WithContext(ctx), remote.WithTransport(localTransport{r})); err != nil {
		return fmt.Errorf("add %s to the registry: %w", reference, err)
	}
	return nil
}

// ServeHTTP answers remote clients.
func (r *Registry) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if req.Method == http.MethodGet || req.Method == http.MethodHead {
		r.inner.ServeHTTP(w, req)
		return
	}
	if !r.cfg.AllowPush {
		http.Error(w, "this registry is read-only over the network", http.StatusMethodNotAllowed)
		return
	}
	select {
	case r.pushes <- struct{}{}:
		defer func() { <-r.pushes }()
	case <-req.Context().Done():
		return
	}
	r.write(w, req)
}

// write carries out a request that changes the registry.
func (r *Registry) write(w http.ResponseWriter, req *http.Request) {
	parts := strings.Split(req.URL.Path, "/")
	if len(parts) < 3 || parts[len(parts)-2] != "manifests" {
		req.Body = http.MaxBytesReader(w, req.Body, r.cfg.MaxUpload)
		r.inner.ServeHTTP(w, req)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxManifest))
	if err != nil {
		http.Error(w, "manifest: "+err.Error(), http.StatusRequestEntityTooLarge)
		return
	}
	req.Body = io.NopCloser(bytes.NewReader(body))

	r.mu.Lock()
	defer r.mu.Unlock()
	answer := newRecorder()
	r.inner.ServeHTTP(answer, req)
	switch {
	case req.Method == http.MethodPut && answer.status == http.StatusCreated:
		err = r.store(storedManifest{Path: req.URL.Path, ContentType: req.Header.Get("Content-Type"), Body: body})
	case req.Method == http.MethodDelete && answer.status == http.StatusAccepted:
		err = os.Remove(r.manifestFile(req.URL.Path))
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		r.cfg.Logger.Error("registry cannot keep a manifest", "path", req.URL.Path, "error", err)
		http.Error(w, "the registry cannot write to its disk", http.StatusInternalServerError)
		return
	}
	answer.copyTo(w)
}

// manifestFile is named by a hash, because repository names may be as long as a file name may be.
func (r *Registry) manifestFile(path string) string {
	sum := sha256.Sum256([]byte(path))
	return filepath.Join(r.manifestDir(), hex.EncodeToString(sum[:])+".json")
}

func (r *Registry) store(m storedManifest) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(r.manifestDir(), "write-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name()) // fails after the rename, as it should
	_, err = tmp.Write(data)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), r.manifestFile(m.Path))
}

// Serve answers on the listener until ctx ends.
func (r *Registry) Serve(ctx context.Context, l net.Listener) error {
	server := &http.Server{
		Handler:           r,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(r.cfg.Logger.Handler(), slog.LevelDebug),
	}
	stopped := context.AfterFunc(ctx, func() {
		// Pulls in flight get a moment; containerd resumes those that are cut.
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		if err := server.Shutdown(grace); err != nil {
			server.Close()
		}
	})
	defer stopped()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("registry on %s: %w", l.Addr(), err)
	}
	return nil
}

// localTransport hands requests of the registry client to the registry in this process, past the read-only door.
type localTransport struct{ registry *Registry }

func (t localTransport) RoundTrip(req *http.Request) (*http.Response, error) {
	in := req.Clone(req.Context())
	if in.Body == nil {
		in.Body = http.NoBody
	}
	defer in.Body.Close()
	answer := newRecorder()
	if req.Method == http.MethodGet || req.Method == http.MethodHead {
		t.registry.inner.ServeHTTP(answer, in)
	} else {
		t.registry.write(answer, in)
	}
	return &http.Response{
		Status: http.StatusText(answer.status), StatusCode: answer.status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: answer.header, Body: io.NopCloser(&answer.body), ContentLength: int64(answer.body.Len()), Request: req,
	}, nil
}

// recorder keeps a handler's answer.
type recorder struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func newRecorder() *recorder { return &recorder{header: http.Header{}, status: http.StatusOK} }

func (r *recorder) Header() http.Header         { return r.header }
func (r *recorder) WriteHeader(status int)      { r.status = status }
func (r *recorder) Write(p []byte) (int, error) { return r.body.Write(p) }

func (r *recorder) copyTo(w http.ResponseWriter) {
	for key, values := range r.header {
		w.Header()[key] = values
	}
	w.WriteHeader(r.status)
	// A client that went away is no fault of the registry, and nobody is left to be told.
	_, _ = w.Write(r.body.Bytes())
}
