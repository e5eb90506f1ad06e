"""A curation that is killed at any part goes on and ends with the same documents; nothing damaged stops it."""

import json
import multiprocessing
import os
import random
import signal
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from curation_toys import COUNTED, curated, finished, settings_for, words, write_texts
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from longspan.config import kind_class, kinds
from longspan.data import curated as curated_module
from longspan.data.curate import Curation, curated_documents, rounds
from longspan.data.executors import base
from longspan.data.executors.base import PartStep, Tasks
from longspan.data.executors.slurm import Slurm
from longspan.data.filters.base import Tools
from longspan.data.filters.length import Length
from longspan.data.filters.minhash import Minhash
from longspan.data.settings import DataSettings
from longspan.utils.errors import ConfigError, DataError

FILTERS = [{"kind": "length", "least_characters": 100}, {"kind": "minhash"}, {"kind": "contamination"}]


def corpus(count: int = 12) -> dict[str, str]:
    found = {f"{n:02d}.txt": words(150, seed=n) for n in range(count)}
    found |= {"copy.txt": found["03.txt"], "short.txt": "short", "held/exam.txt": words(200, seed=77)}
    return found | {"part.txt": words(300, seed=50) + " " + found["held/exam.txt"][:400] + " " + words(300, seed=51)}


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def opened(folder: Path, *, part_bytes: int = 3_000) -> Curation:
    settings = settings_for(folder, FILTERS, held_out=["held/*"], part_bytes=part_bytes)
    return Curation.opened(folder / "curated", settings, seen=[1])


def test_passes_end_at_filters_of_all_documents() -> None:
    length, minhash = Length(), Minhash()
    assert [(r.filters, r.corpus) for r in rounds([length, minhash, length, minhash])] == [
        ((length,), minhash),
        ((length,), minhash),
        ((), None),
    ]
    assert [(r.filters, r.corpus) for r in rounds([length])] == [((length,), None)]


def test_counts_and_order_do_not_depend_on_the_parts(tmp_path: Path) -> None:
    one, counts = curated(tmp_path / "a", corpus(), FILTERS)
    many, counts_of_many = curated(tmp_path / "b", corpus(), FILTERS, by=3)
    assert len(list((tmp_path / "b" / "curated" / "documents").iterdir())) > 5
    assert (list(one.items()), counts) == (list(many.items()), counts_of_many)
    assert {kind: {r: f["documents"] for r, f in found.items()} for kind, found in counts["dropped"].items()} == {
        "length": {"too-short": 1},
        "minhash": {"near-duplicate": 1},
    }
    assert counts["changed"]["contamination"]["shared-runs"]["documents"] == 1
    assert (counts["read"], counts["kept_documents"], counts["held_out_documents"]) == ({"0": 16}, 13, 1)


class Killed(BaseException):
    """Stands for SIGKILL: nothing after it is run, as far as Python can do that."""


@pytest.fixture(scope="module")
def expected(tmp_path_factory: Any) -> dict[str, bytes]:
    """What a curation that nothing stopped has written."""
    folder = tmp_path_factory.mktemp("whole")
    write_texts(folder, corpus())
    finished(opened(folder), Tools())
    return content(folder / "curated")


