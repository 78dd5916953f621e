"""Judging: a judge compares a policy's samples with an opponent's, in both orders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from alignlab.errors import ConfigError, DataError
from alignlab.spec import Spec, build
from alignlab.stages.evaluate import Evaluate
from alignlab.stages.stage import POLICY_KINDS, Estimate, Role, Stage
from alignlab.typed import Range

if TYPE_CHECKING:
    from pathlib import Path

    from alignlab.engine.distributed import Engine
    from alignlab.rewards.judge.asking import Asker
    from alignlab.rewards.judge.judge import Judge as Judging
    from alignlab.rewards.judge.rulings import Match, Ruling
    from alignlab.run import Run
    from alignlab.stages.matches import Pairing

TOGETHER = 256  # matches between two lines of progress


@dataclass(frozen=True, kw_only=True)
class Judge(Stage):
    """Win rate of the samples of one evaluation against those of another, by a judge.

    Samples of the same prompt meet, both orders are asked, and a win needs both orders to agree;
    otherwise the match is a tie (Zheng et al. 2023, arXiv:2306.05685). Without an
    ``opponent`` the data's reference answers are it. What the judge said is kept in the store's
    cache as it comes, so an interrupted judging goes on where it stopped.
    """

    kind: ClassVar[str] = "judge"
    together: ClassVar[bool] = True
    roles: ClassVar[Mapping[str, Role]] = {
        "samples": Role(("evaluate",)),
        "opponent": Role(("evaluate",), optional=True),
        "judge": Role(("reward", "pretrain", *POLICY_KINDS), optional=True),
    }
    unkeyed: ClassVar[frozenset[str]] = Stage.unkeyed | {"judge.limits", "judge.price"}

    judge: Spec
    prompts: Annotated[int, Range(min=1)] | None
    repeats: Annotated[int, Range(min=0)]
    sentinels: Annotated[int, Range(min=0)]

    def validate(self) -> None:
        """A judge is named by its configuration or by the input ``judge``, not by both."""
        fields = _run_fields(self.judge)
        given = [name for name in fields if self.judge.arguments.get(name) is not None]
        if "judge" in self.inputs and not fields:
            raise ConfigError("inputs.judge: this judge is no run; leave the input out.")
        if "judge" in self.inputs and given:
            raise ConfigError(
                f"inputs.judge and judge.{given[0]} both name a judge; set judge.{given[0]}=null."
            )
        if "judge" not in self.inputs and fields and not given:
            raise ConfigError(
                f"judge.{fields[0]} is null: name one, or give the stage a run as its input judge."
            )

    def fingerprint(self) -> str:
        """Fingerprint of the judge; one behind the input ``judge`` is in the key as a parent."""
        return "" if "judge" in self.inputs else str(build(self.judge).fingerprint())

    def run(self, inputs: Mapping[str, Run], run: Run, engine: Engine) -> None:
        """Write one row per match to ``samples.jsonl``; to the record what the judge is worth.

        The questions to a judge that is a model are dealt out over the processes. An endpoint is
        asked by the main process alone, which asks many at a time and has the budget.
        """
        from alignlab.rewards.annotator import total
        from alignlab.rewards.judge.asking import Asker
        from alignlab.rewards.judge.rulings import repeated, sentinels, spread
        from alignlab.stages.dealt_judge import DealtJudge
        from alignlab.stages.lineage import trained_on
        from alignlab.stages.matches import pair
        from alignlab.stages.session import cache_of

        workers, judge = engine.workers(), self.opened(inputs)
        dealt = None
        if workers.world > 1 and _run_fields(self.judge):
            judge = dealt = DealtJudge(judge, workers)
        if not workers.is_main:
            if dealt is not None:
                dealt.follow()
            return
        pairing = pair(inputs["samples"], inputs.get("opponent"), self.prompts)
        if pairing.left_out:
            run.warn(f"judge: {pairing.left_out} samples have no opponent on their prompt")
        for name in ("samples.jsonl", "metrics.jsonl"):  # of an interrupted attempt
            (run.path / name).unlink(missing_ok=True)
        source = trained_on(inputs["samples"], self.judge, inputs.get("judge"))
        if source is not None:
            run.warn(f"judge: {judge.name} is what the judged policy was trained on ({source})")
        asker = Asker(judge, cache_of(run))
        earlier = {key: run.record[key] for key in asker.spent() if key in run.record}
        try:
            with dealt.followed() if dealt is not None else nullcontext():
                rulings = list(self.rulings(asker, pairing.matches, run))
                tried = [pairing.matches[i] for i in spread(pairing.ids, self.repeats)]
                again = repeated(asker, tried)
                tried = [pairing.matches[i] for i in spread(pairing.ids, self.sentinels)]
                found = sentinels(asker, tried)
        finally:
            run.update_record(**total([earlier, asker.spent()]))  # over all sessions
        for row in pairing.rows(rulings):
            run.sample(row)
        self.record(run, inputs, judge, pairing, rulings)
        run.update_record(repeat_agreement=again, sentinels=found, trained_on=source)
        run.log(len(rulings), _numbers(run.record["summary"]), split="summary")

    def opened(self, inputs: Mapping[str, Run]) -> Judging:
        """Make the judge; a run behind the input ``judge`` takes its place in the configuration."""
        source = inputs.get("judge")
        if source is None:
            made: Judging = build(self.judge)
            return made
        needs_reward = "reward" in _run_fields(self.judge)
        if needs_reward != (source.kind == "reward"):
            wanted = "a reward run" if needs_reward else "a run with a language model"
            raise ConfigError(f"inputs.judge: this judge needs {wanted}, not {source.name}.")
        place: dict[str, Any] = {"run": source.name, "store": str(source.path.parent)}
        if needs_reward:
            limits = {"max_prompt": None, "max_completion": None, "token_budget": 4096}
            place = {"reward": Spec("alignlab.rewards.trained.TrainedReward", {**place, **limits})}
        from_run: Judging = build(Spec(self.judge.target, {**self.judge.arguments, **place}))
        return from_run

    def rulings(self, asker: Asker, matches: Sequence[Match], run: Run) -> Iterator[Ruling]:
        """Have the matches judged, with a line of progress now and then."""
        from alignlab.rewards.judge.rulings import rule

        for start in range(0, len(matches), TOGETHER):
            part = matches[start : start + TOGETHER]
            yield from rule(asker, part)
            spent = _numbers({"calls": asker.calls, "cost_usd": asker.usd})
            run.log(start + len(part), {"judged": start + len(part), **spent}, split="judge")

    def estimate(self, cache: Path, inputs: Mapping[str, Stage]) -> Estimate:
        """Tokens that a judge of words reads, at the length limits; scoring by rewards is free."""
        from alignlab.models.load import is_made
        from alignlab.stages.estimate import sampling_estimate

        samples, arguments = inputs["samples"], self.judge.arguments
        if "prompt" not in arguments or not isinstance(samples, Evaluate):
            return Estimate()
        matches = min(self.prompts or samples.prompts, samples.prompts) * samples.samples
        repeats = 2 * self.repeats if "base_url" in arguments else 0
        questions = 2 * matches + min(repeats, 2 * matches) + 3 * min(self.sentinels, matches)
        words = len(arguments["prompt"].text) // 4  # English has four letters to a token, about
        length = words + samples.max_prompt + 2 * samples.max_completion
        tokens = questions * length
        model = arguments.get("model") if "base_url" not in arguments else None
        if model is None or not is_made(model, cache):
            return Estimate(tokens=tokens)
        judge = build(self.judge)
        held = {"group": length, "row": length, "budget": judge.token_budget}
        return sampling_estimate(judge.backbone(model), cache, tokens=tokens, **held)

    def record(
        self,
        run: Run,
        inputs: Mapping[str, Run],
        judge: Judging,
        pairing: Pairing,
        rulings: Sequence[Ruling],
    ) -> None:
        """Write the means of the verdicts to the record."""
        from alignlab.rewards.judge.length_control import length_controlled_win_rate
        from alignlab.rewards.judge.rulings import consistency

        decided = [i for i, ruling in enumerate(rulings) if ruling.win is not None]
        if not decided:
            raise DataError(f"{judge.name}: not one of {len(rulings)} matches got a verdict.")
        wins = [float(rulings[i].win or 0.0) for i in decided]
        lengths = [pairing.longer(i) for i in decided]
        clusters = [pairing.prompt_number(i) for i in decided]
        controlled = length_controlled_win_rate(wins, lengths, clusters=clusters)
        opponent = inputs.get("opponent")
        run.update_record(
            label=self.label or inputs["samples"].record.get("label") or "samples",
            opponent=opponent.record.get("label") if opponent else "reference answers",
            judge={
                "name": judge.name,
                "fingerprint": judge.fingerprint(),
                "deterministic": judge.deterministic,
                "balanced": judge.balanced,
                "target": self.judge.target.rpartition(".")[2],
            },
            prompts=len(set(pairing.ids)),
            matches=len(rulings),
            equal_texts=sum(not ruling.asked for ruling in rulings),
            no_verdict=len(rulings) - len(decided),
            consistency=consistency(rulings),
            summary={
                "win_rate": sum(wins) / len(wins),
                "lc_win_rate": controlled.rate,
                "ties": wins.count(0.5) / len(wins),
            },
        )


def _run_fields(judge: Spec) -> tuple[str, ...]:
    """Fields of a judge's configuration that name what judges, if a run can take their place."""
    known = {"RewardJudge": ("reward",), "LocalJudge": ("model", "run")}
    return known.get(judge.target.rpartition(".")[2], ())


def _numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items() if value is not None}
