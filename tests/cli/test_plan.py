"""What is planned without devices is what the compiler says of the real step."""

import dataclasses
import pathlib
import re

import jax
import pytest

from selftrain_jax.cli import hours, plan
from selftrain_jax.cli import main as cli
from selftrain_jax.cli.config import load_config
from selftrain_jax.core import accelerators
from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import build
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.models.config import DecoderConfig, Layer
from selftrain_jax.models.families import PRESETS, preset
from selftrain_jax.run.settings import RunConfig
from selftrain_jax.sampling import memory
from selftrain_jax.sampling.settings import SamplingConfig
from selftrain_jax.training.log import peak_flops
from selftrain_jax.training.settings import TrainConfig

TINY = pathlib.Path(__file__).parents[1] / "e2e" / "tiny.py"
SAMPLING = SamplingConfig(min_new_tokens=0, max_new_tokens=32)


def shape(hidden, layers, heads=4, vocab=512):
    return DecoderConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_layers=layers,
        num_heads=heads,
        intermediate_size=4 * hidden,
        max_position=256,
    )


BIG_VOCABULARY = dataclasses.replace(
    shape(32, 3, vocab=262_144), kv_heads=1, fused_qkv=False, tie_embeddings=True, pattern=(Layer(window=16), Layer())
)
CASES = {
    "small": (shape(64, 2), (1, 1, 1), TrainConfig(sequence_length=64, dtype="float32", remat=False)),
    "fsdp-tensor": (shape(128, 3), (1, 2, 2), TrainConfig(sequence_length=128, dtype="float32", remat=True)),
    "big vocabulary": (BIG_VOCABULARY, (1, 1, 2), TrainConfig(sequence_length=64, dtype="float32", remat=True)),
    "slices": (shape(96, 2, vocab=1000), (2, 2, 1), TrainConfig(sequence_length=64, dtype="float32", grad_accum=2)),
}


@pytest.mark.parametrize("name", ["small", *(pytest.param(n, marks=pytest.mark.large) for n in CASES if n != "small")])
def test_the_plan_agrees_with_the_compiled_step(name):
    """Within 10 % at sizes that the plan did not look at; the state exactly, up to the batch and two counters."""
    config, sizes, train = CASES[name]
    mesh = make_mesh(MeshConfig(*sizes), jax.devices()[: sizes[0] * sizes[1] * sizes[2]])
    found = plan.make_plan(config, train, SAMPLING, mesh, "float32")
    for rows in (found.ways, 12 * found.ways):
        wanted = plan.train_temporaries(config, train, mesh, rows) + found.params + found.optimizer
        assert found.train_state + found.activations(rows) == pytest.approx(wanted, rel=0.1)
    state = plan.train_state(config, train, mesh)
    used = jax.jit(lambda state: jax.tree.map(lambda x: x + 1, state)).lower(state).compile().memory_analysis()
    assert used.argument_size_in_bytes == pytest.approx(found.params + found.optimizer, abs=64)
    weights = plan.sampling_weights(config, mesh, "float32")
    model = plan.Decoder(config)
    wanted = memory.wave_bytes(weights, model, SAMPLING, 40 * found.ways, mesh=mesh)
    assert found.wave(40 * found.ways) == pytest.approx(wanted, rel=0.1)
    assert found.cache < found.wave.per_row * found.ways < found.cache + 10 * 4 * config.vocab_size


def test_a_wave_in_bfloat16_takes_its_cache_and_not_a_cpus_copies_of_the_weights():
    """A CPU converts bfloat16 weights to fp32: twice their bytes, which no accelerator needs."""
    config, _, train = CASES["small"]
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    found = plan.make_plan(dataclasses.replace(config, vocab_size=8192), train, SAMPLING, mesh, "bfloat16")
    assert found.wave.at_zero < found.weights
    assert found.cache < found.wave.per_row < found.cache + 4 * 4 * 8192


