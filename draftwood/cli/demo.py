"""`draftwood demo`: a small public model decodes three ways and says the same each time."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from draftwood.cli import options
from draftwood.cli.loading import open_engine
from draftwood.cli.terminal import output, plain, steps

_METHODS = ("ar", "chain", "tree")
_EDIT_TOKENS = 320
_INTRODUCTION = """\
draftwood makes a language model answer faster without changing a token: a drafter guesses the next tokens,
the model checks all guesses in one pass and keeps those that it would have written itself. Here the model
is SmolLM2-135M, and the drafter only looks up how the same words went on before."""
_NEXT = """\
next:
  draftwood chat                                        talk with this model
  draftwood run TARGET.gguf --draft lookup -p "..."     your own GGUF file, any target
  draftwood run TARGET.gguf --draft DRAFT.gguf -p "..." with a DFlash draft made for it
  draftwood doctor                                      what this machine can do"""


def demo(
    max_tokens: Annotated[
        int,
        typer.Option(
            "--n-gen",
            "-n",
            callback=options.within("--n-gen", 1),
            metavar="N",
            help="Tokens a HumanEval prompt, at most.",
        ),
    ] = 128,
    device: options.DeviceOption = options.DeviceName.auto,
) -> None:
    """Decode an editing task and ten HumanEval prompts three ways with a small model."""
    from draftwood.bench import report
    from draftwood.bench.gates import require_identical
    from draftwood.bench.prompts.editing import OPENING, REQUEST, editing_prompt
    from draftwood.bench.prompts.humaneval import load_prompts, prompts_sha256
    from draftwood.bench.suites.he import Method, run_suite
    from draftwood.decode.params import SamplingParams
    from draftwood.engine.fetch import resolve

    plain([_INTRODUCTION, ""])
    prompts = load_prompts(resolve("humaneval"))
    engine = open_engine("demo", "lookup", device=device)
    editing = editing_prompt(engine.tokenizer.chat_template)
    edit = SamplingParams(max_tokens=_EDIT_TOKENS)
    plain(["An editing task, live (tree):", "", REQUEST, ""])
    sys.stdout.write(OPENING)
    for event in engine.stream(editing.text, edit, method="tree"):
        sys.stdout.write(event.text)
        sys.stdout.flush()
    plain(["", ""])
    methods = [Method(name) for name in _METHODS]
    with steps(len(methods) * (3 + len(prompts))) as begin:
        edited = run_suite(engine, [editing], methods, edit, report=begin)
        answered = run_suite(engine, prompts, methods, SamplingParams(max_tokens=max_tokens), report=begin)
    facts, commit, digest = engine.describe(), report.commit(), prompts_sha256([*prompts, editing])
    plain(report.conditions(facts, commit, digest, max_tokens, 1))
    for title, result in (("the editing task", edited), ("ten HumanEval prompts", answered)):
        same = "no" if result.differences else "yes"
        plain(["", f"{title}: identical tokens with {', '.join(_METHODS)}: {same}"])
        plain(result.differences)
        require_identical(result.differences)
        output().print(report.comparison_table(result.methods))
    plain(["", "AL is tokens decided a round; plain decoding decides one.", "", _NEXT])
