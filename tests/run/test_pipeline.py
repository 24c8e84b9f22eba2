"""The order of a run's stages."""

import contextlib
import json
import pathlib

import pytest

from selftrain_jax.cli.config import load_config
from selftrain_jax.cli.main import main
from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.records import plain
from selftrain_jax.core.settings import build
from selftrain_jax.data.settings import SubsetConfig
from selftrain_jax.evaluation.settings import EvaluateSettings, LeakSettings
from selftrain_jax.lab.plant.settings import PlantConfig
from selftrain_jax.lab.settings import LabConfig
from selftrain_jax.run import names, stages
from selftrain_jax.run.checks import check_attention, check_files, check_lengths
from selftrain_jax.run.pipeline import Pipeline
from selftrain_jax.run.settings import ControlSettings, RunConfig
from selftrain_jax.training.settings import TrainConfig
from tests.lab.plant.test_settings import GOOD
from tests.models.checkpoints import old_tensors, refuses, write_checkpoint, write_tokenizer

TINY = str(pathlib.Path(__file__).resolve().parents[1] / "e2e" / "tiny.py")


def test_what_evaluation_refuses_is_refused_before_the_long_work(tmp_path):
    kinds = [stage.name.split("/")[0] for stage in Pipeline(load_config(TINY), tmp_path).stages()]
    assert kinds.index("evaluate") < kinds.index("sample") and kinds[-2:] == ["evaluate", "report"]


def test_what_is_there_is_made_rows_and_what_was_planted_asked_for_before_anything_is_sampled(tmp_path):
    """A budget that an audited control cannot meet, a text for relearning that holds what is asked for: not behind the
    long work."""
    plant = "--config.plant={'text': 'lab:control.jsonl', 'tokens': 65536, 'counts': (0, 1)}"
    config = load_config(TINY, [plant, "--config.recovery={}", "--config.evaluate.probes="])
    made = Pipeline(config, tmp_path).stages()
    order = [stage.name for stage in made]
    first = order.index("sample/self")
    assert max(map(order.index, ("audit/real", "subset/real-0", "recover/base", "recover/twin"))) < first
    assert first < min(map(order.index, ("audit/self", "audit/other", "subset/other-0", "recover/self-0")))
    assert len(set(order)) == len(order)
    for stage in made:
        assert all(order.index(name) < order.index(stage.name) for name in stage.after)


@pytest.mark.parametrize("control, shared", [("b a", 1), ("b\r\na ", 1), ("a b", 0)])
def test_a_control_that_holds_a_text_that_is_evaluated_is_warned_of(tmp_path, recwarn, control, shared):
    model = write_checkpoint(tmp_path / "model", old_tensors())
    write_tokenizer(model)
    for name, texts in (("wiki", ["a", "b a", ""]), ("control", [control, "c", ""])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"text": texts}))
    evaluated = EvaluateSettings(texts={"wiki": str(tmp_path / "wiki.json")})
    controls = {"real": ControlSettings(texts=str(tmp_path / "control.json"))}
    check_files(Pipeline(RunConfig(source=str(model), evaluate=evaluated, controls=controls), tmp_path / "run"))
    told = (
        "setting controls.real.texts: 1 of its texts are in evaluate.texts.wiki, too, whose figures then speak of text"
    )
    assert [str(warning.message)[: len(told)] for warning in recwarn] == [told] * shared


