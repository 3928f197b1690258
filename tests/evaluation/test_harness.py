"""evaluate MODEL harness: equals lm_eval's own HFLM on the same weights; tasks that can't run give one-line errors."""

import json
import random
import subprocess
import sys
from pathlib import Path

import lm_eval.tasks
import pytest
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from codegen_jax.cli import main
from codegen_jax.errors import UserError
from codegen_jax.evaluation.harness import tasks as harness_tasks
from codegen_jax.evaluation.harness.model import HarnessModel, batches, options_of, sample_seed
from codegen_jax.evaluation.harness.run import RESAMPLES, run_harness
from codegen_jax.inference.generator import Generator
from tests.evaluation.benchmarks import write_lines
from tests.peers import peer, save, tiny_bpe

CONTEXT = 64
TOKENIZER = tiny_bpe(["def add(a, b):\n    return a + b\n\n\nclass Point:\n    x = 1\n"] * 2, vocab_size=300)
SPECIAL = {name: "<|endoftext|>" for name in ("bos_token", "eos_token", "pad_token")}
WORDS = [
    "def",
    " add",
    "(a, b)",
    ":\n",
    "    return",
    " a",
    " + ",
    "b\n",
    "class ",
    "x = 1",
    "é",
    "漢字",
    "🎉",
    "  ",
    "\n\n",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model that transformers can read too, and with tasks of each kind."""
    folder = tmp_path_factory.mktemp("harness")
    model = peer(n_positions=CONTEXT, vocab_size=TOKENIZER.vocab_size)
    save(model, folder / "model", tokenizer=TOKENIZER)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": CONTEXT, **SPECIAL}
    (folder / "model/tokenizer_config.json").write_text(json.dumps(config))
    save(model, folder / "bare")
    write_tasks(folder / "tasks")
    return folder


def write_task(folder, name, documents, **fields):
    """Write a task's YAML (as JSON, which is valid YAML) and its documents."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lines(folder / f"{name}.jsonl", documents)
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}}}
    task = {"task": name, **data, "test_split": "test", "metadata": {"version": 2.0}}
    (folder / f"{name}.yaml").write_text(json.dumps(task | fields))


def metrics(*names):
    """Metrics in lm_eval's format; without these fields it warns and uses its defaults."""
    own = {"bleu": "bleu", "bits_per_byte": "bits_per_byte"}
    aggregation = lambda name: own.get(name, "weighted_perplexity" if name.endswith("perplexity") else "mean")
    is_high = lambda name: "per" not in name
    return [{"metric": name, "aggregation": aggregation(name), "higher_is_better": is_high(name)} for name in names]