@examples(max_examples=6, deadline=None)
@given(stop_at=st.integers(0, 70), seed=st.integers(0, 3))
def test_stopped_anywhere_and_gone_on_with_gives_the_same(
    tmp_path_factory: Any, expected: dict[str, bytes], stop_at: int, seed: int
) -> None:
    again = tmp_path_factory.mktemp("job")
    write_texts(again, corpus())
    left = [stop_at]

    def tick(done: int, total: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    curation = opened(again)
    try:
        curation.protect(tick)
        for number in range(len(curation.rounds)):
            parts = list(curation.missing(number))
            random.Random(seed).shuffle(parts)
            for part in parts:
                curation.work(number, part, Tools(), progress=tick)
            curation.compare(number)
    except Killed:
        pass
    finished(opened(again), Tools())
    found = content(again / "curated")
    assert {name: entry for name, entry in found.items() if name != "plan.json"} == {
        name: entry for name, entry in expected.items() if name != "plan.json"
    }


def _killed_at(folder: str, write: int) -> None:
    """A curation in which the process dies at its n-th durable write."""
    left = [write]
    real = os.fsync

    def fsync(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        real(handle)

    os.fsync = fsync
    finished(opened(Path(folder)), Tools())


@pytest.mark.parametrize("write", [0, 1, 3, 20, 60])
def test_killed_at_a_durable_write(tmp_path: Path, expected: dict[str, bytes], write: int) -> None:
    write_texts(tmp_path, corpus())
    process = multiprocessing.get_context("fork").Process(target=_killed_at, args=(str(tmp_path), write))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    finished(opened(tmp_path), Tools())
    assert content(tmp_path / "curated").keys() == expected.keys()
    assert all(entry == expected[name] for name, entry in content(tmp_path / "curated").items() if name != "plan.json")


def test_other_sources_or_filters_begin_anew_and_a_finished_one_is_done(tmp_path: Path) -> None:
    write_texts(tmp_path, corpus())
    finished(opened(tmp_path), Tools())
    assert opened(tmp_path).done
    assert not opened(tmp_path, part_bytes=5_000).done
    finished(opened(tmp_path, part_bytes=5_000), Tools())
    settings = settings_for(tmp_path, FILTERS, held_out=["held/*"], part_bytes=5_000)
    assert Curation.opened(tmp_path / "curated", settings, seen=[1]).done
    assert not Curation.opened(tmp_path / "curated", settings, seen=[2]).done


def test_damaged_input_is_counted_and_never_fatal(tmp_path: Path) -> None:
    """F18: corrupt, empty, bad UTF-8, a line above the cap, half of a surrogate pair."""
    write_texts(tmp_path, {"good.txt": words(100, seed=1)})
    folder = tmp_path / "texts"
    (folder / "empty.txt").touch()
    (folder / "latin.txt").write_bytes("caf\u00e9 ".encode("latin-1") * 100)
    (folder / "cut.parquet").write_bytes(b"PAR1 and no more")
    huge = json.dumps({"text": "x" * 20_000})
    odd = json.dumps({"id": "half \ud83d", "text": words(60, seed=2) + " \u2028 \x1f"})
    (folder / "lines.jsonl").write_text(f'{{"text": "{words(80, seed=3)}"}}\n{huge}\n{{"text": \n{odd}\n')
    value = {"sources": [{"path": str(folder)}], "curate": {"filters": [COUNTED]}, "max_document_bytes": 10_000}
    settings = DataSettings.model_validate_json(json.dumps(value))
    counts = finished(Curation.opened(tmp_path / "curated", settings, seen=[]), Tools())
    assert {reason: found["count"] for reason, found in counts["set_aside"].items()} == {
        "bad-json": 1,
        "damaged-parquet": 1,
        "empty": 1,
        "invalid-utf8": 1,
        "too-large": 1,
    }
    (path,) = (tmp_path / "curated" / "documents").iterdir()
    assert {d.id for d in curated_documents(path)} == {"good.txt", "lines.jsonl#1", "half \ud83d"}
    assert {d.text for d in curated_documents(path)} >= {words(60, seed=2) + " \u2028 \x1f"}


@pytest.mark.parametrize(
    ("documents", "filters", "held_out", "code"),
    [
        ({"a.txt": "short"}, [{"kind": "length"}], [], "curate.nothing-left"),
        ({"a.bin": "\0"}, [COUNTED], [], "data.no-documents"),
        ({"a.txt": "text"}, [{"kind": "contamination"}], [], "curate.nothing-protected"),
    ],
)
def test_what_cannot_be_meant(tmp_path: Path, documents: Any, filters: Any, held_out: Any, code: str) -> None:
    with pytest.raises(DataError) as error:
        curated(tmp_path, documents, filters, held_out=held_out)
    assert error.value.code == code


def test_a_missing_source(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, [COUNTED], held_out=[], part_bytes=10)
    with pytest.raises(DataError) as error:
        Curation.opened(tmp_path / "curated", settings, seen=[])
    assert error.value.code == "data.missing"


def test_counts_stay_small_however_many_documents(tmp_path: Path) -> None:
    ledger = curated_module.Ledger()
    document = curated_module.Document(id="a", text="xy", size_bytes=2)
    for n in range(2_500):
        ledger.dropped("length", "too-short" if n % 2 else "too-long", document)
    assert len(ledger._dropped) <= 1_001
    record = ledger.record()
    assert {reason: (found.documents, found.bytes) for reason, found in record.dropped["length"].items()} == {
        "too-long": (1_250, 2_500),
        "too-short": (1_250, 2_500),
    }


# -- executors -------------------------------------------------------------------------------------------------------


def tasks(folder: Path, code: str) -> Tasks:
    return Tasks(numbers=(3, 5, 8), command=(sys.executable, "-c", code, str(folder)), folder=folder)


DONE = "import pathlib, sys; pathlib.Path(sys.argv[1], 'done-' + sys.argv[2]).touch()"
FAILS = "import sys; print('no luck with', sys.argv[2]); sys.exit(sys.argv[2] == '5')"


def test_a_step_runs_the_command_of_its_rank(tmp_path: Path) -> None:
    step = PartStep(tasks(tmp_path, FAILS).command, (3, 5, 8), str(tmp_path))
    step(None, 0, 3)
    assert (tmp_path / "part-00003.log").read_text() == "no luck with 3\n"
    with pytest.raises(RuntimeError, match="part-00005"):
        step(None, 1, 3)
    (tmp_path / base.STOP).touch()
    step(None, 2, 3)
    assert not (tmp_path / "part-00008.log").exists()


def test_executors_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in kinds("longspan.data.executors"):
        executor = kind_class("longspan.data.executors", kind)(
            **{"local": {"workers": 2}, "slurm": {"partition": "cpu"}, "ray": {}}[kind]
        )
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "datatrove", None)
            with pytest.raises(ConfigError) as error:
                executor.require()
        assert error.value.code == "curate.missing-package"


def test_several_workers_through_datatrove(tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    executor = kind_class("longspan.data.executors", "local")(workers=2)
    executor.require()
    executor.run(tasks(tmp_path, DONE))
    assert sorted(path.name for path in tmp_path.glob("done-*")) == ["done-3", "done-5", "done-8"]
    with pytest.raises(DataError) as error:
        executor.run(tasks(tmp_path, FAILS))
    assert (error.value.code, error.value.where) == ("curate.part-failed", str(tmp_path))


SBATCH = """#!/bin/bash
# Stands for Slurm: runs the array of the script that it is given, then tells its number.
script="${@: -1}"
test "$1" = --wait || exit 9
cp "$script" "$(dirname "$0")/script"
range=$(grep -oP '(?<=#SBATCH --array=)[0-9-]+' "$script")
for id in $(seq "${range%-*}" "${range#*-}"); do
  SLURM_ARRAY_TASK_ID=$id bash "$script" >/dev/null 2>&1 || exit 1
done
echo "Submitted batch job 17"
"""


def test_an_array_of_slurm_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datatrove")
    executor = Slurm(partition="cpu", workers=2)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError) as error:
        executor.require()
    assert error.value.code == "curate.no-slurm"
    (tmp_path / "sbatch").write_text(SBATCH)
    (tmp_path / "sbatch").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    executor.require()
    executor.run(tasks(tmp_path, DONE))
    assert sorted(path.name for path in tmp_path.glob("done-*")) == ["done-3", "done-5", "done-8"]
    script = (tmp_path / "script").read_text()
    assert "#SBATCH --array=0-2%2" in script
    assert "#SBATCH --partition=cpu" in script
    assert not list(tmp_path.rglob("*.pik")), "nothing is pickled for the jobs"
    with pytest.raises(DataError) as failure:
        executor.run(tasks(tmp_path, FAILS))
    assert failure.value.code == "curate.part-failed"


@pytest.mark.filterwarnings("default")  # a warning made an error would end the thread that Ray waits for
def test_ray(tmp_path: Path) -> None:
    pytest.importorskip("datatrove")
    pytest.importorskip("ray")
    executor = kind_class("longspan.data.executors", "ray")(workers=2, memory_gib=0.1)
    executor.run(tasks(tmp_path, DONE))
    assert sorted(path.name for path in tmp_path.glob("done-*")) == ["done-3", "done-5", "done-8"]
    with pytest.raises(DataError) as error:
        executor.run(tasks(tmp_path, FAILS))
    assert error.value.code == "curate.part-failed"
