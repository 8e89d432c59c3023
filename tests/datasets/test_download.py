"""Downloads from a web server on this machine that breaks off, lies and refuses."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from featpipe.datasets import download
from featpipe.datasets.download import fetch
from featpipe.errors import DownloadError, UsageError

CONTENT = bytes(range(256)) * 4000  # 1 MB: several blocks
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "raw" / "file.bin"


@pytest.fixture(autouse=True)
def content(web, monkeypatch):
    web.content = CONTENT
    retries(monkeypatch, attempts=3)


def retries(monkeypatch, attempts=5, first_wait_s=0.01, timeout_s=5):
    monkeypatch.setattr(download, "ATTEMPTS", attempts)
    monkeypatch.setattr(download, "FIRST_WAIT_S", first_wait_s)
    monkeypatch.setattr(download, "TIMEOUT_S", timeout_s)


def leftovers(target):
    return sorted(path.name for path in target.parent.iterdir() if path != target)


def test_a_file_arrives_whole(web, target, listener):
    assert fetch(web.url(), target, digest=DIGEST, progress=listener) == target
    assert target.read_bytes() == CONTENT
    assert leftovers(target) == []
    assert listener.tasks == [("downloading file.bin", len(CONTENT), 0)]
    assert listener.steps == len(CONTENT)


def test_a_file_that_is_there_is_checked_and_not_fetched_again(web, target):
    target.parent.mkdir()
    target.write_bytes(CONTENT)
    fetch(web.url(), target, digest="md5:" + hashlib.md5(CONTENT).hexdigest())
    assert web.asked == []
    target.write_bytes(b"something else")
    with pytest.raises(DownloadError, match="not the one that was expected") as caught:
        fetch(web.url(), target, digest=DIGEST)
    assert f"remove {target}" in str(caught.value)
    assert target.read_bytes() == b"something else", "never deleted without being asked"


def test_a_broken_connection_is_resumed_where_it_broke(web, target, listener):
    web.faults = ["drop:300000", "drop:300000"]
    fetch(web.url(), target, digest=DIGEST, progress=listener)
    assert target.read_bytes() == CONTENT
    assert [request.get("Range") for request in web.asked] == [
        None,
        "bytes=300000-",
        "bytes=600000-",
    ]
    assert listener.tasks[-1] == ("downloading file.bin", len(CONTENT), 600000)


def test_a_line_that_breaks_often_but_moves_arrives(web, target):
    web.faults = ["drop:100000"] * 9  # three times more than the failures in a row allowed
    fetch(web.url(), target, digest=DIGEST)
    assert target.read_bytes() == CONTENT


def test_what_arrived_is_kept_for_the_next_run(web, target):
    web.faults = ["drop:300000", 503, 503, 503]
    with pytest.raises(DownloadError, match="failed") as caught:
        fetch(web.url(), target, digest=DIGEST)
    assert "503" in str(caught.value)
    assert "--data DIR" in str(caught.value)
    assert not target.exists()
    assert "file.bin.part" in leftovers(target)
    fetch(web.url(), target, digest=DIGEST)
    assert target.read_bytes() == CONTENT
    assert web.asked[-1]["Range"] == "bytes=300000-"
    assert leftovers(target) == []


def test_an_interruption_by_the_user_keeps_what_arrived(web, target):
    class Impatient:
        def task(self, *args, **kwargs):
            return self

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def advance(self, steps=1, **facts):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(web.url(), target, digest=DIGEST, progress=Impatient())
    assert not target.exists()
    fetch(web.url(), target, digest=DIGEST)
    assert target.read_bytes() == CONTENT
    assert int(web.asked[-1]["Range"].strip("bytes=-")) > 0


def test_a_file_that_changed_on_the_server_is_fetched_from_the_top(web, target):
    web.faults = ["drop:300000", 503, 503, 503]
    with pytest.raises(DownloadError):
        fetch(web.url(), target)
    web.content, web.etag = CONTENT[::-1], '"v2"'
    fetch(web.url(), target)
    assert target.read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("fault", ["no range", "wrong range"])
def test_a_server_that_ignores_or_mistakes_the_range(web, target, fault):
    web.faults = ["drop:300000", fault]
    fetch(web.url(), target, digest=DIGEST)
    assert target.read_bytes() == CONTENT


def test_without_a_version_of_the_file_nothing_is_resumed(web, target):
    """Halves of two versions would make a file that was never published."""
    web.etag = None
    web.faults = ["drop:300000"]
    fetch(web.url(), target)
    assert target.read_bytes() == CONTENT
    assert "Range" not in web.asked[-1]


def test_a_part_that_is_complete_already(web, target):
    """Killed between the last byte and the renaming."""
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(CONTENT)
    note = {"url": web.url(), "validator": web.etag, "total": len(CONTENT)}
    target.with_name("file.bin.part.json").write_text(json.dumps(note))
    fetch(web.url(), target, digest=DIGEST)
    assert target.read_bytes() == CONTENT
    assert web.asked == []


def test_a_part_that_is_longer_than_the_file(web, target):
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(CONTENT + b"more")
    note = {"url": web.url(), "validator": web.etag, "total": None}
    target.with_name("file.bin.part.json").write_text(json.dumps(note))
    fetch(web.url(), target, digest=DIGEST)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("note", ["not json", "[]", '{"url": "http://elsewhere/x"}'])
def test_a_part_of_unknown_origin_is_not_continued(web, target, note):
    target.parent.mkdir()
    target.with_name("file.bin.part").write_bytes(b"foreign")
    target.with_name("file.bin.part.json").write_text(note)
    fetch(web.url(), target, digest=DIGEST)
    assert target.read_bytes() == CONTENT


def test_a_wrong_checksum(web, target):
    with pytest.raises(DownloadError, match="not the one that was expected") as caught:
        fetch(web.url(), target, digest="sha256:" + "0" * 64)
    assert DIGEST in str(caught.value), "says what came"
    assert not target.exists()
    assert leftovers(target) == [], "a wrong beginning is not resumed"


def test_a_server_that_does_not_say_how_long_the_file_is(web, target):
    web.faults = ["no length"]
    fetch(web.url(), target, digest=DIGEST)
    assert target.read_bytes() == CONTENT


def test_a_place_that_cannot_be_written(web, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="cannot be stored there") as caught:
        fetch(web.url(), tmp_path / "file" / "below.bin")
    assert str(tmp_path / "file") in str(caught.value)
    assert web.asked == []


def test_the_first_digits_of_a_checksum_suffice(web, target):
    web.content = CONTENT
    assert fetch(web.url(), target, digest=DIGEST[:15]).read_bytes() == CONTENT


def test_a_file_that_cannot_fit_is_refused_before_it_is_fetched(web, target):
    web.faults = [f"claim:{10**17}"]
    with pytest.raises(DownloadError, match="not enough space") as caught:
        fetch(web.url(), target)
    assert "100,000,000,000 MB free" in str(caught.value)


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refusal_is_not_tried_again(web, target, status):
    web.faults = [status] * 5
    with pytest.raises(DownloadError, match="refuses") as caught:
        fetch(web.url(), target)
    assert str(status) in str(caught.value)
    assert len(web.asked) == 1


def test_a_busy_server_is_asked_again_after_a_pause(web, target, monkeypatch):
    retries(monkeypatch, first_wait_s=0.1)
    web.faults = [503, 429]
    begun = time.monotonic()
    fetch(web.url(), target)
    assert time.monotonic() - begun >= 0.1 + 0.2
    assert target.read_bytes() == CONTENT


def test_no_server_at_all(web, target):
    with pytest.raises(DownloadError, match="failed") as caught:
        fetch("http://127.0.0.1:9/file.bin", target)
    assert "127.0.0.1:9" in str(caught.value)
    assert not target.exists()


def test_a_machine_without_a_network_says_so_at_once(web, target, monkeypatch):
    retries(monkeypatch, first_wait_s=60)
    begun = time.monotonic()
    with pytest.raises(DownloadError, match="failed") as caught:
        fetch("http://dataset.invalid/file.bin", target)
    assert time.monotonic() - begun < 30
    assert "--data DIR" in str(caught.value)
    assert leftovers(target) == []


def test_a_server_that_falls_silent(target, monkeypatch):
    retries(monkeypatch, attempts=2, timeout_s=0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/file.bin"
        with pytest.raises(DownloadError, match="failed"):
            fetch(url, target)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://host/x", "data:,x", "/etc/passwd"])
def test_only_the_web_is_downloaded_from(url, target):
    with pytest.raises(UsageError, match="http"):
        fetch(url, target)


def test_the_proxy_of_the_environment_is_used(web, target, monkeypatch):
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{web.port}")
    monkeypatch.setenv("no_proxy", "")
    fetch("http://dataset.invalid/file.bin", target, digest=DIGEST)
    assert web.asked[0]["path"] == "http://dataset.invalid/file.bin"


@pytest.mark.skipif(sys.platform == "win32", reason="no locks there: the digest decides")
def test_two_processes_do_not_write_into_one_part(web, target):
    target.parent.mkdir()
    part = target.with_name("file.bin.part")
    script = (
        "import fcntl, sys\n"
        "with open(sys.argv[1], 'ab') as part:\n"
        "    fcntl.flock(part, fcntl.LOCK_EX); print('locked', flush=True); sys.stdin.read()\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(part)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(DownloadError, match="Another process"):
            fetch(web.url(), target)
        assert part.read_bytes() == b""
    finally:
        other.communicate("")
    fetch(web.url(), target)
    assert target.read_bytes() == CONTENT


def test_many_files_at_once(web, tmp_path):
    targets = [tmp_path / f"{number}.bin" for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda target: fetch(web.url(target.name), target, digest=DIGEST), targets))
    assert all(Path(target).read_bytes() == CONTENT for target in targets)
