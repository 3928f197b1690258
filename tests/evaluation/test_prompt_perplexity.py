"""Prompt perplexity equals the value from transformers' log-probabilities of the prompts' own tokens."""

import json
import math
import statistics

import pytest
import torch

from codegen_jax.cli import main
from codegen_jax.data.tokenizer import TRUNCATE_BEFORE, truncate
from codegen_jax.errors import UserError
from codegen_jax.evaluation.humaneval_perplexity import JudgedSample, humaneval_perplexity, read_judged_samples
from codegen_jax.evaluation.mtpb.cases import PREFIX, read_cases
from codegen_jax.evaluation.mtpb.perplexity import (
    draw_subprograms,
    multi_turn,
    read_subprograms,
    single_turn_perplexity,
)
from codegen_jax.evaluation.problems import humaneval
from codegen_jax.evaluation.prompt_perplexity import Mean, log_probabilities, segment_after
from codegen_jax.inference.generator import Generator
from tests.evaluation.benchmarks import write_lines
from tests.peers import peer, save, tiny_bpe
from tests.test_strict_json import strictly

TOKENIZER = tiny_bpe([PREFIX, "# Assign the value to a variable.\n# Print name.\nx = x + name\n"], 320)
CONTEXT = 160
MTPB = [
    {"id": "2", "prompts": ["Assign {A} to x.", "Add 1 to x, name it y.", "Print y."], "max_gen_length": 8},
    {"id": "10", "prompts": ["Take {A}.", "Print it."], "max_gen_length": 5},
    {"id": "1", "prompts": ["Print {A}."], "max_gen_length": 8},
]
INPUTS = {"2": [{"A": "7"}, {"A": "'Grüße'"}], "10": [{"A": "3"}, {"A": "[]"}, {"A": "'x'"}], "1": [{"A": "0"}]}
OWN = ["def one():\n    return 1\n\n\ndef f{n}(value):\n", "# {n}\ndef f{n}(x, name):\n", "name = {n}\nf{n} = None\n"]
JUDGED = [
    ("Own/0", "    return value\n", True),
    ("Own/0", "    return value\n", True),
    ("Own/0", "    return x\n", False),
    ("Own/0", "", False),
    ("Own/1", "    return name", False),
    ("Own/2", "# Grüße", True),
    ("Own/2", "", True),
    ("Own/3", "    return x + name\n" * 2, False),
    ("Own/3", "    pass\n", False),
]


def peer_of(context):
    """A model that favors newlines; the authors' script truncates a completion at three in a row."""
    model = peer(n_positions=context, vocab_size=TOKENIZER.vocab_size)
    with torch.no_grad():
        model.lm_head.bias[TOKENIZER.encode("\n")] += 5.0
    return model


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder that contains a model, problems, samples and results."""
    folder = tmp_path_factory.mktemp("perplexity")
    save(peer_of(CONTEXT), folder / "model", tokenizer=TOKENIZER)
    save(peer_of(64), folder / "short", tokenizer=TOKENIZER)
    mtpb = [record | {"inputs": INPUTS[record["id"]], "outputs": INPUTS[record["id"]]} for record in MTPB]
    write_lines(folder / "mtpb.jsonl", mtpb)
    own = []
    for n in range(5):
        task = {"task_id": f"Own/{n}", "prompt": OWN[n % 3].replace("{n}", str(n)), "canonical_solution": "    pass\n"}
        task["canonical_solution"] *= n % 3 != 2
        own.append(task | {"test": "def check(candidate):\n    pass\n", "entry_point": f"f{n}"})
    write_lines(folder / "own.jsonl", own)
    write_lines(folder / "long.jsonl", [own[0] | {"prompt": own[0]["prompt"] + "# long\n" * CONTEXT}])
    write_lines(folder / "bare.jsonl", [own[0] | {"prompt": "", "canonical_solution": "f0 = None\n"}])
    write_lines(folder / "results.jsonl", [dict(zip(("task_id", "completion", "passed"), one)) for one in JUDGED])
    write_lines(folder / "whole.jsonl", [{"task_id": "Own/0", "solution": "x", "passed": True}])
    write_lines(folder / "unjudged.jsonl", [{"task_id": "Own/0", "completion": "x"}])
    write_lines(folder / "text.jsonl", [{"task_id": "Own/0", "completion": "x", "passed": "yes"}])
    write_lines(folder / "strange.jsonl", [{"task_id": "Own/9", "completion": "x", "passed": True}])
    turns = {"task_id": "2", "case": 0, "completions": ["x = 7", "y = x + 1", "print(y)"]}
    write_lines(folder / "samples.jsonl", [turns])
    write_lines(folder / "other.jsonl", [turns | {"case": 2}])
    write_lines(folder / "fewer.jsonl", [turns | {"completions": ["x = 7", "y = 1"]}])
    write_lines(folder / "single.jsonl", [turns | {"completions": ["x = 7"]}])
    whole = {
        "id": "2",
        "input": {"A": "7"},
        "gold_output": {"A": "7"},
        "completions": PREFIX + "# Assign 7 to x.\nx = 7",
    }
    write_lines(folder / "authors.jsonl", [whole])
    write_lines(folder / "surrogate.jsonl", [turns | {"completions": ["\ud800", "", ""]}])
    (folder / "cut.jsonl").write_text('{"task_id": "2", "case')
    return folder


@pytest.fixture(scope="module")
def model(files):
    return Generator.load(str(files / "model"), "float32")


@pytest.fixture(scope="module")
def cases(files):
    return read_cases(str(files / "mtpb.jsonl"))


@torch.no_grad()
def of_transformers(context, text, room=CONTEXT, joint=True):
    """Log-probability and count of a text's tokens, from the tokenizers library's offsets and PyTorch's logits."""
    encode = TOKENIZER._tokenizer.encode
    if joint:
        whole = encode(context + text)
        ids = whole.ids
        mine = [n for n, (start, _) in enumerate(whole.offsets) if start >= len(context)]
    else:
        ids = encode(context).ids + encode(text).ids
        mine = list(range(len(encode(context).ids), len(ids)))
    cut = max(0, len(ids) - room)
    ids, mine = ids[cut:], [n - cut for n in mine if n > 0]
    logprobs_TV = peer_of(room)(torch.tensor([ids])).logits[0].double().log_softmax(-1)
    return sum(logprobs_TV[n - 1, ids[n]].item() for n in mine), len(mine)


