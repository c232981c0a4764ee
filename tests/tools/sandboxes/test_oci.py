import gzip
import hashlib
import importlib.util
import io
import json
import os
import platform
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from palestra.tools.sandboxes.oci import (
    ImageConfig,
    read_image_config,
    rootfs_from_image,
    unpack_image,
)

MACHINE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())

# An entry of a layer: its header, and its contents if it has any.
Entry = tuple[tarfile.TarInfo, bytes]


def entry(name: str, data: bytes = b"", **fields: Any) -> Entry:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    info.mode = 0o644
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def folder_entry(name: str, mode: int = 0o755) -> Entry:
    return entry(name, type=tarfile.DIRTYPE, mode=mode)


def link(name: str, target: str) -> Entry:
    return entry(name, type=tarfile.SYMTYPE, linkname=target)


def hard_link(name: str, target: str) -> Entry:
    return entry(name, type=tarfile.LNKTYPE, linkname=target)


def layer(*entries: Entry) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, data in entries:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def config_of(layers: Sequence[bytes], architecture: str = MACHINE) -> bytes:
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/bin:/bin", "FLAGS=-a=1"],
            "WorkingDir": "/srv",
            "Entrypoint": ["/bin/tool"],
            "Cmd": None,
            "User": "app:app",
        },
        "rootfs": {"type": "layers", "diff_ids": [digest_of(data) for data in layers]},
    }
    return json.dumps(config).encode()


def write_layout(
    folder: Path,
    layers: Sequence[bytes],
    *,
    architecture: str = MACHINE,
    compress: Callable[[bytes], bytes] = lambda data: data,
) -> dict[str, Any]:
    """Write an OCI image layout; returns the descriptor of its manifest."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def add(data: bytes, kind: str) -> dict[str, Any]:
        digest = digest_of(data)
        (blobs / digest.partition(":")[2]).write_bytes(data)
        media_type = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    config = add(config_of(layers, architecture), "config.v1+json")
    manifest = {
        "schemaVersion": 2,
        "config": config,
        "layers": [add(compress(data), "layer.v1.tar") for data in layers],
    }
    descriptor = add(json.dumps(manifest).encode(), "manifest.v1+json")
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    write_index(folder, [descriptor])
    return descriptor


def write_index(folder: Path, descriptors: list[dict[str, Any]]) -> None:
    index = {"schemaVersion": 2, "manifests": descriptors}
    (folder / "index.json").write_text(json.dumps(index))


def pack(folder: Path, archive: Path) -> Path:
    with tarfile.open(archive, "w") as tar:
        tar.add(folder, arcname=".")
    return archive


def write_docker_save(archive: Path, layers: Sequence[bytes], config: bytes | None = None) -> Path:
    """What `docker save` wrote before it wrote OCI layouts."""
    config = config or config_of(layers)
    config_name = f"{digest_of(config).partition(':')[2]}.json"
    names = [f"layer{number}/layer.tar" for number in range(len(layers))]
    manifest = [{"Config": config_name, "RepoTags": ["a:b"], "Layers": names}]
    contents = {config_name: config, "manifest.json": json.dumps(manifest).encode()}
    contents |= dict(zip(names, layers, strict=True))
    archive.write_bytes(layer(*(entry(name, data) for name, data in contents.items())))
    return archive


def unpack(tmp_path: Path, *layers: bytes, **options: Any) -> Path:
    """The folder to which an image of these layers unpacks."""
    write_layout(tmp_path / "image", layers)
    unpack_image(tmp_path / "image", tmp_path / "root", **options)
    return tmp_path / "root"


def contents(root: Path) -> dict[str, str]:
    """Path -> text of each file, or " -> " and the target of each link."""
    found = {}
    for path in root.rglob("*"):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_text()
    return found


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Path]:
    """A folder beside the root that must stay as it is."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret").write_text("secret")
    yield folder
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"secret": "secret"}


BASE = layer(folder_entry("etc"), entry("etc/a", b"1"), entry("etc/b", b"2"), link("l", "etc/a"))
UPPER = layer(entry("etc/b", b"3"), entry("etc/.wh.a"), folder_entry("new"), entry("new/c", b"4"))
BOTH = {"etc/b": "3", "l": "-> etc/a", "new/c": "4"}
CONFIG = ImageConfig(
    env={"PATH": "/usr/bin:/bin", "FLAGS": "-a=1"},
    working_dir="/srv",
    entrypoint=("/bin/tool",),
    cmd=(),
    user="app:app",
    architecture=MACHINE,
)


