"""Arrow data that is anything at all: both backends take it alike, or refuse it alike."""

import gc

from arrow_structs import Node, Producer, binary, ints, table
from hypothesis import given
from hypothesis import strategies as st

BLOCK = 256  # every buffer has so many bytes, and no number in it leads further
FORMATS = [
    b"z", b"u", b"Z", b"U", b"vz", b"vu", b"w:4", b"w:0", b"w:-2", b"n", b"i", b"C", b"L", b"g",
    b"tsu:", b"tsn:UTC", b"ts", b"+s", b"+m", b"+l", b"+vl", b"", b"zz", b"?",
]  # fmt: skip
SMALL = st.integers(-2, 12)
COUNT = st.integers(0, 4) | SMALL
CHUNK = st.one_of(
    st.builds(ints, st.just(4), SMALL),
    st.builds(ints, st.just(8), SMALL),
    st.builds(lambda *words: ints(4, *words), st.integers(-1, 40), SMALL, SMALL, SMALL),
    st.builds(lambda start, step: ints(4, *range(start, start + 8 * step, step)),
              st.integers(0, 3), st.integers(1, 5)),
    st.binary(max_size=8).map(lambda text: text if len(text) < 2 else b""),
)  # fmt: skip
# Random bytes would be offsets that lead out of their buffer, which the interface cannot tell.
BUFFER = st.none() | st.lists(CHUNK, max_size=24).map(
    lambda chunks: b"".join(chunks)[:BLOCK].ljust(BLOCK, b"\0")
)
VIEW_SIZES = st.just(ints(8, *[BLOCK] * (BLOCK // 8)))


@st.composite
def nodes(draw, depth: int = 2) -> Node:
    """A column, a table, a map; mostly what it ought to be, and sometimes not."""
    format = draw(st.sampled_from(FORMATS))
    right = {b"n": 0, b"+s": 1, b"z": 3, b"u": 3, b"Z": 3, b"U": 3}.get(format, 2)
    if format in (b"vz", b"vu"):
        right = draw(st.integers(3, 5))
    count = draw(st.just(right) | st.integers(0, 5))
    buffers = [draw(BUFFER) for _ in range(count)]
    if format in (b"vz", b"vu") and count > 2:
        buffers[-1] = draw(st.none() | VIEW_SIZES)
    children = []
    if format[:1] == b"+" and depth:
        names = st.sampled_from([b"value", b"key", b"x"])
        children = draw(st.lists(nodes(depth=depth - 1), max_size=3))
        for child in children:
            child.name = draw(names)
    changes = st.dictionaries(
        st.sampled_from(["n_children", "n_buffers"]), st.integers(-1, 2), max_size=1
    )
    return Node(
        format,
        length=draw(COUNT),
        null_count=draw(st.sampled_from([0, 0, 0, -1, -1, 1, 2, -2])),
        offset=draw(st.sampled_from([0, 0, 1, 3, -1])),
        buffers=buffers,
        children=children,
        dictionary=draw(st.none() | nodes(depth=0)) if depth else None,
        array={
            name: value
            for name, value in draw(st.just({}) | changes).items()
            if value <= (len(children) if name == "n_children" else len(buffers))
        },
    )


WANTED = st.fixed_dictionaries(
    {},
    optional={
        part: st.sampled_from(["value", "key", "x"])
        for part in ("value", "key", "timestamp", "partition", "offset", "metadata")
    },
)


def taken(backend, node: Node, wanted: dict[str, str]) -> object:
    """All that can be seen of the batch, or what was said instead."""
    producer = Producer(node)
    try:
        batch = backend.RecordBatch.from_arrow(producer, **wanted)
    except (ValueError, TypeError, MemoryError) as error:
        seen: object = (type(error), str(error))
    else:
        numbers = [batch.timestamps, batch.offsets, batch.partitions, batch.nulls]
        seen = (
            batch.to_pylist(), batch.keys, batch.metadata, batch.nbytes,
            [None if column is None else column.tolist() for column in numbers],
        )  # fmt: skip
        del batch, numbers
    gc.collect(0)
    assert producer.releases == 1
    return seen


@given(node=nodes(), wanted=WANTED)
def test_anything_is_taken_or_refused_alike(backends, node, wanted) -> None:
    """By both backends, with the same words, and released once."""
    compiled, pure = (taken(backend, node, wanted) for backend in backends)
    assert compiled == pure


@given(data=st.data(), values=st.lists(st.binary(max_size=6), min_size=1, max_size=6))
def test_a_table_with_something_wrong_in_it(backends, data, values) -> None:
    """One field of a good table is changed."""
    node = table(
        binary(*values, name=b"value"),
        Node(b"l", b"key", len(values), buffers=[None, ints(8, *range(len(values)))]),
    )
    where = data.draw(st.sampled_from([node, *node.children]))
    name = data.draw(st.sampled_from(["length", "null_count", "offset", "n_buffers", "n_children"]))
    limit = 1 if name.startswith("n_") else 0
    where.array = {name: data.draw(st.integers(-3, limit))}
    wanted = data.draw(st.sampled_from([{}, {"offset": "key"}, {"timestamp": "key"}]))
    compiled, pure = (taken(backend, node, wanted) for backend in backends)
    assert compiled == pure
