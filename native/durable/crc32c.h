// CRC32C (Castagnoli, polynomial 0x1EDC6F41, reflected), as iSCSI (RFC 3720) and ext4 have it.
#pragma once
#include <cstddef>
#include <cstdint>

namespace satrap {

// The CRC of `crc`'s bytes followed by these; 0 is that of none. Thread-safe. Uses the processor's
// instruction where there is one; the result is the same.
uint32_t crc32c(uint32_t crc, const void* data, size_t size);

// The same without that instruction: what other processors run, and what tests compare with.
uint32_t crc32c_portable(uint32_t crc, const void* data, size_t size);

}  // namespace satrap
