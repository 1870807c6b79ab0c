"""Where model and data of arc-qwen2 and arc-llama come from: layouts that are read, what is refused, and the hub."""

import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")


from forge.arc_files import COUNTS, places_in, save_arc
from lorascope.errors import ForgeError
from lorascope.forge import forge
from lorascope.forge.recipes import _arc
from lorascope.zoo import Zoo


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    return places_in(tmp_path_factory.mktemp("arc"))


def test_the_layouts_of_the_data_are_read_alike(places, tmp_path):
    parquet = Path(places["arc-qwen2"]["data"])
    lines = save_arc(tmp_path / "lines", as_jsonl=True)
    for subset in ("ARC-Easy", "ARC-Challenge"):
        (tmp_path / "first" / subset).mkdir(parents=True)
        for split, title in _arc.SPLITS.items():
            nested = []
            for row in map(json.loads, (lines / subset / f"{split}.jsonl").read_text().splitlines()):
                texts = zip(row["choices"]["text"], row["choices"]["label"], strict=True)
                choices = [{"text": text, "label": label} for text, label in texts]
                nested.append(row | {"question": {"stem": row["question"], "choices": choices}})
                del nested[-1]["choices"]
            text = "".join(json.dumps(row) + "\n" for row in nested)
            (tmp_path / "first" / subset / f"{subset}-{title}.jsonl").write_text(text)
    for split in _arc.SPLITS:
        expected = _arc.questions_of(parquet, "all", split)
        assert len(expected) == 2 * COUNTS[split]
        assert _arc.questions_of(lines, "all", split) == expected
        assert _arc.questions_of(tmp_path / "first", "all", split) == expected
        assert _arc.questions_of(parquet, "easy", split) + _arc.questions_of(parquet, "challenge", split) == expected


@pytest.mark.parametrize("damage", ["answer", "column", "json", "gone", "twice", "parquet"])
def test_data_that_are_not_as_published_are_refused(tmp_path, damage):
    folder = save_arc(tmp_path / "data", as_jsonl=True)
    file = folder / "ARC-Easy" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    if damage == "answer":
        rows[3]["answerKey"] = "Z"
    elif damage == "column":
        del rows[3]["choices"]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows) + ("{" if damage == "json" else ""))
    if damage in ("gone", "parquet"):
        file.unlink()
    if damage in ("twice", "parquet"):
        (folder / "ARC-Easy" / "train-0.parquet").write_bytes(b"PAR1")
    with pytest.raises(ForgeError) as caught:
        _arc.questions_of(folder, "all", "train")
    assert caught.value.file is not None and "ARC-Easy" in caught.value.file
    assert damage not in ("answer", "column") or caught.value.key == rows[3]["id"]


@pytest.mark.parametrize(
    ("keys", "found"),
    [
        ({"question": "half \ud800"}, "UnicodeEncodeError"),
        ({"id": "half \ud800"}, "UnicodeEncodeError"),
        ({"question": "word " * 200_000}, "at most 10000"),
        ({"choices": {"text": ["a"] * 30, "label": ["A"] * 30}, "answerKey": "A"}, "at most 26"),
    ],
)
def test_questions_that_no_model_could_be_given_are_refused(tmp_path, keys, found):
    folder = save_arc(tmp_path / "data", as_jsonl=True)
    file = folder / "ARC-Easy" / "train.jsonl"
    row = json.loads(file.read_text().splitlines()[0]) | keys
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(ForgeError, match="not as it is published") as caught:
        _arc.questions_of(folder, "all", "train")
    assert found in caught.value.found and len(str(caught.value).encode()) < 1000


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_without_questions_is_refused(places, tmp_path, split):
    folder = save_arc(tmp_path / "data", as_jsonl=True)
    for file in folder.glob(f"*/{split}.jsonl"):
        file.write_text("\n")
    with pytest.raises(ForgeError, match=f"there are no questions .*{split}"):
        forge("arc-llama", 1, tmp_path / "zoo", settings={**places["arc-llama"], "data": str(folder)})
    assert not (tmp_path / "zoo").exists()


def test_a_line_ends_where_json_lines_end(tmp_path):
    folder = save_arc(tmp_path / "data", as_jsonl=True)
    file = folder / "ARC-Easy" / "train.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["question"] = "two\u2028parts"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows), "utf-8")
    found = _arc.questions_of(folder, "easy", "train")
    assert found[0].text == "two\u2028parts" and len(found) == len(rows)


def test_a_pipe_is_not_waited_for(tmp_path):
    folder = save_arc(tmp_path / "data", as_jsonl=True)
    (folder / "ARC-Easy" / "train.jsonl").unlink()
    os.mkfifo(folder / "ARC-Easy" / "train.jsonl")
    with pytest.raises(ForgeError, match="a file of the data cannot be read"):
        _arc.questions_of(folder, "easy", "train")


