"""How large weights and activations are: what EDM2 keeps in place and its baseline lets grow."""

import torch
from torch import Tensor, nn

from poise.diffusion.denoiser import Denoiser


@torch.no_grad()
def activation_rms(denoiser: Denoiser, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
    """Root mean square of the output of each block, in their order, [blocks], fp32.

    Args:
        denoiser: its network holds its blocks in `enc` and `dec`, or in `blocks`.
        x: noisy images [B, C, H, W].
        sigma: their noise level [B].
        labels: as the denoiser takes them.
    """
    found: list[Tensor] = []

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        found.append(output.float().square().mean().sqrt())

    blocks = named_blocks(denoiser.network).values()
    handles = [block.register_forward_hook(note) for block in blocks]
    try:
        denoiser.eval()(x, sigma, labels)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found) if found else x.new_zeros(0)


def weight_rms(denoiser: Denoiser) -> Tensor:
    """Root mean square of all weights together, []."""
    weights = [w.detach() for w in denoiser.parameters()]
    size = sum(w.numel() for w in weights)
    rms: Tensor = torch.nn.utils.get_total_norm(weights) / size**0.5
    return rms


def named_blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The blocks of `enc` and `dec`, or of `blocks`, by name such as `enc.8x8_block0`, in order."""
    groups = {name: getattr(network, name, None) for name in ("enc", "dec", "blocks")}
    return {
        f"{group}.{name}": block
        for group, module in groups.items()
        if isinstance(module, nn.Module)
        for name, block in module.named_children()
    }