def pooled(segments):
    sums, tokens = zip(*segments)
    return math.exp(-sum(sums) / sum(tokens))


def turns_of(case, completions, room=CONTEXT):
    """The multi-turn perplexity of one history, by the paper's formula."""
    history, segments = PREFIX, []
    for prompt, completion in zip(case.prompts, completions, strict=True):
        segments.append(of_transformers(history, prompt, room))
        history += f"{prompt}{completion}\n\n"
    return pooled(segments)


def test_multi_turn_equals_the_papers_formula_with_transformers_log_probabilities(model, cases):
    texts = ["x = 1\nprint(x)", "", "name = 'Grüße'\n", "    return x", "x"]
    samples = {
        case.task_id: [
            [texts[(number + turn + extra) % 5] for turn in range(len(case.prompts))] for extra in range(1 + number % 3)
        ]
        for number, case in enumerate(cases)
    }
    found = multi_turn(model, cases, samples)
    theirs = {case.task_id: statistics.mean(turns_of(case, one) for one in samples[case.task_id]) for case in cases}
    assert found.by_case == pytest.approx(theirs, rel=1e-5)
    assert found.perplexity == pytest.approx(statistics.mean(theirs.values()), rel=1e-5)
    problems = [[theirs[case.task_id] for case in cases if case.problem == name] for name in ("1", "2", "10")]
    assert found.over_problems == pytest.approx(statistics.mean(map(statistics.mean, problems)), rel=1e-5)
    assert (found.problems, found.cases.count, found.samples, found.cut) == (3, 6, sum(map(len, samples.values())), 0)
    assert found.over_problems != pytest.approx(found.perplexity, rel=1e-3)


def test_single_turn_scores_all_prompts_joined(model, cases):
    found = single_turn_perplexity(model, cases)
    theirs = {case.task_id: pooled([of_transformers(PREFIX, "".join(case.prompts))]) for case in cases}
    assert found.by_case == pytest.approx(theirs, rel=1e-5)
    assert found.tokens == sum(of_transformers(PREFIX, "".join(case.prompts))[1] for case in cases)


@torch.no_grad()
def greedy(prompt, new, room=CONTEXT):
    """transformers' greedy completion; the prompt is truncated from the left if needed."""
    ids = TOKENIZER.encode(prompt)[-(room - new) :]
    tokens = torch.tensor([ids])
    mask = torch.ones_like(tokens)
    out = peer_of(room).generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=new)[0, len(ids) :]
    added = out.tolist()
    text = TOKENIZER.decode(added[: added.index(0)] if 0 in added else added)
    return truncate(text, TRUNCATE_BEFORE), text


