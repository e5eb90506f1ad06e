"""The figures of a run: from its evaluations to summary.json."""

from typing import Any

from longspan.records import Evaluation


def accuracy(evaluation: Evaluation | None) -> dict[str, dict[str, dict[str, float | int]]]:
    """For every probe and length the share of answers found, with its counts and its 95 % interval's ends."""
    if evaluation is None:
        return {}
    return {
        probe: {
            str(length): {"accuracy": hits / trials, "hits": hits, "trials": trials}
            for length, (hits, trials) in sorted(evaluation.by_length(probe).items())
            if trials
        }
        for probe in dict.fromkeys(cell.probe for cell in evaluation.cells)
    }


def needle(evaluation: Evaluation | None) -> dict[str, float]:
    """Accuracy by length of the main probe."""
    main = evaluation.main_probe if evaluation is not None else None
    return {length: float(entry["accuracy"]) for length, entry in accuracy(evaluation).get(main or "", {}).items()}


def nll_by_position(evaluation: Evaluation | None) -> list[dict[str, float | int]]:
    """Mean loss in nats of the tokens in each range of positions that holds any."""
    bins = evaluation.bins if evaluation is not None else ()
    return [{"low": b.low, "high": b.high, "nll": b.nll, "tokens": b.tokens} for b in bins if b.tokens]


def summary(*, before: Evaluation | None, after: Evaluation | None) -> dict[str, Any]:
    """The figures of both evaluations, as they stand in summary.json; what was not evaluated is empty."""
    return {
        "needle_before": needle(before),
        "needle_after": needle(after),
        "nll_by_position_before": nll_by_position(before),
        "nll_by_position_after": nll_by_position(after),
        "trials_before": accuracy(before),
        "trials_after": accuracy(after),
    }
