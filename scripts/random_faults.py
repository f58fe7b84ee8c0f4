"""Print a file of random faults for `poise drill SOURCE --faults FILE`: kinds, moments, strengths.

    .venv/bin/python scripts/random_faults.py --runs 100 --seed 1 > faults.toml

One run in five has two faults at once. Strengths lie within a factor of three of their defaults.
"""

import argparse
import random

from poise.drill.faults import FILE_KINDS, RUN_KINDS, SYSTEM_KINDS
from poise.drill.kind import Kind

PLACES = ("first", "middle", "last", "decoder")
SLOW = {"rank-killed", "rank-hung", "rank-perturbed", "sigkill"}  # seconds of processes each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--base", type=int, default=200, help="updates before the faults")
    parser.add_argument("--steps", type=int, default=120, help="updates after that")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    print(f"base = {options.base}\nsteps = {options.steps}\nhealthy_steps = 0")
    usual = [kind for kind in RUN_KINDS.values() if not kind.whole]
    others = [k for k in [*FILE_KINDS.values(), *SYSTEM_KINDS.values()] if k.name not in SLOW]
    for number in range(options.runs):
        pair = chance.random() < 0.2
        kinds = chance.sample(usual, 2) if pair else [chance.choice(usual * 3 + others)]
        for kind in kinds:
            print("\n[[fault]]")
            print(f'kind = "{kind.name}"')
            if pair:
                print(f'together = "pair {number}"')
            for name, value in parameters(kind, chance, options.steps).items():
                print(f"{name} = {value!r}".replace("'", '"'))


def parameters(kind: Kind, chance: random.Random, steps: int) -> dict[str, object]:
    """Random values for what means something to a kind."""
    given: dict[str, object] = {}
    if kind.name in SYSTEM_KINDS:
        return {"seed": chance.randrange(1000)}
    if "at" in kind.uses:
        given["at"] = chance.randrange(10, steps // 2)
    if "seed" in kind.uses:
        given["seed"] = chance.randrange(1000)
    if "magnitude" in kind.uses and "magnitude" in kind.defaults:
        low, high = kind.limits
        value = kind.defaults["magnitude"] * 10 ** chance.uniform(-0.48, 0.48)
        given["magnitude"] = float(f"{min(max(value, low), high):.3g}")
    if "band" in kind.uses:
        given["band"] = chance.randrange(8)
    if "tensor" in kind.uses and kind.defaults.get("tensor") in PLACES:
        given["tensor"] = chance.choice(PLACES)
    return given


if __name__ == "__main__":
    main()
