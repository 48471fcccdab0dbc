package message

// IsGRPC says whether a head is gRPC's, by its content type.
func IsGRPC(h *Head) bool {
	const grpc = "application/grpc"
	ct := h.Get(ContentType)
	return len(ct) >= len(grpc) && string(ct[:len(grpc)]) == grpc && (len(ct) == len(grpc) || ct[len(grpc)] == '+' || ct[len(grpc)] == ';')
}