@pytest.mark.large
def test_what_fits_grows_with_the_memory_and_the_devices():
    config, _, train = CASES["fsdp-tensor"]
    one, four = (
        plan.make_plan(config, train, SAMPLING, make_mesh(MeshConfig(1, n, 1), jax.devices()[:n]), "float32")
        for n in (1, 4)
    )
    assert four.params == pytest.approx(one.params / 4, rel=0.02) and four.weights == one.weights
    devices = [accelerators.ACCELERATORS[name] for name in ("v5e", "A100-40", "A100-80", "H200")]
    for largest in ("largest_slice", "largest_wave"):
        rows = [getattr(one, largest)(device) for device in devices]
        assert rows == sorted(rows) and len(set(rows)) == 4
        assert getattr(four, largest)(devices[0]) > 3 * rows[0] and getattr(four, largest)(devices[0]) % 4 == 0
    line = plan.Line(100.0, 10.0)
    assert [line.largest(budget, 4) for budget in (90, 139, 140, 185)] == [0, 0, 4, 8]


def test_lines_go_through_what_was_compiled_and_on():
    lines = plan.Lines({16: 260.0, 2: 100.0, 8: 120.0})
    assert [lines(rows) for rows in (2, 5, 8, 12, 16, 18)] == [100, 110, 120, 190, 260, 295]
    assert [lines.largest(budget, 2) for budget in (99, 100, 119, 155, 260, 300, 365)] == [0, 2, 6, 10, 16, 18, 22]


def test_a_kernel_for_attention_takes_less_than_scores():
    """On devices that have one, for what it can do; "xla", packed documents or a CPU has the scores."""
    config, train = shape(64, 2), TrainConfig(sequence_length=512, remat=False)
    mesh = make_mesh(MeshConfig(1, 2, 2), jax.devices()[:4])
    packed = dataclasses.replace(train, document_boundaries=True)

    def row(train, device):
        device = accelerators.ACCELERATORS.get(device)
        return plan.make_plan(config, train, SAMPLING, mesh, "bfloat16", device).activations.last.per_row

    scores = row(train, None)
    assert row(train, "H100") < scores / 2 and row(packed, "v5e") < scores / 2
    assert row(packed, "H100") > scores and row(dataclasses.replace(train, attention="xla"), "v5e") == scores


