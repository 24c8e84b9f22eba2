"""Where a model lies: a local directory, or the cached download of a Hugging Face hub name."""

import os
import pathlib
import re

from selftrain_jax.errors import InputError, one_line

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_model(name_or_dir: str | os.PathLike, revision: str | None = None, weights: bool = True) -> pathlib.Path:
    """The local directory of a model: `name_or_dir` itself, or the cached download of a Hugging Face hub name.

    Args:
      name_or_dir: a directory, or a hub name such as `EleutherAI/pythia-14m`.
      revision: branch, tag or commit on the hub (`step1000`, ...); None is the default branch.
      weights: False fetches the JSON files only (configuration and tokenizer).

    Raises:
      InputError: no such directory, a revision was given for a local directory, or the hub failed in any way.
    """
    path = pathlib.Path(name_or_dir).expanduser()
    if path.is_dir():
        if revision is not None:
            raise InputError(f"revision={revision!r} applies to hub names, but {path} is a local directory; drop it")
        return path
    name = os.fspath(name_or_dir)
    if not _HUB_NAME.fullmatch(name) or path.exists():
        raise InputError(
            f"model directory not found: {name} (pass a directory holding config.json and model.safetensors, "
            "or a hub name such as EleutherAI/pythia-14m)"
        )
    import huggingface_hub

    patterns = ["*.json", "*.safetensors"] if weights else ["*.json"]
    try:
        return pathlib.Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as e:  # the hub client raises its own, its HTTP library's and the system's errors
        at = f" at revision {revision!r}" if revision else ""
        raise InputError(
            f"model {name!r}{at} is neither a local directory nor available from the Hugging Face hub "
            f"({type(e).__name__}: {one_line(e)[:200]}); offline, pass a local directory, "
            "or set HF_HUB_OFFLINE=1 with a cache that holds the model"
        ) from None
