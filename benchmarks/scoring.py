"""Scoring: extraction against transformers `generate`, and the harness with our model against its own `hf` model.

    python benchmarks/scoring.py --preset=pythia-14m --batch=64
    python benchmarks/scoring.py --preset=pythia-14m --tasks --data=DIRECTORY
    python benchmarks/scoring.py --preset=gemma-3-270m --batch=16
    python benchmarks/scoring.py --preset=pythia-1.4b --batch=128 --dtype=bfloat16 --reference=none --peak-tflops=989

Extraction: which of `--probes` sequences of 32 + 32 tokens does greedy decoding reproduce? Ours answers by one
teacher-forced pass, theirs decodes 32 tokens greedily (PyTorch, with a cache) and compares. Half of the probes are
continued by the model itself, so that the answer is yes for some.

With `--tasks`: the wall time of `lm_eval.simple_evaluate` on LAMBADA and ARC-Easy, `--items` of each. DIRECTORY holds
`benchmarks/lambada_openai.jsonl` ("text"), `benchmarks/arc_easy_test.jsonl` ("question", "choices", "gold") and
`tokenizer/tokenizer.json`, which is taken where `--preset` is no directory with one of its own. Theirs needs the
harness's `hf` extra (PyTorch, accelerate).

Each side is a process of its own, asked in turns; the first round compiles and is not counted. The last line is a JSON
object: `ratio` (theirs over ours, seconds of the median rounds), both figures, what each side found, and with
`--peak-tflops` the `mfu` of ours: two operations per weight and token in the layers and per weight and scored token in
the output layer, and causal attention, over the peak rate."""

import argparse
import contextlib
import json
import os
import pathlib
import shutil
import sys

import sides

