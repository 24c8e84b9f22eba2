"""What is saved comes back bit for bit, on whatever devices, and old checkpoints go only when newer ones are whole."""

import itertools
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.models import decoder
from selftrain_jax.training import checkpoint
from selftrain_jax.training.checkpoint import CheckpointNotSaved, Checkpoints, restore_params
from selftrain_jax.training.optimizer import make_optimizer
from selftrain_jax.training.settings import OptimizerConfig
from selftrain_jax.training.step import TrainState, state_shardings
from tests.shapes import NARROW

CONFIG = NARROW
OPTIMIZER = make_optimizer(OptimizerConfig(), 10)
ONE, EIGHT, FSDP = (1, 1, 1), (2, 2, 2), (1, 8, 1)


def mesh_of(sizes):
    return make_mesh(MeshConfig(*sizes), jax.devices()[: np.prod(sizes)])


def state_at(step, sizes=ONE):
    """A state in which no two numbers are alike and none is zero, spread over a mesh."""
    shapes = jax.eval_shape(lambda p: TrainState.create(p, OPTIMIZER), decoder.param_shapes(CONFIG))
    rng = np.random.default_rng(step)
    state = jax.tree.map(lambda x: rng.uniform(1, 100, x.shape).astype(x.dtype), shapes)
    placement = state_shardings(shapes, mesh_of(sizes), decoder.param_axes(CONFIG))
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


@pytest.mark.everywhere
@pytest.mark.parametrize("written, read", [(ONE, ONE), (ONE, EIGHT), (EIGHT, ONE), (EIGHT, FSDP)])
def test_states_move_between_meshes(tmp_path, written, read):
    """Parameters, both moments and all counters come back, and lie where the reader wants them."""
    saved, like = state_at(7, written), state_at(0, read)
    save(tmp_path / "checkpoints", saved)
    found = restore(tmp_path / "checkpoints", like)
    assert_same_bits(found, saved)
    assert jax.tree.map(lambda x: x.sharding, found) == jax.tree.map(lambda x: x.sharding, like)
    params = restore_params(tmp_path / "checkpoints", CONFIG, mesh_of(read))
    assert_same_bits(params, saved.params)
    assert jax.tree.map(lambda x: x.sharding, params) == jax.tree.map(lambda x: x.sharding, like.params)


@pytest.mark.everywhere
def test_the_newest_checkpoints_are_kept(tmp_path):
    """Steps are numbers: 10 is newer than 9."""
    states = {step: state_at(step) for step in (8, 9, 10)}
    save(tmp_path, *states.values(), keep=2)
    checkpoints = Checkpoints(tmp_path, 2)
    assert checkpoints.steps() == [9, 10]
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["10", "9"]
    assert restore(tmp_path, states[8]).step == 10
    mesh = mesh_of(ONE)
    assert_same_bits(restore_params(tmp_path, CONFIG, mesh, step=9), states[9].params)
    with pytest.raises(InputError, match="no checkpoint of step 8 in"):
        restore_params(tmp_path, CONFIG, mesh, step=8)


@pytest.mark.everywhere
def test_all_checkpoints_can_be_kept(tmp_path):
    save(tmp_path, *(state_at(step) for step in (1, 2, 3)), keep=None)
    checkpoints = Checkpoints(tmp_path, None)
    assert checkpoints.steps() == [1, 2, 3]
    checkpoints.close()


@pytest.mark.everywhere
def test_a_half_written_checkpoint_is_not_there(tmp_path):
    """Orbax writes under another name and renames at the end; what a kill leaves behind is passed over."""
    saved = state_at(3)
    save(tmp_path, saved)
    left = tmp_path / "9.orbax-checkpoint-tmp"
    left.mkdir()
    (left / "params").write_bytes(b"half")
    assert_same_bits(restore(tmp_path, saved), saved)
    assert_same_bits(restore_params(tmp_path, CONFIG, mesh_of(ONE)), saved.params)


@pytest.mark.everywhere
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


@pytest.mark.everywhere
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_checkpoint_is_refused_in_one_line(tmp_path, damage):
    saved = state_at(3)
    save(tmp_path, saved)
    damage(tmp_path / "3")
    for read in (lambda: restore_params(tmp_path, CONFIG), lambda: restore(tmp_path, saved)):
        with pytest.raises(InputError, match=f"checkpoint {tmp_path / '3'} cannot be read .* delete that folder") as e:
            read()
        assert "\n" not in str(e.value)


@pytest.mark.everywhere
def test_missing_checkpoints_are_refused_with_the_way_out(tmp_path):
    mesh = mesh_of(ONE)
    with pytest.raises(InputError, match="not found: .*nowhere; train first"):
        restore_params(tmp_path / "nowhere", CONFIG, mesh)
    assert not (tmp_path / "nowhere").exists()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no checkpoint in .*empty; train first"):
        restore_params(tmp_path / "empty", CONFIG, mesh)
    assert restore(tmp_path / "empty", state_at(0)) is None


def flip(path, position=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * position)] ^= 1
    path.write_bytes(data)


