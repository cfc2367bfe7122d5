"""Downloads from a server of our own on 127.0.0.1, which can resume, refuse and break off."""

import hashlib
import io
import sqlite3
import sys
import tarfile
import threading
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import file_size_limit

from pyscf_deqh import DatasetError, OutputError
from pyscf_deqh.data.__main__ import main
from pyscf_deqh.data.make import download as module
from pyscf_deqh.data.make.download import DATASETS, Published, download, fetch


class Server(ThreadingHTTPServer):
    files: dict[str, bytes]
    ranges: list
    resumes = True
    break_off_at = None  # bytes after which the connection ends


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        asked = self.headers.get("Range")
        self.server.ranges.append(asked)
        content = self.server.files.get(self.path)
        if content is None:
            return self.send_error(404)
        start = int(asked[6:-1]) if asked and self.server.resumes else 0
        if start and start >= len(content):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            self.send_header("Content-Length", "0")
            return self.end_headers()
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.server.break_off_at])

    def log_message(self, *args):
        pass


def database_bytes(folder):
    connection = sqlite3.connect(folder / "source.db")
    connection.execute("CREATE TABLE systems (id INTEGER)")
    connection.commit()
    connection.close()
    return (folder / "source.db").read_bytes()


def packed(name, content):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def damaged(archive):
    """In the data of its one file, which are compressed."""
    middle = len(archive) // 2
    return archive[:middle] + b"\xff" * 64 + archive[middle + 64 :]


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server with small.tgz, known as the data set 'small'."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    content = database_bytes(tmp_path)
    server = Server(("127.0.0.1", 0), Handler)
    server.files, server.ranges = {"/small.tgz": packed("inside/small.db", content)}, []
    server.url = f"http://127.0.0.1:{server.server_port}/small.tgz"
    monkeypatch.setitem(DATASETS, "small", Published(server.url, "small.db"))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_download_unpacks_and_records(server, tmp_path, capsys):
    assert main(["download", "small", "--out", str(tmp_path / "out")]) == 0
    database = tmp_path / "out" / "small.db"
    assert capsys.readouterr().out.strip() == str(database)
    assert database.read_bytes() == (tmp_path / "source.db").read_bytes()
    for name in ("small.db", "small.tgz"):
        content = (tmp_path / "out" / name).read_bytes()
        recorded = (tmp_path / "out" / f"{name}.sha256").read_text()
        assert recorded == f"{hashlib.sha256(content).hexdigest()}  {name}\n"
    # A second call fetches nothing, also when the archive has been removed.
    (tmp_path / "out" / "small.tgz").unlink()
    assert download("small", tmp_path / "out", progress=False) == database
    assert server.ranges == [None]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "small.db", "small.db.sha256", "small.tgz.sha256",
    ]  # fmt: skip


def test_truncated_part_is_resumed(server, tmp_path):
    whole, target = server.files["/small.tgz"], tmp_path / "small.tgz"
    (tmp_path / "small.tgz.part").write_bytes(whole[:40])
    fetch(server.url, target, progress=False)
    assert server.ranges == ["bytes=40-"]
    assert target.read_bytes() == whole
    assert not (tmp_path / "small.tgz.part").exists()


def test_complete_part_is_taken(server, tmp_path):
    whole = server.files["/small.tgz"]
    (tmp_path / "small.tgz.part").write_bytes(whole)
    fetch(server.url, tmp_path / "small.tgz", progress=False)
    assert (tmp_path / "small.tgz").read_bytes() == whole
    (tmp_path / "b.tgz.part").write_bytes(whole + b"more")
    with pytest.raises(DatasetError, match=r"HTTP 416.*delete .*b\.tgz\.part"):
        fetch(server.url, tmp_path / "b.tgz", progress=False)


def test_server_that_cannot_resume(server, tmp_path):
    server.resumes = False
    (tmp_path / "small.tgz.part").write_bytes(b"something else")
    fetch(server.url, tmp_path / "small.tgz", progress=False)
    assert (tmp_path / "small.tgz").read_bytes() == server.files["/small.tgz"]


def test_broken_connection(server, tmp_path):
    server.break_off_at = 50
    with pytest.raises(DatasetError, match=r"run the same command again"):
        download("small", tmp_path, progress=False)
    assert (tmp_path / "small.tgz.part").stat().st_size == 50
    server.break_off_at = None
    assert download("small", tmp_path, progress=False).exists()
    assert server.ranges == [None, "bytes=50-"]


