"""The end of a run that waits in vain, where no exception can reach whoever waits: the process ends, with a word."""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from longspan.parallel.pulse import BEATS, Place, Progress, Pulse, lost
from longspan.utils.errors import LongspanError

AGAIN = 75  # exit status: run the same command again
_STORE = "the store of the ranks gives no answer, and with it rank 0 or the launcher"

End = Callable[[LongspanError, str], None]


class Watch:
    """Looks at every beat whether this rank still moves, and calls `end` when the run is lost. It is lost when

    - another rank has found a culprit, and this one has not moved for some beats;
    - the next rank has given no sign for half the deadline, and this one has not moved for as long;
    - this rank has waited in one exchange for the deadline, on its host or on its device;
    - this rank has waited for half the deadline, and the store has not answered for as long.

    A rank that computes does not wait, and one that beats is not silent, whatever the time: neither ends a run. Time is
    counted in beats of this thread, so that a machine that was asleep does not find everyone silent when it wakes.
    """

    def __init__(
        self, pulse: Pulse, progress: Progress, *, rank: int, deadline_seconds: float, beat_seconds: float, end: End
    ) -> None:
        self._pulse, self._progress, self._rank, self._end = pulse, progress, rank, end
        self._seconds, self._deadline_beats = beat_seconds, deadline_seconds / beat_seconds
        self._still_beats = self._dumb_beats = self._beats = 0
        self._place = progress.place
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self._thread.join(BEATS * self._seconds)

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            if self._progress.failed:  # an exception is on its way, which says the same
                return
            place = self._look()
            culprits = self._lost(place)
            if culprits and not self._over.is_set() and not self._progress.failed:
                frame, stack = _main_stack()
                self._end(lost(self._rank, place, culprits, where=frame), stack)
                return

    def _look(self) -> Place:
        place, beats = self._progress.look(), self._pulse.beats
        self._still_beats = self._still_beats + 1 if place == self._place else 0
        self._dumb_beats = self._dumb_beats + 1 if beats == self._beats else 0
        self._place, self._beats = place, beats
        return place

    def _lost(self, place: Place) -> str:
        """Who is to blame if the run is lost; else nothing."""
        still, half = self._still_beats, self._deadline_beats / 2
        if self._pulse.found and still >= BEATS:
            return self._pulse.found
        if place.waits and min(still, self._dumb_beats) >= half:
            return _STORE
        silent = min(still, self._pulse.quiet_beats) >= half
        # Between CPUs a failed wait raises at the deadline by itself, and knows more.
        if silent or (place.waits and still >= self._deadline_beats + BEATS):
            return self._culprits()
        return ""

    def _culprits(self) -> str:
        """What the pulse finds out, unless the store keeps it waiting."""
        found: list[str] = []
        asking = threading.Thread(target=lambda: found.append(self._pulse.culprits()), daemon=True)
        asking.start()
        asking.join(max(4 * BEATS * self._seconds, 1.0))
        return found[0] if found else _STORE


def end_process(error: LongspanError, stack: str, *, error_file: Path | None) -> None:
    """Say what was lost, on stderr and in the file that torchrun's agent reads, and end this process at once.

    The main thread cannot be reached, so nothing is cleaned up; the agent ends the other ranks. The file is the JSON
    that `torch.distributed.elastic.multiprocessing.errors` reads.
    """
    if error_file is not None:
        extra = {"py_callstack": f"{stack}{error}", "timestamp": str(int(time.time()))}
        try:
            error_file.write_text(json.dumps({"message": {"message": str(error), "extraInfo": extra}}))
        except OSError as cause:
            stack += f"{error_file}: {cause}\n"
    # Straight to the descriptor: the main thread may hold the lock of sys.stderr.
    os.write(2, f"the main thread is at\n{stack}error: {error}\n".encode())
    os._exit(AGAIN)


def _main_stack() -> tuple[str, str]:
    """Where the main thread is: its innermost line, and its whole stack."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    stack = traceback.extract_stack(frame)
    return f"{stack[-1].filename}:{stack[-1].lineno} in {stack[-1].name}", "".join(stack.format())
