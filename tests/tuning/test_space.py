"""Search spaces: what is asked stays inside and comes back, and what cannot be is refused."""

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.artifacts import DataFacts
from poise.build import build_denoiser
from poise.config import preset_named, presets, resolve, values_of
from poise.errors import UsageError
from poise.runtime import Runtime
from poise.settings import Config
from poise.tuning.space import (
    Dimension,
    Space,
    ask,
    built_in,
    decode,
    default_point,
    encode,
    grid,
    load_space,
)

optuna.logging.set_verbosity(optuna.logging.WARNING)
NANO = resolve(preset_named("nano"), {"data.resolution": 16})
DIT = resolve(preset_named("dit-s"), {"data.resolution": 16})
AUTOMATIC = [p for p in presets() if p.automatic]


def study() -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))


@pytest.fixture
def space_in(tmp_path: Path) -> Any:
    """The space of a text."""

    def load(text: str, base: Config = NANO, classes: int = 10) -> Space:
        path = tmp_path / "space.toml"
        path.write_text(text, encoding="utf-8")
        return load_space(path, base, classes)

    return load


def named(space: Space) -> dict[str, Dimension]:
    return {d.name: d for d in space.dimensions}


def inside(space: Space, point: Mapping[str, Any], base: Mapping[str, Any]) -> bool:
    """Written again: exactly the dimensions whose conditions hold, each with a value of its own."""
    for d in space.trained():
        wanted = all(point.get(k, base.get(k)) in v for k, v in d.when.items())
        if wanted != (d.name in point):
            return False
        if not wanted:
            continue
        value = point[d.name]
        if d.kind == "choice":
            if value not in d.choices:
                return False
        elif not d.low <= value <= d.high or (d.kind == "int" and not isinstance(value, int)):
            return False
    return set(point) <= {d.name for d in space.trained()}


# ---- what comes with Poise


@pytest.mark.parametrize("preset", AUTOMATIC, ids=lambda p: p.name)
@pytest.mark.parametrize("name", built_in())
def test_every_space_fits_every_preset(name: str, preset: Any) -> None:
    for side in preset.resolutions:
        base = resolve(preset, {"data.resolution": side})
        space, values = load_space(name, base, 10), values_of(base)
        point = default_point(space, values)
        assert inside(space, point, values)
        trial = resolve(preset, {"data.resolution": side, **point})
        model = trial.model.model_copy(update={"ladder": base.model.ladder})  # G, and unset
        assert trial.model_copy(update={"model": model}) == base
        assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space


def test_each_built_in_has_a_sentence() -> None:
    assert set(built_in()) == {"architecture", "default", "lr-range", "quick", "sampling"}
    assert all(sentence.endswith(".") for sentence in built_in().values())


def test_the_default_space_is_small_and_complete() -> None:
    space = load_space("default", NANO, 10)
    assert {d.name for d in space.free()} == {
        "weights",
        "guidance",
        "sampling.solver",
        "sampling.steps",
    }
    assert [d.name for d in space.trained()] == [
        "training.lr",
        "training.batch",
        "training.warmup",
        "training.decay",
        "training.decay_start",
        "diffusion.P_mean",
        "diffusion.P_std",
        "model.dropout",
        "model.channels",
        "data.augment",
    ]
    assert "description" not in space.study


def test_what_does_not_fit_is_left_out_of_a_built_in_and_told() -> None:
    space = load_space("default", resolve(preset_named("nano"), {"data.resolution": 8}), 0)
    assert not {"data.augment", "guidance"} & set(named(space))
    assert [r for r in space.remarks if "augment" in r] and [
        r for r in space.remarks if "no classes" in r
    ]
    flat = load_space("quick", resolve(preset_named("nano"), {"diffusion.noise": "uniform"}))
    assert "diffusion.P_mean" not in named(flat)
    assert "diffusion.P_mean is left out: diffusion.noise is uniform." in flat.remarks
    small = resolve(preset_named("nano"), {"training.micro_batch": 16})
    assert "training.batch" not in named(load_space("default", small))


