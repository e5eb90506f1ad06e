import math

import pytest

from longspan.records import StepMetrics
from longspan.train.metrics import MetricsFile, read_metrics
from longspan.utils.errors import DataError, StorageError


def metrics(step: int, **changes) -> StepMetrics:
    values = {
        "step": step,
        "stage": 0,
        "length": 8,
        "loss": 1.0 / step,
        "gradient_norm": 0.5,
        "learning_rate": 1e-3,
        "tokens": 8 * step,
        "targets": 7.0,
        "seconds": 0.25,
    }
    return StepMetrics(**values | changes)


def test_lines_read_back(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    steps = [metrics(1), metrics(2, event="skipped")]
    for step in steps:
        file.write(step)
    assert read_metrics(file.path) == steps
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_a_loss_that_is_no_number_is_written_as_null(tmp_path):
    file = MetricsFile(tmp_path / "metrics.jsonl")
    file.write(metrics(1, loss=math.nan, gradient_norm=math.inf, event="skipped"))
    assert "NaN" not in file.path.read_text()
    (line,) = read_metrics(file.path)
    assert math.isnan(line.loss)
    assert math.isnan(line.gradient_norm)


@pytest.mark.parametrize("resumed", [1, 2, 4, 5])
def test_repeated_steps_replace_their_lines(tmp_path, resumed):
    path = tmp_path / "metrics.jsonl"
    first = MetricsFile(path)
    for step in range(1, 5):
        first.write(metrics(step))
    again = MetricsFile(path)
    for step in range(resumed, 7):
        again.write(metrics(step))
    assert read_metrics(path) == [metrics(step) for step in range(1, 7)]


def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    file = MetricsFile(path)
    file.write(metrics(1))
    whole = path.read_bytes()
    for size in range(len(whole), 2 * len(whole)):
        path.write_bytes((whole + whole)[:size])
        MetricsFile(path)
        assert path.read_bytes() == whole


def test_a_foreign_line_is_refused_and_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for text in ('{"step": 1}\n', "no json\n", "[1]\n"):
        path.write_text(text)
        with pytest.raises(DataError, match="no training step"):
            MetricsFile(path)
        assert path.read_text() == text


def test_a_file_that_cannot_be_written_is_a_storage_error(tmp_path):
    file = MetricsFile(tmp_path / "away" / "metrics.jsonl")
    with pytest.raises(StorageError):
        file.write(metrics(1))
