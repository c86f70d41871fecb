"""What differs; the contract is kernel/compare.h."""

from libc.stdint cimport uint8_t, uint64_t

from _native.digest cimport (
    BLOCK_BYTES, BLOCK_SECTORS, DIGEST_BYTES, SPAN_BLOCKS,
    best_kernel, bits, check_bytes, digest_kernel, file_place, piece_count, place, secret_start, span_blocks, start,
    start_out,
)


cdef extern from "compare.h" nogil:
    ctypedef struct compare_run:
        size_t first
        size_t count
    ctypedef struct compare_totals:
        uint64_t blocks
        uint64_t sectors
        uint64_t bytes
        uint64_t bytes_zero
    uint64_t compare_differing(const uint8_t *a, const uint8_t *b, size_t entries)
    uint64_t compare_zeroes(const uint8_t *a, size_t entries)
    size_t compare_runs(const uint8_t *a, const uint8_t *b, size_t entries, size_t *start, compare_run *runs,
                        size_t runs_max)
    void compare_spans(const uint8_t *source, const uint8_t *target, size_t length, uint8_t *bitmaps,
                       compare_totals *totals)
    enum:
        COMPARE_PIECE_BYTES
    uint64_t compare_files(file_place source, file_place target, uint64_t length, uint8_t *work,
                           uint8_t *bitmaps, compare_totals *totals)
    uint64_t compare_filled(const uint8_t *span, size_t length, uint64_t blocks, uint8_t *bitmaps)
    void compare_sector_digests(const digest_kernel *kernel, const uint8_t *span, size_t length, uint64_t blocks,
                                const uint8_t *secret, const uint8_t *digests, uint8_t *bitmaps)


cdef enum:
    # Runs that are collected before the GIL is taken to hand them over: 8 KiB of stack.
    RUNS = 512


cdef size_t entry_count(size_t length) except? 0:
    if length % DIGEST_BYTES:
        raise ValueError(f"digests have {DIGEST_BYTES} bytes each, {length} bytes are no whole number of them")
    return length // DIGEST_BYTES


cdef size_t span_entry_count(size_t length) except? 0:
    cdef size_t entries = entry_count(length)
    if entries > SPAN_BLOCKS:
        raise ValueError(f"a bitmap holds {SPAN_BLOCKS} entries, not {entries}")
    return entries


def differing(const uint8_t[::1] a not None, const uint8_t[::1] b not None):
    cdef size_t entries = span_entry_count(a.shape[0])
    check_bytes("b", b.shape[0], a.shape[0])
    cdef const uint8_t *ours = start(a)
    cdef const uint8_t *theirs = start(b)
    cdef uint64_t bitmap
    with nogil:
        bitmap = compare_differing(ours, theirs, entries)
    return bitmap


def zeroes(const uint8_t[::1] a not None):
    cdef size_t entries = span_entry_count(a.shape[0])
    cdef const uint8_t *ours = start(a)
    cdef uint64_t bitmap
    with nogil:
        bitmap = compare_zeroes(ours, entries)
    return bitmap


def extents(const uint8_t[::1] a not None, const uint8_t[::1] b not None):
    cdef size_t entries = entry_count(a.shape[0])
    check_bytes("b", b.shape[0], a.shape[0])
    cdef const uint8_t *ours = start(a)
    cdef const uint8_t *theirs = start(b)
    cdef compare_run runs[RUNS]
    cdef size_t position = 0, found, i
    cdef list result = []
    while position < entries:
        with nogil:
            found = compare_runs(ours, theirs, entries, &position, runs, RUNS)
        for i in range(found):
            result.append((runs[i].first, runs[i].count))
    return result


def compare_sectors(const uint8_t[::1] source not None, const uint8_t[::1] target not None,
                    uint8_t[::1] out_bitmaps not None):
    cdef size_t length = source.shape[0]
    check_bytes("target", target.shape[0], length)
    check_bytes("out_bitmaps", out_bitmaps.shape[0], 2 * span_blocks(length, 0))
    cdef const uint8_t *ours = start(source)
    cdef const uint8_t *theirs = start(target)
    cdef uint8_t *bitmaps = start_out(out_bitmaps)
    cdef compare_totals totals
    with nogil:
        compare_spans(ours, theirs, length, bitmaps, &totals)
    return totals.blocks, totals.sectors, totals.bytes, totals.bytes_zero


WORK_BYTES = 2 * COMPARE_PIECE_BYTES


def compare_places(int source, uint64_t source_start, int target, uint64_t target_start, uint64_t length,
                   uint8_t[::1] work not None, uint8_t[::1] out_bitmaps not None):
    cdef file_place ours = place(source, source_start, length)
    cdef file_place theirs = place(target, target_start, length)
    check_bytes("work", work.shape[0], 2 * COMPARE_PIECE_BYTES)
    check_bytes("out_bitmaps", out_bitmaps.shape[0], 2 * piece_count(length, BLOCK_BYTES))
    cdef uint8_t *pieces = start_out(work)
    cdef uint8_t *bitmaps = start_out(out_bitmaps)
    cdef compare_totals totals
    cdef uint64_t done
    with nogil:
        done = compare_files(ours, theirs, length, pieces, bitmaps, &totals)
    return done, totals.blocks, totals.sectors, totals.bytes, totals.bytes_zero


def sector_bitmaps(const uint8_t[::1] data not None, const uint8_t[::1] secret not None, uint64_t blocks,
                   const uint8_t[::1] digests not None, uint8_t[::1] out not None):
    cdef const uint8_t *key = secret_start(secret)
    cdef size_t length = data.shape[0]
    span_blocks(length, blocks)
    cdef size_t count = bits(blocks)
    check_bytes("digests", digests.shape[0], count * BLOCK_SECTORS * DIGEST_BYTES)
    check_bytes("out", out.shape[0], count * 2)
    cdef const uint8_t *span = start(data)
    cdef const uint8_t *theirs = start(digests)
    cdef uint8_t *bitmaps = start_out(out)
    with nogil:
        compare_sector_digests(best_kernel(), span, length, blocks, key, theirs, bitmaps)


def filled_sectors(const uint8_t[::1] data not None, uint64_t blocks, uint8_t[::1] out not None):
    cdef size_t length = data.shape[0]
    check_bytes("out", out.shape[0], 2 * span_blocks(length, blocks))
    cdef const uint8_t *span = start(data)
    cdef uint8_t *bitmaps = start_out(out)
    cdef uint64_t filled
    with nogil:
        filled = compare_filled(span, length, blocks, bitmaps)
    return filled
