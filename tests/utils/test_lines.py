"""A growing file of JSON lines, cut by a kill at any byte."""

import json

import pytest

from longspan.utils.errors import DataError, StorageError
from longspan.utils.lines import Lines


def test_every_cut_leaves_whole_rows(tmp_path):
    path = tmp_path / "deep" / "rows.jsonl"
    rows = [{"a": 1}, {"b": "ü\n"}, {"c": [1.5, None]}]
    lines = Lines(path)
    lines.append(rows[0])
    lines.append(*rows[1:])
    content = path.read_bytes()
    for cut in range(len(content) + 1):
        path.write_bytes(content[:cut])
        again = Lines(path)
        whole = content[:cut].count(b"\n")
        assert again.rows == rows[:whole]
        again.append({"next": cut})
        assert [json.loads(line) for line in path.read_text().splitlines()] == [*rows[:whole], {"next": cut}]


@pytest.mark.parametrize("line", ["{", "3", "[]", "nonsense"])
def test_a_file_of_other_things_is_refused(tmp_path, line):
    (tmp_path / "rows.jsonl").write_text(f'{{"a": 1}}\n{line}\n')
    with pytest.raises(DataError, match="line 2 is no JSON object") as caught:
        Lines(tmp_path / "rows.jsonl")
    assert caught.value.code == "file.lines"


def test_a_full_disk_is_told(tmp_path):
    lines = Lines(tmp_path / "rows.jsonl")
    lines.path = tmp_path / "no-folder" / "rows.jsonl"
    with pytest.raises(StorageError):
        lines.append({"a": 1})
    assert lines.rows == []
