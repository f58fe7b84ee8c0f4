"""A model of your own images, and new images from it.

Command:   python examples/own_images.py PHOTOS
Time:      10 minutes; a longer budget gives better images
Expected:  a verdict in words, a report in runs/own/report.html and 100 new images in runs/own/new

PHOTOS is a folder of images, with one subfolder per class if there are classes.
"""

import sys

import poise


def main(photos: str, run: str = "runs/own", budget: str = "10m") -> None:
    """Train on a folder and write new images beside the report."""
    model = poise.train(photos, run=run, budget=budget)
    print("\n".join(model.verdict))
    model.save_samples(f"{run}/new", 100, seed=1)
    print(f"Report: {run}/report.html; images: {run}/new")


if __name__ == "__main__":
    main(sys.argv[1])
