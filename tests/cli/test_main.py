import ast
import contextlib
import dataclasses
import importlib.util
import logging
import os
import pathlib
import runpy
import subprocess
import sys
import textwrap
import warnings

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from selftrain_jax import __version__
from selftrain_jax.cli import main as cli
from selftrain_jax.cli import runs, status
from selftrain_jax.cli.config import load_config
from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import write_json
from selftrain_jax.core.lock import held
from selftrain_jax.core.storage import Workdir
from selftrain_jax.data.records import Document
from selftrain_jax.run import stages
from selftrain_jax.sampling.settings import SampleSettings

ROOT = pathlib.Path(__file__).resolve().parents[2]
TINY = str(pathlib.Path(__file__).resolve().parents[1] / "e2e" / "tiny.py")
COMMANDS = (*("run", "lab", "plant", "sample", "audit", "subset", "train", "evaluate", "recover", "report", "status"),)


@pytest.fixture
def config(tmp_path):
    """Writes a config file with this body of get_config and returns its path."""

    def write(body, name="config.py", arguments=""):
        text = f"from ml_collections import ConfigDict\ndef get_config({arguments}):\n" + textwrap.indent(body, "    ")
        (tmp_path / name).write_text(text + "\n")
        return str(tmp_path / name)

    return write


def run(*argv):
    """Exit code of the command, whether it returns or exits."""
    try:
        return cli.main([str(a) for a in argv])
    except SystemExit as e:
        return e.code


