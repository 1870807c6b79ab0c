"""Push and pull against a small hub on the loopback."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from lorascope.zoo import Zoo, pack, verify_zoo

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """One data set ``owner/name`` in memory; after ``allowed`` requests that move files it hangs up."""

    files: dict[str, bytes] | None
    log: list[str]
    allowed: float

    def log_message(self, format, *args): ...

    def _send(self, status, body=b"{}", **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _moves(self):
        """Whether this request may still be answered."""
        Hub.allowed -= 1
        return Hub.allowed >= 0

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, here = self.path.split("?")[0], f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            Hub.files = {} if Hub.files is None else Hub.files
            return self._send(200, json.dumps({"url": f"{here}/datasets/owner/name"}).encode())
        if "/preupload/" in path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            return self._send(200, json.dumps({"files": files}).encode())
        if "/commit/" in path:
            if not self._moves():
                return self._send(500)
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    Hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                    Hub.log.append(line["value"]["path"])
                elif line["key"] == "deletedFile":
                    del Hub.files[line["value"]["path"]]
            answer = {
                "success": True,
                "commitOid": COMMIT,
                "commitUrl": f"{here}/datasets/owner/name/commit/{COMMIT}",
            }
            return self._send(200, json.dumps(answer).encode())
        return self._send(404)

    def do_GET(self):
        path = urllib.parse.unquote(self.path.split("?")[0])
        missing = {"X_Error_Code": "RepoNotFound"}
        if Hub.files is None or "owner/name" not in path:
            return self._send(404, **missing)
        if "/tree/" in path:
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(data),
                    "oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
                }
                for name, data in Hub.files.items()
            ]
            return self._send(200, json.dumps(tree).encode())
        if path.startswith("/api/datasets/owner/name"):
            return self._send(200, json.dumps({"_id": "1", "id": "owner/name", "sha": COMMIT}).encode())
        name = re.sub(r"^/datasets/owner/name/resolve/[^/]+/", "", path)
        if name not in Hub.files:
            return self._send(404, X_Error_Code="EntryNotFound")
        if self.command == "GET" and not self._moves():
            return self._send(500)
        data = Hub.files[name]
        if self.command == "GET":
            Hub.log.append(name)
        return self._send(200, data, X_Repo_Commit=COMMIT, ETag=f'"{hashlib.sha1(data).hexdigest()}"')

    def do_HEAD(self):
        self.do_GET()


@pytest.fixture
def hub(tmp_path):
    """Runs a command of the zoo against the hub; gives exit code, output and errors."""
    Hub.files, Hub.log, Hub.allowed = None, [], float("inf")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "cache"),
        "HF_TOKEN": "hf_test",
        "no_proxy": "127.0.0.1",
    }

    def run(*arguments):
        done = subprocess.run(
            [sys.executable, "-c", "from lorascope.cli import main; main()", "zoo", *map(str, arguments)],
            env=clean | settings,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        sys.stdout.write(done.stderr)  # shown where a test fails
        return done.returncode, done.stdout, done.stderr

    yield run
    server.shutdown()
    server.server_close()


def content(zoo):
    return {
        path.relative_to(zoo).as_posix(): path.read_bytes()
        for path in zoo.rglob("*")
        if path.is_file() and path.name not in (".forge.lock", "zoo.json")
    }


def test_a_zoo_comes_back_as_it_was_and_nothing_of_this_machine_goes_out(make_zoo, hub, tmp_path):
    zoo = make_zoo(count=5)
    pack(Zoo.open(zoo), shard_size=2)
    assert hub("push", zoo, "owner/name", "--json")[0] == 0
    assert set(Hub.files) == {*content(zoo), "zoo.json"} and Hub.log[-1] == "zoo.json"
    assert str(tmp_path).encode() not in Hub.files["zoo.json"]
    code, out, errors = hub("pull", "owner/name@main", "--out", tmp_path / "back", "--json")
    assert code == 0, errors
    assert json.loads(out)["moved"] == len(Hub.files)
    assert content(tmp_path / "back") == content(zoo) and not verify_zoo(tmp_path / "back").defects
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []
    assert hub("pull", "owner/name", "--out", tmp_path / "back")[0] == 2


def test_interrupted_transfers_go_on(make_zoo, hub, tmp_path, monkeypatch):
    zoo = make_zoo(count=60)
    Hub.allowed = 1
    assert hub("push", zoo, "owner/name")[0] == 2
    sent = list(Hub.log)
    assert len(sent) == 100 and "zoo.json" not in sent
    Hub.allowed = float("inf")
    assert hub("push", zoo, "owner/name")[0] == 0
    assert sorted(Hub.log) == sorted(Hub.files) and len(Hub.log) == len(set(Hub.log))
    Hub.log.clear()
    assert hub("push", zoo, "owner/name")[0] == 0 and Hub.log == []
    Hub.allowed = 50
    assert hub("pull", "owner/name", "--out", tmp_path / "back")[0] == 2
    assert not (tmp_path / "back").exists() and len(Hub.log) == 50
    Hub.allowed = float("inf")
    assert hub("pull", "owner/name", "--out", tmp_path / "back")[0] == 0
    assert sorted(Hub.log) == sorted(Hub.files) and content(tmp_path / "back") == content(zoo)


def test_a_push_after_packing_deletes_the_folders_and_nothing_else(make_zoo, hub, tmp_path):
    zoo = make_zoo(count=3)
    hub("push", zoo, "owner/name")
    Hub.files["README.md"] = b"mine"
    pack(Zoo.open(zoo))
    assert hub("push", zoo, "owner/name")[0] == 0
    assert set(Hub.files) == {*content(zoo), "zoo.json", "README.md"}
    assert hub("pull", "owner/name", "--out", tmp_path / "back")[0] == 0
    assert not (tmp_path / "back" / "README.md").exists()


def test_damage_and_hostile_names_come_no_further(make_zoo, hub, tmp_path):
    zoo = make_zoo(count=2)
    hub("push", zoo, "owner/name")
    for name in ("../outside", "adapters/../../outside", "adapters/.git/config", "/outside", "adapters\\x", ".bashrc"):
        Hub.files[name] = b"x"
    assert hub("pull", "owner/name", "--out", tmp_path / "back")[0] == 0
    assert content(tmp_path / "back") == content(zoo)
    assert not [path for path in tmp_path.rglob("*") if path.name in ("outside", ".bashrc", "config")]
    Hub.files["adapters/a1/adapter_model.safetensors"] += b"x"
    code, _, errors = hub("pull", "owner/name", "--out", tmp_path / "again")
    assert code == 2 and "not as recorded" in errors
    assert not [path for path in tmp_path.iterdir() if "again" in path.name]
    (zoo / "adapters/a0/adapter_model.safetensors").unlink()
    code, _, errors = hub("push", zoo, "owner/name")
    assert code == 2 and "not pushed" in errors


def test_no_repository_no_zoo_and_no_hub_id_are_errors(hub, tmp_path):
    for arguments, match in (
        (("pull", "owner/name", "--out", tmp_path / "x"), "no such repository"),
        (("pull", "name", "--out", tmp_path / "x"), "no repository of the hub"),
    ):
        code, _, errors = hub(*arguments)
        assert code == 2 and match in errors
    Hub.files = {"README.md": b"x"}
    code, _, errors = hub("pull", "owner/name", "--out", tmp_path / "x")
    assert code == 2 and "holds no zoo" in errors and not (tmp_path / "x").exists()
