"""Entries of a data frame; the contract is kernel/pack.h."""

from libc.stdint cimport uint8_t, uint64_t

from _native.digest cimport (
    BLOCK_BYTES, DIGEST_BYTES, SPAN_BLOCKS,
    best_kernel, digest_kernel, file_place, piece_count, place, secret_start, span_blocks, start, start_out,
)


cdef extern from "<stdbool.h>" nogil:
    ctypedef bint bool_c "bool"


cdef extern from "pack.h" nogil:
    ctypedef enum pack_mode:
        PACK_NEVER
        PACK_AUTO
    ctypedef enum pack_status:
        PACK_OK
        PACK_MISMATCH
        PACK_NO_ROOM
    const char *pack_reason(pack_status status)
    ctypedef struct pack_source:
        const uint8_t *span
        size_t length
        uint64_t first_block
        const uint8_t *sectors
        const uint8_t *digests
    ctypedef struct pack_frame:
        uint8_t *bytes
        size_t capacity
        size_t position
    int pack_bad_bitmap(const pack_source *source, uint64_t blocks)
    uint64_t pack_span(const pack_source *source, uint64_t blocks, pack_mode mode, pack_frame *frame,
                       uint64_t *gathered)
    ctypedef struct pack_unread:
        file_place place
        size_t length
        uint64_t first_block
        const digest_kernel *kernel
        const uint8_t *secret
        uint8_t *digests
    ctypedef struct pack_taken:
        uint64_t blocks
        uint64_t sectors
        uint64_t bytes
    uint64_t pack_place(const pack_unread *source, uint64_t blocks, pack_frame *frame, pack_taken *taken)
    ctypedef struct pack_entry:
        uint64_t block
        unsigned sectors
        int codec
        size_t stored
        size_t next
    pack_status pack_parse(const uint8_t *frame, size_t length, size_t position, pack_entry *entry)
    ctypedef struct pack_disk:
        uint64_t blocks
        size_t last_block_bytes
        const uint8_t *secret
        const digest_kernel *kernel
    ctypedef struct pack_run:
        bool_c in_place
        uint8_t *bytes
        size_t capacity
        uint8_t *digests
        uint64_t first_block
        size_t count
        size_t length
    pack_status pack_unpack(const pack_disk *disk, const uint8_t *frame, size_t length, size_t *position,
                            pack_run *run)
    pack_status pack_patch(const pack_disk *disk, const uint8_t *frame, size_t length, size_t *position,
                           uint8_t *block, size_t block_bytes, bool_c *matches)


class Malformed(ValueError):
    def __init__(self, position, reason):
        super().__init__(f"the entry at byte {position} of the frame is malformed: {reason}")
        self.position = position
        self.reason = reason


class Mismatch(ValueError):
    def __init__(self, block):
        super().__init__(f"block {block} of the frame has not the digest that its entry says")
        self.block = block


cdef int check_at_least(str name, size_t found, size_t needed) except -1:
    if found < needed:
        raise ValueError(f"{name} has {found} bytes, expected at least {needed}")
    return 0


cdef int check_position(size_t position, size_t length) except -1:
    if position > length:
        raise ValueError(f"position {position} is beyond the {length} bytes of the frame")
    return 0


cdef pack_disk disk_of(uint64_t disk_blocks, size_t last_block_bytes, const uint8_t *secret) except *:
    cdef pack_disk disk
    if disk_blocks == 0:
        raise ValueError("a disk without blocks takes no entries")
    if last_block_bytes == 0 or last_block_bytes > BLOCK_BYTES:
        raise ValueError(f"the last block of a disk has 1 to {BLOCK_BYTES} bytes, not {last_block_bytes}")
    disk.blocks = disk_blocks
    disk.last_block_bytes = last_block_bytes
    disk.secret = secret
    disk.kernel = best_kernel()
    return disk


cdef int check_status(pack_status status, size_t position) except -1:
    if status != PACK_OK:
        raise Malformed(position, pack_reason(status).decode())
    return 0


cdef uint64_t check_first_block(uint64_t first_block) except? 0:
    if first_block > <uint64_t>-1 - SPAN_BLOCKS:
        raise ValueError(f"block {first_block} is beyond the end of any disk")
    return first_block


def pack(const uint8_t[::1] span not None, uint64_t first_block, uint64_t blocks, const uint8_t[::1] sectors not None,
         const uint8_t[::1] digests not None, uint8_t[::1] out not None, size_t position, int mode):
    cdef pack_source source
    cdef pack_frame frame
    cdef uint64_t gathered = 0
    cdef size_t count = span_blocks(span.shape[0], blocks)
    check_at_least("sectors", sectors.shape[0], 2 * count)
    check_at_least("digests", digests.shape[0], DIGEST_BYTES * count)
    check_position(position, out.shape[0])
    if mode < PACK_NEVER or mode > PACK_AUTO:
        raise ValueError(f"a mode is 0 (never), 1 (always) or 2 (auto), not {mode}")
    source.span = start(span)
    source.length = span.shape[0]
    source.first_block = check_first_block(first_block)
    source.sectors = start(sectors)
    source.digests = start(digests)
    cdef int bad = pack_bad_bitmap(&source, blocks)
    if bad >= 0:
        raise ValueError(f"the sectors of block {first_block + bad} are none, or some that it has not got")
    frame.bytes = start_out(out)
    frame.capacity = out.shape[0]
    frame.position = position
    with nogil:
        blocks = pack_span(&source, blocks, <pack_mode>mode, &frame, &gathered)
    return blocks, frame.position, gathered


