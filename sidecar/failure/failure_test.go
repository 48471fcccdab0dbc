package failure

import (
	"testing"

	"google.golang.org/grpc/codes"
)

func TestEveryKindHasAnEntry(t *testing.T) {
	for k := None + 1; k < kinds; k++ {
		f := Of(k)
		if f.Status < 400 || f.Status > 599 || f.GRPC == codes.OK || f.Details == "" {
			t.Errorf("kind %d: %+v", k, f)
		}
		for _, h := range f.Headers {
			if h[0] == "" || h[1] == "" {
				t.Errorf("%s: an empty header", f.Details)
			}
		}
	}
}

func TestFlagsAsLogsPrintThem(t *testing.T) {
	for f, want := range map[Flags]string{0: "-", UH: "UH", UF | URX: "UF,URX", DR: "DR", UH | DR: "UH,DR"} {
		if got := string(f.Append(nil)); got != want {
			t.Errorf("%d is %q, want %q", f, got, want)
		}
	}
	if !(UF | URX).Has("URX") || (UF | URX).Has("UO") || UF.Has("XX") {
		t.Error("Has is wrong")
	}
	for i, n := range flagNames {
		if got := string(Flags(1 << i).Append(nil)); got != n {
			t.Errorf("flag %d is %q, want %q", i, got, n)
		}
	}
	if DR != 1<<(len(flagNames)-1) {
		t.Errorf("%d names for another number of flags", len(flagNames))
	}
}

func TestAGRPCStatusForEachHTTPStatus(t *testing.T) {
	for status, want := range map[int]codes.Code{200: codes.Unknown, 400: codes.Internal, 401: codes.Unauthenticated, 403: codes.PermissionDenied,
		404: codes.Unimplemented, 429: codes.Unavailable, 500: codes.Unknown, 502: codes.Unavailable, 503: codes.Unavailable, 504: codes.Unavailable} {
		if got := GRPCStatus(status); got != want {
			t.Errorf("%d is %s, want %s", status, got, want)
		}
	}
}
