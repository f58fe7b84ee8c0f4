"""The kinds of faults in system and files of a run: rows C of the fault matrix, as data."""

from poise.drill.kind import Kind

_AT = ("at",)

_SIGNALS = (
    Kind(
        "sigterm-step",
        "interrupted",
        "system",
        "SIGTERM arrives during an update; then the run is resumed.",
        "C1",
        _AT,
    ),
    Kind(
        "sigterm-probe",
        "interrupted",
        "system",
        "SIGTERM arrives while the guard looks inside the network; then the run is resumed.",
        "C1",
        _AT,
    ),
    Kind(
        "sigterm-sampling",
        "interrupted",
        "system",
        "SIGTERM arrives while a grid of samples is drawn; then the run is resumed.",
        "C1",
        _AT,
    ),
    Kind(
        "sigterm-validation",
        "interrupted",
        "system",
        "SIGTERM arrives while held-out images are measured; then the run is resumed.",
        "C1",
        _AT,
    ),
    Kind(
        "sigterm-warm-up",
        "interrupted",
        "system",
        "SIGTERM arrives in the first updates of a new run; then the run is resumed.",
        "C1",
        _AT,
        {"at": 3},
        whole=True,
    ),
    Kind(
        "sigkill",
        "killed",
        "system",
        "The process is killed `magnitude` times, now and then in the middle of a save; each time "
        "the run is resumed.",
        "C2",
        ("at", "magnitude", "seed"),
        {"magnitude": 2.0},
        limits=(1, 100),
    ),
    Kind(
        "resume-exact",
        "interrupted",
        "system",
        "SIGTERM arrives between the parts of a batch that is trained in `magnitude` parts; then "
        "the run is resumed.",
        "C7",
        ("at", "magnitude"),
        {"at": 37, "magnitude": 2.0},
        limits=(2, 64),
    ),
)

_CHECKPOINTS = (
    Kind(
        "newest-truncated",
        "damaged-checkpoint",
        "system",
        "The process ends, the newest checkpoint is left with the share `share` of its bytes, and "
        "the run is resumed.",
        "C3",
        ("at", "share"),
        {"share": 0.5},
    ),
    Kind(
        "newest-bitflip",
        "damaged-checkpoint",
        "system",
        "The process ends, one bit of the newest checkpoint flips, and the run is resumed.",
        "C3",
        ("at", "seed"),
    ),
    Kind(
        "entries-missing",
        "incomplete-checkpoint",
        "system",
        "The process ends, the newest checkpoint lacks the entries whose names begin with "
        "`tensor` though it is well-formed, and the run is resumed.",
        "C8",
        ("at", "tensor"),
        {"tensor": "ema"},
    ),
    Kind(
        "stale-checkpoint",
        "damaged-checkpoint",
        "system",
        "The process ends, a later checkpoint of another run lies in the folder, and the run is "
        "resumed.",
        "C6",
        ("at", "seed"),
    ),
)

_MACHINE = (
    Kind(
        "disk-full",
        "disk-full",
        "system",
        "No file of more than `magnitude` KiB can be written for a while.",
        "C4",
        ("at", "duration", "magnitude"),
        {"duration": 60, "magnitude": 256.0},
        limits=(1, 1e6),
    ),
    Kind(
        "folder-unwritable",
        "disk-full",
        "system",
        "Nothing can be written into the folder of checkpoints for a while.",
        "C5",
        ("at", "duration"),
        {"duration": 60},
    ),
    Kind(
        "log-raises",
        "log-failed",
        "system",
        "Lines of metrics.jsonl cannot be written for a while.",
        "C9",
        ("at", "duration"),
        {"duration": 40},
    ),
    Kind(
        "out-of-memory",
        "out-of-memory",
        "system",
        "There is no memory for one update.",
        "C10",
        _AT,
    ),
)

_RANKS = (
    Kind(
        "rank-perturbed",
        "rank-divergence",
        "system",
        "Two processes train together, and one tensor of rank 1 gets noise of `magnitude` times "
        "its root mean square.",
        "C11",
        ("at", "magnitude", "tensor", "seed"),
        {"magnitude": 0.001},
        limits=(1e-6, 1e6),
    ),
    Kind(
        "rank-killed",
        "rank-lost",
        "system",
        "Two processes train together, and rank 1 is killed; both are started again.",
        "C11",
        _AT,
    ),
    Kind(
        "rank-hung",
        "rank-lost",
        "system",
        "Two processes train together, and rank 1 hangs; it is waited for `magnitude` seconds, and "
        "both are started again.",
        "C11",
        ("at", "magnitude"),
        {"magnitude": 15.0},
        limits=(2, 600),
    ),
)

KINDS: dict[str, Kind] = {k.name: k for k in (*_SIGNALS, *_CHECKPOINTS, *_MACHINE, *_RANKS)}
