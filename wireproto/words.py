"""Texts in a message: what an error says, on its way to the peer."""

from collections.abc import Sequence

from wireproto.errors import REPORT_TEXT_MAX, MessageRefused


def encode_words(words: Sequence[str]) -> bytes:
    """Texts one after the other, each with a two-byte length, cut to a limit, control characters made spaces."""
    parts = []
    for word in words:
        clean = "".join(letter if letter.isprintable() else " " for letter in word)
        raw = clean.encode()[:REPORT_TEXT_MAX].decode(errors="ignore").encode()
        parts.append(len(raw).to_bytes(2, "little") + raw)
    return b"".join(parts)


def decode_words(data: bytes, count: int) -> list[str]:
    """The inverse of `encode_words`; errors: `MessageRefused` (HW-WIRE-006)."""
    words, at = [], 0
    for _ in range(count):
        size = int.from_bytes(data[at : at + 2], "little")
        raw = data[at + 2 : at + 2 + size]
        if at + 2 > len(data) or len(raw) != size or size > REPORT_TEXT_MAX:
            raise MessageRefused(reason="a text that is cut short or too long")
        text = raw.decode(errors="replace")
        words.append("".join(letter if letter.isprintable() else "?" for letter in text))
        at += 2 + size
    if at != len(data):
        raise MessageRefused(reason="bytes behind the last text")
    return words
