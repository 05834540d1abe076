"""One round: pruned weights stay zero, the start is exact, the end repeatable, images counted once."""

import numpy as np
import pytest
import torch

from shifter.data import Images
from shifter.errors import TrainingError
from shifter.models import build, initialise, prunable_names
from shifter.training.loop import evaluate, train_round
from shifter.training.network_state import load_state, state_of
from shifter.training.ranking import dense_mask, rank_by_magnitude
from shifter.training.round import Observer, Round
from shifter.training.schedule import Schedule
from shifter.values import CompressionRatio, Step


def bits(tensors):
    return {name: array.tobytes() for name, array in tensors.items()}


@pytest.fixture
def network(recipe):
    network = build(recipe.model, classes=10, channels=1)
    initialise(network, recipe.seed)
    return network


@pytest.fixture
def schedule(recipe, dataset):
    return Schedule.of(recipe, len(dataset.train))


@pytest.fixture
def train(recipe, dataset, schedule):
    def train(network, round, on_rewind_point=None, **changes):
        epochs = []
        trained = train_round(
            network,
            dataset,
            round,
            recipe.training.model_copy(update=changes),
            schedule,
            recipe.seed,
            Observer(epochs.append, rewind_point=on_rewind_point),
        )
        return trained, epochs

    return train


def sparse_round(network, ratio=8.0, first=0):
    start = state_of(network)
    ratio = CompressionRatio(ratio)
    mask = rank_by_magnitude(start, dense_mask(start, prunable_names(network)), ratio)
    return Round(1, ratio, mask, start, Step(first))


@pytest.mark.parametrize("optimiser", [{"momentum": 0.9, "weight_decay": 0.01}, {"momentum": 0.0}])
def test_a_pruned_weight_never_comes_back(network, train, optimiser):
    round = sparse_round(network)
    trained, _ = train(network, round, **optimiser)
    for name, kept in round.mask.items():
        outside = trained.tensors[name][~kept]
        assert outside.size > 0
        # +0.0 in every bit: what a sparse checkpoint need not store.
        assert not outside.view(np.uint32).any()
        assert np.all(trained.tensors[name][kept] != round.start[name][kept]), "the others did train"


def test_the_mask_holds_after_every_step(network, train):
    round = sparse_round(network)
    seen = []

    def watch(module, _inputs):
        state = module.state_dict()
        seen.append(max(float(state[n].numpy()[~kept].__abs__().max()) for n, kept in round.mask.items()))

    handle = network.register_forward_pre_hook(watch)
    train(network, round)
    handle.remove()
    assert len(seen) > 50
    assert set(seen) == {0.0}


def test_a_round_is_repeatable_bit_for_bit(recipe, network, train):
    round = sparse_round(network)
    first, _ = train(network, round)
    # The second network comes with other weights: nothing of it may show.
    other = build(recipe.model, classes=10, channels=1)
    second, _ = train(other, round)
    assert bits(first.tensors) == bits(second.tensors)
    assert bits(first.tensors) != bits(round.start)


def test_rounds_see_the_images_in_another_order(network, train):
    start = state_of(network)
    mask = dense_mask(start, prunable_names(network))
    ends = [
        train(network, Round(index, CompressionRatio(1), mask, start, Step(0)))[0].tensors for index in (0, 1)
    ]
    assert bits(ends[0]) != bits(ends[1])


def test_training_on_from_the_rewind_point_ends_where_the_round_ended_without_momentum(
    network, train, schedule
):
    """The rewind point is the state at its step, whole: weights, statistics and place in the data."""
    start = state_of(network)
    mask = dense_mask(start, prunable_names(network))
    points = []
    whole, _ = train(
        network, Round(0, CompressionRatio(1), mask, start, Step(0)), points.append, momentum=0.0
    )
    (point,) = points
    assert bits(point) != bits(start)
    rest, _ = train(network, Round(0, CompressionRatio(1), mask, point, schedule.rewind), momentum=0.0)
    assert bits(rest.tensors) == bits(whole.tensors)


