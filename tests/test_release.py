"""What is released, and by what: one version, files that say what is there, workflows whose commands are sound."""

import pathlib
import re
import subprocess
import tomllib

import pytest
import yaml

import selftrain_jax

ROOT = pathlib.Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def test_the_version_stands_in_one_place():
    setup = (ROOT / "setup.cfg").read_text("utf-8")
    assert "version = attr: selftrain_jax.__version__" in setup
    assert "version" not in tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8")).get("project", {})
    assert "version" not in yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[:2] == ["Unreleased", selftrain_jax.__version__]


def test_the_citation_names_software_and_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation.keys() >= {
        "cff-version",
        "message",
        "title",
        "authors",
    }  # what version 1.2.0 of the format requires
    (paper,) = citation["references"]
    assert paper["url"] in (ROOT / "README.md").read_text("utf-8")
    assert [author["family-names"] for author in paper["authors"]] == ["Alemohammad", "Chen", "Baraniuk", "Wang"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_has_sound_commands_and_no_more_rights_than_it_needs(path, tmp_path):
    workflow = yaml.safe_load(path.read_text("utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    jobs = workflow["jobs"]
    assert all(need in jobs for job in jobs.values() for need in [job.get("needs")] if need)
    scripts = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    for number, script in enumerate(scripts):
        assert "${{" not in script  # what others may choose, such as a branch's name, is no part of a script
        file = tmp_path / f"{number}.sh"
        file.write_text(f"#!/bin/bash -e\n{script}\n")
        found = subprocess.run(["shellcheck", str(file)], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout
    extras = set(re.findall(r"-e '\.\[(\w+)\]'", "\n".join(scripts)))
    setup = (ROOT / "setup.cfg").read_text("utf-8").partition("[options.extras_require]")[2]
    assert extras <= set(re.findall(r"^(\w+) =", setup, re.MULTILINE))


@pytest.mark.parametrize("tag, notes", [("v0.1.0", True), ("v0.2.0", False)])
def test_a_release_wants_tag_version_and_changelog_to_agree(tag, notes, tmp_path):
    steps = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text("utf-8"))["jobs"]["build"]["steps"]
    (script,) = (step["run"] for step in steps if step.get("name", "").startswith("Tag"))
    (tmp_path / "selftrain_jax").mkdir()
    (tmp_path / "selftrain_jax" / "__init__.py").write_text('__version__ = "0.1.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(
        "## Unreleased\n\nlater\n\n## 0.1.0, 2026-12-01\n\nfirst\n\n## 0.0.9\n\nold\n"
    )
    done = subprocess.run(["bash", "-ec", script], cwd=tmp_path, env={"GITHUB_REF_NAME": tag, "PATH": "/usr/bin:/bin"})
    assert (done.returncode == 0) == notes
    if notes:
        assert (tmp_path / "notes.md").read_text().split() == ["first"]


def test_a_source_distribution_is_told_of_all_that_a_clone_has():
    told = (ROOT / "MANIFEST.in").read_text("utf-8")
    folders = {"benchmarks", "configs", "docs", "examples", "launch", "tests"}
    assert folders == set(re.findall(r"^graft (\w+)$", told, re.MULTILINE))
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    if tracked:
        rest = {name for name in tracked if "/" not in name and not name.startswith(".")}
        rest -= {
            "setup.cfg",
            "pyproject.toml",
            "README.md",
            "LICENSE",
            "MANIFEST.in",
        }  # setuptools takes these by itself
        assert rest == set(re.findall(r"^include (.*)$", told, re.MULTILINE)[0].split())
        assert {name.split("/")[0] for name in tracked if "/" in name and name[0] != "."} == folders | {"selftrain_jax"}
