import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.core.settings import build
from selftrain_jax.lab.plant.settings import PlantConfig
from selftrain_jax.run.settings import RunConfig

GOOD = {
    "text": "t.txt",
    "tokens": 8 * 32 * 100,
    "kinds": ["words"],
    "counts": [0, 2, 8],
    "sequences": 4,
    "prefix_length": 4,
    "suffix_length": 4,
    "train": {"batch_size": 8, "sequence_length": 32, "epochs": 1},
}
REFUSED = [
    ({"text": ""}, "plant text is empty"),
    ({"kinds": ["poems"]}, "plant kinds=('poems',) must be some of words, biographies, passages"),
    ({"kinds": ["words", "passages"]}, "plant passages='': name a file"),
    ({"passages": "p.txt"}, "plant passages='p.txt': name a file for the kind 'passages', and only for it"),
    ({"counts": [0, 8, 2]}, "plant counts=(0, 8, 2) must rise"),
    ({"counts": [4]}, "plant counts=(4,) must rise"),
    ({"sequences": 1}, "plant sequences=1"),
    ({"tokens": 8 * 32 * 100 + 32}, "must be a multiple of train.sequence_length * train.batch_size = 256, for ex"),
    ({"counts": [0, 4000]}, "take 224000 tokens, more than 50% of tokens=25600: lower counts or sequences, or raise"),
    ({"train": {"batch_size": 8, "sequence_length": 32, "epochs": 2}}, "plant train.epochs=2 must be 1"),
]


@pytest.mark.parametrize("change, message", REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_planted_is_refused_with_the_settings(change, message):
    config = build(PlantConfig, GOOD)
    assert (config.length, config.num_rows, config.planted_tokens) == (12, 800, 10 * 4 * 14)
    with pytest.raises(InputError) as e:
        build(PlantConfig, GOOD | change)
    assert message in str(e.value) and "\n" not in str(e.value)


def test_probes_are_those_of_what_is_planted():
    run = build(RunConfig, {"source": "m", "plant": GOOD, "evaluate": {"probes": ""}})
    assert (run.evaluate.probes, run.evaluate.probes_chosen) == ("plant:probes.jsonl", "planted")
    with pytest.raises(InputError, match="evaluate probes='p.jsonl' with plant"):
        build(RunConfig, {"source": "m", "plant": GOOD, "evaluate": {"probes": "p.jsonl"}})
