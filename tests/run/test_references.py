"""A model as a user names it; models of runs are in tests/e2e/test_references.py."""

import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.run.references import find_model, open_run
from tests.models.checkpoints import old_tensors, write_checkpoint, write_tokenizer


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_what_decides_the_ids_that_are_read_and_where_writing_stops_is_part_of_a_model(tmp_path, name):
    """Results of tasks are kept by this fingerprint: of another BOS, or another end, they would be shown as those."""
    model = write_tokenizer(write_checkpoint(tmp_path / "model", old_tensors()))
    before = find_model(str(model)).fingerprint
    text = (model / name).read_text() if (model / name).is_file() else "{}"
    assert find_model(str(model)).fingerprint == before
    (model / name).write_text(text + " ")
    assert find_model(str(model)).fingerprint != before


def test_where_a_run_is_asked_for_a_study_is_named_as_what_it_is(tmp_path):
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(InputError, match="is the folder of a study: name one of its runs, a folder in .*/runs"):
        open_run(tmp_path)
