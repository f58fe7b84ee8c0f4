"""Pictures of images that are none: other channel counts."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from poise.errors import UsageError
from poise.pictures import save_grid, save_samples, to_image

x = np.random.default_rng(0).integers(0, 256, (7, 9, 11), np.uint8)


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 7])
def test_every_channel_count_can_be_shown(channels: int, tmp_path: Path) -> None:
    shown = np.asarray(to_image(x[:channels]))
    assert np.array_equal(shown, x[0] if channels < 3 else x[:3].transpose(1, 2, 0))
    save_grid(tmp_path / "g.png", x[None, :channels].repeat(3, 0), columns=2)
    with Image.open(tmp_path / "g.png") as image:
        assert image.mode == ("L" if channels < 3 else "RGB")


def test_png_files_never_lose_channels(tmp_path: Path) -> None:
    images = x[None, :4].repeat(2, 0)
    with pytest.raises(UsageError, match=r"(?s)4 channels.*npz"):
        save_samples(tmp_path / "out", images, None, ())
    save_samples(tmp_path / "out.npz", images, None, ())
    with np.load(tmp_path / "out.npz") as archive:
        assert np.array_equal(archive["arr_0"], images.transpose(0, 2, 3, 1))