def test_sources_that_leave_no_question_are_refused(tmp_path, places):
    folder = save_arc(tmp_path / "data", as_jsonl=True)
    for file in folder.glob("*/train.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps(row | {"id": "MCAS_1"}) + "\n" for row in rows))
    with pytest.raises(ForgeError, match="no training questions"):
        forge("arc-llama", 1, tmp_path / "zoo", settings={**places["arc-llama"], "data": folder, "sources": "3"})


def test_other_models_are_refused(places, tmp_path):
    llama, qwen2 = places["arc-llama"]["model"], places["arc-qwen2"]["model"]
    broken = shutil.copytree(llama, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if "layers.1.mlp.up" not in name}, broken / "model.safetensors"
    )
    coded = shutil.copytree(llama, tmp_path / "coded")
    config = json.loads((coded / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}}
    (coded / "config.json").write_text(json.dumps(config))
    (coded / "own.py").write_text("raise SystemExit('executed')")
    pickled = shutil.copytree(llama, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    cut = shutil.copytree(llama, tmp_path / "cut")
    (cut / "model.safetensors").write_bytes((cut / "model.safetensors").read_bytes()[:-9])
    for model, expected in (
        (qwen2, "another family"),
        (broken, "weights are missing"),
        (coded, "cannot be loaded"),
        (pickled, "no weights in safetensors"),
        (cut, "cannot be loaded"),
        (tmp_path / "nowhere" / "at" / "all", r"no such folder(.|\n)*--set model=DIR"),
    ):
        settings = {**places["arc-llama"], "model": str(model)}
        with pytest.raises(ForgeError, match=expected):
            forge("arc-llama", 1, tmp_path / "zoo", settings=settings, fresh=True)


COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """The few answers of a hub that a snapshot needs: one model ``owner/tiny``, one data set ``owner/arc``."""

    folders: dict

    def do_HEAD(self):
        self.do_GET()

    def log_message(self, format, *args): ...

    def do_GET(self):
        path = self.path.split("?")[0].removeprefix("/")
        for repo, folder in self.folders.items():
            kind = "datasets/" if repo == "owner/arc" else ""
            files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
            if path.startswith(f"api/{kind or 'models/'}{repo}/tree/"):
                tree = [{"type": "file", "path": n, "size": f.stat().st_size, "oid": "0"} for n, f in files.items()]
                return self._send(200, json.dumps(tree).encode())
            if path.startswith(f"api/{kind or 'models/'}{repo}"):
                siblings = [{"rfilename": name} for name in files]
                answer = {"_id": "1", "id": repo, "sha": COMMIT, "siblings": siblings}
                return self._send(200, json.dumps(answer).encode())
            inside = path.removeprefix(f"{kind}{repo}/resolve/{COMMIT}/")
            if inside in files:
                body = files[inside].read_bytes()
                return self._send(200, body, X_Repo_Commit=COMMIT, ETag=f'"{hash(body)}"')
        return self._send(404, X_Error_Code="RepoNotFound")

    def _send(self, status, body=b"{}", **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


_FORGES = """
import json, sys
import huggingface_hub
from lorascope.errors import ForgeError
from lorascope.forge import forge
from lorascope.forge.recipes._published import place_of

model, zoo = sys.argv[1:]
settings = {"model": model, "data": "owner/arc", "dtype": "float32", "steps": 1, "cohort": 1, "questions": 2}
forge("arc-qwen2", 1, zoo, settings=settings)
huggingface_hub.constants.HF_HUB_OFFLINE = True
for given in (model, "owner/absent"):
    try:
        print(json.dumps(place_of(given, ("*.json", "*.safetensors"), "model").name))
    except ForgeError as error:
        print(json.dumps(str(error)))
"""


def test_model_and_data_come_from_the_hub_once(places, tmp_path):
    model = shutil.copytree(places["arc-qwen2"]["model"], tmp_path / "tiny")
    (model / "modeling_own.py").write_text("raise SystemExit('executed')")
    (model / "pytorch_model.bin").write_bytes(b"never asked for")
    Hub.folders = {"owner/tiny": model, "owner/arc": Path(places["arc-qwen2"]["data"])}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    settings = {
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "cache"),
        "no_proxy": "127.0.0.1",
    }
    done = subprocess.run(
        [sys.executable, "-c", _FORGES, f"owner/tiny@{COMMIT}", str(tmp_path / "zoo")],
        env=clean | settings,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    server.shutdown()
    server.server_close()
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "zoo" / "base" / "config.json").read_text())["found"]
    assert found["model"] == "owner/tiny" and found["data"] == "owner/arc"
    assert found["model_revision"] == found["data_revision"] == COMMIT
    assert Zoo.open(tmp_path / "zoo").rows()[0]["status"] == "ok"
    names = {path.name for path in (tmp_path / "cache").rglob("*")}
    assert "model.safetensors" in names and not {"modeling_own.py", "pytorch_model.bin"} & names
    again, absent = map(json.loads, done.stdout.splitlines()[-2:])
    assert again == COMMIT  # from the cache
    assert "cannot be reached" in absent and "hf download owner/absent --repo-type model --local-dir DIR" in absent
