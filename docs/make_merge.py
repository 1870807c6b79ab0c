"""Makes docs/merge.md from the registry of merge methods: `python docs/make_merge.py [--check]`."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lorascope.merge import METHODS

TARGET = Path(__file__).with_name("merge.md")

HEAD = """# Merging adapters

Made by `python docs/make_merge.py` from the registry of methods; a test checks that it is current.

    lorascope merge style.safetensors subject/ -o both --weights 0.7,1
    lorascope merge a b c -o merged --method ties --option density=0.3 --rank 16
    lorascope merge tuned unwanted -o without --method subtract
    lorascope merge a b -o merged --weights 1,1 --weights-for '*.layers.1?.*=0,1'
    lorascope merge a b c -o fitted --learn examples.py:loss
    lorascope merge --methods

In Python, where `learn_weights` is `--learn`:

```python
import lorascope
from lorascope.merge import Cut, merge

adapters = [lorascope.read("a"), lorascope.read("b")]
merged = merge(adapters, "ties", weights=[0.7, 1.0], cut=Cut(rank=16))
lorascope.write(merged.adapter, "merged")  # merged.relative_error, merged.sites
```

Adapters of one base, in any of the formats, become one adapter in any of the formats; the base is not needed. Ranks and
scales may differ; a site that an adapter does not have is ΔW = 0 there, and is listed. All works on
ΔW = scale · B · A, never on averaged factors: there are no cross terms B_i A_j, and the same finetunes in another gauge
give the same merge, but where a method declares otherwise (and where singular values are equal, so that their vectors
are anything: `knots-ties`, `knots-dare-ties`, `core-space`, `lego`). An adapter of weight 0 at a site takes no part
there. Layers whose names differ in what a framework puts in front (`unet.`, `model.`) are one. What cannot be merged is
refused, with the file and the site: other shapes, names of other base models (`--any-base` where they mean the same),
ΔW that only the base weight tells (DoRA, IA3, OFT) or that is relative to a changed base (PiSSA), a scale that no file
states, saved heads that differ (`--allow-loss` leaves them out, and says so).

## Which method

For adapters of different tasks: `iso-c`. On 120 draws of 2 to 8 adapters
([experiments/merging](../experiments/merging/README.md)) it is first or within one standard deviation of the first in
every column, as are `iso-cts` and `tsv`; `linear` with the best common weight is close. Methods differ far more in the
weight that suits them than at their best weights: look for it on data of your own (`--learn`). For parts of one picture
(style and subject), and to take something out: `linear`, the default, which is the exact sum.

## Rank and error

A method gives either a product of low rank, exactly, or (`ties`, `dare`, `dare-ties`, `magnitude-prune`) a matrix of
full rank by blocks of rows. A product is cut by QR of both factors and the SVD of the core, which is the best there is
of its rank (Eckart, Young); a matrix of rows by a randomised range finder (Halko et al.) in bounded memory, near the
best. Thresholds for single entries are exact.

| option | keeps |
|---|---|
| none | all of a product but rounding; of a matrix of full rank, as many as the ranks of the adapters together |
| `--rank k` | at most k singular values of each site |
| `--energy e` | the fewest with Σ σ² ≥ e of the whole |
| `--error e` | the fewest with a relative error of at most e at each site, before rounding to the dtype |

Of several, the smallest rank counts. `relative_error`, of each site and of all, is ‖written − exact‖ / ‖exact‖,
measured on the factors in the dtype that they are written in, against what the method gave; it says how well the
file holds the merge, not how good the merge is.

## Methods

*Order*: whether the order of the adapters, with their weights, changes nothing. *Copies*: whether n copies with
weights that sum to 1 give the adapter back, with the default options. *Weights*: by default. *Biases*: whether changes
of biases are summed as the updates are; others refuse them (`--allow-loss`). Those with a star are experimental: no
merge of real adapters by them has been measured yet. What the columns on gauge, order and copies say is tested as laws,
in both directions.
"""

TAIL = """
## What differs from the published methods and from PEFT