def test_a_layout_folder_is_unpacked_layer_by_layer(tmp_path: Path) -> None:
    write_layout(tmp_path / "image", [BASE, UPPER])
    assert unpack_image(tmp_path / "image", tmp_path / "root") == CONFIG
    assert contents(tmp_path / "root") == BOTH


def test_a_layout_in_a_tar_is_unpacked_compressed_or_not(tmp_path: Path) -> None:
    write_layout(tmp_path / "image", [BASE, UPPER], compress=gzip.compress)
    archive = pack(tmp_path / "image", tmp_path / "image.tar")
    assert unpack_image(archive, tmp_path / "root") == CONFIG
    assert contents(tmp_path / "root") == BOTH
    compressed = tmp_path / "image.tar.gz"
    compressed.write_bytes(gzip.compress(archive.read_bytes()))
    assert unpack_image(compressed, tmp_path / "again") == CONFIG
    assert contents(tmp_path / "again") == BOTH


def test_what_docker_saves_is_unpacked(tmp_path: Path) -> None:
    archive = write_docker_save(tmp_path / "saved.tar", [BASE, UPPER])
    assert unpack_image(archive, tmp_path / "root") == CONFIG
    assert contents(tmp_path / "root") == BOTH


def test_links_between_layers_in_what_docker_saves_are_followed(tmp_path: Path) -> None:
    config = config_of([BASE, BASE])
    manifest = [{"Config": "c.json", "Layers": ["a/layer.tar", "b/layer.tar"]}]
    saved = layer(
        entry("c.json", config),
        entry("manifest.json", json.dumps(manifest).encode()),
        entry("a/layer.tar", BASE),
        link("b/layer.tar", "../a/layer.tar"),
    )
    (tmp_path / "saved.tar").write_bytes(saved)
    unpack_image(tmp_path / "saved.tar", tmp_path / "root")
    assert contents(tmp_path / "root") == {"etc/a": "1", "etc/b": "2", "l": "-> etc/a"}


def test_layers_compressed_with_zstd_are_unpacked_or_name_the_remedy(tmp_path: Path) -> None:
    # "hi\n" would do; this is an empty tar of 1024 zeros in one run-length block.
    empty = b"\x28\xb5\x2f\xfd\x60\x00\x03" + (1024 << 3 | 0b011).to_bytes(3, "little") + b"\0"
    write_layout(tmp_path / "image", [bytes(1024)], compress=lambda data: empty)
    modules = ("compression.zstd", "backports.zstd", "zstandard")
    if any(map(has_module, modules)):
        unpack_image(tmp_path / "image", tmp_path / "root")
        assert contents(tmp_path / "root") == {}
    else:
        with pytest.raises(ValueError, match="compressed with zstd: pip install zstandard"):
            unpack_image(tmp_path / "image", tmp_path / "root")


def has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def test_the_image_for_this_machine_is_chosen_from_an_index(tmp_path: Path) -> None:
    image = tmp_path / "image"
    other = write_layout(image, [UPPER], architecture="s390x")
    missing = {"digest": digest_of(b"not there"), "platform": {"architecture": "mips"}}
    unknown = {**missing, "platform": {"architecture": "unknown", "os": "unknown"}}
    ours = write_layout(image, [BASE])
    platform_of = {"architecture": MACHINE, "os": "linux"}
    nested = {"manifests": [missing, unknown, other, {**ours, "platform": platform_of}]}
    data = json.dumps(nested).encode()
    (image / "blobs/sha256" / digest_of(data).partition(":")[2]).write_bytes(data)
    write_index(image, [{"digest": digest_of(data)}])
    assert unpack_image(image, tmp_path / "root").architecture == MACHINE
    assert "etc/a" in contents(tmp_path / "root")


def test_an_image_for_another_machine_is_refused_by_name(tmp_path: Path) -> None:
    write_layout(tmp_path / "image", [BASE], architecture="s390x")
    with pytest.raises(ValueError, match=rf"holds no image for {MACHINE}, .* but for: s390x"):
        unpack_image(tmp_path / "image", tmp_path / "root")


