"""Other people's metrics, for tests that compare with them."""

import warnings
from types import ModuleType

import torch

_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_library: list[torch.library.Library] = []


def torch_fidelity() -> ModuleType:
    """The package; it imports torchvision, of which it uses nothing that we ask for.

    Beside a build of PyTorch for another device than torchvision's, torchvision cannot load its
    own operators and then stumbles over their names. Naming them lets it load without them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import torchvision  # noqa: F401
        except RuntimeError:
            _library.append(torch.library.Library("torchvision", "DEF"))
            for operator in _OPERATORS:
                _library[0].define(operator)
        import torch_fidelity

        return torch_fidelity


def torchmetrics_image() -> ModuleType:
    """`torchmetrics.image`; its Fréchet distance wants torch-fidelity to be there."""
    torch_fidelity()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torchmetrics.image

        return torchmetrics.image
