"""Programs that the TPU compiler makes for chips that are not there. What needs it runs in processes of its own: libtpu
changes the environment of the one that loads it."""

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import jax
import pytest

from selftrain_jax.cli import compiled
from selftrain_jax.cli import main as cli
from selftrain_jax.cli.compiled import Program, topology_name
from selftrain_jax.core.accelerators import ACCELERATORS, Accelerator
from selftrain_jax.core.hlo import Traffic
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.sampling.settings import SamplingConfig
from selftrain_jax.training.settings import TrainConfig
from tests.shapes import SMALL

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
        ("--accelerator=v5e --devices=16 --tpu-slices=3", "--tpu-slices=3 must divide --devices=16"),
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


def test_the_slowest_bounds_the_speed():
    chip = Accelerator("TPU test", 100.0, 1, bandwidth=50.0, interconnect=10.0, network=4.0)
    program = Program(100, 20, 100, 90, {"all-gather": Traffic(3, 40.0)})
    assert program.total == 130
    found = compiled._used(program, chip, flops=200.0, moved=150.0, tokens=80)
    assert found["seconds"] == {"compute": 2, "memory": 3, "interconnect": 4} and found["tokens_per_second"] == 20
    apart = dataclasses.replace(program, traffic=program.traffic | {"all-reduce between slices": Traffic(1, 20.0)})
    found = compiled._used(apart, chip, flops=200.0, moved=150.0, tokens=80)
    assert found["seconds"]["network"] == 5 and found["seconds"]["interconnect"] == 4
    largest = {"per_row": None, "budget": 3 * 2**30, "largest": 32, "compiled": 2**31, "ways": 4}
    text = compiled._lines(found | largest, "slice: {} rows")
    assert text[-1].endswith("interconnect 4 s, network 5 s: at most 16 tokens/s over all devices")
    assert "  largest slice: 32 rows (compiled: 2.0 GiB in 3.0 GiB)" in text


