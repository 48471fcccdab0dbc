package jwtauthn

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"google.golang.org/protobuf/proto"

	"sallyport/sidecar/filter/filtertest"
)

func TestPlacesOfTokens(t *testing.T) {
	token := sign(t, jose.RS256, "rsa", claims())
	other := sign(t, jose.RS256, "rsa", claims("sub", "bob"))
	const own, prefixed = `"from_headers":[{"name":"X-Token"}]`, `"from_headers":[{"name":"X-Token","value_prefix":"jwt="}]`
	nine := func(last string) (h []string) {
		for range maxTokens {
			h = append(h, "x-token", token)
		}
		return append(h, "x-token", last)
	}
	for name, c := range map[string]struct {
		provider, path string
		headers        []string
		pass           bool
		left           string // the path afterwards
	}{
		"access_token parameter":             {"", "/x?a=1&access_token=" + token + "&b=2", nil, true, "/x?a=1&b=2"},
		"only parameter":                     {"", "/x?access_token=" + token, nil, true, "/x"},
		"parameter with an escaped name":     {"", "/x?a=%41+&access%5Ftoken=" + token + "&b", nil, true, "/x?a=%41+&b"},
		"escaped name and a bad token":       {"", "/?access%5Ftoken=x.y.z", bearer(token), false, ""},
		"every letter escaped":               {"", "/?%61%63cess_toke%6e=x.y.z", bearer(token), false, ""},
		"parameter with an escaped value":    {"", "/?access_token=" + strings.ReplaceAll(token, ".", "%2E"), nil, true, "/"},
		"parameter twice, both good":         {"", "/?access_token=" + token + "&access_token=" + other, nil, true, "/"},
		"parameter twice, the second bad":    {"", "/?access_token=" + token + "&access_token=x.y.z", nil, false, ""},
		"parameter twice, the first bad":     {"", "/?access_token=x.y.z&access%5ftoken=" + token, nil, false, ""},
		"parameter without a value":          {"", "/?access_token", bearer(token), false, ""},
		"parameter behind a semicolon":       {"", "/?a=1;access_token=" + token, bearer(token), false, ""},
		"escaped, behind two semicolons":     {"", "/?a=1;b;access%5ftoken=x", bearer(token), false, ""},
		"token and a semicolon":              {"", "/?access_token=" + token + ";a=1", nil, false, ""},
		"parameter of a longer name":         {"", "/?access_token2=x&xaccess_token=y&access_toke=z", bearer(token), true, "/?access_token2=x&xaccess_token=y&access_toke=z"},
		"escaped separator is none":          {"", "/?a=1%26access_token=x", bearer(token), true, "/?a=1%26access_token=x"},
		"broken escape in a name":            {"", "/?access%5token=x&access%=y", bearer(token), true, "/?access%5token=x&access%=y"},
		"own header":                         {own, "/", []string{"x-token", token}, true, "/"},
		"own header in two lines":            {own, "/", []string{"x-token", token, "x-token", other}, true, "/"},
		"own header, the second line bad":    {own, "/", []string{"x-token", token, "x-token", "x.y.z"}, false, ""},
		"own header, the first line bad":     {own, "/", []string{"x-token", "x.y.z", "x-token", token}, false, ""},
		"own header, an empty line":          {own, "/", []string{"x-token", token, "x-token", ""}, false, ""},
		"own header, not the default":        {own, "/", bearer(token), false, "/"},
		"own header, more lines than may be": {own, "/", nine(token), false, ""},
		"the last of them bad":               {own, "/", nine("x.y.z"), false, ""},
		"own known header":                   {`"from_headers":[{"name":"Referer"}]`, "/", []string{"referer", token}, true, "/"},
		"prefix":                             {prefixed, "/", []string{"x-token", `a; jwt="` + token}, true, "/"},
		"prefix, more behind the token":      {prefixed, "/", []string{"x-token", `a; jwt="` + token + `"; b`}, false, ""},
		"prefix, the second line bad":        {prefixed, "/", []string{"x-token", "jwt=" + token, "x-token", "jwt=x.y.z"}, false, ""},
		"prefix, a line without":             {prefixed, "/", []string{"x-token", "a=b", "x-token", "jwt=" + token}, true, "/"},
		"prefix in another case":             {prefixed, "/", []string{"x-token", "JWT=" + token}, false, ""},
		"own prefix of Authorization":        {`"from_headers":[{"name":"Authorization","value_prefix":"Token "}]`, "/", []string{"authorization", "token " + token}, true, "/"},
		"Authorization without a prefix":     {`"from_headers":[{"name":"Authorization"}]`, "/", []string{"authorization", token}, true, "/"},
		"own parameter":                      {`"from_params":["t"],"forward":true`, "/?t=" + token, nil, true, "/?t=" + token},
		"two parameters, one bad":            {`"from_params":["t","u"]`, "/?t=" + token + "&u=x.y.z", nil, false, ""},
		"cookie":                             {`"from_cookies":["session"]`, "/", []string{"cookie", "a=b; session=" + token}, true, "/"},
		"cookie, a bad one in a second line": {`"from_cookies":["session"]`, "/", []string{"cookie", "session=" + token, "cookie", "session=x.y.z"}, false, ""},
		"cookie, a bad one in the same line": {`"from_cookies":["session"]`, "/", []string{"cookie", "session=" + token + `; session="x.y.z"`}, false, ""},
		"two places, one with a bad token":   {"", "/?access_token=x.y.z", bearer(token), false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			res := rig(t, config(t, c.provider, ""), nil).Get(t, c.path, c.headers...)
			if res.Passed() != c.pass {
				t.Fatalf("%d %q", res.Status, res.Body)
			}
			if got := string(res.Request.Lookup(":path")); c.pass && got != c.left {
				t.Errorf("path is %q, want %q", got, c.left)
			}
			if c.pass && res.Request.Lookup("x-token") != nil {
				t.Error("the token was not removed")
			}
		})
	}
}

