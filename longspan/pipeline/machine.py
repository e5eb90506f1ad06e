"""Looking at the real machine: what this process may take, where containers and limits say less than the kernel."""

import os
import re
import resource
import shutil
from pathlib import Path

import torch

from longspan.plan.machine import Machine, peak_flops

IPC_LOCK = 14  # the capability that lifts the limit of locked memory; its bit in /proc/self/status
UNLIMITED = 1 << 60  # bytes; version 1 of control groups writes "no limit" as a number near 2^63


def probe(device: torch.device, *, folder: Path, root: Path = Path("/")) -> Machine:
    """What there is now: free device memory, host memory, free disk where `folder` is or will be.

    Host memory counts pages that the kernel would give up. A virtual machine may show less than it grows to: then
    `Machine.limited` corrects it.
    """
    host_bytes = available_bytes(root)
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    disk_bytes = shutil.disk_usage(existing).free
    if device.type != "cuda":
        return Machine(device="cpu", device_bytes=host_bytes, host_bytes=host_bytes, disk_bytes=disk_bytes, shared=True)
    name = torch.cuda.get_device_name(device)
    return Machine(
        device=name,
        device_bytes=torch.cuda.mem_get_info(device)[0],
        host_bytes=host_bytes,
        disk_bytes=disk_bytes,
        locked_bytes=locked_bytes(root),
        peak_flops=peak_flops(name),
    )


def available_bytes(root: Path = Path("/")) -> int:
    """Host memory that can still be taken: the least of what the kernel and every control group above us allow."""
    found = [left for left in (_kernel_bytes(root), *_group_bytes(root)) if left is not None]
    return max(0, min(found)) if found else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def locked_bytes(root: Path = Path("/")) -> int | None:
    """The limit of page-locked memory, None where there is none or this process may pass it."""
    held = re.search(r"^CapEff:\s*([0-9a-fA-F]+)", _text(root / "proc/self/status") or "", re.MULTILINE)
    if held is not None and int(held.group(1), 16) >> IPC_LOCK & 1:
        return None
    limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _kernel_bytes(root: Path) -> int | None:
    found = re.search(r"^MemAvailable:\s*(\d+) kB", _text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(found.group(1)) * 1024 if found is not None else None


def _group_bytes(root: Path) -> list[int]:
    """What is left in each control group that holds this process, of version 2 and of version 1."""
    found = []
    for line in (_text(root / "proc/self/cgroup") or "0::/").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds == "":
            top, limit, used = root / "sys/fs/cgroup", "memory.max", "memory.current"
        elif "memory" in kinds.split(","):
            top, limit, used = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        own = top / path.strip("/")  # inside a container the path may not be there: then only the top is seen
        for folder in (own, *own.parents):
            left = _left(folder, limit, used)
            if left is not None:
                found.append(left)
            if folder == top:
                break
    return found


def _left(folder: Path, limit: str, used: str) -> int | None:
    """Limit less use of one group; files in its page cache can be given up and count as free."""
    most, taken = _text(folder / limit), _text(folder / used)
    if most is None or taken is None or most.strip() == "max" or int(most) >= UNLIMITED:
        return None
    cached = re.search(r"^(?:total_)?inactive_file (\d+)", _text(folder / "memory.stat") or "", re.MULTILINE)
    return int(most) - int(taken) + (int(cached.group(1)) if cached is not None else 0)


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
