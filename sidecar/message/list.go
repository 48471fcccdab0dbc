package message

// CutElement cuts the first element off the comma-separated value of a list
// field (RFC 9110 §5.6.1), without the whitespace around it. Elements may be empty.
func CutElement(list []byte) (element, rest []byte) {
	for i, c := range list {
		if c == ',' {
			return Trim(list[:i]), list[i+1:]
		}
	}
	return Trim(list), nil
}
