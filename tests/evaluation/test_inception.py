"""Our Inception against torch-fidelity's, on the same file of random weights."""

from pathlib import Path

import numpy as np
import pytest
import second_opinions
import torch
from PIL import Image
from torch.nn import functional

from poise.errors import ArtifactError
from poise.evaluation.extractors import inception
from poise.evaluation.extractors.inception import Inception, parameter_shapes
from poise.evaluation.extractors.resizing import bilinear_tf1
from poise.evaluation.features import extract
from poise.evaluation.fidelity import frechet_distance


def random_weights(seed: int) -> dict[str, torch.Tensor]:
    """Such that activations neither vanish nor explode."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in parameter_shapes().items():
        z = torch.randn(shape, generator=generator)
        if name.endswith("conv.weight"):
            z *= (2 / z[0].numel()) ** 0.5
        elif name.endswith("running_var"):
            z = (0.1 * z).exp()
        elif name.endswith("bn.weight"):
            z = 1.2 + 0.1 * z
        else:
            z *= 0.05
        weights[name] = z
    return weights


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(random_weights(1), path)
    return path


@pytest.fixture(scope="module")
def ours(file: Path) -> Inception:
    return Inception(file)


def blobs(count: int, side: int, seed: int, contrast: float) -> np.ndarray:
    """Smooth coloured pictures, uint8 [count, 3, side, side]."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 5, 5, generator=generator) * contrast + 128
    x = functional.interpolate(x, (side, side), mode="bicubic").round().clamp(0, 255)
    return x.to(torch.uint8).numpy()


def theirs(file: Path, layers: list[str]) -> torch.nn.Module:
    second_opinions.torch_fidelity()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    return FeatureExtractorInceptionV3("x", layers, feature_extractor_weights_path=str(file))


def test_features_and_logits_equal_torch_fidelitys(file: Path, ours: Inception) -> None:
    reference = theirs(file, ["2048", "logits_unbiased"])
    for size in ((32, 32), (40, 310)):
        x = torch.from_numpy(blobs(2, size[1], 7, 60)[..., : size[0], :].copy())
        features, logits = (f.double().numpy() for f in reference(x))
        found = extract(ours, x)
        assert found.shape == (2, 2048)
        assert np.abs(found - features).max() < 1e-5 * np.abs(features).max()
        assert found.std(0).max() > 1e-3 * np.abs(features).max()
        assert np.abs(ours.logits(found) - logits).max() < 1e-5 * np.abs(logits).max()


def test_the_resizing_is_that_of_tensorflow_1() -> None:
    torch_fidelity = second_opinions.torch_fidelity()
    resize = torch_fidelity.interpolate_compat_tensorflow.interpolate_bilinear_2d_like_tensorflow1x
    generator = torch.Generator().manual_seed(0)
    for h, w in ((1, 7), (32, 23), (299, 598), (640, 300)):
        x = torch.rand(2, 3, h, w, generator=generator) * 255
        wanted = resize(x, size=(299, 299), align_corners=False)
        torch.testing.assert_close(
            bilinear_tf1(x, 299), wanted, rtol=0, atol=0.03
        )  # its places are float32
    ramp = torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert bilinear_tf1(ramp, 8)[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]


def test_grey_images_are_repeated(ours: Inception) -> None:
    grey = torch.from_numpy(blobs(1, 24, 5, 80)[:, :1].copy())
    alone = ours(grey)
    torch.testing.assert_close(alone, ours(grey.expand(-1, 3, -1, -1)), rtol=1e-5, atol=1e-5)


def test_the_digest_is_of_the_weights_and_not_of_the_file(ours: Inception, tmp_path: Path) -> None:
    weights = random_weights(1)
    torch.save(weights, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    assert Inception(tmp_path / "a.pth").digest == ours.digest
    weights["fc.bias"][0] += 1
    torch.save(weights, tmp_path / "a.pth")
    assert Inception(tmp_path / "a.pth").digest != ours.digest


def test_another_network_is_refused(tmp_path: Path) -> None:
    weights = {n: torch.zeros(1).expand(s) for n, s in parameter_shapes().items()}
    weights["fc.weight"] = torch.zeros(1).expand(1000, 2048)
    torch.save(weights, tmp_path / "a.pth")
    with pytest.raises(ArtifactError, match=r"larger|fc\.weight is \(1000, 2048\)"):
        Inception(tmp_path / "a.pth")
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pth")
    with pytest.raises(ArtifactError, match=r"Conv2d_1a_3x3\.conv\.weight is missing"):
        Inception(tmp_path / "a.pth")


def folders(root: Path, count: int) -> list[Path]:
    """Two folders of pictures that differ in contrast."""
    paths = []
    for seed, contrast in ((1, 40.0), (2, 55.0)):
        folder = root / str(seed)
        folder.mkdir()
        for i, x in enumerate(blobs(count, 32, seed, contrast)):
            Image.fromarray(x.transpose(1, 2, 0)).save(folder / f"{i:03d}.png")
        paths.append(folder)
    return paths


def read(folder: Path) -> np.ndarray:
    images = []
    for path in sorted(folder.glob("*.png")):
        with Image.open(path) as image:
            images.append(np.asarray(image).transpose(2, 0, 1))
    return np.stack(images)


def fid_of_torch_fidelity(paths: list[Path], file: Path, layer: str) -> float:
    metrics = second_opinions.torch_fidelity().calculate_metrics(
        input1=str(paths[0]),
        input2=str(paths[1]),
        fid=True,
        cuda=False,
        cache=False,
        verbose=False,
        batch_size=20,
        save_cpu_ram=True,
        feature_layer_fid=layer,
        feature_extractor_weights_path=str(file),
    )
    return float(metrics["frechet_inception_distance"])


def value(distance: object) -> float:
    return float(getattr(distance, "value", distance))


def test_fid_from_folders_equals_torch_fidelitys(
    tmp_path: Path, file: Path, ours: Inception, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The 64 features after three convolutions: the others take minutes.
    paths = folders(tmp_path, 30)
    wanted = fid_of_torch_fidelity(paths, file, "64")
    monkeypatch.setattr(inception, "_NETWORK", inception._NETWORK[:4])
    a, b = (extract(ours, read(path)) for path in paths)
    assert a.shape == (30, 64)
    assert value(frechet_distance(a, b)) == pytest.approx(wanted, rel=1e-4)


@pytest.mark.slow
def test_fid_of_all_2048_features_equals_torch_fidelitys(
    tmp_path: Path, file: Path, ours: Inception
) -> None:
    paths = folders(tmp_path, 60)
    wanted = fid_of_torch_fidelity(paths, file, "2048")
    a, b = (extract(ours, read(path)) for path in paths)
    assert value(frechet_distance(a, b)) == pytest.approx(wanted, rel=1e-4)