def test_an_archive_of_two_images_is_refused(tmp_path: Path) -> None:
    descriptors = [write_layout(tmp_path / "image", [data]) for data in (BASE, UPPER)]
    write_index(tmp_path / "image", descriptors)
    with pytest.raises(ValueError, match=r"holds 2 images for .*: save only one"):
        unpack_image(tmp_path / "image", tmp_path / "root")


def test_an_opaque_folder_hides_what_lower_layers_put_there_and_nothing_else(
    tmp_path: Path,
) -> None:
    lower = layer(entry("d/old", b"1"), entry("d/sub/old", b"2"), entry("e", b"3"))
    # The order within a layer does not count.
    upper = layer(entry("d/new", b"4"), entry("d/sub/new", b"5"), entry("d/.wh..wh..opq"))
    assert contents(unpack(tmp_path, lower, upper)) == {"d/new": "4", "d/sub/new": "5", "e": "3"}


def test_a_whiteout_hides_a_folder_and_everything_in_it(tmp_path: Path) -> None:
    lower = layer(entry("d/a", b"1"), entry("d/b/c", b"2"))
    root = unpack(tmp_path, lower, layer(entry(".wh.d"), entry(".wh.missing")))
    assert list(root.iterdir()) == []


def test_later_layers_replace_kinds_and_do_not_write_through_links(tmp_path: Path) -> None:
    lower = layer(entry("a", b"1"), link("b", "a"), entry("c/d", b"2"), hard_link("e", "a"))
    upper = layer(folder_entry("a"), entry("b", b"3"), entry("c", b"4"))
    assert contents(unpack(tmp_path, lower, upper)) == {"b": "3", "c": "4", "e": "1"}


def test_hard_links_share_their_file(tmp_path: Path) -> None:
    root = unpack(tmp_path, layer(entry("a", b"1"), hard_link("b", "/a"), hard_link("a", "a")))
    assert (root / "a").stat().st_ino == (root / "b").stat().st_ino
    assert (root / "a").read_text() == "1"


def test_setuid_bits_owners_and_devices_are_dropped(tmp_path: Path) -> None:
    entries = [
        entry("su", b"1", mode=0o6755, uid=0, gid=12),
        entry("shadow", b"2", mode=0o600, mtime=1234),
        folder_entry("home", 0o2700),
        folder_entry("tmp", 0o1777),
        entry("null", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        entry("disk", type=tarfile.BLKTYPE, devmajor=8),
        entry("pipe", type=tarfile.FIFOTYPE),
    ]
    root = unpack(tmp_path, layer(*entries))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in root.iterdir()}
    assert modes == {"su": 0o755, "shadow": 0o644, "home": 0o755, "tmp": 0o1777}
    assert {path.stat().st_uid for path in root.iterdir()} == {os.getuid()}
    assert (root / "shadow").stat().st_mtime == 1234


def test_links_are_followed_inside_the_folder_only(tmp_path: Path, outside: Path) -> None:
    lower = layer(
        link("absolute", str(outside)),
        link("relative", "../outside"),
        link("many", "a/../../../../.." + str(outside)),
        folder_entry("a"),
    )
    upper = layer(
        *(entry(f"{name}/secret", b"!") for name in ("absolute", "relative", "many")),
        entry("absolute/.wh.secret"),
        entry("relative/.wh..wh..opq"),
    )
    root = unpack(tmp_path, lower, upper)
    written = {name: text for name, text in contents(root).items() if text == "!"}
    assert written == {f"{outside}/secret".lstrip("/"): "!", "outside/secret": "!"}


def test_a_file_over_a_link_takes_its_place(tmp_path: Path, outside: Path) -> None:
    root = unpack(tmp_path, layer(link("x", str(outside / "secret"))), layer(entry("x", b"!")))
    assert contents(root) == {"x": "!"}


def test_hard_links_cannot_reach_files_of_the_host(tmp_path: Path, outside: Path) -> None:
    for target in (str(outside / "secret"), "x/secret"):
        with pytest.raises(ValueError, match="cannot unpack"):
            unpack(tmp_path, layer(link("x", str(outside)), hard_link("y", target)))
        assert not (tmp_path / "root/y").exists()
        shutil.rmtree(tmp_path / "root")


