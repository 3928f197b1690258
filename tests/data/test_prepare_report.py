"""The report of prepare: documents kept and dropped at each stage, by source and reason."""

import json

from codegen_jax.data.prepare import prepare
from codegen_jax.data.prepare_report import load_report, table

LINES = [
    ("Github", "a.py", "x = 1\n"),
    ("Github", "b.py", "x = 1\n"),
    ("Github", "c.md", "# title\n"),
    ("Web", "", "日本\n"),
    ("Web", "", "z" * 2000),
]


def test_each_stage_reports_its_output_by_source_and_its_drops_by_reason(tmp_path, tokenizer):
    for i in range(2):  # one shard for each of two tasks
        lines = [json.dumps({"text": t, "meta": {"pile_set_name": s, "path": p}}) for s, p, t in LINES[i::2]]
        (tmp_path / f"{i}.jsonl").write_text("\n".join([*lines, '{"text": ""}']))
    shards = [str(tmp_path / f"{i}.jsonl") for i in range(2)]
    prepare(shards, str(tmp_path / "out"), tokenizer, workers=2, filters="code", dedup="exact")
    report = load_report(tmp_path / "out")
    counts = lambda documents, nbytes: {"documents": documents, "bytes": nbytes}
    reasons = {"file extension": 1, "average line length of 100 characters or more": 1}
    assert report["stages"] == [
        {"stage": "read", "sources": {"Github": counts(3, 20), "Web": counts(2, 2007)}, "dropped": {"empty text": 2}},
        {"stage": "code rules", "sources": {"Github": counts(2, 12), "Web": counts(1, 7)}, "dropped": reasons},
        {"stage": "dedup", "sources": {"Github": counts(1, 6), "Web": counts(1, 7)}, "dropped": {"duplicate": 1}},
    ]
    tokens = {source: len(tokenizer.encode(text)) + 1 for source, text in (("Github", "x = 1\n"), ("Web", "日本\n"))}
    assert report["tokens"] == tokens
    assert report["first"] == {"empty text": {"shard": shards[0], "line": 4, "starts": '{"text": ""}'}}


def test_the_table_has_one_row_per_source_and_the_totals():
    report = {
        "stages": [
            {"stage": "read", "sources": {"A": {"documents": 2, "bytes": 3_000_000}}, "dropped": {"no text": 1}},
            {"stage": "dedup", "sources": {}, "dropped": {"duplicate": 2}},
        ],
        "tokens": {},
        "first": {"no text": {"shard": "a.jsonl", "line": 7, "starts": '{"text": 3}'}},
        "inputs": {"without_documents": ["b.jsonl"]},
    }
    assert table(report).splitlines() == [
        "source        read       dedup  tokens",
        "A       2 (3.0 MB)  0 (0.0 MB)       0",
        "all     2 (3.0 MB)  0 (0.0 MB)       0",
        """dropped while reading: 1 line (no text); the first is line 7 of a.jsonl: '{"text": 3}'""",
        "dropped by dedup: 2 documents (duplicate)",
        "no documents in 1 shard, such as b.jsonl",
    ]
