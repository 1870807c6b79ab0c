"""Output takes the place of nothing but regular files."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import lorascope
from lorascope.adapter import Adapter, LowRank
from lorascope.errors import OutputError
from lorascope.formats.output_file import replaced_file, staged, written_folder
from lorascope.formats.safetensors_file import write_safetensors

ADAPTER = Adapter(
    {"model.layers.0.self_attn.q_proj": LowRank(np.ones((4, 1), np.float32), np.ones((1, 4), np.float32))}
)


@pytest.fixture(params=["pipe", "socket", "link to a pipe", "link to nothing"])
def occupied(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A path whose occupant must survive."""
    path = tmp_path / "x.safetensors"
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with socket.socket(socket.AF_UNIX) as one:
        match request.param:
            case "pipe":
                os.mkfifo(path)
            case "socket":
                one.bind(path.name)
            case "link to a pipe":
                os.mkfifo(tmp_path / "pipe")
                path.symlink_to("pipe")
            case _:
                path.symlink_to("nothing")
        before = path.lstat()
        names = sorted(tmp_path.iterdir())
        yield path
        after = path.lstat()
        assert (before.st_ino, stat.S_IFMT(before.st_mode)) == (after.st_ino, stat.S_IFMT(after.st_mode))
        assert sorted(tmp_path.iterdir()) == names


def test_a_file_takes_the_place_of_no_pipe_socket_or_broken_link(occupied: Path) -> None:
    with pytest.raises(OutputError), replaced_file(occupied) as temporary:
        temporary.write_bytes(b"x")
    with pytest.raises(OutputError), staged(occupied) as temporary:
        temporary.write_bytes(b"x")
    with pytest.raises(OutputError):
        write_safetensors(occupied, {"x": np.ones(2)})


@pytest.mark.parametrize("to", ["kohya", "gguf", "peft"])
def test_no_format_is_written_over_one(occupied: Path, to: str) -> None:
    with pytest.raises(OutputError):
        lorascope.convert(ADAPTER, occupied, to=to, base_config={"model_type": "llama"}, is_loss_allowed=True)


def test_a_bake_is_not_written_over_one(occupied: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.mktemp("base") / "model.safetensors"
    write_safetensors(base, {"model.layers.0.self_attn.q_proj.weight": np.ones((4, 4), np.float32)})
    with pytest.raises(OutputError):
        lorascope.bake(base, [ADAPTER], occupied)
    with pytest.raises(OutputError):
        lorascope.bake(base.parent, [ADAPTER], occupied)


def test_what_comes_while_the_file_is_written_is_refused_too(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(OutputError), replaced_file(path) as temporary:
        temporary.write_bytes(b"x")
        os.mkfifo(path)
    assert path.is_fifo()


def test_a_file_of_a_folder_takes_the_place_of_no_pipe(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    os.mkfifo(folder / "x")
    for writing in (written_folder, staged):
        with pytest.raises(OutputError), writing(folder) as temporary:
            temporary.mkdir(exist_ok=True)
            (temporary / "x").write_bytes(b"x")
            (temporary / "y").write_bytes(b"y")
        assert (folder / "x").is_fifo()
        assert list(folder.iterdir()) == [folder / "x"]


def test_a_link_to_a_file_is_replaced_and_the_file_stays(tmp_path: Path) -> None:
    path, other = tmp_path / "x", tmp_path / "other"
    for writing in (replaced_file, staged):
        other.write_bytes(b"before")
        path.unlink(missing_ok=True)
        path.symlink_to("other")
        with writing(path) as temporary:
            temporary.write_bytes(b"after")
        assert not path.is_symlink()
        assert (path.read_bytes(), other.read_bytes()) == (b"after", b"before")


def test_a_folder_that_is_replaced_is_replaced_whole_through_a_link_too(tmp_path: Path) -> None:
    real, link = tmp_path / "there" / "real", tmp_path / "link"
    (real / "old").mkdir(parents=True)
    link.symlink_to(real)
    for writing in (written_folder, staged):
        (real / "old").mkdir(exist_ok=True)
        with pytest.raises(RuntimeError), writing(link, is_replaced=True) as temporary:
            raise RuntimeError
        assert [path.name for path in real.iterdir()] == ["old"]
        with writing(link, is_replaced=True) as temporary:
            (temporary / "new").mkdir(parents=True)
        assert link.is_symlink() and [path.name for path in real.iterdir()] == ["new"]
        assert [path.name for path in real.parent.iterdir()] == ["real"]
        (real / "new").rmdir()


def test_a_path_through_a_folder_that_is_not_there_writes_nowhere(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("2")
    for context in (written_folder, staged):
        with (
            pytest.raises(OutputError, match="not there"),
            context(tmp_path / "new" / ".." / "out", is_replaced=True),
        ):
            pass
    assert (tmp_path / "out" / "thesis.tex").exists() and not (tmp_path / "new").exists()


def test_an_interrupted_replacement_puts_back_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if self.name != "out" or self.parent != tmp_path:
            monkeypatch.undo()
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), written_folder(tmp_path / "out", is_replaced=True) as folder:
        (folder / "new").write_text("2")
    assert (tmp_path / "out" / "old").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_others_wrote_meanwhile_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    with (
        pytest.raises(OutputError, match="others wrote"),
        written_folder(tmp_path / "out", is_replaced=True) as folder,
    ):
        (folder / "old").write_text("2")
        (tmp_path / "out" / "notes").write_text("3")
    assert (tmp_path / "out" / "notes").read_text() == "3" and (tmp_path / "out" / "old").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_interruption_between_two_files_does_not_mix_adapters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    for name in ("a", "b"):
        (tmp_path / "out" / name).write_text("old")
    replace, moved = Path.replace, []

    def interrupted(self: Path, target: Path) -> Path:
        moved.append(target.name)
        if len(moved) == 2:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), written_folder(tmp_path / "out") as folder:
        for name in ("a", "b"):
            (folder / name).write_text("new")
    assert {path.read_text() for path in (tmp_path / "out").iterdir()} == {"new"}


def test_what_was_private_stays_private(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o700)
    (tmp_path / "out" / "old").write_text("1")
    (tmp_path / "file").touch(mode=0o600)
    with written_folder(tmp_path / "out", is_replaced=True) as folder:
        (folder / "new").write_text("2")
    with replaced_file(tmp_path / "file") as temporary:
        temporary.write_text("2")
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("out", "file")] == [0o700, 0o600]
