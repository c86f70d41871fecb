"""The file or block device under an image: exact reads and writes, holes, flushes, errors that name the place."""

import contextlib
import errno
import fcntl
import os
import stat
import struct
from collections.abc import Iterator, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Final

from disks.errors import (
    DiskReadOnly,
    FlushFailed,
    ImageDamaged,
    NoSpace,
    OpenFailed,
    ReadFailed,
    WriteFailed,
)
from drcore.errors import HomewardError
from drcore.limits import (
    LET_GO_BYTES_MAX,
    RESERVED_BYTES_MIN,
    WRITE_BEHIND_BYTES,
    WRITE_PIECE_BYTES,
    ZEROES_BYTES,
)
from drcore.units import BLOCK_BYTES

BLKGETSIZE64: Final = 0x80081272  # linux/fs.h: _IOR(0x12, 114, size_t)
FALLOC_FL_KEEP_SIZE: Final = 0x01  # linux/falloc.h
FALLOC_FL_PUNCH_HOLE: Final = 0x02
FALLOC_FL_ZERO_RANGE: Final = 0x10
DEVICE_ALIGNMENT: Final = 4096  # no smaller than the logical block of any disk
ZEROES: Final = bytes(ZEROES_BYTES)
SYNC_FILE_RANGE_WRITE: Final = 0x02  # linux/fs.h
EXT_SUPER_MAGIC: Final = 0xEF53  # linux/magic.h
STATFS_BYTES_MAX: Final = 256  # struct statfs has 120 on 64-bit machines, and begins with the magic

FULL: Final = (errno.ENOSPC, errno.EDQUOT)
UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.ENOTTY)


class Access(Enum):
    """What a file or device is opened for."""

    INSPECT = "inspect"
    """To look at it: neither locked nor guarded, because the answer promises nothing."""
    SOURCE = "source"
    """To read it: shared lock, refused while a file system on it is mounted read-write."""
    TARGET = "target"
    """To read and write it: exclusive lock, refused while anybody uses it."""


