"""What a process may take, read from a system tree made for the test."""

import resource
from pathlib import Path

import pytest
import torch

from longspan.pipeline.machine import available_bytes, locked_bytes, probe

MIB = 2**20


def system(root: Path, files: dict[str, str]) -> Path:
    for name, text in {"proc/meminfo": f"MemTotal: 1 kB\nMemAvailable:   {800 * 1024} kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_without_groups_the_kernel_decides(tmp_path: Path) -> None:
    assert available_bytes(system(tmp_path, {})) == 800 * MIB


def test_version_2_counts_every_group_above_and_gives_page_cache_back(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/job/step\n",
        "sys/fs/cgroup/job/memory.max": f"{600 * MIB}\n",
        "sys/fs/cgroup/job/memory.current": f"{300 * MIB}\n",
        "sys/fs/cgroup/job/memory.stat": f"anon 1\ninactive_file {100 * MIB}\n",
        "sys/fs/cgroup/job/step/memory.max": "max\n",
        "sys/fs/cgroup/job/step/memory.current": "1\n",
    }
    assert available_bytes(system(tmp_path, files)) == 400 * MIB


def test_version_1(tmp_path: Path) -> None:
    folder = "sys/fs/cgroup/memory/box/"
    files = {
        "proc/self/cgroup": "7:cpu:/box\n4:memory:/box\n",
        folder + "memory.limit_in_bytes": f"{200 * MIB}\n",
        folder + "memory.usage_in_bytes": f"{50 * MIB}\n",
        folder + "memory.stat": f"inactive_file 5\ntotal_inactive_file {10 * MIB}\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "1\n",
    }
    assert available_bytes(system(tmp_path, files)) == 150 * MIB + 5


def test_inside_a_container_only_the_top_is_seen(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "0::/docker/abc\n",
        "sys/fs/cgroup/memory.max": f"{100 * MIB}\n",
        "sys/fs/cgroup/memory.current": f"{400 * MIB}\n",
    }
    assert available_bytes(system(tmp_path, files)) == 0


def test_a_system_that_tells_nothing(tmp_path: Path) -> None:
    assert available_bytes(tmp_path) > 0


@pytest.mark.parametrize(
    ("capabilities", "limit", "wanted"),
    [
        ("000001ffffffffff", 65536, None),  # may lock without limit
        ("0000000000000000", 65536, 65536),
        ("0000000000000000", resource.RLIM_INFINITY, None),
    ],
)
def test_locked_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capabilities: str, limit: int, wanted: int | None
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert locked_bytes(system(tmp_path, {"proc/self/status": f"Name: x\nCapEff:\t{capabilities}\n"})) == wanted


def test_a_cpu_is_one_memory(tmp_path: Path) -> None:
    found = probe(torch.device("cpu"), folder=tmp_path / "not" / "yet", root=system(tmp_path / "root", {}))
    assert found.shared
    assert found.device_bytes == found.host_bytes == 800 * MIB
    assert found.disk_bytes > 0
    assert found.peak_flops is None
