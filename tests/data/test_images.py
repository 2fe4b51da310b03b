"""Folders of images as data: classes from folders or a table, one array whatever the files are, one line when not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from optimizer.boundary import pictures
from optimizer.boundary.text import preprocess
from optimizer.data.readers import read
from optimizer.faults import Exit, Fault
from passes.kit.model import Port

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

INPUTS = (Port("x", "FLOAT", ("n", 3, 20, 20)),)
STEPS = preprocess("resize=24, center-crop=20, normalize=half")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i, (name, size) in enumerate(
        (("cat/a.png", (30, 40)), ("cat/b.jpg", (50, 25)), ("dog/c.bmp", (24, 24)), ("dog/deep/d.webp", (33, 61)))
    ):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = ("RGB", "L", "RGB", "RGBA")[i]
        Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)).convert(mode).save(path)
    (tmp_path / "images" / "cat" / ".hidden.png").write_bytes(b"x")
    return tmp_path / "images"


def test_folders_are_classes_and_every_image_is_what_the_reference_makes_of_it(folder: Path, tmp_path: Path) -> None:
    samples = read(folder, INPUTS, scratch=tmp_path / "s", steps=STEPS)
    assert len(samples) == 4 and samples.labels["labels"].tolist() == [0, 0, 1, 1]
    for i, name in enumerate(("cat/a.png", "cat/b.jpg", "dog/c.bmp", "dog/deep/d.webp")):
        wanted = pictures.apply(STEPS, pictures.open_pixels(folder / name, 3), channels_first=True)
        assert np.array_equal(next(iter(samples.take([i]).feeds(1)))[0]["x"][0], wanted)
    assert isinstance(samples.inputs["x"], np.memmap)
    again = read(folder, INPUTS, scratch=tmp_path / "s", steps=STEPS)
    assert again.digest() == samples.digest() and len(list((tmp_path / "s").iterdir())) == 1
    assert read(folder, INPUTS, scratch=tmp_path / "s", steps=preprocess("resize=20x20")).digest() != samples.digest()


def test_a_table_gives_labels_by_name_or_number(folder: Path, tmp_path: Path) -> None:
    (folder / "labels.csv").write_text("file,label\ncat/a.png,3\nb.jpg,1\nc.bmp,0\ndog/deep/d.webp,7\n")
    assert read(folder, INPUTS, scratch=tmp_path / "s", steps=STEPS).labels["labels"].tolist() == [3, 1, 0, 7]
    (folder / "labels.csv").write_text("cat/a.png,3\n")
    with pytest.raises(Fault, match="has no label for"):
        read(folder, INPUTS, scratch=tmp_path / "s", steps=STEPS)


def test_what_cannot_be_read_is_told_in_one_line(folder: Path, tmp_path: Path) -> None:
    def fault(steps: str | None, inputs: tuple[Port, ...] = INPUTS) -> Fault:
        with pytest.raises(Fault) as caught:
            read(folder, inputs, scratch=tmp_path / "s", steps=preprocess(steps) if steps else None)
        return caught.value

    assert "--preprocess" in fault(None).hint
    assert "comes out as" in fault("to-float", (Port("x", "FLOAT", ("n", 3, None, None)),)).message
    assert "cannot feed the other inputs" in fault("resize=20x20", (*INPUTS, Port("z", "FLOAT", (1,)))).message
    (folder / "cat" / "broken.png").write_bytes((folder / "cat" / "a.png").read_bytes()[:200])
    found = fault("resize=20x20")
    assert (found.exit, "broken.png" in found.where) == (Exit.BAD_INPUT, True)
    (folder / "cat" / "broken.png").unlink()
    (folder / "beside.png").write_bytes((folder / "cat" / "a.png").read_bytes())
    assert "lies beside the folders" in fault("resize=20x20").message
    assert not list((tmp_path / "s").glob(".images-*"))


@pytest.mark.parametrize(
    ("name", "mode", "options", "said"),
    [
        ("a.png", "P", {}, ""),
        ("a.jpg", "RGB", {"subsampling": 0}, ""),
        ("a.jpg", "RGB", {"subsampling": 0, "progressive": True}, ""),
        ("a.jpg", "L", {}, ""),
        ("a.jpg", "RGB", {"subsampling": 1}, "this JPEG is subsampled"),
        ("a.jpg", "RGB", {"subsampling": 2}, "this JPEG is subsampled"),
        ("a.jpg", "CMYK", {"subsampling": 0}, "this JPEG is CMYK"),
        ("a.bmp", "RGB", {}, "this is BMP"),
    ],
)
def test_files_that_a_graph_decodes_otherwise_are_refused(
    tmp_path: Path, name: str, mode: str, options: dict[str, int], said: str
) -> None:
    levels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    (tmp_path / "i").mkdir()
    Image.fromarray(levels).convert(mode).save(tmp_path / "i" / name, **options)

    def take(steps: str) -> None:
        read(tmp_path / "i", INPUTS, scratch=tmp_path / "s", steps=preprocess(steps))

    take("decode=any, resize=20x20")
    if said:
        with pytest.raises(Fault, match=said) as caught:
            take("decode, resize=20x20")
        assert (caught.value.code, caught.value.exit) == ("skew", Exit.BAD_INPUT) and name in caught.value.where
    else:
        take("decode, resize=20x20")
