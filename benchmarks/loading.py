"""Memory, bytes read and time of `load_pretrained` onto a mesh, on virtual CPU devices.

    python benchmarks/loading.py --preset=pythia-410m
    python benchmarks/loading.py --preset=pythia-12b --layers=2
    python benchmarks/loading.py --preset=pythia-410m --processes=2

Writes a random checkpoint of the preset's shape to a temporary directory, loads it in fresh processes, and prints as
its last line a JSON object: `memory_ratio`, the peak resident memory of a loading process over the bytes of the
parameters it holds; `memory_ratio_above_start`, the same without what the interpreter and its libraries took before;
and `read_share`, the bytes that each process read over those of the file."""

import argparse
import dataclasses
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

import sides


def write_checkpoint(arguments: argparse.Namespace, directory: pathlib.Path) -> None:
    import jax
    import ml_dtypes
    import numpy as np

    from selftrain_jax.models import decoder, hf
    from selftrain_jax.models.families import preset

    config = preset(arguments.preset)
    config = dataclasses.replace(config, num_layers=arguments.layers or config.num_layers)
    dtype = np.dtype(ml_dtypes.bfloat16) if arguments.stored == "bfloat16" else np.dtype(arguments.stored)
    rng = np.random.default_rng(0)

    def random(leaf):
        block = rng.standard_normal(1 << 20, np.float32).astype(dtype)  # repeated: what is stored does not matter here
        return np.resize(block, leaf.shape)

    hf.save_pretrained(directory, config, jax.tree.map(random, decoder.param_shapes(config)))


def load(arguments: argparse.Namespace, directory: pathlib.Path) -> dict:
    """One loading process: what it measured."""
    import jax
    import numpy as np

    from selftrain_jax.distributed.mesh import make_mesh
    from selftrain_jax.distributed.settings import MeshConfig
    from selftrain_jax.models import hf

    if arguments.processes > 1:
        jax.distributed.initialize(f"localhost:{arguments.port}", arguments.processes, arguments.load)
    mesh = make_mesh(MeshConfig(*map(int, arguments.mesh.split(","))))
    hf.load_config(directory)  # imports transformers, and PyTorch where it is installed
    at_start = sides.proc("status", "VmHWM")
    read, begin = sides.proc("io", "rchar"), time.perf_counter()
    _, params = hf.load_pretrained(directory, mesh=mesh, dtype=np.dtype(arguments.dtype))
    seconds, read = time.perf_counter() - begin, sides.proc("io", "rchar") - read
    peak = sides.proc("status", "VmHWM")
    # Devices of one host share its memory, but each holds its own copy of what is not sharded.
    held = sum(s.data.nbytes for leaf in jax.tree.leaves(params) for s in leaf.addressable_shards)
    return {
        "param_bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params)),
        "held_bytes": held,
        "peak_bytes": peak,
        "start_bytes": at_start,
        "read_bytes": read,
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="pythia-410m")
    parser.add_argument("--layers", type=int, default=0, help="fewer layers than the preset has")
    parser.add_argument("--mesh", default="1,4,2", help="data,fsdp,tensor")
    parser.add_argument("--processes", type=int, default=1, help="the mesh's devices are divided among them")
    parser.add_argument("--stored", default="float16", help="dtype of the checkpoint")
    parser.add_argument("--dtype", default="float32", help="dtype of the parameters")
    parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=pathlib.Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load is not None:
        print(json.dumps(load(arguments, arguments.directory)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary) / "model"
        write_checkpoint(arguments, directory)
        file_bytes = sum(path.stat().st_size for path in directory.glob("*.safetensors"))
        with socket.socket() as s:
            s.bind(("localhost", 0))
            port = s.getsockname()[1]
        devices = 1
        for size in arguments.mesh.split(","):
            devices *= int(size)
        flags = f"--xla_force_host_platform_device_count={devices // arguments.processes}"
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, __file__, *sys.argv[1:], f"--directory={directory}", f"--port={port}"]
        workers = [
            subprocess.Popen([*command, f"--load={i}"], env=environment, stdout=subprocess.PIPE, text=True)
            for i in range(arguments.processes)
        ]
        outputs = [worker.communicate()[0] for worker in workers]
        if any(worker.returncode for worker in workers):
            sys.exit("a loading process failed")
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    for i, row in enumerate(found):
        print(f"process {i}: {row}")
    print(
        json.dumps(
            {
                "preset": arguments.preset,
                "layers": arguments.layers or "all",
                "mesh": arguments.mesh,
                "processes": arguments.processes,
                "file_bytes": file_bytes,
                "memory_ratio": max(row["peak_bytes"] / row["held_bytes"] for row in found),
                "memory_ratio_above_start": max(
                    (row["peak_bytes"] - row["start_bytes"]) / row["held_bytes"] for row in found
                ),
                "read_share": max(row["read_bytes"] / file_bytes for row in found),
                "seconds": max(row["seconds"] for row in found),
            }
        )
    )


if __name__ == "__main__":
    main()
