"""Set before jax is imported anywhere: eight virtual CPU devices for mesh tests, and one compilation cache for all."""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import socket
import subprocess
import sys
import tempfile
import time

import hypothesis
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
LONG = [
    "e2e/test_study.py",
    "e2e/test_kill.py",
    "e2e/test_howto.py",
    "training/test_loop.py",
    "training/test_step.py",
    "lab/test_lineages.py",
]
"""Files that take longest. Whole files are handed out (`--dist loadfile`): a long one at the end leaves a core idle."""
UNUSED = 14 * 86_400
"""Seconds after which a compiled program that no test asked for is removed."""


def cache_key() -> str:
    """What a compiled program depends on beside itself: the compiler, the processor, and Python."""
    known = [*map(importlib.metadata.version, ("jax", "jaxlib")), platform.machine()]
    with contextlib.suppress(OSError):
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        known += sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))})
    digest = hashlib.sha256("\n".join(known).encode()).hexdigest()
    return f"{sys.version_info.major}.{sys.version_info.minor}-{digest[:16]}"


def compilation_cache() -> str:
    """The folder of compiled programs, the same one in every run on this machine; a new one where none can be
    written.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    for root in (pathlib.Path(home), pathlib.Path(tempfile.gettempdir())):
        folder = root / "selftrain_jax" / "ci-xla" / cache_key()
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
            remove_unused(folder.parent)
            return str(folder)
    return tempfile.mkdtemp(prefix="selftrain_jax_xla_")


def remove_unused(folder: pathlib.Path) -> None:
    """Removes what nobody read for long, of this key and of others, so that the folder does not grow for ever."""
    for path in folder.glob("*/*"):
        with contextlib.suppress(OSError):  # another run may have been first
            found = path.stat()
            if max(found.st_atime, found.st_mtime) < time.time() - UNUSED:
                path.unlink()
    for key in folder.iterdir():
        with contextlib.suppress(OSError):  # it is not empty
            if key.name != cache_key():
                key.rmdir()


os.environ["JAX_PLATFORMS"] = "cpu"
# PyTorch's threads wait by spinning: with as many as there are cores in each of the processes of pytest-xdist, they
# wait for each other's cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
_flags = [os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count=8"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # XLA's older emitters compile in a third of the time; later versions have none, nor the flag.
    _flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(_flags).strip()
if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compilation_cache()  # the processes of pytest-xdist inherit it
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # most programs here run once or twice


hypothesis.settings.register_profile("suite", max_examples=50, derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("large", hypothesis.settings.get_profile("suite"), max_examples=2_000)


def pytest_configure(config):
    hypothesis.settings.load_profile("large" if config.option.markexpr == "large" else "suite")


def pytest_collection_modifyitems(config, items):
    if config.option.markexpr == "large":
        for item in items:
            if getattr(item.obj, "is_hypothesis_test", False):
                item.add_marker("large")
    long = {ROOT / "tests" / name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: long.get(item.path, len(long)))


@pytest.fixture(scope="session")
def bucket_server():
    """An object store on this machine, which every process started from here on takes for Google's."""
    for library in ("gcsfs", "gcp_storage_emulator"):  # not imported yet: gcsfs reads its environment when it is
        if importlib.util.find_spec(library) is None:
            pytest.skip(f"needs {library}")
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    script = pathlib.Path(__file__).with_name("bucket.py")
    command = [sys.executable, script, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        with pytest.MonkeyPatch.context() as patch:
            for setting in process.stdout.readline().split():
                patch.setenv(*setting.split("="))
            yield
        process.kill()


@pytest.fixture
def bucket(bucket_server, tmp_path):
    """A folder of its own in a bucket, which does not exist yet."""
    return f"gs://runs/{tmp_path.parent.name}/{tmp_path.name}"
