#include "refer.h"

#include <stdlib.h>
#include <string.h>

#define EMPTY UINT64_MAX
#define LOST (UINT64_MAX - 1)
#define NOWHERE LOST

enum {
    CAPACITY_FIRST = 1024,
    /* Beyond that nearly nothing is kept: 64 TiB of content in an index for 6 GiB is 1 in 2^14. */
    THIN_MAX = 16,
    ROOM_SECTORS = BLOCK_SECTORS,
};

static uint64_t load(const uint8_t *at, size_t bytes)
{
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; i++)
        value |= (uint64_t)at[i] << (8 * i);
    return value;
}

static void store(uint8_t *at, size_t bytes, uint64_t value)
{
    for (size_t i = 0; i < bytes; i++)
        at[i] = (uint8_t)(value >> (8 * i));
}

/* ---- the sender ---- */

uint64_t refer_pack(const refer_source *source, uint64_t blocks, uint8_t *frame, size_t capacity, size_t *position,
                    uint64_t *named)
{
    for (size_t i = 0; i < SPAN_BLOCKS; i++) {
        if (!(blocks >> i & 1))
            continue;
        if (capacity - *position < REFER_HEADER_BYTES + BLOCK_SECTORS * DIGEST_BYTES)
            break;
        unsigned differ = (unsigned)load(source->sectors + 2 * i, 2), sectors = 0, zeroes = 0;
        blocks &= ~(UINT64_C(1) << i);
        if (differ == 0)
            continue;
        uint8_t *header = frame + *position, *digest = header + REFER_HEADER_BYTES;
        for (size_t s = 0; s < BLOCK_SECTORS; s++) {
            if (!(differ >> s & 1))
                continue;
            const uint8_t *sector = source->span + i * BLOCK_BYTES + s * SECTOR_BYTES;
            if (digest_piece(source->kernel, sector, SECTOR_BYTES, source->secret, digest)) {
                sectors |= 1u << s;
                digest += DIGEST_BYTES;
                ++*named;
            } else {
                zeroes |= 1u << s;
            }
        }
        store(header, 8, source->first_block + i);
        store(header + 8, 2, sectors);
        store(header + 10, 2, zeroes);
        store(header + 12, 4, 0);
        memcpy(header + 16, source->digests + i * DIGEST_BYTES, DIGEST_BYTES);
        *position = (size_t)(digest - frame);
    }
    return blocks;
}

/* ---- the frame ---- */

const char *refer_reason(refer_status status)
{
    switch (status) {
    case REFER_BAD_HEADER_CUT: return "the frame ends inside the header";
    case REFER_BAD_RESERVED: return "the reserved bytes are not zero";
    case REFER_BAD_NOTHING: return "the bitmaps name no sector";
    case REFER_BAD_OVERLAP: return "a sector is named and becomes zero";
    case REFER_BAD_DIGESTS_CUT: return "the frame ends inside the digests";
    case REFER_BAD_ZERO_DIGEST: return "a sector of zeroes is named";
    case REFER_BAD_BLOCK: return "the block lies beyond the last whole one of the disk";
    case REFER_BAD_ORDER: return "the blocks do not ascend";
    default: return "the frame is in order";
    }
}

refer_status refer_parse(const uint8_t *frame, size_t length, size_t position, uint64_t blocks, uint64_t least,
                         refer_entry *entry)
{
    if (length - position < REFER_HEADER_BYTES)
        return REFER_BAD_HEADER_CUT;
    const uint8_t *header = frame + position;
    if (load(header + 12, 4) != 0)
        return REFER_BAD_RESERVED;
    entry->block = load(header, 8);
    entry->sectors = (unsigned)load(header + 8, 2);
    entry->zeroes = (unsigned)load(header + 10, 2);
    entry->digest = header + 16;
    entry->digests = header + REFER_HEADER_BYTES;
    if ((entry->sectors | entry->zeroes) == 0)
        return REFER_BAD_NOTHING;
    if (entry->sectors & entry->zeroes)
        return REFER_BAD_OVERLAP;
    size_t bytes = (size_t)__builtin_popcount(entry->sectors) * DIGEST_BYTES;
    if (length - position - REFER_HEADER_BYTES < bytes)
        return REFER_BAD_DIGESTS_CUT;
    for (size_t at = 0; at < bytes; at += DIGEST_BYTES)
        if (digest_is_zero(entry->digests + at, DIGEST_BYTES))
            return REFER_BAD_ZERO_DIGEST;
    if (entry->block >= blocks)
        return REFER_BAD_BLOCK;
    if (entry->block < least)
        return REFER_BAD_ORDER;
    entry->next = position + REFER_HEADER_BYTES + bytes;
    return REFER_OK;
}

