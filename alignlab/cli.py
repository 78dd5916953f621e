"""The door: parses the command line and imports nothing that the command does not need."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence

from alignlab import __version__
from alignlab.errors import AlignlabError, ConfigError

EPILOG = """\
overrides are Hydra's: group=option chooses a file of conf/, path.to.key=value sets a field.

  alignlab plan pipeline=compare                       what would run, and what it costs
  alignlab plan backbone=llama_7b device=h100x8        memory, hours and money there; what fits
  alignlab run  pipeline=preference objective=ipo      SFT, annotation, IPO, evaluation
  alignlab run  -m objective=dpo,ipo seed=0,1,2        a sweep: shared stages are trained once
  alignlab run  data.path=pairs.jsonl backbone=smollm2 your own data
  alignlab data check pairs.jsonl                      is it fit to train on?
"""

DATA_EPILOG = """\
  alignlab data check pairs.jsonl                      every split, with the default tokenizer
  alignlab data check pairs.jsonl backbone=smollm2 tokens=dialogue --html check.html
  alignlab data check data=hub data.id=owner/name objective=kto --json
  alignlab data preview pairs.jsonl backbone=smollm2   what a stage would train on, token by token

`check` loads no model. It exits with 0 if nothing stands against training on the data, with 1 if
it found errors, and with 2 if the configuration is refused or no format reads the file. From which
share on a finding counts is set by the `gate` group: gate.tokens_truncated.error=0.5.
"""

REPRODUCE_EPILOG = """\
A study's folder (studies/NAME, or a copy of it) suffices: its record.json says everything.

  alignlab reproduce compare-3fa2c1 --check            versions, code, hardware, data: what differs?
  alignlab reproduce copied/compare-3fa2c1             run it here, into a store of its own
  alignlab reproduce copied/mine --data /data/pairs.jsonl=pairs.jsonl

