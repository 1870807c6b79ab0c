"""PEFT LoRA on fused parameters (``target_parameters``): experts of a mixture, one site each.

    base parameter [E, …]      A [E · r, in] expert by expert      B [out, r · E] rank by rank

    ΔW of expert e = scale · B[:, e::E] · A[e·r : (e+1)·r]         scale = alpha/r, with r of one expert

Several parameters of one module nest, so that their keys have ``base_layer`` levels: the deepest is the parameter that
the module registered first. The file names the module and the configuration the parameters, but neither tells which is
which. gate_up_proj is registered before down_proj in every model of transformers, so these two are told apart; others
are called #0, #1, … in the order of their registration. With one expert the parameter is a plain matrix.

Whether the base stores an expert as [out, in] or [in, out] is not in the file either: up to version 0.18 PEFT took all
of them as [in, out], since then only those of modules that say ``is_transposed``. In transformers these are GPT-OSS,
the privacy filter and Aria, so that the name of the base is a first guess, and the base itself decides once it is
there (``lorascope.adapter.layout``). A matrix that is no stack of experts is taken as it lies in the base, also Conv1D.

Source: https://github.com/huggingface/peft, src/peft/tuners/lora/layer.py (``ParamWrapper``) and
src/peft/tuners/tuners_utils.py (``_inject_parameters``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from lorascope.adapter import LowRank, Note, Update
from lorascope.adapter.site import expert_of, experts_of
from lorascope.errors import AdapterError
from lorascope.formats.config_file import text_or_none
from lorascope.formats.pairs import Scale
from lorascope.formats.parametrisation import Parts
from lorascope.formats.parametrisations._options import names
from lorascope.formats.peft_scale import PEFT_RANK, PeftScale

LEVEL = ".base_layer"

NAMELESS = "#"
"""How the name of a parameter begins that the file does not tell."""

REGISTERED = ("gate_up_proj", "gate_up_proj_bias", "down_proj", "down_proj_bias")
"""The parameters of an experts module in the order that all models of transformers have."""

MAX_EXPERTS = 1 << 16
"""Experts of one parameter."""

_TRANSPOSED_BASES = re.compile(r"(?i)gpt[-_]?oss|privacy[-_]filter|(?:^|[/_-])aria(?:[_-]|$)")
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})(?P<dev>.*\.dev)?")


@dataclass
class FusedParameters:
    """Which sites of a file are fused parameters, by ``target_parameters`` of the configuration.

    Args:
        targets: the names listed there.
        rule: the scale of a site.
        is_transposed: whether PEFT took the experts as [in, out].
        layout: "fixed", or "open" where that is a guess, which the base decides.
        why: what it was told by.
        is_decided: whether version or base tell it, and nothing says that the file was written in another order.
        is_of_unsloth: whether Unsloth trained it.
    """

    targets: tuple[str, ...]
    rule: PeftScale
    is_transposed: bool
    layout: Literal["open", "unknown", "fixed"]
    why: str
    is_decided: bool = True
    is_of_unsloth: bool = False
    _matrices: set[str] = field(default_factory=set[str])
    _named: list[str] = field(default_factory=list[str])
    _nameless: list[str] = field(default_factory=list[str])
    _nested: list[str] = field(default_factory=list[str])

    @classmethod
    def of(cls, config: Mapping[str, Any], rule: PeftScale) -> FusedParameters | None:
        """What the configuration lists, None where it lists nothing.

        Raises:
            AdapterError: where ``target_parameters`` is no list of names.
        """
        listed = names(config, "target_parameters")
        if not listed:
            return None
        base = text_or_none(config, "base_model_name_or_path")
        layout: Literal["open", "unknown", "fixed"] = "open"
        if _is_before_swap(config.get("peft_version")):
            is_transposed, why = True, "as PEFT before 0.19 took them all"
            layout = "unknown" if _is_of_development(config.get("peft_version")) else "fixed"
        elif base is not None and _TRANSPOSED_BASES.search(base):
            is_transposed, why = True, "told by the name of the base model"
        else:
            is_transposed, why = False, "PEFT's default"
        is_of_unsloth = _is_of_unsloth(config)
        is_told = layout == "fixed" or (layout == "open" and base is not None)
        targets = tuple(dict.fromkeys(listed))
        return cls(targets, rule, is_transposed, layout, why, is_told and not is_of_unsloth, is_of_unsloth)

    def module_of(self, site: str, rows: int) -> str | None:
        """The module whose parameter a site is, None of a plain layer.

        Args:
            site: may end in ``base_layer`` levels.
            rows: those of A; a target without a module path fits every module, so that only they can tell.
        """
        module = site
        while module.endswith(LEVEL):
            module = module.removesuffix(LEVEL)
        if module != site or any("." in target and _is_of(target, module) for target in self.targets):
            return module
        is_fused = rows != (self.rule.stated_rank(site) or PEFT_RANK)
        return module if is_fused and self._parameters(module) else None

    def _parameters(self, module: str) -> list[str]:
        """The parameters of the module that the configuration can mean, as PEFT matches them."""
        return list(dict.fromkeys(target.rpartition(".")[2] for target in self.targets if _is_of(target, module)))

    def expanded(self, module: str, levels: Mapping[str, Parts]) -> Iterator[Parts]:
        """The parts of every expert of a module, from the parts of its levels as the file names them.

        Raises:
            AdapterError: where the rows of A are no multiple of the rank, or the factors do not fit.
        """
        order = sorted(levels, key=len, reverse=True)  # the deepest level is the parameter registered first
        for site, name in zip(order, self._in_order(module, len(levels)), strict=True):
            where = module if name == "weight" else f"{module}.{name}"
            yield from self._experts(where, f"{module}.{name}", levels[site])

    def _in_order(self, module: str, count: int) -> list[str]:
        """The names of the parameters of a module, the one registered first at the front."""
        parameters = self._parameters(module)
        if len(parameters) == count == 1:
            return parameters
        if len(parameters) == count and set(parameters) <= set(REGISTERED):
            self._nested.append(module)
            return sorted(parameters, key=REGISTERED.index)
        self._nameless.append(module)
        return [f"{NAMELESS}{number}" for number in range(count)]

    def _experts(self, site: str, pattern_site: str, parts: Parts) -> Iterator[Parts]:
        for role in parts.tensors:
            if role not in ("A", "B"):
                raise AdapterError(f"a {role} beside the factors of a fused parameter", key=site)
        A = parts.tensor("A", None, None)
        B = parts.tensor("B", None, A.shape[0])
        rank = self.rule.stated_rank(pattern_site) or PEFT_RANK
        count, rest = divmod(A.shape[0], rank)
        if rest or count > MAX_EXPERTS:
            raise AdapterError(
                "the rows of A are no multiple of the rank" if rest else "too many experts",
                key=site,
                expected=f"at most {MAX_EXPERTS} · {min(rank, A.shape[0] + 1)}",
                found=f"{A.shape[0]} rows",
            )

        def scale_of(rank: int) -> Scale:
            return self.rule(pattern_site, rank)

        named = replace(parts, site=site, scale_of=scale_of)
        if count == 1:
            self._matrices.add(site)
            yield named
            return
        self._named.append(site)
        for expert in range(count):
            yield replace(
                named,
                site=f"{site}[{expert}]",
                tensors={"B": B[:, expert::count], "A": A[expert * rank : (expert + 1) * rank]},
                is_transposed=self.is_transposed,
            )

    def marked(self, site: str, update: Update) -> Update:
        """The update of a site with what is known of its layout."""
        if isinstance(update, LowRank) and (site in self._matrices or expert_of(site) is not None):
            return replace(update, layout="fixed" if site in self._matrices else self.layout)
        return update

    def notes(self) -> Iterator[Note]:
        """What had to be taken for granted."""
        if self._named:
            layout = f"{'[in, out]' if self.is_transposed else '[out, in]'} ({self.why}"
            layout += ")" if self.layout == "fixed" else "; the base decides)"
            order = "; Unsloth wrote B expert by expert until 2026-09, and the file does not tell"
            yield Note(
                "expert-layout",
                f"experts of {_listed(self._named)}: the base is taken to store each as {layout}, and B as PEFT writes "
                f"it{order * self.is_of_unsloth}",
                is_decided=self.is_decided,
            )
        if self._nested:
            yield Note(
                "expert-names",
                f"parameters of {_listed(self._nested)}: told apart by the order {', '.join(REGISTERED)} that the "
                "models of transformers register them in",
            )
        if self._nameless:
            yield Note(
                "expert-names",
                f"parameters of {_listed(self._nameless)}: the file does not tell which of target_parameters is which, "
                "so they are numbered in the order in which the module registers them",
            )


def _is_of(target: str, module: str) -> bool:
    path = target.rpartition(".")[0]
    return not path or module == path or module.endswith(f".{path}")


def _is_before_swap(version: Any) -> bool:
    """Whether PEFT before 0.19 wrote the file; a configuration without a version is of 0.17."""
    if version is None:
        return True
    match = _VERSION.match(version) if isinstance(version, str) else None
    return match is not None and (int(match[1]), int(match[2])) < (0, 19)


def _is_of_development(version: Any) -> bool:
    """Whether a version is one between two releases: 0.18.2.dev0 may lie before or after the change that 0.19 has."""
    match = _VERSION.match(version) if isinstance(version, str) else None
    return match is not None and (int(match[1]), int(match[2])) == (0, 18) and match["dev"] is not None


def _is_of_unsloth(config: Mapping[str, Any]) -> bool:
    """Whether the configuration bears Unsloth's mark: a base of theirs, or the field that they add."""
    base, added = text_or_none(config, "base_model_name_or_path"), config.get("auto_mapping")
    return (base is not None and "unsloth" in base.lower()) or (isinstance(added, dict) and "unsloth_fixed" in added)


