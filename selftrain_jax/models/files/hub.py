"""Where a model lies: a local directory, or the cached download of a Hugging Face hub name."""

import errno
import functools
import importlib.util
import os
import pathlib
import re

from selftrain_jax.core.errors import InputError, one_line
from selftrain_jax.core.files import user_path
from selftrain_jax.models.files.weights import TORCH_WEIGHTS, WEIGHTS, parts_of

# Copies for other programs: onnx/..., original/..., and Mistral's own weight files.
_IGNORED = ["*/*", "consolidated*"]
_TORCH_FILES = re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin")
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_model(name_or_dir: str | os.PathLike, revision: str | None = None, weights: bool = True) -> pathlib.Path:
    """The local directory of a model: `name_or_dir` itself, or the cached download of a Hugging Face hub name.

    The hub's own settings hold: HF_HOME (where the cache is), HF_HUB_OFFLINE, HF_ENDPOINT, HF_TOKEN.

    Args:
      name_or_dir: a directory, or a hub name such as `EleutherAI/pythia-14m`.
      revision: branch, tag or commit on the hub (`step1000`, ...); None is the default branch.
      weights: False fetches the JSON files only. With True, a revision that has no safetensors files gives its PyTorch
        checkpoint, provided that PyTorch is installed.

    Raises:
      InputError: there is no such directory, or no complete model on the hub; the line says why and what to do.
    """
    path = user_path(name_or_dir)
    if os.path.isdir(path):
        if revision is not None:
            raise InputError(f"revision={revision!r} applies to hub names, but {path} is a local directory; drop it")
        return _whole(path)
    name = os.fspath(name_or_dir)
    if not HUB_NAME.fullmatch(name) or os.path.exists(path):
        raise InputError(
            f"model directory not found: {name} (pass a directory holding config.json and model.safetensors, "
            "or a hub name such as EleutherAI/pythia-14m)"
        )
    check_hub_name(f"model directory not found: {name}", name)
    model = f"model {name!r}" + (f" at revision {revision!r}" if revision else "")
    try:
        return _whole(_fetch(name, revision, model, weights))
    except InputError:
        raise
    except Exception as e:  # the hub client raises its own, its HTTP library's and the system's errors
        raise InputError(f"{model}: {_explain(e, name)}") from None


def _whole(directory: pathlib.Path) -> pathlib.Path:
    """`directory`; `InputError` where a JSON file in it is a link to nothing, which would pass for an absent one."""
    if lost := [file for file in directory.glob("*.json") if not file.exists()]:
        raise InputError(
            f"{lost[0]} is a link to nothing, as of a cache that was copied or emptied in part: fetch it anew"
        )
    return directory


def check_hub_name(what: str, name: str) -> None:
    """Raises `InputError`, which begins with `what`, for a hub name whose owner is a folder here: that is a local path
    with a slip, and the hub would be asked for somebody's account of that name."""
    owner = name.split("/")[0]
    if owner and os.path.isdir(owner):
        raise InputError(
            f"{what}, though {owner} is a folder here: correct the path ./{name}, or ask for what the hub has under "
            "this name from another working directory"
        )


class _Incomplete(Exception):
    """The cache lacks the weights, and the hub cannot be asked for them."""


def _fetch(name: str, revision: str | None, model: str, weights: bool) -> pathlib.Path:
    import huggingface_hub

    download = functools.partial(huggingface_hub.snapshot_download, name, ignore_patterns=_IGNORED)
    patterns = ["*.json", "*.safetensors"] if weights else ["*.json"]
    found = pathlib.Path(download(revision=revision, allow_patterns=patterns))
    if not weights or _holds(found, WEIGHTS):
        return found
    if not _holds(found, TORCH_WEIGHTS):
        try:
            listed = huggingface_hub.HfApi().list_repo_files(name, revision=found.name)
        except Exception as e:  # without a network, older hub clients return whatever part is cached
            raise _Incomplete from e
        if not any(map(_TORCH_FILES.fullmatch, listed)):
            raise InputError(
                f"{model} holds neither {WEIGHTS} nor {TORCH_WEIGHTS}, in one file or several; name a model that does"
            )
    if importlib.util.find_spec("torch") is None:
        raise InputError(
            f"{model} holds only PyTorch weights ({TORCH_WEIGHTS}), and reading them needs PyTorch: pip install "
            "torch (or choose a revision with safetensors files)"
        )
    if not _holds(found, TORCH_WEIGHTS):
        # The commit that was listed, in case that the branch has moved meanwhile.
        download(revision=found.name, allow_patterns=["*.json", "pytorch_model*.bin"])
    return found


