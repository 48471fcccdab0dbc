package call

import (
	"testing"

	"sallyport/sidecar/stream/streamtest"
	"sallyport/sidecar/upstream"
)

// TestACallMayBeCanceledAtAnyPoint: nothing is told after that, and nothing stays counted.
func TestACallMayBeCanceledAtAnyPoint(t *testing.T) {
	const response = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-t: u\r\n\r\n"
	for _, body := range []string{"", "body"} {
		for cut := -3; cut < len(response); cut++ {
			r := streamtest.New(t, 1)
			r.Cluster.HTTP1.EnableTrailers = true
			r.Publish()
			r.Worker.Step(0)
			c := New(r.Worker, r.Clusters.Ref("backend"), &Request{Body: []byte(body)})
			if cut == -3 {
				c.Cancel() // before it began
				r.Settle()
				continue
			}
			c.Start(func() { t.Errorf("body %q, canceled at %d: done was called", body, cut) })
			if cut >= -1 {
				l := r.Hosts[0].Accept()
				l.Head()
				if cut >= 0 {
					l.Send(response[:cut])
					r.Settle()
				}
			}
			c.Cancel()
			c.Cancel()
			r.Settle()
			for _, stat := range []int{upstream.StatRqActive, upstream.StatRqPendingActive} {
				if n := r.ClusterStat(stat); n != 0 {
					t.Errorf("body %q, canceled at %d: statistic %d is %d", body, cut, stat, n)
				}
			}
		}
	}
}
