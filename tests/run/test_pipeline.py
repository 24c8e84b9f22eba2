"""The order of a run's stages."""

import pathlib

from selftrain_jax.cli.config import load_config
from selftrain_jax.run.pipeline import Pipeline

TINY = str(pathlib.Path(__file__).resolve().parents[1] / "e2e" / "tiny.py")


def test_what_evaluation_refuses_is_refused_before_the_long_work(tmp_path):
    kinds = [stage.name.split("/")[0] for stage in Pipeline(load_config(TINY), tmp_path).stages()]
    assert kinds.index("evaluate") < kinds.index("sample") and kinds[-2:] == ["evaluate", "report"]
