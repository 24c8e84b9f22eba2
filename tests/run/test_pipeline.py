"""The order of a run's stages."""

import json
import pathlib

import pytest

from selftrain_jax.cli.config import load_config
from selftrain_jax.cli.main import main
from selftrain_jax.core.errors import InputError
from selftrain_jax.data.settings import SubsetConfig
from selftrain_jax.evaluation.settings import EvaluateSettings
from selftrain_jax.run.pipeline import Pipeline
from selftrain_jax.run.settings import ControlSettings, RunConfig
from selftrain_jax.training.settings import TrainConfig
from tests.models.checkpoints import old_tensors, write_checkpoint, write_tokenizer

TINY = str(pathlib.Path(__file__).resolve().parents[1] / "e2e" / "tiny.py")


def test_what_evaluation_refuses_is_refused_before_the_long_work(tmp_path):
    kinds = [stage.name.split("/")[0] for stage in Pipeline(load_config(TINY), tmp_path).stages()]
    assert kinds.index("evaluate") < kinds.index("sample") and kinds[-2:] == ["evaluate", "report"]


@pytest.mark.parametrize("control, shared", [("b a", 1), ("a b", 0)])
def test_a_control_that_holds_a_text_that_is_evaluated_is_warned_of(tmp_path, recwarn, control, shared):
    model = write_checkpoint(tmp_path / "model", old_tensors())
    write_tokenizer(model)
    for name, texts in (("wiki", ["a", "b a", ""]), ("control", [control, "c", ""])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"text": texts}))
    evaluated = EvaluateSettings(texts={"wiki": str(tmp_path / "wiki.json")})
    controls = {"real": ControlSettings(texts=str(tmp_path / "control.json"))}
    Pipeline(RunConfig(source=str(model), evaluate=evaluated, controls=controls), tmp_path / "run").check_files()
    told = (
        "setting controls.real.texts: 1 of its texts are in evaluate.texts.wiki, too, whose figures then speak of text"
    )
    assert [str(warning.message)[: len(told)] for warning in recwarn] == [told] * shared


@pytest.mark.parametrize("kind", ["splash", "cudnn"])
def test_attention_of_another_device_is_refused_before_the_first_stage(tmp_path, kind):
    config = load_config(TINY, [f"--config.train.attention={kind}"])
    with pytest.raises(InputError, match=f"train attention='{kind}' is not possible here: the device is a cpu"):
        Pipeline(config, tmp_path).check_attention()
    assert main(["run", f"--config={TINY}", f"--workdir={tmp_path}/run", f"--config.train.attention={kind}"]) == 2
    assert not list(tmp_path.glob("run/*/manifest.json"))
    Pipeline(load_config(TINY), tmp_path).check_attention()


def test_the_seed_of_the_last_subset_is_a_seed():
    of = {"source": "x", "subset": SubsetConfig(num_subsets=2)}
    RunConfig(**of, train=TrainConfig(seed=2**63 - 2))
    with pytest.raises(InputError, match=f"train seed={2**63 - 1} must be at most {2**63 - 2}: subset i of 2 is"):
        RunConfig(**of, train=TrainConfig(seed=2**63 - 1))


LENGTHS = [
    ("subset.num_tokens=512", "batch_size=8 is more than the 7 packed rows there are"),
    ("train.sequence_length=65", "train sequence_length=65 exceeds the model's context of 64"),
    ("sample.max_new_tokens=65", "max_new_tokens=65 exceeds the model's context of 64 tokens"),
]


@pytest.mark.parametrize("setting, message", LENGTHS, ids=[setting for setting, _ in LENGTHS])
def test_what_training_and_sampling_would_refuse_is_refused_before_the_first_stage(tmp_path, setting, message):
    Pipeline(load_config(TINY), tmp_path).check_lengths()
    with pytest.raises(InputError, match=message):
        Pipeline(load_config(TINY, [f"--config.{setting}"]), tmp_path).check_lengths()