def test_greedy_subprograms_equal_transformers_and_give_the_same_result_from_a_file(model, cases, tmp_path, files):
    drawn, truncated = draw_subprograms(model, cases), 0
    assert [len(completions) for completions in drawn] == [len(case.prompts) for case in cases]
    for case, completions in zip(cases, drawn):
        for turn, text in enumerate(completions):
            theirs = greedy(case.model_prompt(completions[:turn]), case.max_new_tokens)
            assert text == theirs[0]
            truncated += theirs[0] != theirs[1]
    assert len({text for completions in drawn for text in completions}) > 3 and truncated > 0
    lines = [
        {"task_id": case.problem, "case": case.case, "completions": [*completions[:-1], "not used"], "seed": 0}
        for case, completions in zip(cases, drawn)
    ]
    given = multi_turn(model, cases, read_subprograms(write_lines(tmp_path / "drawn.jsonl", lines), cases))
    found = multi_turn(model, cases)
    assert found.by_case == given.by_case and (found.subprograms, given.subprograms) == ("greedy", "given")
    assert found.by_case["2/1"] == pytest.approx(turns_of(cases[2], drawn[2]), rel=1e-5)


def test_a_history_that_is_too_long_is_truncated_from_the_left(files, cases):
    short = Generator.load(str(files / "short"), "float32")
    chosen = cases[1:3]
    drawn = draw_subprograms(short, chosen)
    for case, completions in zip(chosen, drawn):
        for turn, text in enumerate(completions):
            assert text == greedy(case.model_prompt(completions[:turn]), case.max_new_tokens, 64)[0]
    given = {case.task_id: [["x = 1\n" * 9, "y = x + 1\n" * 9, ""]] for case in chosen}
    found = multi_turn(short, chosen, given)
    for case in chosen:
        assert found.by_case[case.task_id] == pytest.approx(turns_of(case, given[case.task_id][0], 64), rel=1e-5)
    assert found.cut == 4 and "4 prompts have a history longer than the context" in str(found)


def test_a_token_across_the_boundary_is_context():
    encode = TOKENIZER.encode
    (name,) = encode(" name")
    joined = segment_after(TOKENIZER, "x = x + na", "me\n", "it")
    assert name in joined.ids[: joined.start] and TOKENIZER.decode(joined.ids[joined.start :]) == "\n"
    for context, text in (("# Grü", "ße"), ("# €", "€ x"), ("# 🐍🐍", "🐍"), ("# a", "ü")):
        segment = segment_after(TOKENIZER, context, text, "it")
        assert TOKENIZER.decode(segment.ids[segment.start :]) == text and len(encode(text)) >= segment.tokens > 0
        assert TOKENIZER.decode(segment.ids[: segment.start]) == context
    with pytest.raises(UserError, match="it: no token begins within the text"):
        segment_after(TOKENIZER, "x = x + na", "me", "it")


def test_log_probabilities_do_not_depend_on_the_batch(model, cases):
    texts = ["x = 1\n", "# Print name.\n", "x", "print(x)\n" * 5, "def f(x):\n    return x"]
    segments = [
        segment_after(model.tokenizer, PREFIX * (n % 2) + "#", text * (1 + n % 3), "it")
        for n in range(9)
        for text in texts
    ]
    contexts = [case.history([""] * turn) for case in cases for turn in range(len(case.prompts))]
    segments += [segment_after(model.tokenizer, history, "# Print.\n", "it") for history in contexts]
    segments = [segment.fit(CONTEXT, "it") for segment in segments]
    alone = [
        float(model.logprobs(torch.tensor([segment.ids]).numpy())[0][0, segment.start - 1 :].astype(float).sum())
        for segment in segments
    ]
    assert log_probabilities(model, segments) == pytest.approx(alone, rel=1e-5)


def test_a_segment_that_is_a_prefix_of_another_shares_its_row(model, monkeypatch):
    widths, logprobs = [], model.logprobs
    monkeypatch.setattr(model, "logprobs", lambda tokens_BT: widths.append(tokens_BT.shape) or logprobs(tokens_BT))
    histories = [PREFIX, PREFIX + "# Take it.\nx = 1\n\n", PREFIX + "# Take it.\nx = 1\n\n# Print it.\nprint(x)\n\n"]
    prompts = ["# Take it.\n", "# Print it.\n", "# Print all.\n"]
    segments = [segment_after(model.tokenizer, *pair, "it") for pair in zip(histories, prompts)]
    assert log_probabilities(model, segments) == pytest.approx(
        [of_transformers(*pair)[0] for pair in zip(histories, prompts)], rel=1e-5
    )
    assert widths == [(1, len(segments[2].ids))]


