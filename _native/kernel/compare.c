#include "compare.h"

#include <string.h>

static void store16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)value;
    at[1] = (uint8_t)(value >> 8);
}

static bool same(const uint8_t *a, const uint8_t *b, size_t entry)
{
    return memcmp(a + entry * DIGEST_BYTES, b + entry * DIGEST_BYTES, DIGEST_BYTES) == 0;
}

uint64_t compare_differing(const uint8_t *a, const uint8_t *b, size_t entries)
{
    uint64_t bitmap = 0;
    for (size_t i = 0; i < entries; i++)
        bitmap |= (uint64_t)!same(a, b, i) << i;
    return bitmap;
}

uint64_t compare_zeroes(const uint8_t *a, size_t entries)
{
    uint64_t bitmap = 0;
    for (size_t i = 0; i < entries; i++)
        bitmap |= (uint64_t)digest_is_zero(a + i * DIGEST_BYTES, DIGEST_BYTES) << i;
    return bitmap;
}

size_t compare_runs(const uint8_t *a, const uint8_t *b, size_t entries, size_t *from, compare_run *runs,
                    size_t runs_max)
{
    /* Most of two maps is equal: so much is passed over with one memcmp. */
    const size_t stride = 256;
    size_t i = *from, found = 0;
    while (i < entries && found < runs_max) {
        if (entries - i >= stride && memcmp(a + i * DIGEST_BYTES, b + i * DIGEST_BYTES, stride * DIGEST_BYTES) == 0) {
            i += stride;
            continue;
        }
        size_t end = entries - i < stride ? entries : i + stride;
        while (i < end && same(a, b, i))
            i++;
        if (i == end)
            continue;
        runs[found].first = i;
        while (i < entries && !same(a, b, i))
            i++;
        runs[found].count = i - runs[found].first;
        found++;
    }
    *from = i;
    return found;
}

void compare_spans(const uint8_t *source, const uint8_t *target, size_t length, uint8_t *bitmaps,
                   compare_totals *totals)
{
    compare_totals sum = {0, 0, 0, 0};
    for (size_t i = 0; i * BLOCK_BYTES < length; i++) {
        const uint8_t *ours = source + i * BLOCK_BYTES, *theirs = target + i * BLOCK_BYTES;
        size_t size = piece_bytes(length, BLOCK_BYTES, i);
        unsigned bitmap = 0;
        if (memcmp(ours, theirs, size) != 0) {
            for (size_t s = 0; s * SECTOR_BYTES < size; s++) {
                size_t at = s * SECTOR_BYTES, bytes = piece_bytes(size, SECTOR_BYTES, s);
                if (memcmp(ours + at, theirs + at, bytes) == 0)
                    continue;
                bitmap |= 1u << s;
                sum.sectors++;
                sum.bytes += bytes;
                if (digest_is_zero(ours + at, bytes))
                    sum.bytes_zero += bytes;
            }
            sum.blocks++;
        }
        store16(bitmaps + i * 2, bitmap);
    }
    *totals = sum;
}

uint64_t compare_files(file_place source, file_place target, uint64_t length, uint8_t *work, uint8_t *bitmaps,
                       compare_totals *totals)
{
    uint8_t *ours = work, *theirs = work + COMPARE_PIECE_BYTES;
    uint64_t done = 0;
    memset(totals, 0, sizeof *totals);
    while (done < length) {
        size_t size = length - done < COMPARE_PIECE_BYTES ? (size_t)(length - done) : COMPARE_PIECE_BYTES;
        compare_totals found;
        if (!place_read(source, done, ours, size) || !place_read(target, done, theirs, size))
            break;
        compare_spans(ours, theirs, size, bitmaps + done / BLOCK_BYTES * 2, &found);
        totals->blocks += found.blocks;
        totals->sectors += found.sectors;
        totals->bytes += found.bytes;
        totals->bytes_zero += found.bytes_zero;
        done += size;
    }
    return done;
}

void compare_sector_digests(const digest_kernel *kernel, const uint8_t *span, size_t length, uint64_t blocks,
                            const uint8_t *secret, const uint8_t *digests, uint8_t *bitmaps)
{
    for (size_t i = 0; i < SPAN_BLOCKS; i++) {
        if (!(blocks >> i & 1))
            continue;
        const uint8_t *block = span + i * BLOCK_BYTES;
        size_t size = piece_bytes(length, BLOCK_BYTES, i);
        unsigned bitmap = 0;
        for (size_t s = 0; s * SECTOR_BYTES < size; s++) {
            uint8_t digest[DIGEST_BYTES];
            digest_piece(kernel, block + s * SECTOR_BYTES, piece_bytes(size, SECTOR_BYTES, s), secret, digest);
            if (memcmp(digest, digests + s * DIGEST_BYTES, DIGEST_BYTES) != 0)
                bitmap |= 1u << s;
        }
        store16(bitmaps, bitmap);
        bitmaps += 2;
        digests += BLOCK_SECTORS * DIGEST_BYTES;
    }
}

uint64_t compare_filled(const uint8_t *span, size_t length, uint64_t blocks, uint8_t *bitmaps)
{
    uint64_t filled = 0;
    for (size_t i = 0; i < SPAN_BLOCKS; i++) {
        if (!(blocks >> i & 1))
            continue;
        unsigned sectors = filled_sectors(span + i * BLOCK_BYTES, piece_bytes(length, BLOCK_BYTES, i));
        store16(bitmaps + i * 2, sectors);
        filled += (uint64_t)__builtin_popcount(sectors);
    }
    return filled;
}
