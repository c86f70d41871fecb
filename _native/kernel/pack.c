#include "pack.h"

#include <lz4.h>
#include <string.h>

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

/* The bytes in the named sectors, all of which the block has. */
static size_t payload_bytes(size_t block_bytes, unsigned sectors)
{
    size_t cut = piece_count(block_bytes, SECTOR_BYTES) * SECTOR_BYTES - block_bytes;
    bool last = sectors >> (piece_count(block_bytes, SECTOR_BYTES) - 1) & 1;
    return (size_t)__builtin_popcount(sectors) * SECTOR_BYTES - (last ? cut : 0);
}

/* ---- packing ---- */

static unsigned wanted_sectors(const pack_source *source, size_t index, size_t block_bytes)
{
    unsigned sectors = (unsigned)load(source->sectors + 2 * index, 2);
    return sectors == 0xFFFF ? all_sectors(block_bytes) : sectors;
}

int pack_bad_bitmap(const pack_source *source, uint64_t blocks)
{
    for (int i = 0; i < SPAN_BLOCKS; i++) {
        if (!(blocks >> i & 1))
            continue;
        size_t block_bytes = piece_bytes(source->length, BLOCK_BYTES, (size_t)i);
        unsigned sectors = wanted_sectors(source, (size_t)i, block_bytes);
        if (sectors == 0 || sectors & ~all_sectors(block_bytes))
            return i;
    }
    return -1;
}

/* The named sectors one after the other: in place when they are neighbours, else copied to `scratch`. That copy is
 * what LZ4 needs; where the sectors are then stored after all, a second copy out of the cache is cheaper than a
 * second way through this code. */
static const uint8_t *gather(const uint8_t *block, size_t block_bytes, unsigned sectors, uint8_t *scratch)
{
    unsigned first = (unsigned)__builtin_ctz(sectors), run = sectors >> first;
    if ((run & (run + 1)) == 0)
        return block + first * SECTOR_BYTES;
    uint8_t *to = scratch;
    for (size_t s = first; s * SECTOR_BYTES < block_bytes; s++) {
        if (!(sectors >> s & 1))
            continue;
        size_t bytes = piece_bytes(block_bytes, SECTOR_BYTES, s);
        memcpy(to, block + s * SECTOR_BYTES, bytes);
        to += bytes;
    }
    return scratch;
}

enum {
    SAMPLE_PIECES = 4,
    SAMPLE_PIECE_BYTES = 1024,
    SAMPLE_BYTES = SAMPLE_PIECES * SAMPLE_PIECE_BYTES,
    /* Up to twice the sample, compressing at once costs no more than looking first. */
    SAMPLE_FROM_BYTES = 2 * SAMPLE_BYTES,
    /* Repetitions that are farther apart than the sample is long are missed, so that it saves less than the
     * whole would: it has to save but 1 in 64. */
    SAMPLE_SAVES = 64,
    /* What is worth the receiver's work: 1 in 16, about 6 %. */
    AUTO_SAVES = 16,
};

static bool looks_compressible(const uint8_t *raw, size_t length)
{
    uint8_t sample[SAMPLE_BYTES], packed[SAMPLE_BYTES];
    if (length <= SAMPLE_FROM_BYTES)
        return true;
    size_t step = (length - SAMPLE_PIECE_BYTES) / (SAMPLE_PIECES - 1);
    for (size_t i = 0; i < SAMPLE_PIECES; i++)
        memcpy(sample + i * SAMPLE_PIECE_BYTES, raw + i * step, SAMPLE_PIECE_BYTES);
    return LZ4_compress_default((const char *)sample, (char *)packed, SAMPLE_BYTES,
                                SAMPLE_BYTES - SAMPLE_BYTES / SAMPLE_SAVES) > 0;
}

/* Writes the payload with LZ4 if the mode and the content let it; answers its length, 0 if it has to be stored. */
static size_t compress(const uint8_t *raw, size_t length, pack_mode mode, uint8_t *to)
{
    if (mode == PACK_NEVER || (mode == PACK_AUTO && !looks_compressible(raw, length)))
        return 0;
    /* With so little room LZ4 gives up by itself when it saves too little. */
    size_t room = mode == PACK_AUTO ? length - length / AUTO_SAVES : length;
    if (room == length)
        room--;
    int packed = room > 0 ? LZ4_compress_default((const char *)raw, (char *)to, (int)length, (int)room) : 0;
    return packed > 0 ? (size_t)packed : 0;
}

/* Writes the header of an entry whose payload of `stored` bytes is behind it; the frame goes on behind that. */
static void end_entry(pack_frame *frame, uint64_t block, unsigned sectors, pack_codec codec, size_t stored,
                       const uint8_t *digest)
{
    uint8_t *header = frame->bytes + frame->position;
    store(header, 8, block);
    store(header + 8, 2, sectors);
    header[10] = (uint8_t)codec;
    header[11] = 0;
    store(header + 12, 4, stored);
    memcpy(header + 16, digest, DIGEST_BYTES);
    frame->position += PACK_HEADER_BYTES + stored;
}