/* ---- the index ---- */

static uint64_t tag_of(const uint8_t *digest)
{
    return load(digest, 8);
}

static bool is_kept(const refer_index *index, uint64_t tag)
{
    return (tag & ((UINT64_C(1) << index->thin) - 1)) == 0;
}

/* The slot of `tag`, or the empty one where it belongs. The bits above those that thinning looks at are even. */
static refer_slot *slot_of(refer_slot *slots, size_t capacity, uint64_t tag)
{
    size_t at = (size_t)(tag >> THIN_MAX) & (capacity - 1);
    while (slots[at].place != EMPTY && slots[at].tag != tag)
        at = (at + 1) & (capacity - 1);
    return &slots[at];
}

static refer_slot *slots_make(size_t capacity)
{
    refer_slot *slots = malloc(capacity * sizeof *slots);
    if (slots != NULL)
        memset(slots, 0xFF, capacity * sizeof *slots);
    return slots;
}

bool refer_index_make(refer_index *index, size_t capacity_max, size_t rooms, uint64_t disk_sectors)
{
    memset(index, 0, sizeof *index);
    index->capacity = CAPACITY_FIRST;
    index->capacity_max = capacity_max;
    index->rooms = rooms;
    index->disk_sectors = disk_sectors;
    index->slots = slots_make(index->capacity);
    index->live = calloc(rooms > 0 ? rooms : 1, sizeof *index->live);
    if (index->slots != NULL && index->live != NULL)
        return true;
    refer_index_free(index);
    return false;
}

void refer_index_free(refer_index *index)
{
    free(index->slots);
    free(index->live);
    index->slots = NULL;
    index->live = NULL;
}

static void leave(refer_index *index, uint64_t place)
{
    if (place >= LOST || !(place & REFER_SAVED))
        return;
    uint16_t *live = &index->live[(place & ~REFER_SAVED) / ROOM_SECTORS];
    if (--*live == 0)
        index->rooms_used--;
}

/* Room for more: twice the capacity, or half of the entries where that is the most. */
static bool widen(refer_index *index)
{
    size_t capacity = index->capacity;
    if (capacity < index->capacity_max)
        capacity *= 2;
    else if (index->thin < THIN_MAX)
        index->thin++;
    else
        return true;
    refer_slot *slots = slots_make(capacity);
    if (slots == NULL)
        return false;
    index->used = 0;
    for (size_t i = 0; i < index->capacity; i++) {
        const refer_slot *old = &index->slots[i];
        if (old->place == EMPTY)
            continue;
        if (!is_kept(index, old->tag)) {
            leave(index, old->place);
            continue;
        }
        *slot_of(slots, capacity, old->tag) = *old;
        index->used++;
    }
    free(index->slots);
    index->slots = slots;
    index->capacity = capacity;
    return true;
}

static bool put(refer_index *index, uint64_t tag, uint64_t place, bool final)
{
    if (!is_kept(index, tag))
        return true;
    refer_slot *slot = slot_of(index->slots, index->capacity, tag);
    if (slot->place == EMPTY) {
        if (index->used >= index->capacity / 4 * 3) {
            size_t capacity = index->capacity;
            unsigned thin = index->thin;
            if (!widen(index))
                return false;
            if (capacity == index->capacity && thin == index->thin)
                return true; /* full for good: this one is not known */
            return put(index, tag, place, final);
        }
        index->used++;
    } else if (!final && slot->place != LOST) {
        return true;
    } else {
        leave(index, slot->place);
    }
    slot->tag = tag;
    slot->place = place;
    return true;
}

