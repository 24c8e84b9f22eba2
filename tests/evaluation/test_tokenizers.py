"""What evaluation makes of any tokenizer: small random ones, with holes between ids, added tokens, missing characters,
byte fallback and byte-level alphabets."""

import re

import numpy as np
import tokenizers
import transformers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers

from selftrain_jax.core.errors import InputError
from selftrain_jax.evaluation import likelihood
from selftrain_jax.evaluation.score import TokenScores
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.files.tokenizer import encode_texts, unknown_share

UNKNOWN, MARK = "<unk>", "<|x|>"
KINDS = ("leaves out", "unknown", "fused", "fallback", "bytes")
CONFIG = DecoderConfig(
    vocab_size=4096, hidden_size=8, num_layers=1, num_heads=1, intermediate_size=8, max_position=16, bos_token_id=4095
)
TEXTS = st.lists(st.text("abc é数🎉\n", max_size=40), min_size=1, max_size=4)


@st.composite
def random_tokenizers(draw):
    """(tokenizer, the characters that it can write)."""
    kind = draw(st.sampled_from(KINDS))
    known = sorted(draw(st.sets(st.sampled_from("abcé数🎉 "), min_size=1)))
    pieces = pre_tokenizers.ByteLevel.alphabet() if kind == "bytes" else known
    merges = draw(st.lists(st.tuples(st.sampled_from(sorted(pieces)), st.sampled_from(sorted(pieces))), max_size=4))
    words = [MARK] + [UNKNOWN] * (kind not in ("bytes", "leaves out"))  # with ids, lest the library gives one twice
    words += [f"<0x{byte:02X}>" for byte in range(256)] * (kind == "fallback") + sorted(pieces)
    words += [a + b for a, b in dict.fromkeys(merges)]
    gaps = draw(st.lists(st.integers(1, 5), min_size=len(words), max_size=len(words)))
    vocabulary = dict(zip(dict.fromkeys(words), np.cumsum(gaps).tolist()))
    unknown = UNKNOWN if UNKNOWN in words else None
    model = models.BPE(
        vocabulary,
        list(dict.fromkeys(merges)),
        unk_token=unknown,
        fuse_unk=kind == "fused",
        byte_fallback=kind == "fallback",
    )
    made = tokenizers.Tokenizer(model)
    if kind == "bytes":
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=draw(st.booleans()))
    elif draw(st.booleans()):
        made.normalizer = normalizers.NFC()
    made.add_special_tokens([MARK])
    everything = "abcé数🎉 \n" if kind in ("fallback", "bytes") else "".join(known)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token=unknown), everything


@given(random_tokenizers(), TEXTS, st.booleans())
def test_unknown_is_every_character_that_the_tokenizer_cannot_write(made, texts, marked):
    tokenizer, known = made
    texts = [MARK.join(text) if marked else text for text in texts]
    seen = [c for text in texts for c in text.replace(MARK, "") if not c.isspace()]
    missing = sum(c not in known for c in seen)
    marks = len(MARK) * sum(text.count(MARK) for text in texts)
    assert unknown_share(tokenizer, texts) == missing / max(len(seen) + marks, 1)


@given(random_tokenizers(), TEXTS)
def test_every_token_of_a_text_is_scored_once(made, texts):
    tokenizer, _ = made
    count = sum(map(len, encode_texts(tokenizer, texts)))
    try:
        found = likelihood.text_likelihood(one_nat_each, CONFIG, tokenizer, texts)
    except InputError:
        assert not count
    else:
        assert found.num_tokens.sum() == found.nll.sum() == count > 0


CHOICES = st.lists(st.text("abcé数", min_size=1), min_size=2, max_size=4)


@given(random_tokenizers(), st.text("abc é数", max_size=6), CHOICES)
def test_every_choice_is_scored_or_refused(made, question, choices):
    tokenizer, _ = made
    row = {"question": question, "choices": choices, "gold": 0}
    try:
        (found,) = likelihood.choice_log_probs(one_nat_each, CONFIG, tokenizer, [row], "{question}:", add_bos=True)
    except InputError as e:
        assert re.search("adds no token|longer than the model's context", str(e))
    else:
        assert len(found) == len(choices) and (found <= -1).all()


def one_nat_each(sequences, starts):
    """A scorer that finds every token equally likely."""
    counts = [len(sequence) - start for sequence, start in zip(sequences, starts, strict=True)]
    return [TokenScores(np.full(n, -1.0), np.zeros(n, bool), np.zeros(n)) for n in counts]
