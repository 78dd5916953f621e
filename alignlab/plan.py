"""The plan: every distinct stage of one or many jobs, in order, with its key and its cost.

The key of a stage is the hash of all that its result depends on: the class, its version, every
field (with each input replaced by that stage's own key) and the fingerprint of the data it reads.
Stages with equal keys are one node, whatever job or command they come from, and are trained once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from alignlab import typed
from alignlab.costs import Rates
from alignlab.design.expand import expanded
from alignlab.errors import ConfigError, located
from alignlab.graph import counted, ordered
from alignlab.keys import key_of, target_of
from alignlab.models.encoders import require_policy
from alignlab.spec import locate
from alignlab.stages.estimate import require_thaw
from alignlab.stages.stage import Stage

if TYPE_CHECKING:
    from alignlab.run import Store
    from alignlab.stages.stage import Estimate


@dataclass(frozen=True)
class Node:
    """One distinct stage of a plan."""

    name: str  # what the first job that has it calls it
    stage: Stage
    config: Mapping[str, Any]  # `_target_` and every field, what a worker builds the stage from
    key: str
    inputs: Mapping[str, str]  # role -> stage name, as the first job calls it
    parents: Mapping[str, str]  # role -> run name
    cached: bool
    estimate: Estimate
    seconds: float  # estimated wall time of the whole stage, cached or not
    data: str = ""  # fingerprint of what the stage reads by itself
    upstream: str = ""  # where a cached run is, if not in the store

    @property
    def kind(self) -> str:
        """Kind of the stage (``sft``, ``reward`` …)."""
        return self.stage.kind

    @property
    def run(self) -> str:
        """Name of the run folder, ``<kind>-<key>``."""
        return f"{self.kind}-{self.key}"


@dataclass(frozen=True)
class Job:
    """One composed configuration: which of the plan's nodes its stages are."""

    overrides: tuple[str, ...]
    seed: int | None
    stages: Mapping[str, str]  # stage name -> run name


@dataclass(frozen=True)
class Plan:
    """Nodes by run name, parents before children, and the jobs that they serve."""

    nodes: Mapping[str, Node]
    jobs: tuple[Job, ...]

    @classmethod
    def from_configs(
        cls,
        configs: Sequence[Mapping[str, Any]],
        store: Store,
        overrides: Sequence[Sequence[str]] = (),
    ) -> Plan:
        """Plan the ``stages`` of composed configurations over one store.

        Raises:
            ConfigError: a stage that cannot be built, an unknown or unsuitable input, a cycle.
        """
        planner = _Planner(store)
        named = list(overrides) or [()] * len(configs)
        jobs = tuple(
            Job(tuple(job), config.get("seed"), planner.add(config))
            for config, job in zip(configs, named, strict=True)
        )
        return cls(planner.nodes, jobs)

    def pending(self) -> list[Node]:
        """Nodes to execute, in order: those that are neither in the store nor counted."""
        idle = self.counted()
        return [n for n in self.nodes.values() if not n.cached and n.run not in idle]

    def counted(self) -> set[str]:
        """Runs that are not done, and that whoever reads them is done without: see `counted`."""
        return counted(self.nodes, {run for run, node in self.nodes.items() if node.cached})

    def to_json(self) -> dict[str, Any]:
        """Return the object that ``alignlab plan --json`` prints."""
        return {
            "stages": [
                {
                    "name": node.name,
                    "kind": node.kind,
                    "key": node.key,
                    "inputs": dict(node.inputs),
                    "cached": node.cached,
                    "upstream": node.upstream or None,
                    "params_total": node.estimate.params_total,
                    "params_trained": node.estimate.params_trained,
                    "tokens": node.estimate.tokens,
                    "flops": node.estimate.flops,
                    "memory_bytes": node.estimate.memory_bytes,
                    "seconds": node.seconds,
                }
                for node in self.nodes.values()
            ],
            "jobs": len(self.jobs),
        }


@dataclass(frozen=True)
class _Built:
    """What depends on a stage's own fields only, shared by all jobs that state it alike."""

    stage: Stage
    data: str  # fingerprint of the data that it reads
    fields: Mapping[str, Any]  # of the stage, as plain data
    text: str  # its configuration but for seed and inputs, on whose names no data and cost depends

    @property
    def config(self) -> dict[str, Any]:
        """What a worker builds the stage from."""
        return {"_target_": target_of(self.stage), **self.fields}