It exits with 0 if the numbers agree within the noise of the seeds (--check: if nothing differs),
with 1 if not, and with 2 if the study cannot be run here.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake is one message, no traceback."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser, commands = _parsers()
    if not words or words[0] not in commands:
        parser.parse_args(words)  # --help, --version, or a refusal with the list of commands
        parser.print_help()
        return 2
    # Intermixed: `alignlab run seed=0 -m objective=dpo,ipo` has overrides on both sides of -m.
    parsed = commands[words[0]].parse_intermixed_args(words[1:])
    try:
        return int(parsed.call(parsed) or 0)
    except AlignlabError as error:
        print(f"alignlab: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("alignlab: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output is gone, as with `| head`
        sys.stderr.close()
        return 141
    except Exception as error:
        from alignlab.disk import say

        return say(error)  # raises what is no matter of a disk


def _parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    parser = argparse.ArgumentParser(
        prog="alignlab",
        description="The comparison lab for alignment pipelines.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"alignlab {__version__}")
    group = parser.add_subparsers(metavar="command", required=True)
    commands: dict[str, argparse.ArgumentParser] = {}

    def command(
        name: str, text: str, call: Callable[[argparse.Namespace], int | None]
    ) -> argparse.ArgumentParser:
        commands[name] = group.add_parser(name, help=text, description=text)
        commands[name].set_defaults(call=call)
        return commands[name]

    _overrides(command("run", "compose, plan, and run what is not done", _run))
    plan = command("plan", "the same without running: stages, keys, cached or not, cost", _plan)
    _overrides(plan)
    plan.add_argument("--json", action="store_true", help="one JSON object")
    report = command("report", "tables, intervals and figures of a study as a page", _report)
    report.add_argument("study", help="its name, as `alignlab run` printed it")
    report.add_argument("--open", action="store_true", help="open the page in a browser")
    report.add_argument("--wandb", action="store_true", help="log it to Weights & Biases as well")
    _watching_commands(command)
    _data_command(command("data", "look at data before training: check it, see tokens", _data))
    runs = command("runs", "what is in the store", _runs)
    runs.add_argument(
        "action",
        choices=("ls", "show", "gc", "prune"),
        help="list; show one; gc: unfinished runs nobody works on; prune: runs no study names",
    )
    runs.add_argument("run", nargs="?", help="for show: name or key of a run, or its beginning")
    runs.add_argument("--yes", action="store_true", help="gc, prune: delete what is listed")
    again = command("reproduce", "a run or study from its record; do numbers agree?", _again)
    _reproduce_command(again)
    export = command("export", "an ordinary Hugging Face folder of a run's model", _export)
    export.add_argument("run", nargs="+", help="run or NAME=RUN: name or key, or its beginning")
    export.add_argument("--to", required=True, metavar="DIR", help="a new or empty folder")
    export.add_argument("--merge", action="store_true", help="put a LoRA adapter into its base")
    export.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="store as")
    chat = command("chat", "talk to a policy, or to several on one base", _chat)
    chat.add_argument("run", nargs="+", help="run or NAME=RUN; several: /use NAME switches")
    chat.add_argument("--temperature", type=float, default=0.8, help="0 = greedy (default 0.8)")
    chat.add_argument("--top-p", type=float, default=0.95, help="nucleus (default 0.95)")
    chat.add_argument("--max-tokens", type=int, default=128, help="per answer (default 128)")
    chat.add_argument("--seed", type=int, default=0)
    command("doctor", "versions, devices, W&B, store; exit 1 if something is wrong", _doctor)
    return parser, commands


def _watching_commands(command: Callable[..., argparse.ArgumentParser]) -> None:
    watch = command("watch", "a study in the terminal while it runs", _watch)
    watch.add_argument("study", nargs="?", help="its name (default: the newest one)")
    watch.add_argument("--once", action="store_true", help="show it as it is now, as plain lines")
    watch.add_argument("--every", type=float, default=1.0, metavar="S", help="seconds (default 1)")
    status = command("status", "how a study stands: queued, running, failed and why", _status)
    status.add_argument("study", nargs="?", help="its name (default: the newest one)")
    status.add_argument("--json", action="store_true", help="one JSON object")
    status.add_argument("--watch", action="store_true", help="follow it, as `alignlab watch`")
    cancel = command("cancel", "end the jobs of a study on a cluster", _cancel)
    cancel.add_argument("study", help="its name")
    cancel.add_argument("stages", nargs="*", help="only these: names, kinds or runs of stages")


def _data_command(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = DATA_EPILOG
    parser.add_argument(
        "action",
        choices=("check", "preview"),
        help="check: the gate, all splits; preview: the tokens a stage would train on",
    )
    parser.add_argument(
        "words",
        nargs="*",
        metavar="[FILE] [overrides]",
        help="a data file or folder (else the configured data); group=option or path.to.key=value",
    )
    parser.add_argument("--split", help="only this split; check: or several, as sft,test")
    parser.add_argument("--html", metavar="PAGE", help="also write a self-contained page")
    parser.add_argument("--json", action="store_true", help="check: one JSON object")
    parser.add_argument("--rows", type=int, metavar="N", help="preview: rows to show (default 3)")
    parser.add_argument("--row", type=int, metavar="N", help="preview: the first of them, from 0")
    parser.add_argument("--ids", action="store_true", help="preview: show token ids too")


def _reproduce_command(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = REPRODUCE_EPILOG
    parser.add_argument("what", metavar="RUN|STUDY|FOLDER", help="its name, or a study's folder")
    parser.add_argument("--check", action="store_true", help="say what differs here; run nothing")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="OLD=NEW",
        help="a file or folder of the study, and where it is here; may be given several times",
    )
    parser.add_argument(
        "--to", metavar="STORE", help="folder for a study's runs (default: beside the store's)"
    )


def _overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", help="group=option or path.to.key=value")
    parser.add_argument(
        "-m", "--multirun", action="store_true", help="sweep over values given as a,b or range(3)"
    )


def _run(parsed: argparse.Namespace) -> int:
    from alignlab.commands.study import run

    return run(parsed.overrides, multirun=parsed.multirun)


def _plan(parsed: argparse.Namespace) -> int:
    from alignlab.commands.study import plan

    return plan(parsed.overrides, multirun=parsed.multirun, as_json=parsed.json)


def _report(parsed: argparse.Namespace) -> int:
    from alignlab.commands.study import report

    return report(parsed.study, open_it=parsed.open, wandb=parsed.wandb)


def _watch(parsed: argparse.Namespace) -> int:
    from alignlab.commands.watch import watch

    return watch(parsed.study, once=parsed.once, every=parsed.every)


def _status(parsed: argparse.Namespace) -> int:
    if parsed.watch:
        return _watch(argparse.Namespace(study=parsed.study, once=False, every=1.0))
    from alignlab.commands.status import status

    return status(parsed.study, as_json=parsed.json)


def _cancel(parsed: argparse.Namespace) -> int:
    from alignlab.commands.cancel import cancel

    return cancel(parsed.study, parsed.stages)


def _data(parsed: argparse.Namespace) -> int:
    file, overrides = _file_and_overrides(parsed.words)
    if parsed.action == "check":
        shows = {"--rows": parsed.rows is not None, "--row": parsed.row is not None}
        _refuse_flags("check", {**shows, "--ids": parsed.ids})
        from alignlab.commands.data_check import check

        splits = [name for name in (parsed.split or "").split(",") if name]
        return check(file, overrides, as_json=parsed.json, html=parsed.html, splits=splits)
    _refuse_flags("preview", {"--json": parsed.json})
    from alignlab.commands.data_preview import preview

    rows = 3 if parsed.rows is None else parsed.rows
    split = parsed.split or "sft"
    options = {"ids": parsed.ids, "html": parsed.html, "split": split, "row": parsed.row}
    return preview(file, overrides, rows=rows, **options)


def _refuse_flags(action: str, given: dict[str, bool]) -> None:
    wrong = [flag for flag, is_given in given.items() if is_given]
    if wrong:
        raise ConfigError(f"{', '.join(wrong)}: `alignlab data {action}` has no such option.")


def _file_and_overrides(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Tell the data file from overrides: it has no ``=``, or it is there under this very name."""
    files = [word for word in words if not _is_override(word)]
    if len(files) > 1:
        raise ConfigError(
            f"{' and '.join(files)}: one data file at a time; an override is key=value. Several "
            "files: a folder, or data=mixture."
        )
    return next(iter(files), None), [word for word in words if _is_override(word)]


def _is_override(word: str) -> bool:
    if word.startswith("~") and not word.startswith("~/"):
        return True  # Hydra: remove a key
    return "=" in word and not os.path.exists(word)  # noqa: PTH110 (pathlib is not needed here)


def _runs(parsed: argparse.Namespace) -> int:
    from alignlab.commands.runs import act

    return act(parsed.action, parsed.run, delete=parsed.yes)


def _again(parsed: argparse.Namespace) -> int:
    from alignlab.commands.reproduce import reproduce

    return reproduce(parsed.what, check=parsed.check, data=parsed.data, to=parsed.to)


def _export(parsed: argparse.Namespace) -> int:
    from alignlab.commands.models import export

    return export(parsed.run, parsed.to, merge=parsed.merge, dtype=parsed.dtype)


def _chat(parsed: argparse.Namespace) -> int:
    from alignlab.commands.models import chat

    return chat(
        parsed.run,
        temperature=parsed.temperature,
        top_p=parsed.top_p,
        max_tokens=parsed.max_tokens,
        seed=parsed.seed,
    )


def _doctor(_: argparse.Namespace) -> int:
    from alignlab.commands.doctor import doctor

    return doctor()
