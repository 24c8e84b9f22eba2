"""Set before jax is imported anywhere: eight virtual CPU devices for mesh tests, and one compilation cache for all."""

import importlib.util
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(tempfile.gettempdir()) / "selftrain_jax_tests_xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(items):
    _slow_files_first(items)
    if os.environ.get("SELFTRAIN_TEST_ALL"):
        return
    elsewhere, where = ("once", "Python 3.11") if sys.version_info >= (3, 12) else ("newest", "Python 3.12 and later")
    skip = pytest.mark.skip(reason=f"slow: runs on {where}, elsewhere with SELFTRAIN_TEST_ALL=1")
    for item in items:
        if item.get_closest_marker(elsewhere):
            item.add_marker(skip)


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


def _slow_files_first(items):
    """Files are handed out whole and in this order (`--dist loadfile`): one long file at the end would leave a core
    idle.
    """
    slow = {item.path for item in items if item.get_closest_marker("once") or item.get_closest_marker("newest")}
    items.sort(key=lambda item: item.path not in slow)
