/* Entries of a data frame: changed sectors of a block, compressed or not, with the digest of the whole block.
 *
 * An entry is a header of 32 bytes, all numbers little-endian, followed by `stored` bytes of payload:
 *
 *      0  u64  block index
 *      8  u16  bitmap of the sectors that follow, bit i for sector i; all that the block has = a whole block
 *     10  u8   codec: 0 stored, 1 one LZ4 block
 *     11  u8   reserved, 0
 *     12  u32  stored: bytes of the payload
 *     16  16   digest of the whole block, as after the change
 *
 * The payload, decoded, is the named sectors one after the other; the disk's last sector may be short. LZ4 is only
 * used where it shrinks, so `stored` tells the codecs apart as well.
 *
 * All functions keep no state and may run in any number of threads; all but pack_place are pure; packing uses some
 * 100 KiB of stack. A frame comes from outside: nothing in it is used before it is checked, and nothing outside the
 * buffers is touched.
 */
#ifndef HOMEWARD_PACK_H
#define HOMEWARD_PACK_H

#include "digest.h"
#include "place.h"

#define PACK_HEADER_BYTES 32

typedef enum { PACK_NEVER = 0, PACK_ALWAYS = 1, PACK_AUTO = 2 } pack_mode;
typedef enum { PACK_STORED = 0, PACK_LZ4 = 1 } pack_codec;

typedef enum {
    PACK_OK,
    /* the frame is wrong */
    PACK_BAD_HEADER_CUT,
    PACK_BAD_RESERVED,
    PACK_BAD_CODEC,
    PACK_BAD_NO_SECTORS,
    PACK_BAD_STORED,
    PACK_BAD_PAYLOAD_CUT,
    PACK_BAD_BLOCK,
    PACK_BAD_SECTORS,
    PACK_BAD_LENGTH,
    PACK_BAD_LZ4,
    /* the block's content is not what its digest says */
    PACK_MISMATCH,
    /* the caller's buffer does not fit the block */
    PACK_NO_ROOM,
} pack_status;

/* A sentence without a full stop about what is wrong with a frame. */
const char *pack_reason(pack_status status);

/* A span of the source and what is to be sent of it. The arrays have an element for each of its blocks. */
typedef struct {
    const uint8_t *span;
    size_t length;
    uint64_t first_block;
    const uint8_t *sectors; /* bitmaps, 2 bytes each; 0xFFFF is the whole block also where that is short */
    const uint8_t *digests; /* 16 bytes each */
} pack_source;

typedef struct {
    uint8_t *bytes;
    size_t capacity;
    size_t position;
} pack_frame;

/* The index of the first block in `blocks` whose bitmap of sectors is empty or names what the block has not got;
 * -1 when there is none. */
int pack_bad_bitmap(const pack_source *source, uint64_t blocks);

/* Appends entries for the blocks in `blocks`, whose bitmaps are good, as long as the next one is sure to fit even
 * uncompressed; answers the blocks still to do and adds to *gathered the payload before compression. */
uint64_t pack_span(const pack_source *source, uint64_t blocks, pack_mode mode, pack_frame *frame, uint64_t *gathered);

/* A span that nobody has read yet, in a file; the digests of the blocks that are read go to `digests`, 16 bytes for
 * each block of the span. */
typedef struct {
    file_place place;
    size_t length;
    uint64_t first_block;
    const digest_kernel *kernel;
    const uint8_t *secret;
    uint8_t *digests;
} pack_unread;

/* What was packed: blocks (bits), their sectors, the bytes of these. */
typedef struct {
    uint64_t blocks, sectors, bytes;
} pack_taken;

/* As pack_span, stored as they are, for blocks that are read into the frame where they belong. The target's are zero:
 * a block that is zero is read and digested, and nothing else; of others filled_sectors are packed where these are at
 * most half, else all: what comes whole is written in long runs. Answers the blocks that were not read: where there is room for one, the first of them could not be, and why is for the caller to find
 * out, who reads it in another way. */
uint64_t pack_place(const pack_unread *source, uint64_t blocks, pack_frame *frame, pack_taken *taken);

typedef struct {
    uint64_t block;
    unsigned sectors;
    pack_codec codec;
    size_t stored;
    const uint8_t *digest;
    const uint8_t *payload;
    size_t next; /* position of the next entry */
} pack_entry;

/* Reads the header at `position` <= `length`; header and payload lie in the frame if the answer is PACK_OK. */
pack_status pack_parse(const uint8_t *frame, size_t length, size_t position, pack_entry *entry);

/* The disk that the entries are for: its blocks, the bytes of the last one, and how to prove a block. */
typedef struct {
    uint64_t blocks;
    size_t last_block_bytes;
    const uint8_t *secret;
    const digest_kernel *kernel;
} pack_disk;

typedef struct {
    bool in_place;    /* nothing is decoded: `bytes` is not used, and what is compressed ends the run */
    uint8_t *bytes;   /* at most a span of content */
    size_t capacity;
    uint8_t *digests; /* 16 bytes for each block that `capacity` holds, at most 64 */
    uint64_t first_block;
    size_t count;
    size_t length;
} pack_run;

/* Decodes whole blocks with ascending indices, one after the other, from *position on into `run`, until an entry
 * is partial, does not follow, does not fit, or the frame ends; proves each one's digest. *position is behind the
 * last one, or at the entry that is wrong. No whole block at *position is a run of none. */
pack_status pack_unpack(const pack_disk *disk, const uint8_t *frame, size_t length, size_t *position, pack_run *run);

/* Lays the entry at *position over `block`, which holds the block's old content, and answers in *matches whether
 * it has the entry's digest now. Only with PACK_OK the block is changed and *position moved. */
pack_status pack_patch(const pack_disk *disk, const uint8_t *frame, size_t length, size_t *position, uint8_t *block,
                       size_t block_bytes, bool *matches);

#endif
