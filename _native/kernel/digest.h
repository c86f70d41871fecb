/* Digests of blocks, sectors and tree nodes: XXH3-128 with a secret, canonical (big-endian) byte order.
 *
 * A piece that is zero from end to end has the reserved digest of 16 zero bytes and is not hashed. A piece that is
 * not zero but whose hash is 16 zero bytes gets 1 as last byte, so that the reserved digest never lies.
 *
 * The scalar variant is the truth; the others compile the same header for wider registers and answer the same
 * bytes. All functions keep no state and may run in any number of threads; all but digest_file are pure.
 */
#ifndef HOMEWARD_DIGEST_H
#define HOMEWARD_DIGEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "place.h"

#define DIGEST_BYTES 16
#define DIGEST_SECRET_BYTES 192
#define SECTOR_BYTES 4096
#define BLOCK_BYTES 65536
#define BLOCK_SECTORS 16
#define SPAN_BLOCKS 64
#define FANOUT 64

/* Writes the hash of `length` bytes, whatever they are, with the 192 bytes of `secret`. */
typedef void (*digest_hash)(const uint8_t *data, size_t length, const uint8_t *secret,
                            uint8_t digest[DIGEST_BYTES]);

typedef struct {
    const char *name;
    digest_hash hash;
} digest_kernel;

#define DIGEST_VARIANTS_MAX 4

/* Fills `list` with the variants that this CPU and operating system offer, best last; answers how many. */
size_t digest_variants(const digest_kernel *list[DIGEST_VARIANTS_MAX]);

/* The best variant that this CPU offers. */
const digest_kernel *digest_best(void);

/* The variant of that name ("auto": the best); NULL when there is none or the CPU has not got it. */
const digest_kernel *digest_named(const char *name);

/* Writes the digest of every `unit` bytes of `data` (the last piece may be short); answers how many are not zero. */
size_t digest_pieces(const digest_kernel *kernel, const uint8_t *data, size_t length, size_t unit,
                     const uint8_t *secret, uint8_t *digests);

/* Bytes that are read and digested at once, whole blocks: they fit a core's own cache. */
#define DIGEST_WORK_BYTES (4 * BLOCK_BYTES)

/* As digest_pieces for the `length` bytes at the place in units of a block, read piece by piece into `work`
 * (DIGEST_WORK_BYTES, page-aligned for the kernel's sake). Answers how many bytes were digested: fewer than `length`,
 * in whole pieces, where reading failed or the file ended. */
uint64_t digest_file(const digest_kernel *kernel, file_place place, uint64_t length, uint8_t *work,
                     const uint8_t *secret, uint8_t *digests, size_t *nonzero);

/* Writes the 16 sector digests of one block of `length` bytes; sectors that a short block lacks get the zero digest. */
void digest_block_sectors(const digest_kernel *kernel, const uint8_t *block, size_t length, const uint8_t *secret,
                          uint8_t digests[BLOCK_SECTORS * DIGEST_BYTES]);

/* Appends `digest_block_sectors` of every block of the span that `blocks` names; the caller checked that they exist. */
void digest_span_sectors(const digest_kernel *kernel, const uint8_t *span, size_t length, uint64_t blocks,
                         const uint8_t *secret, uint8_t *digests);

/* The length of piece `index` of `length` bytes cut in `unit`s; the caller knows that the piece exists. */
static inline size_t piece_bytes(size_t length, size_t unit, size_t index)
{
    size_t rest = length - index * unit;
    return rest < unit ? rest : unit;
}

/* How many pieces of `unit` bytes cover `length`, without the overflow of length + unit - 1. */
static inline size_t piece_count(size_t length, size_t unit)
{
    return length / unit + (length % unit != 0);
}

/* The two below stand here because the other kernels use them too, with a digest_kernel that is lent to them. */

/* Whether all `length` bytes are zero; stops at the first that is not. True for no bytes. */
static inline bool digest_is_zero(const uint8_t *data, size_t length)
{
    uint64_t word = 0;
    if (length < sizeof word) {
        for (size_t i = 0; i < length; i++)
            word |= data[i];
        return word == 0;
    }
    memcpy(&word, data, sizeof word);
    /* When the first word is zero and every byte equals the one eight before it, all are zero. memcmp of the C
     * library is vectorised for the CPU at hand and stops at the first difference. */
    return word == 0 && memcmp(data, data + sizeof word, length - sizeof word) == 0;
}

/* Writes the digest of one piece as described above; answers whether the piece is anything but zero. */
static inline bool digest_piece(const digest_kernel *kernel, const uint8_t *data, size_t length, const uint8_t *secret,
                                uint8_t digest[DIGEST_BYTES])
{
    if (digest_is_zero(data, length)) {
        memset(digest, 0, DIGEST_BYTES);
        return false;
    }
    kernel->hash(data, length, secret, digest);
    if (digest_is_zero(digest, DIGEST_BYTES))
        digest[DIGEST_BYTES - 1] = 1;
    return true;
}

/* The bitmap of all sectors of a block of `block_bytes`. */
static inline unsigned all_sectors(size_t block_bytes)
{
    return (1u << piece_count(block_bytes, SECTOR_BYTES)) - 1;
}

/* The bitmap of the sectors of a block that are not zero. */
static inline unsigned filled_sectors(const uint8_t *block, size_t block_bytes)
{
    unsigned sectors = 0;
    for (size_t s = 0; s * SECTOR_BYTES < block_bytes; s++)
        sectors |= (unsigned)!digest_is_zero(block + s * SECTOR_BYTES, piece_bytes(block_bytes, SECTOR_BYTES, s)) << s;
    return sectors;
}

#endif
