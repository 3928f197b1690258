from codegen_jax.training.metrics import MetricsLog, read_metrics


def write(output, first_step, steps):
    log = MetricsLog(output, first_step)
    for step in steps:
        log.write(step, {"loss": step / 10})
    log.close()


def test_lines_of_steps_that_a_stop_undid_are_dropped(tmp_path):
    write(tmp_path, 0, [1, 2, 3, 4])
    write(tmp_path, 2, [3])
    assert [line["step"] for line in read_metrics(tmp_path)] == [1, 2, 3]


def test_a_line_that_a_kill_cut_short_does_not_count(tmp_path):
    write(tmp_path, 0, [1, 2])
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-5])
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.1}]
