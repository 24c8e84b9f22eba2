"""What the card of an exported model says of it."""

import pytest

from selftrain_jax.lab.plant.settings import PlantConfig
from selftrain_jax.run import export
from selftrain_jax.run.settings import RunConfig


@pytest.mark.parametrize("model", ["base", "self-0"])
def test_a_card_says_that_sequences_were_planted_in_the_model(model):
    """The base of a planted run is not the model that its setting `source` names."""
    config = RunConfig(source="org/model", plant=PlantConfig(text="book.txt"))
    for run, planted in ((config, True), (RunConfig(source="org/model"), False)):
        text = export._card("gpt_neox", "out", export._shown(run, model) | {"checkpoint": 3}, model, [])
        assert ("`org/model`, trained on text in which sequences were planted" in text) is planted
        assert ('"text": "book.txt"' in text) is planted