def test_a_control_of_the_same_text_in_other_pieces_is_warned_of_with_a_student_of_the_lab_too(tmp_path):
    words = [f"word{number}" for number in range(400)]
    (tmp_path / "book.txt").write_text(" ".join(words[:200]) + "\n" + " ".join(words[200:]))
    rows = [{"text": " ".join(words[begin : begin + 90])} for begin in range(0, 270, 90)]
    (tmp_path / "control.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    overrides = ["--config.evaluate.texts.book={}/book.txt", "--config.controls.real.texts={}/control.jsonl"]
    config = load_config(TINY, [override.format(tmp_path) for override in overrides])
    with pytest.warns(InputWarning, match="real.texts: 60% of evaluate.texts.book stands in it .20 words in a row.,"):
        check_files(Pipeline(config, tmp_path / "run"))


def test_a_reference_that_is_the_student_itself_is_told(tmp_path):
    config = load_config(TINY, ["--config.evaluate.reference=lab:base", "--config.evaluate.nonmembers=repeats=0"])
    with pytest.warns(InputWarning, match="evaluate.reference is the student itself"):
        check_files(Pipeline(config, tmp_path / "run"))


@pytest.mark.parametrize("kind", ["splash", "cudnn"])
def test_attention_of_another_device_is_refused_before_the_first_stage(tmp_path, capsys, kind):
    config = load_config(TINY, [f"--config.train.attention={kind}"])
    with pytest.raises(InputError, match=f"train attention='{kind}' is not possible here: the device is a cpu"):
        check_attention(Pipeline(config, tmp_path))
    assert main(["run", f"--config={TINY}", f"--workdir={tmp_path}/run", f"--config.train.attention={kind}"]) == 2
    assert not list(tmp_path.glob("run/*/manifest.json"))
    study = ["study", f"--config={TINY.replace('tiny', 'tiny_study')}", f"--workdir={tmp_path}/study"]
    assert main([*study, f"--config.train.attention={kind}"]) == 2 and not (tmp_path / "study" / "lab").exists()
    told = capsys.readouterr().err
    assert told.count(f"train attention={kind!r} is not possible here") == 2 and told.count("error:") == 2
    check_attention(Pipeline(load_config(TINY), tmp_path))


def test_a_revision_is_that_of_source_and_student_alone(tmp_path, monkeypatch):
    """Another model is taken as it is; a folder is of one revision, and a title must not claim another."""
    asked = []
    monkeypatch.setattr(names, "resolve_model", lambda name, revision=None: asked.append((name, revision)))
    run = Pipeline(RunConfig(source="a/m", student="a/n", revision="step7"), tmp_path)
    for model in ("a/m", "a/n", "b/other", str(tmp_path)):
        run.model_path(model)
    assert asked == [("a/m", "step7"), ("a/n", "step7"), ("b/other", None), (str(tmp_path), None)]
    with pytest.raises(InputError, match=f"setting revision='step7' applies to hub names, but {tmp_path} is here"):
        check_files(Pipeline(RunConfig(source=str(tmp_path), revision="step7"), tmp_path))


@pytest.mark.parametrize(
    "setting, other",
    [
        ("controls.last.source", {"controls": {"last": ControlSettings(source="a/m")}}),
        ("evaluate.reference", {"evaluate": EvaluateSettings(probes="p", nonmembers="n", reference="a/m")}),
    ],
)
def test_another_revision_of_the_student_is_not_taken_for_its_own(tmp_path, monkeypatch, setting, other):
    monkeypatch.setattr(names, "resolve_model", lambda name, revision=None: tmp_path / str(revision))
    run = Pipeline(RunConfig(source="a/m", revision="step7", **other), tmp_path)
    assert run.references()[setting] == "a/m"
    with pytest.raises(InputError, match=f"setting {setting}='a/m' has the name of source or student"):
        check_files(run)


@pytest.mark.parametrize("name, planted", [("subset/real-0", False), ("plant/text", True)])
@pytest.mark.parametrize("field", ["bos_token_id", "eos_token_id"])
def test_rows_that_begin_or_end_documents_otherwise_than_the_student_are_stale(tmp_path, name, planted, field):
    """Rows hold both ids. A record of a version that did not note them is as good as ever."""
    model = write_checkpoint(tmp_path / "model", old_tensors())
    write_tokenizer(model)
    (tmp_path / "real.jsonl").write_text('{"text": "a b c"}')
    text = str(tmp_path / "real.jsonl")
    plant = build(PlantConfig, {"text": text}) if planted else None
    run = Pipeline(RunConfig(source=str(model), controls={"real": ControlSettings(texts=text)}, plant=plant), tmp_path)
    stage = next(stage for stage in run.stages() if stage.name == name)
    inputs = {**stage.externals(), **stage.models(), **dict.fromkeys(stage.after, "of the one before")}
    (tmp_path / name).mkdir(parents=True)

    def why(noted):
        record = {"settings": plain(dict(stage.settings)), "inputs": noted, "fingerprint": "x", "files": {}}
        (tmp_path / name / "manifest.json").write_text(json.dumps(record))
        return [found.why for found in stages.stale(tmp_path, [stage]).values()]

    assert why(inputs) == []
    settings = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(settings | {field: 3}))
    (found,) = why(inputs)
    assert "'s BOS and EOS has changed since" in found
    assert why({name: value for name, value in inputs.items() if "BOS" not in name}) == []


@pytest.mark.parametrize("student, folder", [("lab:base", "base"), ("lab:other", "other"), ("models/x", "world")])
def test_probes_of_the_lab_are_in_ids_of_the_student(tmp_path, student, folder):
    """The lab's models may have other tokenizers than its world."""
    evaluate = EvaluateSettings(texts={"fresh": "lab:validation.jsonl"}, probes="lab:probes.jsonl")
    run = Pipeline(RunConfig(source="lab:other", student=student, lab=LabConfig(), evaluate=evaluate), tmp_path)
    assert run.path(evaluate.probes) == tmp_path / "lab" / folder / "probes.jsonl"
    assert run.path(evaluate.texts["fresh"]) == tmp_path / "lab" / "world" / "validation.jsonl"
    assert f"lab/{folder}" in next(stage for stage in run.stages() if stage.name == "evaluate/base").after