class Backing:
    """An open file or device. Owns the descriptor (and its lock); every verb may be called from any thread.

    After a failed flush the kernel may have dropped the writes and forgotten the error, so that a second flush
    would lie: every later verb but `close` raises the first `FlushFailed` again.
    """

    def __init__(self, descriptor: int, path: Path, access: Access, *, new: bool = False) -> None:
        """`new`: an empty file that nobody will read soon; room is made before large writes, and what is flushed
        often leaves the page cache.
        """
        self.descriptor = descriptor
        self.path = path
        self.access = access
        status = os.fstat(descriptor)
        self.device = stat.S_ISBLK(status.st_mode)
        self.size = _device_bytes(descriptor) if self.device else status.st_size
        self._failure: str | None = None
        self._unsent = 0
        self._new = new
        self._reserves = None if new else False
        self._written_end = self._flushed_end = 0
        self._punches = True
        self._zero_ranges = True

    @property
    def writable(self) -> bool:
        """Whether it was opened as a target."""
        return self.access is Access.TARGET

    def read(self, offset: int, into: memoryview) -> None:
        """`into` is filled from `offset` on; an end of file before its end is a `ReadFailed`."""
        self._check()
        done, length = 0, len(into)
        while done < length:
            try:
                got = os.preadv(self.descriptor, [into[done:]], offset + done)
            except OSError as error:
                raise self._failed(ReadFailed, offset + done, length - done, error) from error
            if got == 0:
                raise ReadFailed(
                    path=str(self.path),
                    offset=offset + done,
                    length=length - done,
                    reason="the end of the file",
                )
            done += got

    def lend(self) -> int:
        """The descriptor, until `close`, for who reads by itself."""
        self._check()
        return self.descriptor

    def read_bytes(self, offset: int, length: int) -> bytes:
        """`length` bytes from `offset` on. The caller has checked that `length` is sane."""
        into = bytearray(length)
        self.read(offset, memoryview(into))
        return bytes(into)

    def write(self, offset: int, data: memoryview) -> None:
        """The bytes are with the kernel; a file grows where they end behind its end."""
        self._check_writable()
        self._reserve(offset, len(data))
        self._put(offset, data)
        self._written(offset, len(data))

    def write_blocks(self, offset: int, blocks: Sequence[memoryview]) -> None:
        """As `write`, of blocks that lie apart in memory and one behind the other here."""
        self._check_writable()
        self._reserve(offset, sum(map(len, blocks)))
        at = offset
        for first in range(0, len(blocks), WRITE_PIECE_BYTES // BLOCK_BYTES):
            some = blocks[first : first + WRITE_PIECE_BYTES // BLOCK_BYTES]
            length = sum(map(len, some))
            try:
                done = os.pwritev(self.descriptor, some, at)
            except OSError:
                done = 0  # why, and where, comes out below
            if done < length:
                self._put(at + done, memoryview(b"".join(some))[done:])
            at += length
        self._written(offset, at - offset)

    def _reserve(self, offset: int, length: int) -> None:
        """The file system has room for what is about to be written, found in one step instead of page by page."""
        if self._reserves is False or length < RESERVED_BYTES_MIN:
            return
        if self._reserves is None:
            # Nowhere else: btrfs never again compresses a file of which something was reserved.
            self._reserves = _is_ext(self.descriptor)
        if self._reserves and _libc().fallocate64(self.descriptor, FALLOC_FL_KEEP_SIZE, offset, length) != 0:
            self._reserves = False  # whether anything is wrong the write will say

    def _put(self, offset: int, data: memoryview) -> None:
        done, length = 0, len(data)
        while done < length:
            try:
                piece = data[done : done + WRITE_PIECE_BYTES]
                done += os.pwrite(self.descriptor, piece, offset + done)
            except OSError as error:
                raise self._failed(WriteFailed, offset + done, length - done, error) from error

    def _written(self, offset: int, length: int) -> None:
        self.size = max(self.size, offset + length) if not self.device else self.size
        self._written_end = max(self._written_end, offset + length)
        self._unsent += length
        if self._unsent >= WRITE_BEHIND_BYTES:
            self._unsent = 0
            # The medium begins while we go on; left alone, the kernel waits for seconds, or for the flush. Nothing
            # is promised and nothing learned by it: errors come with the flush.
            _libc().sync_file_range(self.descriptor, 0, 0, SYNC_FILE_RANGE_WRITE)

    def zero(self, offset: int, length: int) -> None:
        """The range, which lies within `size`, reads as zeroes, without taking space where the file system can."""
        self._check_writable()
        if length <= 0:
            return
        end = offset + length
        if self.device:
            # The kernel zeroes whole logical blocks of a device only.
            first = min(end, -(-offset // DEVICE_ALIGNMENT) * DEVICE_ALIGNMENT)
            last = max(first, end // DEVICE_ALIGNMENT * DEVICE_ALIGNMENT)
        else:
            first, last = offset, end
        self._write_zeroes(offset, first - offset)
        if not self._zero_cheaply(first, last - first):
            self._write_zeroes(first, last - first)
        self._write_zeroes(last, end - last)

    def resize(self, size: int) -> None:
        """The file is `size` bytes long; what is new reads as zeroes."""
        self._check_writable()
        try:
            os.ftruncate(self.descriptor, size)
        except OSError as error:
            raise self._failed(WriteFailed, min(size, self.size), abs(size - self.size), error) from error
        self.size = size

    def measure(self) -> None:
        """`size` is the file's length as of now."""
        if not self.device:
            self.size = os.fstat(self.descriptor).st_size

    def sync(self) -> None:
        """Data, holes and length are on stable storage (fdatasync covers the metadata that reading needs)."""
        if not self.writable:
            return
        self._check()
        end = self._written_end
        try:
            os.fdatasync(self.descriptor)
        except OSError as error:
            self._failure = _reason(error)
            raise FlushFailed(path=str(self.path), reason=self._failure) from error
        begin, self._flushed_end = self._flushed_end, max(end, self._flushed_end)
        if self._new and 0 < end - begin <= LET_GO_BYTES_MAX:
            # Its pages are used again at once. Those that were free for a while a virtual machine gets from its host,
            # one by one, at a tenth of the speed.
            with contextlib.suppress(OSError):
                os.posix_fadvise(self.descriptor, begin, end - begin, os.POSIX_FADV_DONTNEED)

    def data_runs(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """(offset, length) of what the file system keeps data for in the range; all of it where it cannot tell."""
        self._check()
        end = offset + length
        if self.device:
            yield offset, length
            return
        while offset < end:
            try:
                start = os.lseek(self.descriptor, offset, os.SEEK_DATA)
                stop = os.lseek(self.descriptor, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    return
                if error.errno not in UNSUPPORTED:
                    raise self._failed(ReadFailed, offset, end - offset, error) from error
                start, stop = offset, end
            if start >= end:
                return
            stop = min(stop, end)
            yield start, stop - start
            offset = stop

    def runs(self, offset: int, length: int) -> Iterator[tuple[int, int, bool]]:
        """(offset, length, whether the file system keeps data for it), ascending, covering the range exactly."""
        at, end = offset, offset + length
        for start, count in self.data_runs(offset, length):
            if start > at:
                yield at, start - at, False
            yield start, count, True
            at = start + count
        if at < end:
            yield at, end - at, False

    def allocated_bytes(self) -> int:
        """Bytes that the file system keeps for the file; a device is allocated whole."""
        return self.size if self.device else os.fstat(self.descriptor).st_blocks * 512

    def damaged(self, structure: str, offset: int, seen: str, wanted: str) -> ImageDamaged:
        """The coded error for a structure of this file that cannot be believed."""
        return ImageDamaged(path=str(self.path), structure=structure, offset=offset, seen=seen, wanted=wanted)

    def close(self) -> None:
        """The descriptor and its lock are given back; a second call does nothing."""
        if self.descriptor >= 0:
            descriptor, self.descriptor = self.descriptor, -1
            os.close(descriptor)

    def _check(self) -> None:
        if self._failure is not None:
            raise FlushFailed(path=str(self.path), reason=self._failure)

    def _check_writable(self) -> None:
        self._check()
        if not self.writable:
            raise DiskReadOnly(path=str(self.path))

    def _failed(
        self, kind: type[ReadFailed] | type[WriteFailed], offset: int, length: int, error: OSError
    ) -> HomewardError:
        full = error.errno in FULL or (kind is WriteFailed and error.errno == errno.EFBIG)
        chosen = NoSpace if full else kind
        return chosen(path=str(self.path), offset=offset, length=length, reason=_reason(error))

    def _write_zeroes(self, offset: int, length: int) -> None:
        end = offset + length
        while offset < end:
            part = min(len(ZEROES), end - offset)
            self.write(offset, memoryview(ZEROES)[:part])
            offset += part

    def _zero_cheaply(self, offset: int, length: int) -> bool:
        """Whether the kernel zeroed the range: as a hole, else (devices) by its own zeroing command."""
        if length <= 0:
            return True
        if self._punches:
            if self._fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length):
                return True
            self._punches = False
        if self._zero_ranges and self.device:
            if self._fallocate(FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, offset, length):
                return True
            self._zero_ranges = False
        return False

    def _fallocate(self, mode: int, offset: int, length: int) -> bool:
        while True:
            if _libc().fallocate64(self.descriptor, mode, offset, length) == 0:
                return True
            number = _errno()
            if number == errno.EINTR:
                continue
            if number in UNSUPPORTED or (self.device and number == errno.EPERM):
                return False
            raise self._failed(WriteFailed, offset, length, OSError(number, os.strerror(number)))


def zero_memory(into: memoryview) -> None:
    """`into` holds zeroes."""
    done, length = 0, len(into)
    while done < length:
        part = min(len(ZEROES), length - done)
        into[done : done + part] = ZEROES[:part] if part < len(ZEROES) else ZEROES
        done += part


def rename_new(directory: int, old: str, new: str) -> None:
    """`old` is now called `new`, in one step and over nothing; raises FileExistsError where `new` exists.

    File systems without RENAME_NOREPLACE get a hard link and an unlink, which refuses an existing name as well.
    """
    rename_noreplace = 1  # linux/fs.h
    names = os.fsencode(old), os.fsencode(new)
    if _libc().renameat2(directory, names[0], directory, names[1], rename_noreplace) == 0:
        return
    number = _errno()
    if number not in UNSUPPORTED:
        raise OSError(number, os.strerror(number), new)
    os.link(old, new, src_dir_fd=directory, dst_dir_fd=directory, follow_symlinks=False)
    os.unlink(old, dir_fd=directory)


def sync_directory(path: Path) -> None:
    """The names in the directory are durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_named(descriptor: int, path: Path) -> bool:
    """Whether the open file still has that name: its last owner may have removed it before we locked it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _reason(error: OSError) -> str:
    number = error.errno or errno.EIO
    return f"{os.strerror(number)} ({errno.errorcode.get(number, number)})"


def _device_bytes(descriptor: int) -> int:
    answer = fcntl.ioctl(descriptor, BLKGETSIZE64, bytes(8))
    (size,) = struct.unpack("=Q", answer)
    return int(size)


def _is_ext(descriptor: int) -> bool:
    """Whether the file lies on ext2, ext3 or ext4."""
    import ctypes  # as in _libc

    status = ctypes.create_string_buffer(STATFS_BYTES_MAX)
    if _libc().fstatfs(descriptor, status) != 0:
        return False
    (kind,) = struct.unpack_from("@l", status.raw)
    return bool(kind == EXT_SUPER_MAGIC)


@cache
def _libc() -> Any:
    """The C library: Python's os has neither fallocate with a mode nor renameat2."""
    import ctypes  # here: who only reads needs none of it

    library = ctypes.CDLL(None, use_errno=True)
    library.fallocate64.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    library.fallocate64.restype = ctypes.c_int
    library.sync_file_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    library.sync_file_range.restype = ctypes.c_int
    library.fstatfs.argtypes = [ctypes.c_int, ctypes.c_char_p]
    library.fstatfs.restype = ctypes.c_int
    library.renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    library.renameat2.restype = ctypes.c_int
    return library


def _errno() -> int:
    """Why the last call of `_libc` failed."""
    import ctypes

    return ctypes.get_errno()


def open_failed(path: Path, error: OSError) -> OpenFailed:
    """The coded error for what the operating system said when `path` was to be opened or created."""
    return OpenFailed(path=str(path), reason=_reason(error))
