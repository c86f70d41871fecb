"""Records of the retention journal; the contract is kernel/undo.h."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

from _native.digest cimport (
    BLOCK_BYTES, DIGEST_BYTES, SPAN_BLOCKS,
    best_kernel, check_bytes, digest_kernel, span_blocks, start, start_out,
)


cdef extern from "undo.h" nogil:
    enum:
        UNDO_HEADER_BYTES
        UNDO_WHOLE
    ctypedef enum undo_mode:
        UNDO_NEVER
        UNDO_QUICK
    ctypedef enum undo_codec:
        UNDO_ZEROES
    ctypedef enum undo_status:
        UNDO_OK
        UNDO_OTHER
        UNDO_NO_ROOM
    const char *undo_reason(undo_status status)
    void undo_checksum(const digest_kernel *kernel, const uint8_t *data, size_t length, uint8_t *checksum)
    ctypedef struct undo_source:
        const digest_kernel *kernel
        const uint8_t *span
        size_t length
        const uint8_t *sectors
        uint64_t first_block
        uint64_t cycle
        uint64_t durable
    ctypedef struct undo_out:
        uint8_t *bytes
        size_t capacity
        size_t position
        uint8_t chain[16]
    uint64_t undo_pack(const undo_source *source, uint64_t blocks, undo_mode mode, undo_out *out)
    bint undo_chain(const digest_kernel *kernel, uint8_t *bytes, size_t length, uint64_t durable, uint8_t *chain)
    ctypedef struct undo_record:
        uint64_t cycle
        uint64_t first_block
        uint32_t blocks
        uint32_t length
        uint16_t sectors
        uint8_t kind
        int codec
        const uint8_t *payload
        size_t next
    undo_status undo_parse(const digest_kernel *kernel, const uint8_t *bytes, size_t length, size_t position,
                           undo_record *record)
    ctypedef struct undo_index:
        uint64_t blocks
        uint64_t cycle_min
        uint64_t cycle_max
        uint8_t *bitmap
        uint16_t *covered
        uint64_t *places
        uint64_t *more
        uint64_t more_length
        uint64_t base
        uint64_t records
        uint64_t noted
        uint64_t durable
    undo_status undo_scan(const digest_kernel *kernel, const uint8_t *bytes, size_t length, size_t *position,
                          uint8_t *chain, undo_index *index)
    undo_status undo_lay(const undo_record *record, uint8_t *to)
    ctypedef struct undo_found:
        const digest_kernel *kernel
        const uint8_t *bytes
        size_t length
        uint64_t base
        const uint64_t *places
        uint64_t first_block
    uint64_t undo_unpack(const undo_found *found, uint64_t blocks, uint8_t *to)


HEADER_BYTES = UNDO_HEADER_BYTES
WHOLE = UNDO_WHOLE
CHAINED = 1 << 63
NO_ROOM = undo_reason(UNDO_NO_ROOM).decode()


class Damaged(ValueError):
    def __init__(self, position, reason):
        super().__init__(f"{reason} at byte {position}")
        self.position = position
        self.reason = reason


def checksum(const uint8_t[::1] data not None):
    cdef uint8_t found[16]
    cdef const uint8_t *first = start(data)
    cdef size_t length = data.shape[0]
    with nogil:
        undo_checksum(best_kernel(), first, length, found)
    return found[:16]


def pack(const uint8_t[::1] span not None, uint64_t first_block, uint64_t blocks, const uint8_t[::1] sectors not None,
         uint64_t cycle, uint64_t durable, const uint8_t[::1] chain not None, uint8_t[::1] out not None,
         size_t position, int mode):
    cdef undo_source source
    cdef undo_out records
    cdef size_t count = span_blocks(span.shape[0], blocks), block
    check_bytes("chain", chain.shape[0], DIGEST_BYTES)
    if <size_t>sectors.shape[0] < 2 * count:
        raise ValueError(f"sectors has {sectors.shape[0]} bytes, expected 2 for each of {count} blocks")
    for block in range(count):
        if blocks >> block & 1 and sectors[2 * block] == 0 and sectors[2 * block + 1] == 0:
            raise ValueError(f"no sectors of block {block}")
    if position > <size_t>out.shape[0]:
        raise ValueError(f"position {position} is beyond the {out.shape[0]} bytes of out")
    if mode < UNDO_NEVER or mode > UNDO_QUICK:
        raise ValueError(f"a mode is 0 (never), 1 (always), 2 (auto) or 3 (quick), not {mode}")
    source.kernel = best_kernel()
    source.span = start(span)
    source.length = span.shape[0]
    source.sectors = start(sectors)
    source.first_block = first_block
    source.cycle = cycle
    source.durable = durable
    records.bytes = start_out(out)
    records.capacity = out.shape[0]
    records.position = position
    memcpy(records.chain, &chain[0], DIGEST_BYTES)
    with nogil:
        blocks = undo_pack(&source, blocks, <undo_mode>mode, &records)
    return blocks, records.position, records.chain[:16]


def chain(uint8_t[::1] records not None, uint64_t durable, const uint8_t[::1] chain not None):
    cdef uint8_t last[16]
    cdef uint8_t *first = start_out(records)
    cdef size_t length = records.shape[0]
    cdef bint whole
    check_bytes("chain", chain.shape[0], DIGEST_BYTES)
    memcpy(last, &chain[0], DIGEST_BYTES)
    with nogil:
        whole = undo_chain(best_kernel(), first, length, durable, last)
    if not whole:
        raise ValueError(f"{length} bytes that are not whole records")
    return last[:16]


def scan(const uint8_t[::1] data not None, size_t position, const uint8_t[::1] chain not None, uint64_t cycle_min,
         uint64_t cycle_max, uint64_t blocks, uint8_t[::1] bitmap, uint16_t[::1] covered, uint64_t[::1] places,
         uint64_t[::1] more, uint64_t base):
    cdef undo_index index
    cdef undo_status status
    cdef uint8_t last[16]
    cdef const uint8_t *first = start(data)
    cdef size_t length = data.shape[0]
    check_bytes("chain", chain.shape[0], DIGEST_BYTES)
    if position > length:
        raise ValueError(f"position {position} is beyond the {length} bytes of data")
    index.blocks = blocks
    index.cycle_min = cycle_min
    index.cycle_max = cycle_max
    index.bitmap = NULL
    index.covered = NULL
    index.places = index.more = NULL
    index.more_length = 0
    index.base = base
    index.records = index.noted = index.durable = 0
    if bitmap is not None and blocks > 0:
        if <uint64_t>bitmap.shape[0] < (blocks - 1) // 8 + 1:
            raise ValueError(f"a bitmap of {bitmap.shape[0]} bytes is too short for {blocks} blocks")
        index.bitmap = &bitmap[0]
    if covered is not None and blocks > 0:
        if <uint64_t>covered.shape[0] < blocks:
            raise ValueError(f"bitmaps of sectors of {covered.shape[0]} blocks, expected {blocks}")
        index.covered = &covered[0]
    if places is not None and blocks > 0:
        if <uint64_t>places.shape[0] < blocks:
            raise ValueError(f"places for {places.shape[0]} blocks, expected {blocks}")
        if covered is None or more is None or more.shape[0] < 1:
            raise ValueError("places without covered and more")
        if more[0] < 1 or more[0] > <uint64_t>more.shape[0]:
            raise ValueError(f"the first unused entry is {more[0]}, of {more.shape[0]} numbers")
        index.places = &places[0]
        index.more = &more[0]
        index.more_length = more.shape[0]
    memcpy(last, &chain[0], DIGEST_BYTES)
    with nogil:
        status = undo_scan(best_kernel(), first, length, &position, last, &index)
    reason = None
    if status == UNDO_OTHER:
        reason = ""
    elif status != UNDO_OK:
        reason = undo_reason(status).decode()
    return position, last[:16], reason, index.records, index.noted, index.durable


def content(const uint8_t[::1] data not None, size_t position, uint8_t[::1] out not None):
    cdef undo_record record
    cdef undo_status status
    cdef const uint8_t *first = start(data)
    cdef uint8_t *to = start_out(out)
    cdef size_t length = data.shape[0], room = out.shape[0], need
    if position > length:
        raise ValueError(f"position {position} is beyond the {length} bytes of data")
    with nogil:
        status = undo_parse(best_kernel(), first, length, position, &record)
    if status != UNDO_OK:
        raise Damaged(position, "a record of another kind" if status == UNDO_OTHER else undo_reason(status).decode())
    need = record.length if record.sectors == UNDO_WHOLE else BLOCK_BYTES
    if need > room:
        raise ValueError(f"out has {room} bytes, the content needs {need}")
    if need > 0:
        with nogil:
            status = undo_lay(&record, to)
        if status != UNDO_OK:
            raise Damaged(position, undo_reason(status).decode())
    return record.cycle, record.first_block, record.blocks, record.sectors, record.length, record.next


def unpack(const uint8_t[::1] data not None, uint64_t base, const uint64_t[::1] places not None, uint64_t first_block,
           uint64_t blocks, uint8_t[::1] out not None):
    cdef undo_found found
    cdef uint8_t *to = start_out(out)
    cdef size_t end = SPAN_BLOCKS
    while end > 0 and not blocks >> (end - 1) & 1:
        end -= 1
    if end == 0:
        return 0
    if <size_t>places.shape[0] < end:
        raise ValueError(f"{places.shape[0]} places, the bitmap {blocks:#x} needs {end}")
    if <size_t>out.shape[0] < end * BLOCK_BYTES:
        raise ValueError(f"out has {out.shape[0]} bytes, the bitmap {blocks:#x} needs {end * BLOCK_BYTES}")
    found.kernel = best_kernel()
    found.bytes = start(data)
    found.length = data.shape[0]
    found.base = base
    found.places = &places[0]
    found.first_block = first_block
    with nogil:
        blocks = undo_unpack(&found, blocks, to)
    return blocks