bool refer_learn(refer_index *index, const digest_kernel *kernel, const uint8_t *secret, const uint8_t *content,
                 size_t length, uint64_t first, bool final)
{
    uint8_t digest[DIGEST_BYTES];
    for (size_t i = 0; i < length / SECTOR_BYTES; i++)
        if (digest_piece(kernel, content + i * SECTOR_BYTES, SECTOR_BYTES, secret, digest) &&
            !put(index, tag_of(digest), first + i, final))
            return false;
    return true;
}

static uint64_t place_of(const refer_index *index, uint64_t tag)
{
    if (!is_kept(index, tag))
        return NOWHERE;
    uint64_t place = slot_of(index->slots, index->capacity, tag)->place;
    return place == EMPTY ? NOWHERE : place;
}

static bool is_there(const refer_index *index, uint64_t place)
{
    if (place >= LOST)
        return false;
    if (place & REFER_SAVED)
        return (place & ~REFER_SAVED) < index->rooms * ROOM_SECTORS;
    return place < index->disk_sectors;
}

size_t refer_plan(const refer_index *index, const refer_entry *entries, size_t count, refer_run *runs,
                  uint16_t tried[REFER_BATCH])
{
    uint64_t places[REFER_BATCH * BLOCK_SECTORS];
    bool guess[REFER_BATCH * BLOCK_SECTORS];
    size_t found = 0, sectors = count * BLOCK_SECTORS;
    for (size_t i = 0; i < count; i++) {
        const uint8_t *digest = entries[i].digests;
        tried[i] = 0;
        for (size_t s = 0; s < BLOCK_SECTORS; s++) {
            size_t at = i * BLOCK_SECTORS + s;
            places[at] = NOWHERE;
            guess[at] = false;
            if (!(entries[i].sectors >> s & 1))
                continue;
            uint64_t tag = tag_of(digest);
            digest += DIGEST_BYTES;
            places[at] = place_of(index, tag);
            guess[at] = !is_kept(index, tag);
        }
    }
    /* A thinned index does not know every sector: those that it cannot know are looked for beside their neighbours. */
    for (size_t at = 1; index->thin > 0 && at < sectors; at++)
        if (guess[at] && places[at - 1] < LOST && is_there(index, places[at - 1] + 1))
            places[at] = places[at - 1] + 1;
    for (size_t at = sectors; index->thin > 0 && at-- > 1;)
        if (guess[at - 1] && places[at - 1] >= LOST && places[at] < LOST && (places[at] & ~REFER_SAVED) > 0)
            places[at - 1] = places[at] - 1;
    for (size_t at = 0; at < sectors; at++) {
        if (!is_there(index, places[at]))
            continue;
        tried[at / BLOCK_SECTORS] |= (uint16_t)(1u << at % BLOCK_SECTORS);
        refer_run *last = found > 0 ? &runs[found - 1] : NULL;
        if (last != NULL && last->at + last->count == at && last->place + last->count == places[at])
            last->count++;
        else
            runs[found++] = (refer_run){places[at], at, 1};
    }
    return found;
}

