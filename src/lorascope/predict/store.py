"""A predictor on disk: ``predictor.json`` and ``weights.safetensors``; loading executes nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.adapter import Adapter, LowRank
from lorascope.errors import LorascopeError, OutputError, PredictorError
from lorascope.features import projection
from lorascope.predict.calibration import Calibration
from lorascope.predict.conformal import Conformal
from lorascope.predict.familiarity import Familiarity
from lorascope.predict.model import MODELS, Model, Sample, Structure
from lorascope.predict.predictor import Member, Predictor
from lorascope.predict.seal import check_seal, sealed
from lorascope.predict.targets import TASKS, Target

SCHEMA_VERSION = 4
"""Version 1 knew neither the residuals of intervals of any level nor what training adapters look like; 2 no digests."""

CONFIG, WEIGHTS = "predictor.json", "weights.safetensors"
MAXIMUM_CONFIG = 64 << 20
MAXIMUM_TRIED = 1 << 20
MAXIMUM_NUMBERS = 1 << 25
"""Of the factors of an adapter that is tried, 128 MB: a file of kilobytes can name a rank at which it has terabytes."""
MAXIMUM_RANK = 1 << 16


def save(predictor: Predictor, path: Path) -> None:
    """Write the folder beside its final place, then rename; an older predictor there is replaced.

    Raises:
        OutputError: where the place holds something else, or cannot be written.
    """
    from safetensors.numpy import save_file

    check_writable(path)
    arrays, members = _state(predictor)
    config = {
        "schema_version": SCHEMA_VERSION,
        "projections": projection.VERSION,
        "target": dataclasses.asdict(predictor.target),
        "model": {"name": predictor.model.name, "options": dataclasses.asdict(predictor.model)},  # type: ignore[call-overload]  # members are dataclasses
        "structure": dataclasses.asdict(predictor.structure),
        "members": members,
        "facts": dict(predictor.facts),
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    except OSError as error:
        raise OutputError("the predictor cannot be written", file=path, found=error.strerror) from error
    try:
        text = json.dumps(sealed(finite(config), arrays), indent=1, allow_nan=False)
        (temporary / CONFIG).write_text(text + "\n", "utf-8")
        save_file(arrays, temporary / WEIGHTS)
        for file in temporary.iterdir():
            file.chmod(0o644)
        temporary.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
    except OSError as error:
        raise OutputError("the predictor cannot be written", file=path, found=error.strerror) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _state(predictor: Predictor) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All arrays by name, and what is to be said of each member."""
    arrays: dict[str, Any] = {"groups": np.asarray(sorted(predictor.groups), np.int64)}
    members: list[dict[str, Any]] = []
    for i, member in enumerate(predictor.members):
        own, values = member.fitted.state()
        arrays.update({f"{i}.model.{name}": np.ascontiguousarray(array) for name, array in own.items()})
        arrays[f"{i}.slope"], arrays[f"{i}.intercept"] = member.calibration.slope, member.calibration.intercept
        members.append({"seed": member.seed, "values": values})
    if predictor.intervals is not None:
        arrays["intervals.values"], arrays["intervals.shares"] = predictor.intervals.values, predictor.intervals.shares
    if predictor.familiarity is not None:
        arrays.update({f"familiarity.{name}": array for name, array in predictor.familiarity.state().items()})
    return arrays, members


def check_writable(path: Path) -> None:
    """Refuse, before any work, a place that holds something other than a predictor, or cannot be written.

    Raises:
        OutputError: with the reason.
    """
    if path.exists() and (not path.is_dir() or {file.name for file in path.iterdir()} - {CONFIG, WEIGHTS}):
        raise OutputError(
            "there is something else at the place of the predictor",
            file=path,
            expected="a new or empty folder, or an older predictor to replace",
            hint="name another folder with --out",
        )
    if path.is_symlink():
        raise OutputError(
            "the place of the predictor is a link",
            file=path,
            expected="a folder of its own, which is replaced as a whole",
            hint="name the folder itself with --out",
        )
    ancestor = path.absolute().parent
    while not ancestor.exists():
        ancestor = ancestor.parent
    if not ancestor.is_dir() or not os.access(ancestor, os.W_OK):
        raise OutputError("the folder for the predictor cannot be written", file=ancestor)