def test_the_network_decides_which_architecture_is_searched() -> None:
    assert {"model.ladder", "model.num_blocks"} <= set(named(load_space("architecture", NANO)))
    transformer = named(load_space("architecture", DIT))
    assert not {"model.ladder", "model.num_blocks"} & set(transformer)
    assert transformer["model.depth"].choices == (6, 12, 18)


@pytest.mark.parametrize("preset", [*AUTOMATIC, preset_named("dit-s")], ids=lambda p: p.name)
def test_every_width_and_rung_can_be_built(preset: Any) -> None:
    meta = Runtime(torch.device("meta"), torch.float32)
    for side in preset.resolutions:
        base = resolve(preset, {"data.resolution": side})
        found = named(load_space("architecture", base))
        facts = DataFacts(side, 3, (), 0.5)
        for name in {"model.channels", "model.ladder"} & set(found):
            for value in found[name].choices:
                build_denoiser(resolve(preset, {name: value}), facts, meta)
        assert base.model.channels in found["model.channels"].choices


def test_the_map_of_rates_holds_the_base_exactly_once() -> None:
    space, values = load_space("lr-range", NANO), values_of(NANO)
    points = grid(space, values)
    assert len(points) == 33
    assert points.count(default_point(space, values)) == 1
    rates = named(space)["training.lr"].values()
    assert rates == pytest.approx([0.03 * 2.0**k for k in range(-5, 6)], rel=1e-5)
    assert space.study["sampler"] == "grid"


# ---- files


def test_all_ways_to_write_a_name_mean_the_same(space_in: Any) -> None:
    same = "{ low = 0.001, high = 0.1, log = true }"
    texts = (f"training.lr = {same}", f'"training.lr" = {same}', f"[training]\nlr = {same}")
    spaces = [space_in(text) for text in texts]
    spaces.append(space_in("[training.lr]\nlow = 0.001\nhigh = 0.1\nlog = true"))
    assert all(s == spaces[0] for s in spaces)
    with pytest.raises(UsageError, match="twice"):
        space_in(f'training.lr = {same}\n"training.lr" = {same}')


def test_multiples_are_taken_of_the_base(space_in: Any) -> None:
    space = space_in(
        "training.lr = { times = [0.1, 10], log = true }\n"
        "training.batch = { times = [0.5, 3] }\n"
        "diffusion.P_mean = { times = [0.5, 2] }\n"
        "model.channels = { factors = [0.5, 1, 1.5] }\n"
    )
    found = named(space)
    assert (found["training.lr"].low, found["training.lr"].high) == pytest.approx((0.003, 0.3))
    assert (found["training.batch"].low, found["training.batch"].high) == (32, 192)
    assert found["training.batch"].kind == "int" and isinstance(found["training.batch"].low, int)
    assert (found["diffusion.P_mean"].low, found["diffusion.P_mean"].high) == (-1.6, -0.4)
    assert found["model.channels"].choices == (16, 32, 48)


def test_true_takes_the_range_of_the_default_space(space_in: Any) -> None:
    space = space_in("training.batch = true\ntraining.decay_start = true")
    ours = named(load_space("default", NANO))
    assert space.dimensions == (ours["training.batch"], ours["training.decay_start"])
    with pytest.raises(UsageError, match=r"data.flip = true.*proposes no range"):
        space_in("data.flip = true")
    with pytest.raises(UsageError, match=r"training.batch = False"):
        space_in("training.batch = false")


