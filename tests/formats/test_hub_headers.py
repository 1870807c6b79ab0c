"""Headers alone: local files, and a hub on the loopback that counts the bytes it serves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from lorascope import formats
from lorascope.errors import AdapterError
from lorascope.formats.headers import read_headers
from lorascope.report import summarise

Folder = Callable[..., Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"
RNG = np.random.default_rng(0)


def kohya(count: int, side: int) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for index in range(count):
        tensors[f"lora_unet_x{index}.alpha"] = np.array(index + 1.0, np.float32)
        tensors[f"lora_unet_x{index}.lora_down.weight"] = RNG.standard_normal((2, side)).astype(np.float32)
        tensors[f"lora_unet_x{index}.lora_up.weight"] = RNG.standard_normal((side, 2)).astype(np.float32)
    return tensors


def test_a_local_file_without_its_values(peft_folder: Folder, lora_factors: Callable[..., Any]) -> None:
    folder = peft_folder(lora_factors("q", "v", out=50, in_=40), metadata={"format": "pt"})
    whole, headers = formats.read(folder), read_headers(folder)
    assert [(s, u.shape, u.rank, u.scale, u.alpha, u.dtype) for s, u in headers.items()] == [
        (s, u.shape, u.rank, u.scale, u.alpha, u.dtype) for s, u in whole.items()
    ]
    assert headers.provenance == whole.provenance and headers.original is None
    summary = summarise(headers, has_values=False)
    assert summary["norm"] is None and summary["sites"][0]["rank"] == 2
    for use in (headers.norm, lambda: summarise(headers), headers["q"].delta_weight, headers["q"].spectrum):
        with pytest.raises(AdapterError, match="only headers were read"):
            use()


def test_an_adapter_without_values_is_not_written(
    peft_folder: Folder, lora_factors: Callable[..., Any], tmp_path: Path
) -> None:
    headers = read_headers(peft_folder(lora_factors("q", "v", out=50, in_=40)))
    for format in ("peft", "kohya", "diffusers", "mlx"):
        with pytest.raises(AdapterError, match="only headers were read"):
            formats.write(headers, tmp_path / f"out-{format}", format=format)
        assert not (tmp_path / f"out-{format}").exists()


def test_alphas_of_kohya_are_read_with_the_header(tmp_path: Path) -> None:
    safetensors.numpy.save_file(kohya(3, 4), tmp_path / "x.safetensors")
    assert [update.scale for update in read_headers(tmp_path / "x.safetensors").values()] == [0.5, 1.0, 1.5]


def test_other_containers_are_read_in_full(tmp_path: Path) -> None:
    np.savez(tmp_path / "adapters.npz", **{"q.lora_a": np.ones((4, 2)), "q.lora_b": np.ones((2, 5))})
    assert read_headers(tmp_path)["q"].shape == (5, 4)


class Hub(BaseHTTPRequestHandler):
    """One repository ``owner/name``; files are served in pieces where ``has_ranges``."""

    files: dict[str, bytes]
    has_ranges = True
    served: dict[str, int]
    tokens: set[str | None]

    def log_message(self, format: str, *args: Any) -> None: ...

    def do_HEAD(self) -> None:
        self._answer(is_head=True)

    def do_GET(self) -> None:
        self._answer(is_head=False)

    def _answer(self, *, is_head: bool) -> None:
        parts = self.path.split("?")[0].strip("/").split("/")
        if "Range" in self.headers:
            self.tokens.add(self.headers.get("Authorization"))
        status, extra, body = 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if parts[:4] == ["api", "models", "owner", "name"]:
            siblings = [{"rfilename": name} for name in self.files]
            known = len(parts) < 6 or parts[5] in ("main", "v1", COMMIT)
            status, extra = (200, {}) if known else (404, {"X-Error-Code": "RevisionNotFound"})
            body = json.dumps({"_id": "1", "id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode()
        elif parts[:3] == ["owner", "name", "resolve"]:
            name = "/".join(parts[4:])
            body = self.files[name]
            status, extra = 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{len(body)}"'}
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            if asked and self.has_ranges:
                begin, end = int(asked[1]), min(int(asked[2]) + 1, len(body))
                extra["Content-Range"] = f"bytes {begin}-{end - 1}/{len(body)}"
                status, body = 206, body[begin:end]
            if not is_head:
                self.served[name] = self.served.get(name, 0) + len(body)
        self.send_response(status)
        for key, value in extra.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not is_head:
            try:
                self.wfile.write(body)
            except OSError:  # a client that has seen enough hangs up
                return


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "cache").mkdir()
    side = 40_000
    peft = {
        f"base_model.model.q.lora_{half}.weight": np.zeros(shape, np.float32)
        for half, shape in (("A", (2, side)), ("B", (side, 2)))
    }
    config = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3}).encode()
    Hub.files = {
        "adapter_config.json": config,
        "adapter_model.safetensors": safetensors.numpy.save(peft),
        "kohya/lora.safetensors": safetensors.numpy.save(kohya(5, 30_000)),
        "broken/lora.safetensors": safetensors.numpy.save(peft)[:-8],
        "archive/adapters.npz": b"",
    }
    stream = tmp_path / "adapters.npz"
    np.savez(stream, **{"q.lora_a": np.ones((4, 2)), "q.lora_b": np.ones((2, 5))})
    Hub.files["archive/adapters.npz"] = stream.read_bytes()
    Hub.has_ranges, Hub.served, Hub.tokens = True, {}, set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


_READS = """
import json, sys, lorascope
from lorascope.formats.headers import read_headers
for location in json.loads(sys.argv[1]):
    try:
        adapter = read_headers(location)
        codes = [note.code for note in adapter.notes if note.code == "downloaded-in-full"]
        print(json.dumps([[update.scale for update in adapter.values()], codes]))
    except lorascope.LorascopeError as error:
        print(json.dumps([error.file, error.what]))