def load(path: Path) -> Predictor:
    """Read a predictor.

    Raises:
        PredictorError: where the folder is not a predictor that this version reads, or not what was written.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not (path / CONFIG).is_file():
        raise PredictorError(
            "not a predictor",
            file=path,
            expected=f"a folder with {CONFIG}",
            hint="make one with `lorascope fit`",
        )
    try:
        if (path / CONFIG).stat().st_size > MAXIMUM_CONFIG:
            raise PredictorError("the configuration is too large to be one", file=path / CONFIG)
        config = json.loads((path / CONFIG).read_text("utf-8"))
        if config["schema_version"] != SCHEMA_VERSION:
            raise PredictorError(
                "the predictor was written by another version of lorascope",
                file=path / CONFIG,
                expected=f"schema_version {SCHEMA_VERSION}",
                found=config["schema_version"],
                hint="fit it again",
            )
        _check_projections(config)
        if not (path / WEIGHTS).is_file():
            raise PredictorError("the weights are missing", file=path / WEIGHTS)
        arrays = load_file(path / WEIGHTS)
        check_seal(config, arrays)
        predictor = _restored(config, arrays)
        unknown = sorted(arrays.keys() - _state(predictor)[0].keys())
        if unknown:
            raise ValueError(f"arrays that belong to no part: {', '.join(unknown[:3])}")
        _try(predictor)
        return predictor
    except LorascopeError as error:
        error.file = error.file or str(path)
        raise
    except OSError as error:
        raise PredictorError("the predictor cannot be read", file=path, found=error.strerror) from error
    except MemoryError as error:
        raise PredictorError("the predictor does not fit into memory", file=path) from error
    except (
        SafetensorError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        RuntimeError,
        ArithmeticError,
    ) as error:
        raise PredictorError(
            "the predictor is damaged",
            file=path,
            found=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
            hint="fit it again",
        ) from error


def _check_projections(config: dict[str, Any]) -> None:
    """Refuse a predictor that was fitted on other projections of large sides; those of smaller ones never changed."""
    version = config.get("projections", 1)
    largest = max((int(n) for shape in config["structure"]["sites"].values() for n in shape), default=0)
    if version != projection.VERSION and largest >= projection.LARGE:
        raise PredictorError(
            "the predictor was fitted on projections of large layers that another version of lorascope makes",
            key="projections",
            expected=projection.VERSION,
            found=version,
            hint="fit it again",
        )


def _restored(config: dict[str, Any], arrays: dict[str, Any]) -> Predictor:
    bad = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if bad:
        raise PredictorError("non-finite weights", key=bad[0])
    target = _target(config["target"])
    structure = _structure(config["structure"])
    model = _model(config["model"]["name"], config["model"]["options"])
    members = []
    for i, member in enumerate(config["members"]):
        prefix = f"{i}.model."
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        calibration = Calibration(arrays[f"{i}.slope"], arrays[f"{i}.intercept"])
        if {calibration.slope.shape, calibration.intercept.shape} != {(target.width,)}:
            raise ValueError(f"the calibration of member {i} is not one of {target.width} scores")
        members.append(
            Member(int(member["seed"]), model.restore(own, member["values"], target, structure), calibration)
        )
    if not members:
        raise ValueError("it has no members")
    if arrays["groups"].ndim != 1 or arrays["groups"].dtype != np.int64:
        raise ValueError("the hashes of groups are not whole numbers")
    groups = frozenset(int(value) for value in arrays["groups"])
    intervals = None
    if "intervals.values" in arrays or "intervals.shares" in arrays:
        intervals = Conformal(arrays["intervals.values"], arrays["intervals.shares"])
        if intervals.values.ndim != 1 or intervals.values.shape != intervals.shares.shape or not len(intervals.values):
            raise ValueError("values and shares of the intervals differ in number")
    familiarity = None
    if model.invariance != "blind":
        prefix = "familiarity."
        own = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        familiarity = Familiarity.restore(own, structure)
    return Predictor(target, model, structure, tuple(members), groups, config["facts"], intervals, familiarity)


def _target(fields: dict[str, Any]) -> Target:
    target = Target(
        fields["name"],
        fields["task"],
        tuple(fields["classes"]),
        float(fields["mean"]),
        float(fields["spread"]),
    )
    if not isinstance(target.name, str) or target.task not in TASKS or not isinstance(fields["classes"], list):
        raise ValueError(f"a target that cannot be: {str(target.name)[:40]}, {str(target.task)[:40]}")
    least = 2 if target.is_classification else 0
    if len(target.classes) < least or (target.task == "binary" and len(target.classes) > 2):
        raise ValueError(f"{len(target.classes)} classes of a {target.task} target")
    if not math.isfinite(target.mean) or not 0 < target.spread < math.inf:
        raise ValueError(f"the target cannot have mean {target.mean} and spread {target.spread}")
    return target


def _structure(fields: dict[str, Any]) -> Structure:
    sites = {name: (int(shape[0]), int(shape[1])) for name, shape in fields["sites"].items()}
    structure = Structure(sites, int(fields["rank"]), tuple(fields["hyperparameters"]))
    if not all(out > 0 and in_ > 0 for out, in_ in sites.values()) or not 0 < structure.rank <= MAXIMUM_RANK:
        raise ValueError("a site or a rank that cannot be")
    return structure


def _try(predictor: Predictor) -> None:
    """Predict for two adapters: weights that do not fit each other show here, not on somebody's adapter.

    One is untrained, the other random and of the trained rank, or the largest that ``MAXIMUM_NUMBERS`` has room for:
    what a model keeps for adapters of ranks that training had is then tried as well.
    """
    structure = predictor.structure
    if predictor.model.invariance == "blind" or sum(map(sum, structure.sites.values())) > MAXIMUM_TRIED:
        return
    # made when they are read, since large ones do not fit into memory together with room to spare
    tried = [Sample(lambda size=size: _random(structure, size), {}) for size in (0.0, 1e-3)]
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        said = predictor.predict(tried)
    for prediction in said:
        numbers = [prediction.value] if prediction.probabilities is None else list(prediction.probabilities.values())
        if not all(math.isfinite(number) for number in [*numbers, *(prediction.interval or ())]):
            raise ValueError("the weights give no finite prediction")


def _random(structure: Structure, size: float) -> Adapter:
    """The same random adapter of the structure's rank at every call, in float32, B of this size; of a lower rank where
    it would have more than ``MAXIMUM_NUMBERS``."""
    rng = np.random.default_rng(0)
    largest = max(1, MAXIMUM_NUMBERS // sum(map(sum, structure.sites.values())))
    sites: dict[str, LowRank] = {}
    for name, (out, in_) in structure.sites.items():
        rank = min(structure.rank, largest, out, in_)
        B, A = rng.standard_normal((out, rank), np.float32), rng.standard_normal((rank, in_), np.float32)
        sites[name] = LowRank(np.float32(size) * B, A)
    return Adapter(sites)


def _model(name: str, options: dict[str, Any]) -> Model:
    kind: Any = MODELS[name]
    return kind(**{key: tuple(value) if isinstance(value, list) else value for key, value in options.items()})


def finite(value: Any) -> Any:
    """The value with null for every NaN and infinity, at any depth."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
