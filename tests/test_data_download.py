from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

SCRIPT = Path(__file__).parent.parent / "download_data.sh"

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("bash", "curl", "unzip", "python3"))), reason="needs bash, curl, unzip and python3"
)


class Mirror(ThreadingHTTPServer):
    """Files by path, with ranges; `cut` ends the connection after so many bytes of a file."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.cut: dict[str, int] = {}
        self.ranges = True
        self.asked: list[tuple[str, str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def got(self, suffix: str) -> list[str]:
        """The Range headers ("" for none) of the GET requests for a path."""
        return [ranged for method, path, ranged in self.asked if method == "GET" and path.endswith(suffix)]


class _Handler(BaseHTTPRequestHandler):
    server: Mirror

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(self.path if self.path in self.server.files else urlsplit(self.path).path)
        ranged = self.headers.get("Range", "")
        self.server.asked.append((self.command, path, ranged))
        data = self.server.files.get(path)
        if data is None:
            self.send_error(404)
            return
        start = int(ranged.removeprefix("bytes=").split("-")[0]) if ranged and self.server.ranges else 0
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if path in self.server.links:
            self.send_header("Link", f'<{self.server.url}{self.server.links[path]}>; rel="next"')
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            self.wfile.write(data[start : self.server.cut.pop(path, len(data))])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    server = Mirror()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def run(mirror: Mirror, folder: Path, *arguments: str, attempts: int = 1) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "VQA_URL": f"{mirror.url}/vqa",
        "COCO_URL": f"{mirror.url}/coco",
        "HF_ENDPOINT": mirror.url,
        "ATTEMPTS": str(attempts),
    }
    command = ["bash", str(SCRIPT), "--dir", str(folder), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def serve_vqav2(mirror: Mirror) -> None:
    for part in ("Train", "Val"):
        name = part.lower()
        questions = f"v2_OpenEnded_mscoco_{name}2014_questions.json"
        mirror.files[f"/vqa/v2_Questions_{part}_mscoco.zip"] = zipped({questions: b"{}"})
        annotations = f"v2_mscoco_{name}2014_annotations.json"
        mirror.files[f"/vqa/v2_Annotations_{part}_mscoco.zip"] = zipped({annotations: b"{}"})
        images = {f"{name}2014/COCO_{name}2014_{number:012d}.jpg": os.urandom(20_000) for number in range(3)}
        mirror.files[f"/coco/{name}2014.zip"] = zipped(images)


def listing(mirror: Mirror, repository: str, files: dict[str, bytes], *, pages: int = 1) -> None:
    base = f"/api/datasets/{repository}/tree/main"
    items = [{"type": "file", "path": path, "size": len(data)} for path, data in files.items()]
    items.append({"type": "directory", "path": "data", "size": 0})
    share = -(-len(items) // pages)
    for page in range(pages):
        path = f"{base}?recursive=true&cursor={page}" if page else base
        mirror.files[path] = json.dumps(items[page * share : (page + 1) * share]).encode()
        if page + 1 < pages:
            mirror.links[path] = f"{base}?recursive=true&cursor={page + 1}"
    for path, data in files.items():
        mirror.files[f"/datasets/{repository}/resolve/main/{path}"] = data


def test_vqav2_lands_where_the_guide_expects_it(mirror: Mirror, tmp_path: Path) -> None:
    serve_vqav2(mirror)
    done = run(mirror, tmp_path, "vqav2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "vqav2" / "v2_OpenEnded_mscoco_train2014_questions.json").is_file()
    assert (tmp_path / "vqav2" / "v2_mscoco_val2014_annotations.json").is_file()
    assert len(list((tmp_path / "vqav2" / "images" / "train2014").glob("COCO_train2014_*.jpg"))) == 3
    assert not list(tmp_path.rglob("*.zip")) and not list(tmp_path.rglob("*.part"))

    mirror.asked.clear()
    again = run(mirror, tmp_path, "vqav2")
    assert again.returncode == 0
    assert not [path for method, path, _ in mirror.asked if method == "GET"]
    assert again.stdout.count("have") == 6


def test_a_cut_download_goes_on_where_it_stopped(mirror: Mirror, tmp_path: Path) -> None:
    serve_vqav2(mirror)
    mirror.cut["/coco/train2014.zip"] = 30_000
    first = run(mirror, tmp_path, "vqav2")
    assert first.returncode == 1
    assert "run this again" in first.stderr
    assert (tmp_path / "vqav2" / "images" / "train2014.zip.part").stat().st_size == 30_000
    assert not (tmp_path / "vqav2" / "images" / "train2014").exists()

    second = run(mirror, tmp_path, "vqav2")
    assert second.returncode == 0, second.stderr
    assert mirror.got("train2014.zip") == ["", "bytes=30000-"]
    assert len(list((tmp_path / "vqav2" / "images" / "train2014").iterdir())) == 3


@pytest.mark.slow
def test_a_cut_download_is_tried_again_by_itself(mirror: Mirror, tmp_path: Path) -> None:
    listing(mirror, "rootsautomation/ScreenSpot", {"data/test-00000-of-00001.parquet": os.urandom(50_000)})
    path = "/datasets/rootsautomation/ScreenSpot/resolve/main/data/test-00000-of-00001.parquet"
    mirror.cut[path] = 20_000
    done = run(mirror, tmp_path, "screenspot", attempts=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "screenspot" / "data" / "test-00000-of-00001.parquet").read_bytes() == mirror.files[path]
    assert mirror.got("test-00000-of-00001.parquet") == ["", "bytes=20000-"]


def test_a_complete_part_is_taken_without_asking_again(mirror: Mirror, tmp_path: Path) -> None:
    data = os.urandom(5_000)
    listing(mirror, "rootsautomation/ScreenSpot", {"data/test.parquet": data})
    (tmp_path / "screenspot" / "data").mkdir(parents=True)
    (tmp_path / "screenspot" / "data" / "test.parquet.part").write_bytes(data)
    done = run(mirror, tmp_path, "screenspot")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "screenspot" / "data" / "test.parquet").read_bytes() == data
    assert not mirror.got("test.parquet")


@pytest.mark.slow
def test_a_server_without_ranges_starts_over(mirror: Mirror, tmp_path: Path) -> None:
    listing(mirror, "rootsautomation/ScreenSpot", {"data/test.parquet": os.urandom(50_000)})
    mirror.ranges = False
    path = "/datasets/rootsautomation/ScreenSpot/resolve/main/data/test.parquet"
    mirror.cut[path] = 20_000
    done = run(mirror, tmp_path, "screenspot", attempts=3)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "screenspot" / "data" / "test.parquet").read_bytes() == mirror.files[path]


def test_a_file_of_another_size_is_not_accepted(mirror: Mirror, tmp_path: Path) -> None:
    listing(mirror, "rootsautomation/ScreenSpot", {"data/test.parquet": b"x" * 1000})
    mirror.files["/datasets/rootsautomation/ScreenSpot/resolve/main/data/test.parquet"] = b"x" * 900
    done = run(mirror, tmp_path, "screenspot")
    assert done.returncode == 1
    assert "900 of 1000 bytes" in done.stderr
    assert not (tmp_path / "screenspot" / "data" / "test.parquet").exists()


def test_a_damaged_archive_is_removed(mirror: Mirror, tmp_path: Path) -> None:
    serve_vqav2(mirror)
    mirror.files["/vqa/v2_Questions_Train_mscoco.zip"] = b"not a zip file"
    done = run(mirror, tmp_path, "vqav2")
    assert done.returncode == 1
    assert "damaged" in done.stderr
    assert not list(tmp_path.rglob("*.zip"))


def test_pro_lists_all_pages_and_keeps_folders(mirror: Mirror, tmp_path: Path) -> None:
    files = {
        "annotations/blender_windows.json": b"[]",
        "images/blender_windows/screenshot 1.png": b"png1",
        "images/blender_windows/b.png": b"png2",
        "README.md": b"no",
    }
    listing(mirror, "likaixin/ScreenSpot-Pro", files, pages=2)
    done = run(mirror, tmp_path, "screenspot-pro")
    assert done.returncode == 0, done.stderr
    base = tmp_path / "screenspot-pro"
    found = sorted(str(path.relative_to(base)) for path in base.rglob("*") if path.is_file())
    assert found == sorted(set(files) - {"README.md"})


def test_v2_unpacks_its_pictures(mirror: Mirror, tmp_path: Path) -> None:
    archive = zipped({"screenspotv2_image/pc_1.png": b"png"})
    listing(
        mirror, "OS-Copilot/ScreenSpot-v2", {"screenspot_desktop_v2.json": b"[]", "screenspotv2_image.zip": archive}
    )
    done = run(mirror, tmp_path, "screenspot-v2", "--keep-archives")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "screenspot-v2" / "screenspotv2_image" / "pc_1.png").read_bytes() == b"png"
    assert (tmp_path / "screenspot-v2" / "screenspotv2_image.zip").exists()


def test_dry_run_fetches_nothing_and_adds_up(mirror: Mirror, tmp_path: Path) -> None:
    serve_vqav2(mirror)
    mirror.files["/coco/train2014.zip"] = b"x" * 2_000_000
    mirror.files["/coco/val2014.zip"] = b"x" * 1_000_000
    done = run(mirror, tmp_path, "--dry-run", "vqav2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("fetch ") == 6
    assert "train2014.zip (2.0 MB)" in done.stdout
    assert "to fetch: 3.0 MB; disk needed: 5.0 MB" in done.stdout
    assert not mirror.got("")
    assert not list(tmp_path.iterdir())


def test_dry_run_works_without_network(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files.clear()
    done = run(mirror, tmp_path, "--dry-run", "vqav2", "screenspot")
    assert done.returncode == 0
    assert "train2014.zip (13.5 GB)" in done.stdout
    assert "size unknown" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ms-cxr"], "PhysioNet"),
        (["vindr-cxr"], "PhysioNet"),
        (["coco"], "unknown set coco"),
        (["--quick", "vqav2"], "unknown option"),
        ([], "error: name one set or more"),
    ],
)
def test_accounts_and_usage_exit_with_2(arguments: list[str], message: str, mirror: Mirror, tmp_path: Path) -> None:
    done = run(mirror, tmp_path, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
