package webhook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"time"
	"unicode/utf8"
)

const (
	// maxBody bounds a review. A pod is at most 1.5 MiB in etcd (its --max-request-bytes), and somewhat longer as JSON, by the
	// names of its fields; a review of its creation holds it once, and a few KiB beside.
	maxBody = 2 << 20
	// bodyTimeout is for a body to arrive: API servers send it at once.
	bodyTimeout = 2 * time.Second
)

// steps are the first sizes of the buffer for a body, later ones are double. Room for these is waited for: the first two
// are small enough that all places have them (places × 9 KiB is less than the room for bodies), so that those who wait for
// the third, in which most reviews fit, wait for others who read and not for each other. For more nobody waits.
var steps = [...]int{1 << 10, 8 << 10, 64 << 10}

// readBody takes the body of a request that has the form of a review's. Room for it is taken as it arrives: what a client
// has only announced is not there yet.
func readBody(w http.ResponseWriter, r *http.Request, c *claim) ([]byte, error) {
	if r.Method != http.MethodPost {
		return nil, &badRequest{http.StatusMethodNotAllowed, "admission reviews are POSTed, not " + quote(r.Method)}
	}
	if mt, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mt != "application/json" {
		return nil, &badRequest{http.StatusUnsupportedMediaType, "Content-Type " + quote(r.Header.Get("Content-Type")) + ": must be application/json"}
	}
	tooLarge := &badRequest{http.StatusRequestEntityTooLarge, fmt.Sprintf("the review is larger than %d bytes", maxBody)}
	if r.ContentLength > maxBody {
		return nil, tooLarge
	}
	end := time.Now().Add(bodyTimeout)
	ctx, cancel := context.WithDeadline(r.Context(), end)
	defer cancel()
	http.NewResponseController(w).SetReadDeadline(end) // of net/http's own writers; the ReadTimeout stands behind it
	body, waited, err := fill(ctx, http.MaxBytesReader(w, r.Body, maxBody), c)
	var large *http.MaxBytesError
	switch {
	case errors.As(err, &large):
		return nil, tooLarge
	case errors.Is(err, os.ErrDeadlineExceeded) && waited > bodyTimeout/2:
		return nil, errNoRoom
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, &badRequest{http.StatusRequestTimeout, fmt.Sprintf("the review did not arrive within %v", bodyTimeout)}
	case errors.Is(err, errNoRoom):
		return nil, err
	case err != nil:
		return nil, &badRequest{http.StatusBadRequest, "the review was cut off: " + err.Error()}
	case !utf8.Valid(body): // RFC 8259 §8.1; each such byte would become a character of three
		return nil, &badRequest{http.StatusBadRequest, "the body is not UTF-8"}
	}
	return body, nil
}

// fill reads all of r into a buffer, for which room is taken as it grows. It returns also for how long it waited for room.
func fill(ctx context.Context, r io.Reader, c *claim) (body []byte, waited time.Duration, err error) {
	for step := 0; ; step++ {
		size := 2 * cap(body)
		if step < len(steps) {
			size = steps[step]
			begin := time.Now()
			err = c.take(ctx, bodies, size)
			waited += time.Since(begin)
		} else {
			if size >= maxBody {
				size = maxBody + 1 // to see whether more comes
			}
			err = c.try(bodies, size)
		}
		if err != nil {
			return nil, waited, err
		}
		body = append(make([]byte, 0, size), body...) // the one before is counted on: it is there until the collector comes
		for len(body) < cap(body) {
			n, err := r.Read(body[len(body):cap(body)])
			if body = body[:len(body)+n]; err == io.EOF {
				return body, waited, nil
			} else if err != nil {
				return nil, waited, err
			}
		}
	}
}