def test_full_disk(server, tmp_path):
    """While the archive comes, and while it is unpacked."""
    size = len(server.files["/small.tgz"])
    for limit, name in ((50, "small.tgz.part"), (size + 50, "small.db")):
        with file_size_limit(limit), pytest.raises(OutputError, match=rf"{name}: .*same command"):
            download("small", tmp_path / "out", progress=False)
    database = download("small", tmp_path / "out", progress=False)
    assert database.read_bytes() == (tmp_path / "source.db").read_bytes()
    assert server.ranges == [None, "bytes=50-"]


def test_altered_files_are_refused(server, tmp_path, capsys):
    database = download("small", tmp_path, progress=False)
    with open(database, "ab") as handle:
        handle.write(b"x")
    assert main(["download", "small", "--out", str(tmp_path)]) == 2
    assert "small.db is not what was downloaded" in capsys.readouterr().err
    database.unlink()
    (tmp_path / "small.tgz").write_bytes(b"other")
    with pytest.raises(DatasetError, match=r"small\.tgz is not what was downloaded"):
        download("small", tmp_path, progress=False)


def test_refusals(server, tmp_path):
    with pytest.raises(DatasetError, match=r"127\.0\.0\.1.*HTTP 404"):
        fetch(server.url + "x", tmp_path / "a", progress=False)
    with pytest.raises(DatasetError, match="no data set 'qm9'; there are qh9-stable"):
        download("qm9", tmp_path)
    server.shutdown()
    server.server_close()
    with pytest.raises(DatasetError, match=r"127\.0\.0\.1"):
        fetch(server.url, tmp_path / "a", progress=False)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (b"no archive", "cannot unpack"),
        (packed("../evil.db", b"x"), "cannot unpack"),
        (packed("readme.txt", b"x"), "holds 0 databases"),
        (packed("small.db", b"<html>"), "not a database"),
        (damaged(packed("small.db", bytes(range(256)) * 4000)), "cannot unpack"),
    ],
    # Names of their own: an archive's bytes hold the second in which it was made.
    ids=["no archive", "outside the folder", "no database", "a web page", "damaged"],
)
def test_bad_archives(server, tmp_path, archive, message):
    server.files["/small.tgz"] = archive
    with pytest.raises(DatasetError, match=message):
        download("small", tmp_path / "out", progress=False)
    assert not (tmp_path / "evil.db").exists()
    assert not list((tmp_path / "out").glob(".unpacking-*"))


# Google Drive


def test_gdown_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(DatasetError) as caught:
        download("qh9-stable", tmp_path, progress=False)
    assert "1LcEJGhB8VUGkuyb0oQ_9ANJdSkky9xMS" in str(caught.value)
    assert str(tmp_path / "QH9Stable.db") in str(caught.value)
    # A file put there by hand is taken.
    (tmp_path / "QH9Stable.db").write_bytes(database_bytes(tmp_path))
    assert download("qh9-stable", tmp_path, progress=False) == tmp_path / "QH9Stable.db"
    assert (tmp_path / "QH9Stable.db.sha256").exists()


def test_drive_by_gdown(tmp_path, monkeypatch):
    def give(content):
        def stand_in(id, output, quiet, resume):
            assert id == "1SNWk0GD6Nt96qNAJJU2uedwWDQ4bbB1w"
            assert output.endswith("QH9Dynamic_100k.db.part")
            assert resume
            if content is not None:
                with open(output, "wb") as handle:
                    handle.write(content)
                return output
            return None

        monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=stand_in))
        return download("qh9-dynamic-100k", tmp_path / "out", progress=False)

    with pytest.raises(DatasetError, match="Google Drive did not give"):
        give(None)
    with pytest.raises(DatasetError, match="not a database; perhaps it is a web page"):
        give(b"<html>quota exceeded</html>")
    (tmp_path / "out" / "QH9Dynamic_100k.db").unlink()
    assert give(database_bytes(tmp_path)).exists()


def test_addresses():
    assert module.DATASETS["md17-ethanol"].url == (
        "http://quantum-machine.org/data/schnorb_hamiltonian/schnorb_hamiltonian_ethanol_dft.tgz"
    )
    assert sum(source.drive for source in DATASETS.values()) == 3
