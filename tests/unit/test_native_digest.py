"""What `_native.digest` refuses, what it leaves alone, and that it lets other threads run."""

import mmap
import os
import random
import re
import subprocess
import threading
import time
from pathlib import Path

import pytest

from _native import digest

GOLDEN = Path(__file__).parents[1] / "golden" / "native"
SECRET = bytes.fromhex(re.sub(r"\s", "", (GOLDEN / "default_secret.hex").read_text()))
BLOCK = 65536


def numbers(size: int) -> bytes:
    return b"".join(b"%d\n" % i for i in range(1, 20001))[:size]


@pytest.mark.parametrize("line", (GOLDEN / "xxh3_128.txt").read_text().splitlines())
def test_digest_is_what_xxhsum_says(line: str) -> None:
    size, expected = line.split()
    for variant in digest.variants():
        out = bytearray(16)
        assert digest.digest_blocks(numbers(int(size)), SECRET, out, variant=variant) == 1
        assert out.hex() == expected


def test_golden_files_are_those_of_the_recipe() -> None:
    listed = re.findall(r"^    ([0-9a-f]{64}  \S+)$", (GOLDEN / "README.md").read_text(), re.M)
    assert len(listed) == 3
    subprocess.run(
        ["sha256sum", "--check", "--status"], input="\n".join(listed), text=True, cwd=GOLDEN, check=True
    )


def test_scalar_is_offered_first_and_auto_is_the_last() -> None:
    assert digest.variants()[0] == "scalar"
    out = bytearray(16)
    digest.digest_blocks(b"x", SECRET, out, variant=digest.variants()[-1])
    again = bytearray(16)
    digest.digest_blocks(b"x", SECRET, again, variant="auto")
    assert out == again


@pytest.mark.parametrize("variant", ["", "fast", "AVX2", "avx2\0", "scalar ", "\udc80"])
def test_a_variant_that_the_cpu_has_not_got_is_refused(variant: str) -> None:
    with pytest.raises(ValueError, match="this CPU offers scalar"):
        digest.digest_blocks(b"x", SECRET, bytearray(16), variant=variant)


def test_a_variant_beyond_the_cpu_never_falls_back() -> None:
    for variant in {"sse2", "avx2", "avx512"} - set(digest.variants()):
        with pytest.raises(ValueError, match=re.escape(repr(variant))):
            digest.digest_blocks(b"x", SECRET, bytearray(16), variant=variant)


@pytest.mark.parametrize("unit", [0, 1, 256, 511, 513, 4095, 3 * 4096, 2**26 + 1, 2**27, 2**63])
def test_a_unit_that_is_no_power_of_two_in_range_is_refused(unit: int) -> None:
    with pytest.raises(ValueError, match="a unit is"):
        digest.digest_blocks(b"x" * 4096, SECRET, bytearray(16), unit)


def test_a_number_beyond_64_bits_is_refused() -> None:
    with pytest.raises(OverflowError):
        digest.digest_blocks(b"", SECRET, bytearray(), -1)
    with pytest.raises(OverflowError):
        digest.digest_sectors(b"", SECRET, 1 << 64, bytearray())


@pytest.mark.parametrize("size", [0, 136, 191, 193])
def test_a_secret_of_another_size_is_refused(size: int) -> None:
    for call in (
        lambda: digest.digest_blocks(b"x", bytes(size), bytearray(16)),
        lambda: digest.digest_sectors(b"x", bytes(size), 1, bytearray(256)),
        lambda: digest.fold(bytes(16), bytes(size), bytearray(16)),
    ):
        with pytest.raises(ValueError, match="a secret has 192 bytes"):
            call()


@pytest.mark.parametrize(("size", "out"), [(0, 16), (1, 0), (1, 15), (1, 17), (BLOCK, 32), (BLOCK + 1, 16)])
def test_out_of_another_size_is_refused_and_untouched(size: int, out: int) -> None:
    buffer = bytearray(b"\xaa" * out)
    with pytest.raises(ValueError, match="out has"):
        digest.digest_blocks(b"x" * size, SECRET, buffer)
    assert buffer == b"\xaa" * out


@pytest.mark.parametrize(
    ("size", "blocks", "out"), [(0, 1, 256), (BLOCK, 2, 256), (BLOCK, 1, 255), (BLOCK, 0, 256)]
)
def test_sectors_that_are_not_there_are_refused(size: int, blocks: int, out: int) -> None:
    with pytest.raises(ValueError, match=r"bitmap|out has"):
        digest.digest_sectors(bytes(size), SECRET, blocks, bytearray(out))


def test_more_than_a_span_is_refused() -> None:
    with pytest.raises(ValueError, match="a span has at most"):
        digest.digest_sectors(bytes(64 * BLOCK + 1), SECRET, 1, bytearray(256))


def test_a_whole_span_of_sector_digests() -> None:
    span = numbers(2**16) * 64
    out = bytearray(64 * 256)
    assert digest.digest_sectors(span, SECRET, 2**64 - 1, out) == len(out)
    first = bytearray(256)
    digest.digest_blocks(span[:BLOCK], SECRET, first, 4096)
    assert bytes(out) == bytes(first) * 64


def test_fold_refuses_a_cut_digest_and_another_out() -> None:
    with pytest.raises(ValueError, match="no whole number"):
        digest.fold(bytes(17), SECRET, bytearray(16))
    with pytest.raises(ValueError, match="out has"):
        digest.fold(bytes(65 * 16), SECRET, bytearray(16))


def test_nothing_makes_nothing() -> None:
    assert digest.digest_blocks(b"", SECRET, bytearray()) == 0
    assert digest.digest_sectors(b"", SECRET, 0, bytearray()) == 0
    assert digest.fold(b"", SECRET, bytearray()) == 0
    assert digest.is_zero(b"") is True


