"""Documents, and how ArrayRecord shards hold them: one `tf.train.Example` each, written without TensorFlow."""

import dataclasses
import errno
import os
import pathlib
import secrets
from typing import Sequence

import numpy as np
from jaxtyping import Float32, Int32

from selftrain_jax.core.errors import InputError, one_line

STOP_REASONS = ("eos", "length")


@dataclasses.dataclass(frozen=True, eq=False)
class Document:
    """One sampled or imported document.

    Attributes:
      id: number of the sample, or position in the imported source; unique in a corpus.
      tokens: the n token ids after BOS; ends with EOS exactly when `stop_reason` is "eos".
      log_probs: log-probability of each token in nats, under the untempered model; None where nobody measured them, as
        for imported text.
      stop_reason: "eos" or "length".
      text: the decoded tokens.
    """

    id: int
    tokens: Int32[np.ndarray, " n"]
    log_probs: Float32[np.ndarray, " n"] | None
    stop_reason: str
    text: str


def features():
    """What TFDS is told about the records."""
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Scalar(np.int64),
            "tokens": tfds.features.Tensor(shape=(None,), dtype=np.int32),
            "log_probs": tfds.features.Tensor(shape=(None,), dtype=np.float32),
            "stop_reason": tfds.features.Text(),
            "text": tfds.features.Text(),
        }
    )


def encode(document: Document) -> bytes:
    """`document` as the record TFDS expects for `features`; `InputError` when its fields do not fit together."""
    from tensorflow_datasets.proto import tf_example_pb2
    from tensorflow_datasets.proto import tf_feature_pb2 as pb

    tokens, measured = np.asarray(document.tokens), document.log_probs is not None
    # Without log-probabilities the list stays empty, which `decode` tells from a document without tokens.
    log_probs = np.asarray(document.log_probs if measured else [], np.float32)
    problem = None
    if tokens.ndim != 1 or measured and tokens.shape != log_probs.shape:
        problem = f"tokens {tokens.shape} and log_probs {log_probs.shape} must be two vectors of one length"
    elif tokens.size and (tokens.dtype.kind not in "iu" or tokens.min() < 0 or tokens.max() > np.iinfo(np.int32).max):
        problem = "tokens must be non-negative 32-bit integers"
    elif not np.isfinite(log_probs).all():
        problem = "log_probs must be finite"
    elif document.stop_reason not in STOP_REASONS:
        problem = f"stop_reason={document.stop_reason!r} must be one of {', '.join(STOP_REASONS)}"
    else:
        try:
            text = document.text.encode()
        except UnicodeEncodeError:
            problem = "text holds a lone surrogate, which UTF-8 cannot store: decode with errors='replace'"
    if problem:
        raise InputError(f"document {document.id}: {problem}")
    fields = {
        "id": pb.Feature(int64_list=pb.Int64List(value=[int(document.id)])),
        "tokens": pb.Feature(int64_list=pb.Int64List(value=tokens.astype(np.int32).tolist())),
        "log_probs": pb.Feature(float_list=pb.FloatList(value=log_probs.tolist())),
        "stop_reason": pb.Feature(bytes_list=pb.BytesList(value=[document.stop_reason.encode()])),
        "text": pb.Feature(bytes_list=pb.BytesList(value=[text])),
    }
    return tf_example_pb2.Example(features=pb.Features(feature=fields)).SerializeToString(deterministic=True)


@dataclasses.dataclass(frozen=True)
class Text:
    """A document's text alone; `id` is the document's, or a text's position in its file."""

    id: int
    text: str


def decode_text(record: bytes) -> Text:
    """`decode`, but of the text alone, in half the time."""
    from tensorflow_datasets.proto import tf_example_pb2

    fields = tf_example_pb2.Example.FromString(record).features.feature
    return Text(fields["id"].int64_list.value[0], fields["text"].bytes_list.value[0].decode())


def decode(record: bytes) -> Document:
    from tensorflow_datasets.proto import tf_example_pb2

    fields = tf_example_pb2.Example.FromString(record).features.feature
    tokens = np.array(fields["tokens"].int64_list.value, np.int32)
    log_probs = np.array(fields["log_probs"].float_list.value, np.float32)
    return Document(
        id=fields["id"].int64_list.value[0],
        tokens=tokens,
        log_probs=None if len(tokens) and not len(log_probs) else log_probs,
        stop_reason=fields["stop_reason"].bytes_list.value[0].decode(),
        text=fields["text"].bytes_list.value[0].decode(),
    )


def shard_length(file: str | os.PathLike, ids: Sequence[int] | None = None) -> int:
    """Documents in a shard; 0 when it is missing or damaged at its end, or its first or last is not that of `ids`."""
    from array_record.python import array_record_module

    try:
        reader = array_record_module.ArrayRecordReader(str(file))
        size = reader.num_records()
        if ids and size:
            ends = [decode(record).id for record in reader.read([0, size - 1])]
            size = size if ends == [ids[0], ids[-1]] else 0
    except Exception:  # array_record raises RuntimeError, protobuf its own; either way the shard is of no use
        return 0
    if reader.ok():
        reader.close()
    return size


def read_first(file: str | os.PathLike, ids: Sequence[int]) -> list[Document]:
    """Those of the documents `ids` that a shard holds which was cut short, its first ones; often none."""
    from array_record.python import array_record_module

    length = shard_length(file)
    if not 0 < length < len(ids) or shard_length(file, ids[:length]) != length:
        return []
    try:
        reader = array_record_module.ArrayRecordReader(str(file))
        documents = [decode(record) for record in reader.read(0, length)]
    except Exception:  # damaged in the middle: drawn again
        return []
    reader.close()
    return documents


def write_records(file: pathlib.Path, records: Sequence[bytes]) -> None:
    """Writes a shard that exists whole or not at all; `OSError` when the system refuses."""
    from array_record.python import array_record_module

    temporary = file.with_name(f".{file.name}.{secrets.token_hex(8)}.tmp")
    try:
        try:
            # Readers that fetch single documents (Grain, TFDS) need one record per group.
            writer = array_record_module.ArrayRecordWriter(str(temporary), "group_size:1")
            for record in records:
                writer.write(record)
            writer.close()
        except RuntimeError as e:  # its spelling of a full disk
            raise OSError(errno.EIO, one_line(e)[:200], str(file)) from None
        with open(temporary, "rb") as f:
            os.fsync(f.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