# Bytes of the fp32 weights, and of a row's keys and values at 1,024 tokens in bf16: 2 x layers x 1,024 x heads x size
# of a head x 2; both by hand from the published numbers of parameters and config.json.
PUBLISHED = {
    "qwen2.5-0.5b": (4 * 494_032_768, 2 * 24 * 1024 * 2 * 64 * 2),
    "llama-3.2-1b": (4 * 1_235_814_400, 2 * 16 * 1024 * 8 * 64 * 2),
    "gemma-3-270m": (4 * 268_098_176, 2 * 18 * 1024 * 1 * 256 * 2),
    "gpt2": (4 * 124_439_808, 2 * 12 * 1024 * 12 * 64 * 2),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_of_published_models(name):
    config, (params, cache) = preset(name), PUBLISHED[name]
    sampling = SamplingConfig(max_new_tokens=1024)
    for tensor in (1, 4):
        mesh = make_mesh(MeshConfig(1, 1, tensor), jax.devices()[:tensor])
        split = 1 if config.num_kv_heads % tensor else tensor
        assert plan.cache_bytes(config, sampling, mesh, "bfloat16") == cache // split
        state = plan.train_state(config, TrainConfig(), mesh)
        found = memory.device_bytes(state.params)
        assert found == params if tensor == 1 else params / tensor < found < params
        assert memory.device_bytes(state.opt_state) == pytest.approx(2 * found, abs=64)


def test_flops_of_published_models():
    """6 per weight in a matrix product, and 12 per pair of tokens, head and dimension that attention compares."""
    assert preset("gpt2").train_flops_per_token(1024) == 6 * (124_439_808 - 1024 * 768) + 12 * 768 * 12 * 512
    near, far = 512 - 512 * 512 / (2 * 2048), 1024  # how many tokens a token sees on average
    attention = 12 * 4 * 256 * (15 * near + 3 * far)
    assert preset("gemma-3-270m").train_flops_per_token(2048) == 6 * 268_098_176 + attention


def test_heads_that_the_tensor_axis_does_not_divide_are_told():
    mesh = make_mesh(MeshConfig(1, 1, 4), jax.devices()[:4])
    assert plan.whole_heads(preset("llama-3.2-1b"), mesh) == []
    assert plan.whole_heads(preset("qwen2.5-0.5b"), mesh) == [
        "tensor=4 does not divide the 14 attention heads: every device holds all of them",
        "tensor=4 does not divide the 2 key and value heads: every device holds all of them",
    ]
    assert plan.whole_heads(preset("gemma-3-270m"), mesh) == [
        "tensor=4 does not divide the 1 key and value head: every device holds all of them"
    ]


def test_accelerators_go_by_name_and_kind():
    assert (
        accelerators.accelerator("H200").memory == 141 * 10**9 and accelerators.accelerator("v4").memory == 32 * 2**30
    )
    with pytest.raises(InputError, match="accelerator 'H300' is unknown; choose one of A100-40, .*v6e"):
        accelerators.accelerator("H300")
    kinds = {
        "NVIDIA H100 80GB HBM3": 989e12,
        "NVIDIA H100 PCIe": 756e12,
        "TPU v5 lite": 197e12,
        "TPU v5p": 459e12,
        "TPU v5e": 197e12,
        "TPU v6 lite": 918e12,
        "TPU v4": 275e12,
        "NVIDIA A100-SXM4-40GB": 312e12,
    }
    assert {kind: peak_flops(kind) for kind in kinds} == kinds
    assert peak_flops("cpu") is None


def test_the_command_prints_the_plan_of_a_config(capsys):
    arguments = ["plan", f"--config={TINY}", "--mesh=fsdp=2,tensor=2", "--accelerator=v5e", "--memory=24GiB"]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "per device, mesh data=1, fsdp=2, tensor=2:" in out and "4 x v5e, 24.000 GiB each" in out
    assert "hours on all of them together: sample " in out and "(train.batch_size / train.grad_accum)" in out
    assert err.count("selftrain: compiling a train step of ") == 3 and "compiling a decode step" in err
    for name in ("parameters", "gradients", "optimizer", "activations", "cache", "training slice", "sampling wave"):
        assert name in out


def test_the_plan_says_whether_the_config_fits_and_what_would():
    """A slice needs the state, 3 bytes here, and 1 for each row, within 92 % of the memory."""
    changes = ("train.batch_size=8", "train.grad_accum=0", "sample.batch_size=16")
    config = load_config(str(TINY), [f"--config.{change}" for change in changes])
    found = plan.Plan(1, 1, 1, plan.Lines({1: 1, 2: 2}), 1, 1, plan.Line(0, 1), 1)
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])

    def told(size):
        device = accelerators.Accelerator("", 0.0, 0, measured=size)
        return [line.strip() for line in plan.format_plan(found, mesh, config, device, "device").splitlines()[-2:]]

    assert told(24) == [
        "training as it is set: train.batch_size=8 in 1 slice of 8 rows fits",
        "sampling as it is set: sample.batch_size=16 fits",
    ]
    assert told(11) == [
        "training as it is set: train.batch_size=8 in 1 slice of 8 rows does NOT fit; train.grad_accum=2 would",
        "sampling as it is set: sample.batch_size=16 does NOT fit; 8 would, or auto",
    ]


def test_a_run_takes_the_hours_of_all_arms_and_subsets():
    config = load_config(str(TINY), [])
    model = plan.model_config(config)
    said = re.search(r"together: sample ([\d.e-]+), train ([\d.e-]+) ", hours.of_run(config, model, 197e12, 4))
    flops = model.train_flops_per_token(config.train.sequence_length)
    tokens = config.subset.num_tokens * config.train.epochs * 3  # self and two controls
    assert len(config.controls) == 2 and config.subset.num_subsets == 1
    assert float(said[2]) == pytest.approx(tokens * flops / 0.33 / 197e12 / 4 / 3600, rel=0.01)
    assert 0 < float(said[1])


def test_a_device_that_is_in_no_list_has_the_memory_that_is_named():
    assert accelerators.memory_bytes("24GiB") == 24 * 2**30 and accelerators.memory_bytes("80GB") == 80 * 10**9