def test_length_takes_part_in_the_digest_of_a_short_piece() -> None:
    short, padded = bytearray(16), bytearray(16)
    digest.digest_blocks(b"x" * 10, SECRET, short)
    digest.digest_blocks(b"x" * 10 + bytes(10), SECRET, padded)
    assert short != padded


def test_a_hash_that_looks_like_the_reserved_digest_gets_another_last_byte() -> None:
    """A secret chosen so that XXH3 of the byte 1 is zero: both halves are avalanches of input xor secret."""
    low = 0x01010101
    high = (low << 13 | low >> 19) & 0xFFFFFFFF
    secret = low.to_bytes(4, "little") + bytes(4) + high.to_bytes(4, "little") + bytes(180)
    for variant in digest.variants():
        out = bytearray(16)
        assert digest.digest_blocks(b"\1", secret, out, variant=variant) == 1
        assert bytes(out) == bytes(15) + b"\1"


def test_a_buffer_that_may_not_be_written_is_no_out() -> None:
    with pytest.raises((ValueError, BufferError)):
        digest.digest_blocks(b"x", SECRET, bytes(16))


def test_none_and_strided_buffers_are_refused() -> None:
    with pytest.raises(TypeError):
        digest.is_zero(None)  # type: ignore[arg-type]
    with pytest.raises(BufferError, match="contiguous"):
        digest.is_zero(memoryview(bytes(16))[::2])


def test_mapped_memory_is_read_in_place() -> None:
    with mmap.mmap(-1, BLOCK) as lent:
        lent[BLOCK - 1] = 1
        expected, out = bytearray(16), bytearray(16)
        digest.digest_blocks(bytes(lent), SECRET, expected)
        digest.digest_blocks(lent, SECRET, out)
        assert out == expected


def test_two_threads_digest_different_buffers() -> None:
    spans = [bytes([i]) * (16 * BLOCK) for i in (1, 2, 3, 4)]
    outs = [bytearray(16 * 16) for _ in spans]

    def work(i: int) -> None:
        for _ in range(20):
            digest.digest_blocks(spans[i], SECRET, outs[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for span, out in zip(spans, outs, strict=True):
        expected = bytearray(16 * 16)
        digest.digest_blocks(span, SECRET, expected, variant="scalar")
        assert out == expected


def test_another_thread_runs_in_the_middle_of_a_call() -> None:
    """With the GIL held for the call, the other thread could run before and after it, never in its middle."""
    content = b"\1" * 2**27
    stamps: list[float] = []
    stop = threading.Event()

    def stamp() -> None:
        while not stop.is_set():
            stamps.append(time.perf_counter())
            time.sleep(0.0005)

    thread = threading.Thread(target=stamp)
    thread.start()
    seen = 0
    try:
        for _ in range(10):
            begin = time.perf_counter()
            digest.digest_blocks(content, SECRET, bytearray(16 * 2**11), variant="scalar")
            quarter = (time.perf_counter() - begin) / 4
            seen += any(begin + quarter < each < begin + 3 * quarter for each in stamps)
    finally:
        stop.set()
        thread.join()
    assert seen >= 5


def test_a_place_has_the_digests_of_its_bytes(tmp_path: Path, dice: random.Random) -> None:
    path = tmp_path / "file"
    for length in (0, 1, BLOCK - 1, BLOCK + 1, digest.WORK_BYTES, 11 * BLOCK + 5, dice.randrange(40 * BLOCK)):
        content = bytearray(dice.randbytes(length))
        content[length // 2 : length // 2 + 3 * BLOCK] = bytes(len(content[length // 2 :][: 3 * BLOCK]))
        before = dice.choice([0, 512, BLOCK])
        path.write_bytes(bytes([7]) * before + content + b"behind")
        expected, found = (bytearray(b"\xff" * (-(-length // BLOCK) * 16)) for _ in range(2))
        nonzero = digest.digest_blocks(content, SECRET, expected)
        with path.open("rb") as file:
            work = bytearray(digest.WORK_BYTES)
            told = digest.digest_place(file.fileno(), before, length, SECRET, work, found)
        assert told == (length, nonzero)
        assert found == expected


def test_what_of_a_place_cannot_be_read_is_left_to_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * (9 * BLOCK + 1))
    work, out = bytearray(digest.WORK_BYTES), bytearray(20 * 16)
    with path.open("rb") as file:
        done, nonzero = digest.digest_place(file.fileno(), 0, 20 * BLOCK, SECRET, work, out)
    assert 0 < done <= 9 * BLOCK
    assert (done % BLOCK, nonzero) == (0, done // BLOCK)
    assert digest.digest_place(-1, 0, 20 * BLOCK, SECRET, work, out) == (0, 0)
    writing = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    assert digest.digest_place(writing, 0, BLOCK, SECRET, work, out[:16]) == (0, 0)
    os.close(writing)


def test_a_place_and_room_that_cannot_be_are_refused() -> None:
    work, out = bytearray(digest.WORK_BYTES), bytearray(16)
    with pytest.raises(ValueError, match="work has"):
        digest.digest_place(0, 0, BLOCK, SECRET, work[1:], out)
    with pytest.raises(ValueError, match="out has 16 bytes, expected 32"):
        digest.digest_place(0, 0, BLOCK + 1, SECRET, work, out)
    with pytest.raises(ValueError, match="a secret has"):
        digest.digest_place(0, 0, BLOCK, SECRET[1:], work, out)
    with pytest.raises(ValueError, match="4 EiB"):
        digest.digest_place(0, 1 << 63, BLOCK, SECRET, work, out)
    with pytest.raises(OverflowError):
        digest.digest_place(0, -1, BLOCK, SECRET, work, out)
