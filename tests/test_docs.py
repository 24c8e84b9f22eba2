"""The site's own parts: what is generated holds all there is and refuses what has no words, and no link is broken."""

import argparse
import dataclasses
import pathlib
import re
import sys
import types

import pytest

from selftrain_jax.cli.options import make_parser
from selftrain_jax.cli.show import walk
from selftrain_jax.report.metric import KINDS
from selftrain_jax.run.settings import RunConfig

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_ext"))
import reference  # noqa: E402
import repository  # noqa: E402

PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)


def test_every_command_and_option_is_in_the_reference():
    page = reference.commands(make_parser())
    (choices,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    assert len(choices.choices) > 12
    for name, command in choices.choices.items():
        assert f"## selftrain {name}\n" in page
        options = {option for action in command._actions for option in action.option_strings} - {"-h", "--help"}
        assert [option for option in options if option not in page] == []

    blocks = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) == len(choices.choices) + 1 and "exit codes:" in blocks[0]
    assert all(len(line) <= reference.COLUMNS for block in blocks for line in block.splitlines())


def test_every_setting_is_in_the_reference_with_what_its_class_checks():
    page = reference.all_settings()
    names = set(re.findall(r"^`([\w.]+)`$", page, re.MULTILINE))
    groups = {name[: place.start()] for name in names for place in re.finditer(r"\.", name)}  # walk does not enter None
    assert {setting.name for setting in walk(RunConfig(source="m"))} <= names | groups
    assert names >= {"lab.base.num_documents", "lab.world.num_people", "controls.NAME.texts", "models.NAME.path"}

    def entry(name):
        return page[page.index(f"`{name}`\n") :].split("\n\n")[0]

    assert "number; default `1e-06`; above 0" in entry("train.optimizer.learning_rate")
    assert "whole number; default `8`; at least 1" in entry("audit.ngram")
    assert "at least 0, at most 1" in entry("evaluate.max_unknown")
    assert "one of `'auto'`, `True`, `False`" in entry("evaluate.add_bos")
    assert "list of texts" in entry("audit.count_only") and "NAME: text" in entry("audit.benchmarks")


def test_every_kind_of_figure_and_public_module_is_in_the_reference():
    assert all(f"`{name}`\n" in reference.metrics() for name in KINDS)
    shown = set(re.findall(r"automodule:: (\S+)", reference.api()))
    pages = [ROOT / "README.md", DOCS / "library.md", *DOCS.glob("tutorials/*.md"), *ROOT.glob("examples/*.py")]
    text = "\n".join(page.read_text("utf-8") for page in pages)
    used = set(re.findall(r"^from (selftrain_jax\.\S+) import", text, re.MULTILINE))
    assert len(used) > 8 and used <= shown


def test_what_has_no_words_ends_the_build():
    parser = argparse.ArgumentParser(epilog="x")
    command = parser.add_subparsers().add_parser("draw", help="draw", description="Draw.")
    command.add_argument("--size", help="how large")
    assert "`--size`\n: how large" in reference.commands(parser)
    command.add_argument("--colour")
    with pytest.raises(reference.Undescribed, match="draw --colour has no description"):
        reference.commands(parser)

    @dataclasses.dataclass(frozen=True)
    class Settings:
        """Settings.

        Attributes:
          size: how large.
        """

        size: int = 1
        colour: str = "red"

    with pytest.raises(reference.Undescribed, match="setting colour .* has no description"):
        list(reference.settings(Settings))

    module = types.ModuleType("selftrain_jax.core.nothing")
    exec("def draw(): pass\n\ndef _hidden(): pass", module.__dict__)
    assert [name for name, _ in reference.public(module)] == ["draw"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)
        patch.setattr(reference, "MODULES", {"x": ("core.nothing",)})
        with pytest.raises(reference.Undescribed, match="nothing.draw has no description"):
            reference.api()
        del module.draw
        exec("class A(dict):\n  'A.'\n  def keys(self): pass", module.__dict__)
        with pytest.raises(reference.Undescribed, match="nothing.A.keys has no description"):
            reference.api()  # though dict has one


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_no_page_links_to_what_is_not_there(page):
    repository.site_text(page, page.read_text("utf-8"))


def test_links_lead_to_the_site_or_to_the_repository(monkeypatch):
    for name in ("GITHUB_REPOSITORY", "READTHEDOCS_GIT_CLONE_URL"):
        monkeypatch.delenv(name, raising=False)
    page = DOCS / "howto" / "new.md"
    text = "[a](../../CHANGELOG.md#x) [b](../../examples/sample.py) [c](../running.md) [d](../../examples) [e](https://x.org)"
    assert repository.site_text(page, text) == (
        "[a](../project/changelog.md#x) [b](../../examples/sample.py) [c](../running.md) d [e](https://x.org)"
    )
    monkeypatch.setenv("GITHUB_REPOSITORY", "us/it")
    assert "[b](https://github.com/us/it/blob/main/examples/sample.py)" in repository.site_text(page, text)
    assert "[d](https://github.com/us/it/tree/main/examples)" in repository.site_text(page, text)
    marked = repository.site_text(page, "```sh needs: a GPU\nx [a](none.md)\n```\n")
    assert marked == "*Not run by the tests; needs a GPU:*\n\n```sh\nx [a](none.md)\n```\n"
    with pytest.raises(ValueError, match="new.md links to none.md, which is not there"):
        repository.site_text(page, "[a](none.md)")
    for text in ("some 95\n% of it", "- so\n  % much", "| a | b |\n|---|---|\n| x | `<|y|>` |\n"):
        with pytest.raises(ValueError, match="new.md: a .* (is not shown|has other cells)"):
            repository.site_text(page, text)
    assert "%x" in repository.site_text(page, "```{code-cell} python\n%x\n```\n| a |\n|---|\n| `<\\|y\\|>` |\n")
    wrapper = repository.site_text(DOCS / "project" / "changelog.md", "```{include} ../../CHANGELOG.md\n```\n")
    assert wrapper.startswith("# Changelog") and "(../families.md)" in wrapper
