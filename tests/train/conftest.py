import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import toy_training


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def run_child() -> Iterator[Callable[..., int]]:
    """`run_child(folder, fault, value)` trains in another process and returns its exit status, −9 when killed."""
    root = Path(__file__).parents[2]
    server = subprocess.Popen(
        [sys.executable, toy_training.__file__],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=root,
        env={"PYTHONPATH": str(root)},
    )

    def run(folder: Path, fault: str = "none", value: float = 0.0) -> int:
        server.stdin.write(f"{folder} {fault} {value}\n")
        server.stdin.flush()
        return int(server.stdout.readline())

    yield run
    server.stdin.close()
    server.stdout.close()
    assert server.wait() == 0


@pytest.fixture(scope="session")
def unbroken(run_child: Callable[..., int], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    assert run_child(folder) == 0
    return folder
