package packet

import (
	"encoding/binary"

	"github.com/google/gopacket/layers"
)

// maxExtensions bounds the extension headers that are skipped. RFC 8200 (4.1) recommends at
// most six of these in one packet. Recent kernels stop at 12 (IP6_MAX_EXT_HDRS_CNT), and so
// does skipExtensions, so that no packet that the kernel delivers is denied only for its
// number of headers.
const maxExtensions = 12

// minExtensionLen is the length of the shortest extension header, in bytes
// (RFC 8200, 4).
const minExtensionLen = 8

// skipExtensions skips the IPv6 extension headers at the beginning of s; the parameter "next"
// is the type of the first header there. It returns true, and the type and the span of the
// first header after them. If it cannot reach that header, it returns false, and the type of
// the header at which it stopped. That header is cut off, is in another fragment, or exceeds
// maxExtensions.
//
// It skips exactly the headers that the kernel's connection tracking skips
// (ipv6_skip_exthdr), including the Authentication Header. If it skipped more, it would find
// a port where connection tracking finds none, and the verdict about that port would be
// remembered for a connection without a port. The walk is written here because gopacket
// decodes fragment and authentication headers only in packets that it allocates.
func skipExtensions(next layers.IPProtocol, s span) (layers.IPProtocol, span, bool) {
	for range maxExtensions {
		if !isExtension(next) {
			return next, s, true
		}
		if len(s.captured) < minExtensionLen {
			return next, s, false
		}
		header := s.captured
		rest, whole := s.skip(extensionLen(next, header))
		if !whole {
			return next, s, false
		}
		first := next != layers.IPProtocolIPv6Fragment || fragmentOffset(header) == 0
		next, s = layers.IPProtocol(header[0]), rest
		if !first {
			return next, s, false
		}
	}
	return next, s, !isExtension(next)
}

// isExtension reports whether a header of this type is skipped.
func isExtension(next layers.IPProtocol) bool {
	switch next {
	case layers.IPProtocolIPv6HopByHop, layers.IPProtocolIPv6Routing, layers.IPProtocolIPv6Fragment,
		layers.IPProtocolIPv6Destination, layers.IPProtocolAH:
		return true
	}
	return false
}

// extensionLen returns the length of an extension header in bytes. A fragment header always has
// 8 bytes. For all others, the second byte n determines the length: 8+4*n bytes for an
// Authentication Header (RFC 4302, 2.2), otherwise 8+8*n bytes (RFC 8200, 4.3). header must
// have at least minExtensionLen bytes.
func extensionLen(next layers.IPProtocol, header []byte) int {
	switch next {
	case layers.IPProtocolIPv6Fragment:
		return 8
	case layers.IPProtocolAH:
		return 8 + int(header[1])*4
	}
	return 8 + int(header[1])*8
}

// fragmentOffset returns the offset in bytes of a fragment (RFC 8200, 4.5). Only the
// fragment at offset 0 has an upper-layer header.
func fragmentOffset(header []byte) uint16 {
	return binary.BigEndian.Uint16(header[2:]) &^ 7
}