def write_tasks(folder):
    draw = random.Random(0)
    text = lambda words: "".join(draw.choices(WORDS, k=words))
    choices = [{"q": text(9), "choices": [text(3) for _ in range(4)], "answer": n % 4} for n in range(8)]
    write_task(
        folder, "choose", choices, output_type="multiple_choice", doc_to_text="{{q}}", doc_to_choice="choices",
        doc_to_target="answer", metric_list=metrics("acc", "acc_norm"), fewshot_split="test",
    )  # fmt: skip
    write_task(
        folder, "complete", [{"q": text(9), "a": text(2)} for _ in range(5)], output_type="generate_until",
        doc_to_text="{{q}}", doc_to_target="{{a}}", metric_list=metrics("exact_match", "bleu"),
        generation_kwargs={"until": ["\n\n", "class"], "max_gen_toks": 24, "do_sample": False},
    )  # fmt: skip
    write_task(
        folder, "predict", [{"text": text(words)} for words in (3, 40, 90)], output_type="loglikelihood_rolling",
        doc_to_text="", doc_to_target="{{text}}",
        metric_list=metrics("byte_perplexity", "bits_per_byte"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def ours(folder):
    return HarnessModel(Generator.load(str(folder / "model"), "float32"))


@pytest.fixture(scope="module")
def theirs(folder):
    return HFLM(pretrained=str(folder / "model"), dtype="float32", device="cpu", batch_size=1)


def instances(kind, *arguments):
    return [Instance(kind, {}, args, 0, ("task", number, 1)) for number, args in enumerate(arguments)]


def assert_equal(found, expected):
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert [logprob for logprob, _ in found] == pytest.approx([logprob for logprob, _ in expected], abs=1e-4)


def test_log_likelihoods_and_greedy_flags_equal_hflm(ours, theirs):
    draw = random.Random(1)
    text = lambda words: "".join(draw.choices(WORDS, k=words))
    pairs = [(text(draw.randint(0, 12)), text(draw.randint(1, 9))) for _ in range(40)]
    pairs += [
        ("", "return a"),
        ("", "<|endoftext|>x"),
        ("a  ", "b"),
        ("a\n ", " b"),
        (text(80), text(2)),
        ("é", "漢🎉"),
    ]
    pairs += [("def add", choice) for choice in (" a", " b", " +", "a")]  # one token each: multiple choice
    prompts = [text(6) for _ in range(4)]
    likeliest = theirs.generate_until(
        instances("generate_until", *((prompt, {"max_gen_toks": 3}) for prompt in prompts))
    )
    pairs += [(prompt, text) for prompt, text in zip(prompts, likeliest) if text]
    expected = theirs.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)
    assert {greedy for _, greedy in expected} == {True, False}
    assert_equal(ours.loglikelihood(instances("loglikelihood", *pairs)), expected)


def test_a_continuation_may_fill_the_context_but_not_exceed_it(ours, theirs):
    ids = [5 + number % 90 for number in range(CONTEXT + 1)]
    full = [(("", "x"), ids[:1], ids[1:]), (("", "x"), ids[:40], ids[1:]), (("", "x"), ids[:40], ids[9:10])]
    assert_equal(ours._loglikelihood_tokens(full), theirs._loglikelihood_tokens(full, disable_tqdm=True))
    with pytest.raises(AssertionError):
        theirs._loglikelihood_tokens([(("", "x"), ids[:1], ids)], disable_tqdm=True)
    with pytest.raises(UserError, match="tasks: a continuation of 65 tokens is longer than the model's context of 64"):
        ours._loglikelihood_tokens([(("", "x"), ids[:1], ids)])


def test_a_context_of_only_spaces_is_scored_with_the_continuation(ours):
    spaces, none = ours.loglikelihood(instances("loglikelihood", ("  ", "b"), ("", "  b")))
    assert spaces == none


def test_requests_that_cannot_be_scored_are_refused(ours):
    for pair in (("", ""), ("a", ""), ("", "<|endoftext|>")):
        with pytest.raises(UserError, match=r"^tasks: a .* fix the task's data"):
            ours.loglikelihood(instances("loglikelihood", pair))


def test_a_text_is_scored_in_the_same_windows_as_hflm(ours, theirs):
    texts = ["", "a", "".join(WORDS), *("".join(random.Random(n).choices(WORDS, k=40 * n)) for n in range(1, 6))]
    lengths = [len(TOKENIZER.encode(text)) for text in texts]
    assert lengths[-1] > 3 * CONTEXT
    texts.append(TOKENIZER.decode(TOKENIZER.encode(texts[-1])[:CONTEXT]))
    requests = instances("loglikelihood_rolling", *((text,) for text in texts))
    expected = theirs.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours.loglikelihood_rolling(requests) == pytest.approx(expected, abs=1e-3, rel=1e-6)


def test_greedy_completions_equal_hflm_up_to_the_stop_strings(ours, theirs):
    draw = random.Random(2)
    kinds = [
        {"until": ["\n\n", "a"], "max_gen_toks": 16},
        {"until": "x", "max_gen_toks": 16, "do_sample": False, "temperature": 0.7, "top_p": 0.5, "top_k": 3},
        {"until": [], "max_new_tokens": 40, "temperature": 0.0},
    ]
    requests = instances(
        "generate_until", *(("".join(draw.choices(WORDS, k=1 + n * 4)), kinds[n % 3]) for n in range(12))
    )
    assert max(len(TOKENIZER.encode(request.arguments[0])) for request in requests) > CONTEXT
    found = ours.generate_until(requests)
    assert found == theirs.generate_until(requests, disable_tqdm=True)
    assert len(set(found)) > 9 and not any("a" in text for text in found[::3])


def test_samples_differ_by_repeat_and_do_not_depend_on_the_batch(ours):
    kwargs = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    first, second = instances("generate_until", ("def add", kwargs), ("def add", kwargs))
    found = ours.generate_until([first] * 5 + [second] * 5)
    assert len(set(found)) == 10
    assert ours.generate_until([second] * 3) == found[5:8]
    assert HarnessModel(ours.model, seed=5).generate_until([first])[0] not in found
    cold = HarnessModel(ours.model).generate_until(instances("generate_until", ("def add", kwargs | {"top_k": 1})))
    assert cold == ours.generate_until(instances("generate_until", ("def add", {"until": [], "max_gen_toks": 12})))


def test_seeds_depend_on_seed_document_and_repeat():
    seeds = {sample_seed(seed, ("task", n, 0), repeat) for seed in (0, 1) for n in range(50) for repeat in range(9)}
    assert len(seeds) == 2 * 50 * 9


def test_batches_contain_every_row_once_longest_first_within_limits():
    lengths = random.Random(0).choices(range(1, 65), k=300)
    found = list(batches(lengths, 16, 8 * 64))
    assert sorted(number for batch in found for number in batch) == list(range(300))
    order = [lengths[number] for batch in found for number in batch]
    assert order == sorted(order, reverse=True)
    assert all(len(batch) <= 16 and len(batch) * lengths[batch[0]] <= 8 * 64 for batch in found)
    assert {len(batch) for batch in found[:-1]} == {8, 16}


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"num_beams": 4},
            "num_beams is not supported; supported: do_sample, temperature, top_p, top_k, until, max_gen",
        ),
        ({"do_sample": True}, "do_sample needs a temperature above 0"),
        ({"temperature": 1, "top_p": 2}, "top_p: must be above 0 and at most 1, got 2"),
        ({"max_gen_toks": "many"}, "invalid literal"),
        ({"until": [""]}, "until: must not contain an empty string"),
    ],
)
def test_unsupported_generation_kwargs_are_refused_by_name(kwargs, message):
    with pytest.raises(UserError, match=f"^tasks: generation_kwargs: {message}"):
        options_of(kwargs, "<|endoftext|>")


