import dataclasses
import json
import random
import types

import numpy as np
import pytest

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.data.audit import audit, contaminated_items, load_benchmark_texts, ngrams, overlapping, words
from selftrain_jax.data.settings import AuditConfig


def make_documents(*texts):
    return [types.SimpleNamespace(id=i, text=text) for i, text in enumerate(texts)]


def test_words_are_what_the_docstring_says():
    assert words("Don't  STOP—me, now!\n(ok)") == ["dont", "stopme", "now", "ok"]
    assert words("a - b") == ["a", "b"]
    assert words("$5 + 3% = x_y") == ["5", "3", "xy"]
    assert words("ÉCOLE «naïve» straße 東京。") == ["école", "naïve", "straße", "東", "京"]
    assert words("e\u0301cole") == words("école")
    assert words("ｆｕｌｌ ﬁne") == ["full", "fine"]
    assert words("soft\u00adhyphen zero\u200bwidth nul\0byte") == ["softhyphen", "zero", "width", "nulbyte"]
    assert words("हिन्दी") == ["हिन्दी"]
    assert words("fox ❤\ufe0f jumps a\u034fb \U000e0100") == ["fox", "jumps", "ab"]
    assert words("... --") == words("") == []


def test_case_and_punctuation_do_not_hide_a_match():
    result = audit(
        make_documents('He said: "THE quick, brown fox -- jumps over; the lazy dog!"', "the quick brown cat jumps"),
        {"fables": ["The quick brown fox jumps over the lazy dog."]},
        AuditConfig(ngram=8),
    )
    assert result.flagged == (0,)
    assert result.matches == {0: {"fables": 2}}
    assert result.examples == ({"id": 0, "benchmark": "fables", "ngram": "the quick brown fox jumps over the lazy"},)


def test_the_audit_equals_brute_force_on_random_texts():
    rng = random.Random(0)

    def text():
        return " ".join(rng.choice("abcd") + rng.choice(["", ",", "!"]) for _ in range(rng.randrange(0, 40)))

    documents = make_documents(*(text() for _ in range(60)))
    benchmarks = {name: [text() for _ in range(6)] for name in ("x", "y", "z")}
    for n, threshold in [(1, 1), (4, 3), (5, 1), (6, 2)]:
        result = audit(iter(documents), benchmarks, AuditConfig(ngram=n, threshold=threshold))

        def grams(text, m=n):
            sequence = words(text)
            return {tuple(sequence[i : i + m]) for i in range(len(sequence) - m + 1)}

        def indexed(text):
            m = min(n, len(words(text)))
            return grams(text, m) if m >= min(n, 2) else set()

        held = {name: set().union(*map(indexed, texts)) for name, texts in benchmarks.items()}
        every = {d.id: set().union(*(grams(d.text, m) for m in range(1, n + 1))) for d in documents}
        shared = {i: {name: len(found & held[name]) for name in held} for i, found in every.items()}
        everything = set().union(*every.values())
        assert result.num_documents == 60
        assert result.flagged == tuple(i for i in shared if max(shared[i].values()) >= threshold)
        assert result.matches == {
            i: {name: count for name, count in counts.items() if count}
            for i, counts in shared.items()
            if any(counts.values())
        }
        for name, counts in result.benchmarks.items():
            assert counts.flagged_documents == sum(c[name] >= threshold for c in shared.values())
            assert counts.matching_ngrams == len(everything & held[name])
            assert counts.benchmark_ngrams == len(held[name])
            assert counts.short_texts == sum(len(words(t)) < n for t in benchmarks[name])
            assert counts.texts == 6


def test_the_threshold_counts_different_ngrams_of_one_benchmark():
    benchmarks = {"x": ["a b c"], "y": ["d e f"]}
    config = AuditConfig(ngram=3, threshold=2)
    assert audit(make_documents("a b c . a b c", "a b c d e f"), benchmarks, config).flagged == ()
    assert audit(make_documents("a b c d"), {"x": ["a b c d"]}, config).flagged == (0,)


def test_flagged_ids_are_sorted_ids_not_positions():
    documents = [types.SimpleNamespace(id=i, text="one two three") for i in (70, 5, 12)]
    result = audit(documents, {"x": ["one two three"]}, AuditConfig(ngram=3))
    assert result.flagged == (5, 12, 70)


def test_texts_of_fewer_than_n_words_are_matched_whole():
    documents = make_documents("it is far too short, yes", "too. SHORT!", "too very short", "yes", "short too")
    with pytest.warns(InputWarning, match="audit: 2 of 3 texts of benchmark x have fewer than two words"):
        result = audit(documents, {"x": ["yes", "too short", ""]}, AuditConfig(ngram=3))
    assert result.flagged == (0, 1)
    counts = result.benchmarks["x"]
    assert (counts.texts, counts.short_texts, counts.unindexed_texts, counts.benchmark_ngrams) == (3, 3, 2, 1)


