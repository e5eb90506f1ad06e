"""The examples of launching over many machines: what they say is known to those who read it, and two "nodes" of this
machine meet as they say, with a small program in the place of longspan.
"""

import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

LAUNCH = Path(__file__).parents[1] / "examples" / "launch"
BIN = Path(sys.executable).parent

# Stands for `python -m longspan`: all ranks add up their numbers, and each tells what it was given.
PROGRAM = """
import json, pathlib, sys, os
from torch import distributed, ones
distributed.init_process_group("gloo")
rank = distributed.get_rank()
total = ones(1) * (rank + 1)
distributed.all_reduce(total)
told = {"words": sys.argv[1:], "ranks": distributed.get_world_size(), "total": float(total)}
told["local"] = int(os.environ["LOCAL_RANK"])
pathlib.Path(os.environ["TOLD"], str(rank)).write_text(json.dumps(told))
distributed.destroy_process_group()
"""


@pytest.fixture
def nodes(tmp_path: Path) -> "Nodes":
    return Nodes(tmp_path)


class Nodes:
    """A folder with programs that stand in for those of a cluster, and what the ranks told."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told, self.bin = folder, folder / "told", folder / "bin"
        for path in (self.told, self.bin, folder / "longspan"):
            path.mkdir()
        (folder / "longspan" / "__init__.py").touch()
        (folder / "longspan" / "__main__.py").write_text(PROGRAM)

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.write_text(text)
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def environment(self, **more: str) -> dict[str, str]:
        """Without what a launcher around these tests may have set."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "PET_", "SKYPILOT"))}
        own = {
            "PATH": os.pathsep.join([str(self.bin), str(BIN), kept["PATH"]]),
            "PYTHONPATH": str(self.folder),
            "TOLD": str(self.told),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
        }
        return kept | own | more

    def start(self, words: list[str], **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(words, cwd=self.folder, env=self.environment(**more), stderr=subprocess.PIPE, text=True)

    def answers(self, processes: list[subprocess.Popen[str]]) -> list[dict[str, Any]]:
        for process in processes:
            _, errors = process.communicate(timeout=100)
            assert process.returncode == 0, errors
        return [json.loads((self.told / str(rank)).read_text()) for rank in range(len(list(self.told.iterdir())))]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((LAUNCH / name).read_text(encoding="utf-8")))


def test_every_example_is_tested() -> None:
    assert {path.name for path in LAUNCH.iterdir()} == {"slurm.sbatch", "kubernetes.yaml", "skypilot.yaml"}


# -- SLURM -------------------------------------------------------------------------------------------------------------

SRUN = """#!/bin/bash
# Two nodes of one machine, each with the words after srun's own options.
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
SLURM_NODEID=0 "$@" & one=$!
SLURM_NODEID=1 "$@" & two=$!
wait $one && wait $two
"""
SCONTROL = """#!/bin/bash
[ "$*" = "show hostnames node[1-2]" ] && printf '127.0.0.1\\n127.0.0.2\\n'
"""


def test_slurm_brings_all_ranks_of_all_nodes_together(nodes: Nodes) -> None:
    nodes.program("srun", SRUN)
    nodes.program("scontrol", SCONTROL)
    job = {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "2",
    }
    words = ["recipe with a space.toml", "--stages.1.length", "1048576"]
    told = nodes.answers([nodes.start(["bash", str(LAUNCH / "slurm.sbatch"), *words], **job)])
    assert [rank["total"] for rank in told] == [1 + 2 + 3 + 4] * 4
    assert sorted(rank["local"] for rank in told) == [0, 0, 1, 1]
    assert all(rank["words"] == ["train", *words] for rank in told)


def test_slurm_options_stand_before_the_first_command() -> None:
    """Where sbatch stops reading them; bash can read the whole."""
    subprocess.run(["bash", "-n", str(LAUNCH / "slurm.sbatch")], check=True)
    lines = (LAUNCH / "slurm.sbatch").read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line and not line.startswith("#"))
    options = {number: line for number, line in enumerate(lines) if line.startswith("#SBATCH")}
    assert options
    assert max(options) < first
    assert all("  " not in line and "# " not in line[1:] for line in options.values()), "sbatch has no comments there"


# -- Kubernetes --------------------------------------------------------------------------------------------------------

# Fields that the examples may use, with their types, out of the published definitions. Source: trainjobs and
# trainingruntimes of kubeflow/trainer, version v1alpha1 (manifests/base/crds, commit 8c0f5059b).
META = {"name": str, "labels": {str: str}}
CONTAINER = {
    "name": str,
    "image": str,
    "workingDir": str,
    "command": [str],
    "args": [str],
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly": bool, "subPath": str}],
}
VOLUME = {
    "name": str,
    "persistentVolumeClaim": {"claimName": str, "readOnly": bool},
    "emptyDir": {"medium": str, "sizeLimit": str},
}
POD = {"containers": [CONTAINER], "volumes": [VOLUME], "nodeSelector": {str: str}, "restartPolicy": str}
JOB = {"metadata": META, "spec": {"template": {"metadata": META, "spec": POD}, "backoffLimit": int}}
TOP = {"apiVersion": str, "kind": str, "metadata": META}
RUNTIME = TOP | {
    "spec": {
        "mlPolicy": {"numNodes": int, "torch": {}},
        "podGroupPolicy": {},
        "template": {"spec": {"replicatedJobs": [{"name": str, "replicas": int, "template": JOB}]}},
    }
}
TRAIN_JOB = TOP | {
    "spec": {
        "runtimeRef": {"apiGroup": str, "kind": str, "name": str},
        "trainer": {
            "numNodes": int,
            "numProcPerNode": int,
            "image": str,
            "command": [str],
            "args": [str],
            "env": [{"name": str, "value": str}],
            "resourcesPerNode": {"limits": {str: (str, int)}, "requests": {str: (str, int)}},
        },
        "suspend": bool,
        "activeDeadlineSeconds": int,
    }
}


