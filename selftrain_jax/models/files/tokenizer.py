"""Tokenizers, through transformers; a directory needs no more than `tokenizer.json`."""

import collections
import contextlib
import itertools
import json
import os
import pathlib
import re
import warnings
from typing import Any, Collection, Iterator, Mapping, Sequence

import numpy as np

from selftrain_jax.core import files
from selftrain_jax.core.errors import InputError, InputWarning, one_line
from selftrain_jax.models.config import DecoderConfig
from selftrain_jax.models.files.hub import resolve_model

_TOKENIZER = "tokenizer.json"
UNKNOWN_TOLD = 0.001
"""`unknown_share` from which on users are told."""
UNKNOWN_SOUGHT = 1000
"""Documents of a corpus in which it is looked for, evenly spread."""
_PIECE = 1 << 16  # characters looked at together: the offsets of a long text take much memory
_LIKE_A_TOKEN = re.compile(r"<\S+>|\[[A-Z]+\]|auto|[BE]O[ST]", re.IGNORECASE)
_ADDED = "added_tokens.json"  # older tokenizers have it: token -> id, all of it copied
_EXTRAS = ("tokenizer_config.json", "special_tokens_map.json", _ADDED)
_KEYS = {
    *("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"),
    *("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder", "model_specific_special_tokens"),
    *("add_bos_token", "add_eos_token", "add_prefix_space", "clean_up_tokenization_spaces", "split_special_tokens"),
    *("model_max_length", "padding_side", "truncation_side", "model_input_names", "spaces_between_special_tokens"),
    *("do_lower_case", "strip_accents", "tokenize_chinese_chars", "sp_model_kwargs", "trim_offsets"),
    *("legacy", "errors", "use_default_system_prompt", "tokenizer_class", "backend", "is_local", "chat_template"),
}
"""What is copied of the files beside `tokenizer.json`."""


def import_transformers():
    """The transformers module, imported without its advice to install PyTorch: nothing here uses a model class."""
    name = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        import transformers
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
    return transformers


def tokenizer_files(directory: str | os.PathLike) -> list[pathlib.Path]:
    directory = resolve_model(directory, weights=False)
    if not (directory / _TOKENIZER).is_file():
        raise InputError(f"tokenizer not found: {directory / _TOKENIZER} (name a directory that holds {_TOKENIZER})")
    return [directory / name for name in (_TOKENIZER, *_EXTRAS) if (directory / name).is_file()]


def copied_files(source: str | os.PathLike) -> list[pathlib.Path]:
    """`tokenizer_files`; `InputError` for one that is a link out of its folder, unless within the hub's cache."""
    paths = tokenizer_files(source)
    for path in paths:
        home, target = path.parent.resolve(), path.resolve()
        blobs = home.parent.parent / "blobs"  # where the links of the hub's cache lead
        if target.parent != home and not (home.parent.name == "snapshots" and target.parent == blobs):
            raise InputError(f"{path} is a link to {target}, out of its folder, and is not copied: put the file there")
    return paths


def copy_tokenizer(source: str | os.PathLike, directory: pathlib.Path) -> None:
    """Copies the tokenizer's files, of the settings beside `tokenizer.json` what transformers knows alone: no reference
    to code, which is not copied, and nothing that somebody else's folder hides there.

    Raises:
      InputError: as `copied_files`, or the settings are broken.

    Warns:
      InputWarning: what was left out adds tokens.
    """
    left_out: list[str] = []
    for path in copied_files(source):
        data = path.read_bytes()
        if path.name in _EXTRAS:
            settings = files.read_json(path, "tokenizer settings")
            if not isinstance(settings, dict):
                raise InputError(f"tokenizer settings {path} must be a JSON object; copy or download it again")
            known = {name: value for name, value in settings.items() if name in _KEYS or path.name == _ADDED}
            left_out += settings.keys() - known.keys()
            if "auto_map" in settings:
                known["tokenizer_class"] = "PreTrainedTokenizerFast"
            data = data if known == settings else files.json_text(known, indent=2)
        files.write_atomic(directory / path.name, data)
    # transformers takes any setting that ends so for one, in others' folders also a password.
    named = [name for name in left_out if name.endswith("_token")]
    if named and tokenizer_fingerprint(source) != tokenizer_fingerprint(directory):
        text = f"tokenizer {source}: {', '.join(sorted(named))} beside it add tokens, and are not copied: the copy has"
        warnings.warn(InputWarning(f"{text} fewer; name them in extra_special_tokens"), stacklevel=2)