def test_the_value_of_the_base_is_always_inside(space_in: Any) -> None:
    space = space_in(
        "training.lr = { low = 0.1, high = 0.5 }\n"
        'training.decay = { choices = ["cosine", "linear"] }\n'
        "model.dropout = { low = 0.01, high = 0.3, log = true }\n"
        "training.grad_clip_at = { low = 0.5, high = 2.0, when = "
        '{ "training.grad_clip" = ["norm"] } }\n'
        'training.grad_clip = { choices = ["none", "norm"] }\n'
    )
    found = named(space)
    assert (found["training.lr"].low, found["training.lr"].high) == (0.03, 0.5)
    assert found["training.decay"].choices == ("inverse_sqrt", "cosine", "linear")
    assert (found["model.dropout"].low, found["model.dropout"].log) == (0.0, False)
    assert len(space.remarks) == 3
    values = values_of(NANO)
    assert inside(space, default_point(space, values), values)
    assert list(found).index("training.grad_clip") < list(found).index("training.grad_clip_at")


def test_lists_are_kept_as_tuples_and_come_back_through_optuna(space_in: Any) -> None:
    space = space_in(
        "training.betas = { choices = [[0.9, 0.99], [0.9, 0.999]] }\n"
        "model.channel_mult = { choices = [[1, 2], [1, 2, 2]] }\n"
        "training.ema_stds = { choices = [[0.05, 0.1], [0.1]] }\n"
        "model.skips = { choices = [true, false] }\n"
    )
    values = values_of(NANO)
    one = study()
    for point in grid(space, values):
        assert all(isinstance(v, tuple | bool) for v in point.values())
        one.enqueue_trial(encode(space, point))
        trial = one.ask()
        assert ask(space, trial, values) == point
        assert decode(space, one.trials[-1].params) == point


def test_a_study_table_proposes(space_in: Any) -> None:
    text = "training.lr = true\n[study]\nsampler = 'gp'\nmetrics = ['recall']\nrungs = [0.5, 1.0]"
    assert space_in(text).study == {"sampler": "gp", "metrics": ["recall"], "rungs": [0.5, 1.0]}


# ---- what is refused

