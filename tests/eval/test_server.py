"""A real HTTP server on this machine stands for one that serves a model; what it is asked and what it may answer."""

import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from eval_toys import decode, encode, material
from test_grid import desk_for

from longspan.eval.desk import Sampling
from longspan.eval.server import ServerReader
from longspan.eval.tasks.grid import Grid
from longspan.probes.needle import Needle
from longspan.utils.errors import ModelError


@contextmanager
def serving(answer, *, headers=None):
    """The address of a server whose reply to each body is `answer(body)`: a status and a JSON value or bytes.

    Headers of requests are added to the list `headers`.
    """
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body))
            if headers is not None:
                headers.append(dict(self.headers))
            status, value = answer(body)
            content = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
        server.shutdown()


def copier(body):
    text = decode(body["prompt"])
    key = re.search(r"The code of (\S+) is$", text)[1]
    found = re.findall(rf"{key} is (\d+)\.", text)
    return 200, {"choices": [{"text": f" {found[0]}.", "finish_reason": "length"}]}


def reader(url):
    return ServerReader(url + "/", "a-model", encode=encode, decode=decode)


def test_a_grid_is_asked_by_token_ids_and_scored_by_text(tmp_path):
    task = Grid(probe=Needle(), lengths=(600,), depths=2, trials=1, pack=True)
    with serving(copier) as (url, asked):
        found = task.run(desk_for(reader(url), tmp_path))
    assert [(cell.hits, cell.trials) for cell in found.cells] == [(1, 1), (1, 1)]
    assert all(row["logprob"] is None for row in found.rows)
    path, body = asked[0]
    assert path == "/v1/completions"
    assert body == {"model": "a-model", "prompt": body["prompt"], "max_tokens": 8, "temperature": 0}
    context = task.rebuild(material(), found.rows[0]["spec"]["place"])
    assert body["prompt"] == [*context.tokens.tolist(), *context.branches[0].question]


def test_a_wrong_reply_is_a_miss_and_is_kept(tmp_path):
    task = Grid(probe=Needle(), lengths=(600,), depths=1, trials=1)
    wrong = {"choices": [{"text": " no idea", "finish_reason": "stop"}]}
    with serving(lambda body: (200, wrong)) as (url, _):
        (row,) = task.run(desk_for(reader(url), tmp_path)).rows
    assert (row["hit"], row["score"]) == (False, 0.0)
    assert " no idea".startswith(row["prediction"])


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        ((404, {"error": "no such model"}), "eval.server", "no such model"),
        ((200, b"<html>"), "eval.server", "gives no answer"),
        ((200, {"choices": []}), "eval.server-answer", "has no text"),
    ],
)
def test_what_a_server_may_say_instead(answer, code, words):
    with serving(lambda body: answer) as (url, _), pytest.raises(ModelError, match=words) as caught:
        reader(url).complete([1], 5)
    assert caught.value.code == code


def test_no_server_no_address_and_no_loss():
    with pytest.raises(ModelError, match="gives no answer"):
        reader("http://127.0.0.1:9/v1").complete([1], 5)
    with pytest.raises(ModelError, match="no http address"):
        reader("file:///etc").complete([1], 5)
    with pytest.raises(ModelError, match="cannot be asked for the loss"):
        reader("http://127.0.0.1:9/v1").token_nll([1, 2])


def test_drawn_replies_are_asked_for_with_their_temperature_and_seed():
    with serving(lambda body: (200, {"choices": [{"text": "x", "finish_reason": "stop"}]})) as (url, asked):
        reading = ServerReader(url, "m", encode=encode, decode=decode).read(np.array([1]), room_tokens=9)
        how = Sampling(temperature=0.5, seeds=(3, 4))
        reading.generate([[2], [2]], max_new_tokens=[4, 4], sampling=how)
    assert [(body["temperature"], body["seed"]) for _, body in asked] == [(0.5, 3), (0.5, 4)]
