"""Curricula over ranks: with rows apart, then tokens of a row apart, two ranks see what one sees."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from longspan import cli


def losses(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["length"], line["loss"]) for line in lines]


def test_buckets_and_ladder_on_two_ranks(micro: Path) -> None:
    words = (micro.parent / "texts" / "page-0.txt").read_text().split()
    lines = [json.dumps({"text": " ".join(words[at : at + 20])}) for at in range(0, 1_000, 20)]
    (micro.parent / "texts" / "lines.jsonl").write_text("\n".join(lines))
    text = micro.read_text()
    text = text.replace(
        'rope = { kind = "default" }',
        'rope = { kind = "default" }\nmix = [{ share = 1.0, documents = ["lines*"] }]\n'
        'curriculum = { kind = "buckets", shortest = 16, cycles = 2 }\n'
        'canaries = { groups = ["near"], repeats = [1], pairs = 2, tokens = 3 }',
    )
    mix = 'mix = [{ share = 0.5 }, { share = 0.5, probe = { kind = "key_value" }, items = 1 }]'
    assert mix in text
    text = text.replace(mix, 'curriculum = { kind = "ladder", start = 8 }')
    micro.write_text(text)
    assert cli.main(["train", str(micro), "--output", str(micro.with_name("alone"))]) == cli.OK
    spread = micro.with_name("spread.toml")
    ladder = 'curriculum = { kind = "ladder", start = 8 }'
    spread.write_text(text.replace(ladder, f"{ladder}\nmesh = {{ ulysses = 2 }}") + "\n[parallel]\nranks = 2\n")
    done = subprocess.run(
        [sys.executable, "-m", "longspan", "train", str(spread)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    here, alone = losses(micro.with_name("run")), losses(micro.with_name("alone"))
    assert [length for length, _ in here] == [length for length, _ in alone]
    assert len({length for length, _ in here}) > 2
    assert [loss for _, loss in here] == pytest.approx([loss for _, loss in alone], rel=1e-5)