REFUSED = [
    ("training.lr = [", "not valid TOML"),
    ("training.batsh = true", r"no setting 'training.batsh' to search. Did you mean 'training.ba"),
    ("trainig.lr = { low = 1, high = 2 }", "Did you mean 'training.lr'"),
    ("wieghts = { choices = [0.1] }", "Did you mean 'weights'"),
    ("batch = { low = 1, high = 2 }", "Did you mean"),
    ("training = true", "no setting 'training'"),
    ("", "nothing to search"),
    ("[training]", "nothing to search"),
    ("training.lr = {}", "nothing of what to try"),
    ("training.lr = 0.1", "in a space"),
    ("training.lr = { low = 0.1 }", "says low"),
    ("training.lr = { high = 0.1 }", "says high"),
    ("training.lr = { low = 0.1, high = 0.01 }", "empty"),
    ("training.lr = { low = 0.1, high = 0.1 }", "empty"),
    ("training.lr = { times = [10, 0.1] }", "empty"),
    ("training.lr = { times = [0.1] }", "two numbers"),
    ("training.lr = { times = [-1, 2] }", "two numbers"),
    ("training.lr = { times = [1, 1e308], log = true }\ntraining.eps = true", "no range"),
    ("training.images = true", "the study decides"),
    ("training.batch = { times = [1, 1e308] }", r"1e\+308 times training.batch"),
    ("model.channels = { factors = [1, 1e12] }", "model.channels = 32000000000000"),
    ("sampling.sigma_max = { times = [1, 1.7e308] }", "sampling.sigma_max = inf"),
    ("training.batch = { times = [1.0, 1.001] }", "empty"),
    ("model.dropout = { low = 0, high = 0.5, log = true }", "logarithmic"),
    ("model.dropout = { times = [0.5, 2] }", "multiples of it say nothing"),
    ("training.decay_floor = { times = [0.5, 2] }", "unset"),
    ("training.decay = { factors = [0.5, 2] }", "multiples of it"),
    ("training.decay = { low = 0.5, high = 2 }", "takes no range"),
    ("training.decay_floor = { low = 0.0, high = 0.5 }", "no range holds that"),
    ("training.lr = { low = 0.1, high = 0.2, choices = [1, 2] }", "says low, high, choices"),
    ("training.lr = { times = [0.1, 2], low = 1, high = 2 }", "says times, low, high"),
    ("training.lr = { choices = [0.03] }", "no choice"),
    ("training.lr = { choices = [] , when = { seed = [1] } }", "left out: seed is 0"),
    ("training.lr = { choices = [1, 1.0], log = true }", "words for a range"),
    ("training.lr = { choices = 3 }", "a list"),
    (f"training.lr = {{ choices = {list(range(1, 70))} }}", "at most 64"),
    ("training.lr = { lo = 0.1, high = 1 }", r"says 'lo'. Did you mean 'lo"),
    ("training.lr = { low = 'x', high = 1 }", "low = 'x'"),
    ("training.lr = { low = true, high = 2 }", "low = True"),
    ("training.lr = { low = 0.1, high = inf }", "high = inf"),
    ("training.lr = { low = 0.1, high = 1, log = 3 }", "log = 3"),
    ("training.lr = { low = 0.1, high = 1, points = 1 }", "points = 1"),
    ("training.lr = { low = 0.1, high = 1, points = 1000 }", "points = 1000"),
    ("training.lr = { low = -0.1, high = 1 }", r"training.lr = -0.1 of the space"),
    ("training.batch = { low = 0, high = 16 }", r"training.batch = 0 of the space"),
    ("training.batch = { low = 1.5, high = 16 }", "whole numbers"),
    ("training.batch = { low = 1, high = 100_000_000 }", "training.batch = 100000000"),
    ("model.num_blocks = { choices = [1, 99999999999999999999999] }", "64 bits"),
    ("training.decay = { choices = ['cosine', 'cosin'] }", "training.decay = 'cosin'"),
    ("training.betas = { choices = [[0.9], [0.8, 0.9]] }", "training.betas = "),
    ("model.channels = { choices = [32, 8] }", "whole heads"),
    ("model.channel_mult = { choices = [[1, 2], [1, 2, 2, 2, 2, 2]] }", "halved"),
    ("model.ladder = { choices = ['G', 'H'] }", "model.ladder = 'H'"),
    ("training.momentum = { low = 0.5, high = 0.9, when = { 'training.lr' = [0.1] } }", "left out"),
    ("training.weight_decay = { low = 0.0, high = 0.1 }", "contradicts"),
    (
        "training.lr = true\nmodel.dropout = { low = 0, high = 0.1, when = { training.lr = [1] } }",
        "which it never is",
    ),
    (
        "training.decay = { choices = ['cosine', 'linear'] }\n"
        "training.warmup = { low = 0, high = 0.1, when = { training.decay = ['step'] } }",
        "which it never is",
    ),
    (
        "training.lr = { low = 0.1, high = 1, when = { 'training.optimizer' = ['sgdd'] } }",
        "training.optimizer = 'sgdd'",
    ),
    ("training.lr = { low = 0.1, high = 1, when = { optimizr = ['sgd'] } }", "depends on 'optim"),
    ("training.lr = { low = 0.1, high = 1, when = { weights = ['raw'] } }", "depends on 'weights'"),
    ("training.lr = { low = 0.1, high = 1, when = 3 }", "when = 3"),
    ("training.lr = { low = 0.1, high = 1, when = { seed = [] } }", "seed being one of"),
    (
        "sampling.solver = { choices = ['heun', 'euler'] }\n"
        "training.warmup = { low = 0, high = 0.1, when = { sampling.solver = ['heun'] } }",
        "when the training is over",
    ),
    (
        "training.lr = { low = 1, high = 2, when = { model.dropout = [0.1] } }\n"
        "model.dropout = { choices = [0.1, 0.2], when = { training.lr = [1] } }",
        "depend on each other",
    ),
    ("weights = { choices = ['raw', 'best'] }", "weights = 'best'"),
    ("weights = { low = 0.1, high = 0.3 }", "weights = 0.3"),
    ("weights = { choices = ['raw'] }", "no choice"),
    ("guidance = { low = -1, high = 2 }", "guidance = -1"),
    ("sampling.churn = { low = 0, high = 9, when = { sampling.solver = ['unipc'] } }", "left out"),
    ("sampling.solver = { choices = ['heun', 'ddim'] }", "ddim"),
    ("study = 3", "study = 3"),
    ("[study]\nsampeler = 'tpe'", "says 'sampeler'. Did you mean 'sampler'"),
    ("[study]\nsampler = 'best'", "sampler = 'best'"),
    ("[study]\nsampler = ['grid']", "sampler = "),
    ("[study]\nmetrics = 'recall'", "metrics = "),
    ("[study]\nrungs = [0.5]", "rungs = "),
    ("[study]\nrungs = [1.0, 0.5]", "rungs = "),
    ("[study]\nrungs = []", "rungs = "),
    ("[study]\nfinal = 1", "final = 1"),
    ("[study]\nseeds = -1", "seeds = -1"),
    ("[study]\nseeds = true", "seeds = True"),
]


