package allocator

import (
	"math/big"
	"net/netip"
)

// addressAt returns the nth address of a range.
func addressAt(network netip.Prefix, n int) netip.Addr {
	sum := new(big.Int).Add(new(big.Int).SetBytes(network.Addr().AsSlice()), big.NewInt(int64(n)))
	bytes := make([]byte, network.Addr().BitLen()/8)
	sum.FillBytes(bytes)
	address, _ := netip.AddrFromSlice(bytes)
	return address
}

// offsetOf is the inverse of addressAt, false for addresses that are not among the first size of the range.
func offsetOf(network netip.Prefix, address netip.Addr, size int) (int, bool) {
	if !network.Contains(address) {
		return 0, false
	}
	difference := new(big.Int).Sub(new(big.Int).SetBytes(address.AsSlice()), new(big.Int).SetBytes(network.Addr().AsSlice()))
	if !difference.IsInt64() || difference.Int64() >= int64(size) {
		return 0, false
	}
	return int(difference.Int64()), true
}
