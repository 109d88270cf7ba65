package streaming

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	corev1 "dhow.dev/gen/go/dhow/core/v1"
	metav1 "dhow.dev/gen/go/dhow/meta/v1"
	"dhow.dev/pkg/telemetry/logkey"
	"dhow.dev/services/apiserver/internal/grpcapi"
	"dhow.dev/services/apiserver/internal/request"
)

var logOptions = pods.GroupVersionKind().GroupVersion().WithKind("PodLogOptions").GroupKind()

// log serves pods/log.
func (s *Streams) log(w http.ResponseWriter, r *http.Request, info *request.Info) error {
	query, err := logRequest(info)
	if err != nil {
		return err
	}
	pod, err := s.pod(r.Context(), info.Namespace, info.Name)
	if err != nil {
		return err
	}
	name, err := container(pod, query.GetContainer())
	if err != nil {
		return err
	}
	query.SetContainer(name)
	to := place(pod)
	if wsstream.IsWebSocketRequest(r) {
		return s.logSocket(w, r, to, query)
	}
	out := &text{w: w, flush: query.GetFollow()}
	if to.Node == "" {
		out.begin() // as in Kubernetes: there is nothing yet
		return nil
	}
	err = s.config.Tunnels.Log(r.Context(), to, query, func(piece *corev1.PodLogResponse) error {
		_, err := out.Write(piece.GetData())
		return err
	})
	if err != nil && !out.begun && r.Context().Err() == nil {
		return err
	}
	if err != nil && r.Context().Err() == nil {
		// The status is out already, and a log that breaks off is still a log.
		s.config.Logger.InfoContext(r.Context(), "log broke off", logkey.Pod(to.Namespace, to.Name), logkey.Err(err))
	}
	out.begin()
	return nil
}

// text is a body of plain text, begun by its first bytes.
type text struct {
	w     http.ResponseWriter
	flush bool
	begun bool
}

func (t *text) begin() {
	if t.begun {
		return
	}
	t.begun = true
	t.w.Header().Set("Content-Type", "text/plain")
	t.w.WriteHeader(http.StatusOK)
}

// Write implements io.Writer.
func (t *text) Write(data []byte) (int, error) {
	t.begin()
	n, err := t.w.Write(data)
	if err == nil && t.flush {
		err = http.NewResponseController(t.w).Flush()
	}
	return n, err
}

// logSocket serves a log as the messages of a WebSocket.
func (s *Streams) logSocket(w http.ResponseWriter, r *http.Request, to grpcapi.Pod, query *corev1.PodLogRequest) error {
	w, r, cancel, err := upgradable(w, r)
	if err != nil {
		return err
	}
	defer cancel()
	if to.Node == "" {
		return apierrors.NewBadRequest(fmt.Sprintf("pod %s does not have a host assigned", to.Name))
	}
	lines, feed := io.Pipe()
	// The log is opened before the answer, so that what is wrong with it can still be said.
	first := make(chan error, 1)
	go func(ctx context.Context) {
		opened := false
		err := s.config.Tunnels.Log(ctx, to, query, func(piece *corev1.PodLogResponse) error {
			if !opened {
				opened = true
				first <- nil
			}
			_, err := feed.Write(piece.GetData())
			return err
		})
		if !opened {
			first <- err
		}
		_ = feed.CloseWithError(err) // nil is the end
	}(r.Context())
	if !query.GetFollow() {
		if err := <-first; err != nil {
			return err
		}
	}
	defer lines.Close()
	reader := wsstream.NewReaderWithLogger(quiet(), lines, true, map[string]wsstream.ReaderProtocolConfig{
		"": {Binary: true}, "binary.k8s.io": {Binary: true}, "base64.binary.k8s.io": {Binary: false},
	})
	if err := reader.Copy(w, r); err != nil && r.Context().Err() == nil && !errors.Is(err, io.EOF) {
		s.config.Logger.DebugContext(r.Context(), "log over a WebSocket ended", logkey.Err(err))
	}
	return nil
}

// logRequest reads and checks the query.
func logRequest(info *request.Info) (*corev1.PodLogRequest, error) {
	q := &corev1.PodLogRequest{}
	q.SetNamespace(info.Namespace)
	q.SetName(info.Name)
	q.SetContainer(info.Query.Get("container"))
	q.SetFollow(flag(info, "follow"))
	q.SetPrevious(flag(info, "previous"))
	q.SetTimestamps(flag(info, "timestamps"))
	var errs field.ErrorList
	number := func(name string, least int64, words string, set func(int64)) error {
		text := info.Query.Get(name)
		if text == "" {
			return nil
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return apierrors.NewBadRequest(fmt.Sprintf("%s: %q is no whole number", name, text))
		}
		if n < least {
			errs = append(errs, field.Invalid(field.NewPath(name), n, words))
		}
		set(n)
		return nil
	}
	if err := errors.Join(
		number("tailLines", 0, "must be greater than or equal to 0", q.SetTailLines),
		number("limitBytes", 1, "must be greater than 0", q.SetLimitBytes),
		number("sinceSeconds", 1, "must be greater than 0", q.SetSinceSeconds),
	); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if text := info.Query.Get("sinceTime"); text != "" {
		at, err := time.Parse(time.RFC3339Nano, text)
		if err != nil {
			return nil, apierrors.NewBadRequest(fmt.Sprintf("sinceTime: %q is no time in RFC 3339", text))
		}
		seconds, nanos := at.Unix(), int32(at.Nanosecond())
		q.SetSinceTime(metav1.Time_builder{Seconds: &seconds, Nanos: &nanos}.Build())
		if q.HasSinceSeconds() {
			errs = append(errs, field.Forbidden(field.NewPath(""), "at most one of `sinceTime` or `sinceSeconds` may be specified"))
		}
	}
	// A backend whose certificate could be looked at there is none: insecureSkipTLSVerifyBackend changes nothing.
	switch stream := info.Query.Get("stream"); stream {
	case "", "All":
	case "Stdout", "Stderr":
		q.SetStream(stream)
		if q.HasTailLines() {
			errs = append(errs, field.Forbidden(field.NewPath(""), "`tailLines` and specific `stream` are mutually exclusive for now"))
		}
	default:
		errs = append(errs, field.NotSupported(field.NewPath("stream"), stream, []string{"All", "Stderr", "Stdout"}))
	}
	if len(errs) > 0 {
		return nil, apierrors.NewInvalid(logOptions, info.Name, errs)
	}
	return q, nil
}
