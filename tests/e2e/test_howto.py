"""What the how-tos, docs/tables.md and docs/library.md say is done, block by block, as a reader would, in one folder.

A block that begins with ```` ```LANGUAGE needs: SOMETHING ```` needs what is not here. A Python block whose first line
is `# NAME.py` is a file. A command line after `!` is one that is refused. Cells of notebooks are run by the
site's build.
"""

import json
import pathlib
import re
import shlex
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pytest

from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.decoder import init_params

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"
PAGES = [*sorted((DOCS / "howto").glob("*.md")), DOCS / "tables.md"]
LIBRARY = DOCS / "library.md"
SITE = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts and page != DOCS / "index.md")


class Block(NamedTuple):
    language: str
    needs: str
    text: str


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page, but plain text and directives, which a page shows or the site's build does."""
    found = re.findall(r"^ *(`{3,}|~{3,})([^\n]*)\n(.*?)^ *\1$", text, re.MULTILINE | re.DOTALL)
    parts = [(*info.partition(" needs: "), code) for _, info, code in found]
    return [Block(kind, needs, code) for kind, _, needs, code in parts if kind != "text" and not kind.startswith("{")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the pages are read, one after the other."""
    folder = tmp_path_factory.mktemp("howto")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HF_HOME", str(folder / "hub"))
        patch.setattr(sys, "path", [str(folder), *sys.path])
        yield folder


def run_shell(text: str, selftrain) -> None:
    for line in text.replace("\\\n", " ").splitlines():
        refused = line.startswith("! ")
        words = shlex.split(line.removeprefix("! "), comments=True)
        if words[:1] == ["selftrain"] and not set(words) & {"|", ">", "&&"}:
            done = selftrain.command(*words[1:])
            assert done.returncode == (2 if refused else 0), f"{line}: {done.stderr[-3000:]}"
        else:
            assert not refused and subprocess.run(["bash", "-c", line]).returncode == 0, line


@pytest.mark.large
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_how_to_does_what_it_says(page, folder, selftrain, capsys):
    namespace = {"__name__": "page"}
    for block in blocks(page.read_text("utf-8")):
        named = re.match(r"# ([\w.]+\.py)\n", block.text)
        if block.needs:
            continue
        if block.language != "python":
            run_shell(block.text, selftrain)
        elif named:
            (folder / named[1]).write_text(block.text)
        else:
            exec(compile(block.text, page.name, "exec"), namespace)  # noqa: S102


@pytest.mark.large
def test_the_library_page_does_what_it_says(capsys):
    config = DecoderConfig(vocab_size=256, hidden_size=64, num_layers=2, num_heads=4, intermediate_size=256)
    for block in blocks(LIBRARY.read_text("utf-8")):
        given = {"jax": jax, "config": config, "params": init_params(config, jax.random.key(0))}
        given |= {"mesh": make_mesh(MeshConfig(data=-1)), "tokens": jnp.arange(8 * 33).reshape(8, 33) % 256}
        if not block.needs:
            exec(compile(block.text, "library.md", "exec"), given)  # noqa: S102
            drawn = given.get("drawn")
    assert list(drawn.ids) == [0, 1, 1000]


def not_done(page: pathlib.Path, text: str) -> list[Block]:
    """Blocks that no test runs although nothing says why."""
    executed = {"sh", "python"} if page in PAGES else {"python"} if page == LIBRARY else set()
    return [block for block in blocks(text) if block.language not in executed and not block.needs]


@pytest.mark.parametrize("page", SITE, ids=lambda page: str(page.relative_to(DOCS)))
def test_what_is_not_done_is_marked(page):
    text = page.read_text("utf-8")
    assert not_done(page, text) == [] and ("code-cell" not in text or "skip-execution" not in text)


def test_a_new_block_that_is_not_marked_is_found():
    page = DOCS / "tutorials" / "new.md"
    for info in ("sh", "python", "bash", "sh title=x", ""):
        for fence in ("```", "~~~", "   ```", "````"):
            assert not_done(page, f"Do\n\n{fence}{info}\nls\n{fence}\n") == [Block(info, "", "ls\n")]
    assert not_done(page, "```sh needs: a GPU\nls\n```\n\n```text\nls\n```\n\n```{code-cell} python\n1\n```\n") == []
    assert not_done(PAGES[0], "```sh\nls\n```\n") == [] and not_done(PAGES[0], "```console\nls\n```\n") != []


def test_the_page_of_files_names_what_a_run_leaves_and_nothing_else(finished):
    workdir, _ = finished
    page = (DOCS / "reference" / "files.md").read_text("utf-8")
    page_of_run, _, page_of_stage = page.split("## report.json")[0].partition("Each stage's folder")
    always, _, asked = page_of_run.partition("Where it is asked for:")

    def patterns(text):
        rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
        paths = [re.escape(path) for row in rows for path in re.findall("`([^`]+)`", row)]
        paths = [re.sub("NAME|MODEL", "[^/]+", path).replace(r"\*\*", ".*").replace(r"\*", "[^/]*") for path in paths]
        return [f"^{path}$" for path in paths]

    files = {p.relative_to(workdir).as_posix() for p in workdir.rglob("*") if p.is_file()}
    own = {name for name in files if name.rpartition("/")[2] not in ("started.json", "manifest.json")}
    required = patterns(always) + patterns(page_of_stage)
    known = required + patterns(asked)
    assert [name for name in own if not any(re.match(pattern, name) for pattern in known)] == []
    unmet = [pattern for pattern in required if not any(re.match(pattern, name) for name in files)]
    assert unmet == [r"^\.lock$", "^started\\.json$", "^manifest\\.json$"]
    for stage in ("sample/self", "train/self-0", "report"):
        made = json.loads((workdir / stage / "manifest.json").read_text())
        started = json.loads((workdir / stage / "started.json").read_text())
        assert set(started) == {"stage", "settings", "inputs", "earlier", "software"}
        assert set(made) == {*started, "files", "fingerprint", "seconds", "result"}
    keys = page.split("## report.json")[1].split("## A corpus")[0]
    rows = [line.split("|")[1] for line in keys.splitlines() if line.startswith("| `")]
    report = json.loads((workdir / "report" / "report.json").read_text())
    assert set(re.findall("`(.+?)`", " ".join(rows))) == set(report)
    features = json.loads((workdir / "sample" / "self" / "corpus" / "features.json").read_text())
    fields = re.findall(r"^\| `(\w+)` \|", page.split("## A corpus")[1], re.MULTILINE)
    assert set(fields) == set(features["featuresDict"]["features"])
