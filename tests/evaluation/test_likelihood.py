"""Most checks put a scorer of known costs in place of a model; it also records what it was asked to score."""

import dataclasses
import functools
import json
import warnings

import jax.numpy as jnp
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.data import texts
from selftrain_jax.evaluation import likelihood
from selftrain_jax.evaluation.score import TokenScores, score
from selftrain_jax.models.config import DecoderConfig
from tests.shapes import initial

CONFIG = DecoderConfig(vocab_size=200, hidden_size=16, num_layers=1, num_heads=2, intermediate_size=8, max_position=12)
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
            found.append(TokenScores(-costs, np.ones(len(costs), bool), np.zeros(len(costs), np.float32)))
        return found


def ids(text):
    return [ord(c) for c in text]


def text(tokens):
    return "".join(map(chr, tokens))


@pytest.mark.parametrize("length", [1, 2, 11, 12, 13, 24, 25, 41])
@pytest.mark.parametrize("context_len", [1, 5, 12])
def test_windows_score_each_token_exactly_once(length, context_len):
    document = "".join(chr(40 + i) for i in range(length))
    scorer = CostScorer({}, default=1.0)
    found = likelihood.text_likelihood(scorer, CONFIG, tokenize, [document], context_len=context_len)
    assert "".join(text(scored) for _, scored in scorer.asked) == document
    assert found.num_tokens.sum() == found.nll.sum() == length
    # The first window sees BOS; what each later one is given is what comes before it in the text, and long enough.
    assert scorer.asked[0][0] == [BOS]
    at = len(scorer.asked[0][1])
    for given, scored in scorer.asked[1:]:
        assert text(given) == document[at - len(given) : at] and len(given) >= context_len
        assert len(given) + len(scored) == CONFIG.max_position + 1
        at += len(scored)
    if context_len == CONFIG.max_position:
        assert all(len(scored) == 1 for _, scored in scorer.asked[1:])


def harness_windows(tokens, prefix, max_seq_len, context_len):
    """What the harness's documentation of rolling windows asks for, window by window."""
    inputs, targets = [prefix, *tokens[:-1]], tokens
    edges = [min(max_seq_len, len(tokens))]
    while edges[-1] < len(tokens):
        edges.append(min(edges[-1] + max_seq_len - context_len + 1, len(tokens)))
    for begin, end in zip([0, *edges], edges):
        seen = inputs[max(end - max_seq_len, 0) : end]  # all that fits
        yield seen[: len(seen) - (end - begin) + 1], targets[begin:end]


WINDOWS = [(length, context_len) for length in (1, 9, 10, 11, 19, 20, 34) for context_len in (1, 4, 10)]


def windows(length, context_len):
    tokens = list(range(100, 100 + length))
    found = likelihood.rolling_windows(tokens, 7, 10, context_len)
    return tokens, [(sequence[:start].tolist(), sequence[start:].tolist()) for sequence, start in found]


def test_windows_are_what_the_harness_documents():
    for length, context_len in WINDOWS:
        tokens, found = windows(length, context_len)
        assert found == list(harness_windows(tokens, 7, 10, context_len))


def test_windows_are_those_of_the_harness():
    utils = pytest.importorskip("lm_eval.utils", reason="lm-evaluation-harness is not installed")
    for length, context_len in WINDOWS:
        tokens, found = windows(length, context_len)
        expected = utils.get_rolling_token_windows(tokens, 7, 10, context_len)
        assert found == [tuple(map(list, utils.make_disjoint_window(window))) for window in expected]


def test_the_harnesss_own_example():
    """34 tokens, a context of 10: the last window is filled up with older tokens."""
    found = [(s[:t].tolist(), s[t:].tolist()) for s, t in likelihood.rolling_windows(list(range(34)), -100, 10)]
    assert found == [
        ([-100], list(range(10))),
        ([9], list(range(10, 20))),
        ([19], list(range(20, 30))),
        (list(range(23, 30)), [30, 31, 32, 33]),
    ]


def test_an_empty_text_has_no_window():
    assert list(likelihood.rolling_windows([], 0, 10)) == []