def test_a_hard_link_to_a_link_is_a_link(tmp_path: Path, outside: Path) -> None:
    entries = [link("x", str(outside / "secret")), hard_link("y", "x"), entry("y", b"!")]
    assert contents(unpack(tmp_path, layer(*entries))) == {
        "x": f"-> {outside}/secret",
        "y": "!",
    }


def test_absolute_names_are_seen_from_the_root(tmp_path: Path, outside: Path) -> None:
    root = unpack(tmp_path, layer(entry(f"/{outside}/secret", b"!")))
    assert contents(root) == {f"{outside}/secret".lstrip("/"): "!"}


@pytest.mark.parametrize("name", ["../outside/secret", "a/../../outside/secret", ".wh...", ".wh."])
def test_names_that_lead_out_or_nowhere_are_refused(
    tmp_path: Path, outside: Path, name: str
) -> None:
    with pytest.raises(ValueError, match=r"its entry .* (leads out of it|hides nothing)"):
        unpack(tmp_path, layer(entry(name, b"!")))


def test_links_in_a_circle_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too many links"):
        unpack(tmp_path, layer(link("a", "b"), link("b", "a"), entry("a/c", b"!")))


def test_folders_without_end_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too many links or folders"):
        unpack(tmp_path, layer(entry("d/" * 1000 + "f", b"!")))


def test_a_file_where_a_folder_belongs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a/b' goes through a file"):
        unpack(tmp_path, layer(entry("a", b"1"), entry("a/b/c", b"2")))


def test_a_layer_that_unpacks_to_too_much_is_refused_before_it_fills_the_disk(
    tmp_path: Path,
) -> None:
    bomb = gzip.compress(layer(entry("zeros", bytes(50_000_000))))
    assert len(bomb) < 100_000
    write_layout(tmp_path / "image", [b""], compress=lambda data: bomb)
    with pytest.raises(ValueError, match="more than 1000000 bytes: raise max_bytes"):
        unpack_image(tmp_path / "image", tmp_path / "root", max_bytes=1_000_000)
    assert sum(path.stat().st_size for path in (tmp_path / "root").iterdir()) <= 1_000_000


def test_the_limit_holds_for_all_layers_together_and_for_what_follows_a_tar(tmp_path: Path) -> None:
    layers = [layer(entry(name, bytes(400_000))) for name in "ab"]
    with pytest.raises(ValueError, match="more than 500000 bytes"):
        unpack(tmp_path, *layers, max_bytes=500_000)
    shutil.rmtree(tmp_path / "root")
    with pytest.raises(ValueError, match="more than 500000 bytes"):
        unpack(tmp_path, layer(entry("a")) + bytes(1_000_000), max_bytes=500_000)


def test_a_sparse_file_counts_with_its_whole_size(tmp_path: Path) -> None:
    size = 1 << 40
    headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1"}
    headers |= {"GNU.sparse.map": f"0,0,{size},0", "GNU.sparse.size": str(size)}
    info, _ = entry("sparse", pax_headers=headers)
    with pytest.raises(ValueError, match="more than 1000000 bytes"):
        unpack(tmp_path, layer((info, b"")), max_bytes=1_000_000)
    assert contents(tmp_path / "root") == {}


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    info, _ = entry("a", pax_headers={"comment": "x" * 5_000_000})
    with pytest.raises(ValueError, match="a header of more than 524288 bytes"):
        unpack(tmp_path, layer((info, b"")))


def test_headers_about_headers_without_end_are_refused(tmp_path: Path) -> None:
    buffer = entry("x", b"11 a=bbbbbb\n", type=tarfile.XHDTYPE)[0].tobuf() + b"11 a=bbbbb\n"
    chain = buffer.ljust(1024, b"\0") * 5000
    with pytest.raises(ValueError, match="cannot unpack"):
        unpack(tmp_path, chain)


@pytest.mark.parametrize("mtime", ["nan", "-5", "1e300"])
def test_times_that_are_none_become_zero(tmp_path: Path, mtime: str) -> None:
    root = unpack(tmp_path, layer(entry("a", b"1", pax_headers={"mtime": mtime})))
    assert (root / "a").stat().st_mtime == 0


