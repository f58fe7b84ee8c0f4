"""DINOv2 and CLIP as small random networks, against the package's own way of loading them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import second_opinions
import torch
from PIL import Image
from torch.nn import functional

from poise.errors import ArtifactError, UsageError
from poise.evaluation.extractors import pretrained as module
from poise.evaluation.extractors.pretrained import VisionTransformer, pretrained
from poise.evaluation.extractors.resizing import bicubic_antialias
from poise.evaluation.features import extract

second_opinions.torch_fidelity()  # lets torchvision load, which transformers imports

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 14}


@pytest.fixture(scope="module")
def transformers() -> Any:
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    return transformers


def scrambled(network: Any) -> Any:
    """With numbers of ours instead of the initial ones, many of which are zero or one."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in network.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator))
    return network.eval()


def dinov2(transformers: Any, folder: Path, image_size: int = 224) -> Any:
    config = transformers.Dinov2Config(**SIZES, image_size=image_size, mlp_ratio=2)
    network = scrambled(transformers.Dinov2Model(config))
    network.save_pretrained(folder)
    return network


def clip(transformers: Any, folder: Path) -> Any:
    sees = SIZES | {"image_size": 56, "intermediate_size": 48}
    reads = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 9}
    reads |= {"bos_token_id": 1, "eos_token_id": 2}
    config = transformers.CLIPConfig(text_config=reads, vision_config=sees, projection_dim=24)
    network = scrambled(transformers.CLIPModel(config))
    network.save_pretrained(folder)
    return network


def images(side: int, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(11)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


def standardised(x: torch.Tensor, mean: list[float], std: list[float]) -> torch.Tensor:
    return (x / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


def close(found: np.ndarray, wanted: torch.Tensor) -> None:
    assert found.shape == tuple(wanted.shape)
    wanted = wanted.detach()
    scale = float(wanted.abs().max())
    assert np.abs(found - wanted.numpy()).max() < 1e-5 * scale
    assert found.std(0).max() > 1e-2 * scale  # images differ


def test_dinov2_is_the_class_token_of_the_package(transformers: Any, tmp_path: Path) -> None:
    network = dinov2(transformers, tmp_path)
    ours = pretrained("dinov2", tmp_path)
    utils = transformers.image_utils
    x = standardised(images(224), utils.IMAGENET_DEFAULT_MEAN, utils.IMAGENET_DEFAULT_STD)
    close(extract(ours, images(224)), network(x).last_hidden_state[:, 0])
    assert (ours.name, ours.resizer) == ("dinov2", "bicubic-antialias 224")
    small = bicubic_antialias(images(40).float(), 224)
    x = standardised(small, utils.IMAGENET_DEFAULT_MEAN, utils.IMAGENET_DEFAULT_STD)
    close(extract(ours, images(40)), network(x).last_hidden_state[:, 0])


def test_dinov2_positions_of_another_size_are_interpolated(
    transformers: Any, tmp_path: Path
) -> None:
    network = dinov2(transformers, tmp_path, image_size=70)
    ours = pretrained("dinov2", tmp_path)
    table = network.embeddings.position_embeddings
    square = table[:, 1:].reshape(1, 5, 5, 32).permute(0, 3, 1, 2)
    scale = 16.1 / 5  # DINOv2's own code: 0.1 is added before it divides
    large = functional.interpolate(square, scale_factor=(scale, scale), mode="bicubic")
    assert large.shape[2:] == (16, 16)
    whole = torch.cat([table[:, :1], large.permute(0, 2, 3, 1).reshape(1, 256, 32)], 1)
    network.embeddings.position_embeddings = torch.nn.Parameter(whole)
    network.embeddings.patch_embeddings.num_patches = 256
    utils = transformers.image_utils
    x = standardised(images(224), utils.IMAGENET_DEFAULT_MEAN, utils.IMAGENET_DEFAULT_STD)
    close(extract(ours, images(224)), network(x).pooler_output)


@pytest.mark.parametrize("pickled", [False, True])
def test_clip_is_the_image_embedding_of_the_package(
    transformers: Any, tmp_path: Path, pickled: bool
) -> None:
    network = clip(transformers, tmp_path)
    if pickled:
        names = network.state_dict() | {"vision_model.embeddings.position_ids": torch.arange(17)}
        (tmp_path / "model.safetensors").unlink()
        torch.save(names, tmp_path / "pytorch_model.bin")
    ours = pretrained("clip", tmp_path)
    utils = transformers.image_utils
    x = standardised(images(56), utils.OPENAI_CLIP_MEAN, utils.OPENAI_CLIP_STD)
    answer = network.get_image_features(x)
    close(extract(ours, images(56)), getattr(answer, "pooler_output", answer))
    assert (ours.name, ours.resizer) == ("clip", "bicubic-antialias 56")
    grey = images(56)[:, :1]
    np.testing.assert_allclose(extract(ours, grey), extract(ours, grey.expand(-1, 3, -1, -1)))


def test_the_digest_follows_the_weights(transformers: Any, tmp_path: Path) -> None:
    network = dinov2(transformers, tmp_path)
    first = pretrained("dinov2", tmp_path).digest
    dinov2(transformers, tmp_path)
    assert pretrained("dinov2", tmp_path).digest == first
    with torch.no_grad():
        network.layernorm.bias[0] += 1
    network.save_pretrained(tmp_path)
    assert pretrained("dinov2", tmp_path).digest != first


def test_a_lone_file_is_the_published_network(transformers: Any, tmp_path: Path) -> None:
    dinov2(transformers, tmp_path)
    with pytest.raises(ArtifactError, match="weights of another network"):
        VisionTransformer("dinov2", tmp_path / "model.safetensors")


def test_the_constants_are_the_published_sizes(transformers: Any) -> None:
    counts = {}
    for name, kind in module._KINDS.items():
        config = getattr(transformers, kind.classes[0])(**kind.sizes)
        with torch.device("meta"):
            network = getattr(transformers, kind.classes[1])(config)
        counts[name] = round(sum(p.numel() for p in network.parameters()) / 1e6)
    assert counts == {"dinov2": 304, "clip": 304}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "bert"),
        ("hidden_size", 10**9),
        ("hidden_size", "32"),
        ("num_hidden_layers", 10**4),
        ("qkv_bias", 1),
        ("hidden_act", "os.system"),
    ],
)
def test_a_config_that_no_network_has_is_refused(
    transformers: Any, tmp_path: Path, key: str, value: object
) -> None:
    dinov2(transformers, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArtifactError, match=r"config\.json"):
        pretrained("dinov2", tmp_path)


def test_a_missing_tensor_is_named(transformers: Any, tmp_path: Path) -> None:
    network = dinov2(transformers, tmp_path)
    names = network.state_dict()
    del names["layernorm.bias"]
    (tmp_path / "model.safetensors").unlink()
    torch.save(names, tmp_path / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"missing, layernorm\.bias"):
        pretrained("dinov2", tmp_path)


def test_without_the_package_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(UsageError, match=r"poise\[pretrained\]"):
        pretrained("clip", tmp_path)


@pytest.mark.parametrize("side", [20, 57, 130])
def test_the_resizing_is_that_of_pillow_without_its_rounding(side: int) -> None:
    x = images(side, 1).float()
    found = bicubic_antialias(x, 56)[0]
    for channel, wanted in zip(found, x[0], strict=True):
        small = Image.fromarray(wanted.numpy()).resize((56, 56), Image.Resampling.BICUBIC)
        assert np.abs(channel.numpy() - np.asarray(small)).max() < 1e-2