@pytest.mark.parametrize("context_len", [0, 13])
def test_a_context_that_does_not_fit_is_named(context_len):
    with pytest.raises(InputError, match=f"context_len={context_len} must lie between 1 and the model's context of 12"):
        likelihood.text_likelihood(CostScorer({}), CONFIG, tokenize, ["a"], context_len=context_len)


def test_more_context_costs_windows_and_never_likelihood():
    """A model that knows a text by the number of tokens it has seen: more context, fewer nats."""

    class Counting(CostScorer):
        def __call__(self, sequences, starts):
            super().__call__(sequences, starts)
            positions = [np.arange(t, len(s)) for s, t in zip(sequences, starts)]
            return [TokenScores(-1.0 / p, np.ones(len(p), bool), np.zeros(len(p))) for p in positions]

    document = "x" * 40
    found = [likelihood.text_likelihood(Counting({}), CONFIG, tokenize, [document], context_len=c) for c in (1, 6, 12)]
    assert found[0].nll_per_token > found[1].nll_per_token > found[2].nll_per_token
    assert len(found[0].nll) < len(found[1].nll) < len(found[2].nll)


def test_likelihood_adds_up_over_texts():
    texts = ["aab", "", "b" * 30, "é"]
    found = likelihood.text_likelihood(CostScorer({"a": 0.5, "b": 2.0, "é": 3.0}), CONFIG, tokenize, texts)
    assert found.num_bytes == 3 + 30 + 2
    assert found.nll.tolist() == [3.0, 24.0, 24.0, 12.0, 3.0] and found.num_tokens.tolist() == [3, 12, 12, 6, 1]
    assert found.nll_per_token == pytest.approx(66 / 34)
    assert found.bits_per_byte == pytest.approx(66 / np.log(2) / 35)
    assert found.num_chars == 34 and found.bits_per_char == pytest.approx(66 / np.log(2) / 34)
    assert found.byte_perplexity == pytest.approx(np.exp(66 / 35)) == pytest.approx(2**found.bits_per_byte)


def test_words_are_counted_as_the_harness_counts_them():
    """Pieces between runs of white space; white space at an end leaves an empty piece, and so does an empty text."""
    texts = ["one two  three\n", "", " four"]
    found = likelihood.text_likelihood(CostScorer({}, default=0.5), CONFIG, tokenize, texts)
    assert found.num_words == 4 + 1 + 2
    assert found.word_perplexity == pytest.approx(np.exp(0.5 * sum(map(len, texts)) / 7))


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary():
    params = initial(CONFIG)
    params["head"] = {"kernel": jnp.zeros_like(params["head"]["kernel"])}
    scorer = functools.partial(score, params, CONFIG, batch_size=8)
    found = likelihood.text_likelihood(scorer, CONFIG, tokenize, ["some text that is longer than a window", "a"])
    # One fp32 logarithm.
    assert np.exp(found.nll_per_token) == pytest.approx(200, rel=1e-6)
    assert found.bits_per_byte == pytest.approx(np.log2(200), rel=1e-6)


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
    assert hits["acc_bytes"].tolist() == hits["acc_norm"].tolist()  # all ASCII


def test_questions_that_lose_their_beginning_are_told(recwarn):
    answers([row(), row("much longer than 12", ["xx", "y"])], {})
    [said] = [str(warning.message) for warning in recwarn]
    assert said == "1 of 2 questions are longer than the model's context of 12 and lose their beginning, the first " + (
        "'much longer than 12'"
    )


def test_accuracy_per_byte_tells_bytes_from_characters():
    # Per character: 1.5 for "éé", 1.2 for "xx". Per byte: 0.75 and 1.2.
    hits, _ = answers([row(choices=["éé", "xx"], gold=0)], {"é": 1.5, "x": 1.2})
    assert [hits[rule].tolist() for rule in ("acc", "acc_norm", "acc_bytes")] == [[False], [False], [True]]


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


def test_an_empty_prompt_needs_bos():
    """Without it nothing stands before the first token, and a choice would be scored in part."""
    with pytest.raises(InputError, match="prompt is empty, .* set add_bos"):
        answers([row("", ["ab", "c"])], {})
    _, asked = answers([row("", ["ab", "c"])], {}, add_bos=True)
    assert asked == [([BOS], ids(" ab")), ([BOS], ids(" c"))]


