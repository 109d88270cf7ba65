package rawcodec

import (
	"errors"

	"google.golang.org/protobuf/encoding/protowire"
)

var errInvalid = errors.New("the object is not valid protobuf")

// EachField calls f with every field of an encoded message, without decoding it: value is that of length-delimited ones, a view into the message, scalar that of varints. It ends at the first
// error of f, or where the message is not valid.
func EachField(message []byte, f func(number protowire.Number, kind protowire.Type, value []byte, scalar uint64) error) error {
	for len(message) > 0 {
		number, kind, n := protowire.ConsumeTag(message)
		if n < 0 {
			return errInvalid
		}
		message = message[n:]
		var value []byte
		var scalar uint64
		switch kind {
		case protowire.BytesType:
			value, n = protowire.ConsumeBytes(message)
		case protowire.VarintType:
			scalar, n = protowire.ConsumeVarint(message)
		default:
			n = protowire.ConsumeFieldValue(number, kind, message)
		}
		if n < 0 {
			return errInvalid
		}
		message = message[n:]
		if err := f(number, kind, value, scalar); err != nil {
			return err
		}
	}
	return nil
}