@pytest.mark.parametrize("what, sizes", [("step", [8]), ("train", [8, 32])])
def test_a_step_alone_is_compiled_once_and_else_up_to_the_memory(what, sizes, monkeypatch):
    compiled_sizes = []

    def program(*arguments):
        compiled_sizes.append(arguments[3])
        return Program(0, 27 * 2**30 * arguments[3] // 30, 0, 0, {})

    monkeypatch.setattr(compiled, "compile_step", program)
    monkeypatch.setattr(Program, "of", lambda compiled, *_: compiled)
    monkeypatch.setattr(importlib.metadata, "version", str)
    mesh = make_mesh(MeshConfig(1, 2, 1), jax.devices()[:2])
    found = compiled.measure(SMALL, TrainConfig(), SamplingConfig(), mesh, "bfloat16", "v6e", what)
    assert compiled_sizes == sizes and "sampling" not in found and ("largest" in found["training"]) == (what == "train")
    assert ("largest slice" in compiled.report(found)) == (what == "train")


@pytest.mark.parametrize(
    ("total", "most"),
    [
        (lambda rows: 100 + 15 * rows, 60),  # a straight line
        (lambda rows: max(400 + rows, 20 * rows), 48),  # another part of the step takes most where rows are few
        (lambda rows: 100 + 15 * min(rows, 20) + 8 * max(rows - 20, 0), 92),  # the compiler takes less where it must
        (lambda rows: 500, 8**3 * 32),  # no more for more rows: it ends
        (lambda rows: 990 * rows, 0),
    ],
)
def test_the_largest_slice_was_compiled_and_fits(total, most):
    compiled_sizes = []

    def program(rows):
        compiled_sizes.append(rows)
        return Program(90, total(rows) - 90, 0, 0, {})

    found = compiled._largest(program, 16, program(16), 4, 1000.0)
    assert found["largest"] in (0, *compiled_sizes) and len(compiled_sizes) <= 1 + compiled._TRIES
    assert found["largest"] <= most and (not most or total(found["largest"]) > 900 or found["largest"] == most)
    assert found["compiled"] == (total(found["largest"]) if most else None)


def test_what_does_not_compile_does_not_fit():
    def program(rows):
        if rows > 17:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm")
        return Program(100 + 10 * rows, 5 * rows, 0, 0, {})

    rows, one = compiled._first(program, (32, 8), 1000.0)
    assert rows == 8 and compiled._largest(program, 8, one, 8, 1000.0)["largest"] == 16
    assert compiled._largest(program, 8, one, 8, 100.0)["largest"] == 0
    assert compiled._first(program, (16, 8), 300.0)[0] == 8  # what compiles may still be more than there is
    assert compiled._first(program, (32, 64), 1000.0) is None
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compiled._program(lambda rows: (_ for _ in ()).throw(jax.errors.JaxRuntimeError("INTERNAL")), 1)


def compiled_for_tpus(program: str, *arguments: str) -> Any:
    """What a program prints as JSON in its last line."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "XLA_FLAGS": ""}
    command = [sys.executable, "-c", HEAD + program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    print(found)
    return found


HEAD = """
import dataclasses, json, sys
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from selftrain_jax.cli import compiled, plan, programs
from selftrain_jax.distributed.mesh import batch_sharding, make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.evaluation.score import score_batch
from selftrain_jax.models import ops
from selftrain_jax.models.decoder import Decoder, param_shapes, param_shardings
from selftrain_jax.models.families import PRESETS
from selftrain_jax.sampling import memory
from selftrain_jax.sampling.settings import SamplingConfig
from selftrain_jax.training.settings import TrainConfig
from tests.shapes import SMALL

def small(head_dim):
    return dataclasses.replace(
        SMALL, vocab_size=512, hidden_size=2 * head_dim, num_heads=2, num_layers=2, max_position=256
    )
"""

PROGRAMS = """
config = small(int(sys.argv[1]))
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
weights, sampling = programs.sampling_weights(config, mesh, "bfloat16"), SamplingConfig(max_new_tokens=256)
bucket = memory.compile_wave(weights, model, sampling, 64, mesh=mesh)[0]
found = compiled.Program.of(step, 4, 1)
print(json.dumps({
    "kind": devices[0].device_kind,
    "splash": ["splash" in step.as_text(), "splash" in score],
    "total": found.total,
    "kinds": sorted(found.traffic),
    "cache": 32 * plan.cache_bytes(config, sampling, mesh, "bfloat16"),
    "bucket": [bucket.memory_analysis().argument_size_in_bytes, bucket.memory_analysis().temp_size_in_bytes],
    "weights": memory.device_bytes(weights),
}))
"""


@pytest.mark.large
@needs_libtpu
@pytest.mark.parametrize(
    "accelerator, head_dim",
    [
        ("v5e", 64),
        ("v6e", 80),
        # With a tensor axis, as here, v5p's compiler writes into a second cache, and without one it does not.
        pytest.param("v5p", 128, marks=pytest.mark.xfail(strict=True, reason="benchmarks/RESULTS.md, TPU programs")),
        ("v4", 256),
    ],
    ids=str,
)
def test_step_scorer_and_bucket_compile_for_chips_that_are_not_there(accelerator, head_dim):
    """With packed documents and heads of several sizes, rows and heads spread. The bucket holds its cache once, and
    none of it padded to lanes of 128: what it works on beside is less than another one (of two layers, one is)."""
    found = compiled_for_tpus(PROGRAMS, str(head_dim), accelerator)
    assert found["kind"].startswith(ACCELERATORS[accelerator].kind) and found["splash"] == [True, True]
    assert found["total"] > 0 and "all-reduce" in found["kinds"]
    arguments, temporaries = found["bucket"]
    assert arguments == pytest.approx(found["weights"] + found["cache"], rel=0.05)
    assert temporaries < 0.9 * found["cache"]


SLICES = """
config, devices = small(64), compiled.find_devices("v5e", 8, 2)
mesh = make_mesh(MeshConfig(2, 4, 1), devices)
found = {"slices": [[device.slice_index for device in row.flat] for row in mesh.devices]}
step = programs.compile_step(config, TrainConfig(sequence_length=128, dtype="bfloat16"), mesh, 8, "auto")
program = compiled.Program.of(step, 8, 2)
print(json.dumps(found | {"between": program.between, "within": program.received, "params": config.num_params}))
"""


@pytest.mark.large
@needs_libtpu
def test_slices_send_each_other_gradients_alone():
    """Each chip exchanges the fourth of them that it keeps: what fp32 takes, and in bfloat16 half of it."""
    found = compiled_for_tpus(SLICES)
    assert found["slices"] == [[0] * 4, [1] * 4]
    assert found["params"] * 2 / 4 < found["between"] <= found["params"] * 4 / 4 < found["within"]


KERNELS = """
mesh = make_mesh(MeshConfig(1, 2, 2), compiled.find_devices("v5e", 4))
kinds = {
    (c.head_dim, c.num_heads // c.num_kv_heads, c.attention_softcap, layer.window is not None)
    for c in PRESETS.values() for layer in c.pattern
}
heads = NamedSharding(mesh, PartitionSpec(("data", "fsdp"), None, "tensor"))
ids = jax.ShapeDtypeStruct((2, 256), jnp.int32, sharding=batch_sharding(mesh))
for head_dim, group, cap, windowed in kinds:
    def loss(q, k, v, ids):
        out = ops.causal_attention(q, k, v, ids, "splash", window=100 if windowed else None, cap=cap)
        return jnp.sum(out.astype(jnp.float32))
    q, k = (jax.ShapeDtypeStruct((2, 256, n, head_dim), jnp.bfloat16, sharding=heads) for n in (2 * group, 2))
    with jax.set_mesh(mesh):
        jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, k, ids).compile()
print(json.dumps(sorted({kind[0] for kind in kinds})))
"""


@pytest.mark.large
@needs_libtpu
def test_the_kernel_compiles_forth_and_back_for_the_heads_of_every_family():
    """With packed documents; with the windows, soft-caps and groups of heads that go with a head size."""
    assert compiled_for_tpus(KERNELS) == [32, 64, 80, 128, 256]


@pytest.mark.large
@needs_libtpu
def test_the_estimate_without_the_compiler_is_near_and_on_the_safe_side():
    """The wave within 10 %. The slice is what a CPU could hold with XLA's attention: at most as large."""
    config = f"--config={ROOT / 'configs/family.py'}:EleutherAI/pythia-70m"
    command = [sys.executable, "-m", "selftrain_jax", "plan", config, "--accelerator=v5e", "--devices=4"]
    command += ["--mesh=fsdp=4", "--config.train.grad_accum=1"]

    def run(*options):
        environment = os.environ | {"XLA_FLAGS": ""}
        done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout

    found, estimate = json.loads(run("--compile", "--json")), run()
    wave = int(re.search(r"largest sampling wave .*?: (\d+) documents", estimate)[1])
    rows = int(re.search(r"largest training slice .*?: (\d+) rows", estimate)[1])
    print(wave, found["sampling"]["largest"], rows, found["training"]["largest"])
    assert wave == pytest.approx(found["sampling"]["largest"], rel=0.1)
    assert rows <= found["training"]["largest"]


@pytest.mark.large
@needs_libtpu
def test_the_command_prints_what_is_compiled():
    command = [sys.executable, "-m", "selftrain_jax", "plan", f"--config={TINY}", "--accelerator=v5e", "--devices=4"]
    environment = os.environ | {"XLA_FLAGS": ""}

    def run(*options):
        done = subprocess.run([*command, *options], capture_output=True, text=True, env=environment, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        return done.stdout

    printed, found = run("--compile"), json.loads(run("--compile", "--json"))
    for text in (
        "for 4 x v5e (2x2)",
        f"largest slice: {found['training']['largest']} rows of",
        f"largest wave: {found['sampling']['largest']} documents",
        f"{found['training']['arguments'] / 2**30:9.3f} GiB",
        "all-reduce",  # of the mesh data=4
        "roofline: compute",
        "assumed",
    ):
        assert text in printed
    assert found["topology"] == "2x2" and found["training"]["seconds"].keys() == {"compute", "memory", "interconnect"}