PREFIX = SUFFIX = 32
_TASKS = {
    "lambada": (
        "lambada_openai.jsonl",
        {
            "output_type": "loglikelihood",
            "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
            "doc_to_target": "{{' '+text.split(' ')[-1]}}",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        },
    ),
    "arc_easy": (
        "arc_easy_test.jsonl",
        {
            "output_type": "multiple_choice",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_target": "gold",
            "doc_to_choice": "{{choices}}",
            "metric_list": [
                {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
            ],
        },
    ),
}

_METRICS = {task: [entry["metric"] for entry in settings["metric_list"]] for task, (_, settings) in _TASKS.items()}


def ours(arguments: argparse.Namespace) -> sides.Work:
    import jax
    import jax.numpy as jnp

    from selftrain_jax.distributed.mesh import enable_compilation_cache, make_mesh
    from selftrain_jax.models import hf

    mesh = make_mesh(devices=jax.devices()[:1])
    dtype = jnp.dtype(arguments.dtype)
    config, params = hf.load_pretrained(arguments.directory, mesh=mesh)
    if arguments.tasks:
        enable_compilation_cache()
        run, facts = harness_rounds(arguments, lambda: harness_model(arguments, config, params, mesh, dtype))
        return run, lambda: sides.peak_bytes() | facts
    return our_extraction(arguments, config, params, mesh, dtype)


def harness_model(arguments, config, params, mesh, dtype):
    from selftrain_jax.evaluation.harness import HarnessModel

    return HarnessModel(params, config, arguments.directory, mesh=mesh, batch_size=arguments.batch, dtype=dtype)


def our_extraction(arguments, config, params, mesh, dtype) -> sides.Work:
    import numpy as np

    from selftrain_jax.evaluation.score import score

    probes = make_probes(arguments, config, params)
    np.save(pathlib.Path(arguments.directory) / "probes.npy", probes)
    found = {}

    def do_round():
        scores = score(
            params, config, probes, [PREFIX] * len(probes), mesh=mesh, batch_size=arguments.batch, dtype=dtype
        )
        found["exact"] = int(sum(bool(s.hits.all()) for s in scores))

    tokens = PREFIX + SUFFIX - 1
    head = config.vocab_size * config.hidden_size
    layers = config.num_params - head * (1 if config.tie_embeddings else 2)
    flops = (
        2 * layers * tokens + 2 * head * SUFFIX + 2 * config.num_layers * config.num_heads * config.head_dim * tokens**2
    )
    return do_round, lambda: sides.peak_bytes() | found | {"flops": flops * len(probes)}


def make_probes(arguments, config, params):
    """int32 [n, 64]: random prefixes, half of them with the greedy continuation and half with a random one."""
    import numpy as np

    from selftrain_jax.sampling.continuation import continue_prompts

    rng, half = np.random.default_rng(0), arguments.probes // 2
    probes = rng.integers(0, config.vocab_size, (arguments.probes, PREFIX + SUFFIX), dtype=np.int32)
    for begin in range(0, half, arguments.batch):
        rows = probes[begin : begin + arguments.batch]
        emitted = np.array(continue_prompts(params, config, rows[:, :PREFIX], SUFFIX, stop_at_eos=False))
        rows[: half - begin, PREFIX:] = emitted[: half - begin]
    return probes


def theirs(arguments: argparse.Namespace) -> sides.Work:
    import numpy as np
    import torch

    if arguments.tasks:
        import transformers
        from lm_eval.models.huggingface import HFLM

        transformers.logging.set_verbosity_error()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        directory, batch = arguments.directory, arguments.reference_batch or arguments.batch
        run, facts = harness_rounds(
            arguments, lambda: HFLM(directory, device=device, dtype=arguments.dtype, batch_size=batch)
        )
        return run, lambda: sides.torch_peak_bytes() | facts
    model, device = sides.load_reference(arguments.directory, arguments.dtype)
    probes = torch.from_numpy(np.load(pathlib.Path(arguments.directory) / "probes.npy").astype(np.int64)).to(device)
    found = {}

    @torch.no_grad()
    def do_round():
        exact = 0
        for rows in probes.split(arguments.batch):
            out = model.generate(
                rows[:, :PREFIX],
                attention_mask=torch.ones_like(rows[:, :PREFIX]),
                do_sample=False,
                min_new_tokens=SUFFIX,
                max_new_tokens=SUFFIX,
                pad_token_id=0,
            )
            exact += int((out[:, PREFIX:] == rows[:, PREFIX:]).all(dim=1).sum())
        found["exact"] = exact

    return do_round, lambda: sides.torch_peak_bytes() | found


def harness_rounds(arguments: argparse.Namespace, make_model) -> sides.Work:
    """A round is one `simple_evaluate` of all tasks with a model that is made once."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "DISABLE_MULTIPROC": "1"}
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = write_tasks(arguments)
    manager, model, found = TaskManager(include_path=str(folder), include_defaults=False), make_model(), {}

    def do_round():
        with contextlib.redirect_stdout(sys.stderr):  # standard output answers `sides`
            results = simple_evaluate(
                model=model,
                tasks=list(_TASKS),
                limit=arguments.items,
                task_manager=manager,
                bootstrap_iters=0,
                log_samples=False,
            )["results"]
        for task, metrics in results.items():
            found.update({f"{task}/{name}": float(metrics[f"{name},none"]) for name in _METRICS[task]})

    return do_round, found


def write_tasks(arguments: argparse.Namespace) -> pathlib.Path:
    """Task files beside the checkpoint, and the tokenizer in it; nothing where they are there already."""
    data, directory = pathlib.Path(arguments.data), pathlib.Path(arguments.directory)
    folder = directory.parent / "tasks"
    folder.mkdir(exist_ok=True)
    if not (directory / "tokenizer.json").exists():
        shutil.copy(data / "tokenizer" / "tokenizer.json", directory / "tokenizer.json")
    for name, (file, settings) in _TASKS.items():
        kwargs = {"data_files": {"test": str((data / "benchmarks" / file).resolve())}}
        head = {"task": name, "dataset_path": "json", "dataset_kwargs": kwargs, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(json.dumps(head | settings))  # JSON is YAML
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sides.add_arguments(parser, ("eager",))
    parser.add_argument("--batch", type=int, default=64, help="rows per pass")
    parser.add_argument("--probes", type=int, default=256, help="sequences per round")
    parser.add_argument("--tasks", action="store_true", help="measure the harness instead of extraction")
    parser.add_argument("--data", help="directory of the task data and the tokenizer")
    parser.add_argument("--items", type=int, default=500, help="items per task")
    parser.add_argument("--reference-batch", type=int, default=0, help="rows per pass of the hf model; 0 is --batch")
    parser.add_argument("--peak-tflops", type=float, default=0.0, help="the device's peak rate, for the MFU")
    arguments = parser.parse_args()
    if arguments.tasks and not arguments.data:
        parser.error("--tasks needs --data=DIRECTORY")
    if arguments.together and not arguments.tasks:
        parser.error("--together goes with --tasks only: the other side reads the probes that ours makes")
    facts = sides.run(arguments, ours, theirs)
    more = {
        f"{name}_found": {k: v for k, v in side.items() if k == "exact" or "/" in k} for name, side in facts.items()
    }
    work = arguments.items * len(_TASKS) if arguments.tasks else arguments.probes
    for name, side in facts.items():
        more[f"{name}_{'items' if arguments.tasks else 'sequences'}_per_second"] = work / side["seconds"]
    if arguments.peak_tflops and not arguments.tasks:
        more["mfu"] = facts["ours"]["flops"] / facts["ours"]["seconds"] / (arguments.peak_tflops * 1e12)
    tokens = 0 if arguments.tasks else work * (PREFIX + SUFFIX)
    sides.report(arguments, facts, tokens, **more)


if __name__ == "__main__":
    main()