def pack_unread_place(int descriptor, uint64_t first, size_t length, uint64_t first_block, uint64_t blocks,
                      const uint8_t[::1] secret not None, uint8_t[::1] out_digests not None,
                      uint8_t[::1] out not None, size_t position):
    cdef pack_unread source
    cdef pack_frame frame
    cdef pack_taken taken
    cdef size_t count = span_blocks(length, blocks)
    source.place = place(descriptor, first, length)
    source.length = length
    source.first_block = check_first_block(first_block)
    source.kernel = best_kernel()
    source.secret = secret_start(secret)
    check_at_least("out_digests", out_digests.shape[0], DIGEST_BYTES * count)
    source.digests = start_out(out_digests)
    check_position(position, out.shape[0])
    frame.bytes = start_out(out)
    frame.capacity = out.shape[0]
    frame.position = position
    with nogil:
        blocks = pack_place(&source, blocks, &frame, &taken)
    return blocks, frame.position, taken.blocks, taken.sectors, taken.bytes


def entry(const uint8_t[::1] frame not None, size_t position):
    cdef pack_entry found
    check_position(position, frame.shape[0])
    check_status(pack_parse(start(frame), frame.shape[0], position, &found), position)
    return found.block, found.sectors, found.codec, found.stored, found.next


def unpack(const uint8_t[::1] frame not None, size_t position, uint64_t disk_blocks, size_t last_block_bytes,
           const uint8_t[::1] secret not None, uint8_t[::1] out not None, uint8_t[::1] out_digests not None):
    cdef pack_disk disk = disk_of(disk_blocks, last_block_bytes, secret_start(secret))
    cdef pack_run run
    cdef pack_status status
    cdef const uint8_t *first = start(frame)
    cdef size_t length = frame.shape[0]
    check_position(position, length)
    run.in_place = False
    run.bytes = start_out(out)
    run.capacity = out.shape[0]
    check_at_least("out_digests", out_digests.shape[0],
                   DIGEST_BYTES * min(<size_t>SPAN_BLOCKS, piece_count(run.capacity, BLOCK_BYTES)))
    run.digests = start_out(out_digests)
    with nogil:
        status = pack_unpack(&disk, first, length, &position, &run)
    if status == PACK_MISMATCH:
        raise Mismatch(run.first_block)
    if status == PACK_NO_ROOM:
        raise ValueError(f"out has {run.capacity} bytes, which is less than block {run.first_block}")
    check_status(status, position)
    return position, run.first_block, run.count, run.length


def prove(const uint8_t[::1] frame not None, size_t position, uint64_t disk_blocks, size_t last_block_bytes,
          const uint8_t[::1] secret not None, uint8_t[::1] out_digests not None):
    cdef pack_disk disk = disk_of(disk_blocks, last_block_bytes, secret_start(secret))
    cdef pack_run run
    cdef pack_status status
    cdef const uint8_t *first = start(frame)
    cdef size_t length = frame.shape[0]
    check_position(position, length)
    check_at_least("out_digests", out_digests.shape[0], DIGEST_BYTES * SPAN_BLOCKS)
    run.in_place = True
    run.bytes = NULL
    run.capacity = SPAN_BLOCKS * BLOCK_BYTES
    run.digests = start_out(out_digests)
    with nogil:
        status = pack_unpack(&disk, first, length, &position, &run)
    if status == PACK_MISMATCH:
        raise Mismatch(run.first_block)
    check_status(status, position)
    return position, run.first_block, run.count


def unpack_patch(const uint8_t[::1] frame not None, size_t position, uint64_t disk_blocks, size_t last_block_bytes,
                 const uint8_t[::1] secret not None, uint8_t[::1] block not None):
    cdef pack_disk disk = disk_of(disk_blocks, last_block_bytes, secret_start(secret))
    cdef pack_status status
    cdef const uint8_t *first = start(frame)
    cdef size_t length = frame.shape[0]
    cdef uint8_t *content = start_out(block)
    cdef size_t block_bytes = block.shape[0]
    cdef bool_c matches = False
    check_position(position, length)
    with nogil:
        status = pack_patch(&disk, first, length, &position, content, block_bytes, &matches)
    if status == PACK_NO_ROOM:
        raise ValueError(f"block has {block_bytes} bytes, which is not the size of the block in the entry")
    check_status(status, position)
    return position, bool(matches)
