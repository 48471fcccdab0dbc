package config

import (
	"google.golang.org/protobuf/proto"

	"sallyport/sidecar/config/fields"
)

// Names of package fields as this package uses them.
type (
	// Warning is a field that is set and has no effect.
	Warning = fields.Warning

	report   = fields.Report
	fieldSet = *fields.Set
)

// checkFields reports each field of m, which stands at path, that is set and
// not in the set: as a warning, or as an error where the set refuses it.
func checkFields(r *report, path string, m proto.Message, implemented fieldSet) {
	fields.Check(r, path, m, implemented)
}
