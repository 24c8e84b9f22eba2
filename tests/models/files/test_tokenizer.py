"""What a model's tokenizer says about starts, ends and the ids that there are, for tokenizers of several families."""

import dataclasses
import json
import os
import pathlib
import warnings

import numpy as np
import pytest
import transformers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from selftrain_jax.core.errors import InputError, InputWarning
from selftrain_jax.core.files import write_jsonl
from selftrain_jax.core.settings import build
from selftrain_jax.evaluation.settings import EvaluateSettings
from selftrain_jax.evaluation.suite import begins_with_bos, read_inputs
from selftrain_jax.models.files import tokenizer as files_tokenizer
from selftrain_jax.models.files.fingerprints import vocabulary_input
from selftrain_jax.models.files.tokenizer import (
    check_tokenizer,
    copy_tokenizer,
    encode_texts,
    known_ids,
    load_tokenizer,
    read_tokenizer,
    start_ids,
    unknown_share,
    unknown_tokens,
)
from selftrain_jax.models.verify import make_prompts
from tests.shapes import ONE_LAYER

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<|im_end|>"]


def gemma(directory):
    """Special tokens are part of the vocabulary, a space is a letter, bytes stand for what has no token; BOS is put
    before every text."""
    words = [*SPECIAL, *(f"<0x{i:02X}>" for i in range(256)), "\u2581", "a", "b", "ab", "\u2581a", "\n"]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, [("a", "b"), ("\u2581", "a")], byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return _saved(tokenizer, directory, "<bos>", "<eos>", bos_first=True)


def llama3(directory):
    """Bytes as letters, whole words taken from the vocabulary, special tokens behind it; BOS before every text."""
    return _saved(_byte_level(ignore_merges=True), directory, "<bos>", "<eos>", bos_first=True)


def qwen(directory):
    """No BOS."""
    return _saved(_byte_level(), directory, None, "<eos>")


def pythia(directory):
    """A BOS, which is not put before texts."""
    return _saved(_byte_level(), directory, "<eos>", "<eos>")


def _byte_level(**options):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate([*alphabet, "ab"])}, [("a", "b")], **options))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _saved(tokenizer, directory, bos, eos, bos_first=False, unk=None):
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    if bos_first:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, unk_token=unk
    ).save_pretrained(directory)
    return load_tokenizer(directory)


FAMILIES = [gemma, llama3, qwen, pythia]
CONFIG = dataclasses.replace(ONE_LAYER, vocab_size=300, bos_token_id=7)


@pytest.fixture(params=FAMILIES, ids=lambda family: family.__name__)
def tokenizer(request, tmp_path):
    return request.param(tmp_path)


def test_another_beginning_or_end_of_text_than_that_of_documents_is_told(tokenizer):
    """transformers' `generate`, too, goes by config.json and generation_config.json."""
    first, last = tokenizer.bos_token_id, tokenizer.eos_token_id
    config = dataclasses.replace(CONFIG, bos_token_id=7 if first is None else first, eos_token_id=last)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_tokenizer(config, tokenizer)
        check_tokenizer(dataclasses.replace(config, eos_token_id=2, stop_token_ids=(last,)), tokenizer)
    with pytest.warns(InputWarning, match=f"calls '<eos>', id {last}, the end of a text, but config.json.* name 2, 7"):
        check_tokenizer(dataclasses.replace(config, eos_token_id=7, stop_token_ids=(2,)), tokenizer)
    if first is not None:
        with pytest.warns(InputWarning, match=f", id {first}, the beginning of a text, but config.json.* name 9 "):
            check_tokenizer(dataclasses.replace(config, bos_token_id=9), tokenizer)
    tokenizer.bos_token = tokenizer.eos_token = None  # as a tokenizer.json alone
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_tokenizer(dataclasses.replace(CONFIG, eos_token_id=2), tokenizer)


