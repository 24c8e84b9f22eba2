"""Programs that the TPU compiler makes for chips that are not there. What needs it runs in processes of its own: libtpu
changes the environment of the one that loads it."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import pytest

from selftrain_jax.cli import compiled
from selftrain_jax.cli import main as cli
from selftrain_jax.cli.compiled import Program, topology_name
from selftrain_jax.core.accelerators import ACCELERATORS, Accelerator
from selftrain_jax.core.hlo import Traffic

ROOT = pathlib.Path(__file__).parents[2]
TINY = ROOT / "tests" / "e2e" / "tiny.py"
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs libtpu: pip install 'selftrain_jax[tpu]'"
)


def test_chips_lie_as_they_are_sold():
    names = {(name, n): topology_name(name, n)[0] for name in ("v5e", "v5p") for n in (1, 4, 8, 16, 64, 128)}
    assert names == {
        **{("v5e", n): name for n, name in zip((1, 4, 8, 16, 64, 128), "1x1 2x2 2x4 4x4 8x8 8x16".split())},
        **{("v5p", n): name for n, name in zip((1, 4, 8, 16, 64, 128), "1x1x1 2x2x1 2x2x2 2x2x4 4x4x4 4x4x8".split())},
    }
    assert topology_name("v6e", 256) == ("16x16", (2, 2, 1)) and topology_name("v5e", 2) == ("1x2", (1, 2, 1))


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--devices=4", "--compile needs --accelerator, one of v4, v5e, v5p, v6e, not none"),
        ("--accelerator=H100", "--compile needs --accelerator, one of v4, v5e, v5p, v6e, not H100"),
        ("--accelerator=v5e --devices=12", "--devices=12 must be a power of two up to 256"),
        ("--accelerator=v5e --devices=512", "--devices=512 must be a power of two up to 256"),
    ],
)
def test_what_cannot_be_compiled_is_refused(arguments, message, capsys):
    assert cli.main(["plan", f"--config={TINY}", "--compile", *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_without_the_compiler_the_way_to_it_is_told(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert cli.main(["plan", f"--config={TINY}", "--compile", "--accelerator=v5e", "--devices=4"]) == 2
    err = capsys.readouterr().err
    assert "pip install 'selftrain_jax[tpu]'" in err and "without --compile, plan gives an estimate" in err


def test_the_slowest_of_three_bounds_the_speed():
    chip = Accelerator("TPU test", 100.0, 1, bandwidth=50.0, interconnect=10.0)
    program = Program(100, 20, 100, 90, {"all-gather": Traffic(3, 40.0)})
    assert program.total == 130
    *_, line = compiled._roofline(program, chip, flops=200.0, moved=150.0, tokens=80)
    assert line == "  roofline: compute 2 s, memory 3 s, interconnect 4 s: at most 20 tokens/s over all devices"


def test_the_largest_lies_on_the_line_and_what_does_not_compile_does_not_fit():
    def program(rows):
        if rows > 16:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm")
        return Program(100 + 10 * rows, 5 * rows, 0, 0, {})

    both = compiled._two(program, (4, 16))
    assert sorted(both) == [4, 16]
    assert compiled._largest(both, 4, 1000.0, "wave: {} documents")[-1].startswith("  largest wave: 60 documents")
    flat = {rows: Program(100, 0, 0, 0, {}) for rows in (4, 16)}
    (line,) = compiled._largest(flat, 4, 1000.0, "wave: {} documents")
    assert line == "  largest wave: not known, since 4 rows take as much memory as 16"
    one = compiled._two(program, (8, 32))
    assert compiled._largest(one, 4, 1000.0, "{}") == ["  largest 8 (the next size compiled does not fit)"]
    assert compiled._largest(one, 4, 100.0, "{}") == ["  largest 0 (the next size compiled does not fit)"]
    assert compiled._two(program, (32, 64)) == {}
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compiled._two(lambda rows: (_ for _ in ()).throw(jax.errors.JaxRuntimeError("INTERNAL")), (1, 2))


PROGRAMS = """
import dataclasses, json, sys
import jax, jax.numpy as jnp
from selftrain_jax.cli import compiled, programs
from selftrain_jax.distributed.mesh import batch_sharding, make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.evaluation.score import score_batch
from selftrain_jax.models.decoder import Decoder, param_shapes, param_shardings
from selftrain_jax.training.settings import TrainConfig
from tests.shapes import SMALL

config = dataclasses.replace(
    SMALL, vocab_size=512, hidden_size=2 * int(sys.argv[1]), num_heads=2, num_layers=2, max_position=256
)
devices = compiled.find_devices(sys.argv[2], 4)
mesh = make_mesh(MeshConfig(1, 2, 2), devices)
train = TrainConfig(sequence_length=128, dtype="bfloat16", document_boundaries=True)
step = programs.compile_step(config, train, mesh, 2, "auto")
model, rows = Decoder(config, dtype=jnp.bfloat16), batch_sharding(mesh)
params = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), param_shapes(config), param_shardings(config, mesh)
)
tokens, at, targets = (jax.ShapeDtypeStruct((4, n), jnp.int32, sharding=rows) for n in (128, 64, 64))
with jax.set_mesh(mesh):
    score = score_batch.lower(model, params, tokens, at, targets, ways=2).compile().as_text()
found = compiled.Program.of(step, 4)
print(json.dumps({
    "kind": devices[0].device_kind,
    "splash": ["splash" in step.as_text(), "splash" in score],
    "total": found.total,
    "kinds": sorted(found.traffic),
}))
"""


@pytest.mark.large
@needs_libtpu
@pytest.mark.parametrize("accelerator, head_dim", [("v5e", 64), ("v6e", 80), ("v5p", 128), ("v4", 256)], ids=str)
def test_step_and_scorer_compile_for_chips_that_are_not_there(accelerator, head_dim):
    """With packed documents and heads of every size, rows and heads spread."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAMS, str(head_dim), accelerator],
        capture_output=True,
        text=True,
        env=environment | {"XLA_FLAGS": ""},
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    assert found["kind"].startswith(ACCELERATORS[accelerator].kind) and found["splash"] == [True, True]
    assert found["total"] > 0 and "all-reduce" in found["kinds"]


@pytest.mark.large
@needs_libtpu
def test_the_command_prints_what_is_compiled():
    command = [sys.executable, "-m", "selftrain_jax", "plan", f"--config={TINY}", "--accelerator=v5e", "--devices=4"]
    environment = os.environ | {"XLA_FLAGS": ""}
    done = subprocess.run([*command, "--compile"], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for text in (
        "for 4 x v5e (2x2)",
        "largest slice: ",
        "largest wave: ",
        "all-gather",
        "roofline: compute",
        "assumed",
    ):
        assert text in done.stdout
