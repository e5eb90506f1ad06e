"""Errors for users: each says what is wrong, where, and what to do, under a stable code."""


class LongspanError(Exception):
    """A mistake or a limit that the user can act on; the command line shows it without a traceback.

    `code` is stable across versions (`recipe.unknown-key`), so scripts may match on it.
    """

    def __init__(self, code: str, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.code = code
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        lines = [f"{self.what} [{self.code}]"]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.fix:
            lines.append(f"  do:    {self.fix}")
        return "\n".join(lines)


class ConfigError(LongspanError):
    """The recipe or the command line asks for something impossible or unknown."""


class DataError(LongspanError):
    """Input text, tokens or a tokenizer cannot be used."""


class ModelError(LongspanError):
    """A model folder is missing, damaged, unsupported or unsafe."""


class CheckpointError(LongspanError):
    """A checkpoint cannot be trusted or does not belong to this run."""


class StorageError(LongspanError):
    """The disk is full, read-only or failing."""


class Interrupted(Exception):
    """The run was asked to stop (SIGTERM, SIGINT, SIGUSR1), saved its state and can go on later."""
