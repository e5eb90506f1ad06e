"""Long answers from a server on this machine: planned, written in steps, saved one by one, gone on with."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from longspan import cli
from longspan.data.agent_write import Written, agent_write, planned_steps
from longspan.data.settings import SourceSettings
from longspan.data.sources import Quarantine, read_documents
from longspan.pipeline import answering
from longspan.pipeline.answering import GO_ON, Server
from longspan.pipeline.writing import lengthen_answers, write_answers
from longspan.utils.errors import ConfigError, DataError, Interrupted

LINES = [f"Paragraph {n} - Main Point: point {n} - Word Count: {200 + n}" for n in (1, 2, 3)]


def test_plans() -> None:
    plan = (
        "Here is the plan:\n* " + "\n\n".join(LINES) + "\nParagraph 4 - Main Point: too much - Word Count: 20000\nEnd."
    )
    assert planned_steps(plan) == ["* " + LINES[0], *LINES[1:]]
    assert planned_steps("I would rather not.") == []


def test_every_step_sees_plan_and_text_so_far() -> None:
    asked: list[str] = []

    def ask(prompt: str, _prefix: str = "") -> str:
        asked.append(prompt)
        return "\n".join(LINES) if len(asked) == 1 else f" text {len(asked) - 1}\n"

    assert agent_write("Write about rivers.", ask) == Written(text="text 1\n\ntext 2\n\ntext 3", steps=3)
    assert len(asked) == 4
    assert all("Write about rivers." in prompt for prompt in asked)
    assert all(all(line in prompt for line in LINES) for prompt in asked[1:])
    assert "text 1\n\ntext 2" in asked[3]
    assert asked[3].rstrip().endswith(LINES[2])


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["no"], Written(reason="no-plan")),
        (["\n".join(LINES[:1] * 51)], Written(reason="plan-long", steps=51)),
        (["\n".join(LINES), "one", " \n"], Written(reason="empty-step", steps=1)),
        (["\n".join(LINES), "one", "one"], Written(reason="repeated-step", steps=1)),
    ],
)
def test_items_that_are_given_up(answers: list[str], expected: Written) -> None:
    rest = iter(answers)
    assert agent_write("x", lambda _prompt, _prefix="": next(rest)) == expected


class Model(BaseHTTPRequestHandler):
    """Plans two paragraphs and writes them; `broken` requests are answered with these statuses first."""

    asked: list[dict[str, Any]]
    broken: list[int]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append(body | {"path": self.path, "key": self.headers.get("Authorization")})
        status = self.broken.pop(0) if self.broken else 200
        prompt = body["messages"][0]["content"]
        text = "\n".join(LINES[:2]) if "Do not write it yet" in prompt else f"Words for {prompt[-30:]}"
        answer = {"choices": [{"message": {"content": text}}]} if status != 299 else {"other": 1}
        self.send_response(200 if status == 299 else status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Server, type[Model]]]:
    monkeypatch.setattr(answering, "FIRST_PAUSE_SECONDS", 0.001)
    handler = type("Handler", (Model,), {"asked": [], "broken": []})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield Server(address=f"http://127.0.0.1:{http.server_port}/v1/", model="small"), handler
    http.shutdown()
    thread.join()
    http.server_close()


def instructions(folder: Path, count: int) -> Path:
    path = folder / "instructions.jsonl"
    path.write_text("\n".join(json.dumps({"id": f"i{n}", "instruction": f"Topic {n}"}) for n in range(count)))
    return path


def test_answers_become_conversations_by_the_same_command(server: Any, tmp_path: Path, capsys: Any) -> None:
    where, model = server
    model.broken[:] = [503, 429]
    to, key = tmp_path / "talks.jsonl", tmp_path / "key"
    key.write_text("secret\n")
    words = ["write", str(instructions(tmp_path, 3)), "--to", str(to), "--server", where.address, "--model", "small"]
    assert cli.main([*words, "--key-file", str(key), "--json"]) == cli.OK
    assert json.loads(capsys.readouterr().out)["answers"] == {"written": 3}
    assert len(model.asked) == 3 * 3 + 2
    assert {(a["path"], a["key"], a["model"]) for a in model.asked} == {
        ("/v1/chat/completions", "Bearer secret", "small")
    }
    source = SourceSettings(path=to, documents="chats")
    documents = list(read_documents([source], max_document_bytes=10**6, quarantine=Quarantine()))
    assert [document.id for document in documents] == ["i0", "i1", "i2"]
    assert json.loads(documents[1].text)[0] == {"role": "user", "content": "Topic 1"}
    to.write_bytes(to.read_bytes()[:-10])  # a kill in the middle of the last line
    asked = len(model.asked)
    assert cli.main(words) == cli.OK
    assert len(model.asked) == asked + 3, "one answer again"
    assert [json.loads(line)["id"] for line in to.read_text().splitlines()] == ["i0", "i1", "i2"]


def test_a_stop_comes_between_answers(server: Any, tmp_path: Path) -> None:
    where, _ = server
    to = tmp_path / "talks.jsonl"
    with pytest.raises(Interrupted):
        write_answers(instructions(tmp_path, 3), to, where.ask, tell=lambda _: None, stop=to.exists)
    assert len(to.read_text().splitlines()) == 1


@pytest.mark.parametrize("broken", [[500] * 4, [401], [299]])
def test_servers_that_give_no_answer(server: Any, tmp_path: Path, broken: list[int]) -> None:
    where, model = server
    model.broken[:] = broken
    with pytest.raises(DataError) as error:
        write_answers(instructions(tmp_path, 1), tmp_path / "t", where.ask, tell=lambda _: None, stop=lambda: False)
    assert error.value.code == "write.server"
    assert len(model.asked) == len(broken)


def test_mistakes(server: Any, tmp_path: Path, capsys: Any) -> None:
    where, _ = server
    with pytest.raises(ConfigError) as missing:
        write_answers(tmp_path / "no", tmp_path / "t", where.ask, tell=lambda _: None, stop=lambda: False)
    assert missing.value.code == "write.missing"
    (tmp_path / "bad.jsonl").write_text('{"id": 1}')
    with pytest.raises(DataError) as line:
        write_answers(tmp_path / "bad.jsonl", tmp_path / "t", where.ask, tell=lambda _: None, stop=lambda: False)
    assert line.value.code == "write.line"
    server_words = ["--server", "http://x", "--model", "m"]
    for words, said in (
        (["--to", "y"], "write needs --server"),
        (["--folder", "m"], "write needs --to"),
        (["--to", "y", "--folder", "m", "--model", "m"], "--model is for a server"),
        (["--to", "y", "--by", "magic", *server_words], "no way 'magic'"),
        (["--to", "y", "--wanted", "3", *server_words], "invents no instructions"),
        (["--to", "y", "--seed", "3", *server_words], "draws nothing itself"),
        (["--to", "y", "--by", "self_lengthen", "--seed", "one", *server_words], "--seed is no whole number"),
    ):
        assert cli.main(["write", "x.jsonl", *words]) == cli.MISTAKE
        assert said in capsys.readouterr().err


class Writer(Model):
    """Drafts short texts, doubles what it is told to extend, invents instructions: each answer by its own count."""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        prompt = body["messages"][0]["content"]
        type(self).asked.append(body)
        made = f"{len(self.asked)}"
        fresh = " ".join(f"w{made}x{n}" for n in range(40)) + "."
        if "one more request" in prompt:
            text = f"Tell a long tale number {made}."
        elif prompt.startswith("Would a good answer"):
            text = "Yes."
        elif GO_ON in prompt:
            text = " " + prompt.split(GO_ON)[1] + "\n\n" + fresh  # some servers say the beginning again
        elif "first half" in prompt:
            text = fresh + "\n\n" + fresh.replace("w", "v")
        else:
            text = fresh
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [{"message": {"content": text}}]}).encode())


@pytest.fixture
def writer() -> Iterator[tuple[str, type[Model]]]:
    handler = type("Handler", (Writer,), {"asked": [], "broken": []})
    http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=http.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/v1", handler
    http.shutdown()
    thread.join()
    http.server_close()


def test_short_answers_are_extended_by_the_same_command(writer: Any, tmp_path: Path, capsys: Any) -> None:
    address, model = writer
    to = tmp_path / "long.jsonl"
    words = ["write", str(instructions(tmp_path, 8)), "--to", str(to), "--server", address, "--model", "small"]
    words += ["--by", "self_lengthen", "--wanted", "10", "--seed", "4"]
    assert cli.main([*words, "--json"]) == cli.OK
    counts = json.loads(capsys.readouterr().out)["answers"]
    rows = [json.loads(line) for line in to.read_text().splitlines()]
    drafts = [json.loads(line) for line in (tmp_path / "long.drafts.jsonl").read_text().splitlines()]
    new = [json.loads(line) for line in (tmp_path / "long.instructions.jsonl").read_text().splitlines()]
    extender = [json.loads(line) for line in (tmp_path / "long.extender.jsonl").read_text().splitlines()]
    assert len(drafts) == 10
    assert [row["id"] for row in new] == ["invented-1", "invented-2"]
    assert counts["written"] + counts["draft-short"] + counts.get("not-longer", 0) == 10
    assert counts["draft-short"] >= 2, "the shortest fifth always"
    assert counts["written"] == len(rows) == len(extender) > 0
    for row, learnt in zip(rows, extender, strict=True):
        draft = next(draft for draft in drafts if draft["id"] == row["id"])
        answer = row["messages"][1]["content"]
        assert row["words"] > 1.2 * row["first_words"]
        assert row["first_words"] == draft["words"] == 40
        assert learnt["messages"][1]["content"] == answer
        assert "which is too short" in learnt["messages"][0]["content"]
        assert " Write " in row["messages"][0]["content"], "with a demand of length"
    source = SourceSettings(path=to, documents="chats")
    assert len(list(read_documents([source], max_document_bytes=10**6, quarantine=Quarantine()))) == len(rows)
    before, asked = to.read_bytes(), len(model.asked)
    to.write_bytes(before[:-10])  # a kill in the middle of the last line
    assert cli.main(words) == cli.OK
    assert len(model.asked) > asked
    assert len((tmp_path / "long.extender.jsonl").read_text().splitlines()) == len(rows), "learnt once"
    assert [json.loads(line)["id"] for line in to.read_text().splitlines()] == [row["id"] for row in rows]


def test_a_stop_comes_between_drafts(writer: Any, tmp_path: Path) -> None:
    address, _ = writer
    drafts = tmp_path / "t.drafts.jsonl"

    def stop() -> bool:
        return drafts.exists() and len(drafts.read_text().splitlines()) == 2

    ask = Server(address=address, model="small").ask
    with pytest.raises(Interrupted):
        lengthen_answers(
            instructions(tmp_path, 4), tmp_path / "t.jsonl", ask, seed=0, wanted=0, tell=lambda _: None, stop=stop
        )
    assert len(drafts.read_text().splitlines()) == 2
