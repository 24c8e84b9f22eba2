import dataclasses
import os
import py_compile
import runpy
import subprocess
import sys
import warnings

import hypothesis
import hypothesis.strategies as st
import pytest

from selftrain_jax.cli import main as cli
from selftrain_jax.cli.config import load_config
from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.sampling.settings import SampleSettings
from tests.cli.command import ROOT, TINY, run


@pytest.mark.parametrize("action", ["ignore", "error"])
def test_a_config_file_that_sets_how_warnings_are_shown_silences_none_of_ours(tmp_path, capsys, action):
    """Many files begin so, for what their libraries say; a run would then go on without a word of what it was told."""
    (tmp_path / "quiet.py").write_text(
        f"import warnings\n\nwarnings.simplefilter({action!r})\nwarnings.showwarning = print\n\n\n"
        "def get_config():\n    return dict(source='model', sample=dict(seed=1, temperature=0.5))\n"
    )
    assert cli.main(["config", f"--config={tmp_path / 'quiet.py'}", "--config.sample={'seed': 2}"]) == 0
    assert "selftrain: warning: setting sample is another group now" in capsys.readouterr().err


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


def test_a_setting_that_the_config_leaves_out_is_changed_too(config):
    path = config('return ConfigDict(dict(source="some/model", sample=dict(seed=1)))')
    changed = load_config(path, ["--config.sample.top_k=3", "--config.subset.retokenize=True", "--config.student=m"])
    assert (changed.sample.seed, changed.sample.top_k, changed.subset.retokenize, changed.student) == (1, 3, True, "m")


def test_a_config_takes_an_argument(config):
    path = config("return ConfigDict(dict(source='m', title=word))", arguments="word='default'")
    assert (load_config(path).title, load_config(f"{path}:given").title) == ("default", "given")


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


@pytest.mark.parametrize(
    "place, begin",
    [
        ("shared_by_configs.py", "import shared_by_configs as shared"),
        ("package_of_config/__init__.py", "import package_of_config as shared"),
        ("folder_of_config/shared.py", "from folder_of_config import shared"),
        (
            "elsewhere/added_by_config.py",
            "import sys\nsys.path.insert(0, {folder!r})\nimport added_by_config as shared",
        ),
    ],
)
def test_two_configs_in_one_process_have_neighbours_of_their_own(tmp_path, place, begin):
    path = list(sys.path)
    for title in ("one", "two"):
        neighbour = tmp_path / title / place
        neighbour.parent.mkdir(parents=True)
        neighbour.write_text(f"import decimal\nsettings = dict(source='m', title={title!r})\n")
        text = f"{begin}\n\n\ndef get_config():\n    return shared.settings\n"
        (tmp_path / title / "config.py").write_text(text.replace("{folder!r}", repr(str(neighbour.parent))))
        assert load_config(str(tmp_path / title / "config.py")).title == title
    assert sys.path == path


def test_a_neighbour_of_the_same_size_and_time_is_read_anew(config, tmp_path):
    """As from an archive, or by `cp -p`: Python would take the compiled one of before."""
    writes = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    path = config("import twin_of_config\nreturn twin_of_config.get_config()")
    for title in ("before", "behind"):
        neighbour = config(f"return ConfigDict(dict(source='m', title='{title}'))", name="twin_of_config.py")
        os.utime(neighbour, (1e9, 1e9))
        code = f"from selftrain_jax.cli.config import load_config\nprint(load_config({path!r}).title)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=writes)
        assert done.stdout == f"{title}\n"
        py_compile.compile(neighbour)  # as other programs leave it


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
    ("raise SystemExit(0)", [], "SystemExit: 0"),
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
    assert sys.path == before


def test_a_config_without_get_config_is_refused(tmp_path):
    (tmp_path / "config.py").write_text("x = 1\n")
    with pytest.raises(InputError, match="get_config"):
        load_config(str(tmp_path / "config.py"))
    with pytest.raises(InputError, match="not found: .*gone.py"):
        load_config(str(tmp_path / "gone.py"))


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