// TestPlacesAreLookedAtOnceForAllProvidersThatHaveThem: and no more of what is there is kept than is looked at.
func TestPlacesAreLookedAtOnceForAllProvidersThatHaveThem(t *testing.T) {
	m := config(t, "", `"rules":[{"match":{"prefix":"/"},"requires":{"allow_missing":{}}}]`)
	for i := range 20 {
		p := proto.CloneOf(m.Providers["p"])
		if i%2 == 1 {
			p.FromParams = []string{"t"}
		}
		m.Providers[fmt.Sprint("p", i)] = p
	}
	f, _ := filtertest.Compile(t, Kind, m)
	for path, want := range map[string]status{
		"/?" + strings.Repeat("a&;", 20<<10):           ok,
		"/?" + strings.Repeat("t=1&", 10<<10):          verificationFailed,
		"/?" + strings.Repeat("a;t=1;", 10<<10):        verificationFailed,
		"/?" + strings.Repeat("access_token=&", 4<<10): verificationFailed,
	} {
		e := &evaluation{}
		e.begin(filtertest.Head("GET", path), time.Unix(now, 0))
		if st := f.(*Filter).rules[0].needs.evaluate(e); (st == ok) != (want == ok) {
			t.Errorf("%.20s…: %s", path, texts[st])
		}
		if len(e.looked) > 2 || len(e.found) > 2*(maxTokens+1) {
			t.Errorf("%.20s…: looked %d times, found %d", path, len(e.looked), len(e.found))
		}
	}
}

// FuzzParam asserts that a name is found however its characters are escaped, and no other is.
func FuzzParam(f *testing.F) {
	f.Add("access_token", uint64(0))
	f.Add("access_token", ^uint64(0))
	f.Add("a%b&;=", uint64(5))
	f.Fuzz(func(t *testing.T, name string, escape uint64) {
		var b strings.Builder
		for i := range len(name) {
			if escape>>(i%64)&1 != 0 || strings.IndexByte("%&;=", name[i]) >= 0 {
				const hex = "0123456789abcdef"
				b.WriteString("%" + string(hex[name[i]>>4]) + string(hex[name[i]&15]))
				continue
			}
			b.WriteByte(name[i])
		}
		p := places{params: []string{name}}
		list := p.inQuery(nil, maxTokens, []byte("a&"+b.String()+"=%41;&"+b.String()+"x=c"))
		if name == "a" || name == "" {
			return // it is there in another way
		}
		if len(list) != 1 || string(list[0].raw) != "A;" {
			t.Errorf("%q as %q: %q", name, b.String(), list)
		}
	})
}
