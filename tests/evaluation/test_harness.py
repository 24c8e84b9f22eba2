"""Our model class answers the harness's requests as plain passes over the same tokens do. No PyTorch."""

import numpy as np
import pytest
import transformers
from tokenizers import processors

from selftrain_jax.distributed.mesh import make_mesh
from selftrain_jax.distributed.settings import MeshConfig

pytest.importorskip("lm_eval", reason="lm-evaluation-harness (extra eval) is not installed")
from lm_eval.api.instance import Instance

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.evaluation.generation import Generation, read_generation
from selftrain_jax.evaluation.harness import HarnessModel
from selftrain_jax.models import hf
from selftrain_jax.sampling.settings import SamplingConfig
from tests.evaluation.harness_model import CONFIG, log_probs, tokenizer, write_model
from tests.ties import clear_best

LONG = " ".join(["the cat sat on the mat and a dog"] * 8)
PAIRS = [
    ("the cat", " sat on the mat"),
    ("the cat ", "sat on the mat"),  # the space belongs to the word after it
    ("the cat", " sat on the mat"),
    ("", "the cat sat"),
    ("", "<|endoftext|>the cat"),
    ("<|endoftext|>the cat", " sat"),
    (" ", "dog"),
    ("what is", "?"),
    (LONG, " cat"),  # longer than the context
    (LONG, " one two three four five one two three four five"),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("harness") / "model")


@pytest.fixture(scope="module")
def params(directory):
    return hf.load_pretrained(directory)[1]


@pytest.fixture(scope="module")
def model(params, directory):
    return HarnessModel(params, CONFIG, directory, batch_size=8)


def requests(kind, arguments):
    return [Instance(kind, {}, argument, i) for i, argument in enumerate(arguments)]


def test_log_likelihoods_are_those_of_one_plain_pass(model, params):
    with pytest.warns(InputWarning, match="tasks: 2 of 8 different prompts are longer than the 48 tokens"):
        found = model.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    encode = model.tokenizer.encode
    for (context, continuation), (value, greedy) in zip(PAIRS, found):
        whole = encode(context + continuation)
        count = len(whole) - len(encode(context.rstrip()))
        if not context.strip():
            whole, count = ([0] + whole, count) if whole[0] != 0 else (whole, count - 1)
        ids = whole[-CONFIG.max_position - 1 :]
        scores = log_probs(params, ids)[-count:]
        assert value == pytest.approx(scores[np.arange(count), ids[-count:]].sum(), abs=1e-4)  # fp32 sums
        assert greedy == (clear_best(scores, 1e-4) == ids[-count:]).all()
    assert found[0] == found[1] == found[2]


def test_what_greedy_decoding_writes_is_flagged_greedy(model, params):
    ids = model.encode(["the cat sat on"])[0]
    first = int(clear_best(log_probs(params, ids + [0])[-1], 1e-4))
    second = int(clear_best(log_probs(params, ids + [first, 0])[-1], 1e-4))
    pairs = [(ids, [first, second]), (ids, [first]), (ids, [first, (second + 1) % CONFIG.vocab_size])]
    assert [greedy for _, greedy in model._log_likelihoods(pairs)] == [True, True, False]


def test_batches_devices_and_order_change_nothing(model, params, directory):
    expected = model.loglikelihood(requests("loglikelihood", PAIRS), disable_tqdm=True)
    mesh = make_mesh(MeshConfig(data=4, tensor=2))
    other = HarnessModel(hf.load_pretrained(directory, mesh=mesh)[1], CONFIG, directory, mesh=mesh, batch_size=4)
    found = other.loglikelihood(requests("loglikelihood", PAIRS[::-1]), disable_tqdm=True)[::-1]
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    np.testing.assert_allclose([v for v, _ in found], [v for v, _ in expected], atol=1e-5)


def test_rolling_scores_every_token_once_with_the_longest_context(model, params):
    texts = [LONG, "the cat", ""]
    found = model.loglikelihood_rolling(
        requests("loglikelihood_rolling", [(text,) for text in texts]), disable_tqdm=True
    )
    size = CONFIG.max_position
    for text, value in zip(texts, found):
        ids = [0] + model.tokenizer.encode(text)
        total, done = 0.0, 1
        while done < len(ids):
            end = min(done + size, len(ids))
            window = ids[max(end - size - 1, 0) : end]
            scores = log_probs(params, window)
            total += sum(scores[i - 1, window[i]] for i in range(len(window) - (end - done), len(window)))
            done = end
        assert value == pytest.approx(total, rel=1e-5)


def test_generation_is_greedy_cut_and_left_truncated(model, params):
    settings = {"until": [], "max_gen_toks": 12}
    contexts = ["the cat", "what is the answer", LONG, "a dog", "the cat"]
    with pytest.warns(InputWarning, match="tasks: 1 of 4 different prompts are longer than the 36 tokens"):
        found = model.generate_until(requests("generate_until", [(c, settings) for c in contexts]), True)
    for context, text in zip(contexts, found):
        ids = model.tokenizer.encode(context)[-(CONFIG.max_position - 12) :]
        count = len(ids)
        for _ in range(12):
            following = clear_best(log_probs(params, ids + [0])[-1][: len(model.tokenizer)], 1e-4)
            if following == CONFIG.eos_token_id:
                break
            ids.append(int(following))
        assert text == model.tokenizer.decode(ids[count:], skip_special_tokens=True)
    assert found[0] == found[4] and len(set(found)) > 1 and len(found[0]) > 2
    stop = found[0][2]
    stopped = model.generate_until(requests("generate_until", [(contexts[0], settings | {"until": stop})]), True)[0]
    assert stopped == found[0].split(stop)[0]


