"""What a scan of many JPEGs costs, beside the raw libraries, and whether its memory stays flat.

    .venv/bin/python scripts/audit_scale.py /tmp/scale --images 100000

Draws the images (256x256, quality 90, about 18 kB; a second call uses them again), compares the
cost of an image with Pillow's decoder, sha256 and a plain perceptual hash on the same files in
turns, then scans whole folders of growing size. Ends with exit code 1 where the cost exceeds 1.5
times that of the raw libraries. Linux only.
"""

import argparse
import hashlib
import io
import os
import subprocess
import sys
import threading
import time
from functools import lru_cache, partial
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before numpy loads

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.fft import dctn

from poise.audit.copies.hashing import hash_thumbs
from poise.audit.look import look_at
from poise.audit.scan import scan
from poise.data.decode import quiet_pillow
from poise.data.sources import open_source
from poise.engines import cores, ordered_map

SIDE, BASES, BASE_SIDE = 256, 64, 384
PER_JOB = 500  # images; also of a subfolder
BOUND = 1.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--sample", type=int, default=1000, help="images compared in turns")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scan", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.scan:
        scan(options.folder)
        return 0
    pictures = options.folder / f"{options.images}-{options.seed}"
    make(pictures, options.images, options.seed)
    ratio = compare(pictures, min(options.sample, options.images))
    grow(options.folder, pictures, options.images)
    return 0 if ratio <= BOUND else 1


def make(folder: Path, count: int, seed: int) -> None:
    """Draw what is missing of the images."""
    jobs = [range(first, min(first + PER_JOB, count)) for first in range(0, count, PER_JOB)]
    started, size = time.perf_counter(), 0
    for written in ordered_map(partial(draw_all, folder=folder, seed=seed), jobs):
        size += written
    took = time.perf_counter() - started
    print(f"{count} images of {size / count / 1000:.1f} kB in {folder}, drawn in {took:.0f} s\n")


def draw_all(numbers: range, *, folder: Path, seed: int) -> int:
    """Bytes of the images of one subfolder, drawn unless they are there."""
    place = folder / f"{numbers.start // PER_JOB:05d}"
    place.mkdir(parents=True, exist_ok=True)
    total = 0
    for number in numbers:
        path = place / f"{number:06d}.jpg"
        if not path.exists():
            part = path.with_suffix(".part")
            picture(number, seed).save(part, "JPEG", quality=90)
            part.replace(path)
        total += path.stat().st_size
    return total


def picture(number: int, seed: int) -> Image.Image:
    """Two random pieces of the bases, blended, each channel with a gain of its own."""
    rng = np.random.default_rng((seed, 1, number))
    pieces = []
    for which in rng.integers(BASES, size=2):
        top, left = rng.integers(BASE_SIDE - SIDE, size=2)
        pieces.append(bases(seed)[which, top : top + SIDE, left : left + SIDE])
    share, gains = rng.uniform(0.2, 0.8), rng.uniform(0.7, 1.3, 3)
    gains = gains.astype(np.float32)
    mixed = pieces[0] * (share * gains).astype(np.float32)
    mixed += pieces[1] * ((1 - share) * gains).astype(np.float32)
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


@lru_cache(maxsize=1)
def bases(seed: int) -> NDArray[np.float32]:
    """1/f textures with shapes on them, float32 [BASES, BASE_SIDE, BASE_SIDE, 3], 0 to 255."""
    frequency = np.hypot(np.fft.fftfreq(BASE_SIDE)[:, None], np.fft.rfftfreq(BASE_SIDE))
    frequency[0, 0] = np.inf
    made = np.empty((BASES, BASE_SIDE, BASE_SIDE, 3), np.float32)
    for index in range(BASES):
        rng = np.random.default_rng((seed, 0, index))
        noise = np.fft.rfft2(rng.normal(size=(3, BASE_SIDE, BASE_SIDE))) / frequency**1.2
        texture = np.fft.irfft2(noise, (BASE_SIDE, BASE_SIDE)).transpose(1, 2, 0)
        texture = 127 + texture * (rng.uniform(25, 60) / texture.std())
        image = Image.fromarray(texture.clip(0, 255).astype(np.uint8))
        brush = ImageDraw.Draw(image)
        for _ in range(6):
            x, y, w, h = rng.integers((BASE_SIDE, BASE_SIDE, 120, 120))
            colour = tuple(int(c) for c in rng.integers(0, 256, 3))
            form = brush.ellipse if rng.random() < 0.5 else brush.rectangle
            form((x, y, x + w + 8, y + h + 8), fill=colour)
        made[index] = np.asarray(image)
    return made