void refer_prove(const digest_kernel *kernel, const uint8_t *secret, const refer_entry *entries, size_t count,
                 const uint16_t tried[REFER_BATCH], const uint8_t *old, uint8_t *fresh, uint8_t *digests,
                 refer_proof *proof)
{
    memset(proof, 0, sizeof *proof);
    for (size_t i = 0; i < count; i++) {
        const refer_entry *entry = &entries[i];
        const uint8_t *before = old + i * BLOCK_BYTES, *wanted = entry->digests;
        uint8_t *block = fresh + i * BLOCK_BYTES, digest[DIGEST_BYTES];
        unsigned missing = 0;
        for (size_t s = 0; s < BLOCK_SECTORS; s++) {
            uint8_t *sector = block + s * SECTOR_BYTES;
            if (entry->zeroes >> s & 1) {
                memset(sector, 0, SECTOR_BYTES);
                continue;
            }
            if (entry->sectors >> s & 1) {
                const uint8_t *named = wanted;
                wanted += DIGEST_BYTES;
                if (tried[i] >> s & 1) {
                    digest_piece(kernel, sector, SECTOR_BYTES, secret, digest);
                    if (memcmp(digest, named, DIGEST_BYTES) == 0)
                        continue;
                }
                missing |= 1u << s;
            }
            memcpy(sector, before + s * SECTOR_BYTES, SECTOR_BYTES);
        }
        bool changed = missing != entry->sectors || entry->zeroes != 0;
        digest_piece(kernel, block, BLOCK_BYTES, secret, digests + i * DIGEST_BYTES);
        if (missing == 0 && memcmp(digests + i * DIGEST_BYTES, entry->digest, DIGEST_BYTES) != 0) {
            memcpy(block, before, BLOCK_BYTES);
            proof->wrong |= UINT64_C(1) << i;
            continue;
        }
        proof->missing[i] = (uint16_t)missing;
        proof->changed |= (uint64_t)changed << i;
        proof->found += (uint64_t)__builtin_popcount(entry->sectors & ~missing);
    }
}

bool refer_settle(refer_index *index, const refer_entry *entries, size_t count, const refer_proof *proof)
{
    for (size_t i = 0; i < count; i++) {
        if (proof->wrong >> i & 1)
            continue;
        const uint8_t *digest = entries[i].digests;
        for (size_t s = 0; s < BLOCK_SECTORS; s++) {
            if (!(entries[i].sectors >> s & 1))
                continue;
            if (!(proof->missing[i] >> s & 1) &&
                !put(index, tag_of(digest), entries[i].block * BLOCK_SECTORS + s, true))
                return false;
            digest += DIGEST_BYTES;
        }
    }
    return true;
}

/* A free room, in turn, so that neighbours that are saved one after the other stay neighbours; -1 when there is none. */
static int64_t room_of(refer_index *index)
{
    if (index->rooms_used >= index->rooms)
        return -1;
    while (index->live[index->next_room] != 0)
        index->next_room = (index->next_room + 1) % index->rooms;
    size_t room = index->next_room;
    index->next_room = (room + 1) % index->rooms;
    return (int64_t)room;
}

size_t refer_displace(refer_index *index, const digest_kernel *kernel, const uint8_t *secret, const uint8_t *old,
                      size_t blocks, uint64_t first_block, const uint16_t *sectors, uint32_t (*saves)[2])
{
    size_t saved = 0;
    uint8_t digest[DIGEST_BYTES];
    for (size_t i = 0; i < blocks; i++) {
        int64_t room = -2;
        for (size_t s = 0; s < BLOCK_SECTORS; s++) {
            const uint8_t *sector = old + i * BLOCK_BYTES + s * SECTOR_BYTES;
            uint64_t own = (first_block + i) * BLOCK_SECTORS + s;
            if (!(sectors[i] >> s & 1) || !digest_piece(kernel, sector, SECTOR_BYTES, secret, digest))
                continue;
            uint64_t tag = tag_of(digest);
            if (place_of(index, tag) != own)
                continue;
            if (room == -2)
                room = room_of(index);
            refer_slot *slot = slot_of(index->slots, index->capacity, tag);
            if (room < 0) {
                slot->place = LOST;
                continue;
            }
            slot->place = REFER_SAVED | ((uint64_t)room * ROOM_SECTORS + s);
            if (index->live[room]++ == 0)
                index->rooms_used++;
        }
        if (room >= 0) {
            saves[saved][0] = (uint32_t)i;
            saves[saved][1] = (uint32_t)room;
            saved++;
        }
    }
    return saved;
}
