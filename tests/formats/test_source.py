"""Which files are taken: folders, trees, files that are something else, and the hub through a loopback server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lorascope import formats
from lorascope.errors import AdapterError

Folder = Callable[..., Path]


def test_safetensors_wins_over_pickle(peft_folder: Folder) -> None:
    folder = peft_folder()
    (folder / "adapter_model.bin").write_bytes(b"not read")
    assert len(formats.read(folder)) == 2
    assert formats.find(folder) == [folder]


def test_a_file_finds_the_configuration_beside_it(peft_folder: Folder) -> None:
    folder = peft_folder()
    copy = folder / "Copy of adapter_model.safetensors"
    (folder / "adapter_model.safetensors").rename(copy)
    assert formats.read(copy)["q"].scale == 2.0
    assert formats.read(folder)["q"].scale == 2.0


def test_a_tree_is_found_in_natural_order(peft_folder: Folder, tmp_path: Path) -> None:
    for name in ("run/checkpoint-100", "run/checkpoint-90", "run", ".hidden"):
        (tmp_path / name).mkdir(parents=True, exist_ok=True)
        peft_folder(name=name)
        (tmp_path / name / "optimizer.pt").write_bytes(b"x")
    (tmp_path / "loose").mkdir()
    for name in ("b.safetensors", "a10.safetensors", "a9.safetensors", "model.safetensors", "notes.txt"):
        (tmp_path / "loose" / name).write_bytes(b"x")
    found = [str(path.relative_to(tmp_path)) for path in formats.find(tmp_path)]
    assert found == [
        "loose/a9.safetensors",
        "loose/a10.safetensors",
        "loose/b.safetensors",
        "run",
        "run/checkpoint-90",
        "run/checkpoint-100",
    ]
    assert formats.is_adapter(tmp_path / "run") and not formats.is_adapter(tmp_path)
    assert formats.is_adapter(tmp_path / "loose/b.safetensors")
    assert not formats.is_adapter(tmp_path / "loose/model.safetensors")


@pytest.mark.parametrize(
    ("files", "found", "is_one", "passed_by"),
    [
        (["adapter_config.json", "adapter_model.bin", "adapter_model.safetensors"], ["."], True, []),
        (["adapter_config.json", "adapter_model.safetensors", "b.pt", "optimizer.pt"], ["."], True, ["b.pt"]),
        (["adapter_config.json", "b.safetensors", "c/adapter_model.bin"], [".", "c"], True, []),
        (["pytorch_lora_weights.bin", "pytorch_lora_weights.safetensors"], ["."], True, []),
        (["adapters.npz", "c/adapters.npz"], [".", "c"], False, []),
        (["adapters.npz", "b.safetensors"], ["adapters.npz", "b.safetensors"], False, ["b.safetensors"]),
        (["b.safetensors"], ["b.safetensors"], True, []),
        (["b.safetensors", "c/adapters.npz"], ["b.safetensors", "c"], False, []),
    ],
)
def test_a_folder_is_one_adapter_by_its_configuration_or_where_there_is_nothing_else(
    tmp_path: Path, files: list[str], found: list[str], is_one: bool, passed_by: list[str]
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [path.relative_to(tmp_path).as_posix() for path in formats.find(tmp_path)] == found
    assert formats.is_adapter(tmp_path) == is_one
    assert [path.name for path in formats.beside(tmp_path)] == passed_by


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "holds no adapter"),
        (["model.safetensors", "optimizer.pt"], "holds no adapter"),
        (["a.safetensors", "b.safetensors"], "several adapters"),
        (["sub/adapter_model.bin"], "a tree of adapters"),
        (["a.safetensors", "sub/adapter_model.bin"], "a tree of adapters"),
    ],
)
def test_a_folder_that_is_not_one_adapter(tmp_path: Path, files: list[str], said: str) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(AdapterError, match=said):
        formats.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("x.safetensors", b"", "the file is empty"),
        ("x.safetensors", b"\r\n", "too short"),
        ("x.safetensors", bytes(4096), "empty header"),
        ("x.safetensors", b"\n<!DOCTYPE html><html>Not found</html>", "a web page"),
        ("x.bin", b"<html>", "a web page"),
        ("x.safetensors", b'{"error":"not found"}', "a JSON text"),
        ("x.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12345\n", "12345 bytes"),
        ("x.bin", b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12345\n", "Git LFS pointer"),
        ("x.gguf", b"GGUF\x03\0\0\0", "truncated"),
        ("ggml-adapter-model.bin", b"ggla\x01\0\0\0", "obsolete"),
        ("x.bin", b"some text that is no pickle", "damaged|more than plain tensors"),
    ],
)
def test_a_file_that_is_something_else_is_told(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(AdapterError, match=said) as caught:
        formats.read(tmp_path / name)
    assert caught.value.file == str(tmp_path / name)


@pytest.mark.parametrize("text", ["[]", "{", "\ufeff{}", '{"a": "\\ud800"}', "[" * 100_000, " " * (1 << 20) + "{}"])
def test_a_configuration_that_is_no_object_is_told(peft_folder: Folder, text: str) -> None:
    folder = peft_folder()
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(AdapterError, match="configuration"):
        formats.read(folder)


@pytest.mark.parametrize("location", ["no/such/path", "nothing.safetensors", "a\0b", "x" * 5000, "owner/name:../up"])
def test_what_is_nowhere_is_told(location: str) -> None:
    with pytest.raises(AdapterError):
        formats.read(location)


def test_a_folder_under_the_name_of_weights_and_a_pipe_are_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.safetensors")
    with pytest.raises(AdapterError, match="not a regular file"):
        formats.read(tmp_path / "x.safetensors")


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "loose.safetensors"])
def test_what_is_no_file_in_the_place_of_weights_is_called_what_it_is(tmp_path: Path, name: str) -> None:
    """It is found by its name alone and never opened."""
    (tmp_path / "adapter_config.json").write_text("{}")
    os.mkfifo(tmp_path / name)
    with pytest.raises(AdapterError, match="the weights are a named pipe") as caught:
        formats.read(tmp_path)
    assert caught.value.file == str(tmp_path / name)
    (tmp_path / name).unlink()
    (tmp_path / name).symlink_to(tmp_path / "nothing")
    with pytest.raises(AdapterError, match="a link to nothing"):
        formats.read(tmp_path)
    (tmp_path / name).unlink()
    (tmp_path / "notes.pipe").symlink_to(tmp_path / "nothing")
    with pytest.raises(AdapterError, match="without weights"):
        formats.read(tmp_path)


def test_equal_evidence_is_ambiguous_and_format_decides(tmp_path: Path) -> None:
    import safetensors.numpy

    A, B = np.ones((1, 2), np.float32), np.ones((3, 1), np.float32)
    tensors = {
        "lora_unet_x.lora_down.weight": A,
        "lora_unet_x.lora_up.weight": B,
        "unet.q.lora.down.weight": A,
        "unet.q.lora.up.weight": B,
    }
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file(tensors, path)
    with pytest.raises(AdapterError, match="ambiguous") as caught:
        formats.read(path)
    assert "diffusers" in str(caught.value) and "kohya" in str(caught.value)
    assert list(formats.read(path, format="kohya")) == ["lora_unet_x"]
    with pytest.raises(AdapterError, match="no such format"):
        formats.read(path, format="koya")


def test_a_local_file_is_read_without_torch_or_the_hub_client(peft_folder: Folder) -> None:
    code = (
        "import sys, lorascope; lorascope.read(sys.argv[1]).norm();"
        "print([name for name in ('torch', 'huggingface_hub', 'peft') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, peft_folder()], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


class Hub(BaseHTTPRequestHandler):
    """The few answers of a hub that a download needs, for one repository ``owner/name``."""

    files: dict[str, bytes]
    revisions = ("main", "v1")

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def do_GET(self) -> None:
        self._answer(is_head=False)

    def log_message(self, format: str, *args: Any) -> None: ...

    def _answer(self, *, is_head: bool) -> None:
        commit = "0123456789abcdef0123456789abcdef01234567"
        parts = self.path.split("?")[0].strip("/").split("/")
        body, status, extra = b"{}", 404, {"X-Error-Code": "RepoNotFound"}
        if parts[:4] == ["api", "models", "owner", "name"]:
            known = len(parts) < 6 or parts[5] in self.revisions
            status, extra = (200, {}) if known else (404, {"X-Error-Code": "RevisionNotFound"})
            siblings = [{"rfilename": name} for name in self.files]
            body = json.dumps({"_id": "1", "id": "owner/name", "sha": commit, "siblings": siblings}).encode()
            if "tree" in parts:
                tree = [{"type": "file", "path": n, "size": len(d), "oid": "0"} for n, d in self.files.items()]
                body = json.dumps(tree).encode()
        elif parts[:4] == ["api", "models", "owner", "portal"]:
            body, status, extra = b"<html>Sign in to this network</html>", 200, {}
        elif parts[:2] == ["api", "models"] and parts[2:4] == ["owner", "gated"]:
            status, extra = 403, {"X-Error-Code": "GatedRepo"}
        elif parts[:3] == ["owner", "name", "resolve"]:
            body = self.files["/".join(parts[4:])]
            status, extra = 200, {"X-Repo-Commit": commit, "ETag": f'"{len(body)}"'}
        body = body if status == 200 else b"{}"
        self.send_response(status)
        for name, value in extra.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not is_head:
            self.wfile.write(body)


@pytest.fixture
def hub(peft_folder: Folder) -> Iterator[str]:
    folder = peft_folder()
    Hub.files = {f"{sub}{path.name}": path.read_bytes() for sub in ("", "checkpoint-9/") for path in folder.iterdir()}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


_READS = """
import json, sys, lorascope
for location in json.loads(sys.argv[1]):
    try:
        adapter = lorascope.read(location)
        print(json.dumps([len(adapter), adapter["q"].scale]))
    except lorascope.LorascopeError as error:
        print(json.dumps([error.file, error.what]))