def test_a_warning_counts_truncated_prompts(ours, caplog):
    kwargs = {"until": [], "max_gen_toks": CONTEXT - 4}
    ours.generate_until(instances("generate_until", ("z" * 4, kwargs), ("z" * 5, kwargs)))
    assert "1 of 2 prompts leave no room for max_gen_toks and are truncated from the left" in caplog.text


def test_more_new_tokens_than_fit_in_the_context_are_refused(ours):
    with pytest.raises(UserError, match="tasks: max_gen_toks = 256 leaves no room for a prompt in the model's context"):
        ours.generate_until(instances("generate_until", ("a", {"until": []})))


@pytest.fixture(scope="module")
def run(folder):
    """The command's output files and printed text for all tasks of a folder."""
    words = [str(folder / "model"), "harness", "--tasks", str(folder / "tasks"), "--num-fewshot", "1", "--seed", "3"]
    command = [sys.executable, "-m", "codegen_jax", "evaluate", *words, "--dtype", "float32", "--log-samples"]
    done = subprocess.run([*command, "--output", str(folder / "out")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "out", done


def test_a_folder_of_tasks_gives_the_same_results_as_simple_evaluate_with_hflm(run, folder, theirs, monkeypatch):
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")  # otherwise it forks while JAX's threads run
    monkeypatch.setattr("lm_eval.evaluator.add_env_info", lambda results: None)  # takes seconds
    output, done = run
    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), 3)
    expected = simple_evaluate(
        theirs, tasks=["choose", "complete", "predict"], task_manager=manager, num_fewshot=1, bootstrap_iters=RESAMPLES,
        **seeds,
    )  # fmt: skip
    report = json.loads((output / "report.json").read_text())
    assert report["results"].keys() == {"choose", "complete", "predict"}
    for task, expected_metrics in expected["results"].items():
        found = report["results"][task]
        assert found.keys() == expected_metrics.keys()
        for name, value in expected_metrics.items():
            assert found[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5)), (task, name)
    for name in ("versions", "n-shot", "n-samples", "higher_is_better"):
        assert report[name] == expected[name], name
    for task, samples in expected["samples"].items():
        found = [json.loads(line) for line in (output / f"samples_{task}.jsonl").read_text().splitlines()]
        for name in ("doc_id", "prompt_hash", "target_hash", *(["resps"] if task == "complete" else [])):
            assert [sample[name] for sample in found] == [sample[name] for sample in samples], (task, name)
    table = make_table(expected)
    assert table.strip() in (output / "report.md").read_text() and table.strip() in done.stdout


