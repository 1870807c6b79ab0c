"""Sites as a PEFT file of the type IA3: one gate each, and which of them lie on the inputs.

Source: https://github.com/huggingface/peft, src/peft/tuners/ia3/layer.py, and model.py for how names are matched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from lorascope.formats.parametrisations.ia3 import IA3
from lorascope.formats.peft_fields import Form, is_base_transposed
from lorascope.formats.peft_keys import PREFIX


def ia3_form(updates: Mapping[str, IA3], own: Mapping[str, Any]) -> Form:
    """The tensors and the fields of the configuration."""
    on_input = sorted(site for site, update in updates.items() if update.axis == "in")
    # a name in a list stands for all that end so; where that would take an output too, both become patterns
    is_unclear = any(site.endswith(name) for site in updates if site not in on_input for name in on_input)
    sites: Any = _pattern(updates) if is_unclear else sorted(updates)
    return {f"{PREFIX}{site}.ia3_l": update.stored["gate"] for site, update in updates.items()}, {
        "peft_type": "IA3",
        "target_modules": sites,
        "feedforward_modules": _pattern(on_input) if is_unclear else on_input,
        "fan_in_fan_out": is_base_transposed(updates),
        "init_ia3_weights": True,
    }


def _pattern(sites: Iterable[str]) -> str:
    return "|".join(re.escape(site) for site in sorted(sites))
