"""Values that never change, such as the messages of the protocol: their fields are told as those of a dataclass are.

    class Durable(Record):
        sequence: int

is for readers, for mypy (PEP 681) and for `match` what `@dataclass(frozen=True, slots=True)` would make of it. The
standard library writes six methods for each class as text and compiles them whenever its module is imported, half a
millisecond a class (measured, Python 3.11); here they stand once, for 20 microseconds a class. Where there are many
classes, that is felt at each start; for a few a dataclass is as good. `dataclasses.replace` and its like do not know
records.
"""

from typing import Any, ClassVar, NoReturn, dataclass_transform


@dataclass_transform(frozen_default=True)
class _RecordType(type):
    """Makes slots of the annotated names, and keeps their defaults."""

    def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> "_RecordType":
        fields = tuple(each for each in body.get("__annotations__", ()) if not each.startswith("_"))
        body["_defaults"] = {each: body.pop(each) for each in fields if each in body}
        body["_fields"] = body["__slots__"] = body["__match_args__"] = fields
        return super().__new__(mcs, name, bases, body)


class Record(metaclass=_RecordType):
    """A value with named fields; equal to another of its class whose fields are equal."""

    _fields: ClassVar[tuple[str, ...]]
    _defaults: ClassVar[dict[str, Any]]

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = self._fields
        if named or len(values) != len(fields):
            values = self._complete(values, named)
        for name, value in zip(fields, values, strict=True):
            object.__setattr__(self, name, value)

    def _complete(self, values: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
        """A value for each field, in order: by place, by name, or its default."""
        fields = self._fields
        rest = {
            name: self._defaults[name] for name in fields[len(values) :] if name in self._defaults
        } | named
        if len(values) > len(fields) or rest.keys() != set(fields[len(values) :]):
            raise TypeError(
                f"{type(self).__name__} takes {fields}, got {len(values)} values and {tuple(named)}"
            )
        return (*values, *(rest[name] for name in fields[len(values) :]))

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._fields)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} does not change")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} does not change")

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((type(self), self._values()))

    def __repr__(self) -> str:
        found = zip(self._fields, self._values(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in found)})"