def test_epochs_are_reported(network, train, recipe, schedule):
    _, epochs = train(network, sparse_round(network, ratio=2.0))
    assert [epoch.number for epoch in epochs] == [1, 2, 3]
    assert epochs[-1].loss < epochs[0].loss
    _, rest = train(network, sparse_round(network, ratio=2.0, first=schedule.rewind.iteration))
    assert [epoch.number for epoch in rest] == [2, 3]


def test_accuracies_are_those_of_the_tensors(recipe, network, dataset, train):
    trained, epochs = train(network, sparse_round(network, ratio=2.0))
    loaded = build(recipe.model, classes=10, channels=1)
    load_state(loaded, trained.tensors)
    for split, accuracy in (
        (dataset.validation, trained.validation_accuracy),
        (dataset.test, trained.test_accuracy),
    ):
        assert evaluate(loaded, Images.of(split, dataset.input_spec)) == accuracy
        with torch.inference_mode():
            inputs = torch.from_numpy(dataset.input_spec.normalise(split.images))
            answers = loaded.eval()(inputs).argmax(1).numpy()
        assert accuracy == pytest.approx(np.mean(answers == split.labels), abs=1.5 / len(split))
    assert trained.validation_accuracy == epochs[-1].validation_accuracy
    assert trained.test_accuracy > 0.5, "a tiny network learns something in three epochs"


def test_every_image_is_counted_once(network, dataset):
    data = Images.of(dataset.train, dataset.input_spec)
    assert len(data.labels) > 512, "more than one evaluation batch"
    accuracy = evaluate(network, data)
    network.eval()
    with torch.inference_mode():
        right = sum(
            int(network(data.read(torch.tensor([i]))).argmax() == data.labels[i])
            for i in range(len(data.labels))
        )
    assert accuracy == right / len(data.labels)


def test_state_round_trips_bit_for_bit(recipe, network):
    state = {name: array.copy() for name, array in state_of(network).items()}
    state["classifier.bias"][:4] = [-0.0, np.inf, -1e-42, 3.0]
    state["classifier.weight"].view(np.uint32)[0, 0] = 0x7FC0BEEF  # a NaN with a payload
    other = build(recipe.model, classes=10, channels=1).to(memory_format=torch.channels_last)
    load_state(other, state)
    assert bits(state_of(other)) == bits(state)
    assert not any(name.endswith("num_batches_tracked") for name in state)


def test_a_missing_tensor_is_named(network):
    state = state_of(network)
    del state["classifier.bias"]
    with pytest.raises(ValueError, match=r"no weights for classifier\.bias"):
        load_state(network, state)


def test_divergence_is_an_error_that_says_what_to_do(network, train, schedule, recipe, dataset):
    round = sparse_round(network, ratio=2.0)
    start = dict(round.start) | {"classifier.bias": np.full(10, np.nan, np.float32)}
    with pytest.raises(TrainingError, match=r"diverged in round 1 \(2x\), epoch 1: the loss is nan; lower"):
        train(network, Round(1, round.ratio, round.mask, start, Step(0)))


def test_bfloat16_trains_float32_weights(network, train):
    round = sparse_round(network, ratio=2.0)
    whole, _ = train(network, round)
    half, epochs = train(network, round, precision="bfloat16")
    assert {array.dtype for array in half.tensors.values()} == {np.dtype(np.float32)}
    assert bits(half.tensors) != bits(whole.tensors)
    assert half.test_accuracy == pytest.approx(whole.test_accuracy, abs=0.15)
    assert epochs[-1].loss < epochs[0].loss


def test_the_layout_in_memory_is_not_seen_in_the_tensors(network, train):
    round = sparse_round(network, ratio=2.0)
    last, _ = train(network, round)
    first, _ = train(network, round, channels_last=False)
    for name, array in first.tensors.items():
        assert array.flags.c_contiguous
        assert array.shape == last.tensors[name].shape
    assert first.test_accuracy == pytest.approx(last.test_accuracy, abs=0.1)


def test_epochs_count_the_images_that_were_trained_on(network, train, schedule, recipe):
    _, epochs = train(network, sparse_round(network, ratio=2.0, first=schedule.rewind.iteration))
    size, per_epoch = recipe.training.batch_size, schedule.iterations_per_epoch
    begun = 2 * per_epoch - schedule.rewind.iteration
    assert [epoch.images for epoch in epochs] == [begun * size, per_epoch * size]