@dataclass
class _Planner:
    store: Store
    nodes: dict[str, Node] = field(default_factory=dict)
    built: dict[tuple[str, ...], _Built] = field(default_factory=dict)  # by text, seed and inputs
    placeless: dict[str, _Built] = field(default_factory=dict)  # by text: the first one's
    fingerprints: dict[str, str] = field(default_factory=dict)
    behind: dict[str, _Built] = field(default_factory=dict)  # by run name
    estimates: dict[tuple[str, ...], Estimate] = field(default_factory=dict)
    rates: Rates | None = None

    def add(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Add one job; return the run name of each of its stages."""
        stated = config.get("stages")
        if not isinstance(stated, Mapping) or not stated:
            raise ConfigError(
                "stages: the configuration has none; choose a pipeline, for example "
                "pipeline=preference."
            )
        stages = expanded(config, self._cost)
        built = {name: self._build(name, node) for name, node in stages.items()}
        order = ordered({name: b.stage for name, b in built.items()})
        runs: dict[str, str] = {}
        for name in order:
            runs[name] = self._node(name, built[name], runs)
        return {name: runs[name] for name in built}

    def _build(self, name: str, node: Any) -> _Built:
        # A sweep of thousands of jobs states most of its stages many times, and the others often
        # with another seed or other inputs only: each text is checked once.
        path = f"stages.{name}"
        if not isinstance(node, Mapping):
            return _Built(build_stage(node, path), "", {}, "")  # it is refused
        seed, inputs = node.get("seed"), node.get("inputs")
        text = json.dumps({**node, "seed": 0, "inputs": {}}, sort_keys=True, default=str)
        key = (text, repr(seed), repr(inputs))
        if key in self.built:
            return self.built[key]
        known = self.placeless.get(text)
        if known is not None and type(seed) is int and isinstance(inputs, dict) and _plain(inputs):
            with located(path):
                stage = replace(known.stage, seed=seed, inputs=inputs)
            fields = {**known.fields, "seed": seed, "inputs": inputs}
            found = replace(known, stage=stage, fields=fields)
        else:
            stage = build_stage(node, path)
            fields = typed.to_mapping(stage)
            found = _Built(stage, self._fingerprint(stage, fields, path), fields, text)
            self.placeless[text] = found
        self.built[key] = found
        return found

    def _fingerprint(self, stage: Stage, mapping: Mapping[str, Any], path: str) -> str:
        # Reading data is the slow part of a plan. Data do not depend on the seed, so the stages of
        # all seeds share one reading.
        apart = {"seed", "inputs", *stage.unkeyed}
        fields = {k: v for k, v in mapping.items() if k not in apart}
        text = target_of(stage) + json.dumps(fields, sort_keys=True)
        if text not in self.fingerprints:
            with located(path):
                self.fingerprints[text] = stage.fingerprint()
        return self.fingerprints[text]

    def _node(self, name: str, built: _Built, runs: Mapping[str, str]) -> str:
        stage = built.stage
        parents = {role: runs[source] for role, source in sorted(stage.inputs.items())}
        key = key_of(stage, built.fields, built.data, parents)
        run = f"{stage.kind}-{key}"
        if run not in self.nodes:
            self.behind[run] = built
            inputs = {role: self.behind[parent] for role, parent in parents.items()}
            estimate = self._priced(name, built, inputs)
            if self.rates is None:
                self.rates = Rates.of(self.store)
            self.nodes[run] = Node(
                name=name,
                stage=stage,
                config=built.config,
                key=key,
                inputs={role: self.nodes[parent].name for role, parent in parents.items()},
                parents=parents,
                cached=self.store.run(stage.kind, key).done,
                estimate=estimate,
                seconds=self.rates.seconds(stage.kind, estimate),
                data=built.data,
            )
        return run

    def _cost(self, stages: Mapping[str, Any], name: str) -> Estimate:
        """Estimate a stage before there is a graph; what is wrong with its inputs is said later."""
        built = self._build(name, stages[name])
        behind = {r: s for r, s in sorted(built.stage.inputs.items()) if s in stages}
        return self._priced(name, built, {r: self._build(s, stages[s]) for r, s in behind.items()})

    def _priced(self, name: str, built: _Built, inputs: Mapping[str, _Built]) -> Estimate:
        key = (built.text, *(f"{role} {source.text}" for role, source in inputs.items()))
        if key not in self.estimates:
            with located(f"stages.{name}"):
                backbone = getattr(built.stage, "backbone", None)
                if backbone is not None and not built.stage.encodes:
                    require_policy(backbone, self.store.cache, built.stage.kind)
                require_thaw(built.stage, self.store.cache)
                self.estimates[key] = built.stage.estimate(
                    self.store.cache, {role: source.stage for role, source in inputs.items()}
                )
        return self.estimates[key]


def _plain(inputs: Mapping[Any, Any]) -> bool:
    return all(type(word) is str for pair in inputs.items() for word in pair)


def build_stage(node: Any, path: str) -> Stage:
    """Make a stage of its configuration; raise ConfigError naming ``path`` for what is wrong."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{path}: a stage is a mapping with a _target_, as in conf/stage/*.yaml.")
    found = locate(node["_target_"], f"{path}._target_")
    if not (isinstance(found, type) and issubclass(found, Stage)):
        raise ConfigError(f"{path}._target_: {node['_target_']} is not a stage.")
    return typed.build(found, node, path)
