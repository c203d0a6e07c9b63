"""Token stores: what is written is read, by us and by Megatron-LM, and the reverse."""

import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megalite.data.corpus.store import HEADER, MAGIC, StoreWriter, TokenStore, smallest_dtype
from megalite.errors import DataError

DOCUMENTS = st.lists(st.lists(st.integers(0, 60000), max_size=9), min_size=1, max_size=8).filter(
    any  # Megatron can't map an empty file, and a store without tokens is refused
)


def write(prefix, documents, dtype=np.uint16) -> None:
    writer = StoreWriter(prefix, dtype)
    for document in documents:
        writer.add(document)
    writer.close()


def megatron():
    from megatron.core.datasets import indexed_dataset

    return indexed_dataset


@settings(max_examples=15)
@given(DOCUMENTS, st.sampled_from([np.uint16, np.int32]))
def test_megatron_reads_what_is_written(tmp_path_factory, documents, dtype):
    prefix = tmp_path_factory.mktemp("store") / "a"
    write(prefix, documents, dtype)
    theirs = megatron().IndexedDataset(str(prefix))
    assert len(theirs) == len(documents)
    assert theirs.index.dtype is dtype
    assert [theirs[i].tolist() for i in range(len(theirs))] == documents
    assert theirs.document_indices.tolist() == list(range(len(documents) + 1))
    ours = TokenStore(prefix)
    assert [ours[i].tolist() for i in range(len(ours))] == documents
    assert ours.num_tokens == sum(map(len, documents))


@settings(max_examples=15)
@given(
    st.lists(DOCUMENTS, min_size=1, max_size=4), st.sampled_from([np.uint16, np.int32, np.int64])
)
def test_what_megatron_writes_is_read(tmp_path_factory, documents, dtype):
    """Each of Megatron's documents has one sequence or more; ours are the documents."""
    prefix = tmp_path_factory.mktemp("store") / "a"
    builder = megatron().IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for sequences in documents:
        for sequence in sequences:
            builder.add_item(torch.tensor(sequence, dtype=torch.int64))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")
    whole = [[token for sequence in one for token in sequence] for one in documents]
    store = TokenStore(prefix)
    assert [store[i].tolist() for i in range(len(store))] == whole
    assert store.lengths.tolist() == [len(one) for one in whole]


@settings(max_examples=15)
@given(DOCUMENTS, DOCUMENTS)
def test_joined_stores_hold_the_documents_of_both(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("stores")
    joined = StoreWriter(folder / "joined", np.int32)
    for number, part in enumerate((first, second)):
        write(folder / str(number), part)
        joined.add_store(TokenStore(folder / str(number)))
    joined.add([7])
    joined.close()
    store = TokenStore(folder / "joined")
    assert [store[i].tolist() for i in range(len(store))] == [*first, *second, [7]]


def test_a_store_without_tokens_is_refused(tmp_path):
    write(tmp_path / "a", [[], []])
    with pytest.raises(DataError, match="holds no tokens"):
        TokenStore(tmp_path / "a")


def test_a_store_that_lies_out_of_order_is_joined_in_the_order_of_its_index(tmp_path):
    write(tmp_path / "a", [[1, 2], [3, 4]])
    index = bytearray((tmp_path / "a.idx").read_bytes())
    at = len(MAGIC) + HEADER.size + 2 * 4
    index[at : at + 16] = struct.pack("<qq", 4, 0)
    (tmp_path / "a.idx").write_bytes(index)
    joined = StoreWriter(tmp_path / "b", np.uint16)
    joined.add_store(TokenStore(tmp_path / "a"))
    joined.close()
    assert [row.tolist() for row in TokenStore(tmp_path / "b")] == [[3, 4], [1, 2]]


def test_a_document_may_come_in_pieces(tmp_path):
    writer = StoreWriter(tmp_path / "a", np.uint16)
    for tokens, ends in (([1, 2], False), ([], False), ([3], True), ([4], True)):
        writer.add(tokens, ends)
    writer.close()
    assert [row.tolist() for row in TokenStore(tmp_path / "a")] == [[1, 2, 3], [4]]


def test_an_index_of_many_blocks_is_that_of_one(tmp_path, monkeypatch):
    documents = [[number] * (number % 4) for number in range(50)]
    write(tmp_path / "whole", documents)
    monkeypatch.setattr("megalite.data.corpus.store.BLOCK", 7)
    write(tmp_path / "cut", documents)
    assert (tmp_path / "cut.idx").read_bytes() == (tmp_path / "whole.idx").read_bytes()


def test_an_unfinished_store_leaves_the_one_before(tmp_path):
    write(tmp_path / "a", [[1, 2]])
    writer = StoreWriter(tmp_path / "a", np.uint16)
    writer.add([3] * 100_000)
    assert [row.tolist() for row in TokenStore(tmp_path / "a")] == [[1, 2]]
    writer.discard()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "a.idx"]