def loaded(*arguments):
    """The libraries that take long to import, of those that the command loads in a process of its own."""
    code = f"""if True:
        import sys
        from selftrain_jax.cli.main import main
        try:
            code = main({list(map(str, arguments))!r})
        except SystemExit as e:
            code = e.code
        slow = {{"jax", "flax", "optax", "transformers", "matplotlib", "scipy", "numpy", "urllib.request"}}
        print(code, *sorted(slow & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    code, *found = done.stdout.splitlines()[-1].split()
    assert code == "0", done.stderr
    return found


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


def test_status_tells_done_started_and_waiting_and_writes_nothing(tmp_path, capsys):
    workdir = tmp_path / "run"
    arguments = ("status", f"--config={TINY}", f"--workdir={workdir}")
    assert run(*arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines} == {"waiting"} and not workdir.exists()

    from selftrain_jax.run.pipeline import Pipeline

    plan = {stage.name: stage for stage in Pipeline(load_config(TINY), workdir).stages()}
    for name, file in (("lab/world", "manifest.json"), ("lab/base", "started.json")):
        (workdir / name).mkdir(parents=True)
        inputs = dict.fromkeys(plan[name].after, "a fingerprint")
        write_json(
            workdir / name / file, {"settings": plan[name].settings, "inputs": inputs, "fingerprint": "a fingerprint"}
        )
    before = sorted(workdir.rglob("*"))
    assert run(*arguments) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == [["done", "lab/world"], ["started", "lab/base"], ["waiting", "lab/other"]]
    assert [name for _, name in lines] == list(plan)
    assert sorted(workdir.rglob("*")) == before


def test_status_tells_how_far_a_stage_is(tmp_path, capsys):
    from selftrain_jax.run.pipeline import Pipeline

    plan = {stage.name: stage for stage in Pipeline(load_config(TINY), tmp_path).stages()}
    for name in ("lab/base", "sample/self", "train/self-0"):
        (tmp_path / name).mkdir(parents=True)
        inputs = dict.fromkeys(plan[name].after, "unknown")
        write_json(tmp_path / name / "started.json", {"settings": plan[name].settings, "inputs": inputs})
    (tmp_path / "lab/base/metrics.jsonl").write_text('{"step": 5, "epoch": 0.25}\n')
    (tmp_path / "train/self-0/metrics.jsonl").write_text('{"step": 4, "epoch": 2.0}\n{"step": 6, "epoch": 3.0}\n{"st')
    (tmp_path / "sample/self/corpus").mkdir()
    for shard in range(3):
        (tmp_path / f"sample/self/corpus/corpus-train.array_record-{shard:05}-of-00016").touch()
    assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("about")], (
        "nothing is done that tells how long the rest takes"
    )
    assert "started  lab/base: step 5 of 20" in lines and "started  train/self-0: step 6 of 8" in lines
    assert "started  sample/self: 12 of 64 documents" in lines
    assert loaded("status", f"--config={TINY}", f"--workdir={tmp_path}") == ["numpy"]


def test_status_looks_at_no_weights(tmp_path, monkeypatch, capsys):
    looked, outside = [], stages.outside_inputs

    def look(stage, models):
        looked.append(models)
        return outside(stage, models)

    from selftrain_jax.run.pipeline import Pipeline

    first = Pipeline(load_config(TINY), tmp_path).stages()[0]
    (tmp_path / first.name).mkdir(parents=True)
    record = {"settings": first.settings, "inputs": {}, "fingerprint": "", "seconds": 1.0}
    write_json(tmp_path / first.name / "manifest.json", record)
    monkeypatch.setattr(stages, "outside_inputs", look)
    assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 0
    assert looked and not any(looked)


def test_status_tells_how_the_units_of_a_study_stand(tmp_path, capsys):
    from selftrain_jax.study.expand import Study
    from selftrain_jax.study.failures import Failures

    config = load_config(str(pathlib.Path(TINY).with_name("tiny_study.py")), study=True)
    study = Study(config, tmp_path)
    units = study.units
    for number, (file, left) in enumerate([("manifest.json", []), ("manifest.json", ["gone"]), ("started.json", [])]):
        unit = units[number]
        for stage in unit.stages:
            folder = unit.workdir / stage.name
            folder.mkdir(parents=True)
            inputs = {**stage.externals(), **dict.fromkeys(stage.after, "")}
            record = {"settings": stage.settings, "inputs": inputs, "files": left}
            write_json(folder / file, record | {"fingerprint": "", "seconds": 30.0})
    Failures(study).write(units[3].name, "the loss is not finite")
    write_json(tmp_path / "study.json", dataclasses.asdict(config))
    assert run("status", f"--workdir={tmp_path}") == 0
    *lines, last = capsys.readouterr().out.splitlines()
    states = ["done", "stale", "started", "failed", *["waiting"] * (len(units) - 4)]
    assert [line.split()[0] for line in lines] == states
    assert lines[1] == f"stale    {units[1].name}: gone is gone from its folder"
    assert lines[3] == f"failed   {units[3].name}: the loss is not finite"
    assert last.startswith(f"1 of {len(units)} units done")
    assert loaded("status", f"--workdir={tmp_path}") == ["numpy"]


@pytest.mark.parametrize("name", ["a[b]", "a\nb"])
@pytest.mark.parametrize("command, config", [("run", "tiny.py"), ("study", "tiny_study.py")])
def test_no_work_begins_where_arrays_cannot_be_stored(tmp_path, capsys, command, config, name):
    workdir = tmp_path / name
    assert run(command, f"--config={pathlib.Path(TINY).with_name(config)}", f"--workdir={workdir}") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "so that arrays cannot be stored below it: rename it" in error and not workdir.exists()


def test_status_watches_until_nobody_is_at_work(tmp_path, monkeypatch, capsys):
    """What is shown again is what has changed; the run ends while the watcher waits for the third time."""
    held_by, waits = contextlib.ExitStack(), []
    held_by.enter_context(Workdir(tmp_path).held())

    def wait(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            from selftrain_jax.run.pipeline import Pipeline

            world = Pipeline(load_config(TINY), tmp_path).stages()[0]
            (tmp_path / world.name).mkdir(parents=True)
            write_json(tmp_path / world.name / "started.json", {"settings": world.settings, "inputs": {}})
        if len(waits) == 3:
            held_by.close()

    monkeypatch.setattr(status.time, "sleep", wait)
    assert run("status", "--watch", f"--config={TINY}", f"--workdir={tmp_path}") == 0
    out = capsys.readouterr().out
    assert waits == [2.0] * 3 and "\x1b" not in out
    assert out.count("waiting  lab/world") == out.count("started  lab/world") == 1
    assert out.endswith("nobody is at work in the folder\n")


def test_a_watch_that_is_interrupted_ends_well(tmp_path, monkeypatch, capsys):
    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(status.time, "sleep", interrupted)
    with Workdir(tmp_path).held():
        assert run("status", "--watch", f"--config={TINY}", f"--workdir={tmp_path}") == 0
    assert capsys.readouterr().err == ""


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


def test_status_refuses_settings_that_are_not_those_of_the_workdir(tmp_path, capsys):
    (tmp_path / "lab/world").mkdir(parents=True)
    write_json(tmp_path / "lab/world/started.json", {"settings": {"seed": 5}, "inputs": {}})
    assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 2
    err = capsys.readouterr().err
    assert err.startswith("selftrain: error: stage lab/world: setting ") and err.count("\n") == 1


def test_an_interrupt_exits_with_1_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(stages, "check", interrupted)
    assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 1
    assert capsys.readouterr().err == "selftrain: interrupted; the same command goes on from here\n"


def test_an_interrupted_tool_says_that_nothing_was_written(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("selftrain_jax.cli.tools.convert", interrupted)
    assert run("convert", tmp_path, tmp_path / "out") == 1
    assert capsys.readouterr().err == "selftrain: interrupted; nothing was written\n"


def test_nothing_that_is_told_reaches_the_terminal_as_an_order(tmp_path, monkeypatch, capsys, caplog):
    escape = "\x1b]0;owned\x07\x9b2J\r"
    assert run("status", f"--config={tmp_path}/{escape}", f"--workdir={tmp_path}") == 2
    with pytest.warns(UserWarning, match="^\ufffd"), cli._one_line_warnings():
        warnings.warn(InputWarning(escape), stacklevel=1)
        warnings.warn(UserWarning(escape), stacklevel=1)
        logging.getLogger("a library").warning("%s and %s", escape, "http://me:secret@host/")
    document = Document(0, np.zeros(3, np.int32), None, f"eos{escape}\u202e", "one\n\ttwo" + escape + "\ud800")
    monkeypatch.setattr(runs, "read_corpus", lambda _: [document])
    runs._show_documents(tmp_path, 1)
    out, err = capsys.readouterr()
    assert "one\n\ttwo\ufffd]0;owned" in out and err.count("]0;owned\ufffd") == 2
    assert all(c.isprintable() or c in "\n\t" for c in out + err + caplog.text)
    assert "http://***@host/" in caplog.text


def test_a_path_that_the_system_refuses_exits_with_2_and_one_line(tmp_path, capsys):
    name = "a" * 300
    for argv in (
        ["status", f"--config={TINY}", f"--workdir={tmp_path / name}"],
        ["export", tmp_path / name, tmp_path / "x"],
        ["status", f"--config={tmp_path / name}", f"--workdir={tmp_path}"],
    ):
        assert run(*argv) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"selftrain: error: {tmp_path / name}") and err.endswith("File name too long\n"), err


def test_an_error_of_the_system_that_names_no_path_is_not_bad_input(tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ConnectionError(104, "Connection reset by \x1b http://me:secret@host/")

    monkeypatch.setattr(stages, "check", broken)
    assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 1
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith("reset by \ufffd http://***@host/\n")


@pytest.fixture
def unread():
    """A pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        yield stream


