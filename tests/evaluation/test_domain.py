"""The learnt feature space: it learns, is the same every time, and survives being kept."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits

from poise.artifacts import load_tensors, save_tensors
from poise.errors import ArtifactError, DataError, UsageError
from poise.evaluation.extractors.classifier import _build, _folded, _forward, classifier_activations
from poise.evaluation.extractors.domain import cached_encoder, train_encoder, weak_below
from poise.evaluation.extractors.patches import _cluster, _squared
from poise.evaluation.features import extract
from poise.evaluation.fidelity import frechet_distance


@pytest.fixture(scope="module")
def digits():
    """Shuffled digits, uint8 [1797, 1, 8, 8], and their labels."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x = (data.images * 255 / 16).round().astype(np.uint8)[order, None]
    return x, data.target[order].astype(np.int64)


@pytest.fixture(scope="module")
def probe(digits):
    x, y = digits
    return train_encoder(x[:1000], y[:1000], 10, images_seen=15_000)


@pytest.fixture(scope="module")
def patches(digits):
    return train_encoder(digits[0][:1000], None, 0)


def noise(count, shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), np.uint8)


def neighbour_accuracy(features, labels, start):
    """Share of the rows from `start` on whose nearest earlier row has their class."""
    x = torch.from_numpy(features)
    nearest = torch.cdist(x[start:], x[:start]).argmin(1).numpy()
    return float((labels[:start][nearest] == labels[start:]).mean())


def test_the_probe_names_digits_and_knows_how_well(digits, probe):
    x, y = (part[1000:] for part in digits)
    named = probe.classify(x).argmax(1)
    accuracy = (named == y).mean()
    assert accuracy > 0.9
    assert abs(probe.accuracy - accuracy) < 4 * np.sqrt(0.1 * 0.9 / 100)  # of 100 held back
    confusion = np.array(probe.confusion)
    assert confusion.sum(1).tolist() == [
        int((digits[1][:1000] == k).sum()) // 10 for k in range(10)
    ]
    assert probe.recall[3] == confusion[3, 3] / confusion[3].sum()
    assert probe.note == "" and probe.num_classes == 10


