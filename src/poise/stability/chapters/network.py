"""Faults inside the network: a layer, a tensor, a noise band."""

from poise.stability.cause import Cause

TITLE = "The network"
CHAPTER = (
    Cause(
        "weight-growth",
        "Weights grow",
        "The size of the weights rises with a steady slope; the effective rate falls with it.",
        "Nothing holds the weights at a size. Adam pushes outwards on average, so they grow.",
        "The slope is measured and told. The run goes back to the last healthy checkpoint, "
        "and stops when that has not helped twice.",
        "Use a network with forced weight norm (the default), or decoupled weight decay.",
        4,
        "warning",
    ),
    Cause(
        "activation-growth",
        "Activations grow",
        "The output of some blocks rises with a steady slope, at first with no harm to the error.",
        "A residual branch adds more than it should, or a norm that should hold the size is "
        "missing. In half precision this ends in overflow.",
        "The block, the slope and the update of the expected overflow are told. The run goes "
        "back, and stops when that has not helped twice.",
        "Use magnitude-preserving layers (the default network), fp32, or a lower rate.",
        5,
        "warning",
    ),
    Cause(
        "vanishing-gradients",
        "Gradients vanish on their way back",
        "The first layers receive gradients thousands of times smaller than the last ones.",
        "Something in the middle passes almost nothing on: a scale near zero, dead units, a "
        "saturated function.",
        "The ratio and the layers are told. The run goes back, and stops when that has not "
        "helped twice.",
        "Look at the layer after which gradients are small; use skips and normalisation.",
        6,
        "warning",
    ),
    Cause(
        "dead-units",
        "Units are dead",
        "A share of one layer's outputs is the same whatever the image.",
        "Their weights are zero, or their input is always below zero (ReLU): no gradient reaches "
        "them, so they stay dead.",
        "The layer and the share of its dead units are told, and the run goes back once. Nothing "
        "is initialised anew.",
        "Use silu (model.activation), a lower rate, or go back to an earlier checkpoint.",
        7,
        "warning",
    ),
    Cause(
        "stale-layer",
        "Some weights do not learn",
        "Tensors have the same values after many updates, bit by bit, while others move.",
        "They are missing from the optimiser, frozen, cut off from the loss, or the change is "
        "below what their number format can hold.",
        "The tensors are listed. The run goes back once; if they still stand, it was set up "
        "wrongly, and stops, since it would waste its time.",
        "Check what is handed to the optimiser, and whether something is detached or frozen.",
        7,
        "warning",
    ),
    Cause(
        "broken-band",
        "One noise band is broken",
        "The error of one range of noise levels rises or stays near 1; the others are normal.",
        "The weight of the loss, the sampling of noise levels, or the precision fails there alone. "
        "A rate that is too high hits all bands.",
        "The band is named, and the run goes back once. The rate is left alone.",
        "Check diffusion.weighting, P_mean and P_std; with low noise and bf16, try fp32.",
        7,
        "warning",
    ),
    Cause(
        "precision-overflow",
        "Numbers overflow half precision",
        "Updates are left out again and again, or the scale of the loss keeps falling.",
        "Values pass the largest number of the format, 65,504 in fp16.",
        "The layer is named, and the run goes on in fp32 from the last healthy checkpoint.",
        "Set training.precision=fp32, or bf16, which reaches as far as fp32.",
        8,
        "warning",
    ),
    Cause(
        "precision-stagnation",
        "Updates are rounded away",
        "Gradients are healthy and the weights hardly move; the error stands still.",
        "Below a 256th of a weight, a change is lost when the weight itself is kept in bf16.",
        "The share of weights that did not move is told, and the run goes back once.",
        "Keep the weights in fp32 (training.precision changes the arithmetic only).",
        6,
        "warning",
    ),
    Cause(
        "attention-collapse",
        "Attention collapses",
        "Attention logits grow without limit; each place attends to one other place only.",
        "Queries and keys grow together at a high rate where nothing normalises them.",
        "The block and the size of its logits are told. Nothing is changed.",
        "Use a network with normalised queries and keys (the default), or a lower rate.",
        6,
        "warning",
    ),
)
