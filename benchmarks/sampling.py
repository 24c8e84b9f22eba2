"""Unconditional sampling: ours against transformers `generate` on PyTorch, on the same weights, lengths and device.

    python benchmarks/sampling.py --preset=pythia-14m --batch=64 --length=256
    python benchmarks/sampling.py --preset=quickstart --batch=64 --length=63
    python benchmarks/sampling.py --preset=gemma-3-270m --batch=32 --length=128
    python benchmarks/sampling.py --preset=pythia-410m --batch=256 --length=1024 --dtype=bfloat16 --reference=static

Every document runs to the full length (EOS is forbidden), from BOS, at temperature 1. Each side is a process of its
own, started once and then asked in turns (ours, theirs, ours, ...), so that both meet the same machine; the first round
compiles and is not counted. `--reference` is eager `generate`; `static`, with a static cache and `torch.compile`;
`ctranslate2` (Pythia on CPUs; a worker of one thread per core, log-probabilities asked for); or `none`: ours alone,
where `--batch=auto` takes the largest wave that the device memory holds.

The last line is a JSON object: `ratio` (ours over theirs, tokens/s, of the median rounds), `memory_ratio` (peak memory:
of the process on a CPU, of the device elsewhere), both figures, and on an accelerator `floor_share`: the time that the
bytes which must be read would take at the measured copy bandwidth, over ours; and `predicted_ratio`, the predicted over
the measured peak memory."""

import argparse
import contextlib
import os
import time

import sides


def ours(arguments: argparse.Namespace) -> sides.Work:
    import jax
    import jax.numpy as jnp
    import numpy as np

    from selftrain_jax.distributed.mesh import make_mesh
    from selftrain_jax.models import hf
    from selftrain_jax.models.decoder import Decoder
    from selftrain_jax.sampling import memory, placement, sampler
    from selftrain_jax.sampling.settings import SamplingConfig

    with contextlib.suppress(RuntimeError):
        jax.config.update("jax_num_cpu_devices", arguments.devices)
    mesh = make_mesh(devices=jax.devices()[: arguments.devices])
    dtype = jnp.dtype(arguments.dtype)
    config, params = hf.load_pretrained(arguments.directory, mesh=mesh, dtype=dtype)
    settings = SamplingConfig(
        temperature=1.0,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        min_new_tokens=arguments.length,
        max_new_tokens=arguments.length,
    )
    params = placement.prepare(params, config, mesh=mesh, dtype=dtype)
    model, rounds = Decoder(config, dtype=dtype), iter(range(10**6))
    batch = arguments.batch
    if batch == "auto":
        batch = memory.largest_wave(params, model, settings, 10**6, mesh=mesh)

    def draw():
        ids = np.arange(batch) + next(rounds) * batch
        drawn = sampler.sample(
            params, config, settings, jax.random.key(0), ids, mesh=mesh, batch_size=batch, dtype=dtype
        )
        assert drawn.lengths.sum() == batch * arguments.length

    def facts():
        found = sides.peak_bytes() | {"batch": batch}
        if found["device"] == "cpu":
            return found
        predicted = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        predicted += memory.wave_bytes(params, model, settings, batch, mesh=mesh)
        floor = floor_seconds(config, params, batch, arguments.length, dtype.itemsize)
        return found | {"predicted_bytes": predicted} | floor

    return draw, facts


def floor_seconds(config, params, batch: int, length: int, itemsize: int) -> dict[str, float]:
    """Time that reading every weight and every filled cache entry within the windows once per step takes at the
    device's copy bandwidth.
    """
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
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if not config.tie_embeddings:
        weights -= params["embed"]["embedding"].nbytes
    windows = [config.layer(i).window or length for i in range(config.num_layers)]
    positions = sum(min(filled, window) for window in windows for filled in range(1, length + 1))
    moved = length * weights + batch * positions * 2 * config.num_kv_heads * config.head_dim * itemsize
    return {"copy_bandwidth": bandwidth, "floor_seconds": moved / bandwidth}


def theirs(arguments: argparse.Namespace) -> sides.Work:
    if arguments.reference == "ctranslate2":
        return by_ctranslate2(arguments)
    import torch

    model, device = sides.load_reference(arguments.directory, arguments.dtype)
    # With a static cache on a GPU, `generate` compiles the decoding step itself (CUDA graphs included).
    options = {"cache_implementation": "static"} if arguments.reference == "static" else {}
    # Where a model has no BOS, what it starts from does not matter here.
    start = torch.full((arguments.batch, 1), model.config.bos_token_id or 0, dtype=torch.long, device=device)

    @torch.no_grad()
    def draw():
        out = model.generate(
            start,
            attention_mask=torch.ones_like(start),
            do_sample=True,
            temperature=1.0,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            min_new_tokens=arguments.length,
            max_new_tokens=arguments.length,
            pad_token_id=0,
            **options,
        )
        assert out.shape == (arguments.batch, 1 + arguments.length)
        if device == "cuda":
            torch.cuda.synchronize()

    return draw, sides.torch_peak_bytes


def by_ctranslate2(arguments: argparse.Namespace) -> sides.Work:
    import ct2
    import ctranslate2

    converted = f"{arguments.directory}-ct2"
    ct2.convert(arguments.directory, converted)
    generator = ctranslate2.Generator(converted, inter_threads=os.cpu_count(), intra_threads=1)

    def draw():
        found = generator.generate_batch(
            [["0"]] * arguments.batch,
            max_batch_size=-(-arguments.batch // os.cpu_count()),
            max_length=arguments.length,
            min_length=arguments.length,
            include_prompt_in_result=False,
            return_scores=True,
            sampling_topk=arguments.top_k,
            sampling_topp=arguments.top_p,
        )
        assert [len(one.sequences_ids[0]) for one in found] == [arguments.length] * arguments.batch

    return draw, lambda: {"peak_bytes": sides.proc("status", "VmHWM")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sides.add_arguments(parser, ("eager", "static", "ctranslate2"))
    parser.add_argument("--batch", type=lambda text: text if text == "auto" else int(text), default=64)
    parser.add_argument("--length", type=int, default=256, help="tokens per document")
    parser.add_argument("--devices", type=int, default=1, help="that share the batch, ours; on a CPU they are threads")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.batch == "auto" and arguments.reference != "none":
        parser.error("--batch=auto takes the whole device, so it goes with --reference=none only")
    facts = sides.run(arguments, ours, theirs)
    found, more = facts["ours"], {"batch": facts["ours"]["batch"]}
    if "floor_seconds" in found:
        more |= {
            "floor_share": found["floor_seconds"] / found["seconds"],
            "copy_bandwidth": found["copy_bandwidth"],
            "predicted_ratio": found["predicted_bytes"] / found["peak_bytes"],
        }
    sides.report(arguments, facts, found["batch"] * arguments.length, **more)


if __name__ == "__main__":
    main()
