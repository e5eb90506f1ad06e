"""Words of the command line that are no settings of a recipe: plain ones, and `--option value`."""

from longspan.utils.errors import ConfigError


def separated(
    verb: str, words: list[str], *, arguments: int, options: tuple[str, ...], usage: str
) -> tuple[list[str], dict[str, str]]:
    """Plain words and the values of options. Raises `ConfigError` when they do not fit the verb."""
    given, plain = taken(words, options, usage=usage)
    unknown = next((word.partition("=")[0] for word in plain if word.startswith("--")), None)
    if unknown is not None:
        raise ConfigError("cli.option", f"{verb} has no option {unknown}", where=usage, fix="leave it out")
    if len(plain) != arguments:
        what = f"{verb} takes {arguments} argument{'' if arguments == 1 else 's'}, not {len(plain)}"
        raise ConfigError("cli.usage", what, where=usage, fix="see longspan --help")
    return plain, given


def taken(words: list[str], options: tuple[str, ...], *, usage: str) -> tuple[dict[str, str], list[str]]:
    """The values of these options, and all other words. Raises `ConfigError` for an option without a value."""
    given: dict[str, str] = {}
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name not in options:
            others.append(word)
            continue
        given[name] = value if equals else next(rest, "")
        if not given[name]:
            raise ConfigError("cli.option", f"{name} needs a value", where=usage, fix=f"{name} VALUE")
    return given, others
