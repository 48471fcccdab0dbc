package catalog

import (
	"context"
	"sort"
)

// DefaultNamespace is where a service lives that names no namespace.
const DefaultNamespace = "default"

// Source tells what runs. Run calls publish, always from one goroutine, with each new Catalog, first when everything was
// read once. While the source of truth is away nothing is published: the last Catalog stays in force. Run returns when ctx
// ends, with its error, and otherwise only where it can never work.
type Source interface {
	Run(ctx context.Context, publish func(*Catalog)) error
}

var (
	_ Source = (*File)(nil)
	_ Source = (*Consul)(nil)
)

// precedence is Consul's order of intentions: 9 where source and destination are exact, down to 1 where both are any
// service of any namespace. The destination counts before the source.
// https://developer.hashicorp.com/consul/docs/secure-mesh/intention#precedence-and-match-order
func precedence(source, destination Name) int {
	return 3*exactness(destination) + exactness(source) + 1
}

// exactness is 2 for a service, 1 for any service of a namespace, 0 for any.
func exactness(n Name) int {
	switch {
	case n.Namespace == "*":
		return 0
	case n.Service == "*":
		return 1
	}
	return 2
}

// sortIntentions puts the highest precedence first; equals in order of their names, so that equal catalogs are equal.
func sortIntentions(list []Intention) {
	sort.SliceStable(list, func(i, j int) bool {
		a, b := list[i], list[j]
		if a.Precedence != b.Precedence {
			return a.Precedence > b.Precedence
		}
		if a.Destination != b.Destination {
			return a.Destination.String() < b.Destination.String()
		}
		return a.Source.String() < b.Source.String()
	})
}
