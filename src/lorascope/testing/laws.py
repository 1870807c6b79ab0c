"""``assert_invariant`` and ``assert_equivariant``: the two laws of the symmetry, for NumPy and PyTorch.

    invariant      f(act(M, x)) = f(x)              f([B 0], [A; 0]) = f(B, A)
    equivariant    f(act(M, x)) = act(M, f(x))      f([B 0], [A; 0]) = pad(f(B, A))

within ``tolerance`` · sensitivity · size of the value. An ``AssertionError`` says which law broke, by how
much, and how much was allowed.

What x may be, and how f is called:

    (B, A)                 a tuple of two arrays [*, out, rank], [*, rank, in]       f(B, A)
    an Adapter             every site moves by its own M                             f(x)
    GLFeatures             or any dataclass with fields ``out`` and ``in_``          f(x)
    a list of these        a whole adapter, one value per shape of its sites         f(x)
"""

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lorascope.adapter import Adapter, LowRank, Update
from lorascope.testing.groups import Group, Move, draw_gauge, draw_padding, draw_permutation
from lorascope.testing.tolerances import CONSTANT, tolerance


def assert_invariant(
    function: Callable[..., Any],
    x: Any,
    *,
    group: Group = "GL(r)",
    condition: float = 100.0,
    trials: int = 3,
    seed: int = 0,
    sensitivity: float = 1.0,
    magnitude: float | None = None,
    constant: float = CONSTANT,
) -> None:
    """Assert that the value of ``function`` at ``x`` is that of ΔW and not of the factors.

    Args:
        function: gives numbers, arrays, or tuples, lists and mappings of them.
        x: see above.
        group: ``"GL(r)"``, or a bigger group, under which most functions must fail (``pytest.raises``).
        condition: κ(M) of the random group elements.
        trials: how many elements.
        seed: of the elements.
        sensitivity: how much faster the value moves than ΔW, both relative: 1 for a norm, σ₁/gap for
            a singular vector.
        magnitude: the size that differences are relative to; by default the largest entry of the value.
        constant: c of ``tolerance``.

    Raises:
        AssertionError: naming the law, the measured and the allowed difference.

    >>> B, A = np.arange(6.0).reshape(3, 2), np.arange(8.0).reshape(2, 4)
    >>> assert_invariant(lambda B, A: np.linalg.norm(B @ A), (B, A))
    >>> assert_invariant(lambda B, A: np.linalg.norm(B), (B, A))
    Traceback (most recent call last):
    ...
    AssertionError: <lambda> is not invariant under GL(r) with cond(M) = 100: value moved by ..., allowed ...
    """
    reference = _call(function, x)
    for law, moves, gauge_condition in _moves(x, group, condition, trials, seed):
        moved = _call(function, _apply(moves, x))
        allowed = tolerance_of(x, gauge_condition, constant) * sensitivity
        _compare(reference, moved, allowed, magnitude, f"{_name(function)} is not invariant under {law}")


def assert_equivariant(
    function: Callable[..., Any],
    x: Any,
    *,
    group: Group = "GL(r)",
    condition: float = 100.0,
    trials: int = 3,
    seed: int = 0,
    sensitivity: float = 1.0,
    magnitude: float | None = None,
    constant: float = CONSTANT,
) -> None:
    """Assert that moving the input of ``function`` moves its output by the same group element.

    Arguments as in ``assert_invariant``; the output must be of the same form as ``x`` (a layer of
    ``lorascope.nn`` maps GLFeatures to GLFeatures, a function of (B, A) gives a tuple (B', A')). For
    ``"GL(out)"`` the output must have as many out channels as the input.

    Raises:
        AssertionError: naming the law, the measured and the allowed difference.

    >>> B, A = np.arange(6.0).reshape(3, 2), np.arange(8.0).reshape(2, 4)
    >>> W = np.arange(9.0).reshape(3, 3)
    >>> assert_equivariant(lambda B, A: (W @ B, A), (B, A))
    >>> assert_equivariant(lambda B, A: (W @ B, A), (B, A), group="GL(out)")
    Traceback (most recent call last):
    ...
    AssertionError: <lambda> is not equivariant under GL(out) with cond(M) = 100: ...
    """
    reference = _call(function, x)
    for law, moves, gauge_condition in _moves(x, group, condition, trials, seed):
        moved = _call(function, _apply(moves, x))
        expected = _apply(moves, reference)
        allowed = tolerance_of(x, gauge_condition, constant) * sensitivity
        _compare(expected, moved, allowed, magnitude, f"{_name(function)} is not equivariant under {law}")


def tolerance_of(x: Any, gauge_condition: float = 1.0, constant: float = CONSTANT) -> float:
    """``tolerance`` of the worst site of anything that the laws take."""
    return max(tolerance(B, A, gauge_condition=gauge_condition, constant=constant) for B, A in _pairs(x))


