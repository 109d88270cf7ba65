package main

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"sync"
)

// maxEntry bounds an entry, in bytes.
const maxEntry = 4096

// data is the data tier: a list of entries in a file.
type data struct {
	mux   *http.ServeMux
	file  string
	token string

	mu      sync.Mutex
	entries []string
}

func newData(file, token string) (*data, error) {
	if file == "" || token == "" {
		return nil, errors.New("data tier: DATA_FILE and TOKEN must be set")
	}
	d := &data{mux: http.NewServeMux(), file: file, token: token, entries: []string{}}
	content, err := os.ReadFile(file)
	if err == nil {
		err = json.Unmarshal(content, &d.entries)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("data tier: %s: %w", file, err)
	}
	d.mux.HandleFunc("GET /healthz", func(http.ResponseWriter, *http.Request) {})
	d.mux.HandleFunc("GET /entries", d.list)
	d.mux.HandleFunc("POST /entries", d.add)
	return d, nil
}

func (d *data) ServeHTTP(w http.ResponseWriter, r *http.Request) { d.mux.ServeHTTP(w, r) }

func (d *data) list(w http.ResponseWriter, _ *http.Request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(d.entries)
}

func (d *data) add(w http.ResponseWriter, r *http.Request) {
	if subtle.ConstantTimeCompare([]byte(r.Header.Get("Authorization")), []byte("Bearer "+d.token)) != 1 {
		http.Error(w, "wrong token", http.StatusForbidden)
		return
	}
	var entry string
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxEntry)).Decode(&entry); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	entries := append(d.entries, entry)
	content, err := json.Marshal(entries)
	if err == nil {
		err = os.WriteFile(d.file, content, 0o600)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	d.entries = entries
	w.WriteHeader(http.StatusCreated)
}
