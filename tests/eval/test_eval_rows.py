"""The rows file survives kills and refuses strangers."""

import pytest

from longspan.eval.rows import Rows, key_of
from longspan.utils.errors import DataError, StorageError


def test_rows_are_found_again(tmp_path):
    path = tmp_path / "eval" / "rows.jsonl"
    rows = Rows(path)
    assert rows.get("a") is None
    rows.append({"key": "a", "hit": True, "logprob": -0.1})
    rows.append({"key": "b", "hit": False, "logprob": -3.0})
    again = Rows(path)
    assert again.get("a") == rows.get("a") == {"key": "a", "hit": True, "logprob": -0.1}
    assert again.get("c") is None


def test_a_row_that_a_kill_cut_short_is_dropped_at_every_byte(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = Rows(path)
    for key in "ab":
        rows.append({"key": key})
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        survivor = Rows(path)
        survivor.append({"key": "z"})
        lines = path.read_bytes().count(b"\n")
        assert lines == whole[:size].count(b"\n") + 1
        assert Rows(path).get("z") == {"key": "z"}


@pytest.mark.parametrize("line", ["no json", "[1]", '{"hit": true}', '"text"', "7"])
def test_a_whole_line_that_is_no_row_is_refused(tmp_path, line):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"key": "a"}}\n{line}\n')
    with pytest.raises(DataError, match="line 2 is no") as caught:
        Rows(path)
    assert str(path) in str(caught.value)


def test_a_folder_in_the_way_is_a_storage_error(tmp_path):
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(StorageError):
        Rows(tmp_path / "rows.jsonl")


def test_keys_differ_with_every_part():
    assert key_of("a", 1, [2, 3]) == key_of("a", 1, [2, 3])
    assert key_of({"x": 1, "y": 2}) == key_of({"y": 2, "x": 1})
    assert len({key_of("a", 1), key_of("a", 2), key_of("b", 1), key_of("a", [1])}) == 4
