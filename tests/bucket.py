"""A bucket for tests: gcp-storage-emulator, an object store on this machine that speaks Google's protocol, in memory.

    python tests/bucket.py PORT

prints the environment in which gcsfs and TensorStore talk to it, and serves `gs://runs` until it is killed.
"""

import contextlib
import sys
import time
from http import HTTPStatus

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects


def environment(port: int) -> dict[str, str]:
    url = f"http://localhost:{port}"
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # asks a service that the emulator does not have
    }


def _generation(request, storage) -> str:
    with contextlib.suppress(NotFound):
        name = request.params.get("object_id") or request.query.get("name", [None])[0] or request.data["meta"]["name"]
        return storage.get_file_obj(request.params["bucket_name"], name)["generation"]
    return "0"


def _as_in_the_cloud() -> None:
    """What TensorStore needs and the emulator lacks: versions of objects when they are read, and conditions on them."""
    download, insert = objects.download, objects.insert

    def download_with_version(request, response, storage, *args, **kwargs):
        download(request, response, storage, *args, **kwargs)
        response["X-Goog-Generation"] = _generation(request, storage)

    def insert_on_condition(request, response, storage, *args, **kwargs):
        wanted = request.query.get("ifGenerationMatch")
        if wanted and wanted[0] != _generation(request, storage):
            response.status = HTTPStatus.PRECONDITION_FAILED
        else:
            insert(request, response, storage, *args, **kwargs)

    objects.download, objects.insert = download_with_version, insert_on_condition


def main(port: int) -> None:
    _as_in_the_cloud()
    from gcp_storage_emulator.server import create_server  # binds the handlers

    with create_server("localhost", port, in_memory=True, default_bucket="runs"):
        print(*(f"{name}={value}" for name, value in environment(port).items()), flush=True)
        while True:
            time.sleep(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
