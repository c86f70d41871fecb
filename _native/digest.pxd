from libc.stdint cimport uint8_t, uint64_t


cdef extern from "digest.h" nogil:
    enum:
        DIGEST_BYTES
        DIGEST_SECRET_BYTES
        SECTOR_BYTES
        BLOCK_BYTES
        BLOCK_SECTORS
        SPAN_BLOCKS
        FANOUT
        DIGEST_VARIANTS_MAX
    ctypedef struct digest_kernel:
        const char *name
    size_t piece_count(size_t length, size_t unit)


cdef extern from "place.h" nogil:
    ctypedef struct file_place:
        int descriptor
        uint64_t start


# Lent to the other kernels, so that hashing is compiled and chosen in one place.
cdef const digest_kernel *best_kernel() noexcept nogil


cdef inline const uint8_t *start(const uint8_t[::1] view) noexcept:
    return &view[0] if view.shape[0] > 0 else NULL


cdef inline uint8_t *start_out(uint8_t[::1] view) noexcept:
    return &view[0] if view.shape[0] > 0 else NULL


cdef inline const uint8_t *secret_start(const uint8_t[::1] secret) except NULL:
    if secret.shape[0] != DIGEST_SECRET_BYTES:
        raise ValueError(f"a secret has {DIGEST_SECRET_BYTES} bytes, not {secret.shape[0]}")
    return &secret[0]


cdef inline int check_bytes(str name, size_t found, size_t expected) except -1:
    if found != expected:
        raise ValueError(f"{name} has {found} bytes, expected {expected}")
    return 0


cdef inline file_place place(int descriptor, uint64_t first, uint64_t length) except *:
    """The place; ValueError where it, or `length` bytes there, would lie beyond what a file can have."""
    cdef uint64_t end = <uint64_t>1 << 62
    if first > end or length > end:
        raise ValueError("a place lies within the first 4 EiB of a file")
    return file_place(descriptor, first)


cdef inline size_t span_blocks(size_t length, uint64_t blocks) except? 0:
    """How many blocks a span of `length` bytes has; ValueError if it is too long or `blocks` names one beyond."""
    if length > <size_t>SPAN_BLOCKS * BLOCK_BYTES:
        raise ValueError(f"a span has at most {SPAN_BLOCKS * BLOCK_BYTES} bytes, not {length}")
    cdef size_t count = piece_count(length, BLOCK_BYTES)
    if count < SPAN_BLOCKS and blocks >> count:
        raise ValueError(f"the bitmap {blocks:#x} names blocks beyond the {count} of the span")
    return count


cdef inline int bits(uint64_t bitmap) noexcept nogil:
    cdef int count = 0
    while bitmap:
        bitmap &= bitmap - 1
        count += 1
    return count
