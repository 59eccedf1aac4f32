"""Names of metrics: read into metric and list length, and checked against what an evaluation computes."""

import pytest
from promptmm.core.errors import InputError
from promptmm.core.metric_names import check_metric, split_metric


def test_a_name_is_a_metric_and_a_list_length():
    assert split_metric("recall@20") == ("recall", 20)
    assert split_metric("mine.metrics:novelty@5") == ("mine.metrics:novelty", 5)


@pytest.mark.parametrize("name", ["recall", "recall@", "recall@7", "recall@20.0", "recall@ 20", "accuracy@20", "@20", ""])
def test_a_name_that_is_not_computed_is_refused(name):
    with pytest.raises(InputError, match=r"a\.setting=.*METRIC one of recall, ndcg, of those and K one of evaluation\.cutoffs=\[20\]"):
        check_metric("a.setting", name, ["recall", "ndcg"], [20], ", of those")
    check_metric("a.setting", "ndcg@20", ["recall", "ndcg"], [20])
