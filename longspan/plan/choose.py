"""The planner: the fastest way to run a step that fits the machine, with its account, or a refusal with remedies."""

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from longspan.attention.heads import HeadGeometry, divisors
from longspan.engine.anchors import AnchorKey, anchor_keys
from longspan.engine.settings import TIERS, EngineChoice, EngineSettings, Policy, Tier
from longspan.plan.account import Plan, Shortfall, refusal
from longspan.plan.machine import Machine
from longspan.plan.memory import anchor_bytes, predict
from longspan.plan.seconds import predict_seconds
from longspan.plan.workload import Workload
from longspan.utils.errors import ConfigError

SEGMENTS = (1, 2, 4, 8)
TILES, LARGE_TILE = (8192, 4096, 2048), 16_384  # tokens
LOSS_TILE, LARGE_LOSS_TILE = 2048, 8192  # an H200 runs the loss at 600 and 636 TFLOP/s
LARGE_TILE_FROM, LARGE_TILE_SHARE = 131_072, 0.7  # tokens of a batch, share of the device's memory in use
PLAIN_TOKENS = 1024  # of a batch: above it the engine is as fast as autograd, with a fraction of its memory
CALL_TOKENS = 65_536  # tokens, times key/value heads, of one kernel call that fills a device
_Heads = tuple[int, int | None, int | None]  # group, kv_width and query_width of a choice

# Shares of what is there. Predictions err by some per cent, and the device's context and the allocator take their part.
MUST_SHARE, FILL_SHARE, HOST_SHARE, DISK_SHARE = 0.92, 0.85, 0.9, 0.95


def choose(work: Workload, settings: EngineSettings, machine: Machine) -> Plan:
    """The fastest choice that the settings allow and the machine can hold.

    Raises `LongspanError` (`plan.memory`) that names the binding limit and what would help, before anything is loaded.
    """
    machine = machine.limited(device_gib=settings.device_gib, host_gib=settings.host_gib)
    ranked = _ranked(work, settings, machine)
    plans: list[Plan] = []
    failed: list[Shortfall] = []
    for candidate in ranked:
        found = _placed(work, candidate, settings, machine)
        if isinstance(found, Shortfall):
            failed += [] if plans else [found]
            continue
        plans.append(_plan(work, found, machine))
    if not plans:
        nearest = min(failed, key=lambda short: short.needed_bytes - short.there_bytes)
        longest = _longest(work, settings, machine)
        raise refusal(work, settings, nearest, longest_tokens=longest, shared=machine.shared)
    plans.sort(key=lambda plan: plan.seconds.total)  # what is kept away from the device may cost time
    best = _with_large_tiles(plans[0], work, settings, machine)
    cheaper = (plan for plan in plans[1:] if _all_bytes(plan) < 0.9 * _all_bytes(best))
    # That short rows could be left to autograd is no news for a long one.
    failed.sort(key=lambda short: short.choice.keep == "everything")
    return replace(best, passed_over=next(iter(failed), None), cheaper=next(cheaper, None))


def _ranked(work: Workload, settings: EngineSettings, machine: Machine) -> list[EngineChoice]:
    """All candidates in the order of predicted time."""
    found = list(_candidates(work, settings, machine))
    return sorted(found, key=lambda choice: predict_seconds(work, choice, machine).total)


def _candidates(work: Workload, settings: EngineSettings, machine: Machine) -> Iterator[EngineChoice]:
    """Every candidate with its anchors on the device."""
    for candidate in _policies(work, settings, machine):
        keys = anchor_keys(work.shape.layers, keep=candidate.keep, segment=candidate.segment)
        yield replace(candidate, anchors=_all(keys, "device"))


def _policies(work: Workload, settings: EngineSettings, machine: Machine) -> Iterator[EngineChoice]:
    layers = work.shape.layers
    policies: tuple[Policy, ...] = (
        ("everything", "attention", "inputs") if settings.keep == "auto" else (settings.keep,)
    )
    away = settings.farthest != "device" and not machine.shared
    gradients: tuple[Tier, ...] = ("device", "host") if away else ("device",)
    tiles = TILES if settings.tile_tokens is None else (settings.tile_tokens,)
    spread = work.mesh.ranks > 1
    if settings.keep == "everything" and spread:
        raise ConfigError(
            "engine.keep", "autograd keeps everything on one rank only", where="recipe: engine", fix="leave it out"
        )
    calls = _calls(work, settings)
    for keep in policies:
        if keep == "everything" and settings.keep == "auto" and (spread or work.tokens > PLAIN_TOKENS):
            continue
        if keep == "everything":
            yield EngineChoice(keep=keep, lossy_anchors=settings.lossy_anchors)
            continue
        segments = {min(k, layers) for k in (SEGMENTS if settings.segment is None else (settings.segment,))}
        for segment in sorted(segments):
            for gradient in gradients:
                sizes = sorted({min(tile, work.tokens) for tile in tiles}, reverse=True)
                for tile, (group, kv_width, query_width) in itertools.product(sizes, calls):
                    yield EngineChoice(
                        keep=keep,
                        segment=segment,
                        tile_tokens=tile,
                        loss_tile_tokens=min(LOSS_TILE, tile),
                        group=group,
                        kv_width=kv_width,
                        query_width=query_width,
                        gradient=gradient,
                        lossy_anchors=settings.lossy_anchors,
                    )