@pytest.mark.parametrize(("text", "said"), REFUSED)
def test_a_file_that_cannot_be_searched_says_why(text: str, said: str, space_in: Any) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        space_in(text)
    assert caught.value.expected or "TOML" in caught.value.found
    assert len(str(caught.value)) < 2500


@pytest.mark.parametrize(
    "name",
    [
        *("data.resolution", "data.split", "data.split_seed", "data.memory_gib"),
        *("data.max_unreadable", "validation.images", "evaluation.features", "cadence.logs"),
        *("stability.policy", "seed", "sinks", "training.images", "training.threads"),
        *("training.compile", "training.micro_batch", "sampling.batch"),
    ],
)
def test_what_would_change_the_measure_is_refused_with_the_reason(name: str, space_in: Any) -> None:
    with pytest.raises(UsageError, match=rf"{name} cannot be searched: .+\.") as caught:
        space_in(f'"{name}" = {{ choices = [1, 2] }}')
    assert f"--set {name}=" in caught.value.remedy


def test_a_single_choice_beside_that_of_the_base_is_enough(space_in: Any) -> None:
    other = {"data.flip": "on", "model.activation": "relu", "training.precision": "bf16"}
    for name, value in other.items():
        assert space_in(f'"{name}" = {{ choices = ["{value}"] }}').dimensions[0].choices[1] == value


def test_guidance_needs_classes_and_a_model_that_knows_to_do_without(space_in: Any) -> None:
    text = "guidance = { low = 1.5, high = 3.0 }"
    assert space_in(text).dimensions[0].low == 1.0
    with pytest.raises(UsageError, match="no classes"):
        space_in(text, classes=0)
    with pytest.raises(UsageError, match="label_dropout"):
        space_in(text, base=resolve(None, {"training.label_dropout": 0}))


def test_conditions_are_tried_with_the_value_they_need(space_in: Any) -> None:
    """Momentum contradicts Adam, which the base has, and is fine with what it is searched for."""
    text = (
        "training.momentum = { low = 0.5, high = 0.99, when = { 'training.optimizer' = ['sgd'] } }"
        "\ntraining.optimizer = { choices = ['adam', 'sgd'] }"
    )
    assert [d.name for d in space_in(text).dimensions] == [
        "training.optimizer",
        "training.momentum",
    ]
    with pytest.raises(UsageError, match="is no quantile"):
        space_in(
            "training.grad_clip = { choices = ['none', 'norm', 'quantile'] }\n"
            "training.grad_clip_at = { low = 0.5, high = 2.0, when = "
            "{ 'training.grad_clip' = ['norm', 'quantile'] } }"
        )


