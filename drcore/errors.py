"""The one base of all errors: a stable code, typed facts, what was found and expected, what to do.

A room declares its errors in its own `errors.py` as subclasses; the annotations are the facts, the class
variables are sentences into which the facts are formatted:

    class TargetTooSmall(HomewardError):
        code = "HW-DISKS-009"
        what = "the target {path} is smaller than the source"
        found = "{target_bytes} bytes"
        expected = "at least {source_bytes} bytes"
        remedy = "enlarge the target or choose another one"
        path: str
        target_bytes: int
        source_bytes: int
"""

import re
from enum import Enum
from pathlib import PurePath
from typing import Any, ClassVar, Final, dataclass_transform

CODE: Final = re.compile(r"^(HW-[A-Z]+-\d{3}|\d{4,5})$")


class Retry(Enum):
    """What the one place that retries may do about an error."""

    TRANSIENT = "transient"
    """Back off and try the same again."""
    RECONNECT = "reconnect"
    """Open a new session and go on after the last acknowledgement."""
    RESYNC = "resync"
    """The two ends diverged: compare again."""
    PERMANENT = "permanent"
    """Needs a person."""


@dataclass_transform(kw_only_default=True)
class HomewardError(Exception):
    """Base of every error that a user may see. Subclasses with a `code` are registered, a duplicate fails at import."""

    registry: ClassVar[dict[str, type["HomewardError"]]] = {}
    code: ClassVar[str]
    retry: ClassVar[Retry] = Retry.PERMANENT
    what: ClassVar[str]
    found: ClassVar[str]
    expected: ClassVar[str]
    remedy: ClassVar[str]
    _facts: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = tuple(name for name in cls.__annotations__ if not name.startswith("_"))
        cls._facts = (*cls._facts, *own)
        if "code" not in cls.__dict__:
            return
        if not CODE.match(cls.code):
            raise TypeError(f"{cls.__name__}: {cls.code!r} is no error code")
        if cls.code in HomewardError.registry:
            raise TypeError(
                f"{cls.__name__}: {cls.code} belongs to {HomewardError.registry[cls.code].__name__}"
            )
        HomewardError.registry[cls.code] = cls

    def __init__(self, **facts: Any) -> None:
        if set(facts) != set(self._facts):
            raise TypeError(f"{type(self).__name__} takes the facts {self._facts}, got {tuple(facts)}")
        super().__init__()
        for name, value in facts.items():
            setattr(self, name, value)

    def facts(self) -> dict[str, Any]:
        """The facts by name."""
        return {name: getattr(self, name) for name in self._facts}

    def sentence(self, part: str) -> str:
        """`what`, `found`, `expected` or `remedy` with the facts filled in, on one line."""
        text = str(getattr(type(self), part)).format(**self.facts())
        return " ".join(text.split())

    def __str__(self) -> str:
        return (
            f"{self.code}: {self.sentence('what')}; found {self.sentence('found')}; "
            f"expected {self.sentence('expected')}; do {self.sentence('remedy')}"
        )

    def as_json(self) -> dict[str, str]:
        """The object that `--json` prints for this error."""
        return {
            "error": self.sentence("what"),
            "code": self.code,
            "found": self.sentence("found"),
            "expected": self.sentence("expected"),
            "remedy": self.sentence("remedy"),
        }


class Defect(HomewardError):
    """Homeward failed in a way that nobody foresaw. Every loop ends with it instead of leaving others to wait."""

    code = "HW-CORE-002"
    what = "homeward has a defect"
    found = "{kind} at {place}: {reason}"
    expected = "no such failure"
    remedy = "run homeward --debug with the same command and report what it prints; nothing durable is lost"
    kind: str
    place: str
    reason: str


def coded(error: BaseException) -> HomewardError:
    """The error itself when it has a code, else the defect that it is."""
    if isinstance(error, HomewardError):
        return error
    import traceback  # here: nothing should wait for what only a defect needs

    frames = traceback.extract_tb(error.__traceback__)
    place = f"{PurePath(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "nowhere"
    return Defect(
        kind=type(error).__name__, place=place, reason=" ".join(str(error).split()) or "no reason given"
    )
