"""Unconditional sampling: ours against transformers `generate` on PyTorch, on the same weights, lengths and device.

    python benchmarks/sampling.py --preset=pythia-14m --batch=64 --length=256
    python benchmarks/sampling.py --preset=quickstart --batch=64 --length=63
    python benchmarks/sampling.py --preset=pythia-410m --batch=512 --length=1024 --dtype=bfloat16 --reference=static

Every document runs to the full length (EOS is forbidden), from BOS, at temperature 1. Each side is a process of its own,
started once and then asked in turns (ours, theirs, ours, ...), so that both meet the same machine; the first round compiles
and is not counted. `--reference` is eager `generate`; `static`, with a static cache and `torch.compile`; or `none`: ours
alone, where `--batch=auto` takes the largest wave that the device memory holds.

The last line is a JSON object: `ratio` (ours over theirs, tokens/s, of the median rounds), `memory_ratio` (peak memory: of
the process on a CPU, of the device elsewhere), both figures, and on an accelerator `floor_share`: the time that the bytes
which must be read would take at the measured copy bandwidth, over ours; and `predicted_ratio`, the predicted over the
measured peak memory.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[1]


def model_config(preset: str):
    from selftrain_jax.models import config

    if preset != "quickstart":
        return config.preset(preset)
    from selftrain_jax.cli import load_config
    from selftrain_jax.lab.world import build_world

    lab = load_config(str(ROOT / "configs" / "quickstart.py")).lab
    return lab.base.model_config(build_world(lab.world))


def write_checkpoint(preset: str, directory: pathlib.Path, dtype: str) -> None:
    import jax
    import ml_dtypes

    from selftrain_jax.models import gpt_neox, hf

    config = model_config(preset)
    with jax.default_device(jax.devices("cpu")[0]):
        params = gpt_neox.init_params(config, jax.random.key(0))
    hf.save_pretrained(directory, config, params, dtype=ml_dtypes.bfloat16 if dtype == "bfloat16" else None)


def ours(arguments: argparse.Namespace):
    """(draw, facts): `draw()` samples one batch and returns nothing; `facts()` are figures known at the end."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from selftrain_jax import parallel
    from selftrain_jax.models import hf
    from selftrain_jax.models.gpt_neox import GPTNeoX
    from selftrain_jax.sampling import memory, sampler
    from selftrain_jax.sampling.warp import SamplingConfig

    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    dtype = jnp.dtype(arguments.dtype)
    config, params = hf.load_pretrained(arguments.directory, mesh=mesh, dtype=dtype)
    settings = SamplingConfig(
        temperature=1.0, top_p=arguments.top_p, top_k=arguments.top_k,
        min_new_tokens=arguments.length, max_new_tokens=arguments.length,
    )  # fmt: skip
    params = sampler.prepare(params, config, mesh=mesh, dtype=dtype)
    model, rounds = GPTNeoX(config, dtype=dtype), iter(range(10**6))
    batch = arguments.batch
    if batch == "auto":
        batch = memory.largest_wave(params, model, settings, 10**6, mesh=mesh)

    def draw():
        ids = np.arange(batch) + next(rounds) * batch
        drawn = sampler.sample(params, config, settings, jax.random.key(0), ids, mesh=mesh, batch_size=batch, dtype=dtype)
        assert drawn.lengths.sum() == batch * arguments.length

    def facts():
        device = jax.devices()[0]
        if device.platform == "cpu":
            return {"peak_bytes": peak_resident(), "device": "cpu", "batch": batch}
        peak = device.memory_stats()["peak_bytes_in_use"]
        predicted = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        predicted += memory.wave_bytes(params, model, settings, batch, mesh=mesh)
        floor = floor_seconds(config, params, batch, arguments.length, dtype.itemsize)
        return {"peak_bytes": peak, "predicted_bytes": predicted, "device": device.device_kind, "batch": batch, **floor}

    return draw, facts


def floor_seconds(config, params, batch: int, length: int, itemsize: int) -> dict:
    """Time that reading every weight and every filled cache entry once per step takes at the device's copy bandwidth."""
    import jax
    import jax.numpy as jnp

    x = jnp.zeros(2**28, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    for _ in range(5):
        y = copy(x)
    y.block_until_ready()
    begin = time.perf_counter()
    for _ in range(10):
        y = copy(x)
    y.block_until_ready()
    bandwidth = 10 * 2 * x.nbytes / (time.perf_counter() - begin)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params)) - params["embed"]["embedding"].nbytes
    per_position = 2 * config.num_layers * config.hidden_size * itemsize
    filled = length * (length + 1) // 2
    moved = length * weights + batch * filled * per_position
    return {"copy_bandwidth": bandwidth, "floor_seconds": moved / bandwidth}