def compare(folder: Path, count: int) -> float:
    """CPU seconds per image of our look and hash and of the raw libraries, in turns; the ratio."""
    source = open_source(folder)
    step = max(len(source.items) // count, 1)
    sample = range(0, step * count, step)
    parts = [sample[i : i + 50] for i in range(0, len(sample), 50)]
    spent: dict[str, list[float]] = {"raw": [], "raw without hash": [], "ours": []}
    with quiet_pillow():
        for part in [parts[0], *parts]:  # the first time warms up
            works = {
                "raw": lambda part=part: [raw(source.read(i), hashed=True) for i in part],
                "raw without hash": lambda part=part: [raw(source.read(i)) for i in part],
                "ours": lambda part=part: hash_thumbs(
                    np.stack([look_at(source, i)[1] for i in part])
                ),
            }
            for name, work in works.items():
                before = time.process_time()
                work()
                spent[name].append((time.process_time() - before) / len(part))
    times = {name: np.array(values[1:]) for name, values in spent.items()}
    print(f"ms of CPU per image, medians over {len(parts)} parts of {len(sample)} images")
    print(f"{'Pillow and sha256':<36}{1000 * np.median(times['raw without hash']):8.3f}")
    print(f"{'Pillow, sha256 and a perceptual hash':<36}{1000 * np.median(times['raw']):8.3f}")
    print(f"{'look and eight hashes of Poise':<36}{1000 * np.median(times['ours']):8.3f}")
    ratio = float(np.median(times["ours"] / times["raw"]))
    bare = float(np.median(times["ours"] / times["raw without hash"]))
    print(f"ratio to the raw libraries: {ratio:.2f} (at most {BOUND}); without pHash {bare:.2f}\n")
    return ratio


def raw(content: object, *, hashed: bool = False) -> int:
    """What the raw libraries do: sha256, Pillow's full decode, and a plain 64-bit pHash."""
    assert isinstance(content, bytes)
    hashlib.sha256(content).digest()
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        if not hashed:
            return 0
        small = image.convert("L").resize((32, 32), Image.Resampling.LANCZOS)
    corner = dctn(np.asarray(small, np.float64))[:8, :8]
    return int.from_bytes(np.packbits(corner > np.median(corner)).tobytes())


def grow(scratch: Path, pictures: Path, count: int) -> None:
    """Scan folders of growing size, each in a process of its own, and print what they needed."""
    print(f"whole scans with {cores()} workers; memory is the most that was resident, in MiB")
    print("  images   seconds   images/s   CPU ms/image   main process   largest worker")
    folders = sorted(pictures.iterdir())
    for share in (8, 4, 2, 1):
        chosen = folders[: max(len(folders) // share, 1)]
        place = scratch / f"part-{share}"
        total = link(chosen, place)
        before, started = os.times(), time.perf_counter()
        command = [sys.executable, __file__, str(place), "--scan"]
        main_mib, worker_mib = watch(subprocess.Popen(command))
        took, after = time.perf_counter() - started, os.times()
        cpu = after.children_user + after.children_system
        cpu -= before.children_user + before.children_system
        print(
            f"{total:8,}{took:10.1f}{total / took:11,.0f}{1000 * cpu / total:15.2f}"
            f"{main_mib:15,.0f}{worker_mib:17,.0f}"
        )
    print("(with the start of the processes, which weighs on small folders)")


def link(folders: list[Path], place: Path) -> int:
    """Hard links to all files of `folders` under `place`; how many there are."""
    total = 0
    for folder in folders:
        (place / folder.name).mkdir(parents=True, exist_ok=True)
        for file in folder.iterdir():
            target = place / folder.name / file.name
            if not target.exists():
                target.hardlink_to(file)
            total += 1
    return total


def watch(process: "subprocess.Popen[bytes]") -> tuple[float, float]:
    """Peak resident memory of a process and of its largest child until it ends, in MiB."""
    peaks: dict[int, float] = {}
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    text = (entry / "status").read_text()
                except OSError:  # ended meanwhile
                    continue
                facts = dict(line.split(":", 1) for line in text.splitlines())
                if process.pid in (int(facts["PPid"]), int(entry.name)) and "VmHWM" in facts:
                    peaks[int(entry.name)] = int(facts["VmHWM"].split()[0]) / 1024

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        if process.wait():
            raise SystemExit(f"the scan ended with exit code {process.returncode}")
    finally:
        done.set()
        watcher.join()
    return peaks.pop(process.pid), max(peaks.values(), default=0.0)


if __name__ == "__main__":
    sys.exit(main())