def test_a_choice_longer_than_the_context_is_refused():
    with pytest.raises(InputError, match="a choice of 41 tokens is longer than the model's context of"):
        answers([row("q", ["a" * 40, "c"])], {})


def test_texts_in_another_encoding_are_named(tmp_path):
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin.txt is not valid UTF-8 \(byte 3\)"):
        texts.load_texts(tmp_path / "latin.txt")
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbfa")
    assert texts.load_texts(tmp_path / "bom.txt") == ["a"]


def test_the_good_sentence_must_be_strictly_more_likely():
    pairs = [("ax", "ay"), ("ay", "ax"), ("xz", "zx"), ("x", "aaaaa")]
    rows = [{"sentence_good": good, "sentence_bad": bad} for good, bad in pairs]
    scorer = CostScorer({"x": 1.0, "y": 2.0, "a": 0.3})
    hits = likelihood.minimal_pairs(scorer, CONFIG, tokenize, rows)
    assert hits.tolist() == [True, False, False, True] and hits.dtype == bool
    assert scorer.asked[:2] == [([BOS], ids("ax")), ([BOS], ids("ay"))]


def test_rows_come_back_with_the_fields_of_their_kind_alone(tmp_path):
    """A pair with "gold", or a question with sentences, would else be taken for another kind of item."""
    path, pair = tmp_path / "rows.jsonl", {"sentence_good": "a", "sentence_bad": "b"}
    for load, rows, others in (
        (
            likelihood.load_multiple_choice,
            [row() | {"id": 7}, row(question="r", choices=["a", "b", "c"], gold=2)],
            pair | {"text": "a b"},
        ),
        (likelihood.load_minimal_pairs, [pair | {"cluster": "c"}], row(gold=1) | {"UID": "a"}),
        (likelihood.load_last_words, [{"text": "one two"}], row() | pair),
    ):
        path.write_text("".join(json.dumps(others | found) + "\n" for found in rows))
        assert load(path) == rows
    path.write_text(json.dumps(row() | {"index": 3}))
    assert likelihood.load_multiple_choice(path) == [row() | {"id": 3}]


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
        ("load_texts", '{"text": "a\\ud800b"}', "item 2: text holds half a surrogate pair"),
        (
            "load_multiple_choice",
            '{"question": "q", "choices": ["a", "\\udfff"], "gold": 0}',
            "item 2, .*: 1 holds half",
        ),
        ("load_multiple_choice", '{"question": "q", "choices": ["a", "b"]}', r"line 2: missing field\(s\) gold"),
        ("load_minimal_pairs", {"sentence_good": "\u200b", "sentence_bad": "b"}, "item 2: an empty sentence"),
        ("load_multiple_choice", row(choices=["a", "\u200b"]), "item 2: every choice must be a text that is not blank"),
        ("load_multiple_choice", row(gold=2), "item 2: gold=2 .*2 choices"),
        ("load_multiple_choice", row(gold=-1), "item 2: gold=-1"),
        ("load_multiple_choice", row(gold="a"), "item 2: gold='a'"),
        ("load_multiple_choice", row(gold=True), "item 2: gold=True"),
        ("load_multiple_choice", row(gold=0.0), "item 2: gold=0.0"),
        ("load_multiple_choice", row(choices=["a"]), "item 2: choices"),
        ("load_multiple_choice", row() | {"choices": "ab"}, "item 2: choices"),
        ("load_multiple_choice", row(choices=["a", 1]), "item 2: every choice"),
        ("load_multiple_choice", row(choices=["a", " "]), "item 2: every choice"),
        ("load_multiple_choice", row(gold=1), "items 1 to 2: all have the same question"),
        ("load_multiple_choice", row(choices=["y", " y"]), "item 2: all choices are the same"),
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


