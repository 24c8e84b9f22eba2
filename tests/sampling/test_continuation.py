import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig
from selftrain_jax.models.decoder import Decoder
from selftrain_jax.sampling.continuation import continue_prompts
from selftrain_jax.sampling.settings import SamplingConfig
from tests.shapes import SMALL, wandering
from tests.ties import clear_best

CONFIG = dataclasses.replace(SMALL, max_position=320)  # for prompts of more than one block
LENGTHS = (1, 3, 40, 71, 171)
NEW, ROWS = 40, 8


@pytest.fixture(scope="module")
def params():
    return wandering(CONFIG, embedding=16)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(1)
    return [rng.integers(0, CONFIG.vocab_size, length) for length in LENGTHS]


@pytest.fixture(scope="module")
def alone(params, prompts):
    """Each prompt continued by itself: an argmax of a pass over the whole row, token by token, cut at EOS."""
    model = Decoder(CONFIG)

    @jax.jit
    def following(tokens, at):  # tokens [1, P], padded on the right
        hidden = model.apply({"params": params}, tokens)[:, at]
        return model.apply({"params": params}, hidden, method="logits")[0]

    found = []
    for prompt in prompts:
        row = np.zeros((1, max(LENGTHS) + NEW), np.int32)
        row[0, : len(prompt)] = prompt
        for at in range(len(prompt), len(prompt) + NEW):
            row[0, at] = clear_best(following(row, at - 1), 1e-4)
        ids = row[0, len(prompt) : len(prompt) + NEW].tolist()
        found.append(ids[: ids.index(CONFIG.eos_token_id)] if CONFIG.eos_token_id in ids else ids)
    return found


def continued(*arguments, **options):
    return continue_prompts(*arguments, rows=ROWS, **options)


def test_rows_of_any_length_continue_as_if_alone(params, prompts, alone):
    assert len(set(map(tuple, alone))) == len(alone)
    assert continued(params, CONFIG, prompts, NEW) == alone
    # Alone, its prompt is read in blocks of both sizes; and the rows lie on several devices.
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    assert continued(params, CONFIG, prompts[-1:], NEW, mesh=mesh) == alone[-1:]


def test_greedy_takes_the_lowest_of_equals_and_can_run_past_eos(params, prompts):
    flat = params | {"head": {"kernel": jnp.zeros_like(params["head"]["kernel"])}}
    assert CONFIG.eos_token_id == 0
    assert continued(flat, CONFIG, prompts[:2], 12, stop_at_eos=False) == [[0] * 12] * 2
    assert continued(flat, CONFIG, prompts[:2], 12) == [[], []]


def test_a_row_ends_where_it_is_told_to(params, prompts, alone):
    asked = []

    def finished(row, ids):
        asked.append(row)
        return row == 1 and len(ids) >= 5

    found = continued(params, CONFIG, prompts[:3], NEW, finished=finished)
    assert found[0] == alone[0] and found[2] == alone[2]
    assert 5 <= len(found[1]) < NEW and found[1] == alone[1][: len(found[1])]
    assert set(asked) <= {0, 1, 2}


def test_eos_ends_a_row_and_is_not_part_of_it(params, prompts, alone):
    first = alone[2][7]
    config = dataclasses.replace(CONFIG, eos_token_id=first)
    end = alone[2].index(first)
    found = continued(params, config, prompts[2:4], NEW)
    assert found[0] == alone[2][:end] and first not in found[1]


def test_any_stop_token_ends_a_row(params, prompts, alone):
    stops = alone[2][7], alone[3][4]
    config = dataclasses.replace(CONFIG, stop_token_ids=stops)
    for ids, whole in zip(continued(params, config, prompts[2:4], NEW), alone[2:4]):
        assert ids == whole[: min(whole.index(stop) for stop in stops if stop in whole)]


def test_padded_ids_are_never_emitted(params, prompts):
    found = continued(params, CONFIG, prompts, NEW, allowed=np.arange(CONFIG.vocab_size) < 7)
    assert all(token < 7 for ids in found for token in ids) and any(found)


def test_draws_belong_to_their_keys(params, prompts):
    sampling = SamplingConfig(temperature=1.5, min_new_tokens=0)
    keys = jax.random.split(jax.random.key(3), len(prompts))
    whole = continued(params, CONFIG, prompts, 20, sampling=sampling, keys=keys)
    part = continued(params, CONFIG, prompts[2:4], 20, sampling=sampling, keys=keys[2:4])
    assert part == whole[2:4]
    other = continued(params, CONFIG, prompts[2:4], 20, sampling=sampling, keys=keys[:2])
    assert other != part
    top1 = SamplingConfig(temperature=1.5, top_k=1, min_new_tokens=0)
    drawn = continued(params, CONFIG, prompts[:2], 20, sampling=top1, keys=keys[:2])
    assert drawn == continued(params, CONFIG, prompts[:2], 20)


@pytest.mark.parametrize(
    "prompt, count, word",
    [([], 5, "at least 1"), ([1] * 300, 30, "context of 320"), ([1], 0, "at least 1"), ([96], 5, "vocabulary of 96")],
)
def test_impossible_requests_are_refused(params, prompt, count, word):
    with pytest.raises(InputError, match=word):
        continued(params, CONFIG, [np.array(prompt, np.int64), np.array([1, 2])], count)


def test_drawing_needs_keys(params):
    with pytest.raises(InputError, match="random key"):
        continued(params, CONFIG, [np.array([1])], 2, sampling=SamplingConfig(min_new_tokens=0))


@pytest.mark.parametrize(
    "keys, message",
    [
        (jax.random.split(jax.random.key(0, impl="threefry2x32"), 1), r"of shape \(2,\), not \(1,\)"),
        (jax.random.split(jax.random.key(0, impl="rbg"), 2), "of threefry2x32, .* not of rbg"),
        (np.zeros((2, 2), np.uint32), "not a number or array"),
    ],
    ids=["one for two", "another kind", "raw"],
)
def test_each_prompt_has_a_key_of_its_own(params, keys, message):
    sampling = SamplingConfig(min_new_tokens=0)
    with pytest.raises(InputError, match=message):
        continued(params, CONFIG, [np.array([1]), np.array([2])], 2, sampling=sampling, keys=keys)


@pytest.mark.parametrize(
    "allowed", [np.zeros(CONFIG.vocab_size, bool), np.array([True]), np.array([5]), np.ones(CONFIG.vocab_size, int)]
)
def test_what_allows_nothing_or_is_no_mask_is_refused(params, allowed):
    """Nothing allowed gave token 0, and one number was taken for all tokens."""
    with pytest.raises(InputError, match="allowed must be .* truth values"):
        continued(params, CONFIG, [[1]], 2, allowed=allowed)


@pytest.mark.parametrize("sampling", [None, SamplingConfig(max_new_tokens=4)], ids=["greedy", "drawn"])
@pytest.mark.parametrize("stop_at_eos", [True, False])
def test_a_model_that_gives_no_numbers_writes_nothing(params, prompts, sampling, stop_at_eos):
    """All tokens are the best where none is a number: the lowest is one that ends a text."""
    broken = {**params, "final_norm": jax.tree.map(lambda x: np.full_like(x, np.nan), params["final_norm"])}
    keys = None if sampling is None else jax.random.split(jax.random.key(0), 2)
    with pytest.raises(InputError, match="logits behind prompt 0 are not finite: .*diverged"):
        continued(broken, CONFIG, prompts[:2], 4, sampling=sampling, keys=keys, stop_at_eos=stop_at_eos)
