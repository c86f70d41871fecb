"""References and the index by which they are found; the contract is kernel/refer.h."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from _native.digest cimport (
    BLOCK_BYTES, BLOCK_SECTORS, DIGEST_BYTES, SECTOR_BYTES, SPAN_BLOCKS,
    best_kernel, digest_kernel, secret_start, span_blocks, start, start_out,
)


cdef extern from "<stdbool.h>" nogil:
    ctypedef bint bool_c "bool"


cdef extern from "refer.h" nogil:
    enum:
        REFER_BATCH
        REFER_HEADER_BYTES
    enum: REFER_SAVED
    ctypedef enum refer_status:
        REFER_OK
    const char *refer_reason(refer_status status)
    ctypedef struct refer_source:
        const uint8_t *span
        uint64_t first_block
        const uint8_t *sectors
        const uint8_t *digests
        const uint8_t *secret
        const digest_kernel *kernel
    uint64_t refer_pack(const refer_source *source, uint64_t blocks, uint8_t *frame, size_t capacity, size_t *position,
                        uint64_t *named)
    ctypedef struct refer_entry:
        uint64_t block
        unsigned sectors
        unsigned zeroes
        size_t next
    refer_status refer_parse(const uint8_t *frame, size_t length, size_t position, uint64_t blocks, uint64_t least,
                             refer_entry *entry)
    ctypedef struct refer_index:
        size_t capacity
        size_t used
        unsigned thin
        size_t rooms
        size_t rooms_used
    bool_c refer_index_make(refer_index *index, size_t capacity_max, size_t rooms, uint64_t disk_sectors)
    void refer_index_free(refer_index *index)
    bool_c refer_learn(refer_index *index, const digest_kernel *kernel, const uint8_t *secret, const uint8_t *content,
                       size_t length, uint64_t first, bool_c final)
    ctypedef struct refer_run:
        uint64_t place
        size_t at
        size_t count
    size_t refer_plan(const refer_index *index, const refer_entry *entries, size_t count, refer_run *runs,
                      uint16_t *tried)
    ctypedef struct refer_proof:
        uint16_t missing[64]
        uint64_t wrong
        uint64_t changed
        uint64_t found
    void refer_prove(const digest_kernel *kernel, const uint8_t *secret, const refer_entry *entries, size_t count,
                     const uint16_t *tried, const uint8_t *old, uint8_t *fresh, uint8_t *digests, refer_proof *proof)
    bool_c refer_settle(refer_index *index, const refer_entry *entries, size_t count, const refer_proof *proof)
    size_t refer_displace(refer_index *index, const digest_kernel *kernel, const uint8_t *secret, const uint8_t *old,
                          size_t blocks, uint64_t first_block, const uint16_t *sectors, uint32_t (*saves)[2])


BATCH_BLOCKS = REFER_BATCH
SAVED = 1 << 62


class Malformed(ValueError):
    def __init__(self, position, reason):
        super().__init__(f"the entry at byte {position} of the frame is malformed: {reason}")
        self.position = position
        self.reason = reason


cdef int check_batch(str name, size_t found, size_t blocks) except -1:
    if found < blocks * BLOCK_BYTES:
        raise ValueError(f"{name} has {found} bytes, expected at least {blocks * BLOCK_BYTES}")
    return 0


def pack(const uint8_t[::1] span not None, uint64_t first_block, uint64_t blocks, const uint8_t[::1] sectors not None,
         const uint8_t[::1] digests not None, const uint8_t[::1] secret not None, uint8_t[::1] out not None,
         size_t position):
    cdef refer_source source
    cdef uint64_t named = 0
    cdef size_t length = span.shape[0], count = span_blocks(length, blocks), capacity = out.shape[0]
    if length % BLOCK_BYTES and blocks >> (count - 1) & 1:
        raise ValueError("only whole blocks are named in references")
    if sectors.shape[0] < <Py_ssize_t>(2 * count) or digests.shape[0] < <Py_ssize_t>(DIGEST_BYTES * count):
        raise ValueError(f"sectors and digests have less than {count} elements")
    if position > capacity:
        raise ValueError(f"position {position} is beyond the {capacity} bytes of the frame")
    if first_block > <uint64_t>-1 - SPAN_BLOCKS:
        raise ValueError(f"block {first_block} is beyond the end of any disk")
    source.span = start(span)
    source.first_block = first_block
    source.sectors = start(sectors)
    source.digests = start(digests)
    source.secret = secret_start(secret)
    source.kernel = best_kernel()
    cdef uint8_t *frame = start_out(out)
    with nogil:
        blocks = refer_pack(&source, blocks, frame, capacity, &position, &named)
    return blocks, position, named


cdef class Index:
    cdef refer_index index
    cdef bint made
    cdef const digest_kernel *kernel
    cdef bytes secret
    cdef uint64_t disk_blocks
    # The batch that `plan` read and `prove` ends.
    cdef const uint8_t[::1] frame
    cdef refer_entry entries[64]
    cdef size_t count
    cdef uint16_t tried[64]
    cdef refer_proof proof

    def __cinit__(self, const uint8_t[::1] secret not None, uint64_t disk_blocks, size_t capacity_max, size_t rooms):
        secret_start(secret)
        if capacity_max < 1024 or capacity_max > <size_t>1 << 32 or capacity_max & (capacity_max - 1):
            raise ValueError(f"a capacity is a power of two from 1024 to 2^32, not {capacity_max}")
        if rooms > <size_t>1 << 32:
            raise ValueError(f"at most 2^32 rooms, not {rooms}")
        if disk_blocks >= <uint64_t>1 << 48:
            raise ValueError(f"no disk has {disk_blocks} blocks")
        self.secret = bytes(secret)
        self.kernel = best_kernel()
        self.disk_blocks = disk_blocks
        self.count = 0
        self.made = refer_index_make(&self.index, capacity_max, rooms, disk_blocks * BLOCK_SECTORS)
        if not self.made:
            raise MemoryError()

    def __dealloc__(self):
        if self.made:
            refer_index_free(&self.index)

    cdef const uint8_t *key(self):
        return <const uint8_t *><const char *>self.secret

    @property
    def known(self):
        return self.index.used

    @property
    def thin(self):
        return self.index.thin

    @property
    def rooms_used(self):
        return self.index.rooms_used

    @property
    def full(self):
        return self.index.rooms_used >= self.index.rooms

    def learn(self, const uint8_t[::1] content not None, uint64_t first_sector, bint final):
        cdef const uint8_t *first = start(content)
        cdef size_t length = content.shape[0]
        cdef const uint8_t *key = self.key()
        cdef bool_c done
        if first_sector + length // SECTOR_BYTES > self.disk_blocks * BLOCK_SECTORS + BLOCK_SECTORS:
            raise ValueError(f"sector {first_sector} and what follows lie beyond the disk")
        with nogil:
            done = refer_learn(&self.index, self.kernel, key, first, length, first_sector, final)
        if not done:
            raise MemoryError()

    def plan(self, const uint8_t[::1] frame not None, size_t position, uint64_t least):
        cdef refer_run runs[64 * 16]
        cdef const uint8_t *first = start(frame)
        cdef size_t length = frame.shape[0], found, i
        cdef refer_status status = REFER_OK
        if position > length:
            raise ValueError(f"position {position} is beyond the {length} bytes of the frame")
        self.frame = frame
        self.count = 0
        while self.count < REFER_BATCH and position < length:
            status = refer_parse(first, length, position, self.disk_blocks, least, &self.entries[self.count])
            if status != REFER_OK:
                self.count = 0
                raise Malformed(position, refer_reason(status).decode())
            least = self.entries[self.count].block + 1
            position = self.entries[self.count].next
            self.count += 1
        with nogil:
            found = refer_plan(&self.index, self.entries, self.count, runs, self.tried)
        reads = [(runs[i].place, runs[i].at, runs[i].count) for i in range(found)]
        return position, least, self.block_runs(<uint64_t>-1), reads

    cdef list block_runs(self, uint64_t chosen):
        """(index, first block, count) of the entries in the bitmap `chosen`, neighbours together."""
        cdef list found = []
        cdef size_t i = 0, first
        while i < self.count:
            if not chosen >> i & 1:
                i += 1
                continue
            first = i
            i += 1
            while i < self.count and chosen >> i & 1 and self.entries[i].block == self.entries[i - 1].block + 1:
                i += 1
            found.append((first, self.entries[first].block, i - first))
        return found

    def prove(self, const uint8_t[::1] old not None, uint8_t[::1] fresh not None, uint8_t[::1] out_digests not None):
        cdef const uint8_t *before = start(old)
        cdef uint8_t *after = start_out(fresh)
        cdef uint8_t *digests = start_out(out_digests)
        cdef const uint8_t *key = self.key()
        cdef size_t i
        cdef bool_c done
        check_batch("old", old.shape[0], self.count)
        check_batch("fresh", fresh.shape[0], self.count)
        if out_digests.shape[0] < <Py_ssize_t>(self.count * DIGEST_BYTES):
            raise ValueError(f"out_digests has less than {self.count} elements")
        with nogil:
            refer_prove(self.kernel, key, self.entries, self.count, self.tried, before, after, digests, &self.proof)
            done = refer_settle(&self.index, self.entries, self.count, &self.proof)
        if not done:
            raise MemoryError()
        missing = [
            (self.entries[i].block, self.proof.missing[i]) for i in range(self.count) if self.proof.missing[i]
        ]
        wrong = [self.entries[i].block for i in range(self.count) if self.proof.wrong >> i & 1]
        return self.block_runs(self.proof.changed), missing, wrong, self.proof.found

    def displace_batch(self, const uint8_t[::1] old not None):
        cdef uint16_t sectors[64]
        cdef uint32_t saves[64][2]
        cdef uint32_t saved[64][2]
        cdef const uint8_t *before = start(old)
        cdef const uint8_t *key = self.key()
        cdef size_t i, count = 0
        check_batch("old", old.shape[0], self.count)
        with nogil:
            for i in range(self.count):
                if not self.proof.changed >> i & 1:
                    continue
                sectors[0] = <uint16_t>(self.entries[i].sectors & ~self.proof.missing[i] | self.entries[i].zeroes)
                if refer_displace(&self.index, self.kernel, key, before + i * BLOCK_BYTES, 1, self.entries[i].block,
                                  sectors, saved):
                    saves[count][0] = <uint32_t>i
                    saves[count][1] = saved[0][1]
                    count += 1
        return save_runs(saves, count)

    def displace(self, const uint8_t[::1] old not None, uint64_t first_block, unsigned sectors):
        cdef uint16_t bitmaps[64]
        cdef uint32_t saves[64][2]
        cdef const uint8_t *before = start(old)
        cdef const uint8_t *key = self.key()
        cdef size_t blocks = old.shape[0] // BLOCK_BYTES, i, count
        if blocks > SPAN_BLOCKS:
            raise ValueError(f"a span has at most {SPAN_BLOCKS} blocks, not {blocks}")
        if sectors > 0xFFFF:
            raise ValueError("a block has 16 sectors")
        for i in range(blocks):
            bitmaps[i] = <uint16_t>sectors
        with nogil:
            count = refer_displace(&self.index, self.kernel, key, before, blocks, first_block, bitmaps, saves)
        return save_runs(saves, count)


cdef list save_runs(uint32_t (*saves)[2], size_t count):
    """(block in the buffer, room, how many), neighbours together."""
    cdef list found = []
    cdef size_t i = 0, first
    while i < count:
        first = i
        i += 1
        while i < count and saves[i][0] == saves[i - 1][0] + 1 and saves[i][1] == saves[i - 1][1] + 1:
            i += 1
        found.append((saves[first][0], saves[first][1], i - first))
    return found