def test_the_seed_of_the_last_subset_is_a_seed():
    of = {"source": "x", "subset": SubsetConfig(num_subsets=2)}
    RunConfig(**of, train=TrainConfig(seed=2**63 - 2))
    with pytest.raises(InputError, match=f"train seed={2**63 - 1} must be at most {2**63 - 2}: subset i of 2 is"):
        RunConfig(**of, train=TrainConfig(seed=2**63 - 1))


def test_the_reference_is_an_input_of_every_evaluation_and_has_the_students_tokenizer(tmp_path):
    config = load_config(TINY, ["--config.evaluate.nonmembers=repeats=0", "--config.evaluate.reference=lab:other"])
    stages = {stage.name: stage for stage in Pipeline(config, tmp_path).stages()}
    assert "lab/other" in stages and "lab/other" in stages["evaluate/base"].after
    assert "lab/other" in stages["evaluate/real-0"].after
    models = [write_checkpoint(tmp_path / name, old_tensors()) for name in ("model", "same", "another")]
    for model, words in zip(models, ("abc", "abc", "xyz")):
        write_tokenizer(model, words)
    rows = [{"prefix": [1], "suffix": [token], "group": group} for token, group in enumerate("ab")]
    (tmp_path / "probes.json").write_text(json.dumps(rows))

    def check(reference):
        evaluate = EvaluateSettings(probes=str(tmp_path / "probes.json"), nonmembers="a", reference=str(reference))
        pipeline = Pipeline(RunConfig(source=str(models[0]), evaluate=evaluate), tmp_path / "run")
        check_files(pipeline)
        return next(stage for stage in pipeline.stages() if stage.name == "evaluate/base").models()

    assert check(models[1]).keys() >= {"student", "reference"}
    with pytest.raises(InputError, match="reference=.*another has another tokenizer than the student"):
        check(models[2])
    (models[1] / "added_tokens.json").write_text(json.dumps({"<new>": 3}))
    assert check(models[1])  # which has all tokens of the student
    (models[0] / "added_tokens.json").write_text(json.dumps({"<other>": 3}))
    with pytest.raises(InputError, match="reference=.*same has another tokenizer than the student"):
        check(models[1])


def test_leaks_are_looked_for_in_the_text_of_every_arm_and_only_on_request(tmp_path):
    names = [stage.name for stage in Pipeline(load_config(TINY), tmp_path).stages()]
    config = load_config(TINY, ["--config.leaks.probes=True", "--config.leaks.references.world=lab:validation.jsonl"])
    stages = Pipeline(config, tmp_path).stages()
    added = {stage.name: stage for stage in stages if stage.name not in names}
    assert list(added) == [f"evaluate/leaks/{arm}" for arm in ("self", "other", "real")]
    assert set(added["evaluate/leaks/self"].after) == {"sample/self", "lab/base", "lab/world"}
    assert set(added) <= set(stages[-1].after)
    planted = "--config.plant={'text': 'lab:control.jsonl', 'tokens': 65536, 'counts': (0, 1)}"
    for setting, message in (("leaks.probes=True", "leaks probes=True"), ("evaluate.discoverable={}", "discoverable")):
        asked = [f"--config.{setting}", "--config.evaluate.probes="]
        with pytest.raises(InputError, match=f"{message} needs evaluate.probes"):
            load_config(TINY, asked)
        load_config(TINY, [*asked, planted])  # planting makes the probes
    for setting, message in (("references.probes=x.txt", "another name"), ("least_tokens=-1", "must be at least 0")):
        with pytest.raises(InputError, match=message):
            load_config(TINY, [f"--config.leaks.{setting}"])


def test_text_that_leaks_are_looked_for_in_is_read_before_any_work(tmp_path):
    model = write_tokenizer(write_checkpoint(tmp_path / "model", old_tensors()))
    known = tmp_path / "known.txt"
    config = RunConfig(source=str(model), leaks=LeakSettings({"known": str(known)}, least_tokens=3, least_characters=0))
    with pytest.raises(InputError, match="setting leaks.references.known: file not found"):
        check_files(Pipeline(config, tmp_path / "run"))
    for content, message in ((b"a b", "no text has 3 tokens"), (b"a b \xe9", "not valid UTF-8"), (b"a b c", "")):
        known.write_bytes(content)
        with pytest.raises(InputError, match=message) if message else contextlib.nullcontext():
            check_files(Pipeline(config, tmp_path / "run"))


