"""Files with the structure of the reference's, written here without a word of its source.

The modules that such files name exist while a file is written and not a moment longer.
"""

import io
import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

SOURCE = "raise RuntimeError('the source text in the file was run')"


class EasyDict(dict[str, Any]):
    """A dict subclass, as the reference has one."""


class Record:
    """An object that reduces to its class name, its attributes and a source text."""

    def __init__(self, class_name: str, state: dict[str, Any], source: str = SOURCE) -> None:
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": source,
            "class_name": class_name,
            "state": state,
        }

    def __reduce__(self) -> Any:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


class Module(nn.Module):
    """A network that pickles as a `Record` of its attributes."""

    class_name, source = "MPConv", SOURCE

    def __reduce__(self) -> Any:
        return Record(self.class_name, dict(self.__dict__), self.source).__reduce__()


@contextmanager
def reference_modules() -> Iterator[None]:
    """`dnnlib.util` and `torch_utils.persistence`, with nothing in them that does anything."""
    fakes = {
        name: types.ModuleType(name)
        for name in ("dnnlib", "dnnlib.util", "torch_utils", "torch_utils.persistence")
    }
    assert not fakes.keys() & sys.modules.keys()

    def reconstruct(meta: Any) -> Any:
        raise AssertionError("unpickled")

    before = EasyDict.__module__
    reconstruct.__module__ = "torch_utils.persistence"
    reconstruct.__qualname__ = reconstruct.__name__ = "_reconstruct_persistent_obj"
    vars(fakes["torch_utils.persistence"])["_reconstruct_persistent_obj"] = reconstruct
    vars(fakes["dnnlib.util"])["EasyDict"] = EasyDict
    sys.modules.update(fakes)
    EasyDict.__module__ = "dnnlib.util"
    try:
        yield
    finally:
        EasyDict.__module__ = before
        for name in fakes:
            del sys.modules[name]


def network(
    weights: Mapping[str, Tensor],
    kwargs: Mapping[str, Any],
    *,
    classes: tuple[str, str] = ("Precond", "UNet"),
    source: str = SOURCE,
) -> Module:
    """A tree of modules with these weights, configured by these arguments."""
    top = Module()
    top.class_name, top.source = classes[0], source
    for name, value in weights.items():
        *path, leaf = name.split(".")
        module: Any = top
        for depth, part in enumerate(path):
            if part not in module._modules:
                container = part in ("enc", "dec")
                child: Any = nn.ModuleDict() if container else Module()
                if depth == 0 and part in ("unet", "model"):
                    child.class_name = classes[1]
                module.add_module(part, child)
            module = module._modules[part]
        if leaf in ("freqs", "phases", "resample_filter"):
            module.register_buffer(leaf, value.clone())
        else:
            module.register_parameter(leaf, nn.Parameter(value.clone()))
    top.register_buffer("scratch", torch.zeros(3), persistent=False)
    top.register_parameter("absent", None)
    top._init_args, top._init_kwargs = (), dict(kwargs)
    return top


def pickled(value: Any, protocol: int = 4) -> bytes:
    with reference_modules():
        return pickle.dumps(value, protocol)


def snapshot(
    weights: Mapping[str, Tensor], kwargs: Mapping[str, Any], **options: Any
) -> dict[str, Any]:
    """What EDM2 writes as a network snapshot: the average, in fp16 and without gradients."""
    scale = np.array([0.12, 0.11, 0.13, 0.15], np.float32)
    encoder = {"vae_name": "vae", "scale": scale, "_init_args": (), "_init_kwargs": {}}
    ema = network(weights, kwargs, **options).eval().requires_grad_(False).half()
    return EasyDict(
        encoder=Record(
            "StabilityVAEEncoder" if kwargs["img_channels"] == 4 else "StandardRGBEncoder", encoder
        ),
        dataset_kwargs=EasyDict(class_name="training.dataset.ImageFolderDataset", use_labels=True),
        loss_fn=Record("EDM2Loss", {"P_mean": -0.4, "P_std": 1.0, "sigma_data": 0.5}),
        ema=ema,
    )


def adm_snapshot(
    weights: Mapping[str, Tensor], kwargs: Mapping[str, Any], **options: Any
) -> dict[str, Any]:
    """What EDM writes as a network snapshot, in fp32."""
    options = {"classes": ("EDMPrecond", "DhariwalUNet"), **options}
    ema = network(weights, kwargs, **options).eval().requires_grad_(False)
    return {
        "ema": ema,
        "loss_fn": Record("EDMLoss", {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5}),
        "augment_pipe": None,
        "dataset_kwargs": {"path": "data.zip"},
    }


def training_state(
    weights: Mapping[str, Tensor], averages: Mapping[float, Mapping[str, Tensor]], images: int
) -> dict[str, Any]:
    """What EDM2 writes to resume from."""
    net = network(weights, {})
    parameters = list(net.parameters())
    moments = {i: {"step": torch.tensor(3.0), "exp_avg": w.data} for i, w in enumerate(parameters)}
    group = {"lr": np.float64(0.01), "betas": (0.9, 0.99), "params": list(range(len(moments)))}
    return {
        "state": EasyDict(cur_nimg=images, total_elapsed_time=12.5),
        "net": net.state_dict(),
        "loss_fn": {"P_mean": -0.8, "P_std": 1.6, "sigma_data": 0.5},
        "optimizer": {"state": moments, "param_groups": [group]},
        "ema": {"stds": list(averages), "emas": [OrderedDict(e) for e in averages.values()]},
    }


def saved(value: Any) -> bytes:
    """The zip of `torch.save`."""
    buffer = io.BytesIO()
    with reference_modules():
        torch.save(value, buffer)
    return buffer.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