@pytest.mark.parametrize("most, ways, words", [(8, 4, "fits"), (4, 4, "NOT fit; train.grad_accum=2 would")])
def test_slices_that_fit(most, ways, words):
    assert words in plan._training_fits(TrainConfig(batch_size=8), most, ways)
    assert "try more devices" in plan._training_fits(TrainConfig(batch_size=8), 0, ways)
    assert "cannot be spread over 3 devices" in plan._training_fits(TrainConfig(batch_size=8), most, 3)
    assert "NOT fit; 4 would, or auto" in plan._sampling_fits(8, 4)


WRONG = [
    ("--memory=24", "--memory='24' must be the memory of one device, such as 24GiB"),
    ("--memory=0GiB", "--memory='0GiB' must be"),
    ("--mesh=rows=2", "--mesh='rows=2' must read like data=1,fsdp=4,tensor=2"),
    ("--accelerator=abacus", "accelerator 'abacus' is unknown"),
    ("--devices=0", "--devices=0 must be at least 1"),
    ("--devices=3 --mesh=fsdp=2", "mesh data=1, fsdp=2, tensor=1 does not fit 3 device(s)"),
    ("--devices=5000", "5000 virtual devices are needed"),
]


@pytest.mark.parametrize("arguments, message", WRONG, ids=[a for a, _ in WRONG])
def test_what_cannot_be_planned_is_refused(arguments, message, capsys):
    assert cli.main(["plan", f"--config={TINY}", *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_published_model_needs_no_files():
    config = load_config(f"{TINY.parents[2] / 'configs' / 'pythia.py'}:12b-deduped", [])
    assert plan.model_config(config) is PRESETS["pythia-12b"]
    for name in ("Qwen/Qwen3-8B-Base", "meta-llama/Llama-3.2-1B", "openai-community/gpt2", "google/gemma-3-270m"):
        found = plan.model_config(dataclasses.replace(config, source=name))
        assert found is PRESETS[name.split("/")[-1].lower()]


def test_a_study_is_planned_in_device_hours(capsys):
    """Of 5 M tokens and 40 epochs each; hours are operations over peak and the share of it that is used."""
    assert cli.main(["plan", f"--config={TINY.parents[2] / 'configs' / 'paper.py'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (one,) = [line.split() for line in lines if line.startswith("llama_3p2_1b-2: qwen3_8b ")]
    assert one[2:4] == ["train", "200,000,000"]
    flops = 200e6 * preset("llama-3.2-1b").train_flops_per_token(2048)
    assert float(one[4]) == pytest.approx(flops / 989e12 / 0.33 / 3600, rel=0.01)
    totals = [line.split() for line in lines if line.startswith("all ")]
    assert cli.main(["plan", f"--config={TINY.parents[2] / 'configs' / 'real.py'}"]) == 0
    assert capsys.readouterr().out.count("\ngenerations/replace/SmolLM2_135M_Instruct-0/2 ") == 2
    assert [total[1:4] for total in totals] == [["4", "sample", "81,920,000"], ["24", "train", "4,800,000,000"]]
    assert float(lines[-2].split()[0]) == pytest.approx(sum(float(total[4]) for total in totals), rel=0.01)
    assert cli.main(["plan", f"--config={TINY.parents[2] / 'configs' / 'paper.py'}", "--mesh=fsdp=2"]) == 2
    assert "leave out all options but --accelerator" in capsys.readouterr().err


def test_planting_is_planned():
    planted = dict(text="t.txt", tokens=32 * 2048 * 4, counts=(0, 1, 4), kinds=("words",))
    config = build(RunConfig, {"source": "EleutherAI/pythia-14m", "plant": planted})
    shape = preset("pythia-14m")
    (line,) = plan.planting(config, shape)
    petaflop = 2 * 32 * 2048 * 4 * shape.train_flops_per_token(2048) / 1e15
    assert line.startswith("planting: 15,680 of 262,144 tokens; 4 steps") and f" {petaflop:.3f} PFLOP" in line
    assert plan.planting(dataclasses.replace(config, plant=None), shape) == []
