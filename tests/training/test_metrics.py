"""The metrics file: lost steps, truncated lines and NaN."""

import math

from codegen_jax.training.metrics import MetricsLog, read_metrics
from tests.test_strict_json import strictly


def write(output, first_step, steps, **values):
    log = MetricsLog(output, first_step)
    for step in steps:
        log.write(step, {"loss": step / 10} | values)
    log.close()


def test_lines_of_lost_steps_are_dropped(tmp_path):
    write(tmp_path, 0, [1, 2, 3, 4])
    write(tmp_path, 2, [3])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_truncated_last_line_is_ignored(tmp_path):
    write(tmp_path, 0, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-5])
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.1}]


def test_nan_in_an_existing_file_is_read_and_rewritten_as_null(tmp_path):
    write(tmp_path, 0, [1])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"step": 2, "loss": NaN, "grad_norm": -Infinity}\n')
    assert read_metrics(tmp_path)[1] == {"step": 2, "loss": None, "grad_norm": None}
    write(tmp_path, 2, [3], grad_norm=math.inf)
    lines = [strictly(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"], line.get("grad_norm", 0)) for line in lines] == [
        (1, 0.1, 0),
        (2, None, None),
        (3, 0.3, None),
    ]
