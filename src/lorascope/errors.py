"""The errors of lorascope: one sentence on what happened, then where, expected, found, and what to do."""

from __future__ import annotations

from typing import Any


class LorascopeError(Exception):
    """Something that a person can act on; the command line prints it without a traceback and exits with 2.

    Args:
        what: one sentence: what could not be done.
        file: the file or folder concerned.
        key: the tensor, field, column or site concerned.
        expected: what would have been right.
        found: what was there instead.
        hint: what the person can do next.
        code: a stable name of the defect, where programs tell it from others (``lfs-pointer``).

    >>> print(LorascopeError("the ranks differ", file="a.safetensors", key="q_proj", expected="8", found="4"))
    a.safetensors: q_proj: the ranks differ (expected 8, found 4)
    """

    def __init__(
        self,
        what: str,
        *,
        file: object = None,
        key: str | None = None,
        expected: object = None,
        found: object = None,
        hint: str | None = None,
        code: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.file = None if file is None else str(file)
        self.key = key
        self.expected = None if expected is None else str(expected)
        self.found = None if found is None else str(found)
        self.hint = hint
        self.code = code

    def __str__(self) -> str:
        where = "".join(f"{part}: " for part in (self.file, self.key) if part)
        compared = ", ".join(
            f"{name} {value}"
            for name, value in (("expected", self.expected), ("found", self.found))
            if value is not None
        )
        text = where + self.what + (f" ({compared})" if compared else "")
        return text if self.hint is None else f"{text}\n  hint: {self.hint}"

    def as_dict(self) -> dict[str, Any]:
        """The error as a JSON object, absent parts null."""
        return {
            "error": type(self).__name__,
            "what": self.what,
            "file": self.file,
            "key": self.key,
            "expected": self.expected,
            "found": self.found,
            "hint": self.hint,
        }


class AdapterError(LorascopeError):
    """A file is not an adapter that can be read exactly."""


class ZooError(LorascopeError):
    """A zoo, its manifest or its labels are not what they must be."""


class ForgeError(LorascopeError):
    """Adapters could not be trained as asked."""


class PredictorError(LorascopeError):
    """A predictor could not be fitted, read, or applied to this adapter."""


class OutputError(LorascopeError):
    """A result could not be written where it was asked for."""


class MissingExtraError(LorascopeError):
    """A task needs an optional dependency.

    >>> print(MissingExtraError.of("torch", "learn", "reading pickled files"))
    reading pickled files needs torch, which is not installed
      hint: pip install "lorascope[learn]"
    """

    @classmethod
    def of(cls, package: str, extra: str, task: str) -> MissingExtraError:
        """The error for a ``task`` that needs ``package`` from the extra ``extra``."""
        return cls(f"{task} needs {package}, which is not installed", hint=f'pip install "lorascope[{extra}]"')
