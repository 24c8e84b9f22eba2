"""Most checks put a scorer of known costs in place of a model; it also records what it was asked to score."""

import dataclasses
import functools
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax.data import texts
from selftrain_jax.errors import InputError
from selftrain_jax.evaluation import likelihood
from selftrain_jax.evaluation.score import TokenScores, score
from selftrain_jax.models.config import ModelConfig
from selftrain_jax.models.gpt_neox import init_params

CONFIG = ModelConfig(vocab_size=200, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=8, max_position=12)
BOS = CONFIG.bos_token_id


def tokenize(texts, add_special_tokens=True, verbose=True):
    """One token per character; a BOS of its own would show up in every count."""
    assert not add_special_tokens
    return {"input_ids": [[ord(c) for c in text] for text in texts]}


@dataclasses.dataclass
class CostScorer:
    """Every token costs a fixed number of nats, whatever came before it."""

    costs: dict[str, float]
    default: float = 0.0
    asked: list = dataclasses.field(default_factory=list)

    def __call__(self, sequences, starts):
        found = []
        for sequence, start in zip(sequences, starts, strict=True):
            assert 1 <= start < len(sequence) <= CONFIG.max_position + 1
            self.asked.append((list(sequence[:start]), list(sequence[start:])))
            costs = np.array([self.costs.get(chr(t), self.default) for t in sequence[start:]], np.float32)
            found.append(TokenScores(-costs, np.zeros(len(costs), np.int32), np.zeros(len(costs), np.float32)))
        return found


def ids(text):
    return [ord(c) for c in text]


def text(tokens):
    return "".join(map(chr, tokens))


@pytest.mark.parametrize("length", [1, 2, 11, 12, 13, 24, 25, 41])
def test_windows_score_each_token_exactly_once(length):
    document = "".join(chr(40 + i) for i in range(length))
    scorer = CostScorer({}, default=1.0)
    found = likelihood.text_likelihood(scorer, CONFIG, tokenize, [document])
    assert "".join(text(scored) for _, scored in scorer.asked) == document
    # The first window sees BOS; each later one sees the last token of the one before it.
    seen = [BOS, *ids(document)]
    assert [given for given, _ in scorer.asked] == [[seen[i]] for i in range(0, length, CONFIG.max_position)]
    assert found.num_tokens.sum() == found.nll.sum() == length


