"""Which epoch is kept, and when patience has run out."""

import json
import math

import pytest
from promptmm.distributed.loop.selection import Selection


def observed(values, patience=3, metric="recall@20"):
    """A selection after evaluations of epochs 0, 1, ..., and which of them were better."""
    selection = Selection(metric, patience)
    return selection, [selection.observe(epoch, {"recall@20": value}) for epoch, value in enumerate(values)]


@pytest.mark.parametrize("patience", [1, 2, 5])
def test_patience_counts_evaluations_without_improvement(patience):
    selection, _ = observed([0.1, 0.2], patience)
    for number in range(patience):
        assert not selection.should_stop
        assert selection.num_bad == number
        assert not selection.observe(10 + number, {"recall@20": 0.15})
    assert selection.should_stop
    assert (selection.best_epoch, selection.best_value) == (1, 0.2)


def test_an_improvement_gives_the_full_patience_again():
    selection, better = observed([0.3, 0.2, 0.1, 0.4, 0.1, 0.1])
    assert better == [True, False, False, True, False, False]
    assert not selection.should_stop
    assert (selection.best_epoch, selection.num_bad) == (3, 2)


def test_a_tie_is_no_improvement():
    selection, better = observed([0.3, 0.3, 0.3, 0.3])
    assert better == [True, False, False, False]
    assert selection.best_epoch == 0
    assert selection.should_stop


@pytest.mark.parametrize("first", [0.0, -1.0, math.nan])
def test_the_first_evaluation(first):
    """A metric of 0 is kept; what is not a number is never better."""
    selection, better = observed([first])
    assert better == [not math.isnan(first)]
    assert selection.best_epoch == (-1 if math.isnan(first) else 0)


def test_a_new_round_gives_the_full_patience():
    selection, _ = observed([0.3, 0.2, 0.1, 0.1])
    assert selection.should_stop
    selection.start_round(0)  # the same round goes on after an interruption
    assert selection.should_stop
    selection.start_round(1)
    assert not selection.should_stop
    assert (selection.best_epoch, selection.best_value, selection.num_bad, selection.revision) == (0, 0.3, 0, 1)
    selection.observe(4, {"recall@20": 0.1})
    selection.start_round(1)
    assert selection.num_bad == 1


@pytest.mark.parametrize("metric", ["recall@20", None])
@pytest.mark.parametrize("values", [[], [0.3, 0.2, 0.1]])
def test_state_and_restore(metric, values):
    """Through JSON, which knows no infinite numbers; before the first evaluation too."""
    selection, _ = observed(values, metric=metric)
    if values:
        selection.start_round(2)
    state = json.loads(json.dumps(selection.state(), allow_nan=False))
    again = Selection(metric, 3)
    again.restore(state)
    assert again.state() == selection.state()
    if values or metric:
        assert again == selection
    for epoch in (3, 4, 5):
        assert again.observe(epoch, {"recall@20": 0.25}) == selection.observe(epoch, {"recall@20": 0.25})
    assert again == selection


@pytest.mark.parametrize("metrics", [None, {"recall@20": 0.0}])
def test_without_a_validation_split_every_epoch_is_the_best(metrics):
    selection = Selection(None, 1)
    for epoch in range(5):
        assert selection.observe(epoch, metrics)
        assert selection.best_epoch == epoch
        assert not selection.should_stop
    assert selection.best_value == math.inf
