"""The messages of a common point of a replication group: enrol, prepare, frozen, harvested, thaw."""

from typing import Final

from drcore.record import Record
from wireproto.errors import LimitExceeded, MessageRefused

GROUP_NAME_BYTES_MAX: Final = 255
"""The name of a replication group: that of a file where a round of it is recorded."""


class Enrol(Record):
    """Agent: this machine waits for the others of its replication group, to have a common point with them."""

    group: str


class Prepare(Record):
    """Master target: every member is there; freeze, harvest and wait for the thaw. The common point will be this."""

    point: bytes


class Frozen(Record):
    """Agent: nothing writes to the sources from here on until the thaw."""

    point: bytes


class Harvested(Record):
    """Agent: what belongs to the point is known; only after the thaw may anything else be written."""

    point: bytes


class Thaw(Record):
    """Master target: every member was frozen at one instant and has harvested; go on."""

    point: bytes


def decode_enrol(body: bytes) -> Enrol:
    """The message with this body. Errors: `LimitExceeded` (HW-WIRE-005), `MessageRefused` (HW-WIRE-006)."""
    if len(body) > GROUP_NAME_BYTES_MAX:
        raise LimitExceeded(field="bytes of a group's name", value=len(body), limit=GROUP_NAME_BYTES_MAX)
    try:
        name = body.decode()
    except UnicodeDecodeError as error:
        raise MessageRefused(reason="a group whose name is no text") from error
    if not name or not name.isprintable():
        raise MessageRefused(reason="a group without a name that can be printed")
    return Enrol(name)
