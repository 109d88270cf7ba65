package respond

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"github.com/klauspost/compress/gzip"
)

const (
	// compressAbove is the size from which answers are compressed for clients that take it, Kubernetes' own.
	compressAbove = 128 << 10
	// chunk is how much is handed to the connection at once: its pieces are much smaller, and each of its frames costs it two changes of goroutines.
	chunk = 64 << 10
)

// Write writes an encoded answer, compressed when it is large, the client takes that, and there is a network between.
func Write(w http.ResponseWriter, r *http.Request, code int, contentType string, pieces ...[]byte) {
	size := 0
	for _, p := range pieces {
		size += len(p)
	}
	h := w.Header()
	h.Set("Content-Type", contentType)
	if r.Method == http.MethodHead {
		h.Set("Content-Length", strconv.Itoa(size))
		w.WriteHeader(code)
		return
	}
	if size >= compressAbove {
		h.Add("Vary", "Accept-Encoding")
		if Compresses(r) && !near(r) {
			h.Set("Content-Encoding", "gzip")
			w.WriteHeader(code)
			compress(w, pieces)
			return
		}
	}
	h.Set("Content-Length", strconv.Itoa(size))
	w.WriteHeader(code)
	if size <= chunk {
		for _, p := range pieces {
			if _, err := w.Write(p); err != nil {
				return // the client has gone
			}
		}
		return
	}
	chunked(w, func(out io.Writer) error {
		for _, p := range pieces {
			if _, err := out.Write(p); err != nil {
				return err
			}
		}
		return nil
	})
}

// compress writes the pieces as gzip. A client that has gone ends it.
func compress(w io.Writer, pieces [][]byte) {
	chunked(w, func(out io.Writer) error {
		compressed := compressors.Get().(*gzip.Writer)
		compressed.Reset(out)
		for _, p := range pieces {
			if _, err := compressed.Write(p); err != nil {
				return err
			}
		}
		err := compressed.Close()
		compressed.Reset(io.Discard)
		compressors.Put(compressed)
		return err
	})
}

// chunked hands on what f writes in chunks.
func chunked(w io.Writer, f func(io.Writer) error) {
	out := chunks.Get().(*bufio.Writer)
	out.Reset(w)
	if f(out) == nil {
		_ = out.Flush() // or the client has gone
	}
	out.Reset(nil)
	chunks.Put(out)
}

var chunks = sync.Pool{New: func() any { return bufio.NewWriterSize(nil, chunk) }}

// near says whether the client is on this machine: compressing then costs both of them and saves nobody's network. What a proxy passes on is for somebody else.
func near(r *http.Request) bool {
	for _, passed := range []string{"X-Forwarded-For", "Forwarded", "Via"} {
		if r.Header.Get(passed) != "" {
			return false
		}
	}
	client, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return false
	}
	if client.Addr().Unmap().IsLoopback() {
		return true
	}
	local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	if !ok {
		return false
	}
	own, err := netip.ParseAddrPort(local.String())
	return err == nil && own.Addr().Unmap() == client.Addr().Unmap()
}

// Compresses says whether the client takes gzip.
func Compresses(r *http.Request) bool {
	for text := range strings.SplitSeq(r.Header.Get("Accept-Encoding"), ",") {
		name, quality, _ := strings.Cut(text, ";")
		if strings.TrimSpace(name) == "gzip" {
			return strings.ReplaceAll(quality, " ", "") != "q=0"
		}
	}
	return false
}

var compressors = sync.Pool{New: func() any {
	// The fastest level: most of the bytes go, and the processor is what lists wait for.
	compressed, _ := gzip.NewWriterLevel(nil, gzip.BestSpeed)
	return compressed
}}
