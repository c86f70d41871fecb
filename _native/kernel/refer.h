/* References: sectors of a block that the target already has elsewhere, named by their digests, and the index of the
 * target's sectors by which they are found.
 *
 * An entry of a frame of references is a header of 32 bytes, all numbers little-endian, then digests:
 *
 *      0  u64  block index
 *      8  u16  bitmap of the sectors that are named, bit i for sector i
 *     10  u16  bitmap of the sectors that become zero; none of them is named
 *     12  u32  reserved, 0
 *     16  16   digest of the whole block, as after the change
 *     32  16   for each named sector, in order, its digest; never that of zeroes
 *
 * The blocks of a frame ascend, and only blocks of 64 KiB are named. What is in neither bitmap stays as it is.
 *
 * The index is a hint: it says where content should be, and every piece is digested again before it is used. It has
 * an entry of 16 bytes for a sector: the first 8 bytes of its digest and its place. Where that takes more memory than
 * it may, only sectors whose digest ends in so many zero bits are kept (which depends on content alone, so that both
 * copies of a file keep the same ones), and the sectors between are found as neighbours.
 *
 * Places are sectors of the disk, or sectors of rooms: blocks of 64 KiB in which old content is saved that is about
 * to be overwritten and that something may still ask for. A room is free again when nothing points into it.
 *
 * A frame comes from outside: nothing in it is used before it is checked. An index belongs to whoever made it: one
 * thread at a time may use it.
 */
#ifndef HOMEWARD_REFER_H
#define HOMEWARD_REFER_H

#include "digest.h"

#define REFER_HEADER_BYTES 32
#define REFER_BATCH 64 /* entries that are resolved together */
#define REFER_SAVED (UINT64_C(1) << 62)

typedef enum {
    REFER_OK,
    REFER_BAD_HEADER_CUT,
    REFER_BAD_RESERVED,
    REFER_BAD_NOTHING,
    REFER_BAD_OVERLAP,
    REFER_BAD_DIGESTS_CUT,
    REFER_BAD_ZERO_DIGEST,
    REFER_BAD_BLOCK,
    REFER_BAD_ORDER,
} refer_status;

/* A sentence without a full stop about what is wrong with a frame. */
const char *refer_reason(refer_status status);

/* ---- the sender ---- */

/* A span of the source. The arrays have an element for each of its blocks. */
typedef struct {
    const uint8_t *span;
    uint64_t first_block;
    const uint8_t *sectors; /* bitmaps of what differs, 2 bytes each */
    const uint8_t *digests; /* 16 bytes each */
    const uint8_t *secret;
    const digest_kernel *kernel;
} refer_source;

/* Appends entries for the blocks in `blocks`, all of them whole, as long as the longest entry fits; answers the blocks
 * still to do and adds the named sectors to *named. A block whose bitmap is empty is passed over. */
uint64_t refer_pack(const refer_source *source, uint64_t blocks, uint8_t *frame, size_t capacity, size_t *position,
                    uint64_t *named);

/* ---- the frame ---- */

typedef struct {
    uint64_t block;
    unsigned sectors, zeroes;
    const uint8_t *digest;
    const uint8_t *digests;
    size_t next;
} refer_entry;

/* Reads the entry at `position` <= `length` for a disk of `blocks` whole blocks; it lies in the frame if the answer is
 * REFER_OK. `least` is the smallest block that may come. */
refer_status refer_parse(const uint8_t *frame, size_t length, size_t position, uint64_t blocks, uint64_t least,
                         refer_entry *entry);

/* ---- the index ---- */

typedef struct {
    uint64_t tag, place;
} refer_slot;

typedef struct {
    refer_slot *slots;
    size_t capacity, capacity_max, used;
    unsigned thin; /* only tags with so many low zero bits are kept */
    uint16_t *live; /* for each room, how many entries point into it */
    size_t rooms, rooms_used, next_room;
    uint64_t disk_sectors; /* whole sectors of the disk */
} refer_index;

/* An empty index; false when there is no memory. `capacity_max` is a power of two of at least 1024. */
bool refer_index_make(refer_index *index, size_t capacity_max, size_t rooms, uint64_t disk_sectors);
void refer_index_free(refer_index *index);

/* The whole sectors of `content` are known, the first of them as sector `first` of the disk. What is known elsewhere
 * already stays so unless this is `final`: content that no later write of the cycle changes. False: no memory. */
bool refer_learn(refer_index *index, const digest_kernel *kernel, const uint8_t *secret, const uint8_t *content,
                 size_t length, uint64_t first, bool final);

typedef struct {
    uint64_t place;
    size_t at, count; /* in sectors: where it goes in the buffer of the batch, and how many */
} refer_run;

/* Where the named sectors of `count` <= REFER_BATCH entries should be, as runs to be read; entry i's sector s goes to
 * sector 16 i + s of a buffer. `tried` gets each entry's bitmap of sectors that are in the runs. Answers the number of
 * runs, at most 16 for each entry. */
size_t refer_plan(const refer_index *index, const refer_entry *entries, size_t count, refer_run *runs,
                  uint16_t tried[REFER_BATCH]);

typedef struct {
    uint16_t missing[REFER_BATCH]; /* named, and not found: as in `old` */
    uint64_t wrong;                /* entries that were found whole and do not have the block's digest: as in `old` */
    uint64_t changed;              /* entries whose block is not as in `old` any more */
    uint64_t found;                /* sectors that were found */
} refer_proof;

/* Makes the entries' blocks of `old` (their content now) and `fresh` (what was read for the runs) in `fresh`, each
 * sector proved, and writes the digest that each block has then. */
void refer_prove(const digest_kernel *kernel, const uint8_t *secret, const refer_entry *entries, size_t count,
                 const uint16_t tried[REFER_BATCH], const uint8_t *old, uint8_t *fresh, uint8_t *digests,
                 refer_proof *proof);

/* The sectors that were found are at home where the entries put them. False: no memory. */
bool refer_settle(refer_index *index, const refer_entry *entries, size_t count, const refer_proof *proof);

/* `old`, blocks from `first_block` on, is about to be overwritten in the sectors of `sectors` (a bitmap for each
 * block): what the index has there now points to a room, or to nothing when there is none. Writes (block of `old`,
 * room) for each block that has to be saved and answers how many. */
size_t refer_displace(refer_index *index, const digest_kernel *kernel, const uint8_t *secret, const uint8_t *old,
                      size_t blocks, uint64_t first_block, const uint16_t *sectors, uint32_t (*saves)[2]);

#endif