def test_a_report_contains_model_and_settings(run, folder):
    output, done = run
    assert {path.name for path in output.iterdir()} == {
        "report.json", "report.md", "samples_choose.jsonl", "samples_complete.jsonl", "samples_predict.jsonl",
    }  # fmt: skip
    config = json.loads((output / "report.json").read_text())["config"]
    assert (config["seed"], config["num_fewshot"], config["limit"]) == (3, 1, None)
    assert config["model"] == str(folder / "model") and config["tokenizer"] == TOKENIZER.fingerprint
    assert done.stdout.endswith(f"report: {output}/report.md\n")
    cut, *others = [line for line in done.stderr.splitlines() if "warning" in line.lower()]
    assert "requests exceed the model's context" in cut and all("prompts leave no room" in line for line in others)


def test_the_same_command_writes_the_same_report_and_json_prints_it(run, folder, capsys):
    words = [str(folder / "model"), "harness", "--tasks", f"{folder}/tasks", "--num-fewshot", "1", "--seed", "3"]
    main(["evaluate", *words, "--dtype", "float32", "--output", str(folder / "again"), "--json"])
    printed = capsys.readouterr().out
    assert (folder / "again/report.json").read_bytes() == (run[0] / "report.json").read_bytes()
    assert json.loads(printed) == json.loads((folder / "again/report.json").read_text())
    assert {path.name for path in (folder / "again").iterdir()} == {"report.json", "report.md"}


def test_limit_uses_the_first_documents_of_a_task(folder, capsys):
    task = str(folder / "tasks/choose.yaml")
    main(["evaluate", str(folder / "model"), "harness", "--tasks", task, "--limit", "3", "--output", f"{folder}/three"])
    report = json.loads((folder / "three/report.json").read_text())
    assert report["n-samples"] == {"choose": {"original": 8, "effective": 3}} and report["n-shot"] == {"choose": 0}


@pytest.fixture(scope="module")
def lm_eval_tasks():
    """Some of lm_eval's tasks; reading all of them takes seconds."""
    tasks = Path(lm_eval.tasks.__file__).parent
    return TaskManager(include_path=[tasks / "hellaswag", tasks / "humaneval"], include_defaults=False)