def load_tokenizer(directory: str | os.PathLike) -> Any:
    """The `transformers.PreTrainedTokenizerFast` in `directory`, which needs no more than `tokenizer.json`.

    A text gives all its ids, and the same ones, whatever truncation, padding or dropout is saved with it. Decoding
    never tidies spaces, so text is what the ids say. Raises `InputError` when the file is missing or broken.
    """
    path = tokenizer_files(directory)[0]
    with _refusing(f"tokenizer {path} cannot be read"):
        # The settings beside it may name another file, in other folders, too: this one is what is hashed and copied.
        tokenizer = import_transformers().PreTrainedTokenizerFast.from_pretrained(
            path.parent, tokenizer_file=str(path), local_files_only=True, clean_up_tokenization_spaces=False
        )
        does, asked = _puts_space(_whole(tokenizer.backend_tokenizer)), tokenizer.init_kwargs.get("add_prefix_space")
        with contextlib.suppress(Exception):  # some fail in use alone; what they have no token for is not meant
            tokenizer(tokenizer.decode(list(range(256))), verbose=False)
    if None not in (does, asked) and does != asked:
        text = f"{path} {'puts' if does else 'puts no'} space before a text, although add_prefix_space={asked} stands"
        text += " beside it, which some classes of transformers follow: ids may differ from theirs"
        warnings.warn(InputWarning(text), stacklevel=1)  # of one place: said once
    return tokenizer


def _puts_space(tokenizer: Any) -> bool | None:
    """Whether a `tokenizers.Tokenizer` puts a space before every text; None where it has no part that could."""
    parts = [part for part in (tokenizer.normalizer, tokenizer.pre_tokenizer) if part is not None]
    waiting, found = [json.loads(part.__getstate__()) for part in parts], []
    while waiting:
        part = waiting.pop()
        waiting += [*part.get("normalizers", ()), *part.get("pretokenizers", ())]
        if part.get("type") == "ByteLevel" and "add_prefix_space" in part:  # there is a normalizer of that name, too
            found.append(part["add_prefix_space"])
        elif part.get("type") == "Metaspace":
            found.append(part.get("prepend_scheme") != "never")
        elif part.get("type") == "Prepend":
            found.append(part["prepend"] in (" ", "\u2581"))
    return any(found) if found else None


def read_tokenizer(path: str | os.PathLike) -> Any:
    """The `tokenizers.Tokenizer` in the file `path`, in this respect like `load_tokenizer`'s."""
    import tokenizers

    with _refusing(f"tokenizer {path} cannot be read"):
        return _whole(tokenizers.Tokenizer.from_file(os.fspath(path)))


def _whole(tokenizer: Any) -> Any:
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if getattr(tokenizer.model, "dropout", None):  # of merges, by chance
        tokenizer.model.dropout = None
    return tokenizer


@contextlib.contextmanager
def _refusing(what: str) -> Iterator[None]:
    """Turns what the tokenizers library raises, bare `Exception` and Rust's panics, into an `InputError`."""
    try:
        yield
    except BaseException as e:
        if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
            raise
        raise InputError(f"{what} ({one_line(e)[:300]}); copy or download the model's own again") from None


def check_tokenizer(config: DecoderConfig, tokenizer: Any) -> None:
    """Raises `InputError` when `tokenizer` has no ids, or ids past the model's embedding rows; users are told where it
    begins or ends texts with another token than the model's documents."""
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    if not size:
        raise InputError("the tokenizer has an empty vocabulary; use the model's own tokenizer")
    if size > config.vocab_size:
        raise InputError(
            f"the tokenizer has {size} ids, but the model's vocab_size={config.vocab_size} embedding rows cannot hold "
            "them; use the model's own tokenizer"
        )
    for token, named, ours, what in (
        (tokenizer.bos_token, tokenizer.bos_token_id, (config.bos_token_id,), "beginning"),
        (tokenizer.eos_token, tokenizer.eos_token_id, config.stop_ids, "end"),
    ):
        if named not in (None, *ours):
            text = f"the model's tokenizer calls {token!r}, id {named}, the {what} of a text, but config.json and "
            text += f"generation_config.json name {', '.join(map(str, ours))} (or leave it to a default), which is the "
            warnings.warn(InputWarning(f"{text}{what} of documents, as in transformers' generate"), stacklevel=2)


