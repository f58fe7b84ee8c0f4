"""The machine, the disk, other processes."""

from poise.stability.cause import Cause

TITLE = "The machine"
CHAPTER = (
    Cause(
        "unrepeatable-result",
        "The same work gives another result",
        "One batch computed twice gives two numbers.",
        "A device that is failing or too hot, overclocked memory, or an operation whose order is "
        "left to chance.",
        "The update is computed twice where something looks wrong. If the numbers differ, the "
        "run goes back, and stops when it happens a third time, since nothing it says could "
        "be trusted.",
        "Test memory and cooling; train on another device.",
        9,
        "critical",
    ),
    Cause(
        "rank-divergence",
        "Processes of one training no longer agree",
        "The loss looks normal, but the copies of the weights are not equal.",
        "One process missed an update or was damaged; gradients of different models are averaged.",
        "Checksums are compared; the process and the first unequal tensor are named. The run "
        "goes back to a checkpoint where all agreed, and stops when it happens again.",
        "If it is always the same machine, take it out.",
        9,
        "critical",
    ),
    Cause(
        "rank-lost",
        "A process of the training is gone",
        "The others wait for it.",
        "It was killed, crashed, or hangs.",
        "After a timeout the rest stops; torchrun with --max-restarts starts the training again "
        "from its checkpoint.",
        "Look at the log of that process and its machine's memory.",
        9,
        "critical",
    ),
    Cause(
        "out-of-memory",
        "Memory ran out",
        "An update fails for lack of memory.",
        "The batch is too large for the device, or another program takes part of it.",
        "The same batch is computed again in smaller parts: the update is the same, only slower.",
        "Set training.micro_batch to what was found, or close the other program.",
        9,
        "warning",
    ),
    Cause(
        "disk-full",
        "The disk is full",
        "A checkpoint could not be saved.",
        "There is no room for a new one beside the last, or the folder is read-only.",
        "What was saved before is intact. Training goes on and saves again later; the bytes "
        "that are free are told.",
        "Free some space, or lower cadence.snapshot_gib in the next run.",
        9,
        "critical",
    ),
    Cause(
        "log-failed",
        "A log could not be written",
        "Lines are missing from a log; the training is not affected.",
        "Disk, network or permissions of the log.",
        "Training goes on and writes the next line when it is due; after 20 failures in a row "
        "the run ends. A dashboard that fails is switched off.",
        "Check the disk or the service of the log.",
        9,
        "warning",
    ),
    Cause(
        "damaged-checkpoint",
        "A checkpoint is damaged",
        "Its checksum does not match its content.",
        "A bit changed on the disk, or something else wrote into the file.",
        "It is set aside under another name, never deleted, and the one before it is used.",
        "Check the disk if it happens twice.",
        9,
        "warning",
    ),
    Cause(
        "incomplete-checkpoint",
        "A checkpoint was never finished",
        "A file is there under its temporary name, or entries are missing in it.",
        "The process was stopped while it was writing.",
        "Temporary files are ignored. A checkpoint with missing entries is refused by name, and "
        "the one before it is used.",
        "Nothing: resume.",
        9,
        "warning",
    ),
    Cause(
        "interrupted",
        "The run was interrupted",
        "The run ended before its plan, with its state saved.",
        "Ctrl-C, SIGTERM, or a machine that shuts down.",
        "The update is finished, the state saved, and the exit code is 130.",
        "Resume: it goes on exactly where it was.",
        9,
        "info",
    ),
    Cause(
        "killed",
        "The process is gone",
        "The run says that it is still going, but nobody is working on it.",
        "A kill -9, a power cut, the system's memory guard.",
        "Everything up to the last checkpoint is kept.",
        "Resume. If the system killed it for memory, set training.micro_batch first.",
        9,
        "critical",
    ),
)
