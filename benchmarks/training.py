"""Training steps: ours against transformers on PyTorch, on the same weights, batch, precision and device.

    python benchmarks/training.py --preset=pythia-14m --batch=8 --length=512
    python benchmarks/training.py --preset=pythia-1.4b --batch=16 --length=2048 --dtype=bfloat16 --reference=compile

A step is forward, backward, clipping at norm 1 and AdamW on fp32 weights; `bfloat16` is the compute dtype (theirs:
autocast). Theirs is transformers' model as it is loaded (SDPA attention) and PyTorch's AdamW, fused on a GPU, eager or
under `torch.compile`. Each side is a process of its own, asked in turns; the first round compiles and is not counted.

The last line is a JSON object: `ratio` (ours over theirs, tokens/s, of the median rounds), `memory_ratio` (peak memory:
of the process on a CPU, of the device elsewhere), both figures, and with `--peak-tflops` (known for some devices) the
`mfu` of ours: model FLOPs utilisation, the rate of `DecoderConfig.train_flops_per_token` over that peak."""

import argparse

import sides


def ours(arguments: argparse.Namespace) -> sides.Work:
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from selftrain_jax.distributed.mesh import make_mesh
    from selftrain_jax.models import hf
    from selftrain_jax.models.decoder import Decoder, default_unroll, param_axes
    from selftrain_jax.training.log import peak_flops
    from selftrain_jax.training.loop import default_grad_accum
    from selftrain_jax.training.step import TrainState, make_train_step, next_token_loss, state_shardings

    mesh = make_mesh(devices=jax.devices()[:1])
    config, params = hf.load_pretrained(arguments.directory, mesh=mesh)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5, weight_decay=0.0))
    state = TrainState.create(params, optimizer)
    state = jax.device_put(state, state_shardings(state, mesh, param_axes(config)))
    del params
    model = Decoder(
        config,
        dtype=jnp.dtype(arguments.dtype),
        remat=arguments.remat,
        unroll=arguments.unroll or default_unroll(config, remat=arguments.remat),
        attention=arguments.attention,
    )
    slices = arguments.grad_accum or default_grad_accum(arguments.batch, arguments.length, mesh)
    train_step = make_train_step(next_token_loss(model), optimizer, mesh=mesh, grad_accum=slices)
    rng, box = np.random.default_rng(0), [state]
    del state

    def do_round():
        for _ in range(arguments.steps):
            tokens = rng.integers(0, config.vocab_size, (arguments.batch, arguments.length + 1), dtype=np.int32)
            box[0], metrics = train_step(box[0], {"tokens": jnp.asarray(tokens)})
        assert np.isfinite(float(metrics["loss"]))

    def facts():
        known = peak_flops(jax.devices()[0].device_kind) if arguments.dtype == "bfloat16" else None
        flops = config.train_flops_per_token(arguments.length)
        peak = arguments.peak_tflops * 1e12 or known
        return sides.peak_bytes() | {"flops_per_token": flops, "peak_flops": peak, "grad_accum": slices}

    return do_round, facts


def theirs(arguments: argparse.Namespace) -> sides.Work:
    import torch

    model, device = sides.load_reference(arguments.directory, "float32")
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):  # GPT-2 has some; ours has none
            module.p = 0.0
    if arguments.remat:
        model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.0, fused=device == "cuda")
    forward = torch.compile(model) if arguments.reference == "compile" else model
    generator = torch.Generator().manual_seed(0)

    def do_round():
        for _ in range(arguments.steps):
            shape = (arguments.reference_batch or arguments.batch, arguments.length)
            tokens = torch.randint(0, model.config.vocab_size, shape, generator=generator).to(device)
            with torch.autocast(device, torch.bfloat16, enabled=arguments.dtype == "bfloat16"):
                loss = forward(input_ids=tokens, labels=tokens, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        assert loss.isfinite().item()

    return do_round, sides.torch_peak_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sides.add_arguments(parser, ("eager", "compile"))
    parser.add_argument("--batch", type=int, default=8, help="rows per step")
    parser.add_argument("--reference-batch", type=int, default=0, help="rows per step, theirs; 0 is --batch")
    parser.add_argument("--length", type=int, default=512, help="tokens per row")
    parser.add_argument("--steps", type=int, default=4, help="steps per round")
    parser.add_argument("--grad-accum", type=int, default=0, help="slices of a batch, ours; 0 chooses")
    parser.add_argument("--remat", action="store_true", help="recompute activations, both sides")
    parser.add_argument("--unroll", type=int, default=0, help="layers per step of the layer scan, ours; 0 chooses")
    parser.add_argument("--attention", default="auto", help="ours: auto, xla, cudnn or splash")
    parser.add_argument(
        "--peak-tflops", type=float, default=0.0, help="the device's peak rate, for the MFU; 0 looks it up"
    )
    arguments = parser.parse_args()
    facts = sides.run(arguments, ours, theirs)
    tokens, more = arguments.steps * arguments.batch * arguments.length, {"grad_accum": facts["ours"]["grad_accum"]}
    if peak := facts["ours"]["peak_flops"]:
        more["mfu"] = tokens / facts["ours"]["seconds"] * facts["ours"]["flops_per_token"] / peak
    rows = arguments.reference_batch or arguments.batch
    sides.report(arguments, facts, tokens, arguments.steps * rows * arguments.length, **more)


if __name__ == "__main__":
    main()