def test_every_truncation_is_refused_with_the_file(tmp_path):
    write(tmp_path / "a", [[1, 2, 3], [4, 5]])
    for name in ("a.idx", "a.bin"):
        whole = (tmp_path / name).read_bytes()
        for size in range(len(whole)):
            (tmp_path / name).write_bytes(whole[:size])
            with pytest.raises(DataError, match=name):
                TokenStore(tmp_path / "a")
        (tmp_path / name).write_bytes(whole)
    assert len(TokenStore(tmp_path / "a")) == 2


def test_a_missing_store_says_what_makes_one(tmp_path):
    with pytest.raises(DataError, match=r"a.idx: no such file; `megalite data prepare`"):
        TokenStore(tmp_path / "a")


@pytest.mark.parametrize(
    ("size", "dtype"), [(300, np.uint16), (65499, np.uint16), (65500, np.int32)]
)
def test_the_dtype_is_that_of_megatron(size, dtype):
    assert smallest_dtype(size) == dtype
    assert megatron().DType.optimal_dtype(size) is dtype


@pytest.mark.parametrize("counts", [(1, 0), (0, 2, 0, 0), (2, 0, 1, 0)])
def test_documents_without_items_are_empty(tmp_path, counts):
    """Megatron's builder makes one wherever a document is ended that has no sequence."""
    builder = megatron().IndexedDatasetBuilder(f"{tmp_path}/a.bin", dtype=np.uint16)
    documents = []
    for count in counts:
        for number in range(count):
            builder.add_item(torch.tensor([number + 1, 7]))
        documents.append([token for number in range(count) for token in (number + 1, 7)])
        builder.end_document()
    builder.finalize(f"{tmp_path}/a.idx")
    store = TokenStore(tmp_path / "a")
    assert [store[i].tolist() for i in range(len(store))] == documents
    assert store.is_in_order
    joined = StoreWriter(tmp_path / "b", np.uint16)
    joined.add_store(store)
    joined.close()
    assert [row.tolist() for row in TokenStore(tmp_path / "b")] == documents


def index(lengths, offsets, documents, code=8) -> bytes:
    head = MAGIC + HEADER.pack(1, code, len(lengths), len(documents))
    parts = (np.int32, lengths), (np.int64, offsets), (np.int64, documents)
    return head + b"".join(np.array(values, dtype).tobytes() for dtype, values in parts)


DAMAGED = {
    "negative length": ([2, -1], [0, 4], [0, 1, 2]),
    "within a token": ([2, 1], [0, 3], [0, 1, 2]),
    "not in order from item 0": ([2, 1], [0, 4], [0, 2, 1]),
    "end at item 1 of 2": ([2, 1], [0, 4], [0, 1]),
    "do not lie one after another": ([1, 1], [4, 0], [0, 2]),
}


@pytest.mark.parametrize("reason", DAMAGED)
def test_an_index_that_contradicts_itself_is_refused(tmp_path, reason):
    (tmp_path / "a.bin").write_bytes(bytes(6))
    (tmp_path / "a.idx").write_bytes(index(*DAMAGED[reason]))
    says = "negative length or place" if "negative" in reason else reason
    with pytest.raises(DataError, match=f"a.idx: damaged, .*{says}"):
        TokenStore(tmp_path / "a")
    (tmp_path / "a.idx").write_bytes(index([1], [0], [0, 1], code=7))
    with pytest.raises(DataError, match="its tokens are float32, not whole numbers"):
        TokenStore(tmp_path / "a")


def test_a_token_that_the_stores_type_cannot_hold_is_refused(tmp_path):
    writer = StoreWriter(tmp_path / "a", np.uint16)
    for tokens in ([1, 70_000], [-1]):
        with pytest.raises(DataError, match="doesn't fit a store of uint16"):
            writer.add(tokens)
    writer.discard()
