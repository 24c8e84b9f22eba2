"""What is pushed arrives whole, and privately; the client is the real one, the hub a small server that speaks its
protocol: a repository is made, small files come in the commit, large ones by LFS before it."""

import base64
import hashlib
import http.server
import json
import re
import threading

import huggingface_hub
import pytest
from huggingface_hub import constants

from selftrain_jax.cli.push import check_push, push
from selftrain_jax.core.errors import InputError

LARGE = (".safetensors", ".parquet")


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, value, status=200):
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.blobs[self.path.rpartition("/")[2]] = body
        self.answer({})

    def do_GET(self):
        repository = re.fullmatch(r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/revision/main)?", self.path)
        found = repository and self.server.repositories.get(repository[1])
        if found is None:
            return self.answer({"error": "Repository not found"}, 404)
        self.answer({"id": repository[1], "sha": "0" * 40, "private": found["private"], "siblings": []})

    def do_POST(self):
        server, length = self.server, self.headers.get("Content-Length")
        body = self.rfile.read(int(length)) if length else b"".join(self.chunks())
        if self.headers.get("Authorization") != "Bearer hf_good":
            return self.answer({"error": "no right to write"}, 403)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            there = name in server.repositories
            kind = asked.get("type") or "model"
            private = asked.get("private", asked.get("visibility") == "private")  # before and from client 2.0 on
            server.repositories.setdefault(name, {"private": private, "type": kind, "files": {}})
            return self.answer({"url": f"{server.url}/{name}", "error": "there"}, 409 if there else 200)
        if self.path == "/api/validate-yaml":
            return self.answer({"warnings": [], "errors": []})
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            modes = {file["path"]: "lfs" if file["path"].endswith(LARGE) else "regular" for file in asked}
            return self.answer(
                {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]}
            )
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**o, "actions": {"upload": {"href": f"{server.url}/lfs/{o['oid']}"}}}
                for o in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        name = re.fullmatch(r"/api/(?:models|datasets)/(.+)/commit/main", self.path)[1]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                server.repositories[name]["files"][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                server.repositories[name]["files"][value["path"]] = server.blobs[value["oid"]]
        url = f"{server.url}/{name}/commit/{'1' * 40}"
        self.answer({"success": True, "commitOid": "1" * 40, "commitUrl": url, "hookOutput": ""})

    def chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()


@pytest.fixture
def hub(monkeypatch):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads, server.repositories, server.blobs = True, {}, {}
        server.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", "hf_good")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()
        server.shutdown()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "made" / "data").mkdir(parents=True)
    (tmp_path / "made" / "README.md").write_text("---\ntags:\n- a\n---\n# made\n")
    (tmp_path / "made" / "data" / "part.safetensors").write_bytes(bytes(range(256)) * 100)
    return tmp_path / "made"


def contents(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("kind, public", [("model", False), ("dataset", True)])
def test_all_files_arrive_in_a_repository_of_its_own(hub, folder, kind, public):
    check_push("me/made")
    page = push(folder, "me/made", kind, public=public)
    assert page.startswith(hub.url) and "/commit/" in page
    assert hub.repositories["me/made"] == {"private": not public, "type": kind, "files": contents(folder)}
    assert list(hub.blobs) == [hashlib.sha256(contents(folder)["data/part.safetensors"]).hexdigest()]


def test_a_public_repository_gets_nothing_unless_that_is_said(hub, folder):
    hub.repositories["me/made"] = {"private": False, "type": "model", "files": {}}
    with pytest.raises(
        InputError, match="--push=me/made is there and public: .* --public. .*made is written; `hf upload"
    ):
        push(folder, "me/made", "model")
    assert hub.repositories["me/made"]["files"] == {}
    push(folder, "me/made", "model", public=True)
    assert hub.repositories["me/made"]["files"] == contents(folder)


def test_refusals_are_one_line_and_leave_the_folder(hub, folder, monkeypatch):
    before = contents(folder)
    monkeypatch.setenv("HF_TOKEN", "hf_bad")
    with pytest.raises(InputError, match="--push=me/made: the token may not write there .*HF_TOKEN.*is written"):
        push(folder, "me/made", "dataset")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="--push=me/made: .*is written; `hf upload me/made .*--repo-type=dataset"):
        push(folder, "me/made", "dataset")
    assert contents(folder) == before and hub.repositories == {}


@pytest.mark.parametrize("name", ["made", "a/b/c", "me/", "/made", "me/ma de", "me/made.git", "https://hub/me/made"])
def test_a_name_that_is_none_is_refused_before_any_work(hub, name):
    with pytest.raises(InputError, match="must read USER/NAME"):
        check_push(name)


def test_a_push_that_cannot_succeed_is_refused_before_any_work(hub, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    with pytest.raises(InputError, match="--push=me/made needs a token"):
        check_push("me/made")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        check_push("me/made")
