"""Settings from the words of a command line, with mistakes told as ours and not as the parser's."""

import contextlib
import io
import re
from typing import TypeVar

import tyro
from pydantic import ValidationError
from tyro.conf import AvoidSubcommands

from longspan.config import Settings
from longspan.pipeline.mistakes import explain
from longspan.utils.errors import ConfigError
from longspan.utils.values import flat, nearest

Chosen = TypeVar("Chosen", bound=Settings)


def override(default: Chosen, words: list[str], *, prog: str) -> Chosen | None:
    """The settings with the changes of the command line; None when only the parser's help was asked for.

    Raises `ConfigError` in place of the parser's own exit.
    """
    kind = type(default)
    if {"-h", "--help"} & set(words):
        with contextlib.suppress(SystemExit):
            tyro.cli(kind, default=default, config=(AvoidSubcommands,), args=words, prog=prog)
        return None
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told), contextlib.redirect_stdout(told):
            return tyro.cli(kind, default=default, config=(AvoidSubcommands,), args=words, prog=prog)
    except SystemExit as stop:
        raise _mistake(stop, told.getvalue(), default, prog=prog) from None


def _mistake(stop: SystemExit, told: str, default: Settings, *, prog: str) -> ConfigError:
    """What the parser printed before it gave up, as one of our errors."""
    cause: BaseException | None = stop
    while cause is not None and not isinstance(cause, ValidationError):
        cause = cause.__context__
    if cause is not None:
        place = re.search(r"Error parsing ([\w.\-]+):", told)
        return explain(cause, {}, {"properties": {}}, where=f"{prog}: {place.group(1) if place else ''}".rstrip(": "))
    lines = [line.strip(" │|╭╮╰╯─-") for line in told.splitlines()]
    text = " ".join(line for line in lines[1:] if line)
    what = re.split("Perhaps you meant:|Argument helptext:|For full helptext", text)[0].strip()
    flags = ["--" + path.replace("_", "-") for path in flat(default.model_dump(mode="json"))]
    near = next(filter(None, (nearest(word, flags) for word in re.findall(r"--[\w.\-]+", what))), None)
    fix = f"did you mean {near}?" if near and near not in what else f"{prog} --help lists every key"
    return ConfigError("cli.option", what, where=prog, fix=fix)
