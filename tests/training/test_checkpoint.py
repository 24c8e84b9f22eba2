"""What is saved comes back bit for bit, on whatever devices, and old checkpoints go only when newer ones are whole."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax import parallel
from selftrain_jax.errors import InputError
from selftrain_jax.models import gpt_neox
from selftrain_jax.models.config import ModelConfig
from selftrain_jax.parallel import MeshConfig
from selftrain_jax.training.checkpoint import Checkpoints, restore_params
from selftrain_jax.training.optimizer import OptimizerConfig, make_optimizer
from selftrain_jax.training.step import TrainState, state_shardings

CONFIG = ModelConfig(
    vocab_size=64, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_position=32, rotary_pct=0.5
)
OPTIMIZER = make_optimizer(OptimizerConfig(), 10)
ONE, EIGHT, FSDP = (1, 1, 1), (2, 2, 2), (1, 8, 1)


def make_mesh(sizes):
    return parallel.make_mesh(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])


def state_at(step, sizes=ONE):
    """A state in which no two numbers are alike and none is zero, spread over a mesh."""
    shapes = jax.eval_shape(lambda p: TrainState.create(p, OPTIMIZER), gpt_neox.param_shapes(CONFIG))
    rng = np.random.default_rng(step)
    state = jax.tree.map(lambda x: rng.uniform(1, 100, x.shape).astype(x.dtype), shapes)
    placement = state_shardings(shapes, make_mesh(sizes), gpt_neox.param_axes(CONFIG))
    return jax.device_put(state.replace(step=np.int32(step)), placement)


def abstract(state):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def save(directory, *states, keep=2):
    checkpoints = Checkpoints(directory, keep)
    for state in states:
        checkpoints.save(state)
    checkpoints.close()


def restore(directory, like):
    checkpoints = Checkpoints(directory)
    try:
        return checkpoints.restore(abstract(like))
    finally:
        checkpoints.close()


def assert_same_bits(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    jax.tree.map(np.testing.assert_array_equal, left, right)


@pytest.mark.parametrize("written, read", [(ONE, ONE), (ONE, EIGHT), (EIGHT, ONE), (EIGHT, FSDP)])
def test_states_move_between_meshes(tmp_path, written, read):
    """Parameters, both moments and all counters come back, and lie where the reader wants them."""
    saved, like = state_at(7, written), state_at(0, read)
    save(tmp_path / "checkpoints", saved)
    found = restore(tmp_path / "checkpoints", like)
    assert_same_bits(found, saved)
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, like)
    params = restore_params(tmp_path / "checkpoints", CONFIG, make_mesh(read))
    assert_same_bits(params, saved.params)
    assert jax.tree.map(lambda x: x.sharding, params) == jax.tree.map(lambda x: x.sharding, like.params)


def test_the_newest_checkpoints_are_kept(tmp_path):
    """Steps are numbers: 10 is newer than 9."""
    states = {step: state_at(step) for step in (8, 9, 10)}
    save(tmp_path, *states.values(), keep=2)
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.steps() == [9, 10]
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["10", "9"]
    assert restore(tmp_path, states[8]).step == 10
    mesh = make_mesh(ONE)
    assert_same_bits(restore_params(tmp_path, CONFIG, mesh, step=9), states[9].params)
    with pytest.raises(InputError, match="no checkpoint of step 8 in"):
        restore_params(tmp_path, CONFIG, mesh, step=8)


def test_all_checkpoints_can_be_kept(tmp_path):
    save(tmp_path, *(state_at(step) for step in (1, 2, 3)), keep=None)
    checkpoints = Checkpoints(tmp_path, None)
    assert checkpoints.steps() == [1, 2, 3]
    checkpoints.close()


def test_a_half_written_checkpoint_is_not_there(tmp_path):
    """Orbax writes under another name and renames at the end; what a kill leaves behind is passed over."""
    saved = state_at(3)
    save(tmp_path, saved)
    left = tmp_path / "9.orbax-checkpoint-tmp"
    left.mkdir()
    (left / "params").write_bytes(b"half")
    assert_same_bits(restore(tmp_path, saved), saved)
    assert_same_bits(restore_params(tmp_path, CONFIG, make_mesh(ONE)), saved.params)


def test_saving_copies_the_state(tmp_path):
    """The train step donates what was handed to `save`, while the save goes on in the background."""
    saved = state_at(1)
    expected = jax.tree.map(np.array, saved)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(saved)
    jax.jit(lambda s: jax.tree.map(jnp.zeros_like, s), donate_argnums=0)(saved)
    checkpoints.close()
    assert_same_bits(restore(tmp_path, state_at(0)), expected)


DAMAGE = {
    "cut data": lambda step: [path.write_bytes(b"") for path in step.glob("params/**/d/*")],
    "wrong data": lambda step: [path.write_bytes(path.read_bytes()[::-1]) for path in step.glob("params/**/d/*")],
    "metadata": lambda step: (step / "params" / "_METADATA").write_text("{"),
    "no text": lambda step: (step / "params" / "_METADATA").write_bytes(b"\xff\xfe"),
    "empty": lambda step: [shutil.rmtree(path) if path.is_dir() else path.unlink() for path in step.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, damage):
    saved = state_at(3)
    save(tmp_path, saved)
    damage(tmp_path / "3")
    for read in (lambda: restore_params(tmp_path, CONFIG), lambda: restore(tmp_path, saved)):
        with pytest.raises(InputError, match=f"checkpoint {tmp_path / '3'} cannot be read .* delete that folder") as e:
            read()
        assert "\n" not in str(e.value)


def test_missing_checkpoints_are_refused_with_the_way_out(tmp_path):
    mesh = make_mesh(ONE)
    with pytest.raises(InputError, match="not found: .*nowhere; train first"):
        restore_params(tmp_path / "nowhere", CONFIG, mesh)
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no checkpoint in .*empty; train first"):
        restore_params(tmp_path / "empty", CONFIG, mesh)
    assert restore(tmp_path / "empty", state_at(0)) is None
