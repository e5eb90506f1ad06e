"""What a trace of torch's profiler tells about a step: how much communication no computation hides."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

Spans = list[tuple[float, float]]  # from and to, in any unit, in order, apart from each other
WORK = {"kernel", "gpu_memcpy", "gpu_memset"}  # categories of what a device does


@dataclass(frozen=True)
class Shares:
    """Shares of the time from the first to the last work of a device.

    `exchange_share`: a kernel of NCCL runs. `exposed_exchange_share`: and nothing is computed meanwhile; it holds the
    waiting for other ranks. `exposed_copy_share`: only copies from or to the host run. `idle_share`: nothing does.
    """

    exchange_share: float
    exposed_exchange_share: float
    exposed_copy_share: float
    idle_share: float


def shares_of_trace(path: Path) -> Shares:
    """The shares of a trace that `export_chrome_trace` wrote, of one device."""
    events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return shares_of_events(event for event in events if event.get("cat") in WORK)


def shares_of_events(events: Iterable[dict[str, object]]) -> Shares:
    """The same of its events, each with a name, a start `ts` and a length `dur`."""
    spans: dict[str, Spans] = {"compute": [], "exchange": [], "copy": []}
    for event in events:
        start, name = float(event["ts"]), str(event["name"])
        spans[kind_of(name)].append((start, start + float(event["dur"])))
    compute, exchange, copy = (joined(spans[kind]) for kind in ("compute", "exchange", "copy"))
    everything = joined(compute + exchange + copy)
    whole = everything[-1][1] - everything[0][0]
    busy = joined(compute + exchange)
    return Shares(
        exchange_share=total(exchange) / whole,
        exposed_exchange_share=(total(busy) - total(compute)) / whole,
        exposed_copy_share=(total(everything) - total(busy)) / whole,
        idle_share=1 - total(everything) / whole,
    )


def kind_of(name: str) -> str:
    """What a piece of work is; copies inside the device count as computing."""
    if name.lower().startswith("nccl"):
        return "exchange"
    return "copy" if name.startswith("Memcpy") and "DtoD" not in name else "compute"


def joined(spans: Iterable[tuple[float, float]]) -> Spans:
    """Overlapping spans as one."""
    found: Spans = []
    for start, stop in sorted(spans):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], stop))
        else:
            found.append((start, stop))
    return found


def total(spans: Spans) -> float:
    return sum(stop - start for start, stop in spans)
