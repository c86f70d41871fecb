/* Records of the retention journal: old contents of blocks, compressed or not, each chained to the one before.
 *
 * A record is a header of 72 bytes, all numbers little-endian, followed by `stored` bytes of payload:
 *
 *      0  16   checksum: XXH3-128 (no secret, no seed, canonical order) of everything behind it
 *     16  16   chain: the checksum of the record before, of the segment's header for the first one
 *     32  u64  cycle
 *     40  u64  first block
 *     48  u32  blocks: 1 unless the codec is 2 and no sectors are named
 *     52  u32  stored: bytes of the payload
 *     56  u32  length: bytes that the payload decodes to; 0 with codec 2
 *     60  u8   kind: 1 old content; others are for the journal's owner and are only checked and handed over here
 *     61  u8   codec: 0 stored, 1 one LZ4 block, 2 zeroes without payload
 *     62  u16  sectors: bitmap of the block's sectors that the payload holds, one after the other; 0: the block as a whole.
 *              Only blocks that are not short have records of some of their sectors
 *     64  u64  durable: so many bytes of this segment were known to be durable when the record was made
 *
 * All functions keep no state and may run in any number of threads. What is scanned comes from a medium: nothing in
 * it is used before it is checked, and nothing outside the buffers is touched.
 */
#ifndef HOMEWARD_UNDO_H
#define HOMEWARD_UNDO_H

#include "digest.h"

#define UNDO_HEADER_BYTES 72
#define UNDO_KIND_CONTENT 1
#define UNDO_WHOLE 0xFFFF
/* In a block's place: it has several records; the rest of the number is the index of the first one's entry. */
#define UNDO_CHAINED (UINT64_C(1) << 63)

typedef enum { UNDO_STORED = 0, UNDO_LZ4 = 1, UNDO_ZEROES = 2 } undo_codec;
typedef enum { UNDO_NEVER = 0, UNDO_ALWAYS = 1, UNDO_AUTO = 2, UNDO_QUICK = 3 } undo_mode;

typedef enum {
    UNDO_OK,
    UNDO_OTHER,         /* a good record of another kind stands at the position */
    UNDO_CUT,           /* the bytes end inside a record */
    UNDO_BAD_CHECKSUM,
    UNDO_BAD_CHAIN,
    UNDO_BAD_FIELDS,
    UNDO_BAD_LZ4,
    UNDO_NO_ROOM,       /* the index has to grow before the record at the position can be noted */
} undo_status;

const char *undo_reason(undo_status status);

/* The checksum of `length` bytes. */
void undo_checksum(const digest_kernel *kernel, const uint8_t *data, size_t length, uint8_t checksum[DIGEST_BYTES]);

typedef struct {
    const digest_kernel *kernel;
    const uint8_t *span;
    size_t length;
    const uint8_t *sectors; /* of each block 2 bytes: the bitmap of what is to be kept of it */
    uint64_t first_block;
    uint64_t cycle;
    uint64_t durable;
} undo_source;

typedef struct {
    uint8_t *bytes;
    size_t capacity;
    size_t position;
    uint8_t chain[DIGEST_BYTES];
} undo_out;

/* Appends records for the blocks in `blocks` of the span, as long as the next one is sure to fit even uncompressed;
 * neighbours that are zero and kept as a whole share one. A short block is always kept as a whole. Answers the blocks
 * still to do. */
uint64_t undo_pack(const undo_source *source, uint64_t blocks, undo_mode mode, undo_out *out);

typedef struct {
    const uint8_t *chain;
    uint64_t cycle;
    uint64_t first_block;
    uint64_t durable;
    uint32_t blocks;
    uint32_t stored;
    uint32_t length;
    uint16_t sectors; /* UNDO_WHOLE where the record names none */
    uint8_t kind;
    undo_codec codec;
    const uint8_t *payload;
    size_t next;
} undo_record;

/* Reads and proves the record at `position` <= `length`. With UNDO_OK (of kind 1) or UNDO_OTHER all fields hold. */
undo_status undo_parse(const digest_kernel *kernel, const uint8_t *bytes, size_t length, size_t position,
                       undo_record *record);

/* Gives the records in `bytes`, which undo_pack made with any chain, their place behind another: the first gets
 * `chain`, each the checksum of the one before, and all of them `durable`. `chain` becomes the last one's checksum.
 * Answers whether the bytes are whole records; what comes before one that is not has its place. */
bool undo_chain(const digest_kernel *kernel, uint8_t *bytes, size_t length, uint64_t durable,
                uint8_t chain[DIGEST_BYTES]);

/* What a scan notes: for blocks below `blocks`, of cycles from `cycle_min` to `cycle_max`, which sectors have a record
 * and where the first one of each sector is. `bitmap` or `covered` may be NULL; `places` and `more` may both be, and
 * need `covered`.
 *
 * A block whose records are several has in its place the index of an entry in `more`: there the place of a record, and
 * behind it, in one number, which of its sectors count (16 bits) and above them the index of the next entry, 0 at the
 * end. more[0] is the index of the first unused entry, at least 1. */
typedef struct {
    uint64_t blocks;
    uint64_t cycle_min;
    uint64_t cycle_max;
    uint8_t *bitmap;   /* one bit a block */
    uint16_t *covered; /* a bitmap of sectors a block */
    uint64_t *places;  /* one a block: `base` + position of its record */
    uint64_t *more;
    uint64_t more_length;
    uint64_t base;
    uint64_t records; /* counted: records of kind 1, whatever their cycle */
    uint64_t noted;   /* counted: blocks of which this was the first record of some sector */
    uint64_t durable; /* the highest `durable` that was seen */
} undo_index;

/* Walks over good, chained records of kind 1; stops at the end (UNDO_OK), at a record of another kind, where `more`
 * has no room for what the next one says, or at what is wrong, with *position there and `chain` that of the last good
 * record before. */
undo_status undo_scan(const digest_kernel *kernel, const uint8_t *bytes, size_t length, size_t *position,
                      uint8_t chain[DIGEST_BYTES], undo_index *index);

/* The sectors of a good record of kind 1 are in their places in the block `to`; others are as before. A record of a
 * whole block writes `length` bytes, with the codec zeroes all of a block. */
undo_status undo_lay(const undo_record *record, uint8_t *to);

typedef struct {
    const digest_kernel *kernel;
    const uint8_t *bytes;
    size_t length;
    uint64_t base;          /* the place of bytes[0] */
    const uint64_t *places; /* one a block from `first_block` on: `base` + position of its record */
    uint64_t first_block;
} undo_found;

/* Lays the records of the blocks in `blocks` over the span `to`, each block's own one, proved. Answers the blocks of
 * which the bytes hold no good record, only that of a short block, or one of several; what `to` has in their places is
 * of no meaning. */
uint64_t undo_unpack(const undo_found *found, uint64_t blocks, uint8_t *to);

#endif