@pytest.mark.parametrize("right, copy", [("up", " up"), ("up", "up\n"), ("caf\u00e9", "cafe\u0301")])
def test_copies_of_the_right_choice_are_left_out(tmp_path, right, copy):
    """ARC has such items; a model that prefers the copy is right."""
    path, choices = tmp_path / "questions.jsonl", ["down", copy, "same", right, "down"]
    rows = [GOOD["load_multiple_choice"], row(question="other", choices=choices, gold=3)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    with pytest.warns(InputWarning, match="1 of 2 items, first item 2, have the right choice twice"):
        loaded = likelihood.load_multiple_choice(path)
    assert loaded[0] == rows[0]
    assert (loaded[1]["choices"], loaded[1]["gold"]) == (["down", "same", right, "down"], 2)


@pytest.mark.parametrize("load, other", [("load_texts", "text"), ("load_multiple_choice", "question")])
def test_items_that_equal_another_one_are_warned_of(tmp_path, load, other):
    write_jsonl(path := tmp_path / "twins.jsonl", [GOOD[load], GOOD[load] | {other: "b"}, GOOD[load]])
    with pytest.warns(InputWarning, match="twins.jsonl: 1 of 3 items equal an earlier one"):
        assert len(LOADERS[load](path)) == 3


@pytest.mark.parametrize("load", GOOD)
def test_empty_and_missing_files_are_named(tmp_path, load):
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    with pytest.raises(InputError, match=f"{path} holds no"):
        LOADERS[load](path)
    with pytest.raises(InputError, match=f"not found: {tmp_path / 'nowhere.jsonl'}"):
        LOADERS[load](tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("sentence, copy", [("a", "a"), ("a", "a "), ("\u00e9", "e\u0301")])
def test_pairs_of_one_sentence_are_left_out(tmp_path, sentence, copy):
    pairs = [{"sentence_good": good, "sentence_bad": copy} for good in ("b", sentence, "c")]
    write_jsonl(tmp_path / "pairs.jsonl", pairs)
    with pytest.warns(InputWarning, match="1 of 3 items, first item 2, have one sentence twice; they are left out"):
        assert likelihood.load_minimal_pairs(tmp_path / "pairs.jsonl") == [pairs[0], pairs[2]]


def test_questions_of_truthfulqa_are_read_as_published(tmp_path, recwarn):
    rows = [
        {"question": f"what {i}?", "mc1_targets": {"no": 0, "yes": 1, "both": 0}, "mc2_targets": {"no": 0, "yes": 1}}
        for i in range(2)
    ]
    (tmp_path / "truthful.json").write_text(json.dumps(rows))
    found = likelihood.load_multiple_choice(tmp_path / "truthful.json")
    assert [(row["question"], row["choices"], row["gold"]) for row in found] == [
        (f"what {i}?", ["no", "yes", "both"], 1) for i in range(2)
    ]
    assert not recwarn, "targets are no text that goes unread"
    (tmp_path / "null.json").write_text(json.dumps([row | {"choices": None} for row in rows]))
    assert likelihood.load_multiple_choice(tmp_path / "null.json") == found
    own = {"choices": ["perhaps", "never"], "gold": 0}  # which says what is asked
    (tmp_path / "own.json").write_text(json.dumps([row | own for row in rows]))
    assert [row | own for row in found] == likelihood.load_multiple_choice(tmp_path / "own.json")


def test_the_last_word_is_right_where_greedy_decoding_gives_all_of_it(tmp_path):
    """As the harness's LAMBADA: white space before the word is part of what is to be given."""
    write_jsonl(tmp_path / "words.jsonl", [{"text": "on a mat"}, {"text": "on a hat"}, {"text": "up  it"}])
    rows = likelihood.load_last_words(tmp_path / "words.jsonl")
    asked = []

    def scorer(sequences, starts):
        asked.extend((text(s[:start]), text(s[start:])) for s, start in zip(sequences, starts))
        wanted = [np.array([chr(t) != "h" for t in s[start:]]) for s, start in zip(sequences, starts)]
        return [TokenScores(np.zeros(len(hits)), hits, np.zeros(len(hits))) for hits in wanted]

    found = likelihood.last_words(scorer, CONFIG, tokenize, rows, add_bos=True)
    assert found.tolist() == [True, False, True]
    assert asked == [(chr(BOS) + "on a", " mat"), (chr(BOS) + "on a", " hat"), (chr(BOS) + "up", "  it")]


@pytest.mark.parametrize("broken", ["alone", "ends ", " mat", "on a mat\n", "on a mat\u00a0"])
def test_a_text_without_a_last_word_is_refused(tmp_path, broken):
    write_jsonl(tmp_path / "words.jsonl", [{"text": "on a mat"}, {"text": broken}])
    with pytest.raises(InputError, match="words.jsonl, item 2: text must be words, a space and the last word"):
        likelihood.load_last_words(tmp_path / "words.jsonl")


@pytest.mark.parametrize("ending", [" .", "\nmat", "\tmat", "\u3000mat", ' mat "', " a\u2028mat", " 😀", " mat\u200b"])
def test_what_is_no_single_word_behind_the_last_space_is_told(tmp_path, ending):
    write_jsonl(tmp_path / "words.jsonl", [{"text": "on a mat"}, {"text": f"on a{ending}"}, {"text": "a hat."}])
    with pytest.warns(InputWarning, match="1 of 3 items, first item 2, have no word, or several, behind their last"):
        likelihood.load_last_words(tmp_path / "words.jsonl")


@pytest.mark.parametrize("values", [(0.5, 1, 0.2), (1, 2, -1), (1, "0", 0), (1, None, 0)])
def test_targets_that_are_no_zeros_and_ones_are_refused(tmp_path, values):
    rows = [{"question": "what?", "mc1_targets": dict(zip("abc", values))}]
    write_jsonl(tmp_path / "truth.jsonl", rows)
    with pytest.raises(InputError, match="line 1: missing field.s. choices, gold"):
        likelihood.load_multiple_choice(tmp_path / "truth.jsonl")


def test_a_gold_that_counts_from_one_and_a_passage_that_is_not_read_are_told(tmp_path):
    rows = [{"question": f"what {i}?", "choices": list("abcde"), "gold": 1 + i % 4} for i in range(40)]
    write_jsonl(tmp_path / "one.jsonl", rows)
    with pytest.warns(InputWarning, match="the first choice is never right"):
        likelihood.load_multiple_choice(tmp_path / "one.jsonl")
    rows = [row | {"gold": i % 5, "passage": "It is b."} for i, row in enumerate(rows)]
    write_jsonl(tmp_path / "passage.jsonl", rows)
    with pytest.warns(InputWarning, match="the field 'passage' is not read"):
        likelihood.load_multiple_choice(tmp_path / "passage.jsonl")
    write_jsonl(tmp_path / "pairs.jsonl", [{"sentence_good": "a", "sentence_bad": "b", "scene": "It rains on us."}])
    with pytest.warns(InputWarning, match="pairs.jsonl: the field 'scene' is not read; .* goes into the sentence_good"):
        likelihood.load_minimal_pairs(tmp_path / "pairs.jsonl")


@pytest.mark.parametrize(
    "load, item, told",
    [
        ("load_multiple_choice", row(choices=["yes ", "no"]), True),
        ("load_multiple_choice", row(choices=[" yes", "no"]), False),  # which are joined by one space
        ("load_multiple_choice", row(choices=["yes\n", "no\n"]), False),
        ("load_multiple_choice", row(choices=["yes", "no\u200b"]), True),
        ("load_minimal_pairs", {"sentence_good": " a b", "sentence_bad": "a c"}, True),
        ("load_minimal_pairs", {"sentence_good": "a b", "sentence_bad": "a c\n"}, True),
    ],
)
def test_white_space_around_some_answers_alone_is_told(tmp_path, load, item, told):
    write_jsonl(tmp_path / "a.jsonl", [GOOD[load], item | {"question": "another?"}])
    with warnings.catch_warnings(record=True) as found:
        LOADERS[load](tmp_path / "a.jsonl")
    assert [str(one.message).count("1 of 2 items, first item 2, have white space") for one in found] == [1] * told


def test_a_blank_question_is_refused(tmp_path):
    write_jsonl(tmp_path / "a.jsonl", [row(), row(question=" \n")])
    with pytest.raises(InputError, match="item 2: question is blank; make pairs"):
        likelihood.load_multiple_choice(tmp_path / "a.jsonl")
