"""Inputs as blocks of lines, outputs that appear when complete."""

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflare import MemoryPool, MemoryPoolConfig
from dataflare.files import InputFile, LineBlock, OutputFile

POOL = MemoryPool(MemoryPoolConfig(max_huge_buffers=0))


def blocks_of(path: Path, block_size: int = 1 << 20) -> Iterator[LineBlock]:
    return InputFile(str(path)).blocks(POOL, block_size=block_size)


def lines_of(content: bytes) -> list[bytes]:
    """What the records must be: the definition, in plain Python."""
    crlf = content.partition(b"\n")[0].endswith(b"\r") and b"\n" in content
    lines = content.split(b"\n")
    ended = lines.pop() if lines[-1] == b"" else None
    if crlf:
        last = len(lines) if ended is not None else len(lines) - 1
        lines[:last] = [line.removesuffix(b"\r") for line in lines[:last]]
    return lines


@given(
    content=st.lists(
        st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"\r", b"\x00", b"\xff", b"long" * 9])
    ).map(b"".join),
    block_size=st.integers(1, 40),
)
def test_any_file_in_blocks_of_any_size(
    content: bytes, block_size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However the blocks fall, nothing is lost, and every line and its place are right."""
    path = tmp_path_factory.mktemp("files") / "input"
    path.write_bytes(content)
    whole, records, places = b"", [], []
    for block in blocks_of(path, block_size):
        assert (block.offset, block.line) == (len(whole), len(records) + 1)
        whole += block.memory
        records += block.batch.to_pylist()
        places += block.offsets(range(len(block.batch)))
    assert whole == content
    assert records == lines_of(content)
    begins = [0] + [i + 1 for i, byte in enumerate(content) if byte == ord("\n")]
    assert places == [begin for begin in begins if begin < len(content)]


def test_newline_is_decided_by_the_first_line(tmp_path: Path) -> None:
    """Later lines that end otherwise do not change it, in whatever block they are."""
    for content, newline in [
        (b"a\r\nb\nc\n" * 9, b"\r\n"),
        (b"a\nb\r\n" * 9, b"\n"),
        (b"a", b"\n"),
    ]:
        (tmp_path / "input").write_bytes(content)
        assert {block.newline for block in blocks_of(tmp_path / "input", 8)} == {newline}


def test_offsets_of_some_records(tmp_path: Path) -> None:
    """Mixed line ends: places are those of the file, not of the values."""
    (tmp_path / "input").write_bytes(b"a\r\nbb\nccc\r\n\r\ndd\n")
    (block,) = blocks_of(tmp_path / "input")
    assert list(block.offsets([1, 2, 4])) == [3, 6, 13]
    assert list(block.offsets([])) == []


def test_pipe_is_handed_on_at_once(tmp_path: Path) -> None:
    """Whole lines come while the writer still writes; half a line waits for its other half."""
    os.mkfifo(tmp_path / "pipe")
    heard = threading.Event()

    def write() -> None:
        with open(tmp_path / "pipe", "wb", buffering=0) as pipe:
            pipe.write(b"one\ntw")
            assert heard.wait(10)
            pipe.write(b"o\nthree")

    writer = threading.Thread(target=write)
    writer.start()
    blocks = blocks_of(tmp_path / "pipe")
    assert next(blocks).batch.to_pylist() == [b"one"]
    heard.set()
    assert [value for block in blocks for value in block.batch.to_pylist()] == [b"two", b"three"]
    writer.join()


def test_blocks_go_home(tmp_path: Path) -> None:
    """However long the file, two blocks of the pool are enough."""
    (tmp_path / "input").write_bytes(b"some line\n" * 100_000)
    pool = MemoryPool()
    for block in InputFile(str(tmp_path / "input")).blocks(pool, block_size=65536):
        assert len(block.batch) > 0
    del block
    stats = pool.get_stats()
    assert stats is not None
    assert (stats.in_use, stats.misses) == (0, 0)
    assert stats.peak_in_use <= 4


def test_input_that_cannot_be_read(tmp_path: Path) -> None:
    """The sentence says which file, and why."""
    with pytest.raises(FileNotFoundError) as caught:
        InputFile(str(tmp_path / "none"))
    assert caught.value.strerror == f"cannot read {tmp_path}/none: No such file or directory"
    with pytest.raises(FileNotFoundError, match=r"the name of the output is empty$"):
        OutputFile("")
    with pytest.raises(IsADirectoryError) as caught_directory:
        InputFile(str(tmp_path))
    assert caught_directory.value.strerror == f"cannot read {tmp_path}: Is a directory"


def test_output_appears_when_complete(tmp_path: Path) -> None:
    """Until then the old file is there."""
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with OutputFile(str(path)) as output:
        output.write(b"new")
        output.write(memoryview(b" text"))
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new text"
    assert output.size == 8
    assert os.listdir(tmp_path) == ["out"]


def test_incomplete_output_is_kept_beside(tmp_path: Path) -> None:
    """After an exception, what was written is under another name; the old file stays."""
    path = tmp_path / "out"
    path.write_bytes(b"old")
    output = OutputFile(str(path))

    def fail() -> None:
        with output:
            output.write(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_bytes() == b"old"
    assert output.kept is not None
    assert Path(output.kept).read_bytes() == b"half"
    assert Path(output.kept).name.startswith("out.")
    assert Path(output.kept).name.endswith(".partial")


def test_output_that_cannot_get_its_name_is_kept(tmp_path: Path) -> None:
    """A directory came to stand in its place."""
    path = tmp_path / "out"
    output = OutputFile(str(path))
    output.write(b"all")
    path.mkdir()
    with pytest.raises(IsADirectoryError), output:
        pass
    assert output.kept is not None
    assert Path(output.kept).read_bytes() == b"all"


def test_output_with_a_long_name(tmp_path: Path) -> None:
    """The longest there may be, in whole bytes as well as in parts of a letter."""
    for name in ("x" * 255, "\N{SNOWMAN}" * 85):
        path = tmp_path / name
        with OutputFile(str(path)) as output:
            output.write(b"all")
        assert path.read_bytes() == b"all"
        assert len(os.listdir(tmp_path)) == 1
        path.unlink()


def test_nothing_is_kept_of_nothing(tmp_path: Path) -> None:
    """An output that nothing was written to leaves no file behind."""
    with pytest.raises(RuntimeError), OutputFile(str(tmp_path / "out")) as output:
        raise RuntimeError
    assert output.kept is None
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("mode", [0o600, 0o664, 0o755])
def test_permissions_of_the_file_replaced(tmp_path: Path, mode: int) -> None:
    """They stay."""
    path = tmp_path / "out"
    path.touch()
    path.chmod(mode)
    with OutputFile(str(path)):
        pass
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_permissions_of_a_new_file(tmp_path: Path) -> None:
    """As of any other new file."""
    before = os.umask(0o027)
    try:
        with OutputFile(str(tmp_path / "out")):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o640


def test_link_stays_a_link(tmp_path: Path) -> None:
    """What it leads to is replaced, where that is."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere" / "real")
    with OutputFile(str(tmp_path / "out")) as output:
        output.write(b"text")
    assert (tmp_path / "out").is_symlink()
    assert (tmp_path / "elsewhere" / "real").read_bytes() == b"text"


