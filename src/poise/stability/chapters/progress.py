"""What a run learns, or does not: curves, averages, memorisation."""

from poise.stability.cause import Cause

TITLE = "Progress"
CHAPTER = (
    Cause(
        "oscillation",
        "The error swings",
        "Error goes up and down by much more than the noise of batches, without trend.",
        "The rate is at the edge of what the curvature allows, often with high momentum.",
        "The run goes back to the last healthy checkpoint and on with half the rate.",
        "Lower training.lr or the first of training.betas, or enlarge training.batch.",
        3,
        "warning",
    ),
    Cause(
        "slow-convergence",
        "Learning is very slow",
        "The error falls, but so slowly that the run will end far from where it could.",
        "The rate is far too low, the warm-up too long, or updates are mostly left out.",
        "The size of the updates is told beside their usual size. Nothing is changed.",
        "Raise training.lr, or leave it at the preset's value.",
        2,
        "warning",
    ),
    Cause(
        "plateau",
        "The error stands still",
        "The error has stopped falling long before the end of the run.",
        "The network has learned what it can at this rate and size, or it learns nothing: then "
        "the error stands near 1, the value of a network without information.",
        "The level and the moment are told. The run ends early only where held-out images get "
        "worse.",
        "If the error is near 1, lower the rate. Else let the rate fall (training.decay), take a "
        "larger preset, or stop: more time brings little.",
        2,
        "info",
    ),
    Cause(
        "memorisation",
        "The model learns its training images by heart",
        "Error on training images falls, on held-out images it rises, most at middle noise.",
        "There are few images for the size of the network and the length of the training.",
        "The feed of images is started anew, in case it hands out a part of them only. If it "
        "goes on, the run ends and keeps its best state (stability.early_stop).",
        "Add images or flips, use model.dropout=0.1, a smaller preset, or a shorter training.",
        4,
        "warning",
    ),
    Cause(
        "samples-worse",
        "Samples have got worse",
        "Scores of the snapshots since the best one are clearly worse in most metrics together.",
        "The network learns its training images by heart, or the rate is too high for what is "
        "left to learn.",
        "The run ends and keeps its best snapshot (stability.early_stop).",
        "Look at the scores over training in the report; train shorter, or let the rate fall "
        "(training.decay).",
        2,
        "warning",
    ),
    Cause(
        "condition-ignored",
        "The class is ignored",
        "Samples look the same for every class; swapping labels changes almost nothing.",
        "The path of the label is cut or zero, labels are shuffled, or they were hidden too often.",
        "The effect of the label is measured at every probe; the run goes back once to where "
        "it was lost.",
        "Check the labels of the source and training.label_dropout.",
        6,
        "warning",
    ),
    Cause(
        "diversity-collapse",
        "Samples are all alike",
        "Many samples from different seeds are nearly the same image.",
        "The noise that starts the samples is the same, the data has few different images, or the "
        "network ignores its input.",
        "The spread of samples is measured against that of real images and told, and the run "
        "goes back once.",
        "Check the seeds you sample with; look for duplicates with `poise audit`.",
        6,
        "warning",
    ),
    Cause(
        "ema-frozen",
        "The averaged weights do not move",
        "The raw weights learn, samples and validation of the average stand still.",
        "The average is not updated, or its length is set far beyond the run.",
        "The averages are taken from the newest healthy checkpoint and brought up to now; "
        "training goes on.",
        "Nothing; check your own code if you update averages yourself.",
        8,
        "critical",
    ),
    Cause(
        "ema-damaged",
        "The averaged weights are damaged",
        "Validation of the average is NaN or far off; the raw weights are healthy.",
        "NaN once taken into an average never leaves it.",
        "The averages are taken from the newest healthy checkpoint and brought up to now; "
        "training goes on.",
        "Nothing. If it comes back on one machine, test its memory.",
        8,
        "critical",
    ),
    Cause(
        "ema-too-long",
        "The averages are too long for this run",
        "Averaged weights have a higher error than the raw ones, and the gap does not close.",
        "The average still holds early training: its width does not suit the length of the run.",
        "The gap is told, and the run goes back once; validation picks the best weights for the "
        "samples.",
        "`poise ema sweep RUN` makes a better one without training; or lower training.ema_stds.",
        3,
        "info",
    ),
)