"""


def _read_in_subprocess(cache: Path, endpoint: str, locations: list[str], **environment: str) -> list[Any]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings = {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(cache), "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", _READS, json.dumps(locations)],
        env=clean | settings | environment,
        cwd=cache,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_hub_is_read_cached_and_its_errors_are_told(hub: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    assert _read_in_subprocess(
        cache,
        hub,
        [
            "owner/name",
            "owner/name@v1:checkpoint-9",
            "owner/name@nope",
            "owner/gone",
            "owner/gated",
            "owner/name:no",
            "owner/portal",
        ],
    ) == [
        [2, 2.0],
        [2, 2.0],
        ["owner/name@nope", "the hub has no such revision"],
        ["owner/gone", "no such local path, and the hub has no such repository"],
        ["owner/gated", "the repository is gated"],
        ["owner/name:no", "the repository holds no single adapter at this place"],
        ["owner/portal", "no such local path, and the answer is not that of a hub"],
    ]
    offline = _read_in_subprocess(cache, hub, ["owner/name", "owner/other"], HF_HUB_OFFLINE="1")
    assert offline[0] == [2, 2.0]
    assert offline[1][0] == "owner/other" and "cannot be reached" in offline[1][1]
    (cache / "owner/name").mkdir(parents=True)
    assert _read_in_subprocess(cache, hub, ["owner/name"])[0][1] == "the folder holds no adapter"
    assert "cannot be reached" in _read_in_subprocess(cache, "http://127.0.0.1:9", ["owner/other"])[0][1]