- `ties`: site by site, where published over the whole model. As many entries are kept as by PEFT, ⌊density · out · in⌋,
  and those as large as the last of them too. With equal weights it is PEFT's `ties_svd` with weights of 1; other
  weights vote here and count in a weighted mean, where PEFT's scale the result after an unweighted vote
  (`--option factor=λ` does). Where both signs have the same mass, none is elected.
- `dare` and, with weights of 1, `dare-ties` are PEFT's `dare_linear_svd` and `dare_ties_svd` but for the random
  numbers: here a counter-based generator, keyed by seed, site and place of the adapter. `magnitude-prune` is
  `magnitude_prune_svd`, `linear` is `cat` and, cut, `svd`. PEFT's own `linear` sums factors, with cross terms; nothing
  here does.
- `knots-ties`: on S V_iᵀ, as in the code of its authors; with the weighted sum in place of TIES it would be `linear`.
- `core-space`: bases from ΔW, where published ones are from the factors and turn with the gauge.
- `iso-c`, `iso-cts`: over the directions that the sum has. Published is the mean over min(out, in) singular values, of
  which a sum of LoRAs has all but a few at zero, with singular vectors that mean nothing. Directions below
  `cutoff` · σ₁ are left out.
- `lego`: on singular triples as rank-one matrices, so that neither gauge nor signs matter; `lego-original` is as
  published but for its start, which is not random.
- `frechet`: a definition of our own (balanced factors up to rotations, Procrustes distance); the idea is GeoMerge's.
- `slerp`: refuses opposite directions; of equal ones, or with a zero update, it is the mean.
- `fedex` is `average`: that is what it is for. `ffa` and `fed-sb` have the rank of one adapter, and refuse adapters
  that do not share A (or B and A) up to the gauge, with the measured deviation.
- `b-lora`: sites that are neither content nor style become zero.
- `--learn FILE.py:FUNCTION` executes the file. The function takes the merged `Adapter` and returns a number, the lower
  the better; the search is LoraHub's with SciPy's COBYLA: weights in [−1.5, 1.5] from 0, penalty 0.05 · mean |w|.

"""


TIMES = """## Time and memory

`python benchmarks/merge.py`: 8 adapters of rank 16 at 16 sites of 2048 × 2048, summed and cut to rank 16, one thread.
PEFT's `svd` takes 54 times the processor time in one run (41 s against 0.76 s) and 553 MiB beside the adapters against
34 MiB; a dense SVD of PyTorch takes 48 times the time and 156 MiB. All three have the least error that rank 16 allows.
A method of full rank works out each ΔW a few times, block by block, and keeps at most 128 MiB of the result.
"""


def default_weights(member: Any) -> str:
    made = member().default_weights(4)
    return "1" if np.array_equal(made, np.ones(4)) else "1/n" if np.array_equal(made, np.full(4, 0.25)) else "own"


def row(member: Any) -> tuple[str, ...]:
    fields = {field.name: field.default for field in dataclasses.fields(member)}
    shown = {name: ",".join(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    return (
        f"`{member.name}`" + (" *" if member.is_experimental else ""),
        member.formula,
        member.invariance,
        "yes" if member.is_symmetric else "no",
        "yes" if member.is_idempotent else "no",
        default_weights(member),
        "summed" if member().bias_weights(np.ones(2)) is not None else "–",
        ", ".join(f"`{name}={value}`" for name, value in shown.items()) or "–",
        member.reference,
    )


def text() -> str:
    head = ("method", "result", "gauge", "order", "copies", "weights", "biases", "options", "source")
    lines = [head, ["---"] * len(head), *(row(member) for member in METHODS)]
    table = "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
    return f"{HEAD}\n{table}\n{TAIL}{TIMES}"


if __name__ == "__main__":
    if "--check" in sys.argv:
        sys.exit(not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text())
    TARGET.write_text(text(), encoding="utf-8")
