"""A model as a user names it; models of runs are in tests/e2e/test_references.py."""

import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.records import plain, write_record
from selftrain_jax.core.settings import build
from selftrain_jax.models import hf
from selftrain_jax.run.export import convert, export
from selftrain_jax.run.pipeline import Pipeline, save_config
from selftrain_jax.run.references import find_model, open_run
from selftrain_jax.run.settings import RunConfig
from tests.models.checkpoints import old_tensors, write_checkpoint, write_tokenizer


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_what_decides_the_ids_that_are_read_and_where_writing_stops_is_part_of_a_model(tmp_path, name):
    """Results of tasks are kept by this fingerprint: of another BOS, or another end, they would be shown as those."""
    model = write_tokenizer(write_checkpoint(tmp_path / "model", old_tensors()))
    before = find_model(str(model)).fingerprint
    text = (model / name).read_text() if (model / name).is_file() else "{}"
    assert find_model(str(model)).fingerprint == before
    (model / name).write_text(text + " ")
    assert find_model(str(model)).fingerprint != before


@pytest.mark.parametrize("read", ["load", "convert"])
def test_a_model_that_is_saved_anew_while_it_is_read_is_refused(tmp_path, monkeypatch, read):
    """What is kept, or noted, of the one would be of the other."""
    model = write_tokenizer(write_checkpoint(tmp_path / "model", old_tensors()))
    found, load = find_model(str(model)), hf.load_pretrained
    assert found.load(None)

    def saved_then(*arguments, **settings):
        params = load(*arguments, **settings)
        write_checkpoint(model, {name: np.asarray(tensor + 1) for name, tensor in old_tensors().items()})
        return params

    monkeypatch.setattr(hf, "load_pretrained", saved_then)
    with pytest.raises(InputError, match="model .*model changed while it was read"):
        found.load(None) if read == "load" else convert(str(model), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_where_a_run_is_asked_for_a_study_is_named_as_what_it_is(tmp_path):
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(InputError, match="is the folder of a study: name one of its runs, a folder in .*/runs"):
        open_run(tmp_path)


def test_the_student_of_a_run_that_changed_since_does_not_pass_for_its_base(tmp_path):
    """As where the hub's main branch moved on: figures of the run are of what it was."""
    model = write_tokenizer(write_checkpoint(tmp_path / "model", old_tensors()))
    run = Pipeline(build(RunConfig, {"source": str(model), "evaluate": {"probes": ""}}), tmp_path / "run")
    save_config(run.home, run.config)
    [base] = [stage for stage in run.stages() if stage.name == "evaluate/base"]
    inputs = {**base.externals(), **base.models(), **base.machine()}
    (run.home / base.name).mkdir(parents=True)
    asked = {"settings": plain(base.settings), "inputs": inputs}
    write_record(run.home / base.name / "manifest.json", asked, fingerprint="f", files={})
    find_model(f"{run.home}:base").load(None)
    write_checkpoint(model, {name: np.asarray(tensor + 1) for name, tensor in old_tensors().items()})
    with pytest.raises(InputError, match=r"student \(.*model\) has changed since evaluate/base was done"):
        find_model(f"{run.home}:base")
    with pytest.raises(InputError, match=r"student \(.*model\) has changed since evaluate/base was done"):
        export(run.home, tmp_path / "out", model="base")
    assert not (tmp_path / "out").exists()
