package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html/template"
	"io"
	"net/http"
	"strings"
	"time"
)

// web is the web tier.
type web struct {
	mux            *http.ServeMux
	title, greeter string
	backend, token string
	pod, node      string
	client         *http.Client
}

// newWeb reads the settings: TITLE and TOKEN, BACKEND (the data tier's URL), POD and NODE, and the greeting from a mounted file.
func newWeb(env func(string) string, readFile func(string) ([]byte, error)) (*web, error) {
	greeting, err := readFile("/etc/guestbook/greeting")
	if err != nil {
		return nil, fmt.Errorf("web tier: greeting: %w", err)
	}
	w := &web{
		mux: http.NewServeMux(), title: env("TITLE"), greeter: strings.TrimSpace(string(greeting)),
		backend: strings.TrimSuffix(env("BACKEND"), "/"), token: env("TOKEN"), pod: env("POD"), node: env("NODE"),
		client: &http.Client{Timeout: 3 * time.Second},
	}
	if w.backend == "" || w.token == "" {
		return nil, errors.New("web tier: BACKEND and TOKEN must be set")
	}
	w.mux.HandleFunc("GET /livez", func(http.ResponseWriter, *http.Request) {})
	w.mux.HandleFunc("GET /readyz", w.ready)
	w.mux.HandleFunc("GET /version", w.version)
	w.mux.HandleFunc("GET /{$}", w.page)
	w.mux.HandleFunc("POST /entries", w.add)
	return w, nil
}

func (w *web) ServeHTTP(rw http.ResponseWriter, r *http.Request) { w.mux.ServeHTTP(rw, r) }

// ready asks the data tier: without it the page cannot be shown.
func (w *web) ready(rw http.ResponseWriter, r *http.Request) {
	if _, err := w.entries(r.Context()); err != nil {
		http.Error(rw, err.Error(), http.StatusServiceUnavailable)
	}
}

func (w *web) version(rw http.ResponseWriter, _ *http.Request) {
	rw.Header().Set("Content-Type", "application/json")
	json.NewEncoder(rw).Encode(map[string]string{"version": version, "pod": w.pod, "node": w.node})
}

var page = template.Must(template.New("page").Parse(`<!doctype html><title>{{.Title}}</title><h1>{{.Title}}</h1><p>{{.Greeting}}</p>
<ul>{{range .Entries}}<li>{{.}}</li>{{end}}</ul><p>version {{.Version}}, pod {{.Pod}}, node {{.Node}}</p>
`))

func (w *web) page(rw http.ResponseWriter, r *http.Request) {
	entries, err := w.entries(r.Context())
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadGateway)
		return
	}
	var body bytes.Buffer
	if err := page.Execute(&body, map[string]any{"Title": w.title, "Greeting": w.greeter, "Entries": entries, "Version": version, "Pod": w.pod, "Node": w.node}); err != nil {
		http.Error(rw, err.Error(), http.StatusInternalServerError)
		return
	}
	rw.Header().Set("Content-Type", "text/html; charset=utf-8")
	body.WriteTo(rw)
}

func (w *web) add(rw http.ResponseWriter, r *http.Request) {
	entry, err := io.ReadAll(http.MaxBytesReader(rw, r.Body, maxEntry))
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	encoded, err := json.Marshal(string(entry))
	if err != nil {
		http.Error(rw, err.Error(), http.StatusBadRequest)
		return
	}
	if _, err := w.call(r.Context(), http.MethodPost, encoded); err != nil {
		http.Error(rw, err.Error(), http.StatusBadGateway)
		return
	}
	rw.WriteHeader(http.StatusCreated)
}

func (w *web) entries(ctx context.Context) ([]string, error) {
	content, err := w.call(ctx, http.MethodGet, nil)
	if err != nil {
		return nil, err
	}
	var entries []string
	if err := json.Unmarshal(content, &entries); err != nil {
		return nil, fmt.Errorf("data tier: %w", err)
	}
	return entries, nil
}

// call sends one request to the data tier and returns the answer's body.
func (w *web) call(ctx context.Context, method string, body []byte) ([]byte, error) {
	request, err := http.NewRequestWithContext(ctx, method, w.backend+"/entries", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Authorization", "Bearer "+w.token)
	response, err := w.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("data tier: %w", err)
	}
	defer response.Body.Close()
	content, err := io.ReadAll(response.Body)
	if err != nil {
		return nil, fmt.Errorf("data tier: %w", err)
	}
	if response.StatusCode >= 300 {
		return nil, fmt.Errorf("data tier: %s: %s", response.Status, strings.TrimSpace(string(content)))
	}
	return content, nil
}
