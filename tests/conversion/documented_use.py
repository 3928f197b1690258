"""An exported folder in transformers and CTranslate2, used as their documentation says; also a program.

The program runs in an environment of another transformers, so nothing here imports ours: it reads a task (JSON) from
standard input and prints a list of uses.
"""

import json
import logging
import os
import sys
import tempfile
from dataclasses import asdict, dataclass

os.environ["HF_HUB_OFFLINE"] = "1"

import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline


@dataclass
class Use:
    """What came of a folder.

    Attributes:
        version, folder, fast: of transformers, what was used, and whether by a fast tokenizer.
        inputs: names of what the tokenizer returns.
        eos, pad: its ids.
        ids: of each text.
        texts: what the expected ids of each text decode to, and the same without special tokens.
        max_length: how many tokens truncation leaves.
        again: ids of each text by the tokenizer saved with save_pretrained and loaded again.
        alone, batch: greedy ids after each prompt, one at a time and padded.
        completions, batched: by the pipeline, one at a time and by two.
        warnings: what transformers logged.
    """

    version: str
    folder: str
    fast: bool
    inputs: list[str]
    eos: int
    pad: int
    max_length: int
    ids: list[list[int]]
    texts: list[str]
    again: list[list[int]]
    alone: list[list[int]]
    batch: list[list[int]]
    completions: list[str]
    batched: list[str]
    warnings: list[str]


class Kept(logging.Handler):
    """Warnings as text, but for what each pipeline of transformers 4 says of its device and its own defaults."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record):
        if not record.getMessage().startswith(("Device set to use", "The following generation flags are not valid")):
            self.texts.append(record.getMessage())


def use(folder: str, prompts: list[str], new: int, texts: list[str], ids: list[list[int]], fast: bool = True) -> Use:
    warnings = Kept()
    logging.getLogger("transformers").addHandler(warnings)
    try:
        return _use(folder, prompts, new, texts, ids, fast, warnings)
    finally:
        logging.getLogger("transformers").removeHandler(warnings)


def _use(folder, prompts, new, texts, ids, fast, warnings) -> Use:
    tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=fast)
    model = AutoModelForCausalLM.from_pretrained(folder)
    options = dict(max_new_tokens=new, do_sample=False)

    def generate(inputs):
        tokens = model.generate(**inputs, **options)
        new = tokens[:, inputs["input_ids"].shape[1] :].tolist()
        return [row[: row.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in row else row for row in new]

    alone = [generate(tokenizer(prompt, return_tensors="pt"))[0] for prompt in prompts]
    batch = generate(tokenizer(prompts, padding=True, return_tensors="pt"))
    generator = pipeline("text-generation", model=folder, tokenizer=tokenizer)
    # the pipeline of transformers 4 takes the space out of " ," unless told, whatever the tokenizer says
    options |= dict(return_full_text=False, clean_up_tokenization_spaces=False)
    completions = [generator(prompt, **options)[0]["generated_text"] for prompt in prompts]
    batched = [rows[0]["generated_text"] for rows in generator(prompts, batch_size=2, **options)]
    # and its slow tokenizers put spaces around added tokens
    exact = {} if fast else {"spaces_between_special_tokens": False}
    decoded = [tokenizer.decode(row, skip_special_tokens=skip, **exact) for row in ids for skip in (False, True)]
    with tempfile.TemporaryDirectory() as saved:
        tokenizer.save_pretrained(saved)
        again = AutoTokenizer.from_pretrained(saved, use_fast=fast)
    return Use(
        version=transformers.__version__,
        folder=folder,
        fast=fast,
        inputs=sorted(tokenizer(prompts[0])),
        eos=tokenizer.eos_token_id,
        pad=tokenizer.pad_token_id,
        max_length=tokenizer.model_max_length,
        ids=[tokenizer(text)["input_ids"] for text in texts],
        texts=decoded,
        again=[again(text)["input_ids"] for text in texts],
        alone=alone,
        batch=batch,
        completions=completions,
        batched=batched,
        warnings=warnings.texts,
    )


def ctranslate2_use(folder: str, prompts: list[str], new: int) -> list[list[int]]:
    """Greedy ids after each prompt."""
    import ctranslate2

    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as converted:
        ctranslate2.converters.TransformersConverter(folder).convert(converted, force=True)
        generator = ctranslate2.Generator(converted)
    tokens = [tokenizer.convert_ids_to_tokens(tokenizer(prompt)["input_ids"]) for prompt in prompts]
    options = dict(max_length=new, sampling_topk=1, include_prompt_in_result=False)
    # one at a time: in a batch, max_length counts what a prompt has more than the shortest
    results = [generator.generate_batch([prompt], **options)[0] for prompt in tokens]
    return [result.sequences_ids[0] for result in results]


if __name__ == "__main__":
    task = json.load(sys.stdin)
    answers = [asdict(use(**arguments, fast=fast)) for arguments in task["uses"] for fast in (True, False)]
    converted = {folder: ctranslate2_use(folder, *task["ctranslate2"]) for folder in task["folders"]}
    print(json.dumps({"uses": answers, "ctranslate2": converted}))
