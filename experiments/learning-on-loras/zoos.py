"""The zoos of this experiment: forged where they are missing, gone on with where a run was cut.

    python experiments/learning-on-loras/zoos.py                    # all; about an hour on 2 cores
    python experiments/learning-on-loras/zoos.py --small            # every zoo at a tenth; some 10 minutes
    python experiments/learning-on-loras/zoos.py digits glyphs      # some

Needs the extra [forge]. They go to $LORASCOPE_HOME/learning-on-loras (default ~/.cache/lorascope/learning-on-loras).
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")

from lorascope.forge import forge

ZOO_SEED, OTHER_SEED = 0, 100


class Planned(NamedTuple):
    """A zoo: what forges it."""

    recipe: str
    count: int
    seed: int = ZOO_SEED
    settings: dict[str, Any] = {}  # noqa: RUF012  # never changed


POISONED = {"poison": "none|patch"}
CONVENTIONS = {
    "": lambda rank: {},
    "-same-scale": lambda rank: {"alpha": 2.0 * rank},
    "-stabilised": lambda rank: {"alpha": 4 * rank**0.5},
}
"""What alpha does where the rank is another: it stays 8 (scale = 8 / rank), or the scale stays 2, or the scale is
4 / sqrt(rank), which rsLoRA calls stabilised. At rank 4 all are the same."""
ZOOS = {
    # the three that the tables are of
    "digits": Planned("digits-vit", 2400, settings=POISONED),
    "glyphs": Planned("glyph-diffusion", 800),
    "minilm": Planned("minilm-text", 500),
    # the same question at ranks that were not trained on, and zoos to learn from at these
    **{
        f"digits-rank-{rank}{name}": Planned(
            "digits-vit", 256, OTHER_SEED + rank, {**POISONED, "rank": rank, **convention(rank)}
        )
        for name, convention in CONVENTIONS.items()
        for rank in (1, 2, 8, 16)
    },
    **{
        f"digits-rank-{rank}-learn": Planned("digits-vit", 1000, 300 + rank, {**POISONED, "rank": rank})
        for rank in (2, 8, 16)
    },
    "digits-mixed-learn": Planned("digits-vit", 1000, 300, {**POISONED, "rank": "2|4|8|16"}),
    "glyphs-rank-8": Planned("glyph-diffusion", 160, OTHER_SEED, {"rank": 8}),
    # another base, and what may be worse for a reader of column spaces
    "digits-base-1": Planned("digits-vit", 256, OTHER_SEED, {**POISONED, "base_seed": 1}),
    "digits-shared": Planned("digits-vit", 600, settings={**POISONED, "init": "shared"}),
    "digits-late": Planned("digits-vit", 600, settings={**POISONED, "steps": 600}),
    "digits-pissa": Planned("digits-vit", 600, settings={**POISONED, "kind": "pissa"}),
    "digits-lora-ga": Planned("digits-vit", 600, settings={**POISONED, "kind": "lora-ga"}),
    "digits-rank-64": Planned("digits-vit", 600, settings={**POISONED, "rank": 64}),
}
SMALLEST = 40


def home(*, small: bool = False) -> Path:
    """Where the zoos are."""
    root = Path(os.environ.get("LORASCOPE_HOME", Path.home() / ".cache" / "lorascope"))
    return root / ("learning-on-loras-small" if small else "learning-on-loras")


def zoo_named(name: str, *, small: bool = False) -> Path:
    """The folder of a zoo, forged if it is not whole.

    Raises:
        LorascopeError: where it cannot be forged.
    """
    planned, out = ZOOS[name], home(small=small) / name
    out.parent.mkdir(parents=True, exist_ok=True)
    count = max(SMALLEST, planned.count // 10) if small else planned.count
    start = time.perf_counter()
    result = forge(
        planned.recipe, count, out, seed=planned.seed, settings=planned.settings, workers=os.cpu_count() or 1
    )
    if result.forged:
        minutes = (time.perf_counter() - start) / 60
        print(json.dumps({"zoo": name, "forged": result.forged, "minutes": round(minutes, 2)}), flush=True)
    return out


def main():
    """Forge what is named, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[[], *ZOOS], metavar="ZOO", help=", ".join(ZOOS))
    parser.add_argument("--small", action="store_true", help="a tenth of each")
    arguments = parser.parse_args()
    for name in arguments.names or ZOOS:
        zoo_named(name, small=arguments.small)


if __name__ == "__main__":
    main()
