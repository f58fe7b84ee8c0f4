"""Networks that others have trained: Inception, and the vision transformers DINOv2 and CLIP.

The transformers are built by the package `transformers` from a few sizes; their weights are read by
`weights`, so nothing is unpickled. Each is used as its metric defines it: the Fréchet distance on
DINOv2 (Stein et al. 2023, arXiv 2306.04675) and the CLIP distance CMMD (Jayasumana et al. 2024,
arXiv 2401.09603).
"""

import importlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional

from poise.artifacts import digest_of, read_json
from poise.errors import ArtifactError, UsageError
from poise.evaluation.extractors.fixed import as_three
from poise.evaluation.extractors.inception import Inception
from poise.evaluation.extractors.resizing import bicubic_antialias
from poise.evaluation.extractors.weights import Published, find_weights, read_weights

_HUGGING_FACE = ("model.safetensors", "pytorch_model.bin")
_CHUNK = 32  # images at a time
_LARGEST = 2**14  # of any size in a config.json
_POSITIONS = "embeddings.position_embeddings"  # DINOv2's
# What is taken from a config.json, and of which type it must be.
_KNOWN: dict[str, type] = {
    **dict.fromkeys(("hidden_size", "num_hidden_layers", "num_attention_heads"), int),
    **dict.fromkeys(("patch_size", "image_size", "intermediate_size", "mlp_ratio"), int),
    **dict.fromkeys(("projection_dim",), int),
    **dict.fromkeys(("qkv_bias", "use_swiglu_ffn", "use_mask_token"), bool),
    "layer_norm_eps": float,
    "hidden_act": str,
}


@dataclass(frozen=True)
class _Kind:
    """One of the transformers.

    Attributes:
        side: pixels that images are brought to; 0: what the network was trained with.
        mean, std: of the colours in [0, 1], which are standardised with them.
        classes: of the configuration and of the network, in `transformers`.
        output: the attribute of its answer that has the features.
        model_types: what its config.json calls itself.
        parts: how the names of its tensors start; the others belong to other networks.
        token: the tensor of the class token, whose width tells at once if a file fits.
        sizes: of the published network.
    """

    published: Published
    side: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    classes: tuple[str, str]
    output: str
    model_types: tuple[str, ...]
    parts: tuple[str, ...]
    token: str
    sizes: Mapping[str, Any]


_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "patch_size": 14}
_KINDS = {
    "dinov2": _Kind(
        Published("DINOv2 ViT-L/14", _HUGGING_FACE, repository="facebook/dinov2-large"),
        side=224,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        classes=("Dinov2Config", "Dinov2Model"),
        output="pooler_output",  # the class token behind the last normalisation
        model_types=("dinov2",),
        parts=("embeddings.", "encoder.", "layernorm."),
        token="embeddings.cls_token",
        sizes=_LARGE | {"image_size": 518},
    ),
    "clip": _Kind(
        Published(
            "CLIP ViT-L/14-336", _HUGGING_FACE, repository="openai/clip-vit-large-patch14-336"
        ),
        side=0,
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        classes=("CLIPVisionConfig", "CLIPVisionModelWithProjection"),
        output="image_embeds",
        model_types=("clip", "clip_vision_model"),
        parts=("vision_model.", "visual_projection."),
        token="vision_model.embeddings.class_embedding",
        sizes=_LARGE | {"image_size": 336, "intermediate_size": 4096, "projection_dim": 768},
    ),
}


def pretrained(name: str, given: Path | None = None) -> "Inception | VisionTransformer":
    """The network called inception, dinov2 or clip.

    Args:
        given: a file with the weights, or a folder with one (for transformers as Hugging Face
            saves it, with config.json); None: see `find_weights`.

    Raises:
        UsageError: what the network needs is not installed.
        ArtifactError: there are no weights, or they are another network's.
    """
    return Inception(given) if name == "inception" else VisionTransformer(name, given)