"""


def heads(cache: Path, endpoint: str, *locations: str, code: str = _READS, **environment: str) -> list[Any]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings = {"HF_ENDPOINT": endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(cache), "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(locations)],
        env=clean | settings | environment,
        cwd=cache,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_only_the_header_and_the_configuration_are_fetched(hub: str, tmp_path: Path) -> None:
    locations = ["owner/name", "owner/name@v1:kohya", "owner/name@nope", "owner/gone", "owner/name:broken"]
    found = heads(tmp_path / "cache", hub, *locations, HF_TOKEN="hf_secret")
    assert found[0] == [[1.5], []] and found[1] == [[0.5, 1.0, 1.5, 2.0, 2.5], []]
    assert found[2] == ["owner/name@nope", "the hub has no such revision"]
    assert found[3] == ["owner/gone", "no such local path, and the hub has no such repository"]
    assert found[4][0] == "owner/name/broken/lora.safetensors" and "truncated" in found[4][1]
    size = len(Hub.files["adapter_model.safetensors"])
    assert Hub.served["adapter_model.safetensors"] <= 1 << 17 < size / 4
    assert Hub.served["kohya/lora.safetensors"] < len(Hub.files["kohya/lora.safetensors"]) / 4
    assert Hub.tokens == {"Bearer hf_secret"}


def test_a_server_without_pieces_and_other_containers_are_downloaded_and_said_so(hub: str, tmp_path: Path) -> None:
    assert heads(tmp_path / "cache", hub, "owner/name:archive") == [[[20.0], ["downloaded-in-full"]]]
    Hub.has_ranges = False
    assert heads(tmp_path / "cache", hub, "owner/name") == [[[1.5], ["downloaded-in-full"]]]


def test_the_cache_is_used_offline_and_where_it_is_current(hub: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    offline = heads(cache, hub, "owner/name", HF_HUB_OFFLINE="1")
    assert offline[0][0] == "owner/name" and "cannot be reached" in offline[0][1]
    heads(cache, hub, "owner/name", code=_READS.replace("read_headers(location)", "lorascope.read(location)"))
    served = Hub.served["adapter_model.safetensors"]
    assert heads(cache, hub, "owner/name", "owner/name") == [[[1.5], []]] * 2
    assert Hub.served["adapter_model.safetensors"] == served
    assert heads(cache, hub, "owner/name", HF_HUB_OFFLINE="1") == [[[1.5], []]]


_BASES = """
import json, sys, lorascope
from lorascope.formats.remote_checkpoint import open_headers
for location in json.loads(sys.argv[1]):
    try:
        base = open_headers(location)
        shapes = {name: tensor.shape for name, tensor in base.tensors.items()}
        print(json.dumps([shapes, base.is_head_tied, [one.code for one in lorascope.verify("adapter", base=base)]]))
    except lorascope.LorascopeError as error:
        print(json.dumps([error.file, error.what]))
