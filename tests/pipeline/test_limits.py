"""The limits of the machine and the oddities of the data are told in words, and as early as they are known."""

import json
import shutil
import tomllib
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from longspan import cli
from longspan.pipeline import evaluating, stages, training
from longspan.pipeline.recipe import Recipe
from longspan.train.trackers.tensorboard import TensorBoard
from longspan.utils.errors import ConfigError, DataError, Interrupted, LongspanError, ModelError, StorageError

# 300·16 embedding, 2·16·16 q and o, 2·16·8 k and v, 3·16·32 feed-forward, 3·16 norms
MICRO_WEIGHTS = 4800 + 512 + 256 + 1536 + 48
Usage = namedtuple("Usage", "total used free")


class Warnings:
    """Remembers what it is warned of."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def phase(self, name: str, *, skipped: bool) -> None:
        pass

    def step(self, *_: object, **__: object) -> None:
        pass

    def progress(self, *_: object, **__: object) -> None:
        pass

    def tell(self, text: str) -> None:
        pass

    def warn(self, text: str) -> None:
        self.heard.append(text)


def _changed(micro: Path, **changes: object) -> Recipe:
    return Recipe.from_plain({**tomllib.loads(micro.read_text()), **changes}, folder=micro.parent, where="test")


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB\nmore"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=["gpu", "python", "linux", "windows"])
def test_too_little_memory_is_told_with_a_remedy(
    micro: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def train(_: object, plans: Any, *, engine: Any, **__: object) -> None:
        engine(plans[1])
        raise error

    monkeypatch.setattr(training, "train_decoder", train)
    assert cli.main(["train", str(micro), "--json"]) == cli.MISTAKE
    told = capsys.readouterr()
    answer = json.loads(told.out.splitlines()[-1])
    assert answer["code"] == "run.memory"
    assert answer["where"] == "recipe: stages.1 (length 128)"
    assert "train.micro_batch_tokens" in answer["fix"]
    assert "\n" not in answer["what"]
    assert "Traceback" not in told.err


def test_other_failures_stay_bugs_and_evaluation_tells_of_memory_too(
    micro: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe.read(micro)
    stages.train(recipe)

    def evaluate(*_: object, **__: object) -> None:
        raise errors.pop()

    errors: list[Exception] = [MemoryError("Unable to allocate 9 GiB"), RuntimeError("shapes do not fit")]
    monkeypatch.setattr(evaluating, "evaluate", evaluate)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        stages.evaluate(recipe, "after")
    with pytest.raises(LongspanError) as caught:
        stages.evaluate(recipe, "after")
    assert (caught.value.code, caught.value.where) == ("run.memory", "evaluation after training")
    assert "eval.tasks" in caught.value.fix


def test_the_disk_is_looked_at_before_work(micro: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_bytes = 3 * 12 * MICRO_WEIGHTS + 4 * MICRO_WEIGHTS  # two checkpoints and one being written, then the export
    free_bytes = need_bytes - 1
    monkeypatch.setattr("longspan.pipeline.job.shutil.disk_usage", lambda _: Usage(10**9, 0, free_bytes))
    recipe = Recipe.read(micro)
    with pytest.raises(StorageError) as caught:
        stages.run(recipe)
    assert caught.value.code == "storage.space"
    assert f"{need_bytes:,}" in caught.value.what
    assert not (micro.parent / "run" / "tokens").exists()
    free_bytes = need_bytes
    stages.run(recipe)
    free_bytes = 0  # what is done needs no room
    stages.run(recipe)
    shutil.rmtree(micro.parent / "run" / "export")
    with pytest.raises(StorageError):
        stages.export(recipe)


def test_what_is_set_aside_is_told_and_reported(micro: Path) -> None:
    texts, warnings = micro.parent / "texts", Warnings()
    for number in range(7):
        (texts / f"scan-{number}.txt").write_bytes(b"\xff\xfe")
    (texts / ".hidden").write_text("text")
    recipe = Recipe.read(micro)
    stages.train(recipe, observer=warnings)
    note = "7 set aside as invalid-utf8: " + ", ".join(f"scan-{number}.txt" for number in range(5)) + ", …"
    assert warnings.heard == [note]
    assert note in Path(stages.report(recipe)["run"], "report.html").read_text()


def test_texts_shorter_than_rows_are_told(micro: Path) -> None:
    lines = [f"Document {number} has a few words only." for number in range(400)]
    (micro.parent / "lines.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in lines))
    warnings = Warnings()
    value = tomllib.loads(micro.read_text())["model"]["new"] | {"vocabulary": 260}
    recipe = _changed(micro, data={"sources": [{"path": "lines.jsonl"}]}, eval={"tasks": []}, model={"new": value})
    stages.train(recipe, observer=warnings)
    (told,) = warnings.heard
    assert told.startswith("rows of 128 tokens will hold several documents; the longest has ")
    assert 10 < int(told.split()[-1]) < len(lines[-1])


def test_a_stage_that_cannot_work_is_found_before_training(micro: Path) -> None:
    value = tomllib.loads(micro.read_text())
    value["stages"][1]["mix"][1]["length"] = 8  # no room for a line, a question and an answer
    with pytest.raises(DataError) as caught:
        stages.train(_changed(micro, stages=value["stages"]))
    assert caught.value.where == "recipe: stages.1.mix.1"
    assert not (micro.parent / "run" / "checkpoints").exists()


def test_a_lost_diary_and_a_late_proof(micro: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe.read(micro)
    trained = stages.train(recipe)
    (micro.parent / "run" / "metrics.jsonl").unlink()
    assert stages.train(recipe) == {**trained, "loss": None}
    monkeypatch.setattr(stages, "can_prove", lambda: False)
    assert stages.export(recipe)["export_max_logit_diff"] is None
    monkeypatch.undo()  # transformers is installed now
    assert stages.export(recipe)["export_max_logit_diff"] < 1e-4


def test_code_beside_a_tokenizer_is_refused(micro: Path) -> None:
    stages.train(Recipe.read(micro))
    place = micro.parent / "tokenizer"
    place.mkdir()
    shutil.copy(micro.parent / "run" / "tokenizer.json", place)
    data = tomllib.loads(micro.read_text())["data"]
    for content, code in (({"auto_map": {"AutoTokenizer": "x.py"}}, "model.remote-code"), ([], "model.config")):
        (place / "tokenizer_config.json").write_text(json.dumps(content))
        for named in ("tokenizer", "tokenizer/tokenizer.json"):
            with pytest.raises(ModelError) as caught:
                stages.train(_changed(micro, output="other", data={**data, "tokenizer": named}))
            assert caught.value.code == code


def test_runs_of_one_name_have_names_of_their_own_in_trackers(micro: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []

    class Session:
        def log(self, values: dict[str, float], *, step: int) -> None:
            pass

        def close(self) -> None:
            pass

    def begin(_: TensorBoard, folder: Path, *, name: str, recipe: object) -> Session:
        names.append(name)
        return Session()

    monkeypatch.setattr(TensorBoard, "require", lambda self: None)
    monkeypatch.setattr(TensorBoard, "open", begin)
    tracking = {"kind": "tensorboard"}
    with pytest.raises(Interrupted):
        stages.train(_changed(micro, tracking=tracking), stop=lambda: bool(names))
    stages.train(_changed(micro, tracking=tracking))
    stages.train(_changed(micro, tracking=tracking, output="other"))
    first, again, other = names
    assert first == again != other
    assert all(name.startswith("micro-") and len(name) == len("micro-") + 8 for name in names)


def test_without_tasks_nothing_is_evaluated(micro: Path) -> None:
    recipe = _changed(micro, eval={"tasks": []})
    assert stages.run(recipe)["needle_after"] == {}
    assert not (micro.parent / "run" / "eval").exists()
    with pytest.raises(ConfigError) as caught:
        stages.evaluate(recipe, "after")
    assert caught.value.code == "eval.no-tasks"
