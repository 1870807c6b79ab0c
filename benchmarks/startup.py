"""Whole-process seconds of ``lorascope --help`` and of ``lorascope inspect`` on a small file, against bare Python."""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import lorascope
from lorascope.adapter import Adapter, LowRank
from report import median_seconds, report


def figures() -> dict[str, float]:
    """Seconds of each process, and its ratio to ``python -c pass``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "adapter"
        lorascope.write(Adapter({"q": LowRank(np.ones((8, 2), np.float32), np.ones((2, 8), np.float32))}), path)
        command = str(Path(sys.executable).parent / "lorascope")

        def run(*arguments: str) -> float:
            return median_seconds(lambda: subprocess.run(arguments, check=True, capture_output=True), runs=7)

        bare = run(sys.executable, "-c", "pass")
        help_, inspect = run(command, "--help"), run(command, "inspect", str(path))
        numpy = run(sys.executable, "-c", "import numpy")
    return {
        "python_seconds": bare,
        "import_numpy_seconds": numpy,
        "help_seconds": help_,
        "inspect_seconds": inspect,
        "help_over_python": help_ / bare,
        "inspect_over_import_numpy": inspect / numpy,
    }


if __name__ == "__main__":
    report("startup", figures)