def _moves(x: Any, group: Group, condition: float, trials: int, seed: int) -> list[tuple[str, list[Move], float]]:
    """Named lists of group elements, one element for each (B, A) in x, with κ(M)."""
    rng = np.random.default_rng(seed)
    pairs = _pairs(x)
    found: list[tuple[str, list[Move], float]] = []
    for _ in range(trials):
        elements = [draw_gauge(group, B, A, condition=condition, rng=rng) for B, A in pairs]
        found.append((f"{group} with cond(M) = {condition:g}", elements, condition))
    found.append(("rank padding", [draw_padding(B, rng) for B, _ in pairs], 1.0))
    found.append(("rank permutation", [draw_permutation(B, rng) for B, _ in pairs], 1.0))
    return found


def _call(function: Callable[..., Any], x: Any) -> Any:
    return function(*x) if isinstance(x, tuple) else function(x)


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _pairs(x: Any) -> list[tuple[Any, Any]]:
    """Every (B, A) in x."""
    if isinstance(x, Adapter):
        return [update.factors(_dtype_of(update))[:2] for update in x.values()]
    if isinstance(x, list):
        return [pair for part in x for pair in _pairs(part)]
    if isinstance(x, tuple) and len(x) == 2:
        return [(x[0], x[1])]
    if is_dataclass(x) and {"out", "in_"} <= {field.name for field in fields(x)}:
        value: Any = x
        return [(value.out, value.in_)]
    raise TypeError(f"expected (B, A), an Adapter, GLFeatures or a list of these, found {type(x).__name__}")


def _apply(moves: list[Move], x: Any) -> Any:
    """x with every (B, A) moved by its element."""
    if isinstance(x, Adapter):
        sites = {site: _moved(update, move) for (site, update), move in zip(x.items(), moves, strict=True)}
        return x.with_sites(sites)
    if isinstance(x, list):
        remaining = iter(moves)
        return [_apply([next(remaining) for _ in _pairs(part)], part) for part in x]
    [(B, A)] = _pairs(x)
    B, A = moves[0](B, A)
    return (B, A) if isinstance(x, tuple) else replace(x, out=B, in_=A)


def _moved(update: Update, move: Move) -> LowRank:
    B, A, scale = update.factors(_dtype_of(update))
    B, A = move(B, A)
    return LowRank(
        B,
        A,
        scale,
        layer=update.layer,
        kernel=update.base_shape[1:] if update.layer.startswith("conv") else (),
        is_transposed=update.is_transposed,
        alpha=update.alpha,
    )


def _dtype_of(update: Update) -> type[np.floating[Any]]:
    return np.float32 if update.dtype == "float32" else np.float64


def _compare(expected: Any, found: Any, relative: float, magnitude: float | None, broken: str) -> None:
    left, right = _leaves(expected), _leaves(found)
    if list(left) != list(right):
        raise AssertionError(f"{broken}: the value has other parts ({', '.join(right)} for {', '.join(left)})")
    for name, one in left.items():
        other = right[name]
        if one.shape != other.shape:
            raise AssertionError(f"{broken}: {name} changed its shape from {list(one.shape)} to {list(other.shape)}")
        if not np.array_equal(np.isnan(one), np.isnan(other)):
            raise AssertionError(f"{broken}: {name} is NaN in other places")
        size = (
            magnitude
            if magnitude is not None
            else float(np.max(np.nan_to_num(np.abs(one), nan=0.0, posinf=np.inf), initial=0.0))
        )
        with np.errstate(invalid="ignore"):  # equal infinities do not differ
            difference = np.where(one == other, 0.0, np.abs(one - other))
        measured = float(np.max(np.where(np.isnan(one), 0.0, difference), initial=0.0))
        allowed = relative * size if size > 0 else 0.0
        if not measured <= allowed:
            raise AssertionError(f"{broken}: {name} moved by {measured:.2e}, allowed {allowed:.2e}")


def _leaves(value: Any, name: str = "value") -> dict[str, NDArray[np.float64]]:
    """Every array in a nest of containers, by its place."""
    if isinstance(value, Mapping):
        parts = {str(key): part for key, part in value.items()}
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        named: Any = value
        parts = named._asdict()
    elif isinstance(value, tuple | list):
        parts = {str(index): part for index, part in enumerate(value)}
    elif is_dataclass(value):
        parts = {field.name: getattr(value, field.name) for field in fields(value)}
    else:
        array = value.detach().cpu() if hasattr(value, "detach") else value
        return {name: np.asarray(array, dtype=np.float64)}
    return {place: leaf for key, part in parts.items() for place, leaf in _leaves(part, f"{name}.{key}").items()}
