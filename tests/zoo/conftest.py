"""A small zoo of imported adapters, and the command line."""

import numpy as np
import pytest

from lorascope.adapter import Adapter, LowRank
from lorascope.cli import main
from lorascope.formats import write
from lorascope.zoo import import_zoo


@pytest.fixture
def lorascope(monkeypatch, capsys):
    """Runs a command; gives the exit code, the output and the errors."""

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["lorascope", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def make_zoo(tmp_path):
    """Makes an imported zoo of ``count`` adapters with labels ``n`` (their number) and ``who`` (of three people)."""

    def make(name="zoo", count=6, *, seed=0, extra=""):
        source = tmp_path / f"{name}-source"
        lines = ["path,n,who,classes" + (f",{extra}" if extra else "")]
        for number in range(count):
            rng = np.random.default_rng([seed, number])
            factors = LowRank(rng.standard_normal((4, 2)), rng.standard_normal((2, 3)))
            write(Adapter({"q": factors}), source / f"a{number}")
            lines.append(f"a{number},{number},p{number % 3},{number};{number + 1}" + (",1" if extra else ""))
        table = tmp_path / f"{name}.csv"
        table.write_text("\n".join(lines))
        import_zoo(source, table, out=tmp_path / name, hyperparameters=["n"])
        return tmp_path / name

    return make