uint64_t pack_span(const pack_source *source, uint64_t blocks, pack_mode mode, pack_frame *frame, uint64_t *gathered)
{
    uint8_t scratch[BLOCK_BYTES];
    for (size_t i = 0; i < SPAN_BLOCKS; i++) {
        if (!(blocks >> i & 1))
            continue;
        const uint8_t *block = source->span + i * BLOCK_BYTES;
        size_t block_bytes = piece_bytes(source->length, BLOCK_BYTES, i);
        unsigned sectors = wanted_sectors(source, i, block_bytes);
        size_t length = payload_bytes(block_bytes, sectors);
        if (frame->capacity - frame->position < PACK_HEADER_BYTES + length)
            break;
        uint8_t *payload = frame->bytes + frame->position + PACK_HEADER_BYTES;
        const uint8_t *raw = gather(block, block_bytes, sectors, scratch);
        size_t stored = compress(raw, length, mode, payload);
        if (stored == 0)
            memcpy(payload, raw, length);
        end_entry(frame, source->first_block + i, sectors, stored > 0 ? PACK_LZ4 : PACK_STORED,
                  stored > 0 ? stored : length, source->digests + i * DIGEST_BYTES);
        *gathered += length;
        blocks &= ~(UINT64_C(1) << i);
    }
    return blocks;
}

uint64_t pack_place(const pack_unread *source, uint64_t blocks, pack_frame *frame, pack_taken *taken)
{
    uint8_t scratch[BLOCK_BYTES];
    memset(taken, 0, sizeof *taken);
    for (size_t i = 0; i < SPAN_BLOCKS; i++) {
        if (!(blocks >> i & 1))
            continue;
        size_t block_bytes = piece_bytes(source->length, BLOCK_BYTES, i);
        uint8_t *block = frame->bytes + frame->position + PACK_HEADER_BYTES, *digest = source->digests + i * DIGEST_BYTES;
        if (frame->capacity - frame->position < PACK_HEADER_BYTES + block_bytes)
            break;
        if (!place_read(source->place, i * BLOCK_BYTES, block, block_bytes))
            break;
        blocks &= ~(UINT64_C(1) << i);
        if (!digest_piece(source->kernel, block, block_bytes, source->secret, digest))
            continue;
        unsigned sectors = filled_sectors(block, block_bytes);
        if (2 * (size_t)__builtin_popcount(sectors) > piece_count(block_bytes, SECTOR_BYTES))
            sectors = all_sectors(block_bytes);
        size_t length = payload_bytes(block_bytes, sectors);
        memmove(block, gather(block, block_bytes, sectors, scratch), length);
        end_entry(frame, source->first_block + i, sectors, PACK_STORED, length, digest);
        taken->blocks |= UINT64_C(1) << i;
        taken->sectors += (uint64_t)__builtin_popcount(sectors);
        taken->bytes += length;
    }
    return blocks;
}

/* ---- unpacking ---- */

const char *pack_reason(pack_status status)
{
    switch (status) {
    case PACK_BAD_HEADER_CUT: return "the frame ends inside the header";
    case PACK_BAD_RESERVED: return "the reserved byte is not zero";
    case PACK_BAD_CODEC: return "the codec is neither stored nor LZ4";
    case PACK_BAD_NO_SECTORS: return "the bitmap names no sector";
    case PACK_BAD_STORED: return "the stored length does not suit the sectors and the codec";
    case PACK_BAD_PAYLOAD_CUT: return "the frame ends inside the payload";
    case PACK_BAD_BLOCK: return "the block lies beyond the end of the disk";
    case PACK_BAD_SECTORS: return "the bitmap names sectors beyond the end of the disk";
    case PACK_BAD_LENGTH: return "the stored bytes are not those of the sectors";
    case PACK_BAD_LZ4: return "the payload does not decompress to the bytes of the sectors";
    default: return "the frame is in order";
    }
}

pack_status pack_parse(const uint8_t *frame, size_t length, size_t position, pack_entry *entry)
{
    if (length - position < PACK_HEADER_BYTES)
        return PACK_BAD_HEADER_CUT;
    const uint8_t *header = frame + position;
    size_t rest = length - position - PACK_HEADER_BYTES;
    if (header[10] != PACK_STORED && header[10] != PACK_LZ4)
        return PACK_BAD_CODEC;
    if (header[11] != 0)
        return PACK_BAD_RESERVED;
    entry->block = load(header, 8);
    entry->sectors = (unsigned)load(header + 8, 2);
    entry->codec = (pack_codec)header[10];
    entry->stored = (size_t)load(header + 12, 4);
    entry->digest = header + 16;
    entry->payload = header + PACK_HEADER_BYTES;
    if (entry->sectors == 0)
        return PACK_BAD_NO_SECTORS;
    /* Without the disk it is not known whether the last sector is short: this is the bound for one that is not. */
    size_t most = (size_t)__builtin_popcount(entry->sectors) * SECTOR_BYTES;
    if (entry->stored == 0 || entry->stored > most || (entry->codec == PACK_LZ4 && entry->stored == most))
        return PACK_BAD_STORED;
    if (entry->stored > rest)
        return PACK_BAD_PAYLOAD_CUT;
    entry->next = position + PACK_HEADER_BYTES + entry->stored;
    return PACK_OK;
}

