"""A folder's way to the Hugging Face hub."""

import os
import pathlib

from selftrain_jax.core.errors import InputError, one_line
from selftrain_jax.models.files.hub import HUB_NAME


def check_push(name: str) -> None:
    """Raises `InputError` where a push to the repository `name` cannot succeed, as far as can be told from here."""
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
        valid = HUB_NAME.fullmatch(name)
    except ValueError:
        valid = None
    if not valid:
        raise InputError(f"--push={name} must read USER/NAME, or ORGANIZATION/NAME, as on the Hugging Face hub")
    if constants.HF_HUB_OFFLINE:
        raise InputError(f"--push={name}: HF_HUB_OFFLINE is set; unset it, or leave out --push")
    if huggingface_hub.get_token() is None:
        raise InputError(f"--push={name} needs a token that may write: run `hf auth login`, or set HF_TOKEN")


def push(directory: pathlib.Path, name: str, kind: str, *, public: bool = False) -> str:
    """Uploads all of `directory` as one commit to the repository `name`, which is made where there is none; returns the
    page of the commit.

    Args:
      kind: "model" or "dataset".
      public: whether everybody may see a repository that is made, and whether one that everybody sees will do.

    Raises:
      InputError: the hub refused it, or cannot be reached. The directory stays as it is.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        api.create_repo(name, repo_type=kind, private=not public, exist_ok=True)
        if not public and not api.repo_info(name, repo_type=kind).private:
            raise InputError(f"--push={name} is there and public: choose another name, or say --public")
        return api.upload_folder(repo_id=name, repo_type=kind, folder_path=os.fspath(directory)).commit_url
    except InputError as e:
        error = str(e)
    except Exception as e:  # the hub client raises its own, its HTTP library's and the system's errors
        status = getattr(getattr(e, "response", None), "status_code", None)
        why = (
            "the token may not write there (HF_TOKEN, or `hf auth login`)"
            if status in (401, 403)
            else one_line(e)[:200]
        )
        error = f"--push={name}: {why}"
    raise InputError(f"{error}. {directory} is written; `hf upload {name} {directory} --repo-type={kind}` sends it")
