"""Digests of blocks, sectors and tree nodes; the contract is kernel/digest.h."""

from libc.stdint cimport uint8_t, uint64_t


cdef extern from "digest.h" nogil:
    size_t digest_variants(const digest_kernel **list)
    const digest_kernel *digest_best()
    const digest_kernel *digest_named(const char *name)
    bint digest_is_zero(const uint8_t *data, size_t length)
    size_t digest_pieces(const digest_kernel *kernel, const uint8_t *data, size_t length, size_t unit,
                         const uint8_t *secret, uint8_t *digests)
    enum:
        DIGEST_WORK_BYTES
    uint64_t digest_file(const digest_kernel *kernel, file_place place, uint64_t length, uint8_t *work,
                         const uint8_t *secret, uint8_t *digests, size_t *nonzero)
    void digest_span_sectors(const digest_kernel *kernel, const uint8_t *span, size_t length, uint64_t blocks,
                             const uint8_t *secret, uint8_t *digests)


cdef size_t UNIT_BYTES_MIN = 512
cdef size_t UNIT_BYTES_MAX = 1 << 26


cdef const digest_kernel *best_kernel() noexcept nogil:
    return digest_best()


cdef const digest_kernel *named_kernel(str variant) except NULL:
    # A name with a zero byte would end early in C and could pass for another one.
    cdef bytes name = variant.encode("utf-8", "replace")
    cdef const digest_kernel *kernel = NULL
    if b"\0" not in name:
        kernel = digest_named(name)
    if kernel is NULL:
        raise ValueError(f"this CPU offers {', '.join(variants())}, not {variant!r}")
    return kernel


def variants():
    cdef const digest_kernel *offered[DIGEST_VARIANTS_MAX]
    cdef size_t count = digest_variants(offered)
    return tuple([offered[i].name.decode() for i in range(count)])


def is_zero(const uint8_t[::1] data not None):
    cdef const uint8_t *first = start(data)
    cdef size_t length = data.shape[0]
    cdef bint zero
    with nogil:
        zero = digest_is_zero(first, length)
    return zero


def digest_blocks(const uint8_t[::1] data not None, const uint8_t[::1] secret not None, uint8_t[::1] out not None,
                  size_t unit=BLOCK_BYTES, str variant not None="auto"):
    cdef const uint8_t *key = secret_start(secret)
    cdef const digest_kernel *kernel = named_kernel(variant)
    cdef size_t length = data.shape[0]
    if unit < UNIT_BYTES_MIN or unit > UNIT_BYTES_MAX or unit & (unit - 1):
        raise ValueError(f"a unit is a power of two from {UNIT_BYTES_MIN} to {UNIT_BYTES_MAX}, not {unit}")
    check_bytes("out", out.shape[0], piece_count(length, unit) * DIGEST_BYTES)
    cdef const uint8_t *first = start(data)
    cdef uint8_t *digests = start_out(out)
    cdef size_t nonzero
    with nogil:
        nonzero = digest_pieces(kernel, first, length, unit, key, digests)
    return nonzero


WORK_BYTES = DIGEST_WORK_BYTES


def digest_place(int descriptor, uint64_t first, uint64_t length, const uint8_t[::1] secret not None,
                 uint8_t[::1] work not None, uint8_t[::1] out not None):
    cdef file_place found = place(descriptor, first, length)
    cdef const uint8_t *key = secret_start(secret)
    check_bytes("work", work.shape[0], DIGEST_WORK_BYTES)
    check_bytes("out", out.shape[0], piece_count(length, BLOCK_BYTES) * DIGEST_BYTES)
    cdef uint8_t *pieces = start_out(work)
    cdef uint8_t *digests = start_out(out)
    cdef size_t nonzero
    cdef uint64_t done
    with nogil:
        done = digest_file(digest_best(), found, length, pieces, key, digests, &nonzero)
    return done, nonzero


def digest_sectors(const uint8_t[::1] data not None, const uint8_t[::1] secret not None, uint64_t blocks,
                   uint8_t[::1] out not None):
    cdef const uint8_t *key = secret_start(secret)
    cdef size_t length = data.shape[0]
    span_blocks(length, blocks)
    cdef size_t written = <size_t>bits(blocks) * BLOCK_SECTORS * DIGEST_BYTES
    check_bytes("out", out.shape[0], written)
    cdef const uint8_t *first = start(data)
    cdef uint8_t *digests = start_out(out)
    with nogil:
        digest_span_sectors(digest_best(), first, length, blocks, key, digests)
    return written


def fold(const uint8_t[::1] digests not None, const uint8_t[::1] secret not None, uint8_t[::1] out not None):
    cdef const uint8_t *key = secret_start(secret)
    cdef size_t length = digests.shape[0]
    if length % DIGEST_BYTES:
        raise ValueError(f"digests have {DIGEST_BYTES} bytes each, {length} bytes are no whole number of them")
    cdef size_t node = FANOUT * DIGEST_BYTES
    check_bytes("out", out.shape[0], piece_count(length, node) * DIGEST_BYTES)
    cdef const uint8_t *first = start(digests)
    cdef uint8_t *nodes = start_out(out)
    cdef size_t nonzero
    with nogil:
        # A node is digested like a block: zero children make a zero node, and the same reserved digest applies.
        nonzero = digest_pieces(digest_best(), first, length, node, key, nodes)
    return nonzero
