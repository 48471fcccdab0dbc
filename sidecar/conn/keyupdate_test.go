package conn

import (
	"bufio"
	"io"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestKeyUpdate has OpenSSL change its keys, and ask for a change of ours, in
// the middle of the data: crypto/tls's own client cannot (RFC 8446 §4.6.3).
func TestKeyUpdate(t *testing.T) {
	openssl, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	ca := newAuthority(t)
	bothInputs(t, func(t *testing.T) {
		w := worker(t)
		addr := listen(t, w, tlsEcho(ca.server(t)))
		cmd := exec.Command(openssl, "s_client", "-quiet", "-no_ign_eof", "-tls1_3", "-connect", addr.IP.String())
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		kill := time.AfterFunc(20*time.Second, func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
		lines := bufio.NewReader(out)
		// K: update, and ask the peer to; k: update alone. As commands they are not sent.
		for _, line := range []string{"one", "K", "two", "k", "three", "K", "K", "four"} {
			if _, err := io.WriteString(in, line+"\n"); err != nil {
				t.Fatal(err)
			}
			if strings.EqualFold(line, "k") {
				// s_client takes a command only when it is a read of its own.
				<-time.After(100 * time.Millisecond)
				continue
			}
			got, err := lines.ReadString('\n')
			if err != nil || got != line+"\n" {
				t.Fatalf("got %q, %v, want %q", got, err, line)
			}
		}
		in.Close()
		_ = cmd.Wait()
	})
}
