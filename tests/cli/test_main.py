import ast
import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from selftrain_jax import __version__
from selftrain_jax.cli import main as cli
from selftrain_jax.cli.config import load_config
from selftrain_jax.core.lock import held
from tests.cli.command import ROOT, TINY, loaded, run

COMMANDS = (*("run", "lab", "plant", "sample", "audit", "subset", "train", "evaluate", "recover", "report", "status"),)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["--version"]], ids=" ".join)
def test_help_loads_no_library(arguments):
    assert loaded(*arguments) == []


def test_a_run_loads_all_that_its_stages_work_with_before_the_first():
    """Else a package that is updated meanwhile would go on as another one."""
    late = set()
    for path in [*(ROOT / "selftrain_jax" / "run").glob("*.py"), *(ROOT / "selftrain_jax" / "study").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("selftrain_jax.") and node.col_offset:
                late |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    late = {name for name in late if importlib.util.find_spec(name.rpartition(".")[0]).submodule_search_locations}
    late = {name for name in late if importlib.util.find_spec(name)} - {"selftrain_jax.evaluation.harness"}  # an extra
    assert len(late) > 10
    code = f"import sys, selftrain_jax.study.execute; print(sorted({late!r} - set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.everywhere
def test_help_names_every_command(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    listed = [line.split()[0] for line in text.splitlines() if line.startswith("    ") and line[4] != " "]
    assert listed == [
        *COMMANDS,
        "config",
        "plan",
        "study",
        "probes",
        "import",
        "leaks",
        *("completion", "configs", "init", "items", "metrics", "compare", "convert", "export", "publish", "verify"),
    ]
    assert "--config.sample.temperature" in text and "exit codes: 0 done, 2 bad input" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_is_complete(command, capsys):
    assert run(command, "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(part in text for part in ("--config FILE.py", "--workdir DIR", "--config.a.b=VALUE", "exit codes:"))
    assert ("--show N" in text) == (command == "sample")


def test_evaluate_takes_a_run_or_a_model(capsys, tmp_path):
    assert run("evaluate", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(
        part in text
        for part in (
            "evaluate MODEL --tasks",
            "evaluate --workdir DIR",
            "--tasks NAME",
            "--out DIR",
            "--confirm-run-unsafe-code",
        )
    )
    assert "metrics that are scripts" in text
    for arguments, words in (
        ([], "evaluate needs --workdir (of a run), or MODEL"),
        (["--config=x.py"], "evaluate needs --workdir"),
        (["--tasks=arc_easy"], "--tasks needs MODEL"),
        (["model", "--tasks=arc_easy"], "evaluate MODEL needs --tasks NAME,... and --out DIR"),
        (["model", f"--workdir={tmp_path}"], "--workdir belongs to a run and MODEL='model' does not"),
        (["model", "--config.evaluate.dtype=x"], "--config.evaluate.dtype=x belongs to a run"),
    ):
        assert run("evaluate", *arguments) == 2
        assert words in capsys.readouterr().err


def test_the_command_as_users_start_it_ends_with_its_exit_code(tmp_path):
    arguments = ["status", f"--config={tmp_path / 'none.py'}", f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run([sys.executable, "-m", "selftrain_jax", *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"selftrain: error: config file not found: {tmp_path / 'none.py'} (built in are ")


def test_where_there_is_no_clone_its_config_is_named(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("run", "--config=configs/smoke.py", "--workdir=w") == 2
    assert "config file not found: configs/smoke.py (built in are family, " in (error := capsys.readouterr().err)
    assert error.endswith("; --config=smoke is built in)\n")


def test_help_of_probes_is_complete(capsys):
    assert run("probes", "--help") == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in ("prefixes", "suffixes", "source", "target", "out"))


def test_help_of_verify_is_complete(capsys):
    assert run("verify", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())  # as long as a line of the terminal may be
    assert all(
        part in text for part in ("MODEL", "--revision R", "--dtype {fp32,bf16}", "--arc-easy FILE", "Exit code 0")
    )


def test_help_of_import_is_complete(capsys):
    assert run("import", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert all(part in text for part in ("SOURCE OUT", "--tokenizer", "--field", "--split", "--limit", "tfds:NAME"))


@pytest.mark.parametrize(
    "argv", [["a", "out"], ["a", "--tokenizer=m"], ["a", "out", "--tokenizer=m", "--limit=x"]], ids=str
)
def test_an_incomplete_import_exits_with_2_and_the_usage(argv, capsys):
    assert run("import", *argv) == 2
    assert "usage: selftrain import" in capsys.readouterr().err


def test_an_import_says_what_it_took(tmp_path, capsys):
    from selftrain_jax.data.corpus import read_corpus
    from selftrain_jax.lab.settings import WorldConfig
    from selftrain_jax.lab.tokenization import build_tokenizer, save_tokenizer
    from selftrain_jax.lab.world import build_world

    world = build_world(WorldConfig(num_people=8, max_addend=4, repeats=(0, 2), sequences_per_group=2))
    tokenizer = save_tokenizer(build_tokenizer(world), tmp_path / "tokenizer")
    (tmp_path / "texts.json").write_text('[{"output": "a b c"}, {"output": ""}, {"output": "d e"}, {"output": "f"}]')
    arguments = ("import", tmp_path / "texts.json", tmp_path / "out", f"--tokenizer={tokenizer}")
    assert run(*arguments, "--steps=3") == 2
    assert "'--steps=3' is not understood" in capsys.readouterr().err
    assert run(*arguments) == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("selftrain: error: import source ") and "field='text'" in err and "output" in err
    assert not (tmp_path / "out").exists()
    assert run(*arguments, "--field=output", "--limit=2") == 0
    # Three and two words, each followed by EOS.
    line = f"2 documents, 7 tokens, 1 empty texts dropped, 0 with special tokens read as text: {tmp_path / 'out'}\n"
    assert capsys.readouterr().out == line
    assert [d.text for d in read_corpus(tmp_path / "out")] == ["a b c", "d e"]


def test_leaks_of_a_corpus_are_told_with_the_documents(tmp_path, capsys):
    import json

    from selftrain_jax.core.files import write_jsonl
    from selftrain_jax.data.external import import_corpus
    from tests.models.checkpoints import old_tensors, write_checkpoint, write_tokenizer

    model, other = (write_tokenizer(write_checkpoint(tmp_path / name, old_tensors())) for name in ("m", "n"))
    write_jsonl(tmp_path / "texts.jsonl", [{"text": text} for text in ("c a b c", "a c", "b c b b c a")])
    import_corpus(tmp_path / "texts.jsonl", tmp_path / "corpus", model)
    (tmp_path / "known.txt").write_text("a b c b b c")
    write_jsonl(tmp_path / "probes.jsonl", [{"prefix": [2], "suffix": [3, 2], "group": "repeats=8"}])
    corpus, known = tmp_path / "corpus", f"--reference={tmp_path / 'known.txt'}"
    options = (known, f"--probes={tmp_path / 'probes.jsonl'}", f"--tokenizer={model}", "--tokens=3", "--characters=7")
    assert run("leaks", corpus, *options, f"--out={tmp_path / 'found.json'}") == 0
    out = capsys.readouterr().out
    # 12 tokens without the ends of documents: two leaks are 166,667 in a million.
    assert "known.txt, tokens: 2 of 3 documents repeat 3 or more; per million tokens 166666.67" in " ".join(out.split())
    assert "known.txt, characters: 1 of 3 documents repeat 7 or more" in " ".join(out.split())
    assert "document 2, 5 tokens from 0 on: ... >>b c b b c<< a" in " ".join(out.split())
    assert "probes, 8 repeats, tokens: 1 of 3 documents repeat 3 or more" in " ".join(out.split())
    rows = json.loads((tmp_path / "found.json").read_text())
    assert [(row["group"], row["unit"], row["leaking"]) for row in rows] == [
        ("", "tokens", 2),
        ("", "characters", 1),
        ("repeats=8", "tokens", 1),
        ("repeats=8", "characters", 1),
    ]
    for arguments, message in (
        ((corpus,), "give --reference=FILE, --probes=FILE or both"),
        ((corpus, options[1]), "--probes needs --tokenizer"),
        ((corpus, known, "--characters=0"), "tokens alone, and these need --tokenizer"),
        ((corpus, known, "--characters=12"), "no text has 12 characters, the run that counts; the longest has 11"),
        ((tmp_path, known), "is unfinished (no manifest.json)"),
    ):
        assert run("leaks", *arguments) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1


def test_every_stage_has_a_command_and_every_command_a_stage(tmp_path):
    from selftrain_jax.run.pipeline import Pipeline

    planting = str(pathlib.Path(__file__).parents[2] / "configs" / "plant.py")
    runs = [Pipeline(load_config(config), tmp_path) for config in (TINY, planting)]
    names = {stage.name.split("/")[0] for run in runs for stage in run.stages()}
    assert names == set(COMMANDS) - {"run", "status"}


def test_version(capsys):
    assert run("--version") == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize("argv", [[], ["fly"], ["run"], ["run", "--config=x.py"], ["sample", "--show=many"]], ids=str)
def test_a_wrong_command_line_exits_with_2_and_the_usage(argv, capsys):
    assert run(*argv) == 2
    assert "usage: selftrain" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["a[b]", "a\nb"])
@pytest.mark.parametrize("command, config", [("run", "tiny.py"), ("study", "tiny_study.py")])
def test_no_work_begins_where_arrays_cannot_be_stored(tmp_path, capsys, command, config, name):
    workdir = tmp_path / name
    assert run(command, f"--config={pathlib.Path(TINY).with_name(config)}", f"--workdir={workdir}") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "so that arrays cannot be stored below it: rename it" in error and not workdir.exists()


@pytest.mark.parametrize("columns", [48, 80])
@pytest.mark.parametrize("command", [(), *((command,) for command in COMMANDS), ("plan",), ("study",), ("probes",)])
def test_help_fits_the_terminal(command, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    assert run(*command, "--help") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(len(line) for line in lines if line.strip() != "[--config FILE.py[:ARG]]") <= columns  # not broken


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes_commands_and_options(shell, capsys):
    pytest.importorskip("shtab")
    assert run("completion", shell) == 0
    script = capsys.readouterr().out
    assert all(word in script for word in (*COMMANDS, "--workdir", "--redo", "--accelerator"))
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_completion_without_shtab_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert run("completion", "bash") == 2
    assert "pip install 'selftrain_jax[completion]'" in capsys.readouterr().err


def test_the_home_folder_is_meant_in_every_argument(monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/me")
    seen = []
    monkeypatch.setattr(cli, "_find", lambda where: lambda arguments, *rest: seen.append(vars(arguments)) or 0)
    assert run("import", "~/a", "~", "--tokenizer=~/t", "--field=~text") == 0
    assert run("import", "~/a", "b", "--tokenizer", "~/t") == run("status", "--config=~/c.py:x", "--workdir=~/w") == 0
    first, second, third = seen
    assert [first[name] for name in ("source", "out", "tokenizer", "field")] == [
        "/home/me/a",
        "/home/me",
        "/home/me/t",
        "~text",
    ]
    assert second["tokenizer"] == "/home/me/t"
    assert (third["config"], third["workdir"]) == ("/home/me/c.py:x", "/home/me/w")
    assert run("import", "a", "b", "--tokenizer=~nobody-of-that-name/t") == 2
    assert "no such user's home" in capsys.readouterr().err


def test_a_study_that_another_process_cuts_otherwise_is_refused(tmp_path, capsys):
    study = str(pathlib.Path(TINY).with_name("tiny_study.py"))
    for mine, other in (("0/1", "0-of-1"), ("0/2", "0-of-1")):
        with held(tmp_path / f".shard-{other}.lock", "x"):
            assert run("study", f"--config={study}", f"--workdir={tmp_path}", f"--shard={mine}") == 2
            assert f"by process {os.getpid()} on " in capsys.readouterr().err


def test_flags_of_jax_are_the_callers_again_after_a_command(tmp_path):
    """Who calls `main` in a notebook goes on with the same arithmetic."""
    jax.config.update("jax_enable_x64", True)
    try:
        assert run("compare", str(tmp_path / "a"), str(tmp_path / "b")) == 2
        assert jax.config.jax_enable_x64
    finally:
        jax.config.update("jax_enable_x64", False)
