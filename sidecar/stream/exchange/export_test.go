package exchange

import "sallyport/sidecar/message"

// Wrap puts something between the exchange and its codec.
func (x *Exchange) Wrap(f func(message.Sender) message.Sender) { x.up.Sender = f(x.up.Sender) }
