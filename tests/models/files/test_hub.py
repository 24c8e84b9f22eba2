"""Hub names become complete local directories; each way in which that can fail is one line with its own way out.

The client is the real one, in a process of its own since it reads its environment when imported; the hub is a small
server in this process that speaks as much of the protocol as the client needs.
"""

import hashlib
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.parse

import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.models.files import hub

NAME = "lab/tiny"
CONFIG, WEIGHTS = b'{"model_type": "gpt_neox"}', bytes(range(256)) * 400
SAFE = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "pytorch_model.bin": WEIGHTS, "README.md": b"# tiny"}
SAFE |= {"onnx/config.json": CONFIG, "consolidated.safetensors": WEIGHTS}  # for other programs
OLD = {"config.json": CONFIG, "pytorch_model.bin": WEIGHTS, "training_args.bin": b"args"}
SHARDED = {
    "config.json": CONFIG,
    "pytorch_model.bin.index.json": json.dumps(
        {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
    ).encode(),
    "pytorch_model-00001-of-00002.bin": WEIGHTS,
    "pytorch_model-00002-of-00002.bin": WEIGHTS[::-1],
}
REVISIONS = {"main": SAFE, "step1": OLD, "step2": SHARDED, "step4": {"config.json": CONFIG, "adapter.bin": b"x"}}
PROGRAM = """
import json, sys, time
time.sleep = lambda seconds: None  # the client waits between its own retries
name, revision, weights, torch = json.loads(sys.argv[1])
if not torch:
    sys.modules["torch"] = None
from selftrain_jax.core.errors import InputError
from selftrain_jax.models.files.hub import resolve_model
try:
    print("found", resolve_model(name, revision, weights))
except InputError as e:
    print("refused", e)
print("torch imported" if sys.modules.get("torch") else "no torch")
"""


class Hub(http.server.ThreadingHTTPServer):
    """One repository. `fault(handler, file)` may answer a request for a file, or for the repository (None), itself."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.fault = lambda handler, file: False
        self.seen = []  # (method, path)
        self.commits = {name: hashlib.sha1(name.encode()).hexdigest() for name in REVISIONS}
        self.files = {self.commits[name]: files for name, files in REVISIONS.items()}

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request, client_address):
        pass  # a client that hangs up early


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def send(self, status, body=b"", headers={}, promised=None):
        """Answers with `body`, whose Content-Length may promise more than follows."""
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body) if promised is None else promised), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        if promised is not None:
            self.close_connection = True

    def send_json(self, value):
        self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def do_GET(self):
        hub = self.server
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        hub.seen.append((self.command, path))
        api = re.fullmatch(rf"/api/models/{NAME}(?:/(revision|tree)/(\w+).*)?", path)
        file = re.fullmatch(rf"/{NAME}/resolve/(\w+)/(.+)", path)
        if hub.fault(self, file and file[2]):
            return
        if not api and not file:  # so the real hub answers those who show no token
            return self.send(401, b'{"error": "Invalid username or password."}')
        revision = file[1] if file else api[2] or "main"
        commit = hub.commits.get(revision, revision)
        if commit not in hub.files:
            return self.send(404, headers={"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
        files = hub.files[commit]
        if api and api[1] == "tree":
            blobs = {name: hashlib.sha1(body).hexdigest() for name, body in files.items()}
            return self.send_json(
                [{"type": "file", "path": p, "size": len(files[p]), "oid": blob} for p, blob in blobs.items()]
            )
        if api:
            return self.send_json({"id": NAME, "sha": commit, "siblings": [{"rfilename": name} for name in files]})
        self.send_file(files[file[2]], commit)

    do_HEAD = do_GET

    def send_file(self, body, commit, **kwargs):
        headers = {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted:
            start = int(wanted[1])
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return self.send(206, body[start:], headers, **kwargs)
        self.send(200, body, headers, **kwargs)


@pytest.fixture
def server():
    with Hub() as hub_server:
        threading.Thread(target=hub_server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield hub_server
        hub_server.shutdown()


@pytest.fixture
def resolve(server, tmp_path):
    """`resolve(...)` is what `resolve_model` gives in a fresh process: the directory, or its complaint."""

    def ask(name=NAME, revision=None, weights=True, torch=True, **environment):
        kept = {key: value for key, value in os.environ.items() if not key.upper().startswith(("HF_", "HTTP", "ALL_"))}
        settings = {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "cache"), "NO_PROXY": "127.0.0.1"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, json.dumps([name, revision, weights, torch])],
            env=kept | settings | {"HF_HUB_DISABLE_XET": "1"} | environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        first, torch_imported = done.stdout.splitlines() if done.returncode == 0 else (done.stderr, "")
        assert torch_imported == "no torch", done.stderr
        kind, _, text = first.partition(" ")
        return Found(text) if kind == "found" else text

    return ask


class Found(str):
    """A directory that was found, as against a complaint."""

    def files(self):
        return {name: open(os.path.join(self, name), "rb").read() for name in sorted(os.listdir(self))}


def refused(answer, *words):
    assert not isinstance(answer, Found), answer
    for word in (NAME, *words):
        assert word in answer
    assert len(answer) < 400


def only(files, *names):
    return {name: files[name] for name in sorted(names)}


def test_names_become_directories_and_stay_so_without_a_network(server, resolve):
    found = resolve()
    assert found.files() == only(SAFE, "config.json", "model.safetensors")
    assert server.commits["main"] in found
    asked = len(server.seen)
    assert resolve(HF_HUB_OFFLINE="1") == found
    assert len(server.seen) == asked
    server.shutdown()
    server.server_close()
    assert resolve() == found


def test_json_files_alone_are_fetched_when_no_weights_are_wanted(resolve):
    found = resolve(weights=False)
    assert found.files() == only(SAFE, "config.json")
    # They do not pass for the model afterwards.
    refused(resolve(HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE", "only a part")
    assert resolve().files() == only(SAFE, "config.json", "model.safetensors")


needs_torch = pytest.mark.skipif(
    importlib.util.find_spec("torch") is None, reason="PyTorch, which reads .bin files, is not installed"
)


@needs_torch
@pytest.mark.parametrize(
    "revision, files", [("step1", only(OLD, "config.json", "pytorch_model.bin")), ("step2", SHARDED)]
)
def test_revisions_with_pytorch_weights_only(server, resolve, revision, files):
    refused(resolve(revision=revision, torch=False), revision, "pip install torch")
    assert not [path for _, path in server.seen if path.endswith(".bin")]
    refused(resolve(revision=revision, HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE", "only a part")
    found = resolve(revision=revision)
    assert found.files() == dict(sorted(files.items()))
    assert resolve(revision=revision, HF_HUB_OFFLINE="1") == found
    refused(resolve(revision=revision, torch=False, HF_HUB_OFFLINE="1"), "pip install torch")


def test_a_revision_without_weights(resolve):
    refused(resolve(revision="step4"), "step4", "neither model.safetensors nor pytorch_model.bin")


def test_wrong_names_and_revisions(server, resolve):
    answer = resolve("lab/tiny-typo")
    refused(answer, "lab/tiny-typo", "neither a local directory nor a model", "spelling", "HF_TOKEN")
    refused(resolve(revision="step3"), "'step3'", "no such branch, tag or commit", "step143000")
    assert not [path for _, path in server.seen if "resolve" in path]


def test_no_network(server, resolve):
    server.shutdown()
    server.server_close()
    refused(resolve(), "no connection to http://127.0.0.1", "the cache does not hold it", "local directory")
    answer = resolve(HF_ENDPOINT="http://no-such-host.invalid")
    refused(answer, "no connection to http://no-such-host.invalid", "the cache does not hold it")


def test_the_network_is_gone_and_the_cache_holds_a_part(server, resolve):
    assert resolve(weights=False)
    server.shutdown()
    server.server_close()
    refused(resolve(), "no connection to", "only a part")


def test_offline_without_a_copy(server, resolve):
    refused(resolve(HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set", "does not hold it", "unset it once")
    assert resolve(revision="step1", weights=False)
    refused(resolve(HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE is set", "does not hold it")


ANSWERS = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}, ["gated", "accept its terms", f"/{NAME}", "HF_TOKEN"]),
    "token": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, ["token", "wrong or expired"]),
    "rights": (403, {"X-Error-Message": "no"}, ["token may not read it"]),
    "limit": (429, {"Retry-After": "1"}, ["too many requests", "again in some minutes"]),
    "down": (500, {}, ["error (500)", "later"]),
}


@pytest.mark.parametrize("where", ["repository", "files"])
@pytest.mark.parametrize("answer", ANSWERS)
def test_refusals_of_the_hub(server, resolve, answer, where):
    status, headers, words = ANSWERS[answer]

    def fault(handler, file):
        if (file is None) == (where == "repository"):
            handler.send(status, headers=headers)
            return True

    server.fault = fault
    refused(resolve(HF_TOKEN="hf_expired"), *words)


def test_a_download_that_breaks_off_once_is_tried_again(server, resolve):
    broken = []

    def fault(handler, file):
        if file == "model.safetensors" and handler.command == "GET" and not broken:
            broken.append(file)
            handler.send(200, WEIGHTS[:5000], promised=len(WEIGHTS))
            return True

    server.fault = fault
    found = resolve()
    if not isinstance(found, Found):  # hub clients before 2.0 do not try again themselves
        refused(found, "broke off")
        found = resolve()
    assert found.files()["model.safetensors"] == WEIGHTS
    assert [method for method, path in server.seen if path.endswith("model.safetensors")].count("GET") == 2


@pytest.mark.parametrize("promised", [len(WEIGHTS), None], ids=["cut", "short"])
def test_a_file_that_never_arrives_whole_does_not_count(server, resolve, promised):
    """`cut`: every connection closes early; `short`: the server sends less than it announced in the first place."""

    def fault(handler, file):
        if file == "model.safetensors" and handler.command == "GET":
            handler.send(200, b"" if handler.headers.get("Range") else WEIGHTS[:5000], promised=promised)
            return True

    server.fault = fault
    refused(resolve(), "broke off", "same command again")
    refused(resolve(HF_HUB_OFFLINE="1"), "HF_HUB_OFFLINE", "only a part")
    server.fault = lambda handler, file: False
    assert resolve().files()["model.safetensors"] == WEIGHTS


def test_the_cache_has_no_room_or_may_not_be_written(monkeypatch, tmp_path):
    import errno

    import huggingface_hub

    def fails(error):
        def snapshot_download(*args, **kwargs):
            raise error

        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        with pytest.raises(InputError) as caught:
            hub.resolve_model(NAME)
        return str(caught.value)

    refused(fails(OSError(errno.ENOSPC, "No space left on device")), "full", "HF_HOME")
    refused(fails(RuntimeError("Data error: No space left on device (os error 28)")), "full", "HF_HOME")
    refused(fails(PermissionError(errno.EACCES, "Permission denied")), "not writable", "HF_HOME")
    refused(fails(ValueError("odd\nthing")), "ValueError: odd thing", "local directory")


@needs_torch
def test_one_lost_shard_makes_a_cached_model_incomplete(resolve):
    found = resolve(revision="step2")
    os.remove(os.path.join(found, "pytorch_model-00002-of-00002.bin"))
    refused(resolve(revision="step2", HF_HUB_OFFLINE="1"), "only a part")
    assert resolve(revision="step2").files() == dict(sorted(SHARDED.items()))
    # The same for a cache that says nothing of what the repository holds.
    shutil.rmtree(os.path.join(found, "..", "..", "trees"), ignore_errors=True)
    os.remove(os.path.join(found, "pytorch_model-00001-of-00002.bin"))
    refused(resolve(revision="step2", HF_HUB_OFFLINE="1"), "only a part")


def test_local_names_never_reach_the_hub(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: pytest.fail("asked the hub"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "model").mkdir(parents=True)
    (tmp_path / "runs" / "file").write_text("")
    assert hub.resolve_model("runs/model").samefile(tmp_path / "runs" / "model")
    with pytest.raises(InputError, match="revision='step1'.*runs/model"):
        hub.resolve_model("runs/model", revision="step1")
    for name in ("runs/bse", "runs/base"):
        with pytest.raises(InputError, match=f"not found: {name}, though runs is a folder here"):
            hub.resolve_model(name)
    for name in ("pythia-14m", "./a/b", "/a/b", "a/b/c", "runs/file"):
        with pytest.raises(InputError, match=f"not found: {name} "):
            hub.resolve_model(name)


@pytest.mark.hub
def test_the_real_hub_serves_the_smallest_pythia(tmp_path):
    arguments = json.dumps(["EleutherAI/pythia-14m", "step1000", False, False])
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, arguments],
        env=environment | {"HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    if "no connection" in done.stdout:
        pytest.skip("the Hugging Face hub cannot be reached")
    found = done.stdout.splitlines()[0].removeprefix("found ")
    assert json.load(open(os.path.join(found, "config.json")))["num_hidden_layers"] == 6


def test_a_file_that_is_a_link_to_nothing_is_not_absent(tmp_path):
    """As in a cache that was copied or emptied in part: without generation_config.json a model stops elsewhere."""
    (tmp_path / "config.json").write_text("{}")
    assert hub.resolve_model(tmp_path) == tmp_path
    (tmp_path / "generation_config.json").symlink_to("../blobs/gone")
    with pytest.raises(InputError, match="generation_config.json is a link to nothing"):
        hub.resolve_model(tmp_path)