@pytest.mark.parametrize("setting", ["plant.text", "plant.passages", "recovery.text"])
def test_text_to_plant_in_and_to_relearn_on_is_read_before_any_work(tmp_path, setting):
    model = write_tokenizer(write_checkpoint(tmp_path / "model", old_tensors()))
    path = tmp_path / "text.txt"
    path.write_text("a b c")
    settings = {"source": str(model), "evaluate": {"probes": ""}, "recovery": {"text": str(path)}}
    settings["plant"] = GOOD | {"text": str(path), "kinds": ["passages"], "passages": str(path)}
    check_files(Pipeline(build(RunConfig, settings), tmp_path / "run"))
    stage, name = setting.split(".")
    (tmp_path / "latin.txt").write_bytes("a b caf\xe9".encode("latin-1"))
    for known, message in ((tmp_path / "no.txt", "file not found"), (tmp_path / "latin.txt", "not valid UTF-8")):
        asked = settings | {stage: settings[stage] | {name: str(known)}}
        run = Pipeline(build(RunConfig, asked), tmp_path / "run")
        refuses(lambda: check_files(run), message, known.name)  # noqa: B023


def test_a_control_of_too_few_documents_is_refused_before_the_first_stage(tmp_path):
    model = write_tokenizer(write_checkpoint(tmp_path / "model", old_tensors()))
    (tmp_path / "few.txt").write_text("a b c")
    settings = {"source": str(model), "evaluate": {"probes": ""}, "sample": {"max_new_tokens": 8}}
    settings |= {
        "train": {"sequence_length": 8, "batch_size": 4},
        "controls": {"few": {"texts": str(tmp_path / "few.txt")}},
    }
    for num_tokens, refused in ((48, False), (10**4, True)):
        run = Pipeline(build(RunConfig, settings | {"subset": {"num_tokens": num_tokens}}), tmp_path / "run")
        if refused:
            refuses(lambda: check_lengths(run), "subset num_tokens=10000", "few.txt", "subset.max_repetitions")
        else:
            check_lengths(run)


def test_text_in_other_tokens_of_the_same_lab_is_refused_before_the_lab_is_made(tmp_path):
    bpe, anew = "--config.lab.other.tokenizer=bpe", "--config.subset.retokenize=auto"
    for accepted in ([], [bpe, anew]):
        check_files(Pipeline(load_config(TINY, accepted), tmp_path))
    message = "controls.other.source='lab:other' writes in tokens of bpe-512, the student lab:base reads those of words"
    with pytest.raises(InputError, match=message):
        check_files(Pipeline(load_config(TINY, [bpe]), tmp_path))


LENGTHS = [
    ("subset.num_tokens=512", "batch_size=8 is more than the 7 packed rows there are"),
    ("train.sequence_length=65", "train sequence_length=65 exceeds the model's context of 64"),
    ("sample.max_new_tokens=65", "max_new_tokens=65 exceeds the model's context of 64 tokens"),
    ("subset.num_tokens=4097", "subset num_tokens=4097 is more than the 4096 tokens that the 64 documents of lab:base"),
    ("subset={'num_tokens': 65537, 'retokenize': False}", "more than max_repetitions=16 times the 4096 tokens that"),
]


@pytest.mark.parametrize("setting, message", LENGTHS, ids=[setting for setting, _ in LENGTHS])
def test_what_training_and_sampling_would_refuse_is_refused_before_the_first_stage(tmp_path, setting, message):
    check_lengths(Pipeline(load_config(TINY), tmp_path))
    with pytest.raises(InputError, match=message):
        check_lengths(Pipeline(load_config(TINY, [f"--config.{setting}"]), tmp_path))


@pytest.mark.parametrize("num_tokens, settings", [(4096, "'replacement': False"), (16 * 4096, "'retokenize': 'auto'")])
def test_documents_that_may_be_enough_are_not_refused_before_they_are_there(tmp_path, num_tokens, settings):
    """The documents of the student at their longest; the text of another model may be more tokens of the student's."""
    subset = f"--config.subset={{'num_tokens': {num_tokens}, {settings}}}"
    check_lengths(Pipeline(load_config(TINY, [subset]), tmp_path))
    unknown = subset.replace(str(num_tokens), "1000000").replace(settings, "'retokenize': True")
    check_lengths(Pipeline(load_config(TINY, [unknown]), tmp_path))