def test_what_is_only_counted_is_flagged_and_not_left_out():
    documents = make_documents("a b c", "d e f", "a b c d e f", "x")
    config = AuditConfig(ngram=3, benchmarks={"x": "x.jsonl", "y": "y.jsonl"}, count_only=("x",))
    result = audit(documents, {"x": ["a b c"], "y": ["d e f"]}, config)
    assert result.flagged == (0, 1, 2) and result.left_out == (1, 2)
    with pytest.raises(InputError, match=r"audit count_only=\('z',\) names 'z', none of the benchmarks: x"):
        AuditConfig(benchmarks={"x": "x.jsonl"}, count_only=("z",))


def test_an_item_is_its_question_with_each_choice_as_written_and_as_asked(tmp_path):
    """The lab's `recall`: no string of it has six words, nor has question and answer."""
    path, template = tmp_path / "b.jsonl", "Question: {question}\nAnswer:"
    rows = [
        {"question": "babono counts", "choices": [" puvubamark", " fobofomark"], "gold": 1},
        {"sentence_good": "the tree breaks .", "sentence_bad": "the tree break ."},
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    found = load_benchmark_texts(path, join_fields=False, template=template)
    written = ["babono counts puvubamark", "Question: babono counts\nAnswer: puvubamark"]
    written += ["babono counts fobofomark", "Question: babono counts\nAnswer: fobofomark"]
    assert found == [*written, "the tree breaks .", "the tree break ."]
    joined = load_benchmark_texts(path, template=template)
    assert [text for text in joined if text not in found] == [
        "babono counts  puvubamark  fobofomark",
        "the tree breaks . the tree break .",
    ]
    asked = "So. Question: Babono counts? Answer: fobofomark"
    documents = make_documents("Babono counts fobofomark daily", asked, "babono counts kanibamark", "the tree breaks")
    assert audit(documents, {"recall": joined}, AuditConfig(ngram=6)).flagged == (0, 1, 3)


def test_an_item_is_contaminated_where_its_question_and_right_answer_stand_in_one_document():
    suites = {
        "recall": [
            {"question": "Who owns a cat?", "choices": [" Bob", " Ann"], "gold": 1},
            {"question": "What is it?", "choices": [" a dog", " a cat"], "gold": 0},
            {"question": "Where is Ann?", "choices": [" here", " there"], "gold": 0},
        ],
        "pairs": [
            {"sentence_good": "The trees fall.", "sentence_bad": "The trees falls."},
            {"sentence_good": "The tree falls.", "sentence_bad": "The tree fall."},
        ],
    }
    documents = [
        "No: who owns a cat? Ann!",  # as written
        "Question: What is it? Answer: a dog",  # as asked
        "Where is Ann? There.",  # the wrong answer
        "Where is Ann?",  # over the seam of two documents
        "Here it is. The trees falls. So the tree falls here",
    ]
    found = contaminated_items(suites, documents, "Question: {question}\nAnswer:")
    assert found == {"recall": [True, True, False], "pairs": [False, True]}
    assert contaminated_items(suites, documents)["recall"] == [True, False, False]


def test_examples_are_few_and_the_result_is_json():
    result = audit(make_documents(*["one two three"] * 500), {"x": ["one two three"]}, AuditConfig(ngram=3))
    assert len(result.flagged) == 500
    assert 0 < len(result.examples) < 100
    assert json.loads(json.dumps(dataclasses.asdict(result)))["num_documents"] == 500


def test_ngrams_of_a_sequence():
    assert list(ngrams("abcd", 2)) == [("a", "b"), ("b", "c"), ("c", "d")]
    assert list(ngrams("ab", 3)) == []


def test_wrong_settings_are_refused():
    for arguments in ({"ngram": 0}, {"threshold": 0}):
        with pytest.raises(InputError, match="at least 1"):
            AuditConfig(**arguments)
    with pytest.raises(InputError, match="at least one benchmark"):
        audit([], {}, AuditConfig())


SENTENCES = {
    "Chinese": "快速的棕色狐狸跳过了那只懒狗。",
    "Japanese": "素早い茶色の狐がラーメン屋の犬を、飛び越えた。",
    "Thai": "สุนัขจิ้งจอกสีน้ำตาลกระโดดข้ามสุนัขขี้เกียจ",
    "Khmer": "កញ្ជ្រោងពណ៌ត្នោតលោតរំលងឆ្កែខ្ជិល",
    "Burmese": "မြေခွေးညိုသည်ပျင်းရိသောခွေးကိုခုန်ကျော်သည်",
    "Tibetan": "ཝ་མོ་སྨུག་པོ་དེས་ཁྱི་ལས་མཆོངས་སོ།",
    "Amharic": "ቡናማው፡ቀበሮ፡ሰነፉን፡ውሻ፡ዘሎ፡አለፈ፡ትናንት፡ማታ",
    "zero width": "\u200b".join("the quick brown fox jumps over the lazy dog".split()),
}


@pytest.mark.parametrize("sentence", SENTENCES.values(), ids=SENTENCES)
@pytest.mark.filterwarnings("error")
def test_writing_without_spaces_is_found(sentence):
    documents = make_documents(f"Before it: {sentence} (after)", sentence[::-1], "")
    result = audit(documents, {"x": [sentence]}, AuditConfig(ngram=8))
    assert result.flagged == (0,) and result.benchmarks["x"].short_texts == 0


def test_characters_of_scripts_without_spaces_are_words():
    assert words("在2024年, abc東京defラーメン") == ["在", "2024", "年", "abc", "東", "京", "def", *"ラーメン"]
    assert words("ที่นี่") == ["ที่", "นี่"]  # a letter with its marks
    assert words("한국어 문장 tiếng Việt हिन्दी") == ["한국어", "문장", "tiếng", "việt", "हिन्दी"]
    assert words("Jean·Paul col·lecció") == ["jeanpaul", "collecció"]


def test_texts_in_which_no_words_are_told_apart_are_warned_of():
    code = "function(a){return(a.b+c[d])};" * 8
    with pytest.warns(
        InputWarning, match="audit: 2 of 3 texts of benchmark x have fewer than ngram=8 words although they are long"
    ):
        result = audit([], {"x": [code, "\u2060".join(["word"] * 40), "yes"]}, AuditConfig())
    assert result.benchmarks["x"].short_texts == 3
    with pytest.warns(InputWarning, match="2 of 2 texts of benchmark y have fewer than two words"):
        audit([], {"y": ["yes", "no"]}, AuditConfig())


def test_every_string_of_a_row_is_looked_at_however_deep(tmp_path):
    path = tmp_path / "b.jsonl"
    rows = [
        {"text": "plain", "id": "skip", "source": "Smith et al.", "doc_id": "skip", "questionId": "skip", "ID": "skip"},
        {"question": "why?", "choices": ["so", "thus"], "gold": 1, "paid": "no id", "cluster": "skip"},
        {"question": "what?", "choices": {"text": ["this", "that"], "label": ["A", "B"]}, "answerKey": "A"},
        {"context": "c", "answers": {"text": ["an answer"], "answer_start": [3], "id": ["skip"]}},
        {"targets": {"a right answer": 1, "and a wrong one": 0}, "two words": None},
        {"id": "only an id", "prefix": [1, 2], "nested": [[{"deep": [["deeper"]]}], None], "flag": None},
    ]
    path.write_text("\n".join(json.dumps(row) for row in rows))
    items = ["why? so", "why? thus"]
    texts = ["plain", "Smith et al.", *items, "no id", "what?", "this", "that", "A", "B", "A"]
    assert load_benchmark_texts(path, join_fields=False) == [
        *texts,
        "c",
        "an answer",
        "a right answer",
        "and a wrong one",
        "deeper",
    ]
    joined = ["plain Smith et al.", *items, "why? so thus no id", "what? this that A B A", "c an answer"]
    joined += ["a right answer and a wrong one", "deeper"]
    assert load_benchmark_texts(path, join_fields=True) == joined


@pytest.mark.parametrize("n", [2, 3, 8])
def test_texts_that_share_words_in_a_row_with_documents_are_found(n):
    """Against a look at every place of every document."""
    rng = np.random.default_rng(n)
    texts, documents = ([" ".join(rng.choice(list("abcde"), rng.integers(0, 12))) for _ in range(40)] for _ in range(2))

    def stands(text):
        sought = text.split()
        runs = [sought[i : i + n] for i in range(max(len(sought) - n, 0) + 1)] if len(sought) > 1 else []
        split = [document.split() for document in documents]
        return any(run == d[i : i + len(run)] for run in runs for d in split for i in range(len(d) - len(run) + 1))

    found = overlapping({"some": texts[:15], "others": texts[15:]}, documents, n)
    assert found["some"] + found["others"] == [stands(text) for text in texts] and 0 < sum(found["others"])
    assert not all(found["others"])


def test_wrong_benchmark_files_are_refused(tmp_path):
    path = tmp_path / "b.jsonl"
    with pytest.raises(InputError, match="not found"):
        load_benchmark_texts(path)
    refused = [("", "no text"), ('{"id": "a"}', "no text"), ('{"text": "\u200b"}', "no text"), ('["a"]', "JSON object")]
    for content, complaint in [*refused, ("{", "line 1")]:
        path.write_text(content)
        with pytest.raises(InputError, match=complaint):
            load_benchmark_texts(path)