def largest_file(directory):
    return max((p for p in directory.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("item", ["params", "training"])
@pytest.mark.parametrize(
    "damage",
    [flip, lambda path: os.truncate(path, path.stat().st_size // 2), lambda path: path.unlink()],
    ids=["bit", "cut", "gone"],
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, item, damage):
    states = [state_at(step) for step in (3, 5)]
    save(tmp_path / "checkpoints", *states)
    damage(largest_file(tmp_path / "checkpoints" / "5" / item))
    with pytest.warns(InputWarning, match="checkpoint .*/5 .*[Gg]oing on from step 3"):
        found = restore(tmp_path / "checkpoints", states[0])
    assert_same_bits(found, states[0])
    # It is kept for a look, and step 5 can be saved again, and damaged again. It is read as a copy: Orbax's storage may
    # remember, in one process, what it has read under a path.
    assert (tmp_path / "damaged-5").is_dir()
    save(tmp_path / "checkpoints", states[1])
    shutil.copytree(tmp_path / "checkpoints", tmp_path / "copy")
    assert_same_bits(restore(tmp_path / "copy", states[0]), states[1])
    damage(largest_file(tmp_path / "checkpoints" / "5" / item))
    with pytest.warns(InputWarning, match="Going on from step 3"):
        restore(tmp_path / "checkpoints", states[0])
    assert (tmp_path / "damaged-5-2").is_dir()


def test_when_all_checkpoints_are_damaged_nothing_starts_over_in_silence(tmp_path):
    states = [state_at(step) for step in (3, 5)]
    save(tmp_path, *states)
    for step in ("3", "5"):
        flip(largest_file(tmp_path / step / "params"))
    with pytest.raises(InputError, match="/5 .*damaged"):
        restore(tmp_path, states[0])
    assert (tmp_path / "3").is_dir() and (tmp_path / "5").is_dir()


def test_a_flipped_bit_in_saved_parameters_is_found(tmp_path):
    """Wherever it is: what cannot be read is refused, and what can is what was saved."""
    state = state_at(3)
    save(tmp_path / "c", state)
    file, refused = largest_file(tmp_path / "c" / "3" / "params"), 0
    whole = file.read_bytes()
    for mesh, position in itertools.product((None, mesh_of(FSDP)), np.linspace(0, 0.99, 8)):
        flip(file, position)
        try:
            assert_same_bits(restore_params(tmp_path / "c", CONFIG, mesh), state.params)
        except InputError as e:
            assert "/3 " in str(e) and "damaged" in str(e)
            refused += 1
        file.write_bytes(whole)
    assert refused > 4


def test_checksums_see_every_bit_and_every_place():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(5, 7, 3)).astype(np.float32)
    expected = checkpoint.checksums([x])
    for bit in range(32):
        y = x.copy()
        y.view(np.uint32).reshape(-1)[rng.integers(x.size)] ^= np.uint32(1) << np.uint32(bit)
        assert checkpoint.checksums([y]) != expected
    for axis in range(3):
        assert checkpoint.checksums([np.roll(x, 1, axis)]) != expected
    placed = jax.device_put(x[:4], jax.sharding.NamedSharding(mesh_of(EIGHT), jax.sharding.PartitionSpec("data")))
    assert checkpoint.checksums([placed]) == checkpoint.checksums([x[:4]])


def test_a_checkpoint_that_cannot_be_written_says_which_is_the_last_good_one(tmp_path):
    """In a process of its own, whose files may not grow beyond some kilobytes once the first checkpoint is there."""
    code = f"""
import resource, sys
sys.path[:0] = {[str(pathlib.Path(__file__).parents[2])]!r}
from tests.training.test_checkpoint import Checkpoints, state_at
from selftrain_jax.core.errors import RunStopped
checkpoints = Checkpoints({str(tmp_path / "c")!r}, 2)
checkpoints.save(state_at(3))
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    checkpoints.save(state_at(5))
    checkpoints.wait()
except RunStopped as e:
    print(e)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    message = done.stdout.strip()
    assert "could not be saved" in message and "File too large" in message, done.stderr[-2000:]
    assert "last good checkpoint: step 3" in message
    assert_same_bits(restore(tmp_path / "c", state_at(0)), state_at(3))


@pytest.mark.parametrize("names", [["wait_until_finished", "close"], ["close"]], ids=len)
def test_a_save_that_fails_is_one_line_also_when_orbax_says_it_while_closing(tmp_path, monkeypatch, names):
    def full(*_):
        raise ValueError("RESOURCE_EXHAUSTED: Failed writing: No space left on device")

    with pytest.raises(CheckpointNotSaved, match="No space left on device.*Make room"):
        with Checkpoints(tmp_path / "checkpoints") as checkpoints:
            for name in names:
                monkeypatch.setattr(checkpoints._manager, name, full)


@pytest.mark.parametrize("name", ["a[b]", "a*", "a?", "a\\b"])
def test_a_folder_whose_path_is_a_pattern_is_refused(tmp_path, name):
    """Orbax looks for what it wrote by a pattern, finds nothing below such a folder, and leaves the arrays out."""
    with pytest.raises(InputError, match="so that arrays cannot be stored below it: rename it"):
        Checkpoints(tmp_path / name)
    assert not (tmp_path / name).exists()
