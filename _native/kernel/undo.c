#include "undo.h"

#include <lz4.h>

/* kSecret of XXH3: with it the hash is XXH3-128 as every other program computes it. */
static const uint8_t SECRET[DIGEST_SECRET_BYTES] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c,
    0xde, 0xd4, 0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f,
    0xcb, 0x79, 0xe6, 0x4e, 0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21,
    0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43, 0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c,
    0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb, 0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3,
    0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19, 0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8,
    0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7, 0xc7, 0x0b, 0x4f, 0x1d,
    0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78, 0x73, 0x64,
    0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e,
    0x2b, 0x16, 0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce,
    0x45, 0xcb, 0x3a, 0x8f, 0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

/* A block of which a sample does not shrink by a sixteenth is stored; old contents of disks are mostly one or the
 * other. LZ4 in its faster gear still halves text, at twice the speed of the default. */
#define SAMPLE_PIECES 4
#define SAMPLE_PIECE_BYTES 1024
#define SAMPLE_BYTES (SAMPLE_PIECES * SAMPLE_PIECE_BYTES)
#define ACCELERATION 4
/* 1.4 GB/s instead of 0.58, and 0.71 of the bytes are left instead of 0.47 (programs and libraries, one core). A block
 * that does not shrink costs no more than a sample of it would. */
#define ACCELERATION_QUICK 64

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

const char *undo_reason(undo_status status)
{
    switch (status) {
    case UNDO_CUT: return "a record that is cut";
    case UNDO_BAD_CHECKSUM: return "a record whose checksum is wrong";
    case UNDO_BAD_CHAIN: return "a record that does not follow the one before it";
    case UNDO_BAD_FIELDS: return "a record whose fields make no sense";
    case UNDO_BAD_LZ4: return "a record whose content does not decompress";
    case UNDO_NO_ROOM: return "a record for which the index has no room";
    default: return "nothing wrong";
    }
}

void undo_checksum(const digest_kernel *kernel, const uint8_t *data, size_t length, uint8_t checksum[DIGEST_BYTES])
{
    kernel->hash(data, length, SECRET, checksum);
}

static bool looks_compressible(const uint8_t *raw, size_t length)
{
    uint8_t sample[SAMPLE_BYTES];
    char packed[SAMPLE_BYTES];
    if (length <= 2 * SAMPLE_BYTES)
        return true;
    size_t step = (length - SAMPLE_PIECE_BYTES) / (SAMPLE_PIECES - 1);
    for (size_t i = 0; i < SAMPLE_PIECES; i++)
        memcpy(sample + i * SAMPLE_PIECE_BYTES, raw + i * step, SAMPLE_PIECE_BYTES);
    return LZ4_compress_default((const char *)sample, packed, SAMPLE_BYTES, SAMPLE_BYTES - SAMPLE_BYTES / 16) > 0;
}

static size_t compress(const uint8_t *raw, size_t length, undo_mode mode, uint8_t *to)
{
    if (mode == UNDO_NEVER || length < 64 || (mode == UNDO_AUTO && !looks_compressible(raw, length)))
        return 0;
    int room = (int)(mode == UNDO_ALWAYS ? length - 1 : length - length / 16);
    int gear = mode == UNDO_QUICK ? ACCELERATION_QUICK : ACCELERATION;
    int packed = LZ4_compress_fast((const char *)raw, (char *)to, (int)length, room, gear);
    return packed > 0 ? (size_t)packed : 0;
}

/* What is kept of a block: some of its sectors, or all of it where `sectors` is 0. */
typedef struct {
    uint64_t first;
    uint32_t blocks;
    uint16_t sectors;
} undo_what;