def test_a_copy_that_lacks_a_token_is_told(tmp_path):
    """Only settings that are known are copied, and transformers takes any that ends in _token for one."""
    for name in ("model", "same", "less", "all"):
        (tmp_path / name).mkdir()
    pythia(tmp_path / "model")
    path = tmp_path / "model" / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"image_token": "<|im_end|>", "notes": "kept here"}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy_tokenizer(tmp_path / "model", tmp_path / "same")  # which the vocabulary has
    path.write_text(json.dumps(settings | {"image_token": "<image>"}))
    with pytest.warns(InputWarning, match="image_token beside it add tokens, and are not copied"):
        copy_tokenizer(tmp_path / "model", tmp_path / "less")
    path.write_text(json.dumps(settings | {"extra_special_tokens": {"image_token": "<image>"}}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        copy_tokenizer(tmp_path / "model", tmp_path / "all")
    assert "<image>" in load_tokenizer(tmp_path / "all").get_vocab()


def test_special_tokens_inside_a_text_are_ordinary_characters(tokenizer):
    text = "ab <eos> a<|im_end|>\n<bos>b"
    special = {tokenizer.get_vocab()[token] for token in SPECIAL}
    assert special & {*tokenizer(text, add_special_tokens=False)["input_ids"]}
    ids = encode_texts(tokenizer, [text])[0]
    assert not special & {*ids} and tokenizer.decode(ids) == text


@pytest.mark.parametrize("family, value", [*zip(FAMILIES, (True, True, False, False))])
def test_whether_bos_is_added_is_asked_of_the_tokenizer(tmp_path, family, value):
    tokenizer = family(tmp_path)
    assert begins_with_bos(EvaluateSettings(), tokenizer) == value
    assert begins_with_bos(build(EvaluateSettings, {"add_bos": True}), tokenizer)
    assert not begins_with_bos(build(EvaluateSettings, {"add_bos": False}), tokenizer)


@pytest.mark.parametrize("family, value", [*zip(FAMILIES, (True, True, False, False))])
def test_whether_bos_is_added_is_asked_of_a_tokenizer_that_does_not_name_it(tmp_path, family, value):
    family(tmp_path)
    for file in tmp_path.glob("*"):
        if file.name != "tokenizer.json":
            file.unlink()
    assert begins_with_bos(EvaluateSettings(), load_tokenizer(tmp_path)) == value


def test_another_bos_than_the_tokenizer_puts_is_told(tmp_path):
    tokenizer = llama3(tmp_path)
    first = tokenizer.bos_token_id
    with pytest.warns(InputWarning, match=f"puts id {first} before a text, but config.json names bos_token_id=7,"):
        read_inputs(EvaluateSettings(), pathlib.Path, CONFIG, tokenizer)
    for add_bos, config in (("auto", dataclasses.replace(CONFIG, bos_token_id=first)), (True, CONFIG), (False, CONFIG)):
        with warnings.catch_warnings(action="error"):
            read_inputs(build(EvaluateSettings, {"add_bos": add_bos}), pathlib.Path, config, tokenizer)


def _byte_level_space(tokenizer, puts):
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=puts)


def _metaspace(tokenizer, puts):
    parts = [pre_tokenizers.Digits(), pre_tokenizers.Metaspace(prepend_scheme="first" if puts else "never")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)


def _normalizer(tokenizer, puts):
    parts = [normalizers.Prepend("\u2581" if puts else "#"), normalizers.Replace(" ", "\u2581")]
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.Sequence(parts), None


def _without(tokenizer, puts):
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizers.ByteLevel(), None


@pytest.mark.parametrize("asked", [None, False, True])
@pytest.mark.parametrize("puts", [False, True])
@pytest.mark.parametrize("make", [_byte_level_space, _metaspace, _normalizer, _without])
def test_a_space_before_texts_that_settings_beside_the_file_deny_is_told(tmp_path, recwarn, make, puts, asked):
    """As `AutoTokenizer` follows them for the classes of Llama, GPT-2, GPT-NeoX and Qwen 2."""
    tokenizer = _byte_level()
    make(tokenizer, puts)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    settings = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": asked}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    load_tokenizer(tmp_path)
    told = [str(warning.message) for warning in recwarn if issubclass(warning.category, InputWarning)]
    assert len(told) == (make is not _without and asked is not None and asked != puts)
    assert all(
        f"{'puts' if puts else 'puts no'} space before a text, although add_prefix_space={asked}" in t for t in told
    )


@pytest.mark.parametrize("value", ["yes", "True", 1])
def test_whether_bos_is_added_is_auto_true_or_false(value):
    with pytest.raises(InputError, match="add_bos"):
        build(EvaluateSettings, {"add_bos": value})


def test_known_ids_are_those_of_the_tokenizer_and_the_model(tokenizer):
    found = known_ids(CONFIG, tokenizer)
    assert found.shape == (300,) and np.flatnonzero(found).tolist() == sorted(tokenizer.get_vocab().values())
    assert known_ids(dataclasses.replace(CONFIG, vocab_size=100), tokenizer).all()


def test_ids_between_which_there_are_holes(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "?": 2, "b": 50, "c": 90}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = _saved(tokenizer, tmp_path, None, "<eos>", unk="?")
    known = np.flatnonzero(known_ids(CONFIG, tokenizer)).tolist()
    assert known == sorted({0, 2, 50, 90, *(tokenizer.get_vocab()[token] for token in SPECIAL)})
    assert start_ids((50, "c", "a b"), CONFIG, tokenizer) == (50, 90, 0, 50)
    for bad, message in (
        ((3,), "start=3: id 3 is none of the 9 ids"),
        ((300,), "start=300: id 300"),
        (("a", "nothing"), "start='nothing' is no text"),
        ((" ",), "start=' ' is no text"),
    ):
        with pytest.raises(InputError, match=message):
            start_ids(bad, CONFIG, tokenizer)


UNREAD = [("a b c", 0.0), ("a z b zz", 3 / 5), ("数学", 1.0), ("? a", 0.0), ("  \n", 0.0), ("", 0.0)]


@pytest.mark.parametrize("named", ["?", None])  # tokenizer.json alone is enough
@pytest.mark.parametrize("text, share", UNREAD, ids=[repr(text) for text, _ in UNREAD])
def test_characters_without_a_token_of_their_own_are_unknown(text, share, named):
    made = Tokenizer(models.WordLevel({"a": 0, "?": 2, "b": 50, "c": 90}, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=made, unk_token=named)
    assert unknown_share(tokenizer, [text]) == share


def test_the_unknown_token_is_that_of_the_model():
    unigram = models.Unigram([("a", -1.0), ("<unk>", 0.0)], unk_id=1)
    for model, known in (
        (models.BPE({"a": 0, "<u>": 1}, [], unk_token="<u>"), {1: "<u>"}),
        (models.BPE({"a": 0}, []), {}),
        (unigram, {1: "<unk>"}),
        (models.Unigram([("a", -1.0)]), {}),
    ):
        tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model))
        assert unknown_tokens(tokenizer) == known


