"""What runs on ranks in the tests of this folder."""

import os
import signal
import time

import torch
from torch import distributed

from longspan.parallel.exchange import all_gather, all_reduce_, all_to_all, reduce_scatter, ring_step
from longspan.parallel.mesh import AXES, Mesh
from longspan.utils.errors import LongspanError

TYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64)


def block(of, to, size, dtype):
    """What rank `of` has for rank `to`: values that tell both."""
    return (torch.arange(2 * size).view(2, size) + 20 * of + 5 * to).to(dtype)


def exchanges(world):
    """Every exchange with unequal sizes, empty ones too; the caller compares."""
    ranks = world.launch.ranks
    axis = world.axes(Mesh(ring=ranks))["ring"]
    me, sizes = axis.rank, [(2 * rank + 3) % 4 for rank in range(ranks)]  # 3, 1, 3, 1
    sizes[-1] = 0 if ranks > 1 else 3
    found = {}
    for dtype in TYPES:
        before = (me - 1) % ranks
        pending = ring_step(block(me, 0, sizes[me], dtype), axis, shape=(2, sizes[before]))
        sent = [block(me, to, (me + to) % 3, dtype) for to in range(ranks)]
        (crossing,) = all_to_all([sent], axis, shapes=[[(2, (me + of) % 3) for of in range(ranks)]])
        gathered = all_gather(block(me, 0, sizes[me], dtype), axis, sizes=sizes, dim=1)
        shares = [block(me, to, sizes[to], dtype) for to in range(ranks)]
        results = {
            "ring": pending.wait(),
            "all-to-all": crossing.wait(),
            "gather": gathered.wait(),
            "scatter": reduce_scatter(shares, axis, dim=1).wait(),
            "reduce": all_reduce_(block(me, 0, 2, dtype), axis).wait(),
        }
        assert all(x.dtype == dtype for x in [results["ring"], *results["all-to-all"], results["scatter"]])
        found[str(dtype)] = {
            name: [x.double() for x in value] if isinstance(value, list) else value.double()
            for name, value in results.items()
        }
    return found


def not_contiguous(world):
    """Views with odd strides travel as what they show."""
    axis = world.axes(Mesh(ulysses=world.launch.ranks))["ulysses"]
    x = (torch.arange(12.0).view(4, 3) + 100 * axis.rank).T
    gathered = all_gather(x, axis, sizes=[4] * axis.size, dim=1).wait()
    return ring_step(x, axis, shape=(3, 4)).wait(), gathered[-1], reduce_scatter([x] * axis.size, axis, dim=0).wait()


def mesh_axes(world, mesh):
    """The ranks that meet on each axis, as an exchange sees them."""
    found = {}
    for name, axis in world.axes(mesh).items():
        me = torch.tensor([world.launch.rank])
        parts = all_gather(me, axis, sizes=[1] * axis.size, dim=0).wait()
        found[name] = (axis.rank, [int(part) for part in parts])
    assert list(found) == list(AXES)
    return found


def wrong_mesh(world):
    try:
        world.axes(Mesh(ring=3))
    except LongspanError as error:
        return error.code, error.fix
    return None


def failing(world):
    if world.launch.rank == 1:
        raise ValueError("planted")
    time.sleep(60)


def losing(world, mesh, how, name):
    """One rank is lost in the third of some exchanges; the others tell what they saw, and when."""
    axis = world.axes(mesh)["ring"]
    started = time.monotonic()
    try:
        for number in range(50):
            if number == 2 and world.launch.rank == 1:
                time.sleep(0.5)  # some beats of the pulse
                lose(how)
            step(name, axis, number)
    except LongspanError as error:
        return error.code, error.what, time.monotonic() - started
    return None


def lose(how):
    if how == "asleep":
        time.sleep(60)
    os.kill(os.getpid(), {"killed": signal.SIGKILL, "stopped": signal.SIGSTOP}[how])


def step(name, axis, number):
    x, operation = torch.ones(4), f"{name} {number}"
    if name == "ring":
        ring_step(x, axis, shape=(4,), operation=operation).wait()
    elif name == "gather":
        all_gather(x, axis, sizes=[4] * axis.size, dim=0, operation=operation).wait()
    else:
        all_to_all([[x] * axis.size], axis, shapes=[[(4,)] * axis.size], operation=operation)[0].wait()


class Reached:
    """A place in the queue of a device that is not there: come to, or not, or after some time."""

    def __init__(self, at=0.0):
        self.at = time.monotonic() + at

    def query(self):
        return time.monotonic() >= self.at


NEVER = float("inf")


def queue(world, delays):
    """From now on the device of this rank comes to each mark that many seconds after it was asked for."""
    coming = iter(delays)
    world.progress._mark = lambda: Reached(next(coming, 0.0))


def synchronising(world, mesh, how, folder):
    """One rank is lost; the others have given their device an exchange, and are in a sleep that nothing interrupts."""
    axis, me = world.axes(mesh)["ring"], world.launch.rank
    with open(f"{folder}/stderr-{me}", "w") as file:
        os.dup2(file.fileno(), 2)
    exchange(axis, "first", world)
    if me == 1:
        time.sleep(0.5)  # some beats of the pulse
        lose(how)
    queue(world, [0.0, NEVER])
    world.progress.phase, world.progress.part = "backward", "layer 12"
    with axis.within(axis.named("ring of keys, step 1"), waits=True):
        pass
    time.sleep(60)


def exchange(axis, operation, world):
    with axis.within(operation, waits=True):
        axis.wait(distributed.all_reduce(torch.ones(1), group=axis.group, async_op=True))


def gloo_waiting(world, mesh, how, folder):
    """The same where the others wait in gloo, and may hear of the end of those that the watch has ended."""
    with open(f"{folder}/stderr-{world.launch.rank}", "w") as file:
        os.dup2(file.fileno(), 2)
    code, what, _ = losing(world, mesh, how, "ring")
    os.write(2, f"error: {what} [{code}]".encode())
    os._exit(75)


def computing(world, seconds):
    """No rank exchanges for long: one is in Python, the other one's device computes before an exchange that it has."""
    axis = world.axes(Mesh(ring=2))["ring"]
    exchange(axis, "first", world)
    if world.launch.rank == 1:
        queue(world, [seconds, seconds])
        with axis.within("second", waits=True):
            pass
    time.sleep(seconds)
    exchange(axis, "third", world)
    time.sleep(0.5)  # some beats of the watch
    return world.progress.place.operation