/* Completes the header of the record at out->position, whose payload is in its place, and moves behind it. */
static void finish(const undo_source *source, undo_what what, size_t stored, size_t length, undo_codec codec,
                   undo_out *out)
{
    uint8_t *header = out->bytes + out->position;
    memcpy(header + 16, out->chain, DIGEST_BYTES);
    store(header + 32, 8, source->cycle);
    store(header + 40, 8, what.first);
    store(header + 48, 4, what.blocks);
    store(header + 52, 4, stored);
    store(header + 56, 4, length);
    header[60] = UNDO_KIND_CONTENT;
    header[61] = (uint8_t)codec;
    store(header + 62, 2, what.sectors);
    store(header + 64, 8, source->durable);
    undo_checksum(source->kernel, header + DIGEST_BYTES, UNDO_HEADER_BYTES - DIGEST_BYTES + stored, header);
    memcpy(out->chain, header, DIGEST_BYTES);
    out->position += UNDO_HEADER_BYTES + stored;
}

/* The bitmap of what is kept of block `i`; 0 for all of it. */
static uint16_t kept(const undo_source *source, size_t i)
{
    uint64_t sectors = load(source->sectors + 2 * i, 2);
    bool whole = sectors == UNDO_WHOLE || piece_bytes(source->length, BLOCK_BYTES, i) < BLOCK_BYTES;
    return whole ? 0 : (uint16_t)sectors;
}

/* The named sectors of a block, one after the other: where they are, or in `room` if they are not neighbours. */
static const uint8_t *gather(const uint8_t *block, unsigned sectors, uint8_t *room, size_t *length)
{
    unsigned low = 0;
    while (!(sectors >> low & 1))
        low++;
    unsigned rest = sectors >> low;
    *length = (size_t)__builtin_popcount(sectors) * SECTOR_BYTES;
    if ((rest & (rest + 1)) == 0)
        return block + low * SECTOR_BYTES;
    size_t at = 0;
    for (unsigned i = low; i < BLOCK_SECTORS; i++)
        if (sectors >> i & 1) {
            memcpy(room + at, block + i * SECTOR_BYTES, SECTOR_BYTES);
            at += SECTOR_BYTES;
        }
    return room;
}

/* How many blocks from `i` on, all to be kept as a whole, are zero. */
static size_t zero_blocks(const undo_source *source, uint64_t blocks, size_t i)
{
    size_t end = i;
    while (end < SPAN_BLOCKS && blocks >> end & 1 && kept(source, end) == 0 &&
           digest_is_zero(source->span + end * BLOCK_BYTES, piece_bytes(source->length, BLOCK_BYTES, end)))
        end++;
    return end - i;
}

uint64_t undo_pack(const undo_source *source, uint64_t blocks, undo_mode mode, undo_out *out)
{
    uint8_t room[BLOCK_BYTES];
    for (size_t i = 0; i < SPAN_BLOCKS; i++) {
        if (!(blocks >> i & 1))
            continue;
        if (out->capacity - out->position < UNDO_HEADER_BYTES)
            break;
        undo_what what = {source->first_block + i, 1, kept(source, i)};
        size_t zeroes = what.sectors == 0 ? zero_blocks(source, blocks, i) : 0;
        if (zeroes > 0) {
            what.blocks = (uint32_t)zeroes;
            finish(source, what, 0, 0, UNDO_ZEROES, out);
            for (size_t done = 0; done < zeroes; done++)
                blocks &= ~(UINT64_C(1) << (i + done));
            continue;
        }
        size_t length = piece_bytes(source->length, BLOCK_BYTES, i);
        const uint8_t *content = source->span + i * BLOCK_BYTES;
        if (what.sectors != 0)
            content = gather(content, what.sectors, room, &length);
        if (out->capacity - out->position < UNDO_HEADER_BYTES + length)
            break;
        blocks &= ~(UINT64_C(1) << i);
        if (what.sectors != 0 && digest_is_zero(content, length)) {
            finish(source, what, 0, 0, UNDO_ZEROES, out);
            continue;
        }
        uint8_t *payload = out->bytes + out->position + UNDO_HEADER_BYTES;
        size_t stored = compress(content, length, mode, payload);
        undo_codec codec = stored > 0 ? UNDO_LZ4 : UNDO_STORED;
        if (stored == 0) {
            memcpy(payload, content, length);
            stored = length;
        }
        finish(source, what, stored, length, codec, out);
    }
    return blocks;
}