def test_bytes_are_never_unknown(tokenizer, monkeypatch):
    texts = ["数学 ab\n", "<|endoftext|>" + "<eos>"]
    assert unknown_share(tokenizer, texts) == 0
    monkeypatch.setattr(files_tokenizer, "_PIECE", 3)
    assert unknown_share(tokenizer, texts[:1]) == 0


def test_a_start_is_tokens_ids_and_text(tokenizer):
    vocabulary = tokenizer.get_vocab()
    assert start_ids("auto", CONFIG, tokenizer) == (7,)
    assert start_ids(("<eos>", 4), CONFIG, tokenizer) == (vocabulary["<eos>"], 4)
    assert start_ids(("ab",), CONFIG, tokenizer) == (vocabulary["ab"],)
    newline = start_ids(("\n",), CONFIG, tokenizer)
    assert len(newline) == 1 and tokenizer.decode(newline) == "\n"
    with pytest.warns(InputWarning, match="start='<a>' is no token of the model's tokenizer, and read as text of 3"):
        start_ids(("<a>",), CONFIG, tokenizer)
    several = start_ids(("<bos>", "b\nb"), CONFIG, tokenizer)
    assert several[0] == vocabulary["<bos>"] and tokenizer.decode(several[1:]) == "b\nb"


def test_prompts_of_verify_hold_ids_of_the_tokenizer_alone(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 250, "?": 255}, unk_token="?"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    drawn = np.concatenate(make_prompts(dataclasses.replace(CONFIG, max_position=64), tmp_path)[1:], axis=1)
    assert set(drawn.flat) == {0, 250, 255}


