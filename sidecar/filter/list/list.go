// Package list names the filters that there are. Adding one takes its own
// package and one line here.
package list

import (
	"sort"

	"sallyport/sidecar/filter"
	"sallyport/sidecar/filter/cors"
	"sallyport/sidecar/filter/jwtauthn"
	"sallyport/sidecar/filter/localratelimit"
	"sallyport/sidecar/filter/rbac"
)

var kinds = []*filter.Kind{
	cors.Kind,
	jwtauthn.Kind,
	localratelimit.Kind,
	rbac.Kind,
	rbac.NetworkKind,
}

// HTTP returns the HTTP filter with that type URL, or nil.
func HTTP(typeURL string) *filter.Kind {
	return find(func(k *filter.Kind) bool { return k.Compile != nil && k.TypeURL == typeURL })
}

// Network returns the network filter with that type URL, or nil.
func Network(typeURL string) *filter.Kind {
	return find(func(k *filter.Kind) bool { return k.CompileNetwork != nil && k.TypeURL == typeURL })
}

// Override returns the filter that a value of typed_per_filter_config with that type URL is for, or nil.
func Override(typeURL string) *filter.Kind {
	return find(func(k *filter.Kind) bool { return k.CompileRoute != nil && k.RouteTypeURL == typeURL })
}

func find(is func(*filter.Kind) bool) *filter.Kind {
	for _, k := range kinds {
		if is(k) {
			return k
		}
	}
	return nil
}

// Names returns the type URLs of all HTTP filters (or, if network, of all
// network filters), sorted, for messages that say what is allowed.
func Names(network bool) (urls []string) {
	for _, k := range kinds {
		if (k.CompileNetwork != nil) == network {
			urls = append(urls, k.TypeURL)
		}
	}
	sort.Strings(urls)
	return urls
}

// Overrides returns the type URLs of all overrides, sorted.
func Overrides() (urls []string) {
	for _, k := range kinds {
		if k.CompileRoute != nil {
			urls = append(urls, k.RouteTypeURL)
		}
	}
	sort.Strings(urls)
	return urls
}