def _holds(directory: pathlib.Path, weights: str) -> bool:
    """Whether the weight file is there, or every shard that its index names."""
    try:
        return bool(parts_of(directory, weights))
    except InputError:
        return False


def _explain(error: Exception, name: str) -> str:
    """What went wrong at the hub and the way out, in one line."""
    from huggingface_hub import constants, errors

    chain: list[BaseException] = [error]
    while chain[-1].__cause__ is not None:  # what the hub client met first is the cause of what it raised
        chain.append(chain[-1].__cause__)

    # By name: hub clients from 2.0 on bring an HTTP library of another name, with the same class names.
    kinds = {kind.__name__ for e in chain for kind in type(e).__mro__}
    page = f"{constants.ENDPOINT}/{name}"
    response = next((e.response for e in chain if isinstance(e, errors.HfHubHTTPError)), None)
    status = None if response is None else response.status_code
    # Without a token the hub answers 401, not 404, for a name that does not exist; a bad token it names as such.
    bad_token = status == 401 and "invalid credentials" in response.headers.get("X-Error-Message", "").lower()
    partly = bool(kinds & {"IncompleteSnapshotError", "_Incomplete"})
    cached = "the cache holds only a part of it" if partly else "the cache does not hold it"
    failed = next((e.errno for e in chain if isinstance(e, OSError) and e.errno is not None), None)

    if "GatedRepoError" in kinds:
        return f"is gated; accept its terms on {page}, then set HF_TOKEN to a token of that account"
    if "RevisionNotFoundError" in kinds:
        return (
            f"no such branch, tag or commit; see {page}/tree/main for those that exist (Pythia: step0, step1, step2, "
            "step4, ..., step512, step1000, step2000, ..., step143000)"
        )
    if "RepositoryNotFoundError" in kinds or (status in (401, 404) and not bad_token):
        return (
            f"is neither a local directory nor a model on {constants.ENDPOINT}; check the spelling (as in "
            "EleutherAI/pythia-70m), and if it is private, set HF_TOKEN to a token that may read it"
        )
    if bad_token:
        return "the hub refused the access token as wrong or expired; set HF_TOKEN to a valid one, or unset it"
    if status == 403:
        return f"the access token may not read it; set HF_TOKEN to one of an account that can open {page}"
    if status == 429:
        return (
            "the hub has had too many requests from here; try again in some minutes, or set HF_TOKEN for a higher limit"
        )
    if status is not None:
        return f"the hub answered with an error ({status}); try again later, or pass a local directory"
    # The client's own downloader for large files reports a full disk in words only.
    if failed in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
        return (
            f"the disk of the cache {constants.HF_HUB_CACHE} is full; free some space, or set HF_HOME to another disk"
        )
    if "PermissionError" in kinds and "TransportError" not in kinds:
        reason = one_line(error)[:120]
        return f"the cache {constants.HF_HUB_CACHE} is not writable ({reason}); set HF_HOME to another folder"
    if "OfflineModeIsEnabled" in kinds:
        return f"HF_HUB_OFFLINE is set and {cached}; unset it once to download, or pass a local directory"
    if "RemoteProtocolError" in kinds or "Consistency check failed" in str(error):
        return "the download broke off and what came of that file is not used; run the same command again to finish it"
    if kinds & {"ConnectionError", "TimeoutError", "TransportError"}:
        return (
            f"no connection to {constants.ENDPOINT} and {cached}; check network and proxy, or pass a local "
            "directory, or copy a cache from elsewhere and name it with HF_HOME"
        )
    return f"the hub client failed ({type(error).__name__}: {one_line(error)[:200]}); pass a local directory instead"
