"""Use an exported folder in transformers and CTranslate2 as documented; also a script for another environment.

The script runs in an environment with another version of transformers, so this file does not import our package. It
reads a task (JSON) from standard input and prints the results as JSON.
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
    """The results of using a folder.

    Attributes:
        version: version of transformers.
        folder: the folder that was used.
        fast: whether the tokenizer is a fast one.
        inputs: names of the tokenizer's outputs.
        eos, pad: the tokenizer's eos and pad ids.
        max_length: number of tokens that truncation keeps.
        ids: ids of each text.
        texts: the decoded text of each list of expected ids, with and without special tokens.
        again: ids of each text from the tokenizer after save_pretrained and reloading.
        alone, batch: greedy ids after each prompt, one prompt at a time and in a padded batch.
        completions, batched: the pipeline's completions, one at a time and in batches of two.
        warnings: warnings logged by transformers.
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
    """Collects warnings as text, except what every transformers 4 pipeline logs about its device and defaults."""

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
    # transformers 4's pipeline removes the space in " ," by default, whatever the tokenizer's config says
    options |= dict(return_full_text=False, clean_up_tokenization_spaces=False)
    completions = [generator(prompt, **options)[0]["generated_text"] for prompt in prompts]
    batched = [rows[0]["generated_text"] for rows in generator(prompts, batch_size=2, **options)]
    # and its slow tokenizers add spaces around added tokens
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
    # one at a time: in a batch, max_length includes the tokens by which a prompt exceeds the shortest one
    results = [generator.generate_batch([prompt], **options)[0] for prompt in tokens]
    return [result.sequences_ids[0] for result in results]


if __name__ == "__main__":
    task = json.load(sys.stdin)
    answers = [asdict(use(**arguments, fast=fast)) for arguments in task["uses"] for fast in (True, False)]
    converted = {folder: ctranslate2_use(folder, *task["ctranslate2"]) for folder in task["folders"]}
    print(json.dumps({"uses": answers, "ctranslate2": converted}))