SAVED_IN = {
    "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
    "padding": {
        **{"strategy": {"Fixed": 99}, "direction": "Left", "pad_to_multiple_of": None},
        **{"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"},
    },
    "dropout": 0.5,
}


@pytest.mark.parametrize("name", SAVED_IN)
def test_what_would_cut_pad_or_change_a_text_is_switched_off(tmp_path, name):
    text = "ab " * 20
    expected = encode_texts(pythia(tmp_path), [text])
    file = tmp_path / "tokenizer.json"
    saved = json.loads(file.read_text())
    (saved["model"] if name == "dropout" else saved)[name] = SAVED_IN[name]
    file.write_text(json.dumps(saved))
    assert len(expected[0]) == 40
    assert encode_texts(load_tokenizer(tmp_path), [text]) == expected
    assert read_tokenizer(file).encode(text).ids == expected[0]


BROKEN = {
    "as it is read": {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
    "as it is used": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "by decoding": {"decoder": {"type": "Strip", "content": "a", "start": 9, "stop": 9}},
    "by a text": {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x"}},
    "without unknown": {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}},
}


@pytest.mark.parametrize("change", BROKEN.values(), ids=BROKEN)
def test_a_tokenizer_that_breaks_the_library_is_one_line(tmp_path, change):
    pythia(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"added_tokens": []} | change))
    with pytest.raises(InputError, match="tokenizer .* again$"):
        encode_texts(load_tokenizer(tmp_path), ["a b é"])


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"])
def test_no_file_from_outside_the_folder_is_copied(tmp_path, name):
    secret = tmp_path / "credentials.json"
    secret.write_text(json.dumps({"refresh_token": "secret"}))
    model, out = tmp_path / "model", tmp_path / "out"
    for folder in (model, out):
        folder.mkdir()
    pythia(model)
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(secret)
    with pytest.raises(InputError, match=f"{name} is a link to .*credentials.json, out of its folder"):
        copy_tokenizer(model, out)
    assert not (out / name).exists()


OTHER_FILES = [{"fast_tokenizer_files": ["../tokenizer.4.0.json"]}, {"tokenizer_file": "../x.json"}]


@pytest.mark.parametrize("named", OTHER_FILES)
def test_no_settings_put_another_file_in_the_place_of_tokenizer_json(tmp_path, named):
    gemma(tmp_path)
    wanted = pythia(tmp_path / "model").get_vocab()
    for other in ("tokenizer.4.0.json", "x.json"):
        (tmp_path / other).write_bytes((tmp_path / "tokenizer.json").read_bytes())
    (tmp_path / "model" / "tokenizer_config.json").write_text(json.dumps(named))
    assert load_tokenizer(tmp_path / "model").get_vocab() == wanted


def test_only_settings_that_transformers_knows_are_copied(tmp_path):
    (tmp_path / "out").mkdir()
    pythia(tmp_path)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        (tmp_path / name).write_text(json.dumps({"eos_token": "<eos>", "refresh_token": "secret"}))
        copy_tokenizer(tmp_path, tmp_path / "out")
        assert json.loads((tmp_path / "out" / name).read_text()) == {"eos_token": "<eos>"}
    (tmp_path / "tokenizer_config.json").write_text('[{"auto_map": 1}]')
    with pytest.raises(InputError, match="tokenizer_config.json must be a JSON object"):
        copy_tokenizer(tmp_path, tmp_path / "out")


