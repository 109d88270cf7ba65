package main

import (
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

func TestTiersTogether(t *testing.T) {
	file := filepath.Join(t.TempDir(), "entries.json")
	d, err := newData(file, "secret")
	if err != nil {
		t.Fatal(err)
	}
	backend := httptest.NewServer(d)
	defer backend.Close()
	env := map[string]string{"TITLE": "Guests", "BACKEND": backend.URL, "TOKEN": "secret", "POD": "web-1", "NODE": "n1"}
	w, err := newWeb(func(k string) string { return env[k] }, func(string) ([]byte, error) { return []byte("welcome\n"), nil })
	if err != nil {
		t.Fatal(err)
	}
	front := httptest.NewServer(w)
	defer front.Close()

	post, err := http.Post(front.URL+"/entries", "text/plain", strings.NewReader("hello <there>"))
	if err != nil || post.StatusCode != http.StatusCreated {
		t.Fatalf("post: %v %v", post, err)
	}
	get, err := http.Get(front.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(get.Body)
	for _, want := range []string{"<h1>Guests</h1>", "welcome", "hello &lt;there&gt;", "pod web-1, node n1"} {
		if !strings.Contains(string(body), want) {
			t.Errorf("page lacks %q: %s", want, body)
		}
	}

	again, err := newData(file, "secret")
	if err != nil || len(again.entries) != 1 {
		t.Errorf("after a restart: %v entries, %v", again, err)
	}

	backend.Close()
	ready, err := http.Get(front.URL + "/readyz")
	if err != nil || ready.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("ready without the data tier: %v %v", ready, err)
	}
}

func TestBothTiersWithoutSettings(t *testing.T) {
	w, end, err := both()
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	front := httptest.NewServer(w)
	defer front.Close()
	if post, err := http.Post(front.URL+"/entries", "text/plain", strings.NewReader("hello")); err != nil || post.StatusCode != http.StatusCreated {
		t.Fatalf("post: %v %v", post, err)
	}
	get, err := http.Get(front.URL + "/")
	if err != nil {
		t.Fatal(err)
	}
	if body, _ := io.ReadAll(get.Body); !strings.Contains(string(body), "<h1>Guestbook</h1>") || !strings.Contains(string(body), "<li>hello</li>") {
		t.Errorf("%s", body)
	}
	if ready, err := http.Get(front.URL + "/readyz"); err != nil || ready.StatusCode != http.StatusOK {
		t.Errorf("ready: %v %v", ready, err)
	}
}

func TestDataRefusesWrongToken(t *testing.T) {
	d, err := newData(filepath.Join(t.TempDir(), "entries.json"), "secret")
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest(http.MethodPost, "/entries", strings.NewReader(`"x"`))
	w := httptest.NewRecorder()
	d.ServeHTTP(w, r)
	if w.Code != http.StatusForbidden {
		t.Errorf("code %d", w.Code)
	}
}