bool undo_chain(const digest_kernel *kernel, uint8_t *bytes, size_t length, uint64_t durable,
                uint8_t chain[DIGEST_BYTES])
{
    while (length > 0) {
        if (length < UNDO_HEADER_BYTES || load(bytes + 52, 4) > length - UNDO_HEADER_BYTES)
            return false;
        size_t whole = UNDO_HEADER_BYTES + (size_t)load(bytes + 52, 4);
        memcpy(bytes + 16, chain, DIGEST_BYTES);
        store(bytes + 64, 8, durable);
        undo_checksum(kernel, bytes + DIGEST_BYTES, whole - DIGEST_BYTES, bytes);
        memcpy(chain, bytes, DIGEST_BYTES);
        bytes += whole;
        length -= whole;
    }
    return true;
}

undo_status undo_parse(const digest_kernel *kernel, const uint8_t *bytes, size_t length, size_t position,
                       undo_record *record)
{
    if (length - position < UNDO_HEADER_BYTES)
        return UNDO_CUT;
    const uint8_t *header = bytes + position;
    record->stored = (uint32_t)load(header + 52, 4);
    if (record->stored > length - position - UNDO_HEADER_BYTES)
        return UNDO_CUT;
    uint8_t checksum[DIGEST_BYTES];
    undo_checksum(kernel, header + DIGEST_BYTES, UNDO_HEADER_BYTES - DIGEST_BYTES + record->stored, checksum);
    if (memcmp(checksum, header, DIGEST_BYTES) != 0)
        return UNDO_BAD_CHECKSUM;
    record->chain = header + 16;
    record->cycle = load(header + 32, 8);
    record->first_block = load(header + 40, 8);
    record->blocks = (uint32_t)load(header + 48, 4);
    record->length = (uint32_t)load(header + 56, 4);
    record->kind = header[60];
    record->codec = (undo_codec)header[61];
    record->sectors = (uint16_t)load(header + 62, 2);
    record->durable = load(header + 64, 8);
    record->payload = header + UNDO_HEADER_BYTES;
    record->next = position + UNDO_HEADER_BYTES + record->stored;
    if (record->kind != UNDO_KIND_CONTENT)
        return UNDO_OTHER;
    bool sound = false;
    switch (header[61]) {
    case UNDO_STORED: sound = record->stored == record->length; break;
    case UNDO_LZ4: sound = record->stored < record->length; break;
    case UNDO_ZEROES: sound = record->stored == 0 && record->length == 0; break;
    }
    if (record->codec != UNDO_ZEROES)
        sound = sound && record->blocks == 1 && record->length > 0 && record->length <= BLOCK_BYTES;
    if (record->sectors == 0) {
        record->sectors = UNDO_WHOLE;
    } else {
        sound = sound && record->blocks == 1 && record->sectors != UNDO_WHOLE;
        if (record->codec != UNDO_ZEROES)
            sound = sound && record->length == (size_t)__builtin_popcount(record->sectors) * SECTOR_BYTES;
    }
    return sound && record->blocks >= 1 && record->blocks <= SPAN_BLOCKS ? UNDO_OK : UNDO_BAD_FIELDS;
}

#define ENTRY_NUMBERS 2
#define NEXT_SHIFT 16

static uint64_t entry_at(uint64_t place, uint64_t sectors, undo_index *index)
{
    uint64_t at = index->more[0];
    index->more[at] = place;
    index->more[at + 1] = sectors;
    index->more[0] = at + ENTRY_NUMBERS;
    return at;
}

/* The block, which has a place, has another one, of its sectors `fresh`. Answers false where there is no room. */
static bool chain_place(uint64_t block, uint64_t place, unsigned fresh, undo_index *index)
{
    if (index->more[0] + 2 * ENTRY_NUMBERS > index->more_length)
        return false;
    if (!(index->places[block] & UNDO_CHAINED))
        index->places[block] = UNDO_CHAINED | entry_at(index->places[block], index->covered[block], index);
    uint64_t last = index->places[block] & ~UNDO_CHAINED;
    while (index->more[last + 1] >> NEXT_SHIFT)
        last = index->more[last + 1] >> NEXT_SHIFT;
    index->more[last + 1] |= entry_at(place, fresh, index) << NEXT_SHIFT;
    return true;
}

