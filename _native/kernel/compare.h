/* What differs: between two runs of digests, between two spans of bytes, between a span and the peer's digests.
 *
 * All functions keep no state and may run in any number of threads; all but compare_files are pure. Bitmaps of sectors are 16 bits in
 * little-endian order, whatever the machine; bit i stands for sector i of the block.
 */
#ifndef HOMEWARD_COMPARE_H
#define HOMEWARD_COMPARE_H

#include "digest.h"
#include "place.h"

/* The bitmap of the entries (at most 64) that differ. */
uint64_t compare_differing(const uint8_t *a, const uint8_t *b, size_t entries);

/* The bitmap of the entries (at most 64) that are the zero digest. */
uint64_t compare_zeroes(const uint8_t *a, size_t entries);

typedef struct {
    size_t first, count;
} compare_run;

/* Writes at most `runs_max` runs of differing entries from entry *from on, ascending, as long as they can be;
 * answers how many and moves *from behind what was looked at, which is `entries` when there are no more. */
size_t compare_runs(const uint8_t *a, const uint8_t *b, size_t entries, size_t *from, compare_run *runs,
                    size_t runs_max);

typedef struct {
    uint64_t blocks, sectors, bytes;
    uint64_t bytes_zero; /* of `bytes`, those in sectors that are zero in the source */
} compare_totals;

/* Writes for each block the bitmap of the sectors that differ, 2 bytes each, and adds up what differs. */
void compare_spans(const uint8_t *source, const uint8_t *target, size_t length, uint8_t *bitmaps,
                   compare_totals *totals);

/* Bytes of a side that are read and compared at once, whole blocks: both fit a core's own cache. */
#define COMPARE_PIECE_BYTES (2 * BLOCK_BYTES)

/* As compare_spans for the `length` bytes at each place, read piece by piece into `work` (two pieces, page-aligned
 * for the kernel's sake). Answers how many bytes were compared: fewer than `length`, in whole pieces, where reading
 * failed or a file ended; why is for the caller to find out, who reads on from there. */
uint64_t compare_files(file_place source, file_place target, uint64_t length, uint8_t *work, uint8_t *bitmaps,
                       compare_totals *totals);

/* Writes for each block that `blocks` names, in order, the bitmap of the sectors whose digest is not that of the
 * peer: `digests` holds 256 bytes for each of those blocks. Sectors that a short block lacks never differ. */
void compare_sector_digests(const digest_kernel *kernel, const uint8_t *span, size_t length, uint64_t blocks,
                            const uint8_t *secret, const uint8_t *digests, uint8_t *bitmaps);

/* Writes for each block that `blocks` names, at its place in the span's bitmaps, its filled_sectors; answers how many
 * these are. */
uint64_t compare_filled(const uint8_t *span, size_t length, uint64_t blocks, uint8_t *bitmaps);

#endif
