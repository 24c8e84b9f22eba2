from unittest import mock

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from selftrain_jax.core.errors import InputError
from selftrain_jax.data import packing
from selftrain_jax.data.packing import addressed_bits, batch_indices, pack, pack_blocks, packed_length, steps_per_epoch


def make_documents(n=40, seed=0):
    """Short documents over few ids, so that the BOS id 0 also ends and sits inside documents."""
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 3, rng.integers(0, 12)).astype(np.int32) for _ in range(n)]


def stream_of(documents, bos):
    return [token for document in documents for token in (bos, *document)]


@pytest.mark.parametrize("sequence_length", [1, 7, 16])
@pytest.mark.parametrize("bos", [0, 5])
def test_every_token_is_a_target_exactly_once(sequence_length, bos):
    documents = make_documents()
    stream = stream_of(documents, bos)
    packed = pack(documents, bos_token_id=bos, sequence_length=sequence_length)
    used = len(stream) - packed.dropped_tokens
    assert packed.tokens.shape == ((len(stream) - 1) // sequence_length, sequence_length + 1)
    assert packed.tokens.dtype == packed.segment_ids.dtype == np.int32
    assert packed.tokens[:, 1:].ravel().tolist() == stream[1:used]
    assert packed.tokens[:, :-1].ravel().tolist() == stream[: used - 1]
    assert packed.dropped_tokens < sequence_length


def test_documents_are_recovered_from_their_segments():
    documents = make_documents()
    packed = pack(iter(documents), bos_token_id=0, sequence_length=5)
    tokens = np.append(packed.tokens[0, 0], packed.tokens[:, 1:])
    segments = np.append(packed.segment_ids[0, 0], packed.segment_ids[:, 1:])
    for number in range(segments[-1]):
        np.testing.assert_array_equal(tokens[segments == number], [0, *documents[number]])
    np.testing.assert_array_equal(packed.segment_ids[1:, 0], packed.segment_ids[:-1, -1])


IDS = st.integers(0, 2)  # BOS is 0, so it also ends and sits inside documents


@hypothesis.given(st.lists(st.lists(IDS, max_size=30), max_size=8), st.integers(1, 16), st.integers(1, 60))
def test_any_documents_are_recovered(documents, sequence_length, at_once):
    """Of no token, of one, and longer than a row, or than what is cut together."""
    with mock.patch.object(packing, "_AT_ONCE", at_once):
        packed = pack([np.array(d, np.int32) for d in documents], bos_token_id=0, sequence_length=sequence_length)
    owners = [i for i, document in enumerate(documents) for _ in range(len(document) + 1)]
    for rows, stream in ((packed.tokens, stream_of(documents, 0)), (packed.segment_ids, owners)):
        used = len(stream) - packed.dropped_tokens
        assert [*rows[:1, 0], *rows[:, 1:].ravel()] == stream[:used] and (rows[1:, 0] == rows[:-1, -1]).all()
        assert packed.dropped_tokens < sequence_length or packed.dropped_tokens == len(stream) <= sequence_length


def test_blocks_come_while_documents_are_read(monkeypatch):
    monkeypatch.setattr(packing, "_AT_ONCE", 20)
    documents, read = make_documents(), []
    whole = pack(documents, bos_token_id=0, sequence_length=5)
    lengths = [len(document) for document in documents]
    packed = pack_blocks((read.append(1) or d for d in documents), lengths, bos_token_id=0, sequence_length=5)
    assert packed.tokens.shape == packed.segment_ids.shape == whole.tokens.shape and not read
    blocks = [(block, len(read)) for block in packed.tokens.blocks]
    assert all(len(block) <= (20 + 12) // 5 for block, _ in blocks) and blocks[0][1] < len(documents) / 4
    np.testing.assert_array_equal(np.concatenate([block for block, _ in blocks]), whole.tokens)
    np.testing.assert_array_equal(np.concatenate([*packed.segment_ids.blocks]), whole.segment_ids)
    other = pack_blocks(documents, [*lengths[:-1], lengths[-1] + 1], bos_token_id=0, sequence_length=5)
    with pytest.raises(InputError, match="document 39 has shape"):
        list(other.tokens.blocks)


def test_an_exact_multiple_plus_one_drops_nothing():
    documents = [np.arange(9), np.arange(6)]
    assert sum(packed_length(len(d)) for d in documents) == 17
    packed = pack(documents, bos_token_id=0, sequence_length=4)
    assert packed.tokens.shape == (4, 5)
    assert packed.dropped_tokens == 0


@pytest.mark.parametrize("documents", [[], [np.array([], np.int32)], [np.arange(3)]])
def test_a_stream_shorter_than_a_row_is_dropped_whole(documents):
    packed = pack(documents, bos_token_id=0, sequence_length=4)
    assert packed.tokens.shape == packed.segment_ids.shape == (0, 5)
    assert packed.dropped_tokens == sum(len(d) + 1 for d in documents)


def test_rows_are_writable_copies():
    document = np.arange(8, dtype=np.int32)
    packed = pack([document], bos_token_id=0, sequence_length=4)
    packed.tokens[0, -1] = 99
    assert packed.tokens[1, 0] == 3
    assert document.tolist() == list(range(8))


def test_wrong_packing_input_is_refused():
    for arguments in ({"bos_token_id": -1, "sequence_length": 4}, {"bos_token_id": 0, "sequence_length": 0}):
        with pytest.raises(InputError):
            pack([np.arange(3)], **arguments)
    for document in (np.zeros((2, 2), np.int32), np.array([1.5])):
        with pytest.raises(InputError, match="document 1"):
            pack([np.arange(3), document], bos_token_id=0, sequence_length=4)


def epoch_rows(epoch, seed=3, num_rows=23, batch_size=5):
    steps = steps_per_epoch(num_rows=num_rows, batch_size=batch_size)
    return np.concatenate(
        [batch_indices(epoch * steps + s, num_rows=num_rows, batch_size=batch_size, seed=seed) for s in range(steps)]
    )


def test_an_epoch_visits_rows_at_most_once_and_all_but_the_rest():
    for epoch in range(5):
        rows = epoch_rows(epoch)
        assert len(rows) == len(set(rows)) == 20
        assert set(rows) <= set(range(23))
    assert sorted(epoch_rows(2, num_rows=20)) == list(range(20))


def test_rows_left_out_change_with_the_epoch():
    assert set().union(*(epoch_rows(epoch) for epoch in range(8))) == set(range(23))


def test_batches_depend_on_seed_and_step_only():
    forward = [batch_indices(s, num_rows=23, batch_size=5, seed=3) for s in range(40)]
    backward = [batch_indices(s, num_rows=23, batch_size=5, seed=3) for s in reversed(range(40))][::-1]
    np.testing.assert_array_equal(forward, backward)
    assert epoch_rows(0).tolist() != epoch_rows(1).tolist()
    assert epoch_rows(0).tolist() != epoch_rows(0, seed=4).tolist()


def test_changing_a_batch_does_not_change_the_next_call():
    first = batch_indices(0, num_rows=8, batch_size=8, seed=0)
    expected = first.copy()
    first[:] = -1
    np.testing.assert_array_equal(batch_indices(0, num_rows=8, batch_size=8, seed=0), expected)


def test_batch_order_is_pinned():
    """A resumed run needs the order that the interrupted one used, whatever NumPy is installed by then."""
    assert batch_indices(0, num_rows=10, batch_size=10, seed=0).tolist() == [4, 6, 3, 5, 2, 9, 1, 0, 7, 8]
    assert addressed_bits(1, 2, 3).random_raw(2).tolist() == [3340831800615603085, 6562709875061121008]


def test_addresses_do_not_run_into_each_other():
    streams = {
        tuple(addressed_bits(*address).random_raw(4).tolist())
        for address in [(0,), (0, 0), (0, 0, 0), (0, 1), (1, 0), (5, 0), (5 + (7 << 32), 0), (5, 7), (5, 0, 7)]
    }
    assert len(streams) == 9


def test_wrong_batch_settings_name_the_way_out():
    with pytest.raises(InputError, match="batch_size=5 is more than the 4 .*lower batch_size"):
        batch_indices(0, num_rows=4, batch_size=5, seed=0)
    with pytest.raises(InputError, match="batch_size=0"):
        steps_per_epoch(num_rows=4, batch_size=0)
    with pytest.raises(InputError, match="step=-1"):
        batch_indices(-1, num_rows=4, batch_size=2, seed=0)
    with pytest.raises(InputError, match="seed=-1"):
        batch_indices(0, num_rows=4, batch_size=2, seed=-1)
    assert steps_per_epoch(num_rows=11, batch_size=5) == 2