def assert_mean(mean, values):
    """The mean of two or more values with its standard error."""
    assert mean.count == len(values) and mean.perplexity == pytest.approx(statistics.mean(values), rel=1e-5)
    assert mean.standard_error == pytest.approx(statistics.stdev(values) / math.sqrt(len(values)), rel=1e-4)


def test_humaneval_prompts_and_samples_equal_transformers(model, files):
    problems = humaneval(str(files / "own.jsonl"))
    samples = read_judged_samples(str(files / "results.jsonl"), problems)
    found = humaneval_perplexity(model, problems, samples)
    prompts = {problem.task_id: problem.prompt for problem in problems}
    theirs = {name: pooled([of_transformers("", prompt)]) for name, prompt in prompts.items()}
    assert found.by_problem == pytest.approx(theirs, rel=1e-5)
    assert found.tokens == sum(len(TOKENIZER.encode(prompt)) - 1 for prompt in prompts.values())
    assert_mean(found.prompts, list(theirs.values()))
    split = found.samples
    assert_mean(split.pass_prompts, [theirs["Own/0"], theirs["Own/2"]])
    assert_mean(split.non_pass_prompts, [theirs["Own/1"], theirs["Own/3"]])
    completions = [
        (passed, pooled([of_transformers(prompts[name], text, joint=False)])) for name, text, passed in JUDGED if text
    ]
    assert_mean(split.passed, [value for passed, value in completions if passed])
    assert_mean(split.failed, [value for passed, value in completions if not passed])
    assert (split.empty_passed, split.empty_failed, split.without_samples, split.cut) == (1, 1, 1, 0)
    assert "2 completions have no tokens and are in neither mean (1 passed, 1 failed)" in str(found)
    assert "1 problems have no samples and are in neither mean" in str(found)
    assert humaneval_perplexity(model, problems).by_problem == pytest.approx(theirs, rel=1e-5)


def test_a_prompt_is_truncated_from_the_left_to_fit_a_completion(model, files):
    problems = humaneval(str(files / "own.jsonl"))[:1]
    text = "    x = x\n" * 14
    tokens = len(TOKENIZER.encode(text))
    assert CONTEXT - len(TOKENIZER.encode(problems[0].prompt)) < tokens < CONTEXT
    found = humaneval_perplexity(model, problems, [JudgedSample("Own/0", text, True)]).samples
    alone = pooled([of_transformers(problems[0].prompt, text, joint=False)])
    assert found.passed == Mean(1, pytest.approx(alone, rel=1e-5), None)
    assert found.cut == 1 and found.failed == Mean(0, None, None) and found.pass_prompts.standard_error is None
    with pytest.raises(
        UserError, match=r"a completion of Own/0: has \d+ tokens, which do not fit in the model's context"
    ):
        humaneval_perplexity(model, problems, [JudgedSample("Own/0", text * 3, True)])


def run(files, monkeypatch, capsys, words):
    monkeypatch.chdir(files)
    main(f"evaluate model perplexity {words} --dtype float32".split())
    return capsys.readouterr().out.splitlines()