def test_pipe_is_written_directly(tmp_path: Path) -> None:
    """Nothing is renamed over it."""
    os.mkfifo(tmp_path / "pipe")
    read = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with OutputFile(str(tmp_path / "pipe")) as output:
        output.write(b"text")
        assert os.read(read, 10) == b"text"
    os.close(read)
    assert os.listdir(tmp_path) == ["pipe"]


def test_output_that_cannot_be_written(tmp_path: Path) -> None:
    """The sentence says which file, and why."""
    with pytest.raises(FileNotFoundError) as caught:
        OutputFile(str(tmp_path / "none" / "out"))
    assert caught.value.strerror == (
        f"cannot write {tmp_path}/none/out: there is no directory {tmp_path}/none"
    )
    with pytest.raises(IsADirectoryError) as caught_directory:
        OutputFile(str(tmp_path))
    assert caught_directory.value.strerror == f"cannot write {tmp_path}: Is a directory"
    with pytest.raises(OSError, match="No space left") as caught_full, OutputFile("/dev/full") as o:
        o.write(b"text")
    assert caught_full.value.errno == errno.ENOSPC


def test_same_file_is_recognised(tmp_path: Path) -> None:
    """Through links too; a device is never the same file."""
    (tmp_path / "input").write_bytes(b"text")
    (tmp_path / "link").hardlink_to(tmp_path / "input")
    status = InputFile(str(tmp_path / "input")).status
    with OutputFile(str(tmp_path / "link")) as same, OutputFile(str(tmp_path / "new")) as other:
        assert same.is_file(status)
        assert not other.is_file(status)
    with OutputFile("/dev/null") as null:
        assert not null.is_file(InputFile("/dev/null").status)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    """Neither of inputs, read to the end or not, nor of outputs."""
    before = len(os.listdir("/proc/self/fd"))
    (tmp_path / "input").write_bytes(b"one\ntwo\n")
    for path in (tmp_path / "out", Path("/dev/null"), Path("/dev/stdout")):
        with OutputFile(str(path)):
            pass
    assert len(list(blocks_of(tmp_path / "input"))) == 1
    blocks = blocks_of(tmp_path / "input", 5)
    next(blocks)
    del blocks
    assert len(os.listdir("/proc/self/fd")) == before