def test_a_special_token_may_end_generated_text(params, directory):
    """As <|im_end|>, which tasks name, in the tokenizer of a base model that stops at another token."""
    settings = {"until": [], "max_gen_toks": 12}
    plain = HarnessModel(params, CONFIG, directory, batch_size=8)
    (text,) = plain.generate_until(requests("generate_until", [("the cat", settings)]), True)
    ids = plain.tokenizer.encode(text)
    stop = next(i for i in ids[1:] if ids.index(i) and plain.tokenizer.decode([i]).strip())
    special = transformers.AutoTokenizer.from_pretrained(directory)
    special.add_special_tokens({"additional_special_tokens": [special.convert_ids_to_tokens(stop)]})
    name = special.added_tokens_decoder[stop].content
    model = HarnessModel(params, CONFIG, special, batch_size=8)
    (found,) = model.generate_until(requests("generate_until", [("the cat", settings | {"until": [name]})]), True)
    assert found == plain.tokenizer.decode(ids[: ids.index(stop)]) != text


def test_drawn_text_depends_on_seed_and_place_alone(model, params, directory):
    settings = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.5, "top_k": 0}
    asked = requests("generate_until", [("the cat", settings)] * 3 + [("a dog", settings)])
    found = model.generate_until(asked, True)
    assert len(set(found[:3])) == 3
    small = HarnessModel(params, CONFIG, directory, batch_size=2)
    assert small.generate_until(asked, True) == found


@pytest.mark.parametrize(
    "settings, expected",
    [
        ({}, Generation((), 256, None)),
        ({"until": "\n", "max_gen_toks": 5, "temperature": 0.0}, Generation(("\n",), 5, None)),
        (
            {"until": ["a", "b"], "do_sample": False, "temperature": 0.7, "num_beams": 1},
            Generation(("a", "b"), 256, None),
        ),
        ({"max_tokens": 7, "temperature": 0.5}, Generation((), 7, SamplingConfig(0.5, 50, 1.0, 0))),
        (
            {"do_sample": True, "temperature": 2, "top_k": 3, "top_p": 0.9},
            Generation((), 256, SamplingConfig(2, 3, 0.9, 0)),
        ),
    ],
)
def test_generation_settings_are_read_as_the_hf_model_reads_them(settings, expected):
    assert read_generation(settings) == expected


@pytest.mark.parametrize(
    "settings, words",
    [({"num_beams": 4}, "num_beams=4"), ({"do_sample": True}, "temperature above 0"), ({"x": 1}, "x=1")],
)
def test_generation_settings_that_are_not_supported_are_named(settings, words):
    with pytest.raises(InputError, match=words):
        read_generation(settings)


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda m: m.loglikelihood(requests("loglikelihood", [("the", "")]), disable_tqdm=True), "has 0 tokens"),
        (lambda m: m.loglikelihood(requests("loglikelihood", [("the", LONG)]), disable_tqdm=True), "context of 48"),
        (
            lambda m: m.generate_until(requests("generate_until", [("the", {"max_gen_toks": 48})]), True),
            "max_gen_toks=48",
        ),
        (lambda m: HarnessModel(m._params, CONFIG, m.tokenizer, batch_size=0), "batch_size=0"),
    ],
)
def test_impossible_requests_are_refused(model, call, words):
    with pytest.raises(InputError, match=words):
        call(model)


@pytest.mark.parametrize(
    "tokens, prefix, end, start_of_texts",
    [
        ({"bos_token": "y", "eos_token": "z"}, "y", "z", ["y"]),
        ({"eos_token": "z"}, "z", "z", []),
        ({"bos_token": "y"}, "y", None, ["y"]),
        ({}, None, None, []),
    ],
    ids=["BOS and EOS", "no BOS", "no EOS", "neither"],
)
def test_prefix_and_end_are_those_of_the_tokenizer_as_in_the_harness(params, tokens, prefix, end, start_of_texts):
    """The model's own, where the tokenizer names none. Texts begin with BOS where the tokenizer puts it there."""
    backend = tokenizer()
    ids = {None: 0} | {token: backend.token_to_id(token) for token in "yz"}
    if start_of_texts:
        backend.post_processor = processors.TemplateProcessing(single="y $A", special_tokens=[("y", ids["y"])])
    named = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    model = HarnessModel(params, CONFIG, named, batch_size=8)
    assert (model.prefix_token_id, model.eot_token_id) == (ids[prefix], ids[end])
    assert model._decoding_config.stop_ids == tuple(sorted({0, ids[end]}))
    cat, sat = (backend.encode(text, add_special_tokens=False).ids for text in ("the cat", " sat"))
    bos = [ids[token] for token in start_of_texts]
    assert model.encode_pairs([("the cat", " sat"), ("", " sat")]) == [(bos + cat, sat), ([ids[prefix]], sat)]
