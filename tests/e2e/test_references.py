"""A model of a finished run is named RUN:MODEL."""

import jax
import numpy as np

from selftrain_jax.models import hf
from selftrain_jax.run.references import find_model
from selftrain_jax.training.checkpoint import saved_steps
from tests.models.checkpoints import refuses


def test_models_of_a_run_are_found_by_name(finished, selftrain):
    workdir, _ = finished
    found = {name: find_model(f"{workdir}:{name}") for name in ("base", "self-0", "real-0")}
    assert len({model.fingerprint for model in found.values()}) == 3
    leaves = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(found["self-0"].load(None))}
    expected = selftrain.params(workdir, "self-0")
    assert leaves.keys() == expected.keys() and all(np.array_equal(leaves[name], expected[name]) for name in leaves)
    student = workdir / "lab" / "base" / "model"
    assert found["base"].fingerprint == find_model(str(student)).fingerprint
    assert found["self-0"].tokenizer == student and found["self-0"].config == hf.load_config(student)


def test_what_names_no_finished_model_is_refused(copy_of, finished, tmp_path):
    workdir, _ = finished
    refuses(lambda: find_model(str(workdir)), "folder of a run", f"{workdir}:self-0")
    refuses(lambda: find_model(f"{workdir}:nope"), "no model 'nope'", "self-0")
    refuses(lambda: find_model(f"{workdir}:self-0", "step1"), "revision='step1'", "drop it")
    refuses(lambda: find_model(f"{tmp_path}:self-0"), "is not the folder of a run")
    unfinished = copy_of("lab")
    (unfinished / "config.json").write_text((workdir / "config.json").read_text())
    refuses(lambda: find_model(f"{unfinished}:self-0"), "stage train/self-0 is not done")


def test_a_checkpoint_of_a_model_is_named_by_its_step(finished):
    workdir, _ = finished
    (first, last) = saved_steps(workdir / "train" / "self-0" / "checkpoints")
    models = {name: find_model(f"{workdir}:{name}") for name in ("self-0", f"self-0@{first}", f"self-0@{last}")}
    assert len({model.fingerprint for model in models.values()}) == 3
    heads = [np.asarray(model.load(None)["embed"]["embedding"]) for model in models.values()]
    assert np.array_equal(heads[0], heads[2]) and not np.array_equal(heads[0], heads[1])
    refuses(lambda: find_model(f"{workdir}:self-0@7777"), f"checkpoints of steps {first}, {last}", "train.keep")
    refuses(lambda: find_model(f"{workdir}:base@1"), "base has checkpoints of steps none")