static size_t block_bytes_of(const pack_disk *disk, uint64_t block)
{
    return block + 1 == disk->blocks ? disk->last_block_bytes : BLOCK_BYTES;
}

static bool is_whole(const pack_disk *disk, const pack_entry *entry)
{
    return entry->sectors == all_sectors(block_bytes_of(disk, entry->block));
}

/* Reads the header at `position` and holds it against the disk. */
static pack_status parse_for(const pack_disk *disk, const uint8_t *frame, size_t length, size_t position,
                             pack_entry *entry)
{
    pack_status status = pack_parse(frame, length, position, entry);
    if (status != PACK_OK)
        return status;
    if (entry->block >= disk->blocks)
        return PACK_BAD_BLOCK;
    size_t block_bytes = block_bytes_of(disk, entry->block);
    if (entry->sectors & ~all_sectors(block_bytes))
        return PACK_BAD_SECTORS;
    size_t decoded = payload_bytes(block_bytes, entry->sectors);
    bool suits = entry->codec == PACK_STORED ? entry->stored == decoded : entry->stored < decoded;
    return suits ? PACK_OK : PACK_BAD_LENGTH;
}

/* Writes the `length` bytes that the payload decodes to, which is what the sectors of the entry have. */
static pack_status decode(const pack_entry *entry, uint8_t *to, size_t length)
{
    if (entry->codec == PACK_STORED) {
        memcpy(to, entry->payload, length);
        return PACK_OK;
    }
    int decoded = LZ4_decompress_safe((const char *)entry->payload, (char *)to, (int)entry->stored, (int)length);
    return decoded >= 0 && (size_t)decoded == length ? PACK_OK : PACK_BAD_LZ4;
}

pack_status pack_unpack(const pack_disk *disk, const uint8_t *frame, size_t length, size_t *position, pack_run *run)
{
    pack_entry entry;
    run->count = 0;
    run->length = 0;
    do {
        pack_status status = parse_for(disk, frame, length, *position, &entry);
        if (status != PACK_OK)
            return status;
        if (run->count == 0)
            run->first_block = entry.block;
        if (!is_whole(disk, &entry) || entry.block - run->first_block != run->count)
            return PACK_OK;
        if (run->in_place && entry.codec != PACK_STORED)
            return PACK_OK;
        size_t block_bytes = block_bytes_of(disk, entry.block);
        if (run->capacity - run->length < block_bytes)
            return run->count == 0 ? PACK_NO_ROOM : PACK_OK;
        const uint8_t *content = entry.payload;
        uint8_t digest[DIGEST_BYTES];
        if (!run->in_place) {
            status = decode(&entry, run->bytes + run->length, block_bytes);
            if (status != PACK_OK)
                return status;
            content = run->bytes + run->length;
        }
        digest_piece(disk->kernel, content, block_bytes, disk->secret, digest);
        if (memcmp(digest, entry.digest, DIGEST_BYTES) != 0) {
            run->first_block = entry.block;
            return PACK_MISMATCH;
        }
        memcpy(run->digests + run->count * DIGEST_BYTES, digest, DIGEST_BYTES);
        run->length += block_bytes;
        run->count++;
        *position = entry.next;
    } while (run->count < SPAN_BLOCKS && *position < length);
    return PACK_OK;
}

pack_status pack_patch(const pack_disk *disk, const uint8_t *frame, size_t length, size_t *position, uint8_t *block,
                       size_t block_bytes, bool *matches)
{
    pack_entry entry;
    uint8_t scratch[BLOCK_BYTES], digest[DIGEST_BYTES];
    pack_status status = parse_for(disk, frame, length, *position, &entry);
    if (status != PACK_OK)
        return status;
    if (block_bytes != block_bytes_of(disk, entry.block))
        return PACK_NO_ROOM;
    /* Decoded beside the block, because a payload that breaks off must not leave half a block. */
    status = decode(&entry, scratch, payload_bytes(block_bytes, entry.sectors));
    if (status != PACK_OK)
        return status;
    const uint8_t *from = scratch;
    for (size_t s = 0; s * SECTOR_BYTES < block_bytes; s++) {
        if (!(entry.sectors >> s & 1))
            continue;
        size_t bytes = piece_bytes(block_bytes, SECTOR_BYTES, s);
        memcpy(block + s * SECTOR_BYTES, from, bytes);
        from += bytes;
    }
    digest_piece(disk->kernel, block, block_bytes, disk->secret, digest);
    *matches = memcmp(digest, entry.digest, DIGEST_BYTES) == 0;
    *position = entry.next;
    return PACK_OK;
}