def known_ids(config: DecoderConfig, tokenizer: Any) -> np.ndarray:
    """bool `[V]`: the ids of the model's vocabulary that `tokenizer` has. The others, holes between its ids and rows
    past its last one, stand for nothing."""
    known = np.zeros(config.vocab_size, bool)
    known[[i for i in tokenizer.get_vocab().values() if i < config.vocab_size]] = True
    return known


def encode_texts(tokenizer: Any, texts: Sequence[str], special_ids: Collection[int] = ()) -> list[list[int]]:
    """The token ids of each text, without BOS or EOS; "<|endoftext|>" in a text is read as ordinary characters.

    Args:
      special_ids: ids that begin or end a document, which the tokenizer's own settings need not name.
    """
    encoded = call_tokenizer(tokenizer, texts, split_special_tokens=True)
    # Unigram, WordPiece and word tokenizers may have the name of a special token among their pieces.
    named = {*tokenizer.all_special_ids, *special_ids}.intersection(itertools.chain.from_iterable(encoded))
    if not named:
        return encoded
    unknown = unknown_tokens(tokenizer)
    spelled = {token_id: _spelled(tokenizer, token_id, unknown) for token_id in named - unknown.keys()}
    return [[piece for token_id in ids for piece in spelled.get(token_id, (token_id,))] for ids in encoded]


def _spelled(tokenizer: Any, token_id: int, unknown: Mapping[int, str]) -> list[int]:
    """The name of a token by its characters; as one unknown token where none of these can be written."""
    model = tokenizer.backend_tokenizer.model
    ids = [piece.id for character in tokenizer.convert_ids_to_tokens(token_id) for piece in model.tokenize(character)]
    return ids[:1] if unknown.keys() >= set(ids) else ids


def call_tokenizer(tokenizer: Any, texts: Sequence[str], **options: Any) -> list[list[int]]:
    """The token ids of each text, special tokens not added unless `options` of the tokenizer's call say so.

    Raises:
      InputError: the tokenizer fails on a text.
    """
    if not texts:
        return []
    with _refusing("the tokenizer has nothing for a part of the text, or is broken"):
        return tokenizer(list(texts), **{"add_special_tokens": False, "verbose": False} | options)["input_ids"]


def unknown_tokens(tokenizer: Any) -> dict[int, str]:
    """id -> token that `tokenizer` makes of text that it has no token for: that of its own model, which the settings
    beside `tokenizer.json` need not name, and that of these."""
    backend = tokenizer.backend_tokenizer
    names = {getattr(backend.model, "unk_token", None), tokenizer.unk_token}
    if type(backend.model).__name__ == "Unigram":  # says it in its file alone
        model = json.loads(backend.to_str())["model"]
        names.add(None if model["unk_id"] is None else model["vocab"][model["unk_id"]][0])
    return {i: name for name in names - {None} if (i := backend.token_to_id(name)) is not None}


