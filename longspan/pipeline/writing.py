"""`longspan write`: a set of long answers, by a server or a model on this machine, line by line, resumable."""

import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from longspan.data.agent_write import Ask, agent_write
from longspan.data.rows import digest
from longspan.data.self_lengthen import (
    EXTEND,
    INVENT_TRIES,
    distinct_share,
    drafted,
    invented,
    lengthened,
    short_ones,
    units,
    with_dropped_lines,
    with_length,
)
from longspan.pipeline.answering import Server
from longspan.utils.errors import ConfigError, DataError, Interrupted
from longspan.utils.lines import Lines

Tell = Callable[[str], None]
Stop = Callable[[], bool]
OPTIONS = ("--to", "--by", "--server", "--model", "--key-file", "--folder", "--wanted", "--seed")


@dataclass(frozen=True, kw_only=True)
class WriteRequest:
    """What to write, into which file, by which way, and who answers: a server, or the model of a `folder`.

    `wanted` instructions are there in the end, the missing ones invented (`self_lengthen` only).
    """

    instructions: Path
    to: Path
    by: Literal["agent_write", "self_lengthen"] = "agent_write"
    server: Server | None = None
    folder: Path | None = None
    wanted: int = 0
    seed: int = 0

    @classmethod
    def read(cls, instructions: str, given: Mapping[str, str], *, where: str) -> "WriteRequest":
        """From the words of a command line. Raises `ConfigError` for what is missing or does not go together."""

        def refuse(what: str, fix: str) -> ConfigError:
            return ConfigError("cli.option", what, where=where, fix=fix)

        by, folder = given.get("--by", "agent_write"), given.get("--folder")
        needed = ("--to",) if folder else ("--to", "--server", "--model")
        if missing := [name for name in needed if name not in given]:
            raise refuse(
                f"write needs {missing[0]}", f"{missing[0]} VALUE, and --folder MODEL where there is no server"
            )
        if folder and (idle := [name for name in ("--server", "--model", "--key-file") if name in given]):
            raise refuse(f"--folder is a model on this machine, {idle[0]} is for a server", f"leave out {idle[0]}")
        if by not in ("agent_write", "self_lengthen"):
            raise refuse(f"there is no way {by!r} to write", "--by agent_write, or --by self_lengthen")
        if by == "agent_write" and "--wanted" in given:
            raise refuse("agent_write invents no instructions", "leave out --wanted, or take --by self_lengthen")
        if by == "agent_write" and not folder and "--seed" in given:
            raise refuse("agent_write draws nothing itself, and a server as it likes", "leave out --seed")
        numbers = {name: given.get(name, "0") for name in ("--wanted", "--seed")}
        if wrong := [name for name, number in numbers.items() if not number.isdecimal()]:
            raise refuse(f"{wrong[0]} is no whole number", f"{wrong[0]} 1")
        key_file = Path(given["--key-file"]) if "--key-file" in given else None
        return cls(
            instructions=Path(instructions),
            to=Path(given["--to"]),
            by=by,  # type: ignore[arg-type]
            server=None if folder else Server(address=given["--server"], model=given["--model"], key_file=key_file),
            folder=Path(folder) if folder else None,
            wanted=int(numbers["--wanted"]),
            seed=int(numbers["--seed"]),
        )


def write(request: WriteRequest, *, tell: Tell, stop: Stop) -> dict[str, Any]:
    """Write what is asked for; the counts come back. Raises as `write_answers` and the model that answers do."""
    if request.folder is not None:
        from longspan.pipeline.localmodel import LocalModel  # noqa: PLC0415 - brings torch

        ask: Ask = LocalModel(request.folder, seed=request.seed).ask
    else:
        assert request.server is not None, "a request has one or the other"
        ask = request.server.ask
    if request.by == "agent_write":
        return write_answers(request.instructions, request.to, ask, tell=tell, stop=stop)
    return lengthen_answers(
        request.instructions, request.to, ask, seed=request.seed, wanted=request.wanted, tell=tell, stop=stop
    )


def write_answers(instructions: Path, to: Path, ask: Ask, *, tell: Tell, stop: Stop) -> dict[str, Any]:
    """Write a planned answer for each line `{"id": …, "instruction": …}`; the counts of written and given up come back.

    Lines of `to` are conversations that a source of `chats` reads. What stands there is not done again.
    Raises `DataError`, and `Interrupted` when stopped.
    """
    done = Lines(to)
    known = {str(row["id"]) for row in done.rows}
    counts: Counter[str] = Counter(written=len(known))
    for name, instruction in _instructions(instructions):
        if name in known:
            continue
        _poll(stop)
        found = agent_write(instruction, ask)
        counts[found.reason or "written"] += 1
        if found.text:
            done.append(_talk(name, instruction, found.text) | {"words": found.words, "steps": found.steps})
        tell(f"{name}: {found.reason or f'{found.words:,} words in {found.steps} steps'}")
    return dict(counts)


