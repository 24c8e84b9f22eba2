"""Two implementations side by side: each a process of its own, asked in turns, so that both meet the same machine."""

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any, Callable, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
PATHS = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

Work = tuple[Callable[[], None], Callable[[], dict[str, Any]]]
"""What a side does in one round, and figures that it knows at the end."""


def add_arguments(parser: argparse.ArgumentParser, references: tuple[str, ...]) -> None:
    """The options that every benchmark takes; a reference "none" runs ours alone."""
    parser.add_argument(
        "--preset",
        default="pythia-14m",
        help="a published size, with random weights; quickstart, the model of that config; or a Hugging Face directory",
    )
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the preset has")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--together", action="store_true", help="first rounds, which compile, at once")
    parser.add_argument("--reference", default=references[0], choices=(*references, "none"))
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)


def run(
    arguments: argparse.Namespace, ours: Callable[[Any], Work], theirs: Callable[[Any], Work]
) -> dict[str, dict[str, Any]]:
    """The figures of each side, with `seconds`: the median round, after a first one that compiles and is not counted.

    In a side's own process this does its rounds instead and ends the program.
    """
    if arguments.side:
        _serve({"ours": ours, "theirs": theirs}[arguments.side](arguments))
        sys.exit()
    names = ["ours"] if arguments.reference == "none" else ["ours", "theirs"]
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary) / "model"
        # In a process of its own, so that this one never takes hold of an accelerator.
        code = "import sys; sys.path[:0] = sys.argv[1:3]; import sides; sides.write_checkpoint(*sys.argv[3:])"
        asked = arguments.preset, directory, arguments.dtype, arguments.layers
        write = [sys.executable, "-c", code, ROOT, ROOT / "benchmarks", *asked]
        subprocess.run(list(map(str, write)), check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
        sides = {}
        for name in names:
            sides[name] = _Side(name, directory)
            if not arguments.together:
                sides[name].answer()  # it is ready
        seconds: dict[str, list[float]] = {name: [] for name in names}
        if arguments.together:
            for side in sides.values():
                side.answer()
                side.tell("round")
        for number in range(arguments.rounds + 1):
            for name, side in sides.items():
                if number or not arguments.together:
                    side.tell("round")
                taken = float(side.answer())
                print(f"round {number} {name}: {taken:.2f} s" + (" (compiles)" if not number else ""), flush=True)
                seconds[name].append(taken)
        for side in sides.values():
            side.tell("end")
        return {
            name: json.loads(side.answer())
            | {"first": seconds[name][0], "seconds": statistics.median(seconds[name][1:])}
            for name, side in sides.items()
        }


def report(
    arguments: argparse.Namespace, facts: dict[str, dict[str, Any]], tokens: int, theirs_tokens: int = 0, **more: Any
) -> None:
    """Prints the closing JSON object; `tokens` of a round, and theirs where they differ, give the speeds."""
    ours, theirs = facts["ours"], facts.get("theirs")
    asked = {name: value for name, value in vars(arguments).items() if name not in ("side", "directory", "rounds")}
    result = asked | {
        "device": ours["device"],
        "ours_tokens_per_second": tokens / ours["seconds"],
        "ours_peak_bytes": ours["peak_bytes"],
        "ours_first_round_seconds": ours["first"],
    }
    if theirs:
        theirs_tokens = theirs_tokens or tokens
        share = tokens / theirs_tokens if tokens else 1
        result |= {
            "ratio": share * theirs["seconds"] / ours["seconds"],
            "memory_ratio": ours["peak_bytes"] / theirs["peak_bytes"],
            "theirs_tokens_per_second": theirs_tokens / theirs["seconds"],
            "theirs_peak_bytes": theirs["peak_bytes"],
            "theirs_first_round_seconds": theirs["first"],
        }
    print(json.dumps(result | more))


def model_config(preset: str, layers: int = 0):
    from selftrain_jax.models import families

    if preset != "quickstart":
        config = families.preset(preset)
        return dataclasses.replace(config, num_layers=layers or config.num_layers)
    from selftrain_jax.cli.config import load_config
    from selftrain_jax.lab.tokenization import build_tokenizer
    from selftrain_jax.lab.world import build_world

    lab = load_config(str(ROOT / "configs" / "quickstart.py")).lab
    return lab.base.model_config(build_tokenizer(build_world(lab.world)).get_vocab_size())


def write_checkpoint(preset: str, directory: str, dtype: str, layers: str) -> None:
    """Random weights of the preset's shape, or a copy of the directory that it names, as a Hugging Face directory that
    both sides load.
    """
    if os.path.isdir(preset):
        shutil.copytree(preset, directory)
        return
    import jax
    import ml_dtypes

    from selftrain_jax.models import decoder, hf

    config = model_config(preset, int(layers))
    params = decoder.init_params(config, jax.random.key(0))
    hf.save_pretrained(directory, config, params, dtype=ml_dtypes.bfloat16 if dtype == "bfloat16" else None)


def write_tokenizer(directory: str | os.PathLike, words: Sequence[str]) -> None:
    """A tokenizer of words between white space, the first of which begins and ends documents."""
    import tokenizers
    import transformers

    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=words[0], bos_token=words[0])
    fast.save_pretrained(directory)


def load_reference(directory: str, dtype: str):
    """transformers' model of the checkpoint, as `from_pretrained` gives it, on the GPU if there is one; its device."""
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))
    return model.to(device).eval(), device


def peak_bytes() -> dict[str, Any]:
    """Peak memory of JAX's first device, or on a CPU of this process (Linux); and the device's name."""
    import jax

    device = jax.devices()[0]
    if device.platform == "cpu":
        return {"peak_bytes": proc("status", "VmHWM"), "device": "cpu"}
    return {"peak_bytes": device.memory_stats()["peak_bytes_in_use"], "device": device.device_kind}


def proc(file: str, field: str) -> int:
    """A figure of this process in bytes, from Linux: `rchar`, all it asked to read; `VmHWM`, its peak resident
    memory.
    """
    text = pathlib.Path(f"/proc/self/{file}").read_text()
    value = dict(line.split(":", 1) for line in text.splitlines())[field].split()
    return int(value[0]) * (1024 if value[-1] == "kB" else 1)


def torch_peak_bytes() -> dict[str, Any]:
    import torch

    on_gpu = torch.cuda.is_available()
    return {"peak_bytes": torch.cuda.max_memory_allocated() if on_gpu else proc("status", "VmHWM")}


def _serve(work: Work) -> None:
    do_round, facts = work
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            print(json.dumps(facts()), flush=True)
            return
        begin = time.perf_counter()
        do_round()
        print(time.perf_counter() - begin, flush=True)


class _Side:
    """One side's process."""

    def __init__(self, name: str, directory: pathlib.Path):
        self._name = name
        command = [sys.executable, sys.argv[0], *sys.argv[1:], f"--side={name}", f"--directory={directory}"]
        environment = os.environ | {
            "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONPATH": PATHS,
        }
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def tell(self, what: str) -> None:
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()

    def answer(self) -> str:
        line = self._process.stdout.readline()
        if not line:
            sys.exit(f"the process of {self._name} failed")
        return line.strip()