@pytest.mark.parametrize("streams", [["stdout"], ["stderr"], ["stdout", "stderr"]], ids=str)
def test_output_that_nobody_reads_ends_no_work(tmp_path, monkeypatch, unread, streams):
    done = []

    def work(*_, **__):
        for text in ("a", "b\n" * 100_000, "c"):
            print(text, flush=True)
            print(text, file=sys.stderr, flush=True)
        warnings.warn("w", InputWarning, stacklevel=1)
        done.append(True)
        return {}

    for stream in streams:
        monkeypatch.setattr(sys, stream, unread)
    monkeypatch.setattr(stages, "stale", work)
    assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 0 and done


@pytest.mark.parametrize("closing", ["| head -0", "2>&- >&-"])
def test_the_command_ends_quietly_when_its_reader_does(tmp_path, closing):
    arguments = f"status --config={TINY} --workdir={tmp_path} {closing}; echo ${{PIPESTATUS[0]}} >&3"
    script = f"exec 3>&1; {sys.executable} -m selftrain_jax {arguments}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == "" and done.stdout == "0\n"


def test_a_full_disk_under_the_output_is_told_and_ends_no_work(tmp_path, monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 0
    assert "selftrain: warning: output cannot be written (No space left on device)" in capsys.readouterr().err


@pytest.mark.parametrize("action", ["ignore", "error"])
def test_a_config_file_that_sets_how_warnings_are_shown_silences_none_of_ours(tmp_path, capsys, action):
    """Many files begin so, for what their libraries say; a run would then go on without a word of what it was told."""
    (tmp_path / "quiet.py").write_text(
        f"import warnings\n\nwarnings.simplefilter({action!r})\nwarnings.showwarning = print\n\n\n"
        "def get_config():\n    return dict(source='model', sample=dict(seed=1, temperature=0.5))\n"
    )
    assert cli.main(["config", f"--config={tmp_path / 'quiet.py'}", "--config.sample={'seed': 2}"]) == 0
    assert "selftrain: warning: setting sample is another group now" in capsys.readouterr().err


def test_a_warning_of_ours_is_a_line_whatever_the_environment_says(tmp_path, monkeypatch, capsys):
    def warns(*_, **__):
        warnings.warn("careful", InputWarning, stacklevel=1)
        return {}

    monkeypatch.setattr(stages, "stale", warns)
    for action in ("error", "ignore"):
        with warnings.catch_warnings():
            warnings.simplefilter(action)
            assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 0
            assert capsys.readouterr().err == "selftrain: warning: careful\n"


def test_what_a_terminal_cannot_show_ends_no_work(tmp_path, monkeypatch):
    with open(tmp_path / "ascii", "w", encoding="ascii") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        found = {"lab/world": stages.Stale("\u00e9")}
        monkeypatch.setattr(stages, "stale", lambda *_, **__: found)
        assert run("status", f"--config={TINY}", f"--workdir={tmp_path}") == 0
    assert "stale    lab/world: \\xe9\n" in (tmp_path / "ascii").read_text()


OVERRIDES = [
    ("sample.temperature=0.5", lambda c: c.sample.temperature, 0.5),
    ("train.optimizer.learning_rate=1", lambda c: c.train.optimizer.learning_rate, 1.0),
    ("train.optimizer.learning_rate=1e-6", lambda c: c.train.optimizer.learning_rate, 1e-6),
    ("sample.start=('\\n', 3)", lambda c: c.sample.start, ("\n", 3)),
    ('sample.start="\\n"', lambda c: c.sample.start, ("\n",)),
    ("sample.start=auto", lambda c: c.sample.start, "auto"),
    ("evaluate.add_bos=auto", lambda c: c.evaluate.add_bos, "auto"),
    ("sample.num_samples=7", lambda c: c.sample.num_samples, 7),
    ("subset.replacement=False", lambda c: c.subset.replacement, False),
    ("title=A title = a name", lambda c: c.title, "A title = a name"),
    ("title='5'", lambda c: c.title, "5"),
    ("title={[]}", lambda c: c.title, "{[]}"),
    ("title=" + "(" * 500, lambda c: c.title, "(" * 500),
    ("revision=12345678", lambda c: c.revision, "12345678"),
    ("revision=1e5", lambda c: c.revision, "1e5"),
    ("sample.start=5", lambda c: c.sample.start, (5,)),
    ("mesh=fsdp=4", lambda c: dataclasses.astuple(c.mesh), (1, 4, 1)),
    ("mesh=data=-1,tensor=2", lambda c: dataclasses.astuple(c.mesh), (-1, 1, 2)),
    ("mesh.tensor=2", lambda c: dataclasses.astuple(c.mesh), (-1, 1, 2)),
    ("evaluate.template='Q: {question}\\nA:'", lambda c: c.evaluate.template, "Q: {question}\nA:"),
    ("revision=step143000", lambda c: c.revision, "step143000"),
    ("lab.world.repeats=(0,4,8)", lambda c: c.lab.world.repeats, (0, 4, 8)),
    ("lab.world.sequences_per_group=3", lambda c: c.lab.world.sequences_per_group, 3),
    ("lab.world.mixture.facts=1", lambda c: c.lab.world.mixture["facts"], 1.0),
    ("evaluate.texts.more=file.txt", lambda c: c.evaluate.texts["more"], "file.txt"),
]


@pytest.mark.parametrize("argument, read, value", OVERRIDES, ids=[argument for argument, *_ in OVERRIDES])
def test_settings_are_changed_from_the_command_line(argument, read, value):
    changed = load_config(TINY, [f"--config.{argument}"])
    assert read(changed) == value and type(read(changed)) is type(value)


def test_the_home_folder_is_meant_in_every_setting(config, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    body = "dict(source='~/m', evaluate=dict(probes='~/p', template='~{question}'), title='~ 5', audit=dict(ngram=6))"
    names = ["student", "corpus", "audit.benchmarks.b", "evaluate.texts.t", "controls.c.texts", "controls.d.corpus"]
    found = load_config(config(f"return ConfigDict({body})"), [f"--config.{name}=~/x" for name in names])
    assert (found.source, found.evaluate.probes) == ("/home/me/m", "/home/me/p")
    paths = [found.student, found.corpus, found.audit.benchmarks["b"], found.evaluate.texts["t"]]
    assert [*paths, found.controls["c"].texts, found.controls["d"].corpus] == ["/home/me/x"] * 6
    assert (found.evaluate.template, found.title) == ("~{question}", "~ 5")


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


def test_a_setting_that_the_config_leaves_out_is_changed_too(config):
    path = config('return ConfigDict(dict(source="some/model", sample=dict(seed=1)))')
    changed = load_config(path, ["--config.sample.top_k=3", "--config.subset.retokenize=True", "--config.student=m"])
    assert (changed.sample.seed, changed.sample.top_k, changed.subset.retokenize, changed.student) == (1, 3, True, "m")


def test_a_config_takes_an_argument(config):
    path = config("return ConfigDict(dict(source='m', title=word))", arguments="word='default'")
    assert (load_config(path).title, load_config(f"{path}:given").title) == ("default", "given")


@pytest.mark.parametrize("command", ["convert", "export", "verify"])
def test_a_command_without_a_device_says_so_first(monkeypatch, capsys, tmp_path, command):
    def devices():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", devices)
    assert run(command, str(tmp_path), *[str(tmp_path / "out")] * (command != "verify")) == 2
    assert capsys.readouterr().err.startswith("selftrain: error: JAX finds no device with JAX_PLATFORMS=cpu")


@pytest.mark.parametrize("sample", ["dict(seed=1)", "ConfigDict(dict(seed=1))"])
def test_a_config_may_be_a_plain_dict(config, sample):
    path = config(f"return dict(source='m', sample={sample})")
    assert load_config(path, ["--config.sample.top_k=3"]).sample == SampleSettings(seed=1, top_k=3)


def test_a_group_given_as_a_whole_says_what_it_leaves_out(config):
    path = config("return dict(source='m', sample=dict(seed=1, top_k=3, dtype='float32'))")
    with pytest.warns(
        InputWarning, match="sample is another group now, without .* of dtype, top_k: .*config.sample.NAME"
    ):
        assert load_config(path, ["--config.sample={'seed': 2}"]).sample == SampleSettings(seed=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = load_config(path, ["--config.sample={'seed': 2, 'top_k': 4, 'dtype': 'float32'}"]).sample
        assert (whole.seed, whole.top_k) == (2, 4)
        assert load_config(path, ["--config.sample={}"]).sample == SampleSettings()


@pytest.mark.parametrize("name", ["pythia", "family", "quickstart", "lab"])
def test_a_config_of_ours_can_be_changed_where_its_value_is_a_word(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "configs")
    values = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()
    values.sample.dtype = "auto"
    values.sample.update(dtype=None)
    values.subset.update(retokenize="auto")
    values.subset.update(retokenize=True)
    assert values.sample.dtype is None and values.subset.retokenize is True


def test_what_a_config_takes_from_another_setting_follows_the_command_line(config):
    """As with the flags of ml_collections: in both directions by `get_ref`, through arithmetic in one."""
    path = config(
        "c = ConfigDict(dict(source='m', sample=dict(seed=1), train=dict(seed=0), subset=dict(seed=0)))\n"
        "c.train.seed = c.sample.get_ref('seed')\n"
        "c.subset.seed = c.sample.get_ref('seed') + 1\n"
        "return c"
    )

    def seeds(*overrides):
        loaded = load_config(path, [f"--config.{override}" for override in overrides])
        return loaded.sample.seed, loaded.train.seed, loaded.subset.seed

    assert seeds() == (1, 1, 2) and seeds("sample.seed=5") == seeds("train.seed=5") == (5, 5, 6)
    assert seeds("sample.seed=5", "train.seed=7", "subset.seed=9") == (5, 7, 9)


def test_a_placeholder_is_filled_from_the_command_line(config):
    path = config(
        "from ml_collections import config_dict\n"
        "c = ConfigDict(dict(source='m', title=config_dict.placeholder(str, required=True)))\n"
        "return c"
    )
    assert load_config(path, ["--config.title=1e3"]).title == "1e3"
    with pytest.raises(InputError, match="RequiredValueError"):
        load_config(path)


def test_a_config_builds_on_its_neighbour(config):
    config("return ConfigDict(dict(source='m', title='of the neighbour'))", name="neighbour_of_config.py")
    path = config("import neighbour_of_config\nreturn neighbour_of_config.get_config()")
    assert load_config(path).title == "of the neighbour"


GOOD = "return ConfigDict(dict(source='m', sample=dict(seed=1)))"
BAD = [
    (
        "return ConfigDict(dict(source='m', sample=dict(sede=1)))",
        [],
        "unknown setting sample.sede; did you mean 'seed'?",
    ),
    ("return ConfigDict(dict(source='m', sample=dict(seed='1')))", [], "setting sample.seed='1' must be of type int"),
    ("return ConfigDict(dict(source='m', sample=dict(temperature=-1.0)))", [], "temperature=-1.0"),
    ("return ConfigDict(dict())", [], "source is empty"),
    ("return ConfigDict(dict(source='lab:base'))", [], "needs a lab"),
    ("return 5", [], "get_config() must return a dict or a ConfigDict, not 5"),
    ("return 5", ["--config.title=x"], "get_config() must return a dict or a ConfigDict, not 5"),
    ("assert False", [], "line 3: AssertionError"),
    ("return unknown_name", [], "unknown_name"),
    ("import no_such_module_anywhere", [], "no_such_module_anywhere"),
    ("x = 0\nreturn 1 / x", [], "config.py: line 4: ZeroDivisionError: division by zero"),
    ("return (", [], "config.py"),
    ("raise ValueError('two\\nlines')", [], "lines"),
    (GOOD, ["--config.sample.sede=2"], "unknown setting sample.sede; did you mean 'seed'?"),
    (GOOD, ["--config.smple.seed=2"], "unknown setting smple; did you mean 'sample'?"),
    (GOOD, ["--config.sample.seed=x"], "setting sample.seed='x' must be of type int"),
    (GOOD, ["--config.sample.seed=1.5"], "setting sample.seed=1.5 must be of type int"),
    (GOOD, ["--config.sample=5"], "setting sample=5 must be a group of settings"),
    (GOOD, ["--config.sample.seed.x=5"], "seed is a single value, not a group of settings"),
    (GOOD, ["--config.sample.seed"], "'--config.sample.seed' is not understood"),
    (GOOD, ["--config.mesh=fdsp=4"], "mesh='fdsp=4' must read like data=1,fsdp=4,tensor=2"),
    (
        GOOD,
        ["--config.evaluate.template=Q: {question}\\nA:"],
        r"""setting evaluate.template: \n is two characters in a shell; for the one that Python means by it write """
        r"""--config.evaluate.template=''"'"'Q: {question}\nA:'"'"'', and for the two 'r'"'"'Q: {question}\nA:'"'"''""",
    ),
    (GOOD, ["--config.title=a\\tb"], r"setting title: \t is two characters"),
    (GOOD, ["--steps=5"], "'--steps=5' is not understood"),
    (GOOD, ["extra"], "'extra' is not understood"),
]


@pytest.mark.parametrize("body, overrides, message", BAD, ids=[f"{body} {rest}" for body, rest, _ in BAD])
def test_bad_input_exits_with_2_and_one_line_and_writes_nothing(config, tmp_path, capsys, body, overrides, message):
    path = config(body)
    assert run("run", f"--config={path}", f"--workdir={tmp_path / 'run'}", *overrides) == 2
    err = capsys.readouterr().err
    assert err.startswith("selftrain: error: ") and err.count("\n") == 1, err
    assert message in err
    assert not (tmp_path / "run").exists()


def test_reading_a_config_leaves_the_module_path_as_it_was(config):
    before = list(sys.path)
    load_config(config(GOOD))
    load_config(config("import sys\nsys.path.insert(0, '/added/by/config')\n" + GOOD))
    assert sys.path == ["/added/by/config", *before]
    sys.path.remove("/added/by/config")


def test_a_config_without_get_config_is_refused(tmp_path):
    (tmp_path / "config.py").write_text("x = 1\n")
    with pytest.raises(InputError, match="get_config"):
        load_config(str(tmp_path / "config.py"))
    with pytest.raises(InputError, match="not found: .*gone.py"):
        load_config(str(tmp_path / "gone.py"))


def test_a_second_run_in_one_folder_is_refused_at_once_while_status_works(tmp_path, capsys):
    arguments = (f"--config={TINY}", f"--workdir={tmp_path}")
    with Workdir(tmp_path).held():
        assert run("run", *arguments) == 2
        assert f"workdir {tmp_path} is in use by process {os.getpid()} on " in capsys.readouterr().err
        assert run("status", *arguments) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_study_that_another_process_cuts_otherwise_is_refused(tmp_path, capsys):
    study = str(pathlib.Path(TINY).with_name("tiny_study.py"))
    for mine, other in (("0/1", "0-of-1"), ("0/2", "0-of-1")):
        with held(tmp_path / f".shard-{other}.lock", "x"):
            assert run("study", f"--config={study}", f"--workdir={tmp_path}", f"--shard={mine}") == 2
            assert f"by process {os.getpid()} on " in capsys.readouterr().err


def test_a_working_directory_that_is_gone_is_left(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run("status", f"--config={TINY}", f"--workdir={tmp_path / 'run'}") == 0
    assert os.getcwd() == "/"


_SETTINGS = ("title", "source", "revision", "mesh", "sample.start", "sample.seed", "sample.temperature", "train.epochs")
_SETTINGS += ("audit.benchmarks.x", "evaluate.template", "evaluate.suffix_lengths", "controls.real.texts", "lab.world")
_TYPED = st.text() | st.floats().map(str) | st.integers().map(str) | st.from_type(object).map(repr)


@hypothesis.given(st.sampled_from(_SETTINGS) | st.text(max_size=8), _TYPED)
def test_whatever_is_typed_is_a_setting_or_refused_in_words(name, text):
    try:
        load_config(TINY, [f"--config.{name}={text}"])
    except InputError as e:
        assert str(e)


@hypothesis.given(st.from_regex(r"[0-9]{1,12}|[0-9]{1,3}e[0-9]|0x[0-9a-f]{1,6}|[0-9]+_[0-9]+", fullmatch=True))
def test_a_revision_is_what_was_typed(text):
    assert load_config(TINY, [f"--config.revision={text}"]).revision == text