def theirs(arguments: argparse.Namespace):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = getattr(torch, arguments.dtype)
    model = transformers.GPTNeoXForCausalLM.from_pretrained(arguments.directory, dtype=dtype).to(device).eval()
    # With a static cache on a GPU, `generate` compiles the decoding step itself (CUDA graphs included).
    options = {"cache_implementation": "static"} if arguments.reference == "static" else {}
    start = torch.zeros((arguments.batch, 1), dtype=torch.long, device=device)

    @torch.no_grad()
    def draw():
        out = model.generate(
            start, attention_mask=torch.ones_like(start), do_sample=True, temperature=1.0, top_k=arguments.top_k,
            top_p=arguments.top_p, min_new_tokens=arguments.length, max_new_tokens=arguments.length, pad_token_id=0,
            **options,
        )  # fmt: skip
        assert out.shape == (arguments.batch, 1 + arguments.length)
        if device == "cuda":
            torch.cuda.synchronize()

    def facts():
        peak = torch.cuda.max_memory_allocated() if device == "cuda" else peak_resident()
        return {"peak_bytes": peak, "device": device}

    return draw, facts


def peak_resident() -> int:
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["VmHWM"].split()[0]) * 1024


def serve(arguments: argparse.Namespace) -> None:
    """Draws a batch for every line on standard input; answers with seconds, and at the end with the facts."""
    draw, facts = {"ours": ours, "theirs": theirs}[arguments.side](arguments)
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            print(json.dumps(facts()), flush=True)
            return
        begin = time.perf_counter()
        draw()
        print(time.perf_counter() - begin, flush=True)


class Side:
    """One side's process."""

    def __init__(self, name: str, directory: pathlib.Path):
        command = [sys.executable, __file__, *sys.argv[1:], f"--side={name}", f"--directory={directory}"]
        environment = {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false", "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }  # fmt: skip
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=os.environ | environment)
        if self._answer() != "ready":
            sys.exit(f"{name} could not start")

    def ask(self, what: str) -> str:
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            sys.exit("a side of the benchmark failed")
        return line.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="pythia-14m", help="a Pythia size, or quickstart: the model of that config")
    parser.add_argument("--batch", type=lambda text: text if text == "auto" else int(text), default=64)
    parser.add_argument("--length", type=int, default=256, help="tokens per document")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reference", default="eager", choices=("eager", "static", "none"))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        serve(arguments)
        return
    if arguments.batch == "auto" and arguments.reference != "none":
        parser.error("--batch=auto takes the whole device, so it goes with --reference=none only")
    names = ["ours"] if arguments.reference == "none" else ["ours", "theirs"]
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary) / "model"
        write = [sys.executable, "-c", "import sys; sys.path[:0] = sys.argv[1:3]; import pathlib, sampling as s; "
                 "s.write_checkpoint(sys.argv[3], pathlib.Path(sys.argv[4]), sys.argv[5])",
                 str(ROOT), str(ROOT / "benchmarks"), arguments.preset, str(directory), arguments.dtype]  # fmt: skip
        subprocess.run(write, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
        sides = {name: Side(name, directory) for name in names}
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for number in range(arguments.rounds + 1):
            for name, side in sides.items():
                taken = float(side.ask("draw"))
                print(f"round {number} {name}: {taken:.2f} s" + (" (compiles)" if not number else ""), flush=True)
                if number:
                    seconds[name].append(taken)
        facts = {name: json.loads(side.ask("end")) for name, side in sides.items()}
    batch = facts["ours"]["batch"]
    speeds = {name: batch * arguments.length / statistics.median(times) for name, times in seconds.items()}
    result = {
        **{name: getattr(arguments, name) for name in ("preset", "length", "top_p", "dtype", "reference")},
        "batch": batch,
        "device": facts["ours"]["device"],
        "ours_tokens_per_second": speeds["ours"],
        "ours_peak_bytes": facts["ours"]["peak_bytes"],
    }
    if "theirs" in names:
        result |= {
            "ratio": speeds["ours"] / speeds["theirs"],
            "memory_ratio": facts["ours"]["peak_bytes"] / facts["theirs"]["peak_bytes"],
            "theirs_tokens_per_second": speeds["theirs"],
            "theirs_peak_bytes": facts["theirs"]["peak_bytes"],
        }
    if "floor_seconds" in facts["ours"]:
        share = facts["ours"]["floor_seconds"] / statistics.median(seconds["ours"])
        predicted = facts["ours"]["predicted_bytes"] / facts["ours"]["peak_bytes"]
        result |= {"floor_share": share, "copy_bandwidth": facts["ours"]["copy_bandwidth"], "predicted_ratio": predicted}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
