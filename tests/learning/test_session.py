"""Images that are left out of a stream of batches: positions stay, good ones take their place."""

import json
from collections.abc import Iterator

import torch
from hypothesis import given
from hypothesis import strategies as st

from poise.data.batches import Batch
from poise.learning.session import Quarantine

CLASSES = 3


def batch(indices: list[int], start: int = 0) -> Batch:
    """Image i holds the bytes i and i + 1, and is of class i modulo 3."""
    rows = torch.tensor(indices)
    images = rows[:, None, None, None].repeat(1, 1, 2, 2).to(torch.uint8)
    images[:, :, 0] += 1
    return Batch(images, rows % CLASSES, rows)


def passed(quarantine: Quarantine, *batches: Batch) -> list[Batch]:
    return list(quarantine.pass_on(iter(batches)))


def same(one: Batch, other: Batch) -> bool:
    labels = one.labels is other.labels or bool(
        one.labels is not None and other.labels is not None and one.labels.equal(other.labels)
    )
    images = one.images.nan_to_num(-7.0), other.images.nan_to_num(-7.0)
    return labels and images[0].equal(images[1]) and one.indices.equal(other.indices)


def test_without_anything_to_leave_out_batches_are_the_same_objects() -> None:
    one = batch([1, 2, 3])
    assert passed(Quarantine(CLASSES, 255.0), one)[0] is one


def test_a_bad_image_is_replaced_by_a_good_one_of_its_batch() -> None:
    quarantine = Quarantine(CLASSES, 255.0, images={4, 6})
    (out,) = passed(quarantine, batch([3, 4, 5, 6, 7]))
    assert out.indices.tolist() == [3, 3, 5, 5, 7]
    assert same(out, batch([3, 3, 5, 5, 7]))  # image, label and index belong together


def test_more_bad_ones_than_good_ones() -> None:
    (out,) = passed(Quarantine(CLASSES, 255.0, images={1, 2, 3, 4}), batch([1, 2, 9, 3, 4]))
    assert out.indices.tolist() == [9] * 5


def test_a_batch_without_any_good_image_is_passed_as_it_is() -> None:
    one = batch([1, 2])
    assert passed(Quarantine(CLASSES, 255.0, images={1, 2}), one)[0] is one


@given(
    rows=st.lists(st.lists(st.integers(0, 20), min_size=4, max_size=4), min_size=1, max_size=5),
    images=st.sets(st.integers(0, 20), max_size=12),
)
def test_positions_mean_the_same_whatever_is_left_out(
    rows: list[list[int]], images: set[int]
) -> None:
    given_batches = [batch(r) for r in rows]
    out = passed(Quarantine(CLASSES, 255.0, images=set(images)), *given_batches)
    assert len(out) == len(given_batches)
    for was, now in zip(given_batches, out, strict=True):
        before, after = was.indices.tolist(), now.indices.tolist()
        good = [i for i in before if i not in images]
        assert len(after) == len(before)
        assert all(a == b for a, b in zip(after, before, strict=True) if b not in images)
        assert set(after) <= set(good or before)
        assert same(now, batch(after))


def spoiled() -> Batch:
    """0 is healthy, 1 not finite, 2 out of range, 3 of no class, 4 of one colour, 5 healthy."""
    images = batch([10, 11, 12, 13, 14, 15]).images.float()
    images[1, 0, 1, 1] = torch.nan
    images[2, 0, 0, 0] = 300.0
    images[4] = 9.0
    labels = torch.tensor([0, 1, 2, CLASSES, 1, 2])
    return Batch(images, labels, torch.tensor([10, 11, 12, 13, 14, 15]))


def test_screening_finds_each_kind_and_remembers_the_image() -> None:
    for kind, index in (("non-finite", 11), ("range", 12), ("label", 13), ("flat", 14)):
        quarantine = Quarantine(CLASSES, 255.0, screened={kind})
        first, second = passed(quarantine, spoiled(), batch([index, 3]))
        row = index - 10
        assert first.indices.tolist() == [i if i != index else 10 for i in range(10, 16)], kind
        assert quarantine.images == quarantine.found == {index}
        assert second.indices.tolist() == [3, 3]
        assert bool(first.images[row].equal(first.images[0]))


def test_screening_leaves_healthy_batches_alone() -> None:
    quarantine = Quarantine(CLASSES, 255.0, screened={"non-finite", "range", "label", "flat"})
    one = batch([1, 2, 3])
    assert passed(quarantine, one)[0] is one
    assert quarantine.images == set()


def test_numbers_without_a_range_are_not_screened_for_one() -> None:
    """Latents."""
    quarantine = Quarantine(0, None, screened={"range", "label"})
    one = spoiled()
    assert passed(quarantine, one)[0] is one


def test_a_stream_without_labels() -> None:
    one = Batch(batch([1, 2]).images, None, torch.tensor([1, 2]))
    (out,) = passed(Quarantine(0, 255.0, images={2}), one)
    assert out.labels is None and out.indices.tolist() == [1, 1]


def test_images_may_be_added_while_a_stream_is_under_way() -> None:
    quarantine = Quarantine(CLASSES, 255.0)

    def stream() -> Iterator[Batch]:
        while True:
            yield batch([1, 2])

    out = quarantine.pass_on(stream())
    assert next(out).indices.tolist() == [1, 2]
    quarantine.images.add(1)
    assert next(out).indices.tolist() == [2, 2]


def test_a_state_in_json_continues() -> None:
    one = Quarantine(CLASSES, 255.0, images={9}, screened={"flat"})
    passed(one, spoiled())
    other = Quarantine(CLASSES, 255.0, images={1}, screened={"range"}, found={1})
    other.restore(json.loads(json.dumps(one.state())))
    assert other == one
    assert one.state() == {"images": [9, 14], "screened": ["flat"], "found": [14]}
