"""Signs of life, and what is read from them."""

import time

from torch import distributed

from longspan.parallel.pulse import BEATS, Place, Progress, Pulse, Sign, verdict


def test_who_is_behind():
    before = {1: Sign(4, 9, "a"), 2: Sign(7, 8, "b"), 3: Sign(5, 8, "c")}
    after = {1: Sign(5, 9, "a"), 2: Sign(8, 8, "b"), 3: Sign(6, 8, "c")}
    assert verdict(before, after) == (
        "rank 2 is alive, but got no further than b; rank 3 is alive, but got no further than c"
    )
    assert verdict(before, {**after, 2: Sign(-1, 8, "b")}) == "rank 2 left before, after b"
    assert verdict(after, {**after, 1: Sign(6, 9, "a")}) == (
        "rank 2 is gone or stopped, last seen in b; rank 3 is gone or stopped, last seen in c"
    )


def test_a_sentence_names_some_ranks():
    signs = {rank: Sign(1, 1, "a") for rank in range(1, 1024)}
    found = verdict(signs, signs)
    assert found.startswith("rank 1 is gone or stopped, last seen in a; rank 2 ")
    assert found.endswith("rank 8 is gone or stopped, last seen in a; and 1015 more")


class GoneStore:
    def check(self, keys):
        raise RuntimeError("Broken pipe\nmore")

    def set(self, key, value):
        raise RuntimeError("Broken pipe")


def test_without_signs_and_without_a_store():
    pulse = Pulse(distributed.HashStore(), Progress(), rank=0, ranks=2, beat_seconds=0.01)
    assert pulse.culprits() == "rank 1 is gone or stopped, last seen in start"
    pulse._store = GoneStore()
    assert pulse.culprits() == "the store of the ranks is gone, and with it rank 0 or the launcher (Broken pipe)"
    pulse.stop()


def wait_for(condition):
    until = time.monotonic() + 20
    while not condition() and time.monotonic() < until:
        time.sleep(0.01)
    assert condition()


def test_every_rank_looks_after_the_next_and_hears_what_was_found():
    store = distributed.HashStore()
    pulses = [Pulse(store, Progress(), rank=rank, ranks=3, beat_seconds=0.02) for rank in range(3)]
    wait_for(lambda: all(pulse.beats > 2 * BEATS for pulse in pulses))
    assert all(pulse.quiet_beats < BEATS and not pulse.found for pulse in pulses)
    pulses[2]._over.set()  # stopped without a word
    wait_for(lambda: pulses[1].quiet_beats > 2 * BEATS)
    assert pulses[0].quiet_beats < BEATS
    said = "rank 2 is gone or stopped, last seen in start"
    assert pulses[1].culprits() == said
    wait_for(lambda: pulses[0].found == said)
    assert pulses[0].culprits() == said
    pulses[0].stop()
    pulses[1].stop()


def test_a_rank_that_left_is_not_silent():
    store = distributed.HashStore()
    mine, other = (Pulse(store, Progress(), rank=rank, ranks=2, beat_seconds=0.01) for rank in range(2))
    other.stop()
    beats = mine.beats
    wait_for(lambda: mine.beats > beats + 3 * BEATS)
    assert mine.quiet_beats <= BEATS
    assert mine.culprits() == "rank 1 left before, after start"
    mine.stop()


def test_the_name_of_an_exchange():
    progress = Progress()
    for phase, part, said in (
        ("", "", "step"),
        ("backward", "layer 3", "step, backward of layer 3"),
        ("loss", "", "step, loss"),
        ("", "head", "step, head"),
    ):
        progress.phase, progress.part = phase, part
        assert progress.named("step") == said
        with progress.within("step") as place:
            assert progress.place == place == Place(place.operations, "step", waits=True)
    assert progress.place == Place(4, "step")
    with progress.within("a word", patient=True) as place:
        assert place == Place(4, "a word")
