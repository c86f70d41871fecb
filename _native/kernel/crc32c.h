/* CRC-32C (Castagnoli), as VHDX uses it: polynomial 0x1EDC6F41, reflected, starting and ending inverted (RFC 3720,
 * appendix B.4; MS-VHDX 2.2.2).
 *
 * Pure, without state; any number of threads.
 */
#ifndef HOMEWARD_CRC32C_H
#define HOMEWARD_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* The checksum of `length` bytes that follow on bytes whose checksum is `before` (0: none). */
uint32_t crc32c(const uint8_t *data, size_t length, uint32_t before);

#endif