def _calls(work: Workload, settings: EngineSettings) -> tuple[_Heads, ...]:
    """Ways to go through the heads. Calls of Ulysses have all of them, or few where memory is short.

    A stage then has as few key/value heads as fill the device, or a single query head of a long row: its exchange goes
    under the work on the stage before, and it needs less memory. Raises `engine.group` for calls that cannot be.
    """
    ranks, kv_heads = work.mesh.ulysses, work.shape.kv_heads
    if ranks == 1:
        return ((min(settings.group or _group(work), kv_heads), None, None),)
    HeadGeometry(heads=work.shape.heads, kv_heads=kv_heads, degree=ranks)  # refuses what no call can do
    served = work.shape.heads // kv_heads
    fitting = [group for group in divisors(kv_heads) if group * served % ranks == 0]
    groups = {fitting[0], fitting[-1]} if settings.group is None else {min(settings.group, kv_heads)}
    if not groups <= set(fitting):
        raise ConfigError(
            "engine.group",
            f"{ranks} ranks of Ulysses cannot share calls of {settings.group} key/value heads",
            where="recipe: engine",
            fix=f"numbers that work: {', '.join(map(str, fitting))}",
        )
    return tuple((group, *widths) for group in sorted(groups, reverse=True) for widths in _widths(work, group))


