"""What the configuration promises and the file does not hold: adapted modules, their layers, modules saved whole.

Only what is certain is said. A name in ``target_modules`` is matched as PEFT matches it, as the whole module path or
its last parts; a pattern must match one site. Lists are shared between models, so that a name may be one that the model
never had. With the base at hand it is told which. Without it the finding is a warning; it is a note where the file has
the same layer under another model's name (a GPT-2 has ``c_attn`` and no ``q_proj``), and for a saved module beside
others that are there (PEFT itself adds ``classifier`` and ``score`` to the list of every classifier).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

from lorascope.adapter import Adapter
from lorascope.adapter.site import path_and_part
from lorascope.errors import AdapterError
from lorascope.formats.checkpoint import Checkpoint
from lorascope.formats.name_patterns import NamePatterns
from lorascope.scan.finding import Finding, Severity

TARGETS_MISSING = "targets-missing"
SAVED_MISSING = "saved-modules-missing"
LAYERS_MISSING = "layers-missing"

MAX_PARTS = 32
"""A name of more parts is not judged: no module lies that deep, and the configuration is not trusted."""

MAX_LAYERS = 1024
"""Layer numbers that are looked for, and paths in a layer that the base is asked for each."""

MAX_SAVED = 64
"""Names of saved modules that are looked for; each is compared with every saved tensor."""

_FUSED_QKV = frozenset(
    {"c_attn", "query_key_value", "Wqkv", "W_pack", "qkv_proj", "qkv", "to_qkv", "in_proj", "att_proj"}
)
_UNGATED = frozenset({"fc1", "fc_in", "c_fc", "lin1", "dense_h_to_4h"})
_SPELLINGS = (
    _FUSED_QKV | {"q_proj", "query", "to_q", "wq", "q_lin", "q"},
    _FUSED_QKV | {"k_proj", "key", "to_k", "wk", "k_lin", "k"},
    _FUSED_QKV | {"v_proj", "value", "to_v", "wv", "v_lin", "v"},
    frozenset({"o_proj", "out_proj", "dense", "c_proj", "wo", "to_out.0", "out_lin", "o"}),
    _UNGATED | {"gate_proj", "gate_up_proj", "w1", "wi_0"},
    _UNGATED | {"up_proj", "gate_up_proj", "w3", "wi", "wi_1"},
    frozenset({"down_proj", "fc2", "fc_out", "w2", "wo", "lin2", "dense_4h_to_h"}),
)
"""Names that models give one and the same layer, a layer that holds it and others included."""

_LOST = "get the whole file again, or save the adapter again; what is missing stays as the base has it"


def broken_promises(adapter: Adapter, base: Checkpoint | None = None) -> Iterator[Finding]:
    """The findings about a PEFT configuration that names what the file does not hold.

    >>> import numpy as np
    >>> from lorascope.adapter import LowRank, Provenance
    >>> provenance = Provenance(format="peft", config={"target_modules": ["q_proj", "v_proj"]})
    >>> sites = {"layers.0.q_proj": LowRank(np.ones((2, 1)), np.ones((1, 2)))}
    >>> [finding.text for finding in broken_promises(Adapter(sites, provenance))]
    ['target_modules names v_proj, and the file has no such site']
    """
    if adapter.provenance.format != "peft":
        return
    config = adapter.provenance.config
    tails = {tail for path in {path_and_part(site)[0] for site in adapter} for tail in _tails(path)}
    if missing := _targets_without_sites(tails, config):
        known = _known_to(base, missing)
        # with a choice of layers the base may have the module in none of those chosen
        certain: Severity = "error" if config.get("layers_to_transform") is None else "warning"
        is_explained = all(_has_other_name(tails, name) for name in missing)
        severity: Severity = "note" if is_explained else "warning"
        yield _finding(TARGETS_MISSING, "target_modules", "site", missing, known, severity, certain)
    elif _is_pattern_of_other_sites(adapter, config.get("target_modules")):
        text = "target_modules is a pattern that no site of the file matches, so one of the two is of another adapter"
        yield Finding(TARGETS_MISSING, "warning", text)
    numbers = _numbers(config.get("layers_to_transform"))
    places = {(path[:at], path[at + 1 :]) for site in adapter for path, at in [_layer_in(path_and_part(site)[0])] if at}
    present = {part for site in adapter for part in path_and_part(site)[0].split(".")}
    if numbers and places and (missing := [number for number in numbers if number not in present]):
        known = None if base is None else [one for one in missing if _has_layer(base, one, places)]
        yield _finding(LAYERS_MISSING, "layers_to_transform", "layer", missing, known, "warning")
    listed = _names(config.get("modules_to_save"))[:MAX_SAVED]
    saved = [f"{key.removeprefix('base_model.model.')}." for key in adapter.leftovers]
    if missing := [name for name in listed if not any(f"{name}." in key for key in saved)]:
        severity = "note" if len(missing) < len(listed) else "warning"
        yield _finding(SAVED_MISSING, "modules_to_save", "tensors", missing, _known_to(base, missing), severity)


def _has_other_name(tails: set[str], name: str) -> bool:
    """Whether the file has the layer that a name means under the name of another model."""
    return any(name in spellings and not tails.isdisjoint(spellings) for spellings in _SPELLINGS)


def _is_pattern_of_other_sites(adapter: Adapter, pattern: object) -> bool:
    """Whether ``target_modules`` is a pattern that matches no site; experts are named by another field."""
    plain = [site for site in adapter if path_and_part(site)[1] is None]
    if not isinstance(pattern, str) or pattern == "all-linear" or not plain:
        return False
    try:
        table = NamePatterns([pattern], "target_modules", is_whole=True)
        return all(table.find(site) is None for site in plain)
    except AdapterError:  # selection only: a pattern that is too complex takes nothing from the file
        return False


def _targets_without_sites(tails: set[str], config: Mapping[str, Any]) -> list[str]:
    excluded = config.get("exclude_modules")
    if isinstance(excluded, str):  # a pattern may take away any of the modules
        return []
    taken_away = set(_names(excluded))
    within = {tail for name in taken_away for tail in _tails(name)}
    return [
        name
        for name in _names(config.get("target_modules"))
        if name.count(".") < MAX_PARTS
        and name not in tails
        and name not in within
        and taken_away.isdisjoint(_tails(name))
    ]


def _numbers(value: object) -> list[str]:
    """The layer numbers of a field that holds one or a list of them."""
    listed = cast("list[Any]", value) if isinstance(value, list) else [value]
    numbers = (one for one in listed[:MAX_LAYERS] if isinstance(one, int) and not isinstance(one, bool))
    return list(dict.fromkeys(str(one) for one in numbers if 0 <= one < 1 << 31))


def _layer_in(path: str) -> tuple[tuple[str, ...], int]:
    """The parts of a path, and where the number of its layer is: the last number, as PEFT takes it; 0 where none is."""
    parts = tuple(path.split(".", MAX_PARTS))
    return parts, next((at for at in range(len(parts) - 2, 0, -1) if parts[at].isdecimal()), 0)


def _has_layer(base: Checkpoint, number: str, places: set[tuple[tuple[str, ...], tuple[str, ...]]]) -> bool:
    """Whether the base has one of the adapted modules in the layer of that number."""
    return any(base.has(".".join((*above, number, *below))) for above, below in islice(sorted(places), MAX_LAYERS))


def _tails(path: str) -> Iterator[str]:
    """The path and what is left of it without its first parts, as far as a name can be matched."""
    parts = path.rsplit(".", MAX_PARTS)
    for start in range(len(parts)):
        yield ".".join(parts[start:])


def _names(value: object) -> list[str]:
    """The names of a list; a text is a pattern or a word such as ``all-linear`` and names nothing."""
    if not isinstance(value, list):
        return []
    return list(dict.fromkeys(name for name in cast("list[Any]", value) if isinstance(name, str) and name))


def _known_to(base: Checkpoint | None, names: Iterable[str]) -> list[str] | None:
    """Those of the names that are modules of the base, None where there is no base to ask."""
    if base is None:
        return None
    return [name for name in names if base.has_module(name)]


def _finding(
    code: str,
    field: str,
    what: str,
    missing: list[str],
    known: list[str] | None,
    severity: Severity,
    certain: Severity = "error",
) -> Finding:
    if known is None:
        text = f"{field} names {_listed(missing)}, and the file has no such {what}"
        return Finding(code, severity, text, hint="verify --base tells whether the model has them")
    if known:
        text = f"{field} names {_listed(known)}, which the base has, and the file has no such {what}"
        return Finding(code, certain, text, hint=_LOST)
    text = f"{field} names {_listed(missing)}, which neither the file nor the base has"
    return Finding(code, "note", text)


def _listed(names: list[str]) -> str:
    return ", ".join(name[:120] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
