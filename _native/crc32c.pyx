"""CRC-32C; the contract is kernel/crc32c.h."""

from libc.stdint cimport uint8_t, uint32_t


cdef extern from "crc32c.h" nogil:
    uint32_t crc32c_c "crc32c"(const uint8_t *data, size_t length, uint32_t before)


def crc32c(const uint8_t[::1] data not None, uint32_t before = 0):
    cdef size_t length = data.shape[0]
    cdef uint32_t found
    if length == 0:
        return before
    cdef const uint8_t *start = &data[0]
    with nogil:
        found = crc32c_c(start, length, before)
    return found
