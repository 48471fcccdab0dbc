package failure

// Flags are Envoy's response flags.
type Flags uint32

const (
	UH    Flags = 1 << iota // no healthy upstream
	UF                      // upstream connection failure
	UO                      // upstream overflow (circuit breaker)
	NR                      // no route found
	URX                     // upstream retry limit exceeded
	NC                      // no cluster found
	DT                      // duration timeout
	DC                      // downstream connection termination
	LR                      // connection local reset
	LH                      // local service failed health check
	UT                      // upstream request timeout
	UR                      // upstream remote reset
	UC                      // upstream connection termination
	UPE                     // upstream protocol error
	DPE                     // downstream protocol error
	RL                      // local rate limit
	UAEX                    // denied by external or role-based authorization
	SI                      // stream idle timeout
	IH                      // invalid envoy headers
	UMSDR                   // upstream max stream duration reached
	OM                      // overload manager
	DR                      // downstream remote reset
)

var flagNames = [...]string{"UH", "UF", "UO", "NR", "URX", "NC", "DT", "DC", "LR", "LH", "UT", "UR", "UC", "UPE", "DPE",
	"RL", "UAEX", "SI", "IH", "UMSDR", "OM", "DR"}

// Append writes the flags as access logs print them: "UF,URX", or "-".
func (f Flags) Append(dst []byte) []byte {
	if f == 0 {
		return append(dst, '-')
	}
	first := true
	for i, n := range flagNames {
		if f&(1<<i) != 0 {
			if !first {
				dst = append(dst, ',')
			}
			dst, first = append(dst, n...), false
		}
	}
	return dst
}

// Has says whether the flag with that short name ("UH") is set.
func (f Flags) Has(name string) bool {
	for i, n := range flagNames {
		if n == name {
			return f&(1<<i) != 0
		}
	}
	return false
}