@final
class VisionTransformer:
    """DINOv2's class token [B, 1024], or CLIP's embedding of an image [B, 768], not normalised."""

    def __init__(self, name: str, given: Path | None = None) -> None:
        """As `pretrained`; `name` is dinov2 or clip."""
        kind = _KINDS[name]
        library = _transformers(kind)
        path = find_weights(kind.published, given)
        sizes = dict(kind.sizes)
        if given is not None and given.is_dir():
            sizes = _sizes(given / "config.json", kind)
        config = getattr(library, kind.classes[0])(**sizes)
        tensors = _of_kind(read_weights(path), kind)
        if kind.token not in tensors or tensors[kind.token].numel() != config.hidden_size:
            raise _another(path, f"{kind.token} is not {config.hidden_size} numbers wide")
        self.name = name
        self._side = kind.side or config.image_size
        self.resizer = f"bicubic-antialias {self._side}"
        definition = f"{name} {self.resizer} {json.dumps(sizes, sort_keys=True)}"
        self.digest = digest_of(tensors, definition)[:12]
        if _POSITIONS in tensors:
            grid = self._side // config.patch_size
            tensors[_POSITIONS] = _positions(tensors[_POSITIONS], grid, path)
            config.image_size = self._side
        self._network = _loaded(getattr(library, kind.classes[1]), config, tensors, path)
        self._kind = kind

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [B, C, H, W], any C (grey is repeated) -> float32 [B, D]."""
        self._network.to(images.device)
        parts = [images[i : i + _CHUNK] for i in range(0, len(images), _CHUNK)]
        with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return torch.cat([self._forward(part) for part in parts])

    def _forward(self, images: Tensor) -> Tensor:
        x = bicubic_antialias(as_three(images.to(torch.float32)), self._side) / 255
        mean, std = (x.new_tensor(v).view(3, 1, 1) for v in (self._kind.mean, self._kind.std))
        answer = self._network((x - mean) / std)
        features: Tensor = getattr(answer, self._kind.output)
        return features


def _transformers(kind: _Kind) -> Any:
    """The package, with the classes of this kind in it.

    Raises:
        UsageError: it is not there, or cannot be loaded.
    """
    try:
        library = importlib.import_module("transformers")
        for name in kind.classes:
            getattr(library, name)  # it imports them when they are asked for
    except (ImportError, AttributeError, RuntimeError) as error:
        why = str(error.__cause__ or error).splitlines()[0].rstrip(".")
        raise UsageError(
            f"{kind.published.what} cannot be built: {why}.",
            expected="the package transformers, and a torchvision that fits torch if there is one",
            remedy="pip install 'poise[pretrained]', or choose the features 'inception'",
        ) from None
    return library


def _sizes(path: Path, kind: _Kind) -> dict[str, Any]:
    """The known sizes of a config.json; for a whole CLIP those of the part that sees.

    Raises:
        ArtifactError: not there, another network's, or with a size that no network has.
    """
    raw = read_json(path)
    raw = raw if isinstance(raw, dict) else {}
    if raw.get("model_type") not in kind.model_types:
        raise ArtifactError(
            f"{path} describes a network of type {str(raw.get('model_type'))[:50]!r}.",
            expected=" or ".join(kind.model_types),
        )
    if isinstance(raw.get("vision_config"), dict):
        raw = raw["vision_config"] | {k: raw[k] for k in ("projection_dim",) if k in raw}
    sizes = {name: raw[name] for name in _KNOWN if name in raw}
    for name, value in sizes.items():
        kinds = (int, float) if _KNOWN[name] is float else (_KNOWN[name],)
        limit = 100 if name == "num_hidden_layers" else _LARGEST
        if (
            type(value) not in kinds
            or (type(value) in (int, float) and not 0 < value <= limit)
            or (type(value) is str and value not in ("gelu", "quick_gelu"))
        ):
            raise ArtifactError(
                f"{path} has {name} = {str(value)[:50]}.",
                expected=f"{_KNOWN[name].__name__}, as a published network has it",
            )
    return sizes


def _of_kind(found: Mapping[str, Tensor], kind: _Kind) -> dict[str, Tensor]:
    """The tensors of this network as float32; a classifier's have its name before theirs."""
    own = {name.removeprefix("dinov2."): tensor for name, tensor in found.items()}
    return {
        name: tensor.to(torch.float32)
        for name, tensor in own.items()
        if name.startswith(kind.parts) and not name.endswith("position_ids")
    }


def _positions(table: Tensor, grid: int, path: Path) -> Tensor:
    """DINOv2's position embeddings [1, 1 + n * n, D] for grid x grid patches.

    Bicubic, with a scale of (grid + 0.1) / n as in DINOv2's own code, with which the published
    distances were computed. `transformers` would take grid / n.
    """
    n = math.isqrt(table.shape[1] - 1) if table.ndim == 3 else 0
    if n < 1 or n * n + 1 != table.shape[1]:
        raise ArtifactError(f"{path} has position embeddings of shape {tuple(table.shape)}.")
    if n == grid:
        return table
    maps = table[:, 1:].reshape(1, n, n, -1).permute(0, 3, 1, 2)
    maps = functional.interpolate(maps, scale_factor=(grid + 0.1) / n, mode="bicubic")
    return torch.cat([table[:, :1], maps.flatten(2).transpose(1, 2)], 1)


def _loaded(model: Any, config: Any, tensors: dict[str, Tensor], path: Path) -> torch.nn.Module:
    """The network with these weights; names of older files are translated by the package.

    Raises:
        ArtifactError: a tensor is missing, left over or of another shape.
    """
    try:
        with _quiet():
            network, told = model.from_pretrained(
                None, config=config, state_dict=dict(tensors), output_loading_info=True
            )
    except (RuntimeError, ValueError) as error:
        raise _another(path, str(error).strip().splitlines()[0]) from None
    for what in ("missing", "unexpected"):
        if names := sorted(told[f"{what}_keys"]):
            raise _another(path, f"{len(names)} tensors are {what}, {names[0]} for one")
    network.requires_grad_(False)
    return network.eval()  # type: ignore[no-any-return]


def _another(path: Path, why: str) -> ArtifactError:
    return ArtifactError(
        f"{path} has weights of another network: {why[:300].rstrip('.')}.",
        expected="the published network, or a folder with its config.json beside the weights",
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the package's bars and notices; what goes wrong is raised."""
    logging = importlib.import_module("transformers.utils.logging")
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