def test_the_command_prints_text_or_json(model, cases, files, monkeypatch, capsys):
    ours = multi_turn(model, cases)
    assert (
        len(run(files, monkeypatch, capsys, "mtpb --problems mtpb.jsonl")) == 2
    )  # the paper's result is for all problems
    monkeypatch.setattr("codegen_jax.evaluation.mtpb.cases.PROBLEMS", 3)
    line, problems, paper = run(files, monkeypatch, capsys, "mtpb --problems mtpb.jsonl")
    assert line == (
        f"MTPB, multi-turn: prompt perplexity {ours.perplexity:.3f}, after the model's own greedy subprograms (mean "
        f"over 6 cases of 3 problems, {ours.tokens} tokens)"
    )
    assert problems.startswith("mean over problems, which differ in their number of cases: ")
    assert paper.startswith("the paper, CodeGen-Mono: 350M 10.09 (?), 2B 8.90 (?), 6B 8.18 (?), 16B 8.05; (?): ")
    (line,) = run(files, monkeypatch, capsys, "mtpb --problems mtpb.jsonl --mode single --limit 2 --json")
    found = strictly(line)
    assert (
        found["weights"] == "whole" and found["mode"] == "single" and found["by_case"].keys() == {"1/0", "2/0", "2/1"}
    )
    assert_mean(Mean(**found["cases"]), list(found["by_case"].values()))
    lines = run(files, monkeypatch, capsys, "humaneval --problems own.jsonl --results results.jsonl --quantize int8")
    assert len(lines) == 11 and all(line.startswith(("unquantized: ", "int8: ", "int8 changes the ")) for line in lines)
    assert lines[1].startswith("unquantized: prompts: ")
    assert lines[2].startswith("unquantized: completions given their prompt: ")
    (line,) = run(files, monkeypatch, capsys, "humaneval --problems own.jsonl --results results.jsonl --limit 1 --json")
    found = json.loads(line)
    assert found["prompts"]["count"] == 1 and found["prompts"]["standard_error"] is None
    assert found["samples"]["passed"]["count"] == 2 and found["samples"]["empty_failed"] == 1
    assert found["samples"]["non_pass_prompts"] == {"count": 0, "perplexity": None, "standard_error": None}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("tokens --mode single", "--mode: applies only to mtpb, not to token files; leave it out"),
        ("./mtpb --limit 3", "--limit: applies only to mtpb and humaneval, not to token files"),
        ("mtpb --max-windows 3", "--max-windows: applies only to token files, not to mtpb"),
        ("mtpb --results x", "--results: applies only to humaneval, not to mtpb"),
        ("humaneval --samples x", "--samples: applies only to mtpb, not to humaneval"),
        ("mtpb", "--problems: required for mtpb; give benchmark/mtpb.jsonl from the authors' repository"),
        ("mtpb --problems none.jsonl", "none.jsonl: no such file or folder"),
        ("mtpb --problems mtpb.jsonl --limit 4", "--limit: must be from 1 to 3, the number of problems, got 4"),
        ("mtpb --problems mtpb.jsonl --mode both", "--mode: invalid choice: 'both'"),
        (
            "mtpb --problems mtpb.jsonl --mode single --samples samples.jsonl",
            "--samples: --mode single has no subprograms between prompts; leave out --samples or use --mode multi",
        ),
        ("mtpb --problems mtpb.jsonl --samples none.jsonl", "none.jsonl: no such file or folder"),
        (
            "mtpb --problems mtpb.jsonl --samples samples.jsonl",
            "--samples: no sample for case 1/0; case 2/1; case 10/0; case 10/1; case 10/2; add one for each",
        ),
        (
            "mtpb --problems mtpb.jsonl --samples other.jsonl",
            "other.jsonl: line 1: task_id '2' with case 2 is not in the benchmark",
        ),
        (
            "mtpb --problems mtpb.jsonl --samples fewer.jsonl",
            "fewer.jsonl: line 1: 2 completions, but problem 2 has 3 turns",
        ),
        ("mtpb --problems mtpb.jsonl --samples results.jsonl", "results.jsonl: line 1: no field case"),
        ("mtpb --problems mtpb.jsonl --samples cut.jsonl", "cut.jsonl: line 1: the last line is incomplete"),
        *(
            (
                f"mtpb --problems mtpb.jsonl --samples {name}.jsonl",
                f"{name}.jsonl: samples must have one text per turn, as written by evaluate MODEL mtpb --mode multi",
            )
            for name in ("single", "authors")
        ),
        ("humaneval --problems long.jsonl", "the prompt of Own/0: "),
        ("humaneval --problems bare.jsonl", "the prompt of Own/0: has 0 tokens, needs at least 2 to be scored"),
        ("humaneval --problems own.jsonl --limit 0", "--limit: must be from 1 to 5, the number of problems, got 0"),
        (
            "humaneval --problems own.jsonl --results whole.jsonl",
            "whole.jsonl: line 1: has a solution (a whole program); perplexity needs a completion of the prompt",
        ),
        (
            "humaneval --problems own.jsonl --results unjudged.jsonl",
            "unjudged.jsonl: line 1: no field passed; give a results file written by codegen-jax evaluate",
        ),
        (
            "humaneval --problems own.jsonl --results text.jsonl",
            "text.jsonl: line 1: passed is 'yes', not true or false",
        ),
        (
            "humaneval --problems own.jsonl --results strange.jsonl",
            "strange.jsonl: line 1: task_id 'Own/9' is not in the benchmark; did you mean Own/",
        ),
    ],
)
def test_a_mistake_gives_a_one_line_error(files, monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        run(files, monkeypatch, capsys, words)
    printed, error = capsys.readouterr()
    assert ended.value.code == 2 and not printed
    assert error.startswith(f"codegen-jax: error: {message}") and error.count("\n") == 1, error


def test_invalid_unicode_in_subprograms_is_refused_naming_the_case(model, files, cases):
    chosen = [case for case in cases if case.task_id == "2/0"]
    samples = read_subprograms(str(files / "surrogate.jsonl"), cases)
    with pytest.raises(UserError, match="prompt 2 of case 2/0: not valid Unicode"):
        multi_turn(model, chosen, samples)