def check(value: Any, schema: Any, where: str = "") -> None:
    """Every field is known and of its type."""
    if isinstance(schema, dict):
        assert isinstance(value, dict), where
        for key, inner in value.items():
            assert key in schema or (str in schema and isinstance(key, str)), f"{where}.{key}"
            check(inner, schema.get(key, schema.get(str)), f"{where}.{key}")
    elif isinstance(schema, list):
        assert isinstance(value, list), where
        for number, inner in enumerate(value):
            check(inner, schema[0], f"{where}.{number}")
    else:
        assert isinstance(value, schema), where
        assert not isinstance(value, bool) or schema is bool, where


def test_kubernetes_reads_every_field() -> None:
    runtime, job = documents("kubernetes.yaml")
    check(runtime, RUNTIME)
    check(job, TRAIN_JOB)
    assert runtime["apiVersion"] == job["apiVersion"] == "trainer.kubeflow.org/v1alpha1"
    assert (runtime["kind"], job["kind"]) == ("TrainingRuntime", "TrainJob")
    reference = job["spec"]["runtimeRef"]
    assert (reference["kind"], reference["name"]) == (runtime["kind"], runtime["metadata"]["name"])
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    # Without this label and this name the trainer's words would reach no container.
    assert replicated["template"]["metadata"]["labels"] == {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    pod = replicated["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert replicated["name"] == container["name"] == "node"
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    trainer = job["spec"]["trainer"]
    assert trainer["numProcPerNode"] == trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"]


@pytest.mark.parametrize("fault", ["a word too many", "a text for a number", "another name"])
def test_a_wrong_field_is_seen(fault: str) -> None:
    _, job = documents("kubernetes.yaml")
    trainer = job["spec"]["trainer"]
    if fault == "a word too many":
        trainer["numGpus"] = 8
    elif fault == "a text for a number":
        trainer["numNodes"] = "2"
    else:
        trainer["argz"] = trainer.pop("args")
    with pytest.raises(AssertionError, match=r"\.spec\.trainer\.(numGpus|numNodes|argz)"):
        check(job, TRAIN_JOB)


def test_kubernetes_pods_meet(nodes: Nodes) -> None:
    """With the variables that the trainer sets in each pod."""
    trainer = documents("kubernetes.yaml")[1]["spec"]["trainer"]
    given = {"PET_NNODES": "2", "PET_NPROC_PER_NODE": "1", "PET_MASTER_ADDR": "127.0.0.1"}
    given["PET_MASTER_PORT"] = str(free_port())
    words = [*trainer["command"], *trainer["args"]]
    told = nodes.answers([nodes.start(words, **given, PET_NODE_RANK=str(rank)) for rank in range(2)])
    assert [(rank["total"], rank["words"]) for rank in told] == [(3.0, ["train", "recipe.toml"])] * 2


# -- SkyPilot ----------------------------------------------------------------------------------------------------------

# Source: get_task_schema, resources and storage of skypilot-org/skypilot, sky/utils/schemas.py (commit 00052dfe0).
TASK = {
    "name": str,
    "num_nodes": int,
    "workdir": str,
    "setup": str,
    "run": str,
    "envs": {str: str},
    "resources": {"accelerators": str, "infra": str, "use_spot": bool, "disk_size": int, "network_tier": str},
    "file_mounts": {str: {"name": str, "source": str, "store": str, "mode": str, "persistent": bool}},
}


def test_skypilot_reads_every_field() -> None:
    (task,) = documents("skypilot.yaml")
    check(task, TASK)
    assert all(mount["mode"] in ("MOUNT", "COPY", "MOUNT_CACHED") for mount in task["file_mounts"].values())
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)
    assert "/shared" in task["file_mounts"]


def test_skypilot_nodes_meet(nodes: Nodes) -> None:
    """Its own words but for the folder and the environment, which are not here, and the port."""
    (task,) = documents("skypilot.yaml")
    script = task["run"].replace("source .venv/bin/activate\ncd /shared\n", "").replace("29500", str(free_port()))
    assert script.startswith("torchrun")
    given = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "1", "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2"}
    told = nodes.answers(
        [nodes.start(["bash", "-c", script], **given, SKYPILOT_NODE_RANK=str(rank)) for rank in range(2)]
    )
    assert [(rank["total"], rank["words"]) for rank in told] == [(3.0, ["train", "recipe.toml"])] * 2