@pytest.fixture(scope="module")
def mistakes(folder):
    """Folders with tasks that can't be run, next to the model."""
    one = [{"q": "a", "a": "b"}]
    ask = {"output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "{{a}}"}
    write_task(folder / "programs", "runs_programs", one, **ask, unsafe_code=True)
    group = {"group": "all_programs", "task": ["runs_programs"]}
    (folder / "programs/group.yaml").write_text(json.dumps(group))
    write_task(folder / "hub", "of_the_hub", one, **ask, dataset_path="nobody/nothing", dataset_kwargs={})
    write_task(folder / "beams", "with_beams", one, **ask, generation_kwargs={"num_beams": 2, "until": []})
    write_task(folder / "fields", "of_other_fields", one, **ask | {"doc_to_text": "{{question}}"})
    (folder / "empty").mkdir()
    (folder / "full").mkdir()
    (folder / "full/notes.txt").write_text("x")
    return folder


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "model --tasks programs",
            "--tasks: runs_programs: runs the model's programs in this process, with your permissions",
        ),
        (
            "model --tasks programs/runs_programs.yaml",
            "--tasks: runs_programs: runs the model's programs in this process",
        ),
        ("model --tasks ,", "--tasks: must not be empty"),
        ("nowhere --tasks programs", "--tasks: runs_programs: runs the model's programs in this process"),
        ("model --tasks humaneval", "--tasks: humaneval: runs the model's programs in this process"),
        ("model --tasks hub", "--tasks: of_the_hub: can't be loaded (ConnectionError: Couldn't reach 'nobody/nothing'"),
        ("model --tasks beams", "--tasks: with_beams: generation_kwargs: num_beams is not supported"),
        (
            "model --tasks fields",
            "--tasks: of_other_fields: can't be loaded (UndefinedError: 'question' is undefined); fix",
        ),
        ("model --tasks empty", "--tasks: empty: not a task of lm_eval "),
        ("model --tasks helaswag", "--tasks: helaswag: not a task of lm_eval "),
        ("nowhere --tasks tasks", "nowhere: not found on this machine or in the hub cache"),
        ("bare --tasks tasks", "bare: has no tokenizer; add one"),
        ("model --tasks tasks --limit 0", "--limit: must be positive, got 0"),
        ("model --tasks tasks --num-fewshot -1", "--num-fewshot: must not be negative, got -1"),
        ("model --tasks tasks --num-fewshot 9", "--num-fewshot: choose: can't build a prompt (Sample larger than"),
        ("model --tasks tasks --seed -1", "--seed: must be in [0, 2**32), got -1"),
        ("model --tasks tasks --output full", "--output: "),
    ],
)
def test_a_mistake_gives_a_one_line_error_and_writes_nothing(
    mistakes, lm_eval_tasks, monkeypatch, capsys, words, message
):
    monkeypatch.chdir(mistakes)
    read_all = lambda include_path, include_defaults: (
        lm_eval_tasks if include_defaults and not include_path else TaskManager(None, include_path, False)
    )
    monkeypatch.setattr(harness_tasks, "TaskManager", read_all)
    model, *rest = words.split()
    output = [] if "--output" in rest else ["--output", "unmade"]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", model, "harness", *rest, *output])
    printed, error = capsys.readouterr()
    assert ended.value.code == 2 and not printed and not (mistakes / "unmade").exists()
    line = error.splitlines()[-1]
    assert line.startswith(f"codegen-jax: error: {message}") and "Traceback" not in error, error
    assert "helaswag" not in words or line.endswith("did you mean hellaswag?")


CHOICE = {"output_type": "multiple_choice", "doc_to_text": "{{q}}", "doc_to_choice": "{{c}}", "doc_to_target": "a"}
WRITE = {"output_type": "generate_until", "doc_to_text": "{{q}}", "doc_to_target": "b"}
WRITE |= {"generation_kwargs": {"until": ["\n"], "max_gen_toks": 4}}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            CHOICE | {"metric_list": [{"metric": "acc", "aggregation": "x", "higher_is_better": True}]},
            "can't be scored",
        ),
        (
            WRITE | {"filter_list": [{"name": "f", "filter": [{"function": "regex", "regex_pattern": "(["}]}]},
            "can't be",
        ),
        (
            CHOICE | {"num_fewshot": "x", "fewshot_split": "test"},
            "num_fewshot: must be a non-negative whole number, got 'x'",
        ),
        (
            CHOICE | {"num_fewshot": -3, "fewshot_split": "test"},
            "num_fewshot: must be a non-negative whole number, got -3",
        ),
        (
            WRITE | {"generation_kwargs": {"until": ["\n"], "max_gen_toks": -1}},
            "generation_kwargs: max_gen_toks: must be positive, got -1",
        ),
        (WRITE | {"generation_kwargs": {"until": [""]}}, "generation_kwargs: until: must not contain an empty string"),
    ],
)
def test_a_failing_task_gives_a_one_line_error_and_no_report(folder, tmp_path, capsys, fields, message):
    write_task(tmp_path / "tasks", "odd", [{"q": "def", "c": ["a", "b"], "a": 0}], **fields)
    output = tmp_path / "output"
    with pytest.raises(SystemExit) as ended:
        words = ["--tasks", str(tmp_path / "tasks"), "--output", str(output)]
        main(["evaluate", str(folder / "model"), "harness", *words])
    printed, error = capsys.readouterr()
    assert ended.value.code == 2 and not printed and not list(output.glob("*"))
    assert error.splitlines()[-1].startswith(f"codegen-jax: error: --tasks: odd: {message}"), error


