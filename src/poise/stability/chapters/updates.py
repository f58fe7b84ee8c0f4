"""Updates that go wrong: the batch, the arithmetic, the step."""

from poise.stability.cause import Cause

TITLE = "Updates"
CHAPTER = (
    Cause(
        "bad-batch",
        "One bad batch",
        "Error and gradient norm jump on one update, far outside their usual spread; the next "
        "batch is normal again.",
        "Some images of the batch are unlike all others: noise, a wrong conversion, a torn file. "
        "Applied, one such batch can cost hundreds of updates.",
        "The update is left out before it changes a weight. The images are named, the strangest "
        "first; those that come back a second time are no longer trained on.",
        "Look at the named files. Remove or mend them, and run `poise audit` over the source.",
        3,
        "warning",
    ),
    Cause(
        "non-finite-activation",
        "A layer puts out NaN or infinity",
        "The loss is NaN although every input is a finite number.",
        "A value left the range of the arithmetic inside one layer: numbers too large for half "
        "precision, a division by almost zero, a root of a negative number.",
        "The update is left out; weights, averages and optimiser stay as they were. The batch "
        "is run again to find the first layer with good inputs and bad outputs. If it keeps "
        "coming, the run goes back, then stops.",
        "With bf16, try training.precision=fp32. Where the layer is your own, look for divisions, "
        "roots and logarithms in it.",
        6,
        "warning",
    ),
    Cause(
        "non-finite-gradient",
        "A gradient is NaN or infinite while the loss is fine",
        "Loss and error are normal numbers, the gradient norm is not.",
        "The backward pass overflowed or divided by zero: a square root at 0, a norm of a zero "
        "vector, a custom function with a wrong derivative.",
        "The update is left out, and the tensors whose gradient is not finite are named. If "
        "it keeps coming, the run goes back, then stops.",
        "If it happens once, nothing. If it comes back, look at the named tensors' layer, or set "
        "training.precision=fp32.",
        5,
        "warning",
    ),
    Cause(
        "weights-damaged",
        "Weights are not finite, or absurdly large",
        "Every update from one moment on is NaN, whatever the batch.",
        "A weight was overwritten: a bad update that was applied, a fault in memory, another "
        "program. Leaving out batches cannot mend it.",
        "The run goes back to the last healthy checkpoint; the tensors are named. Where a "
        "layer normalises its weights, a single huge one may be absorbed, and that is said.",
        "If it comes back on the same machine, test its memory. Otherwise nothing.",
        8,
        "critical",
    ),
    Cause(
        "lr-too-high",
        "The learning rate is too high",
        "Error rises in all noise bands at once, updates are many times their usual size. A "
        "network with forced weight norm does not explode: its error goes to about 1 and stays.",
        "Steps overshoot: each one jumps across the valley instead of down into it. Or the rate "
        "that is used is not the one that was planned.",
        "The run goes back to the last healthy checkpoint and on with half the rate, warmed "
        "up again, and with a quarter the next time. A rate that is not the planned one is put "
        "back, and so is a plan that jumped.",
        "Halve training.lr for the next run; `poise train` can measure a good one beforehand.",
        7,
        "critical",
    ),
    Cause(
        "lr-drift",
        "The learning rate drifts away from its plan",
        "The rate in use grows a little with every update, where the schedule does not.",
        "A schedule that is applied twice, a callback, a second scheduler: each step is too small "
        "to see, and their product is not.",
        "The planned rate is put back before the error rises.",
        "Look for a second place that sets the rate.",
        8,
        "warning",
    ),
    Cause(
        "second-moment-lag",
        "Adam's second moment lags behind",
        "Squared gradients are many times what the optimiser expects; the error jumps one to "
        "eight updates later.",
        "Adam divides by a slow average of squared gradients. When that average is far too small "
        "(after a calm stretch, or damage) the step is far too large.",
        "The run goes back to the last healthy checkpoint, whose second moment is the right one.",
        "If it recurs, lower the second of training.betas, for example from 0.99 to 0.95, or "
        "enlarge training.batch.",
        7,
        "warning",
    ),
    Cause(
        "ascent",
        "The updates climb instead of descending",
        "Error rises steadily, faster and faster, although rate and gradient norm began normal.",
        "The sign of the gradient is wrong: a loss that should be maximised, a hook that negates, "
        "weights moved along the gradient.",
        "The direction is tested: the error a small step ahead is measured. Where it rises, "
        "the run goes back to the last healthy checkpoint, and stops when that has not helped "
        "twice.",
        "Look for a sign: a negated loss, a gradient hook, an optimiser that maximises.",
        8,
        "critical",
    ),
    Cause(
        "exploding-gradients",
        "Gradients explode",
        "The gradient norm grows over many updates, by factors, not percents.",
        "Each layer multiplies the gradient a little too much, so that depth makes it a power: no "
        "normalisation, weights that are too large, a rate at the edge.",
        "Outlying updates are left out. If it goes on the run goes back, then goes back with "
        "half the rate, then stops.",
        "Lower training.lr or lengthen training.warmup; use a network that normalises "
        "(model.rung G, the default).",
        5,
        "warning",
    ),
    Cause(
        "divergence",
        "The error rises and no cause was found",
        "The error is far above its best for many updates and does not come back.",
        "Everything that has a name was looked for and not found. The rate is the first suspect.",
        "The run goes back to the last healthy checkpoint and on with half the rate, warmed "
        "up again.",
        "Lower training.lr. If you changed the network or the loss, look there.",
        0,
        "critical",
    ),
)