def lengthen_answers(
    instructions: Path, to: Path, ask: Ask, *, seed: int, wanted: int, tell: Tell, stop: Stop
) -> dict[str, Any]:
    """One round of Self-Lengthen: instructions up to `wanted` of them, answers, extended answers; all line by line.

    Files beside `to`, each gone on with by the same command: `.instructions.jsonl` has the invented ones,
    `.drafts.jsonl` the first answers, `.extender.jsonl` what an extender learns (a first answer without some of its
    lines, and the extended one). `to` has the instruction with a demand of length, and the extended answer.
    Raises `DataError`, and `Interrupted` when stopped. Source: arXiv:2410.23933.
    """
    counts: Counter[str] = Counter()
    asked = dict(_instructions(instructions))
    invention = Lines(_beside(to, "instructions"))
    asked |= {row["id"]: row["instruction"] for row in invention.rows}
    for number in range(INVENT_TRIES * max(0, wanted - len(asked))):
        if len(asked) >= wanted or len(asked) < 2:
            break
        _poll(stop)
        rng = random.Random(digest((seed, "invent", len(asked), number)))
        found = invented(list(asked.values()), ask, rng, heard=lambda reason: counts.update([reason]))
        if found is not None:
            name = f"invented-{len(invention.rows) + 1}"
            invention.append({"id": name, "instruction": found})
            asked[name] = found
            tell(f"{name}: {found[:60]}")
    drafts = _drafts(asked, Lines(_beside(to, "drafts")), ask, counts=counts, tell=tell, stop=stop)
    short = short_ones([row["words"] for row in drafts], random.Random(digest((seed, "short"))))
    counts["draft-short"] += len(short)
    done, extender = Lines(to), Lines(_beside(to, "extender"))
    known, learnt = ({row["id"] for row in lines.rows} for lines in (done, extender))
    for row in (row for place, row in enumerate(drafts) if place not in short and row["id"] not in known):
        _poll(stop)
        name, instruction = row["id"], asked[row["id"]]
        found_long = lengthened(instruction, row["text"], ask)
        rng, words = random.Random(digest((seed, "lines", name))), len(units(found_long.text))
        tell(f"{name}: {found_long.reason or f'{words:,} words, at first ' + format(row['words'], ',')}")
        if found_long.reason:
            counts[found_long.reason] += 1
            continue
        if name not in learnt:  # else a kill came between the two lines
            start = EXTEND.format(instruction=instruction, text=with_dropped_lines(row["text"], rng))
            extender.append(_talk(name, start, found_long.text))
        facts = {"words": words, "first_words": row["words"], "passes": found_long.passes}
        facts["distinct"] = round(distinct_share(found_long.text), 3)  # length must not outgrow content
        done.append(_talk(name, with_length(instruction, words, rng), found_long.text) | facts)
    counts["written"] = len(done.rows)
    return {reason: count for reason, count in counts.items() if count}


def _drafts(
    asked: dict[str, str], lines: Lines, ask: Ask, *, counts: Counter[str], tell: Tell, stop: Stop
) -> list[dict[str, Any]]:
    """The clean first answers to all instructions, in the order of these."""
    rows = {row["id"]: row for row in lines.rows}
    for name, instruction in asked.items():
        if name in rows:
            continue
        _poll(stop)
        draft = drafted(instruction, ask)
        rows[name] = {"id": name, "text": draft.text, "reason": draft.reason, "words": len(units(draft.text))}
        lines.append(rows[name])
        tell(f"{name}: {draft.reason or f'a first answer of {len(units(draft.text)):,} words'}")
    counts.update(rows[name]["reason"] for name in asked if rows[name]["reason"])
    return [rows[name] for name in asked if not rows[name]["reason"]]


def _beside(to: Path, what: str) -> Path:
    return to.with_name(f"{to.stem}.{what}.jsonl")


def _talk(name: str, instruction: str, answer: str) -> dict[str, Any]:
    """A conversation as a source of `chats` reads it."""
    messages = [{"role": "user", "content": instruction}, {"role": "assistant", "content": answer}]
    return {"id": name, "messages": messages}


def _poll(stop: Stop) -> None:
    if stop():
        raise Interrupted("every answer that is written is saved")


def _instructions(path: Path) -> Iterator[tuple[str, str]]:
    if not path.is_file():
        raise ConfigError("write.missing", f"{path.name} does not exist", where=str(path), fix="check the path")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            yield str(row.get("id", number)), row["instruction"]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise DataError(
                "write.line",
                f"line {number} is no instruction: {error!r}",
                where=str(path),
                fix='write lines such as {"id": "a", "instruction": "Write a history of …"}',
            ) from error
