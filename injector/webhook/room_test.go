package webhook

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// announce begins the POST of a review of a length.
func announce(t *testing.T, c net.Conn, length int) {
	t.Helper()
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: injector\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n", Path, length); err != nil {
		t.Fatal(err)
	}
}

// postTo sends a review and returns the status, and how long it took.
func postTo(t *testing.T, c *http.Client, body string) (int, time.Duration) {
	t.Helper()
	begin := time.Now()
	resp, err := c.Post("http://injector"+Path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, time.Since(begin)
}

func statusOf(t *testing.T, c net.Conn) int {
	t.Helper()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode
}

// TestWhoSendsNothingHoldsNothing: as many as one peer may have at work announce the longest review, and one other comes.
func TestWhoSendsNothingHoldsNothing(t *testing.T) {
	v := newReviewer(false)
	bubble(t, v, func(t *testing.T, p *pipes) {
		begin := time.Now()
		var silent []net.Conn
		for range peerPlaces - 1 {
			c := p.dial(1)
			announce(t, c, maxBody)
			silent = append(silent, c)
		}
		synctest.Wait()
		if code, waited := postTo(t, client(t, p, 1), reviewOf(podJSON)); code != 200 || waited != 0 {
			t.Errorf("%d after %v", code, waited)
		}
		for _, c := range silent {
			if code := statusOf(t, c); code != 408 || time.Since(begin) != bodyTimeout {
				t.Fatalf("%d after %v, want 408", code, time.Since(begin))
			}
		}
	})
}

// TestWhoStopsSendingKeepsNobodyOut: one peer has all the room for bodies that it gets; others are answered, and it has
// room again soon.
func TestWhoStopsSendingKeepsNobodyOut(t *testing.T) {
	bubble(t, newReviewer(false), func(t *testing.T, p *pipes) {
		for range 100 {
			c := p.dial(1)
			announce(t, c, maxBody)
			go c.Write([]byte(strings.Repeat(" ", 32<<10)))
		}
		synctest.Wait()
		if code, waited := postTo(t, client(t, p, 2), reviewOf(podJSON)); code != 200 || waited != 0 {
			t.Errorf("another peer: %d after %v", code, waited)
		}
		large := reviewOf(podOf("", `,"containers":[{"name":"a","args":["`+strings.Repeat("x", 100_000)+`"]}]`))
		if code, _ := postTo(t, client(t, p, 1), large); code != 503 {
			t.Errorf("the peer itself: %d, want 503", code)
		}
		if code, waited := postTo(t, client(t, p, 1), large); code != 200 || waited != 0 {
			t.Errorf("when the others' time is over: %d after %v", code, waited)
		}
	})
}

// TestAnswersThatNobodyTakes: their room is free again soon.
func TestAnswersThatNobodyTakes(t *testing.T) {
	v := newReviewer(false)
	v.inject = func(p *corev1.Pod, _ string) (Result, error) {
		p.Annotations = map[string]string{"long": strings.Repeat("x", 100_000)}
		return Result{Pod: p}, nil
	}
	bubble(t, v, func(t *testing.T, p *pipes) {
		body := reviewOf(podJSON)
		c := p.dial(1)
		announce(t, c, len(body))
		go io.WriteString(c, body)
		synctest.Wait()
		if v.room[places].TryAcquire(maxPlaces) {
			t.Fatal("it is not being answered")
		}
		time.Sleep(writeTimeout)
		synctest.Wait()
		if !hasEnded(t, c) {
			t.Error("still connected")
		}
		for k, n := range []int64{maxPlaces, maxBodies, maxWork} {
			if !v.room[k].TryAcquire(n) {
				t.Errorf("kind %d: it holds room", k)
			}
		}
	})
}

// TestReviewsWaitForRoom: for a while, and the large ones not at all.
func TestReviewsWaitForRoom(t *testing.T) {
	large := reviewOf(podOf("", `,"containers":[{"name":"a","args":["`+strings.Repeat("x", 100_000)+`"]}]`))
	for name, tc := range map[string]struct {
		kind   kind
		taken  int64 // of it, by others
		body   string
		code   int
		waited time.Duration
	}{
		"no place":                   {places, maxPlaces, reviewOf(podJSON), 503, 0},
		"one place":                  {places, maxPlaces - 1, reviewOf(podJSON), 200, 0},
		"no room for a body":         {bodies, maxBodies - 1<<10, strings.Repeat(" ", 1<<10) + reviewOf(podJSON), 503, bodyTimeout},
		"room for a small body":      {bodies, maxBodies - 1<<10, reviewOf(podJSON), 200, 0},
		"no room for a large body":   {bodies, maxBodies - 100<<10, large, 503, 0},
		"no room to answer":          {work, maxWork - 10_000, reviewOf(podJSON), 503, workTimeout},
		"room to answer":             {work, maxWork - 1<<20, reviewOf(podJSON), 200, 0},
		"no room for a large answer": {work, maxWork - 1<<20, large, 503, workTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				v := newReviewer(false)
				if !v.room[tc.kind].TryAcquire(tc.taken) {
					t.Fatal("no room")
				}
				begin := time.Now()
				w := post(v, strings.NewReader(tc.body))
				if waited := time.Since(begin); w.Code != tc.code || waited != tc.waited {
					t.Errorf("%d after %v, want %d after %v: %s", w.Code, waited, tc.code, tc.waited, w.Body)
				}
				v.room[tc.kind].Release(tc.taken)
				if w := post(v, strings.NewReader(tc.body)); w.Code != 200 {
					t.Errorf("later: %d %s", w.Code, w.Body)
				}
			})
		})
	}
}

// TestOnePeerHasARoomOfItsOwn: what it has used up there it does not wait for in the room of all.
func TestOnePeerHasARoomOfItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v, own := newReviewer(false), newPeerRoom()
		if !own[work].TryAcquire(peerWork) {
			t.Fatal("no room")
		}
		r := httptest.NewRequestWithContext(withRoom(t.Context(), own), http.MethodPost, Path, strings.NewReader(reviewOf(podJSON)))
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		go v.ServeHTTP(w, r)
		synctest.Wait()
		if w := post(v, strings.NewReader(reviewOf(podJSON))); w.Code != 200 {
			t.Errorf("another: %d %s", w.Code, w.Body)
		}
		if !v.room[work].TryAcquire(maxWork) {
			t.Error("it holds room of all")
		}
		v.room[work].Release(maxWork)
		own[work].Release(peerWork)
		if synctest.Wait(); w.Code != 200 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}
