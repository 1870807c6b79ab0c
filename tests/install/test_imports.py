"""What must not be imported: the command line answers before anything heavy is loaded."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "huggingface_hub", "pyarrow", "numpy", "scipy", "sklearn", "hypothesis", "peft", "safetensors")


def modules_after(code: str) -> set[str]:
    """The heavy modules that are loaded once the code has run in a fresh process."""
    program = f"""
import json, sys
try:
    {code}
except SystemExit:
    pass
print()
print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
"""
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    return set(json.loads(result.stdout.splitlines()[-1]))


VERBS = [
    "",
    "merge",
    "compare",
    "resize",
    "find",
    "compress",
    "lineage",
    "inspect",
    "forge",
    "fit",
    "evaluate",
    "predict",
    "bench",
    "models",
    "zoo",
    "zoo import",
    "zoo info",
]


@pytest.mark.parametrize("verb", VERBS)
def test_help_imports_nothing_heavy(verb):
    arguments = ["lorascope", *verb.split(), "--help"]
    assert modules_after(f"sys.argv = {arguments}; from lorascope.cli import main; main()") == set()


def test_importing_the_package_is_light():
    assert modules_after("import lorascope; lorascope.__version__") == set()


def test_the_public_names_are_there_and_bring_no_torch():
    loaded = modules_after("import lorascope; [getattr(lorascope, name) for name in lorascope.__all__]")
    assert not loaded & {"torch", "huggingface_hub", "pyarrow", "sklearn", "peft"}


def test_the_algebra_is_there_by_name_and_brings_nothing_of_an_extra():
    code = (
        "import lorascope; [getattr(lorascope, name) for name in ('merge', 'compare', 'compress', 'retrieve', 'serve')]"
    )
    assert not modules_after(code) & {"torch", "huggingface_hub", "pyarrow", "scipy", "sklearn", "peft"}


def test_an_unknown_name_is_an_attribute_error():
    import lorascope

    with pytest.raises(AttributeError, match="no attribute 'raed'"):
        _ = lorascope.raed