"""


def shard(*sites: str, shape: tuple[int, int] = (600, 500), dtype: Any = np.float32) -> bytes:
    return safetensors.numpy.save({f"{site}.weight": np.zeros(shape, dtype) for site in sites})


@pytest.fixture
def base_hub(hub: str, peft_folder: Folder, lora_factors: Callable[..., Any], tmp_path: Path) -> str:
    """A hub whose repository is a base model, and an adapter for it in the working directory."""
    peft_folder(lora_factors("model.a.q", "model.b.q", out=600, in_=500)).rename(tmp_path / "cache" / "adapter")
    index = {"weight_map": {"model.a.q.weight": "model-1.safetensors", "model.b.q.weight": "model-2.safetensors"}}
    Hub.files = {
        "config.json": b'{"model_type": "llama", "tie_word_embeddings": true}',
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1.safetensors": shard("model.a.q"),
        "model-2.safetensors": shard("model.b.q", "model.b.norm"),  # of another length: that is this hub's ETag
        "consolidated.safetensors": b"not asked for",
        "other/model.safetensors": shard("model.a.q", shape=(500, 600)),
        "int8/model.safetensors": shard("model.a.q", "model.b.q", dtype=np.int8),
        "pipeline/model_index.json": b"{}",
        "pipeline/unet/diffusion_pytorch_model.safetensors": shard("q"),
        "pipeline/vae/diffusion_pytorch_model.safetensors": shard("q"),
        "holes/model.safetensors.index.json": json.dumps(index).encode(),
        "holes/model-1.safetensors": shard("model.a.q"),
        "nothing/README.md": b"",
    }
    return hub


def test_a_base_is_checked_by_its_headers(base_hub: str, tmp_path: Path) -> None:
    places = ("", "@v1:other", ":int8", ":pipeline", ":holes", ":nothing", "@nope")
    found = heads(tmp_path / "cache", base_hub, *(f"owner/name{place}" for place in places), code=_BASES)
    shape = [600, 500]
    names = ("model.a.q", "model.b.q", "model.b.norm")
    assert found[0] == [{f"{name}.weight": shape for name in names}, True, []]
    assert found[1][2] == ["base-shape", "base-missing"]
    assert found[2][2] == ["base-quantised"]
    assert set(found[3][0]) == {"unet.q.weight", "vae.q.weight"} and found[3][2] == ["base-missing"]
    assert found[4] == ["owner/name:holes", "a shard of the base model is missing"]
    assert found[5][1] == "the repository holds no base model in safetensors at this place"
    assert found[6] == ["owner/name@nope", "the hub has no such revision"]
    for name, file in Hub.files.items():
        if name.endswith(".safetensors") and name in Hub.served:
            assert Hub.served[name] <= 1 << 17 < len(file)  # one piece of each
    assert "consolidated.safetensors" not in Hub.served


def test_a_base_that_cannot_be_read_in_pieces_is_not_downloaded(base_hub: str, tmp_path: Path) -> None:
    Hub.has_ranges = False
    found = heads(tmp_path / "cache", base_hub, "owner/name", code=_BASES)
    assert "cannot be read alone" in found[0][1]


def test_a_base_in_the_cache_is_used_offline(base_hub: str, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert "cannot be reached" in heads(cache, base_hub, "owner/name", code=_BASES, HF_HUB_OFFLINE="1")[0][1]
    download = """
import huggingface_hub
for name in ("config.json", "model.safetensors.index.json", "model-1.safetensors", "model-2.safetensors"):
    huggingface_hub.hf_hub_download("owner/name", name)
"""
    heads(cache, base_hub, code=download)
    served = dict(Hub.served)
    assert heads(cache, base_hub, "owner/name", code=_BASES)[0][1:] == [True, []]
    assert heads(cache, base_hub, "owner/name", code=_BASES, HF_HUB_OFFLINE="1")[0][1:] == [True, []]
    assert served["model-1.safetensors"] == Hub.served["model-1.safetensors"]


def test_verify_takes_a_hub_id_as_base(base_hub: str, tmp_path: Path) -> None:
    code = """
import sys
from lorascope.cli import main
sys.argv = ["lorascope", "verify", "adapter", "--base", "owner/name@v1", "--json"]
main()
"""
    (value,) = heads(tmp_path / "cache", base_hub, code=code)
    assert (value["ok"], value["findings"]) == (True, [])
