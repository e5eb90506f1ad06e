"""The page opens in a real browser, which is asked to load whatever the page wants and wants nothing."""

import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from report_samples import report

from longspan.report.page import write_report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
LEAK = """<img src="/leak"><script>fetch("/leak")</script><link rel="stylesheet" href="/leak"><iframe src="/leak">"""

pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium on this machine (Debian: apt-get install chromium)"
)


@contextmanager
def serving(page: bytes) -> Iterator[tuple[str, list[str]]]:
    """Serve one page on this machine; the list grows with every address that is asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/page", asked
        server.shutdown()


def document(address: str, profile: Path) -> str:
    """What the browser made of the page, as HTML."""
    command = [
        BROWSER,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--no-first-run",
        "--disable-background-networking",
    ]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=2000", "--dump-dom", address]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


def test_page_opens_from_the_disk(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", report(title="opened from disk"))
    made = document((tmp_path / "report.html").as_uri(), tmp_path / "profile")
    assert "<h1>opened from disk</h1>" in made
    assert made.count("<svg") >= 7
    assert "27/30" in made


def test_page_asks_for_nothing_even_when_its_texts_are_hostile(tmp_path: Path) -> None:
    write_report(tmp_path / "report.html", report(title=LEAK, recipe={LEAK: LEAK}, notes=(LEAK,), model={LEAK: LEAK}))
    with serving((tmp_path / "report.html").read_bytes()) as (address, asked):
        made = document(address, tmp_path / "profile")
    assert "fetch(" in made  # shown as text
    assert asked == ["/page"]


def test_the_watch_sees_what_a_page_asks_for(tmp_path: Path) -> None:
    with serving(b"<!doctype html><title>t</title><img src='/leak'>") as (address, asked):
        document(address, tmp_path / "profile")
    assert "/leak" in asked