def test_likelihood_adds_up_over_texts():
    texts = ["aab", "", "b" * 30, "é"]
    found = likelihood.text_likelihood(CostScorer({"a": 0.5, "b": 2.0, "é": 3.0}), CONFIG, tokenize, texts)
    assert found.num_bytes == 3 + 30 + 2
    assert found.nll.tolist() == [3.0, 24.0, 24.0, 12.0, 3.0] and found.num_tokens.tolist() == [3, 12, 12, 6, 1]
    assert found.nll_per_token == pytest.approx(66 / 34)
    assert found.bits_per_byte == pytest.approx(66 / np.log(2) / 35)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary():
    params = init_params(CONFIG, jax.random.key(0))
    params["head"] = {"kernel": jnp.zeros_like(params["head"]["kernel"])}
    scorer = functools.partial(score, params, CONFIG, batch_size=8)
    found = likelihood.text_likelihood(scorer, CONFIG, tokenize, ["some text that is longer than a window", "a"])
    # One fp32 logarithm.
    assert np.exp(found.nll_per_token) == pytest.approx(200, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(np.log2(200), rel=1e-6)


@pytest.mark.parametrize("name", ["set.jsonl", "set.jsonl.gz", "set.txt"])
def test_texts_come_from_json_lines_or_plain_files(tmp_path, name):
    lines = '{"text": "one é"}\n\n{"text": "two", "id": 3}\n'
    data = lines.encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert texts.load_texts(tmp_path / name) == ([lines] if name.endswith("txt") else ["one é", "two"])


def row(question="q", choices=("xx", "y"), gold=0):
    return {"question": question, "choices": list(choices), "gold": gold}


def answers(rows, costs, template="{question}", add_bos=False):
    scorer = CostScorer(costs)
    return likelihood.multiple_choice(scorer, CONFIG, tokenize, rows, template, add_bos=add_bos), scorer.asked


def test_accuracy_and_its_normalized_form_by_hand():
    # "x" costs 1 and "y" 1.5; the space before each choice is free.
    #   xx: 2.0, per character 1.0      y: 1.5, per character 1.5      xxx: 3.0, per character 1.0
    rows = [
        row(choices=["xx", "y"], gold=0),
        row(choices=["xx", "y"], gold=1),
        row(choices=["yy", "xxxx", "xy"], gold=2),
        row(choices=["yy", "xxxx", "xy"], gold=1),
        row(choices=["xy", "yx"], gold=0),  # the first choice wins ties
        row(choices=["xy", "yx"], gold=1),
    ]
    hits, _ = answers(rows, {"x": 1.0, "y": 1.5})
    assert hits["acc"].tolist() == [False, True, True, False, True, False]
    assert hits["acc_norm"].tolist() == [True, False, False, True, True, False]
    assert hits["acc"].dtype == bool


@pytest.mark.parametrize("add_bos", [False, True])
def test_choices_follow_the_prompt_after_one_space(add_bos):
    _, asked = answers([row("why", [" ab", "c"])], {}, "Q {question}:", add_bos)
    head = [BOS] if add_bos else []
    assert asked == [(head + ids("Q why:"), ids(" ab")), (head + ids("Q why:"), ids(" c"))]


@pytest.mark.parametrize("add_bos", [False, True])
def test_a_prompt_longer_than_the_context_loses_its_beginning_only(add_bos):
    question = "abcdefghijklmnopqrstuvw"
    hits, asked = answers([row(question, ["xxx", "y"], gold=1)], {"x": 1.0, "y": 2.0}, add_bos=add_bos)
    assert asked == [(ids(question[-9:]), ids(" xxx")), (ids(question[-11:]), ids(" y"))]
    assert hits["acc"].tolist() == [True] and hits["acc_norm"].tolist() == [False]


def test_the_longest_prompt_that_fits_is_whole():
    _, asked = answers([row("abcdefghi", ["x", "xy"])], {}, add_bos=True)
    assert asked == [([BOS, *ids("abcdefghi")], ids(" x")), ([BOS, *ids("abcdefghi")], ids(" xy"))]


def test_an_empty_prompt_without_bos_scores_what_has_a_predecessor():
    _, asked = answers([row("", ["ab", "c"])], {})
    assert asked == [(ids(" "), ids("ab")), (ids(" "), ids("c"))]


def test_the_good_sentence_must_be_strictly_more_likely():
    pairs = [("ax", "ay"), ("ay", "ax"), ("xz", "zx"), ("x", "aaaaa")]
    rows = [{"sentence_good": good, "sentence_bad": bad} for good, bad in pairs]
    scorer = CostScorer({"x": 1.0, "y": 2.0, "a": 0.3})
    hits = likelihood.minimal_pairs(scorer, CONFIG, tokenize, rows)
    assert hits.tolist() == [True, False, False, True] and hits.dtype == bool
    assert scorer.asked[:2] == [([BOS], ids("ax")), ([BOS], ids("ay"))]


def test_rows_come_back_as_they_are_in_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    for load, rows in (
        (likelihood.load_multiple_choice, [row() | {"source": "test"}, row(choices=["a", "b", "c"], gold=2)]),
        (likelihood.load_minimal_pairs, [{"sentence_good": "a", "sentence_bad": "b"}]),
    ):
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
        assert load(path) == rows


GOOD = {
    "load_texts": {"text": "a"},
    "load_multiple_choice": row(),
    "load_minimal_pairs": {"sentence_good": "a", "sentence_bad": "b"},
}

LOADERS = {name: getattr(texts if name == "load_texts" else likelihood, name) for name in GOOD}


@pytest.mark.parametrize(
    "load, second, message",
    [
        ("load_texts", '{"text": ', "line 2: not valid JSON"),
        ("load_texts", '{"id": 1}', r"line 2: missing field\(s\) text"),
        ("load_texts", '"text"', "line 2: missing"),
        ("load_texts", '{"text": 5}', "item 2: text must be a text, not int"),
        ("load_multiple_choice", '{"question": "q", "choices": ["a", "b"]}', r"line 2: missing field\(s\) gold"),
        ("load_multiple_choice", row(gold=2), "item 2: gold=2 .*2 choices"),
        ("load_multiple_choice", row(gold=-1), "item 2: gold=-1"),
        ("load_multiple_choice", row(gold="a"), "item 2: gold='a'"),
        ("load_multiple_choice", row(gold=True), "item 2: gold=True"),
        ("load_multiple_choice", row(gold=0.0), "item 2: gold=0.0"),
        ("load_multiple_choice", row(choices=["a"]), "item 2: choices"),
        ("load_multiple_choice", row() | {"choices": "ab"}, "item 2: choices"),
        ("load_multiple_choice", row(choices=["a", 1]), "item 2: every choice"),
        ("load_multiple_choice", row(choices=["a", " "]), "item 2: every choice"),
        ("load_multiple_choice", row(question=None), "item 2: question must be a text"),
        ("load_minimal_pairs", {"sentence_good": "a"}, r"line 2: missing field\(s\) sentence_bad"),
        ("load_minimal_pairs", {"sentence_good": "a", "sentence_bad": 1}, "item 2: sentence_bad must be a text"),
    ],
)
def test_a_faulty_line_is_named(tmp_path, load, second, message):
    path = tmp_path / "broken.jsonl"
    second = second if isinstance(second, str) else json.dumps(second)
    path.write_text(f"{json.dumps(GOOD[load])}\n{second}\n")
    with pytest.raises(InputError, match=f"{path}, {message}"):
        LOADERS[load](path)


@pytest.mark.parametrize("load", GOOD)
def test_empty_and_missing_files_are_named(tmp_path, load):
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    with pytest.raises(InputError, match=f"{path} holds no"):
        LOADERS[load](path)
    with pytest.raises(InputError, match=f"not found: {tmp_path / 'nowhere.jsonl'}"):
        LOADERS[load](tmp_path / "nowhere.jsonl")
