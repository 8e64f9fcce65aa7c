"""`draftwood demo`: a small public model decodes in several ways and says the same each time."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from draftwood.cli import options
from draftwood.cli.loading import draft_for, open_engine
from draftwood.cli.terminal import output, plain, steps

_BUDGETS = {"ar": None, "chain": 3, "tree": 3, "auto": None}
"""The methods to show, with budgets that pay where every guess costs something, as on a CPU."""

_EDIT_TOKENS = 320
_INTRODUCTION = """\
draftwood makes a language model answer faster without changing its answer. Something cheap guesses the next
tokens, the model checks all guesses in one pass and keeps those that it would have written itself.
Here the model is SmolLM2-135M, small enough for any machine (and for mistakes)."""
_GUESSES = {
    True: "The guesses come from a still smaller model, a draft, which was trained to guess what this model writes.",
    False: "The guesses are looked up: how did the same words go on earlier in the text? Trained drafts gain more.",
}
_NEXT = """\
next:
  talk with this model:           draftwood chat
  this with other guesses:        draftwood demo --draft lookup
  your own model, guesses looked up:
    draftwood run MODEL.gguf --draft lookup -p "..."
  with a DFlash draft made for it:
    draftwood run MODEL.gguf --draft DRAFT.gguf -p "..."
  what this machine has:          draftwood doctor"""


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
    draft: options.DefaultDraftOption = None,
    weights: options.WeightsOption = None,
    token_table: options.TableOption = None,
    vram: options.VramOption = None,
    device: options.DeviceOption = options.DeviceName.auto,
) -> None:
    """See it work with a small model.

    It answers in several ways, with the same tokens and different speeds.
    """
    from draftwood.bench import report
    from draftwood.bench.gates import require_identical
    from draftwood.bench.prompts.editing import OPENING, REQUEST, editing_prompt
    from draftwood.bench.prompts.humaneval import load_prompts, prompts_sha256
    from draftwood.bench.suites.he import Method, run_suite
    from draftwood.decode.drafters.registry import named_drafter
    from draftwood.decode.params import SamplingParams
    from draftwood.engine.fetch import resolve

    draft = draft_for("demo", draft)
    plain([_INTRODUCTION, _GUESSES[named_drafter(draft) is None], ""])
    prompts = load_prompts(resolve("humaneval"))
    engine = open_engine("demo", draft, device=device, weights=weights, token_table=token_table, vram=vram)
    editing = editing_prompt(engine.tokenizer.chat_template)
    edit = SamplingParams(max_tokens=_EDIT_TOKENS)
    plain(["An editing task:", "", REQUEST, "", "The model's answer, live (its first line is given):", ""])
    sys.stdout.write(OPENING)
    for event in engine.stream(editing.text, edit, method="auto"):
        sys.stdout.write(event.text)
        sys.stdout.flush()
    plain(["", "", "Now the same with each method, and ten functions of HumanEval to complete."])
    methods = [Method(name, budget) for name, budget in _BUDGETS.items()]
    with steps(len(methods) * (3 + len(prompts))) as begin:
        edited = run_suite(engine, [editing], methods, edit, report=begin)
        answered = run_suite(engine, prompts, methods, SamplingParams(max_tokens=max_tokens), report=begin)
    facts, commit, digest = engine.describe(), report.commit(), prompts_sha256([*prompts, editing])
    plain(["", *report.conditions(facts, commit, digest, max_tokens, 1)])
    for title, result in (
        (f"the editing task (at most {_EDIT_TOKENS} tokens)", edited),
        ("ten HumanEval prompts", answered),
    ):
        same = "no" if result.differences else "yes"
        plain(["", f"{title}: identical tokens with {', '.join(_BUDGETS)}: {same}"])
        plain(result.differences)
        require_identical(result.differences)
        output().print(report.comparison(result.methods, output()))
    plain(["", *report.legend(answered.methods), "", _NEXT])