def test_added_tokens_in_a_file_of_their_own_are_of_the_tokenizer(tmp_path):
    """transformers reads them, so that they decide ids."""
    model, out = tmp_path / "model", tmp_path / "out"
    vocab, before = pythia(model).get_vocab(), dict(vocabulary_input("m", lambda: model))
    (model / "added_tokens.json").write_text(json.dumps({"<new>": len(vocab)}))
    assert load_tokenizer(model).get_vocab() == vocab | {"<new>": len(vocab)}
    assert dict(vocabulary_input("m", lambda: model)) != before
    out.mkdir()
    copy_tokenizer(model, out)
    assert load_tokenizer(out).get_vocab() == load_tokenizer(model).get_vocab()


@pytest.mark.parametrize("make", [gemma, pythia])
def test_probes_of_another_tokenizer_are_warned_of(tmp_path, recwarn, make):
    """Their ids may all be legal, and what is then asked for is no text."""
    rng, tokenizer = np.random.default_rng(0), make(tmp_path)
    [ids] = encode_texts(tokenizer, ["".join(rng.choice([*"ab \n", "\u00e9"], 800))])
    other = rng.permutation(len(tokenizer.get_vocab()))[ids]
    vocab, bos = len(tokenizer.get_vocab()), tokenizer.bos_token_id
    config = dataclasses.replace(ONE_LAYER, vocab_size=vocab, bos_token_id=bos, max_position=32)
    for name, read in (("own", ids), ("other", other.tolist())):
        rows = [{"prefix": read[i : i + 8], "suffix": read[i + 8 : i + 16]} for i in range(0, 400, 16)]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        settings = EvaluateSettings(probes=str(tmp_path / f"{name}.jsonl"))
        read_inputs(settings, pathlib.Path, config, tokenizer)
    assert [str(warning.message).split(": ")[:1] for warning in recwarn] == [[f"probe file {tmp_path}/other.jsonl"]]


def test_links_of_the_hubs_cache_are_followed(tmp_path):
    blobs, snapshot, out = tmp_path / "blobs", tmp_path / "snapshots" / "1234", tmp_path / "out"
    for folder in (blobs, snapshot, out):
        folder.mkdir(parents=True)
    pythia(snapshot)
    for file in list(snapshot.iterdir()):
        os.replace(file, blobs / file.name)
        file.symlink_to(f"../../blobs/{file.name}")
    copy_tokenizer(snapshot, out)
    assert load_tokenizer(out).get_vocab() == load_tokenizer(snapshot).get_vocab()


@pytest.mark.parametrize("kind", ["Unigram", "BPE", "WordPiece"])
def test_the_name_of_a_special_token_is_read_as_ordinary_characters(tmp_path, kind):
    """Unigram and WordPiece have it among their pieces, and give its id whatever they are asked for."""
    characters = ["<", "/", ">", "s", "d", "o", "g", "▁"]
    names = ["<unk>", "<s>", "</s>"]
    if kind == "Unigram":
        model = models.Unigram([(piece, -1.0) for piece in names + characters], unk_id=0)
    else:
        vocabulary = {piece: i for i, piece in enumerate(names + characters)}
        model = models.BPE(vocabulary, []) if kind == "BPE" else models.WordPiece(vocabulary, unk_token="<unk>")
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("</?s>|."), "isolated")
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(names)
    backend.save(str(tmp_path / "tokenizer.json"))
    named = dict(zip(("unk_token", "bos_token", "eos_token"), names))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **named}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(tmp_path)
    text = "<s>dog</s>"
    [ids] = encode_texts(tokenizer, [text])
    assert tokenizer.convert_ids_to_tokens(ids) == list(text) and tokenizer.decode(ids) == text
    tokenizer.backend_tokenizer.add_tokens([AddedToken("dog", special=False)])  # as the EOS of some chat models
    last = tokenizer.convert_tokens_to_ids("dog")
    assert encode_texts(tokenizer, ["dog"]) == [[last]]
    assert tokenizer.convert_ids_to_tokens(encode_texts(tokenizer, ["dog"], (last,))[0]) == list("dog")