def test_a_group_that_contains_itself_and_a_name_that_is_not_text_are_refused(tmp_path):
    (tmp_path / "groups").mkdir()
    for group, child in ("one", "two"), ("two", "one"):
        (tmp_path / f"groups/{group}.yaml").write_text(f"group: {group}\ntask: [{child}]\n")
    with pytest.raises(UserError, match="tasks: one: a group that contains itself, through two"):
        harness_tasks.load_tasks([str(tmp_path / "groups")])
    write_task(tmp_path / "numbers", "five", [{"q": "a"}], **CHOICE | {"task": 5})
    with pytest.raises(UserError, match="a task's name is 5, which is not text; quote it"):
        harness_tasks.load_tasks([str(tmp_path / "numbers")])


def test_samples_that_would_share_a_file_are_refused_before_the_model_is_loaded(tmp_path):
    with pytest.raises(UserError, match="log_samples: a/b, a_b differ only in / and _"):
        run_harness(pytest.fail, {"tasks": {"a/b": None, "a_b": None}}, {}, str(tmp_path / "new"), log_samples=True)


def test_an_output_that_cannot_be_created_is_refused_before_the_model_is_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output: .*file/new can't be created"):
        run_harness(pytest.fail, {"tasks": {}}, {}, str(tmp_path / "file/new"))


def test_output_printed_while_a_task_loads_is_not_in_the_report(folder, tmp_path, capsys):
    write_task(tmp_path / "tasks", "loud", [{"q": "def", "c": ["a", "b"], "a": 0}], **CHOICE)
    (tmp_path / "tasks/loud.py").write_text("print('loud')\ndef text(doc):\n    return doc['q']\n")
    yaml = tmp_path / "tasks/loud.yaml"
    yaml.write_text(yaml.read_text().replace('"{{q}}"', "!function loud.text"))
    words = ["--tasks", str(tmp_path / "tasks"), "--output", str(tmp_path / "output"), "--json"]
    main(["evaluate", str(folder / "model"), "harness", *words])
    printed, error = capsys.readouterr()
    assert json.loads(printed)["results"].keys() == {"loud"} and "loud\n" in error


def test_unsafe_accepts_a_task_that_runs_programs(mistakes):
    tasks = harness_tasks.load_tasks([str(mistakes / "programs/runs_programs.yaml")], unsafe=True)["tasks"]
    assert tasks.keys() == {"runs_programs"} and tasks["runs_programs"].UNSAFE_CODE


def test_a_warning_names_yaml_files_without_a_task(mistakes, caplog):
    kind = {"output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{q}}"}
    write_task(mistakes / "some", "fine", [{"q": "a"}], **kind)
    (mistakes / "some/broken.yaml").write_text("task: [")
    harness_tasks.load_tasks([str(mistakes / "some")])
    assert f"{mistakes}/some/broken.yaml: ignored; it defines no task of its own" in caplog.text


def test_without_lm_eval_the_error_names_the_extra(folder, monkeypatch, capsys):
    monkeypatch.setattr("codegen_jax.cli.evaluate_harness.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["evaluate", str(folder / "model"), "harness", "--tasks", "x", "--output", "unmade"])
    expected = "codegen-jax: error: harness: lm_eval is not installed; pip install 'codegen_jax[harness]'\n"
    assert capsys.readouterr().err == expected


def test_the_command_starts_without_lm_eval_or_torch():
    program = "import sys, codegen_jax.cli.evaluate; print({'lm_eval', 'torch', 'jax'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "set()\n"