/* Answers false where the index has no room; noted again when it has, the record counts once. */
static bool note(const undo_record *record, size_t position, undo_index *index)
{
    for (uint32_t i = 0; i < record->blocks && record->cycle >= index->cycle_min && record->cycle <= index->cycle_max;
         i++) {
        uint64_t block = record->first_block + i;
        if (block >= index->blocks)
            break;
        if (index->covered != NULL) {
            unsigned fresh = record->sectors & ~(unsigned)index->covered[block];
            if (fresh == 0)
                continue;
            if (index->places != NULL && index->places[block] == 0)
                index->places[block] = index->base + position;
            else if (index->places != NULL && !chain_place(block, index->base + position, fresh, index))
                return false;
            index->covered[block] |= (uint16_t)fresh;
        }
        if (index->bitmap != NULL) {
            if (index->covered == NULL && index->bitmap[block / 8] >> (block % 8) & 1)
                continue;
            index->bitmap[block / 8] |= (uint8_t)(1u << (block % 8));
        }
        index->noted++;
    }
    index->records++;
    return true;
}

undo_status undo_scan(const digest_kernel *kernel, const uint8_t *bytes, size_t length, size_t *position,
                      uint8_t chain[DIGEST_BYTES], undo_index *index)
{
    undo_record record;
    while (*position < length) {
        undo_status status = undo_parse(kernel, bytes, length, *position, &record);
        if (status == UNDO_OK || status == UNDO_OTHER) {
            if (memcmp(record.chain, chain, DIGEST_BYTES) != 0)
                return UNDO_BAD_CHAIN;
            if (record.durable > index->durable)
                index->durable = record.durable;
        }
        if (status != UNDO_OK)
            return status;
        if (!note(&record, *position, index))
            return UNDO_NO_ROOM;
        memcpy(chain, bytes + *position, DIGEST_BYTES);
        *position = record.next;
    }
    return UNDO_OK;
}

undo_status undo_lay(const undo_record *record, uint8_t *to)
{
    uint8_t room[BLOCK_BYTES];
    const uint8_t *content = record->payload;
    bool whole = record->sectors == UNDO_WHOLE;
    if (record->codec == UNDO_LZ4) {
        uint8_t *out = whole ? to : room;
        int decoded =
            LZ4_decompress_safe((const char *)record->payload, (char *)out, (int)record->stored, (int)record->length);
        if (decoded < 0 || (uint32_t)decoded != record->length)
            return UNDO_BAD_LZ4;
        content = out;
    }
    if (whole) {
        if (record->codec == UNDO_STORED)
            memcpy(to, content, record->length);
        else if (record->codec == UNDO_ZEROES)
            memset(to, 0, BLOCK_BYTES);
        return UNDO_OK;
    }
    for (unsigned i = 0; i < BLOCK_SECTORS; i++) {
        if (!(record->sectors >> i & 1))
            continue;
        if (record->codec == UNDO_ZEROES) {
            memset(to + i * SECTOR_BYTES, 0, SECTOR_BYTES);
        } else {
            memcpy(to + i * SECTOR_BYTES, content, SECTOR_BYTES);
            content += SECTOR_BYTES;
        }
    }
    return UNDO_OK;
}

static bool unpack(const undo_found *found, uint64_t block, uint64_t place, uint8_t *to)
{
    undo_record record;
    if (place < found->base || place - found->base > found->length ||
        undo_parse(found->kernel, found->bytes, found->length, place - found->base, &record) != UNDO_OK ||
        block < record.first_block || block - record.first_block >= record.blocks)
        return false;
    bool short_one = record.sectors == UNDO_WHOLE && record.codec != UNDO_ZEROES && record.length < BLOCK_BYTES;
    return !short_one && undo_lay(&record, to) == UNDO_OK;
}

uint64_t undo_unpack(const undo_found *found, uint64_t blocks, uint8_t *to)
{
    for (size_t i = 0; i < SPAN_BLOCKS; i++)
        if (blocks >> i & 1 && unpack(found, found->first_block + i, found->places[i], to + i * BLOCK_BYTES))
            blocks &= ~(UINT64_C(1) << i);
    return blocks;
}
