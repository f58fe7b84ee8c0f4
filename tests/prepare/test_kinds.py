"""Other kinds of sources, weights, cleaning: each against its closed form."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sets import picture, pixels_of, prepare, rows_of, splits_of

from poise.data.store import load_store
from poise.errors import DataError, UsageError
from poise.prepare.cleaning import blockiness, clean, noise_level
from poise.prepare.prepare import report_lines
from poise.settings import DataConfig


def classes(root: Path, **counts: int) -> Path:
    seed = 0
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for n in range(count):
            picture(seed := seed + 1).save(root / name / f"{n:02d}.png")
    return root


def weights_by_class(out: Path) -> dict[str, tuple[int, float]]:
    """Class -> (training images, weight of each)."""
    found: dict[str, list[float]] = {}
    for row in rows_of(out):
        if row["split"] == "train":
            found.setdefault(row["label"], []).append(row["weight"])
        else:
            assert row["weight"] == 1
    assert all(len(set(weights)) == 1 for weights in found.values())
    total = sum(sum(weights) for weights in found.values())
    assert total == pytest.approx(sum(map(len, found.values())), rel=1e-6)
    return {name: (len(weights), weights[0]) for name, weights in found.items()}


def test_weights_follow_the_counts(tmp_path: Path) -> None:
    source = classes(tmp_path / "pets", cat=24, dog=8)
    (tmp_path / "target.toml").write_text("[classes]\ncat = 1\ndog = 3\n")
    prepare(source, tmp_path / "sqrt", balance="sqrt")
    prepare(source, tmp_path / "target", balance="target", target=tmp_path / "target.toml")
    prepare(source, tmp_path / "none")
    (cats, cat), (dogs, dog) = (weights_by_class(tmp_path / "sqrt")[k] for k in ("cat", "dog"))
    assert dog / cat == pytest.approx((cats / dogs) ** 0.5, rel=1e-6)
    (cats, cat), (dogs, dog) = (weights_by_class(tmp_path / "target")[k] for k in ("cat", "dog"))
    assert dogs * dog / (cats * cat) == pytest.approx(3, rel=1e-6)
    assert load_store(tmp_path / "none", DataConfig()).weights is None
    data = load_store(tmp_path / "target", DataConfig())
    assert data.weights is not None and len(data.weights) == 32


def test_without_classes_alike_images_share_their_weight(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for n in range(40):
        picture(n).save(tmp_path / "photos" / f"{n:02d}.png")
    made = prepare(tmp_path / "photos", tmp_path / "set", balance="equal")
    rows = [row for row in rows_of(tmp_path / "set") if row["split"] == "train"]
    weights = made["summary"]["weights"]
    assert len(weights) > 1 and all(name.startswith("cluster") for name in weights)
    for weight in set(weights.values()):  # every cluster is drawn equally often
        draws = sum(row["weight"] for row in rows if row["weight"] == weight)
        clusters = sum(other == weight for other in weights.values())
        assert draws == pytest.approx(clusters * len(rows) / len(weights), rel=1e-6)


def test_a_folder_of_examples_as_the_target(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder, reds, blues in (("photos", 40, 10), ("wanted", 5, 15)):
        (tmp_path / folder).mkdir()
        for n in range(reds + blues):
            colour = np.array((200, 30, 30) if n < reds else (30, 30, 200))
            pixels = (colour + rng.integers(0, 50, (24, 24, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / folder / f"{n:02d}.png")
    (tmp_path / "target.toml").write_text('examples = "wanted"\n')
    prepare(
        tmp_path / "photos",
        tmp_path / "set",
        balance="target",
        target=tmp_path / "target.toml",
    )
    rows = [row for row in rows_of(tmp_path / "set") if row["split"] == "train"]
    blue = sum(row["weight"] for row in rows if int(row["path"][:2]) >= 40)
    assert 0.6 < blue / len(rows) < 0.9  # 3 of 4 are wanted, 1 of 5 is there


def test_numbered_frames_and_animations_become_clips(tmp_path: Path) -> None:
    source = tmp_path / "videos"
    frames: dict[str, list[np.ndarray]] = {}
    for video in range(12):
        (source / f"v{video:02d}").mkdir(parents=True)
        for n in range(9):
            image = picture(video * 100 + n)
            frames.setdefault(f"v{video:02d}", []).append(np.asarray(image))
            image.save(source / f"v{video:02d}" / f"{n:03d}.png")
    film = [picture(5000 + n).quantize(64) for n in range(5)]
    for folder in ("film", "posters"):
        (source / folder).mkdir()
    film[0].save(source / "film" / "film.gif", save_all=True, append_images=film[1:], duration=50)
    picture(9999).save(source / "posters" / "one.png")
    made = prepare(source, tmp_path / "set", clip=4, resolution=24, shard_items=5)
    assert (made["frames"], made["channels"], made["items"]) == (4, 3, 2 * 12 + 1)
    rows, pixels = rows_of(tmp_path / "set"), pixels_of(tmp_path / "set", made)
    for row, clip in zip(rows, pixels, strict=True):
        folder = row["path"].partition("/")[0]
        if folder.startswith("v"):
            first = row["frames"][0][0] - rows[0]["frames"][0][0]
            assert row["files"] == [f"{folder}/{n:03d}.png" for n in _numbers(row)]
            wanted = np.stack([frames[folder][n] for n in _numbers(row)])
            np.testing.assert_array_equal(clip, wanted.transpose(0, 3, 1, 2))
            assert first >= -1
    sides: dict[str, set[str]] = {}
    for row in rows:
        sides.setdefault(row["path"].partition("/")[0].partition("#")[0], set()).add(row["split"])
    assert len(sides) == 13 and all(len(found) == 1 for found in sides.values())
    dropped = [path for path, side in splits_of(tmp_path / "set").items() if side == "dropped"]
    assert "posters/one.png" in dropped and "film/film.gif#4..4" in dropped and len(dropped) == 14
    with pytest.raises(UsageError, match="clips of 4 frames"):
        load_store(tmp_path / "set", DataConfig())


def _numbers(row: dict) -> list[int]:
    first = int(row["path"].partition("/")[2][:3])
    return list(range(first, first + 4))


def test_any_number_of_channels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 9, 12, 5), np.uint8)
    np.savez(tmp_path / "five.npz", pixels)
    made = prepare(tmp_path / "five.npz", tmp_path / "set", resolution=9)
    assert made["channels"] == 5
    found = pixels_of(tmp_path / "set", made)[:, 0]
    middle = pixels[:, :, 1:10].transpose(0, 3, 1, 2)
    assert np.abs(found.astype(int) - middle).mean() < 45  # a pixel is cut at each side
    assert rows_of(tmp_path / "set")[0]["cropped"] == pytest.approx(0.25)


def test_gray_stays_gray_and_sides_are_cropped(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    for n in range(12):
        image = picture(n).convert("L").crop((0, 0, 24, 16))
        image.save(tmp_path / "photos" / f"{n:02d}.png")
    made = prepare(tmp_path / "photos", tmp_path / "set", resolution=16)
    assert made["channels"] == 1
    np.testing.assert_array_equal(
        pixels_of(tmp_path / "set", made)[3, 0, 0],
        np.asarray(picture(3).convert("L"))[:16, 4:20],
    )


def test_missing_values_are_refused_or_masked(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random((20, 8, 8, 1)).astype(np.float32)
    values[3, 2, 2] = np.nan
    np.save(tmp_path / "floats.npy", values)
    prepare(tmp_path / "floats.npy", tmp_path / "refused")
    dropped = [path for path, side in splits_of(tmp_path / "refused").items() if side == "dropped"]
    assert dropped == ["image-000003"]
    made = prepare(tmp_path / "floats.npy", tmp_path / "masked", missing="mask")
    assert made["summary"]["dropped"] == {} and made["items"] == 20


def test_captions_and_a_column_of_the_metadata(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    lines = ["file_name,text,patient"]
    for n in range(30):
        picture(n).save(source / f"{n:02d}.png")
        lines.append(f"{n:02d}.png,picture {n},{n // 3}")
    (source / "metadata.csv").write_text("\n".join(lines) + "\n")
    prepare(source, tmp_path / "set", group_by="patient")
    sides: dict[str, set[str]] = {}
    for row in rows_of(tmp_path / "set"):
        assert row["caption"] == f"picture {int(row['path'][:2])}"
        assert row["group"] == str(int(row["path"][:2]) // 3)
        sides.setdefault(row["group"], set()).add(row["split"])
    assert len(sides) == 10 and all(len(found) == 1 for found in sides.values())
    data = load_store(tmp_path / "set", DataConfig())
    assert data.captions[4] == "picture 4"


def smooth(side: int = 64) -> np.ndarray:
    y, x = np.mgrid[0:side, 0:side] / side
    waves = [128 + 60 * np.sin(6 * x + k) * np.cos(5 * y) for k in range(3)]
    return np.stack(waves, -1).astype(np.uint8)


def test_noise_is_reduced_and_nothing_else(tmp_path: Path) -> None:
    quiet = smooth()
    rng = np.random.default_rng(0)
    noisy = (quiet + rng.normal(0, 8, quiet.shape)).clip(0, 255).astype(np.uint8)
    assert noise_level(noisy) == pytest.approx(8, rel=0.25)
    cleaned, done = clean(noisy, ("denoise",), "PNG")
    errors = [np.abs(image.astype(float) - quiet).mean() for image in (noisy, cleaned)]
    assert errors[1] < 0.6 * errors[0] and done[0].startswith("denoise")
    same, done = clean(quiet, ("denoise", "jpeg"), "JPEG")
    assert same is quiet and done == []


def test_blocks_are_reduced(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    whole = (smooth() + rng.normal(0, 3, (64, 64, 3))).clip(0, 255).astype(np.uint8)
    Image.fromarray(whole).save(tmp_path / "blocks.jpg", quality=8)
    blocks = np.asarray(Image.open(tmp_path / "blocks.jpg"))
    cleaned, done = clean(blocks, ("jpeg",), "JPEG")
    assert blockiness(blocks) > 1.5 > 1.2 > blockiness(whole)
    assert blockiness(cleaned) < 0.75 * blockiness(blocks) and done
    errors = [np.abs(image.astype(float) - smooth()).mean() for image in (blocks, cleaned)]
    assert errors[1] <= errors[0]
    assert clean(blocks, ("jpeg",), "PNG")[1] == []


def test_cleaning_is_recorded_and_shown(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for n in range(12):
        values = np.asarray(picture(n, 40).resize((80, 80))) + rng.normal(
            0, 10 * (n == 3), (80, 80, 3)
        )
        Image.fromarray(values.clip(0, 255).astype(np.uint8)).save(
            tmp_path / "photos" / f"{n:02d}.png"
        )
    prepare(tmp_path / "photos", tmp_path / "set", clean=frozenset({"denoise"}))
    done = {row["path"]: row["cleaned"] for row in rows_of(tmp_path / "set")}
    assert done["03.png"] and not done["04.png"]
    page = (tmp_path / "set" / "prepare.html").read_text("utf-8")
    assert "03.png, before" in page and page.count("data:image/png") == 2 * sum(
        map(bool, done.values())
    )


def test_a_target_that_names_no_class_here(tmp_path: Path) -> None:
    source = classes(tmp_path / "pets", cat=12, dog=12)
    (tmp_path / "target.toml").write_text("[classes]\nbird = 1\n")
    with pytest.raises((UsageError, DataError), match="bird"):
        prepare(source, tmp_path / "set", balance="target", target=tmp_path / "target.toml")


def test_what_the_source_warns_of_is_printed(tmp_path: Path) -> None:
    root = classes(tmp_path / "s", a=12, b=2)
    picture(99).save(root / "beside.png")
    (root / "a" / "empty.png").write_bytes(b"")
    lines = report_lines(prepare(root, tmp_path / "set"))
    notes = [line for line in lines if line.startswith("Note: ")]
    assert len(notes) == 2 and "beside.png" in notes[0] and "1 class trains only" in notes[1]


def test_clips_that_are_longer_than_any_sequence(tmp_path: Path) -> None:
    root = classes(tmp_path / "s", a=6)
    with pytest.raises(DataError, match="holds no clip of 50 frames"):
        prepare(root, tmp_path / "set", clip=50)


def test_what_was_prepared_is_no_source(tmp_path: Path) -> None:
    prepare(classes(tmp_path / "s", a=30), tmp_path / "set")
    with pytest.raises(UsageError, match="is what poise prepare wrote"):
        prepare(tmp_path / "set", tmp_path / "again")
