"""Classes of named fields, told as those of a dataclass are, without what a dataclass costs at each start.

    class Durable(Record):          class Tally(Changing):
        sequence: int                   blocks: int = 0
                                        changed: list[int] = made(factory=list)

are for readers, for mypy (PEP 681) and for `match` what `@dataclass(frozen=True, slots=True)` and
`@dataclass(slots=True)` would make of them. The standard library writes six methods for each class as text and compiles
them whenever its module is imported, a millisecond a class (measured, Python 3.11), and brings `inspect` with it; here
they stand once, for 20 microseconds a class. A sync makes sixty such classes before its first byte. One of which
instances are made with each frame says `often=True`: then its `__init__` is compiled after all, for 70 microseconds
once, and takes a quarter of the common one's time. Fields are the annotated names that do not begin with an
underscore; a class with fields has no descendants with further ones. `dataclasses.replace`, `asdict` and `fields` take
both kinds.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, Self, TypeVar, dataclass_transform

if TYPE_CHECKING:
    from dataclasses import Field

_Value = TypeVar("_Value")
_set: Final = object.__setattr__


class _Made:
    """A default that each instance gets anew."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        self.factory = factory


def made(factory: Callable[[], _Value]) -> _Value:
    """The default of a field is what `factory` answers, made anew for each instance."""
    default: Any = _Made(factory)
    return default  # type: ignore[no-any-return]


class _AsDataclass:
    """What `dataclasses` asks a class of its own for; made when it asks for the first time."""

    def __get__(self, instance: object, owner: "type[_Named]") -> "dict[str, Field[Any]]":
        from dataclasses import make_dataclass

        found: dict[str, Field[Any]] = make_dataclass(owner.__name__, owner._fields).__dataclass_fields__  # type: ignore[attr-defined]
        owner.__dataclass_fields__ = found  # type: ignore[assignment]  # its own; this is not asked again
        return found


class _Fields(type):
    """Makes slots of the annotated names, and keeps their defaults."""

    def __new__(
        mcs, name: str, bases: tuple[type, ...], body: dict[str, Any], *, often: bool = False
    ) -> "_Fields":
        fields = tuple(each for each in body.get("__annotations__", ()) if not each.startswith("_"))
        body["_defaults"] = {each: body.pop(each) for each in fields if each in body}
        body["_fields"] = body["__slots__"] = body["__match_args__"] = fields
        made_class = super().__new__(mcs, name, bases, body)
        if often:
            _write_init(made_class, fields, body["_defaults"])
        return made_class

    def __init__(
        cls, name: str, bases: tuple[type, ...], body: dict[str, Any], *, often: bool = False
    ) -> None:
        super().__init__(name, bases, body)


def _write_init(of: Any, fields: tuple[str, ...], defaults: dict[str, Any]) -> None:
    """The class gets an `__init__` that does for its fields what the common one does, written out and compiled."""
    names: dict[str, Any] = {f"set_{field}": of.__dict__[field].__set__ for field in fields}
    parameters, lines = [], []
    for field in fields:
        default, value = defaults.get(field), field
        names[f"default_{field}"] = default
        parameters.append(f"{field}=default_{field}" if field in defaults else field)
        if isinstance(default, _Made):
            names[f"make_{field}"] = default.factory
            value = f"make_{field}() if {field} is default_{field} else {field}"
        lines.append(f"    set_{field}(self, {value})\n")
    exec(f"def __init__(self, {', '.join(parameters)}):\n{''.join(lines)}", names)  # noqa: S102
    of.__init__ = names["__init__"]


class _Named(metaclass=_Fields):
    """What both kinds do alike."""

    _fields: ClassVar[tuple[str, ...]]
    _defaults: ClassVar[dict[str, Any]]
    __dataclass_fields__ = _AsDataclass()

    def __init__(self, *values: Any, **named: Any) -> None:
        fields = self._fields
        if named or len(values) != len(fields):
            values = self._complete(values, named)
        for name, value in zip(fields, values, strict=True):
            _set(self, name, value)

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
        found = (rest[name] for name in fields[len(values) :])
        return (*values, *(each.factory() if isinstance(each, _Made) else each for each in found))

    def but(self, **changes: Any) -> Self:
        """As this one, with those fields instead of its own."""
        return type(self)(**dict(zip(self._fields, self._values(), strict=True)) | changes)

    def as_dict(self) -> dict[str, Any]:
        """The fields by name; those of records in it, also within tuples, likewise."""
        return {name: _plain(value) for name, value in zip(self._fields, self._values(), strict=True)}

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._fields)

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if type(other) is type(self) else NotImplemented

    def __repr__(self) -> str:
        found = zip(self._fields, self._values(), strict=True)
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in found)})"


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_plain(each) for each in value)
    return value.as_dict() if isinstance(value, _Named) else value


@dataclass_transform(frozen_default=True, field_specifiers=(made,))
class _RecordType(_Fields):
    """The type of classes whose values never change."""


class Record(_Named, metaclass=_RecordType):
    """A value with named fields, which never changes; equal to another of its class whose fields are equal."""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} does not change")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} does not change")

    def __hash__(self) -> int:
        return hash((type(self), self._values()))


@dataclass_transform(field_specifiers=(made,))
class _ChangingType(_Fields):
    """The type of classes whose values are set anew."""


class Changing(_Named, metaclass=_ChangingType):
    """Named fields whose values are set anew; equal as records are, and no key of a dictionary therefore."""

    __hash__ = None  # type: ignore[assignment]