def _widths(work: Workload, group: int) -> Iterator[tuple[int | None, int | None]]:
    """Stages of one call of Ulysses that fill the device; None is all that a rank has."""
    ranks, tokens = work.mesh.ulysses, work.tokens * work.mesh.ulysses
    most = math.lcm(ranks, group) // ranks
    for width in divisors(most):
        if width == most or width * tokens >= CALL_TOKENS:
            yield (None if width == most else width), None
    one = HeadGeometry(heads=group * work.shape.heads // work.shape.kv_heads, kv_heads=group, degree=ranks, kv_width=1)
    if tokens >= CALL_TOKENS and one.served > 1:
        yield (None if most == 1 else 1), 1


def _group(work: Workload) -> int:
    """Key/value heads of one kernel call: more of them for short batches, which would not fill the device otherwise."""
    kv_heads = work.shape.kv_heads
    most = max(1, CALL_TOKENS // max(1, work.tokens))
    return next(count for count in range(min(most, kv_heads), 0, -1) if kv_heads % count == 0)


# -- places ------------------------------------------------------------------------------------------------------------


@dataclass
class _Room:
    """Bytes that are still free on one tier, and whether anchors may go there."""

    tier: Tier
    free_bytes: int


def _placed(
    work: Workload, choice: EngineChoice, settings: EngineSettings, machine: Machine
) -> EngineChoice | Shortfall:
    """The choice with a tier for every anchor: the nearest that has room, the top layers first."""
    whole = predict(work, choice)  # every anchor on the device
    share = MUST_SHARE if machine.shared else FILL_SHARE
    if whole.device_bytes + (whole.host_bytes if machine.shared else 0) <= share * machine.device_bytes:
        short = None if machine.shared else _host_shortfall(whole.host_bytes, choice, machine)
        return short or choice
    if choice.keep == "everything" or machine.shared or settings.farthest == "device":
        there = int(share * machine.device_bytes)
        return Shortfall(tier="device", needed_bytes=whole.device_bytes, there_bytes=there, choice=choice)
    keys = anchor_keys(work.shape.layers, keep=choice.keep, segment=choice.segment)
    away = replace(choice, anchors=_all(keys, "host"))
    least = predict(work, away)
    must = int(MUST_SHARE * machine.device_bytes)
    if least.device_bytes > must:
        return Shortfall(tier="device", needed_bytes=least.device_bytes, there_bytes=must, choice=away)
    other_host = least.host_bytes - least.host["anchors"]
    rooms = {
        "device": max(0, int(FILL_SHARE * machine.device_bytes) - least.device_bytes),
        "host": int(HOST_SHARE * machine.host_bytes) - other_host,
        "disk": int(DISK_SHARE * machine.disk_bytes) if settings.farthest == "disk" else 0,
    }
    if rooms["host"] < 0:
        return _host_shortfall(other_host, away, machine) or away
    while True:
        placed = _fill(work, keys, [_Room(tier, rooms[tier]) for tier in TIERS], lossy=choice.lossy_anchors)
        if isinstance(placed, int):
            far = replace(choice, anchors=_all(keys, settings.farthest))
            return _too_little(placed, least.host_bytes, rooms["device"], far, settings, machine)
        result = replace(choice, anchors=placed)
        found = predict(work, result)
        short = _host_shortfall(found.host_bytes, result, machine)
        if short is None or not found.host["anchors"]:
            return short or result
        # The buffers of files lie in host memory too: what they need, other anchors leave to the disk.
        rooms["host"] = found.host["anchors"] - (short.needed_bytes - short.there_bytes)


def _all(keys: tuple[AnchorKey, ...], tier: Tier) -> tuple[Tier, ...]:
    return (tier,) * len(keys)


def _fill(work: Workload, keys: tuple[AnchorKey, ...], rooms: list[_Room], *, lossy: bool) -> tuple[Tier, ...] | int:
    """A tier for every key, or the bytes that found no room. Working anchors are the busiest and come first."""
    places: dict[AnchorKey, Tier] = {}
    left = 0
    for key in sorted(keys, key=lambda key: (not key.working, -key.layer)):
        need = anchor_bytes(work.shape, key, tokens=work.tokens, element_bytes=work.element_bytes, lossy=lossy)
        room = next((room for room in rooms if room.free_bytes >= need), None)
        if room is None:
            left += need
            continue
        room.free_bytes -= need
        places[key] = room.tier
    return left or tuple(places[key] for key in keys)


def _host_shortfall(needed_bytes: int, choice: EngineChoice, machine: Machine) -> Shortfall | None:
    there = int(HOST_SHARE * machine.host_bytes)
    if needed_bytes <= there:
        return None
    return Shortfall(tier="host", needed_bytes=needed_bytes, there_bytes=there, choice=choice)


def _too_little(
    left: int, away_bytes: int, on_device: int, choice: EngineChoice, settings: EngineSettings, machine: Machine
) -> Shortfall:
    """What the farthest tier would have to hold, and what it can."""
    there = int(HOST_SHARE * machine.host_bytes)
    if settings.farthest == "host":
        needed = max(there + left, away_bytes - on_device)
        return Shortfall(tier="host", needed_bytes=needed, there_bytes=there, choice=choice)
    there = int(DISK_SHARE * machine.disk_bytes)
    return Shortfall(tier="disk", needed_bytes=there + left, there_bytes=there, choice=choice)


# -- results -----------------------------------------------------------------------------------------------------------


def _plan(work: Workload, choice: EngineChoice, machine: Machine) -> Plan:
    return Plan(
        work=work,
        choice=choice,
        machine=machine,
        memory=predict(work, choice),
        seconds=predict_seconds(work, choice, machine),
    )


def _with_large_tiles(plan: Plan, work: Workload, settings: EngineSettings, machine: Machine) -> Plan:
    """Larger tiles when the batch is long and memory is plentiful: sums of gradients are touched less often."""
    if settings.tile_tokens is not None or work.tokens < LARGE_TILE_FROM or plan.choice.tile_tokens < TILES[0]:
        return plan
    larger = _plan(work, replace(plan.choice, tile_tokens=LARGE_TILE, loss_tile_tokens=LARGE_LOSS_TILE), machine)
    return larger if larger.memory.device_bytes <= LARGE_TILE_SHARE * machine.device_bytes else plan


def _all_bytes(plan: Plan) -> int:
    return plan.memory.device_bytes + plan.memory.host_bytes + plan.memory.disk_bytes


def _longest(work: Workload, settings: EngineSettings, machine: Machine) -> int:
    """The longest single row, in whole thousands of tokens, for which some candidate fits; 0 when none does."""

    def fits(tokens: int) -> bool:
        shorter = replace(work, tokens=tokens, lengths=())
        return any(
            isinstance(_placed(shorter, choice, settings, machine), EngineChoice)
            for choice in _candidates(shorter, settings, machine)
        )

    low, high = 0, work.tokens // 1024
    while low + 1 < high:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * 1024) else (low, middle)
    return low * 1024
