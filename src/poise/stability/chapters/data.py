"""Images, labels, and how they arrive."""

from poise.stability.cause import Cause

TITLE = "The data"
CHAPTER = (
    Cause(
        "non-finite-input",
        "An image holds NaN or infinity",
        "The loss of one batch is NaN; the batch itself already holds it.",
        "Arrays and cached latents can hold such numbers: an empty region, an overflow when they "
        "were made.",
        "Found before the batch is trained on: the update is left out and the files are "
        "named. When it keeps coming, every batch is looked through for such images, and they "
        "are left out.",
        "Mend or remove the files; `poise prepare` refuses or fills such values, as you ask.",
        9,
        "warning",
    ),
    Cause(
        "out-of-range-data",
        "Images are in the wrong range",
        "Error and gradient jump by factors of hundreds on a batch, or from one moment on.",
        "Bytes from 0 to 255 where numbers from -1 to 1 are expected, or latents of another scale: "
        "a conversion was left out or done twice.",
        "Found before the batch is trained on: the update is left out and the files are "
        "named. When it keeps coming, every batch is looked through for such images, and they "
        "are left out.",
        "Convert all files the same way; `poise prepare` does, and writes it down.",
        9,
        "warning",
    ),
    Cause(
        "bad-label",
        "A label is outside the known classes",
        "A crash inside the embedding, or a class that learns nonsense.",
        "The table of labels and the list of classes do not belong together.",
        "Found before the batch is trained on: the update is left out, the files and labels "
        "are named. When it keeps coming, such images are left out of every batch.",
        "Mend the labels, or prepare the source again.",
        9,
        "warning",
    ),
    Cause(
        "constant-data",
        "Images are of one colour",
        "The loss falls, as if training went superbly; held-out images get much worse.",
        "A shard of empty images: black, white or grey. They are trivial to denoise, and the "
        "network forgets everything else.",
        "Named within a few updates: a fall of the loss is no progress. Such images are left "
        "out from then on, and the run goes back to before they came.",
        "Remove them; `poise audit` lists images of one colour.",
        8,
        "warning",
    ),
    Cause(
        "repeated-batches",
        "The same batch comes again and again",
        "Training error falls fast, and the same files are seen while others are not.",
        "Workers share a seed, a loader is stuck, an index is not advanced.",
        "Repeats are counted by content and by index. The run goes back to where they began, "
        "with the feed of images started anew, and stops when that has not helped twice.",
        "If you feed your own batches, check their seeds. Weighted draws repeat images on purpose "
        "and are not reported.",
        8,
        "warning",
    ),
    Cause(
        "data-starvation",
        "Training waits for data",
        "The device idles: a large part of the time passes in waiting for batches.",
        "Decoding or reading is slower than the network.",
        "The share of the time is told. Nothing is changed.",
        "`poise prepare` once, then train from its store; `poise bench data SOURCE` shows which "
        "stage is slow.",
        5,
        "warning",
    ),
    Cause(
        "corrupt-files",
        "Files cannot be read",
        "Images are missing from the count; a file is empty, cut off, or not an image.",
        "Broken downloads, full disks, web pages saved as pictures.",
        "Each file is named with its reason and left out; too many stop the run before it starts.",
        "Fetch them again, or leave them out with `poise prepare`.",
        9,
        "warning",
    ),
    Cause(
        "mixed-files",
        "Files of different kinds are mixed",
        "Sizes, colour modes or orientations differ between files.",
        "Images come from several sources: with transparency, 16 bit, CMYK, turned by EXIF.",
        "Each kind is counted and converted in a stated way.",
        "Read the counts in the audit; convert beforehand what should look otherwise.",
        9,
        "info",
    ),
)