def _listed(names: list[str]) -> str:
    return ", ".join(name[:120] for name in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def refused_experts(updates: Mapping[str, LowRank]) -> Iterator[AdapterError]:
    """An error for each expert of a parameter whose experts are missing or differ, or that has no name."""
    groups = experts_of(updates)
    parameters = Counter(path.rpartition(".")[0] for path in groups)
    for path, sites in groups.items():
        ones = [updates[site] for site in sites.values()]
        kinds = {(one.shape, one.rank, one.scale, one.layer, one.is_transposed, one.layout) for one in ones}
        module, _, name = path.rpartition(".")
        for site in sites.values():
            if sorted(sites) != list(range(len(sites))) or len(kinds) > 1 or len(sites) == 1:
                yield AdapterError(
                    "PEFT keeps all experts of a parameter in one tensor, and these do not fit together",
                    key=site,
                    expected="two experts or more, numbered from 0, of one shape, rank, scale and layout",
                    found=f"{len(sites)} experts up to number {max(sites)}, {len(kinds)} kinds",
                )
            elif not module or name.startswith(NAMELESS):
                yield AdapterError(
                    "the name of the fused parameter is not known, and PEFT's configuration states it", key=site
                )
            elif parameters[module] > 1 and name not in REGISTERED:
                yield AdapterError(
                    "PEFT nests the fused parameters of a module in an order that only the base model knows",
                    key=site,
                    expected=f"one parameter, or {', '.join(REGISTERED)}",
                    found=name,
                )
    if experts_version({path: updates[min(sites.values())] for path, sites in groups.items()}) is None:
        why = "PEFT states once for all experts how the base stores them, and here they differ"
        for sites in groups.values():
            yield from (AdapterError(why, key=site) for site in sites.values() if updates[site].is_transposed)


def experts_version(fused: Mapping[str, LowRank]) -> dict[str, Any] | None:
    """The version that tells the layout of experts: PEFT took all as [in, out] before 0.19, and asks the base since.

    Args:
        fused: path of a fused parameter → one of its experts.

    Returns:
        The field of the configuration, none where all are [in, out]; None where the layouts differ.
    """
    layouts = {update.layout for update in fused.values()}
    if layouts == {"unknown"}:
        return {"peft_version": "0.18.2.dev0"}
    kinds = {update.is_transposed and update.layout != "open" for update in fused.values()}
    if len(kinds) > 1 or (len(layouts) > 1 and "unknown" in layouts):
        return None
    return {} if kinds in ({True}, set()) else {"peft_version": "0.19.0"}


def stacked(experts: Sequence[LowRank]) -> LowRank:
    """The experts of one parameter in one pair, A expert by expert and B rank by rank."""
    first = experts[0]
    B = np.stack([one.B for one in experts], axis=-1).reshape(first.shape[0], -1)
    return replace(first, B=B, A=np.concatenate([one.A for one in experts]))


def nested_keys(paths: Iterable[str]) -> dict[str, str]:
    """Path of a fused parameter → the module in its keys, with a ``base_layer`` level for each one registered later.

    >>> nested_keys(["mlp.experts.down_proj", "mlp.experts.gate_up_proj"])
    {'mlp.experts.gate_up_proj': 'mlp.experts.base_layer', 'mlp.experts.down_proj': 'mlp.experts'}
    """
    modules: dict[str, list[str]] = {}
    for path in paths:
        module, _, name = path.rpartition(".")
        modules.setdefault(module, []).append(name)
    keys: dict[str, str] = {}
    for module, parameters in modules.items():
        ordered = sorted(parameters, key=REGISTERED.index) if len(parameters) > 1 else parameters
        for depth, name in enumerate(reversed(ordered)):
            keys[f"{module}.{name}"] = module + LEVEL * depth
    return dict(sorted(keys.items(), key=lambda item: -len(item[1])))
