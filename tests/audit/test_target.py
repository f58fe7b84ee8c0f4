"""Targets: numbers by hand, and every way to write one wrong."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from poise.audit.content.target import (
    Target,
    compare,
    compare_examples,
    coverage,
    read,
    target_shares,
)
from poise.errors import DataError, UsageError


def written(folder: Path, text: str) -> Path:
    path = folder / "mix.toml"
    path.write_text(text)
    return path


def against(shares: dict[str, float], counts: dict[str, int]):  # type: ignore[no-untyped-def]
    labels = np.repeat(np.arange(len(counts)), list(counts.values()))
    features = np.zeros((len(labels), 2), np.float32)
    target = Target(Path("mix.toml"), shares)
    found = compare(target, labels, list(counts), features, np.ones(len(labels), bool))
    return found, {part["name"]: part for part in found["parts"]}


def test_shares_are_normalised(tmp_path: Path) -> None:
    path = written(tmp_path, "[classes]\ncat = 3\ndog = 1.0\n")
    assert target_shares(path) == {"cat": 0.75, "dog": 0.25}


def test_what_is_missing_and_over_full_by_hand() -> None:
    # 900 cats are half of 1,800: 900 - 100 dogs are missing; or 800 cats too many.
    found, parts = against({"cat": 0.5, "dog": 0.5}, {"cat": 900, "dog": 100})
    assert found["kind"] == "shares"
    assert [part["name"] for part in found["parts"]] == ["dog", "cat"]
    assert parts["dog"]["have"] == 0.1 and parts["dog"]["want"] == 0.5
    assert (parts["dog"]["missing"], parts["dog"]["surplus"]) == (800, 0)
    assert (parts["cat"]["missing"], parts["cat"]["surplus"]) == (0, 800)
    assert "Collect 800 images" in parts["dog"]["mend"]
    assert "5 times as often" in parts["dog"]["mend"]
    assert "0.56 times as often" in parts["cat"]["mend"]
    assert "drop 800 images" in parts["cat"]["mend"]
    assert "'dog' is 10% where 50% are wanted (800 images to add)" in found["sentence"]


def test_a_class_that_is_wanted_and_absent_can_only_be_collected() -> None:
    _, parts = against({"cat": 0.8, "dog": 0.2}, {"cat": 40, "dog": 0})
    assert parts["dog"]["missing"] == 10
    assert parts["dog"]["mend"].startswith("Collect 10 images: there is none")
    assert parts["cat"]["surplus"] == 0  # dropping all cats would mend nothing


def test_a_class_that_is_not_wanted_can_only_be_dropped() -> None:
    _, parts = against({"cat": 1.0}, {"cat": 40, "dog": 10})
    assert parts["dog"]["want"] == 0 and parts["dog"]["surplus"] == 10
    assert "drop its 10 images" in parts["dog"]["mend"]
    assert parts["cat"]["missing"] == 0


def test_a_set_as_wanted_lacks_nothing() -> None:
    found, parts = against({"cat": 0.25, "dog": 0.75}, {"cat": 25, "dog": 75})
    assert found["sentence"] == "The images have the mix of the target."
    assert {part["mend"] for part in parts.values()} == {"As wanted."}


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 9)), min_size=1, max_size=6).filter(
        lambda rows: any(count for count, _ in rows)
    )
)
def test_adding_or_dropping_gives_the_target(rows: list[tuple[int, int]]) -> None:
    total = sum(want for _, want in rows)
    shares = {f"c{i}": want / total for i, (_, want) in enumerate(rows)}
    counts = {f"c{i}": count for i, (count, _) in enumerate(rows)}
    _, parts = against(shares, counts)
    grown = {name: counts[name] + part["missing"] for name, part in parts.items()}
    all_grown = sum(grown.values())
    for name, want in shares.items():
        assert abs(grown[name] - want * all_grown) <= len(rows)  # each is rounded up
    assert any(part["missing"] == 0 for part in parts.values())  # no more than needed
    if min(counts.values()):
        kept = {name: counts[name] - part["surplus"] for name, part in parts.items()}
        for name, want in shares.items():
            assert abs(kept[name] - want * sum(kept.values())) <= len(rows)


def test_unusable_images_do_not_count() -> None:
    target = Target(Path("mix.toml"), {"a": 0.5, "b": 0.5})
    usable = np.array([True, True, False, True])
    features = np.zeros((4, 2), np.float32)
    found = compare(target, np.array([0, 0, 1, 1]), ["a", "b"], features, usable)
    assert found["parts"][0] | {"mend": ""} == {
        "name": "b",
        "have": 1 / 3,
        "want": 0.5,
        "missing": 1,
        "surplus": 0,
        "mend": "",
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[class]\ncat = 1", "Did you mean 'classes'"),
        ("[classes]\ncat = -1", "'cat' is -1"),
        ("[classes]\ncat = true", "True"),
        ("[classes]\ncat = nan", "nan"),
        ("[classes]\ncat = inf", "inf"),
        ("[classes]\ncat = 'much'", "'much'"),
        ("[classes]\ncat = 0", "sum to 0"),
        ("[classes]", "name = share"),
        ("classes = 3", "name = share"),
        ("examples = 3", "the path of a source"),
        ("examples = 'x'\n[classes]\ncat = 1", "both forms"),
        ("", "nothing"),
        ("[classes", "not TOML"),
    ],
)
def test_wrong_targets_are_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        read(written(tmp_path, text))


def test_absent_files_other_bytes_and_examples_where_shares_are_needed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "none.toml")
    with pytest.raises(UsageError, match="no class shares"):
        target_shares(written(tmp_path, "examples = 'x'"))
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not TOML"):
        read(tmp_path / "bytes.toml")


def test_classes_that_the_data_have_not_are_refused() -> None:
    with pytest.raises(UsageError, match="Did you mean 'cat'"):
        against({"cta": 1.0}, {"cat": 3})
    target = Target(Path("mix.toml"), {"cat": 1.0})
    with pytest.raises(UsageError, match="no classes"):
        compare(target, None, [], np.zeros((3, 2), np.float32), np.ones(3, bool))


def clouds(sizes: list[int], seed: int) -> np.ndarray:  # type: ignore[type-arg]
    rng = np.random.default_rng(seed)
    x = np.repeat(np.eye(10)[: len(sizes)], sizes, 0)
    x = x + 0.03 * rng.normal(size=x.shape)
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def test_a_part_of_the_examples_that_the_data_have_not_is_missing() -> None:
    # Half of the examples are of the second kind, of which the data have a tenth.
    names = [f"{i}.png" for i in range(40)]
    found = compare_examples(clouds([180, 20], 0), clouds([20, 20], 1), names)
    assert found["kind"] == "examples"
    first, last = found["parts"][0], found["parts"][-1]
    assert (first["have"], first["want"]) == (0.1, 0.5)
    assert first["missing"] == 160  # 180 of each
    assert int(first["name"].removeprefix("like ").removesuffix(".png")) >= 20
    assert last["surplus"] == 80  # of the 200 images, 100 would be half
    assert found["coverage"] > 0.9
    assert "--balance" not in first["mend"] + last["mend"]  # shares of classes only


def test_examples_like_the_data_ask_for_nothing_and_others_are_not_covered() -> None:
    names = [f"{i}.png" for i in range(60)]
    same = compare_examples(clouds([300, 300], 0), clouds([30, 30], 1), names)
    assert {part["mend"] for part in same["parts"]} == {"As wanted."}
    assert same["sentence"].startswith("The images have the mix of the target; ")
    other = compare_examples(clouds([600], 0), clouds([0, 30, 30], 1), names)
    assert other["coverage"] == 0
    half = coverage(clouds([0, 30, 30], 1), clouds([0, 300], 0))
    assert half == pytest.approx(0.5, abs=0.02)


def test_a_folder_of_examples_is_read_beside_the_target(tmp_path: Path) -> None:
    from poise.audit.content.features import describe

    rng = np.random.default_rng(0)
    folder = tmp_path / "phone"
    folder.mkdir()
    pictures = rng.integers(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    for index, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{index:02d}.png")
    target = read(written(tmp_path, 'examples = "phone"'))
    assert target.examples == str(folder)
    features = describe(pictures)
    found = compare(target, None, [], features, np.ones(12, bool))
    assert found["coverage"] == 1
    assert sum(part["want"] for part in found["parts"]) == pytest.approx(1)
    assert all(part["have"] == part["want"] for part in found["parts"])
    for path in list(folder.iterdir())[:5]:
        path.unlink()
    with pytest.raises(DataError, match="7 readable examples"):
        compare(target, None, [], features, np.ones(12, bool))