def test_log_probabilities_are_normalised(digits, probe):
    p = probe.classify(digits[0][:50], batch=7)
    np.testing.assert_allclose(np.exp(p).sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(p, probe.classify(digits[0][:50]), atol=1e-4)


@pytest.mark.parametrize("kind", ["probe", "patches"])
def test_features_are_standardised_and_tell_digits_apart(digits, kind, request):
    encoder = request.getfixturevalue(kind)
    x, y = digits
    f = extract(encoder, x)
    assert np.isfinite(f).all()
    quiet = (encoder.weights["scale"] == 0).numpy()
    assert quiet.mean() < 0.1 and encoder.note == ""
    assert np.abs(f[:1000].mean(0)).max() < 0.1
    assert np.quantile(f[:1000].std(0)[~quiet], 0.1) > 0.4 and f[:1000].std(0).max() < 0.6
    assert neighbour_accuracy(f, y, 1000) > 0.9


@pytest.mark.parametrize("kind", ["probe", "patches"])
def test_degradations_are_seen(digits, kind, request):
    encoder = request.getfixturevalue(kind)
    x = digits[0]
    rng = np.random.default_rng(0)
    spoilt = {
        "contrast": x[900:] * 0.7 + 38,
        "noise": (x[900:] + rng.normal(0, 25, x[900:].shape)).clip(0, 255),
        "mirrored": x[900:, :, :, ::-1],
    }
    f, f_real = extract(encoder, x[:900]), extract(encoder, x[900:])
    floor = frechet_distance(f, f_real)
    for name, images in spoilt.items():
        images = np.ascontiguousarray(images).round().astype(np.uint8)
        assert frechet_distance(f, extract(encoder, images)) > 1.2 * floor, name


@pytest.mark.parametrize("labelled", [True, False])
def test_the_same_data_and_seed_give_the_same_bits(digits, labelled):
    x, y = digits[0][:300], digits[1][:300] if labelled else None
    before = torch.get_rng_state()
    a, b, c = (train_encoder(x, y, 10, images_seen=2000, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)
    assert a.digest == b.digest != c.digest
    assert a.confusion == b.confusion


@pytest.mark.parametrize("kind", ["probe", "patches"])
def test_what_is_kept_comes_back(digits, kind, request, tmp_path):
    encoder = request.getfixturevalue(kind)
    made = []

    def make():
        made.append(1)
        return encoder

    first = cached_encoder(tmp_path, "a-1", make)
    again = cached_encoder(tmp_path, "a-1", make)
    assert len(made) == 1
    assert again.digest == first.digest == encoder.digest
    assert again.to_tensors()[1] == encoder.to_tensors()[1]
    x = torch.from_numpy(digits[0][:20])
    assert torch.equal(again(x), encoder(x))


def test_damaged_and_foreign_files_are_made_anew(probe, tmp_path):
    path = tmp_path / "encoder-k.safetensors"
    tensors, meta = probe.to_tensors()
    whole = {name: tensor for name, tensor in tensors.items() if name != "convolution2"}
    for write in (
        lambda: path.write_bytes(b"no tensors"),
        lambda: save_file(tensors, path),
        lambda: save_tensors(path, whole, meta),
        lambda: save_tensors(path, tensors, meta | {"encoder": 99}),
    ):
        write()
        assert cached_encoder(tmp_path, "k", lambda: probe).digest == probe.digest
        assert load_tensors(path)[1] == meta
    with pytest.raises(ArtifactError):
        type(probe).from_tensors(whole, meta)
    with pytest.raises(UsageError):
        cached_encoder(tmp_path, "../k", lambda: probe)


def test_rare_classes_are_named_too(digits):
    x, y = digits
    train = np.concatenate([np.flatnonzero(y[:1200] == 0), np.flatnonzero(y[:1200] == 1)[:12]])
    encoder = train_encoder(x[train], y[train], 2, images_seen=6000)
    named = encoder.classify(x[1200:]).argmax(1)
    assert (named[y[1200:] == 1] == 1).mean() > 0.8
    assert (named[y[1200:] == 0] == 0).mean() > 0.9


def test_labels_that_mean_nothing_are_noted():
    x = noise(200, (1, 8, 8))
    encoder = train_encoder(x, np.arange(200) % 5, 5, images_seen=3000)
    assert encoder.accuracy < weak_below(5) and "too little" in encoder.note


def test_classes_of_few_images_are_noted():
    encoder = train_encoder(noise(12, (1, 8, 8)), np.arange(12) // 3, 4, images_seen=12)
    assert np.isnan(encoder.accuracy) and "not known" in encoder.note


def test_images_without_content_are_noted():
    encoder = train_encoder(np.full((20, 3, 16, 16), 7, np.uint8), None, 0)
    assert "the same for all" in encoder.note
    assert np.isfinite(extract(encoder, noise(4, (3, 16, 16)))).all()


@pytest.mark.parametrize("shape", [(1, 8, 8), (4, 16, 24), (3, 48, 48), (3, 100, 100)])
@pytest.mark.parametrize("labelled", [True, False])
def test_any_size_and_channels(shape, labelled, tmp_path):
    x = noise(24, shape)
    mapped = np.memmap(tmp_path / "x", np.uint8, "w+", shape=x.shape)
    mapped[:] = x
    encoder = train_encoder(mapped, np.arange(24) % 2 if labelled else None, 2, images_seen=48)
    f = extract(encoder, x)
    assert np.isfinite(f).all() and f.shape[1] > 8
    assert encoder.resizer == ("bilinear antialias to 64" if max(shape) > 64 else "none")
    with pytest.raises(DataError):
        encoder(torch.zeros(1, shape[0] + 1, *shape[1:], dtype=torch.uint8))


@pytest.mark.parametrize("labelled", [True, False])
def test_progress_rises_to_the_whole(digits, labelled):
    told = []
    train_encoder(
        digits[0][:100],
        digits[1][:100] if labelled else None,
        10,
        images_seen=700,
        progress=lambda *progress: told.append(progress),
    )
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert told[-1][0] == told[-1][1]


def test_what_cannot_be_learnt_from_is_refused(digits, patches):
    x, y = digits
    for images in (x[:5], x[:50, :, :4, :4], x[:50, 0]):
        with pytest.raises(DataError):
            train_encoder(images, None, 0)
    for labels, K in ((y[:40], 10), (y[:50], 4), (y[:50] - 5, 10)):
        with pytest.raises(UsageError):
            train_encoder(x[:50], labels, K)
    with pytest.raises(UsageError):
        train_encoder(x[:50], None, 0, images_seen=0)
    with pytest.raises(UsageError):
        patches.classify(x[:5])


def test_folding_the_norms_changes_nothing():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(8, 3, 16, 16, generator=g)
    layers, head = _build(x.shape, 3, 0)
    for _ in range(3):
        _forward(x, layers)  # moves the running statistics
    for layer in layers:
        torch.nn.init.uniform_(layer[1].weight, 0.5, 2, generator=g)
        torch.nn.init.uniform_(layer[1].bias, -1, 1, generator=g)
        layer.eval()
    folded = classifier_activations(x, _folded(layers, head))
    torch.testing.assert_close(folded, _forward(x, layers).detach(), rtol=1e-4, atol=1e-5)


def test_clusters_are_those_that_were_planted():
    g = torch.Generator().manual_seed(0)
    truth = 20 * torch.randn(4, 6, generator=g)
    owner = torch.arange(4000) % 4
    centres = _cluster(truth[owner] + torch.randn(4000, 6, generator=g))
    distance = _squared(truth, centres).sqrt()
    # 256 centres share four clusters: each true centre has one near, and none lies between.
    assert float(distance.min(1).values.max()) < 2
    assert float(distance.min(0).values.max()) < 5
