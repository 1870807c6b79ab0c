"""PEFT's types beside LORA: one row each says which tensor has which role, and where the scale comes from.

A key is ``base_model.model.<site>.<ending>``; tensors that all sites share are ``base_model.<name>``. What the tensors
mean is said by the parametrisation that the row names. Source: https://github.com/huggingface/peft,
src/peft/tuners/<type>/{config,layer,model}.py and src/peft/utils/save_and_load.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lorascope.adapter import Adapter, Note, Provenance, Update
from lorascope.errors import AdapterError
from lorascope.formats.config_file import checked_alpha, flag, positive_integer, text_or_none
from lorascope.formats.contents import Contents
from lorascope.formats.notes import assumed_scale_note, leftover_notes
from lorascope.formats.pairs import Scale
from lorascope.formats.parametrisation import Parts, built
from lorascope.formats.parametrisations._options import number
from lorascope.formats.parametrisations.lokr import ROLES as LOKR_ROLES
from lorascope.formats.parametrisations.peanut import MAX_DEPTH
from lorascope.formats.peft_keys import PREFIX
from lorascope.formats.peft_scale import PEFT_ALPHA, PEFT_RANK, PeftScale

SHARED = "base_model."

_MAX_RANK = 1 << 24

SiteScale = Callable[[str, int], Scale]
"""Site and dim → ``Scale``."""


@dataclass(frozen=True)
class PeftType:
    """How PEFT stores one of its types.

    Args:
        parametrisation: what the tensors mean.
        roles: the ending of a key after the site → role.
        shared: the name of a tensor after ``base_model.`` → role at every site.
        scale: configuration → the rule of the scale.
        check: raises where PEFT itself makes something else of a site's tensors.
    """

    parametrisation: str
    roles: Mapping[str, str]
    shared: Mapping[str, str] = field(default_factory=dict[str, str])
    scale: Callable[[Mapping[str, Any]], SiteScale] = lambda config: _no_scale
    check: Callable[[Parts], None] = lambda parts: None


def _no_scale(site: str, dim: int) -> Scale:
    return Scale(1.0, None)


def alpha_over_rank(config: Mapping[str, Any]) -> SiteScale:
    """alpha/r with ``alpha`` (8 where it is not stated), ``rank_pattern`` and ``alpha_pattern``."""
    return PeftScale.of(config, "alpha")


def randlora_scale(config: Mapping[str, Any]) -> SiteScale:
    """alpha/r with ``randlora_alpha`` (640 where it is not stated)."""
    key = "randlora_alpha"
    stated = PeftScale.of({name: config[name] for name in ("r", key) if name in config}, key)
    return stated if stated.is_alpha_stated else replace(stated, alpha=640.0)


def lokr_scale(config: Mapping[str, Any]) -> SiteScale:
    """alpha/r with ``alpha``; where both factors are whole, r is that of the configuration, as the file tells none."""
    rule = PeftScale.of(config, "alpha")
    return lambda site, dim: rule(site, dim or _bounded(rule.stated_rank(site) or PEFT_RANK, "r"))


def _bounded(rank: int, key: str) -> int:
    """A rank that only the configuration states, so that no tensor bounds it."""
    if rank > _MAX_RANK:
        raise AdapterError("no rank is this high", key=key, expected=f"at most {_MAX_RANK}")
    return rank


def check_lokr(parts: Parts) -> None:
    """Refuse a whole second factor with one kernel axis.

    Raises:
        AdapterError: where there is one.
    """
    whole = parts.tensors.get("w2")
    if whole is not None and whole.ndim == 3:
        raise AdapterError(
            "a LoKr with a whole second factor on a one-dimensional convolution is not read",
            key=parts.site,
            expected="w2 of two or four axes",
            found=list(whole.shape),
            hint="PEFT puts the axes of such a product together in another order, so that ΔW is no Kronecker product",
        )


def adalora_scale(config: Mapping[str, Any]) -> SiteScale:
    """alpha / (init_r + 10⁻⁵), whatever rank pruning has left; an alpha that is not above 0 counts as init_r."""
    start = _bounded(positive_integer(config, "init_r", None) or 12, "init_r")
    stated = config.get("lora_alpha")
    alpha = PEFT_ALPHA if stated is None else checked_alpha(stated, "lora_alpha")
    scale = Scale((alpha if alpha > 0 else start) / (start + 1e-5), alpha, is_assumed=stated is None)
    return lambda site, dim: scale


def gralora_scale(config: Mapping[str, Any]) -> SiteScale:
    """alpha / (r + hybrid_r) with ``alpha`` (64 where it is not stated); the file tells both ranks."""
    stated = config.get("alpha")
    alpha = 64.0 if stated is None else checked_alpha(stated, "alpha")
    return lambda site, dim: Scale(alpha / dim, alpha, is_assumed=stated is None)


def scaling(default: float) -> Callable[[Mapping[str, Any]], SiteScale]:
    """The rule for a factor that the configuration states as ``scaling``."""

    def of(config: Mapping[str, Any]) -> SiteScale:
        scale = Scale(number(config, "scaling", default), None, is_assumed=config.get("scaling") is None)
        return lambda site, dim: scale

    return of


TYPES: Mapping[str, PeftType] = {
    "ADALORA": PeftType("adalora", {"lora_A": "A", "lora_B": "B", "lora_E": "E"}, scale=adalora_scale),
    "LOHA": PeftType(
        "loha",
        {
            "hada_w1_a": "w1_a",
            "hada_w1_b": "w1_b",
            "hada_w2_a": "w2_a",
            "hada_w2_b": "w2_b",
            "hada_t1": "t1",
            "hada_t2": "t2",
        },
        scale=alpha_over_rank,
    ),
    "LOKR": PeftType("lokr", {f"lokr_{role}": role for role in LOKR_ROLES}, scale=lokr_scale, check=check_lokr),
    "IA3": PeftType("ia3", {"ia3_l": "gate"}),
    "LN_TUNING": PeftType("norm", {"ln_tuning_layers.weight": "weight", "ln_tuning_layers.bias": "bias"}),
    "VERA": PeftType(
        "vera",
        {"vera_lambda_b": "lambda_b", "vera_lambda_d": "lambda_d"},
        shared={"vera_A": "A", "vera_B": "B"},
    ),
    "DELORA": PeftType("delora", {f"delora_{role}": role for role in ("A", "B", "lambda", "w_norm")}),
    "GRALORA": PeftType(
        "gralora",
        {f"gralora_{half}": half for half in "AB"} | {f"gralora_{h}_general.weight": f"{h}_general" for h in "AB"},
        scale=gralora_scale,
    ),
    "RANDLORA": PeftType(
        "randlora",
        # the shared projections are saved once for all and once more at every site
        {"randlora_lambda": "lambda", "randlora_gamma": "gamma", "randlora_A": "A", "randlora_B": "B"},
        shared={"randlora_A": "A", "randlora_B": "B"},
        scale=randlora_scale,
    ),
    "VBLORA": PeftType(
        "vblora",
        {
            f"vblora_logits_{half}{ending}": f"{role}_{half}"
            for half in ("A", "B")
            for ending, role in (("", "logits"), ("_topk_indices", "indices"), ("_topk_weights", "weights"))
        },
        shared={"vblora_vector_bank": "bank"},
    ),
    "FOURIERFT": PeftType("fourierft", {"fourierft_spectrum": "spectrum"}, scale=scaling(150.0)),
    "WAVEFT": PeftType("waveft", {"waveft_spectrum": "spectrum"}, scale=scaling(25.0)),
    "MISS": PeftType("miss", {"miss_block": "block"}),
    "BONE": PeftType("miss", {"bone_block": "block"}),
    "OFT": PeftType("oft", {"oft_R.weight": "R", "oft_embedding_R.weight": "R_embedding"}),
    "BOFT": PeftType("boft", {"boft_R": "R", "boft_s": "s"}),
    "HRA": PeftType("hra", {"hra_u": "u"}),
    "C3A": PeftType("c3a", {"c3a_kernel": "kernel"}),
    "SHIRA": PeftType("shira", {"shira_weight": "weight", "shira_indices": "indices"}),
    "HIRA": PeftType(
        "hira",
        {"hira_A": "A", "hira_B": "B", "hira_embedding_A": "A_embedding", "hira_embedding_B": "B_embedding"},
    ),
    "ROAD": PeftType("road", {"road_theta": "theta", "road_alpha": "alpha"}),
    "UNILORA": PeftType(
        "unilora",
        {f"unilora_{part}_{half}": f"{part}_{half}" for part in ("indices", "scales") for half in ("A", "B")},
        shared={"unilora_theta_d": "theta"},
    ),
    "PVERA": PeftType(
        "pvera",
        {"pvera_lambda_b": "lambda_b", "pvera_lambda_d": "lambda_d"},
        shared={"pvera_A": "A", "pvera_B": "B"},
    ),
    "DEFT": PeftType("deft", {"deft_P": "P", "deft_R": "R"}),
    "BEFT": PeftType("beft", {"beft_bias": "bias"}),
    "OSF": PeftType("osf", {f"osf_svd_params.{part}_low": part for part in ("U", "S", "V")}),
    "PEANUT": PeftType(
        "peanut",
        {"peanut_A.weight": "A", "peanut_B.weight": "B"}
        | {f"peanut_{part}s.{i}.weight": f"{part}_{i}" for i in range(MAX_DEPTH) for part in ("encoder", "decoder")},
        scale=scaling(1.0),
    ),
}
"""``peft_type`` → how it is stored."""

TYPED_KINDS = tuple(sorted({"bat", *(row.parametrisation for row in TYPES.values())}))
"""The parametrisations that files of these types hold; ``bat`` is a variant of MISS and BONE."""


def read_typed(contents: Contents, config: Mapping[str, Any], name: str) -> Adapter:
    """The adapter of a PEFT type that ``TYPES`` lists.

    Raises:
        AdapterError: where tensors are missing or do not fit the parametrisation.
    """
    row = TYPES[name]
    found, leftover_keys = _sites(contents, row)
    shared = {role: SHARED + key for key, role in row.shared.items() if SHARED + key in contents.tensors}
    rule = row.scale(config)
    assumed: list[str] = []
    sites: dict[str, Update] = {}
    for site, keys in found.items():
        names = keys | shared

        def scale_of(dim: int, site: str = site) -> Scale:
            scale = rule(site, dim)
            if scale.is_assumed:
                assumed.append(site)
            return scale

        parts = Parts(
            site,
            {role: contents.tensors[key] for role, key in names.items()},
            names,
            scale_of,
            is_transposed=flag(config, "fan_in_fan_out"),
            options=config,
        )
        row.check(parts)
        sites[site] = built(row.parametrisation, parts)
    if not sites:
        raise AdapterError(
            f"no tensors of the type {name} that the configuration states",
            expected=f"keys that end {', '.join(row.roles)}",
            found=f"{len(contents.tensors)} other tensors",
        )
    notes: list[Note] = []
    if assumed:
        notes.append(assumed_scale_note(assumed, "the configuration states no alpha: PEFT's default"))
    leftovers = {key: contents.tensors[key] for key in leftover_keys}
    return Adapter(
        sites=sites,
        provenance=Provenance(
            format="peft",
            kind=row.parametrisation,
            path=contents.path,
            base_model=text_or_none(config, "base_model_name_or_path"),
            config=config,
            config_text=contents.config_text,
            metadata=contents.metadata,
        ),
        leftovers=leftovers,
        notes=(*notes, *leftover_notes(leftovers, config)),
    )


def _sites(contents: Contents, row: PeftType) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Site → role → key, and the keys that belong to none."""
    endings = "|".join(re.escape(ending) for ending in sorted(row.roles, key=len, reverse=True))
    pattern = re.compile(rf"(?P<site>.+)\.(?P<ending>{endings})(?:\.default)?", re.DOTALL)
    shared = {SHARED + key for key in row.shared}
    sites: dict[str, dict[str, str]] = {}
    leftovers: list[str] = []
    for key in contents.tensors:
        match = pattern.fullmatch(key)
        if key in shared:
            continue
        if match is None:
            leftovers.append(key)
            continue
        site, role = match["site"].removeprefix(PREFIX), row.roles[match["ending"]]
        keys = sites.setdefault(site, {})
        if role in keys:
            raise AdapterError(f"two tensors are {role} of one site", key=site, found=f"{keys[role]} and {key}")
        keys[role] = key
    return sites, leftovers