def unknown_share(tokenizer: Any, texts: Sequence[str]) -> float:
    """The share of the characters of `texts`, white space aside, that `tokenizer` leaves out or makes its unknown token
    of; 0 without any. (Tokens would not do: one may stand for a whole unknown passage, or for none.)

    Raises:
      InputError: the tokenizer fails on the texts.
    """
    counts = collections.Counter(itertools.chain.from_iterable(texts))
    letters = [c for c in counts if not c.isspace()]
    if not letters:
        return 0.0
    pieces = [text[i : i + _PIECE] for text in texts for i in range(0, len(text), _PIECE)]
    names, unknown = unknown_tokens(tokenizer), 0
    with _refusing("the tokenizer cannot read a text"):
        left_out = [c for c, ids in zip(letters, encode_texts(tokenizer, letters)) if not ids]
        for start in range(0, len(pieces), 256):
            batch = pieces[start : start + 256]
            found = tokenizer(batch, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
            for text, ids, spans in zip(batch, found["input_ids"], found["offset_mapping"]):
                passages = [(names[i], text[slice(*span)]) for i, span in zip(ids, spans) if i in names]
                # Where the text itself names the unknown token, it is read as it is.
                unknown += sum(not c.isspace() for name, of in passages if of.strip() != name for c in of)
    if left_out:  # which offsets do not tell: the library counts on as if it had not been there
        whole = re.compile("|".join(map(re.escape, tokenizer.get_added_vocab())) or "(?!)")
        unknown += sum(rest.count(c) for text in texts for rest in [whole.sub("", text)] for c in left_out)
    return unknown / sum(counts[c] for c in letters)


def warn_of_unknown(what: str, tokenizer: Any, texts: Sequence[str]) -> float:
    """`unknown_share`, which users are told from `UNKNOWN_TOLD` on."""
    if (share := unknown_share(tokenizer, texts)) > UNKNOWN_TOLD:
        warnings.warn(InputWarning(f"{what}: {share:.1%} of it is unknown to the tokenizer"), stacklevel=3)
    return share


def start_ids(start: str | Sequence[int | str], config: DecoderConfig, tokenizer: Any) -> tuple[int, ...]:
    """The ids after which sampled documents begin.

    Args:
      start: "auto" for the model's BOS; or ids and texts, of which one that is a token of the vocabulary is that token,
        and any other is encoded, without special tokens, to one or more.

    Raises:
      InputError: an id that the tokenizer does not have, or a text that it makes nothing of.

    Warns:
      InputWarning: what looks like the name of a special token is none.
    """
    if start == "auto":
        return (config.bos_token_id,)
    known, vocabulary, ids = known_ids(config, tokenizer), tokenizer.get_vocab(), []
    for entry in start:
        found = [entry]
        if isinstance(entry, str):
            found = [vocabulary[entry]] if entry in vocabulary else encode_texts(tokenizer, [entry])[0]
            if not found or (entry not in vocabulary and tokenizer.unk_token_id in found):
                raise InputError(f"sample start={entry!r} is no text that the model's tokenizer knows; name a token")
            if entry not in vocabulary and _LIKE_A_TOKEN.fullmatch(entry):
                what = f"sample start={entry!r} is no token of the model's tokenizer, and read as text of {len(found)}"
                warnings.warn(InputWarning(f"{what}; its BOS is 'auto'"), stacklevel=2)
        for i in found:
            if not 0 <= i < len(known) or not known[i]:
                raise InputError(
                    f"sample start={entry!r}: id {i} is none of the {known.sum()} ids that the model's tokenizer has; "
                    "name one of them, or 'auto'"
                )
        ids += found
    return tuple(ids)


def tokenizer_fingerprint(directory: str | os.PathLike) -> str:
    """Equal when two models surely share their token ids: a hash of `tokenizer.json`, and, where the files beside it
    add tokens or make some special, of these."""
    path, *beside = tokenizer_files(directory)
    of_file = files.file_fingerprint(path)
    if not beside:
        return of_file
    added = {_description(i, token) for i, token in load_tokenizer(path.parent).added_tokens_decoder.items()}
    stated = read_tokenizer(path).get_added_tokens_decoder()
    more = added - {_description(i, token) for i, token in stated.items()}
    return files.fingerprint([of_file, *sorted(more)]) if more else of_file


def _description(i: int, token: Any) -> tuple:
    return i, token.content, token.special, token.lstrip, token.rstrip, token.single_word, token.normalized


def reads_ids(fingerprint: str | None, directory: str | os.PathLike) -> bool:
    """Whether the ids of the tokenizer of that fingerprint surely stand for the same tokens in that of `directory`,
    which may add some."""
    known = [tokenizer_fingerprint(directory), files.file_fingerprint(tokenizer_files(directory)[0])]
    return fingerprint in known