def test_files_that_are_missing_or_absurd_are_refused(tmp_path: Path) -> None:
    (tmp_path / "space.toml").write_text("training.lr = true")
    with pytest.raises(UsageError, match=r"spcae.toml cannot be read.* Did you mean 'space.toml'"):
        load_space(tmp_path / "spcae.toml", NANO)
    with pytest.raises(UsageError, match=r"no space 'quik'\. Did you mean 'quick'"):
        load_space("quik", NANO)
    folder = tmp_path / "folder.toml"
    folder.mkdir()
    with pytest.raises(UsageError, match="cannot be read"):
        load_space(folder, NANO)
    for content, said in (
        (b"\xff\xfe\x00", "no text"),
        (b"#" * 2**20, "more than 262,144"),
        (b"a" + b".a" * 500 + b" = 1", "points in a line"),
        (b"a = " + b"[" * 5000 + b"]" * 5000, "nested"),
        (b"a = " + b"{b=" * 250 + b"1" + b"}" * 250, "no setting"),
        (b'"' + b"x" * 10_000 + b'" = 1', "no setting 'xxx"),
        (b"training.lr = { low = 0x" + b"f" * 10_000 + b", high = 1}", "64 bits"),
        ("".join(f'"a{i}" = true\n' for i in range(65)).encode(), "65 dimensions"),
    ):
        path = tmp_path / "absurd.toml"
        path.write_bytes(content)
        with pytest.raises(UsageError, match=said) as caught:
            load_space(path, NANO)
        assert len(str(caught.value)) < 4000


def test_a_grid_beyond_any_study_is_refused() -> None:
    with pytest.raises(UsageError, match="more than 10,000 points"):
        grid(load_space("default", NANO), values_of(NANO))


# ---- properties of any space

BASE: dict[str, Any] = {"s.outside": 1, "model.architecture": "edm2"}
FINITE = {"allow_nan": False, "allow_infinity": False}


@st.composite
def dimensions(draw: Any, name: str, earlier: tuple[Dimension, ...]) -> Dimension:
    kind = draw(st.sampled_from(["float", "int", "choice"]))
    when: dict[str, tuple[Any, ...]] = {}
    for one in earlier:
        if one.kind == "choice" and draw(st.booleans()):
            size = draw(st.integers(1, len(one.choices)))
            when[one.name] = one.choices[:size]
    if draw(st.integers(0, 4)) == 0:
        when["s.outside"] = draw(st.sampled_from([(1,), (2,), (1, 2)]))
    points = draw(st.integers(2, 5))
    if kind == "choice":
        value = st.one_of(
            st.integers(-9, 9),
            st.text("abc", max_size=3),
            st.tuples(st.integers(0, 3), st.integers(0, 3)),
        )
        choices = draw(st.lists(value, min_size=2, max_size=4, unique=True))
        return Dimension(name, kind, choices=tuple(choices), when=when)
    log = draw(st.booleans())
    number: Any = st.integers(1 if log else -1000, 1000)
    if kind == "float":
        number = st.floats(1e-9 if log else -1e6, 1e6, **FINITE)
    low, high = sorted(draw(st.lists(number, min_size=2, max_size=2, unique=True)))
    return Dimension(name, kind, low, high, log, when=when, points=points)


@st.composite
def spaces(draw: Any) -> Space:
    found: tuple[Dimension, ...] = ()
    for i in range(draw(st.integers(1, 5))):
        name = draw(st.sampled_from(["s.", "s.", "sampling."])) + f"d{i}"
        trained = tuple(d for d in found if not d.free)
        found += (draw(dimensions(name, trained)),)
    return Space("any", found)


def base_of(space: Space) -> dict[str, Any]:
    return BASE | {d.name: d.values()[-1] for d in space.dimensions}


@settings(deadline=None, max_examples=60)
@given(spaces())
def test_what_is_asked_is_inside_and_comes_back(space: Space) -> None:
    base, one = base_of(space), study()
    for _ in range(3):
        trial = one.ask()
        point = ask(space, trial, base)
        assert inside(space, point, base)
        assert decode(space, one.trials[-1].params) == point
        one.tell(trial, 0.0)
    known = [default_point(space, base), *grid(space, base)[:5]]
    for point in known:
        assert inside(space, point, base)
        params = encode(space, point)
        assert json.loads(json.dumps(params)) == params
        assert decode(space, params) == point
        one.enqueue_trial(params)
        assert ask(space, one.ask(), base) == point
        assert {type(v) for v in decode(space, one.trials[-1].params).values()} == {
            type(v) for v in point.values()
        }


