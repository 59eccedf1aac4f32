"""Settings that cannot be are refused with the setting's name and what to do."""

import pytest
from promptmm.graph_store.config import GraphConfig, SourceConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"format": "csv"}, "source.format='csv': no such source format; the kinds that ship are parquet, mmrec"),
        ({"format": "diffmm"}, "source.path is not set"),
        ({"train_ratio": 0.9, "validation_ratio": 0.2}, "source.train_ratio=0.9 and source.validation_ratio=0.2"),
        ({"train_ratio": 0}, "source.train_ratio=0: expected more than 0"),
        ({"synthetic_num_users": 1}, "source.synthetic_num_users=1: expected at least 10"),
        ({"modalities": {"visual": "x.npy"}}, "source.modalities: the synthetic catalog brings its own"),
        ({"split": "time"}, "source.split=time: the synthetic catalog has no times"),
    ],
)
def test_settings(settings, message, fails):
    with fails(message):
        SourceConfig(**settings)


def test_graph_settings(fails):
    with fails("graph.num_parts=0: expected at least 1"):
        GraphConfig(num_parts=0)
