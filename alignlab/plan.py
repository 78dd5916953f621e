"""The plan: every distinct stage of one or many jobs, in order, with its key and its cost.

The key of a stage is the hash of all that its result depends on: the class, its version, every
field (with each input replaced by that stage's own key) and the fingerprint of the data it reads.
Stages with equal keys are one node, whatever job or command they come from, and are trained once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from alignlab import typed
from alignlab.costs import Rates
from alignlab.errors import ConfigError, DataError, did_you_mean
from alignlab.run import content_key
from alignlab.spec import locate
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
        """Nodes that are not in the store yet, in order."""
        return [node for node in self.nodes.values() if not node.cached]

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


def target_of(stage: Stage) -> str:
    """Dotted name of a stage's class."""
    return f"{type(stage).__module__}.{type(stage).__qualname__}"


def stage_key(stage: Stage, data: str, parents: Mapping[str, str]) -> str:
    """Name a stage by all that its result depends on.

    ``data`` is the fingerprint of what it reads by itself, ``parents`` the run names of its inputs
    by role. Only fields that the class declares as ``unkeyed`` stay out.
    """
    fields = typed.to_mapping(stage)
    return content_key(
        {
            "stage": target_of(stage),
            "version": stage.version,
            "fields": {k: v for k, v in fields.items() if k not in {*stage.unkeyed, "inputs"}},
            "inputs": parents,
            "data": data,
        }
    )


@dataclass(frozen=True)
class _Built:
    """What depends on a stage's own fields only, shared by all jobs that state it alike."""

    stage: Stage
    data: str  # fingerprint of the data that it reads
    config: Mapping[str, Any]


@dataclass
class _Planner:
    store: Store
    nodes: dict[str, Node] = field(default_factory=dict)
    built: dict[str, _Built] = field(default_factory=dict)
    fingerprints: dict[str, str] = field(default_factory=dict)
    rates: Rates | None = None

    def add(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Add one job; return the run name of each of its stages."""
        stated = config.get("stages")
        if not isinstance(stated, Mapping) or not stated:
            raise ConfigError(
                "stages: the configuration has none; choose a pipeline, for example "
                "pipeline=preference."
            )
        built = {name: self._build(name, node) for name, node in stated.items()}
        order = _ordered({name: b.stage for name, b in built.items()})
        runs: dict[str, str] = {}
        for name in order:
            runs[name] = self._node(name, built[name], runs)
        return {name: runs[name] for name in stated}

    def _build(self, name: str, node: Any) -> _Built:
        # A sweep of a hundred jobs states most of its stages a hundred times: check each text once.
        path = f"stages.{name}"
        text = name + json.dumps(node, sort_keys=True, default=str)
        if text not in self.built:
            stage = build_stage(node, path)
            mapping = typed.to_mapping(stage)
            data = self._fingerprint(stage, mapping, path)
            self.built[text] = _Built(stage, data, {"_target_": target_of(stage), **mapping})
        return self.built[text]

    def _fingerprint(self, stage: Stage, mapping: Mapping[str, Any], path: str) -> str:
        # Reading data is the slow part of a plan. Data do not depend on the seed, so the stages of
        # all seeds share one reading.
        apart = {"seed", "inputs", *stage.unkeyed}
        fields = {k: v for k, v in mapping.items() if k not in apart}
        text = target_of(stage) + json.dumps(fields, sort_keys=True)
        if text not in self.fingerprints:
            with _located(path):
                self.fingerprints[text] = stage.fingerprint()
        return self.fingerprints[text]

    def _node(self, name: str, built: _Built, runs: Mapping[str, str]) -> str:
        stage = built.stage
        parents = {role: runs[source] for role, source in sorted(stage.inputs.items())}
        key = stage_key(stage, built.data, parents)
        run = f"{stage.kind}-{key}"
        if run not in self.nodes:
            inputs = {role: self.nodes[parent].name for role, parent in parents.items()}
            with _located(f"stages.{name}"):
                known = {role: self.nodes[parent].stage for role, parent in parents.items()}
                estimate = stage.estimate(self.store.cache, known)
            if self.rates is None:
                self.rates = Rates.of(self.store)
            self.nodes[run] = Node(
                name=name,
                stage=stage,
                config=built.config,
                key=key,
                inputs=inputs,
                parents=parents,
                cached=self.store.run(stage.kind, key).done,
                estimate=estimate,
                seconds=self.rates.seconds(stage.kind, estimate),
            )
        return run


@contextmanager
def _located(path: str) -> Iterator[None]:
    """Put the stage's path before the message of a refusal raised inside."""
    try:
        yield
    except (ConfigError, DataError) as error:
        if path in str(error):
            raise
        kind = DataError if isinstance(error, DataError) else ConfigError
        raise kind(f"{path}: {error}") from None


def build_stage(node: Any, path: str) -> Stage:
    """Make a stage of its configuration; raise ConfigError naming ``path`` for what is wrong."""
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise ConfigError(f"{path}: a stage is a mapping with a _target_, as in conf/stage/*.yaml.")
    found = locate(node["_target_"], f"{path}._target_")
    if not (isinstance(found, type) and issubclass(found, Stage)):
        raise ConfigError(f"{path}._target_: {node['_target_']} is not a stage.")
    return typed.build(found, node, path)


def _ordered(stages: Mapping[str, Stage]) -> list[str]:
    """Names with inputs before the stages that read them; check every edge."""
    for name, stage in stages.items():
        for role, source in stage.inputs.items():
            _check_edge(name, role, source, stages)
    order: list[str] = []
    waiting = dict(stages)
    while waiting:
        ready = [n for n, s in waiting.items() if not set(s.inputs.values()) & set(waiting)]
        if not ready:
            raise ConfigError(f"stages: the inputs go in a circle: {_cycle(waiting)}.")
        order.extend(ready)
        for name in ready:
            del waiting[name]
    return order


def _check_edge(name: str, role: str, source: str, stages: Mapping[str, Stage]) -> None:
    path = f"stages.{name}.inputs.{role}"
    if source not in stages:
        known = ", ".join(stages)
        raise ConfigError(
            f"{path}: there is no stage named '{source}' (stages: {known})."
            f"{did_you_mean(source, stages)}"
        )
    kinds = stages[name].roles[role].kinds
    kind = stages[source].kind
    if kind not in kinds:
        raise ConfigError(
            f"{path}: '{source}' is of kind {kind}, and the role '{role}' of a "
            f"{stages[name].kind} stage takes {' or '.join(kinds)}."
        )


def _cycle(waiting: Mapping[str, Stage]) -> str:
    name = next(iter(waiting))
    path: list[str] = []
    while name not in path:
        path.append(name)
        name = next(s for s in waiting[name].inputs.values() if s in waiting)
    return " → ".join([*path[path.index(name) :], name])
