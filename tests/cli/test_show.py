import pathlib

import pytest

from selftrain_jax.cli import main as cli
from selftrain_jax.cli.config import load_config, read_values
from selftrain_jax.cli.show import walk

CONFIGS = pathlib.Path(__file__).resolve().parents[2] / "configs"


@pytest.mark.parametrize("name", ["quickstart.py", "lab.py", "lab_gpu.py", "pythia.py", "paper.py"])
def test_every_setting_has_a_meaning(name):
    config = load_config(str(CONFIGS / name), study="students" in read_values(str(CONFIGS / name)))
    settings = list(walk(config))
    assert [setting.name for setting in settings if not setting.meaning] == []
    assert len({setting.name for setting in settings}) == len(settings) > 60


def test_settings_say_where_their_values_come_from(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "70")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def get_config():\n    return dict(source='m', sample=dict(top_k=5), evaluate=dict(texts=dict(a='t')))\n"
    )
    assert cli.main(["config", "--config=mine.py", "--config.sample.top_p=0.5", "--config.mesh=fsdp=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 70
    origins = {a.partition(" = ")[0]: b.split(")")[0].strip(" (") for a, b in zip(lines, lines[1:]) if " = " in a}
    assert origins["sample.top_k"] == origins["evaluate.texts.a"] == origins["source"] == "mine.py"
    assert origins["sample.temperature"] == origins["lab"] == "default"
    assert origins["sample.top_p"] == origins["mesh.fsdp"] == "command line"
    assert "mesh.fsdp = 2" in lines and "sample.top_p = 0.5" in lines


@pytest.mark.parametrize("text, message", [("[1]", "are no object of settings"), ("{", "is not valid JSON")])
def test_a_file_of_settings_that_is_none_is_refused(tmp_path, capsys, text, message):
    (tmp_path / "config.json").write_text(text)
    assert cli.main(["config", f"--workdir={tmp_path}"]) == 2
    assert message in capsys.readouterr().err


def test_something_to_show_is_needed(capsys):
    assert cli.main(["config"]) == 2
    assert "config needs --config=FILE.py, or --workdir=DIR" in capsys.readouterr().err


def test_the_package_has_the_configs_and_copies_them(tmp_path, capsys, monkeypatch):
    """A config of one's own may build on them by name, wherever it lies."""
    assert cli.main(["configs"]) == 0
    said = capsys.readouterr().out
    assert "selftrain run --config=quickstart --workdir=" in said and "configs/" not in said  # there is no clone
    listed = [line for line in said.splitlines() if line and not line.startswith(" ")]
    assert listed == sorted(path.stem for path in CONFIGS.glob("*.py"))
    monkeypatch.chdir(tmp_path)
    assert load_config("quickstart") == load_config(str(CONFIGS / "quickstart.py"))
    assert load_config("pythia:70m").source == "EleutherAI/pythia-70m"
    assert cli.main(["init", "quickstart", "mine.py"]) == 0
    assert load_config("mine.py") == load_config("quickstart")
    assert cli.main(["init", "smoke", "mine.py"]) == 2 and load_config("mine.py") == load_config("quickstart")
    assert cli.main(["init", "none", "other.py"]) == 2 and not (tmp_path / "other.py").exists()
    (tmp_path / "short.py").write_text("import smoke\n\n\ndef get_config():\n    return smoke.get_config()\n")
    assert load_config("short.py") == load_config("smoke")


def test_a_model_stands_for_a_config(tmp_path, capsys):
    arguments = ["run", "EleutherAI/pythia-14m", f"--workdir={tmp_path / 'run'}", "--probes=p.jsonl", "--dry-run"]
    assert cli.main(arguments) == 0
    assert "do     train/self-0\n" in capsys.readouterr().out
    assert cli.main([*arguments, "--config=smoke"]) == 2
    assert "'EleutherAI/pythia-14m' is not understood" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