@settings(deadline=None, max_examples=60)
@given(spaces())
def test_a_grid_is_the_product_without_what_conditions_forbid(space: Space) -> None:
    base = base_of(space)
    points = grid(space, base)
    texts = {json.dumps(p) for p in points}
    assert len(texts) == len(points)
    trained = space.trained()
    expected = set()
    for values in itertools.product(*(d.values() for d in trained)):
        kept: dict[str, Any] = {}
        for d, value in zip(trained, values, strict=True):
            if all(kept.get(k, base.get(k)) in v for k, v in d.when.items()):
                kept[d.name] = value
        expected.add(json.dumps(kept))
    assert texts == expected


@settings(deadline=None, max_examples=60)
@given(spaces())
def test_values_are_spread_from_end_to_end(space: Space) -> None:
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
    for d in space.dimensions:
        values = d.values()
        assert len(set(values)) == len(values)
        if d.kind == "choice":
            continue
        assert (values[0], values[-1]) == (d.low, d.high)
        assert list(values) == sorted(values) and len(values) <= d.points
        assert all(isinstance(v, int) == (d.kind == "int") for v in values)
        if len(values) == d.points == 3 and d.kind == "float":
            middle = math.sqrt(d.low * d.high) if d.log else (d.low + d.high) / 2
            assert values[1] == pytest.approx(middle, rel=1e-5, abs=1e-9)


NAMES = ["training.lr", "training.batch", "training.decay", "training.betas", "model.channels"]
NAMES += ["model.ladder", "sampling.rho", "weights", "guidance", "training.momentum", "data.flip"]
ANYTHING = st.one_of(
    st.floats(),
    st.integers(-(10**20), 10**20),
    st.booleans(),
    st.sampled_from(["raw", "cosine", "sgd", "G", ""]),
    st.just([]),
)
WORDS = {
    "low": ANYTHING,
    "high": ANYTHING,
    "log": st.booleans(),
    "times": st.lists(ANYTHING, max_size=3),
    "factors": st.lists(ANYTHING, max_size=3),
    "choices": st.lists(st.one_of(ANYTHING, st.lists(ANYTHING, max_size=2)), max_size=3),
    "points": ANYTHING,
    "when": st.dictionaries(st.sampled_from(NAMES), st.one_of(ANYTHING, st.lists(ANYTHING))),
}


def as_toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f'"{k}" = {as_toml(v)}' for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_toml, value)) + "]"
    return json.dumps(value) if isinstance(value, bool | str) else repr(value)


@settings(deadline=None, max_examples=150)
@given(
    st.dictionaries(
        st.sampled_from(NAMES),
        st.one_of(
            st.just(True),
            st.fixed_dictionaries({}, optional=WORDS),
            st.fixed_dictionaries({"low": st.floats(0, 1), "high": st.floats(0, 9)}),
            st.fixed_dictionaries({"times": st.lists(st.floats(0.1, 9), min_size=2, max_size=2)}),
        ),
        max_size=3,
    )
)
def test_any_file_gives_a_space_or_an_error_of_ours(
    tmp_path_factory: pytest.TempPathFactory, tables: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.toml"
    path.write_text("\n".join(f'"{k}" = {as_toml(v)}' for k, v in tables.items()))
    try:
        space = load_space(path, NANO, 10)
    except UsageError:
        return
    values = values_of(NANO)
    assert inside(space, default_point(space, values), values | {"model.ladder": "G"})
    assert inside(space, ask(space, study().ask(), values), values | {"model.ladder": "G"})
    assert Space.from_json(json.loads(json.dumps(space.to_json()))) == space
