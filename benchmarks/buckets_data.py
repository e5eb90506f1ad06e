"""The tokens that benchmarks/buckets_gpu.py trains on: a sample of text files, tokenized and packed into one archive.

    python benchmarks/buckets_data.py --source FOLDER … --to runs/buckets.tar.xz

Files are taken by the hash of their names, so that the sample has the lengths that the folders have. A tokenizer is
trained on them; some documents are held out. 72 MB of text give about 20 million tokens and an archive below 25 MB.
"""

import argparse
import hashlib
import json
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from longspan.data.build import build_stores
from longspan.data.settings import DataSettings
from longspan.data.tokenize import separator_id, train_tokenizer


def chosen_files(folders: Sequence[Path], *, most_bytes: int, longest_bytes: int) -> Iterator[tuple[str, str]]:
    """Names and texts of files in an order by the hash of their names, up to so many bytes in all and in each."""
    found = [(folder, path) for folder in folders for path in folder.rglob("*") if path.is_file()]
    named = [(f"{folder.name}/{path.relative_to(folder).as_posix()}", path) for folder, path in found]
    named.sort(key=lambda entry: hashlib.sha256(entry[0].encode()).digest())
    total = 0
    for name, path in named:
        try:
            text = path.read_text(encoding="utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        size_bytes = len(text.encode())
        if size_bytes > min(longest_bytes, most_bytes - total) or "\0" in text:
            continue
        total += size_bytes
        yield name, text


def pack(given: argparse.Namespace) -> None:
    """Both stores of a sample of files, and how they came about, in one archive."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        texts = list(chosen_files(given.source, most_bytes=given.most_bytes, longest_bytes=given.longest_bytes))
        lines = (json.dumps({"id": name, "text": text}) for name, text in texts)
        (folder / "texts.jsonl").write_text("\n".join(lines), encoding="utf-8")
        tokenizer = train_tokenizer((text for _, text in texts[::4]), vocabulary=given.vocabulary)
        value = {"sources": [{"path": str(folder / "texts.jsonl")}], "held_out_share": given.held_out_share}
        stores = build_stores(
            folder / "tokens",
            DataSettings.model_validate_json(json.dumps(value)),
            tokenizer=tokenizer,
            vocabulary=given.vocabulary,
            separator=separator_id(tokenizer),
        )
        (folder / "tokens" / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
        given.to.parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(given.to, "w:xz") as archive:
            archive.add(folder / "tokens", arcname="tokens")
        lengths = stores.train.lengths
        print(
            f"{given.to}: {given.to.stat().st_size:,} bytes; {stores.train.tokens:,} tokens in {len(lengths):,} "
            f"documents, median {int(np.median(lengths)):,}, longest {int(lengths.max()):,}; "
            f"{len(stores.held_out):,} held out with {stores.held_out.tokens:,} tokens"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, action="append", required=True, help="a folder with text files")
    parser.add_argument("--to", type=Path, default=Path("runs/buckets.tar.xz"))
    parser.add_argument("--most-bytes", type=int, default=72_000_000, help="of text")
    parser.add_argument("--longest-bytes", type=int, default=2**30, help="of a file: longer ones are left out")
    parser.add_argument("--held-out-share", type=float, default=0.02, help="of documents")
    parser.add_argument("--vocabulary", type=int, default=8_192)
    pack(parser.parse_args())


if __name__ == "__main__":
    main()
