"""Zoos: opened with clear errors, and made of one's own adapters."""

import json

import numpy as np
import pytest

from lorascope.adapter import Adapter, LowRank
from lorascope.cli import main
from lorascope.errors import OutputError, ZooError
from lorascope.formats import write
from lorascope.predict import Dataset
from lorascope.zoo import Zoo, import_zoo, write_manifest


@pytest.fixture
def source(tmp_path):
    """Three adapters and a table."""
    for number in range(3):
        rng = np.random.default_rng(number)
        write(
            Adapter({"q": LowRank(rng.standard_normal((4, 2)), rng.standard_normal((2, 3)))}),
            tmp_path / f"in/a{number}",
        )
    (tmp_path / "labels.csv").write_text("path,classes,rate,good,who\na0,1;2,0.1,true,x\na1,3,,false,y\na2,,2,true,x\n")
    return tmp_path / "in"


def test_import_in_place(source, tmp_path):
    report = import_zoo(source, tmp_path / "labels.csv", hyperparameters=["rate"], group="who")
    zoo = Zoo.open(source)
    assert (report.count, report.unreadable, list(report.unlabelled)) == (3, {}, [])
    assert [row["classes"] for row in zoo.rows()] == [[1, 2], [3], None]
    assert [row["rate"] for row in zoo.rows()] == [0.1, None, 2.0]
    assert zoo.hyperparameters() == ["rate"] and zoo.column("good").type == "bool"
    first, _, last = zoo.rows()
    assert first["split"] == last["split"] and first["sha256"]


def test_import_into_a_new_folder(source, tmp_path):
    import_zoo(source, tmp_path / "labels.csv", out=tmp_path / "zoo")
    zoo = Zoo.open(tmp_path / "zoo")
    assert all(zoo.adapter_path(row).is_dir() for row in zoo.rows())
    assert not (source / "zoo.json").exists()
    with pytest.raises(OutputError, match="something else"):
        import_zoo(source, tmp_path / "labels.csv", out=tmp_path / "zoo")


def test_unreadable_adapters_and_those_without_labels_are_reported(source, tmp_path):
    (source / "a1" / "adapter_model.safetensors").write_bytes(b"broken")
    (tmp_path / "labels.csv").write_text("path,n\na0,1\na1,2\n")
    report = import_zoo(source, tmp_path / "labels.csv")
    assert list(report.unreadable) == ["a1"] and list(report.unlabelled) == ["a2"]
    assert [row["status"] for row in Zoo.open(source).rows(only_usable=False)] == ["ok", "unreadable"]


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ("path,n\nnowhere,1\n", "labels that name no file"),
        ("path,n\na0,1\na0,2\n", "two rows name one adapter"),
        ("path,n\n../in/a0,1\n", "outside"),
        ("path,n\n/etc,1\n", "outside"),
        ("path,n\n" + "x" * 5000 + ",1\n", "looked up|name no file"),
        ("path,n\na0\n", "number of cells"),
        ('path,n\n"a0,1\n', "CSV"),
        ("path,n\n", "no rows"),
        ("", "header"),
        ("name,n\na0,1\n", "which adapter"),
        ("path,n\na0,nan\n", "not finite"),
        ("path,split\na0,1\n", "every zoo uses"),
    ],
)
def test_bad_tables_are_refused_and_leave_nothing(source, tmp_path, table, match):
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(ZooError, match=match):
        import_zoo(source, tmp_path / "labels.csv", out=tmp_path / "zoo")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "labels.csv"]


def test_an_unwritable_place_is_refused_and_nothing_is_left(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        import_zoo(source, tmp_path / "labels.csv", out=tmp_path / "file" / "zoo")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "in", "labels.csv"]


def test_the_manifest_can_be_rebuilt(source, tmp_path):
    import_zoo(source, tmp_path / "labels.csv")
    rows = Zoo.open(source).rows()
    (source / "manifest.parquet").write_bytes(b"damaged")
    with pytest.raises(ZooError, match="delete it"):
        Zoo.open(source).rows()
    (source / "manifest.parquet").unlink()
    assert Zoo.open(source).rows() == rows
    write_manifest(source)
    assert Zoo.open(source).rows() == rows


def test_opening_says_what_is_wrong(source, tmp_path):
    with pytest.raises(ZooError, match="is not a zoo"):
        Zoo.open(tmp_path)
    import_zoo(source, tmp_path / "labels.csv")
    zoo = Zoo.open(source)
    with pytest.raises(ZooError, match="did you mean classes"):
        zoo.column("clases")
    for path, match in (("../in", "outside"), ("gone", "missing")):
        with pytest.raises(ZooError, match=match):
            zoo.adapter_path({"path": path, "id": "x"})
    header = json.loads((source / "zoo.json").read_text())
    (source / "zoo.json").write_text(json.dumps(header | {"schema_version": 99}))
    with pytest.raises(ZooError, match="newer lorascope"):
        Zoo.open(source)


def run(monkeypatch, capsys, *arguments):
    """The exit code, the output and the errors of a command."""
    monkeypatch.setattr("sys.argv", ["lorascope", *map(str, arguments)])
    try:
        main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_commands(source, tmp_path, monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "zoo", "import", source, "--labels", tmp_path / "labels.csv", "--json")
    assert code == 0 and json.loads(out)["count"] == 3
    code, out, _ = run(monkeypatch, capsys, "zoo", "info", source, "--json")
    assert code == 0 and json.loads(out)["columns"]["classes"]["missing"] == 1
    code, out, _ = run(monkeypatch, capsys, "zoo", "info", source)
    assert code == 0 and "hyperparameter" not in out and max(map(len, out.splitlines()[2:])) <= 80
    for arguments in (["zoo", "info", tmp_path], ["forge", "digits-vti"], ["forge", "digits-vit"]):
        code, _, errors = run(monkeypatch, capsys, *arguments)
        assert code == 2 and errors.startswith("error: ") and "Traceback" not in errors


def test_plan_trains_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(monkeypatch, capsys, "forge", "digits-vit", "--count", 64, "--plan", "--json")
    assert code == 0 and json.loads(out)["count"] == 64 and not list(tmp_path.iterdir())


def test_the_hash_of_a_zoo_knows_the_configurations(source, tmp_path):
    import_zoo(source, tmp_path / "labels.csv")
    before = Dataset.of(source).digest
    config = source / "a0" / "adapter_config.json"
    config.write_text(config.read_text().replace('"lora_alpha": 2', '"lora_alpha": 4'))  # another ΔW, the same weights
    import_zoo(source, tmp_path / "labels.csv")
    assert Dataset.of(source).digest != before


def test_a_zoo_of_before_the_hash_of_the_configuration_is_read(source, tmp_path):
    import_zoo(source, tmp_path / "labels.csv")
    for name in ("zoo.json", "cohorts/00000000.json"):
        value = json.loads((source / name).read_text())
        for part in [value.get("columns", {}), *value.get("rows", [])]:
            part.pop("config_sha256", None)
        (source / name).write_text(json.dumps(value))
    (source / "manifest.parquet").unlink()
    assert "config_sha256" not in Zoo.open(source).rows()[0]
    assert len(Dataset.of(source)) == 2 + 1