def test_names_with_control_characters_make_no_second_line_of_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leads out of it") as it:
        unpack(tmp_path, layer(entry("a\nforged: line\n\x1b[2J/../..", b"!")))
    assert str(it.value).isprintable()


def test_a_damaged_blob_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    write_layout(tmp_path / "image", [BASE])
    blob = tmp_path / "image/blobs/sha256" / digest_of(BASE).partition(":")[2]
    blob.write_bytes(BASE.replace(b"etc/a", b"etc/z"))
    with pytest.raises(ValueError, match="is damaged: the digest is sha256:"):
        unpack_image(tmp_path / "image", tmp_path / "root")
    assert contents(tmp_path / "root") == {}


def test_a_damaged_layer_of_what_docker_saves_is_refused(tmp_path: Path) -> None:
    archive = write_docker_save(tmp_path / "saved.tar", [UPPER], config_of([BASE]))
    with pytest.raises(ValueError, match=r"layer 'layer0/layer.tar' is damaged"):
        unpack_image(archive, tmp_path / "root")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "not a tar, or broken"),
        (b"hello", "not a tar, or broken"),
        (b"\x1f\x8bhello", "cannot unpack"),
        (gzip.compress(BASE)[:-20], "cannot unpack"),
        (BASE, "neither an OCI image layout nor what `docker save` writes"),
        (layer(entry("manifest.json", b"{")), "its manifest.json is not JSON"),
        (layer(entry("manifest.json", b"[" * 100_000)), "its manifest.json is not JSON"),
        (layer(entry("manifest.json", b"[1]")), "a int where an object belongs"),
        (layer(entry("index.json", b"{}")), "nothing where a list belongs"),
        (layer(entry("index.json", b'{"manifests": []}')), "but for: none"),
        (layer(entry("index.json", b'{"manifests": [{"digest": "../x"}]}')), "is not a digest"),
        (layer(link("index.json", "index.json")), "neither an OCI image layout"),
    ],
)
def test_what_is_no_image_is_one_line_that_names_the_file(
    tmp_path: Path, data: bytes, complaint: str
) -> None:
    archive = tmp_path / "archive.tar"
    archive.write_bytes(data)
    with pytest.raises(ValueError, match=complaint) as it:
        unpack_image(archive, tmp_path / "root")
    assert str(archive) in str(it.value) and "\n" not in str(it.value)


def test_a_missing_archive_and_an_occupied_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"missing\.tar: there is no such file or folder"):
        unpack_image(tmp_path / "missing.tar", tmp_path / "root")
    write_layout(tmp_path / "image", [BASE])
    with pytest.raises(ValueError, match=f"{tmp_path} is not empty: name another folder"):
        unpack_image(tmp_path / "image", tmp_path)


def test_links_in_a_layout_folder_are_not_followed_to_the_host(tmp_path: Path) -> None:
    write_layout(tmp_path / "image", [BASE])
    blob = tmp_path / "image/blobs/sha256" / digest_of(BASE).partition(":")[2]
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="it lacks 'blobs/sha256/"):
        unpack_image(tmp_path / "image", tmp_path / "root")
    blob.unlink()
    os.mkfifo(blob)  # which would block whoever opens it
    with pytest.raises(ValueError, match="is not a file"):
        unpack_image(tmp_path / "image", tmp_path / "root")


def test_a_root_file_system_is_unpacked_once_and_has_what_is_mounted_on(
    tmp_path: Path, outside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    monkeypatch.setenv("PALESTRA_CACHE", str(folder))
    try:
        write_layout(tmp_path / "image", [BASE, layer(link("tmp", str(outside)), entry("dev"))])
        root = rootfs_from_image(tmp_path / "image")
        assert root.is_relative_to(folder)
        for name in ("dev", "proc", "sys", "tmp", "work"):
            assert (root / name).is_dir() and not (root / name).is_symlink()
        made = root.stat()
        archive = pack(tmp_path / "image", tmp_path / "image.tar")
        assert rootfs_from_image(archive) == root and root.stat() == made
        assert read_image_config(archive) == CONFIG
        write_layout(tmp_path / "image", [BASE])
        assert rootfs_from_image(tmp_path / "image") != root
    finally:
        shutil.rmtree(folder)
