"""`plan`: what each role and host will need, what a step sends and how long it takes at least, and which engine fits; before anything
expensive starts."""

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil

from ..core.config import as_dict
from ..core.errors import InputError
from ..core.storage import exists, join, read_json
from ..core.teacher import num_hops
from ..graph_store.dataset import Dataset
from . import block_sizes, needs, step_costs
from .block_sizes import BlockSizes, Seeds
from .needs import BASE, GIB, MIB, Need, Sizes
from .settings import Settings
from .stages import differences, read_record

AROUND = ("driver", "Ray")  # what an embedded run has on its machine beside its roles
Blocks = Callable[[Seeds, list[int]], BlockSizes]


@dataclass(frozen=True)
class Stage:
    """What is alive at the same time on the fullest host: every role with its number of processes."""

    name: str
    roles: tuple[tuple[Need, int], ...]

    @property
    def total(self) -> int:
        return sum(need.total * count for need, count in self.roles)


@dataclass(frozen=True)
class Choice:
    """An engine, and why."""

    engine: str
    reason: str


def is_embedded(settings: Settings) -> bool:
    """Whether the whole run shares this machine."""
    import os

    return settings.cluster.address is None and "RAY_ADDRESS" not in os.environ


def available_memory(settings: Settings) -> int | None:
    """Bytes of memory of the smallest host that runs workers; None for a cluster whose hosts may not be up before work is asked for."""
    if settings.cluster.host_memory is not None:
        return int(settings.cluster.host_memory * GIB)
    if not is_embedded(settings):
        return None
    limit = Path("/sys/fs/cgroup/memory.max")  # of a container
    limits = [int(text) for text in ([limit.read_text().strip()] if limit.exists() else []) if text.isdigit()]
    return min([psutil.virtual_memory().total, *limits])


def stages_of(settings: Settings, sizes: Sizes, blocks: Blocks, most: Blocks) -> list[Stage]:
    """The stages of a run with a chosen engine, and what each of them runs on the fullest host.

    Args:
        blocks, most: Sizes of one worker's blocks, expected and at most.
    """
    taught, sampled, embedded = needs.wants_teacher(settings, sizes), settings.cluster.engine == "sampled", is_embedded(settings)
    cluster, distill = settings.cluster, settings.distill
    # On a cluster the full engine's workers are spread, one a host; the sampled engine has a host for every part.
    workers = cluster.num_workers if embedded else -(-cluster.num_workers // settings.graph.num_parts) if sampled else 1
    labeler = needs.labeler(settings, sizes), cluster.num_labelers if embedded else 1
    streamed, inline = settings.labels.mode == "streamed", distill.regime == "inline"
    stages = []

    def add(name: str, *roles: tuple[Need, int]) -> None:
        around = [Need(role, BASE[role], {}, "all the time", 0, BASE[role], "") for role in AROUND] if embedded else []
        stages.append(Stage(name, (*roles, *((need, 1) for need in around))))

    if taught:
        teacher = _teacher_worker(settings, sizes, blocks, most)
        tables = needs.teacher_tables(settings, sizes) if sampled else 0
        add("train-teacher", (teacher, workers), (_server("train-teacher", settings, sizes, tables, settings.teacher.dim), 1))
    if taught and not inline and not streamed:
        add("label", labeler)
    beside = []
    if sampled or (taught and inline):
        beside.append((_server("distill", settings, sizes, needs.STUDENT_TABLES if sampled else 0, settings.student.dim), 1))
    if taught and not inline and streamed:
        beside.append((labeler[0], labeler[1] * workers))
    add("distill", (_student_worker(settings, sizes, blocks, most, taught and inline), workers), *beside)
    if taught and distill.rounds > 1:
        tuner = replace(needs.full_teacher(settings, sizes), role="prompt tuner")
        add("tune-prompt", (tuner, workers), (_server("tune-prompt", settings, sizes, 0, settings.teacher.dim), 1))
    for name, dim in (("teacher", needs.final_size(settings, sizes)), ("student", settings.student.dim)):
        if name == "student" or taught:
            add(f"evaluate ({name})", (needs.evaluator(settings, sizes, dim, name), workers))
    return stages


def _server(stage: str, settings: Settings, sizes: Sizes, tables: int, dim: int) -> Need:
    need = needs.graph_server(settings, sizes, tables, dim)
    return replace(need, role=f"graph server ({stage})") if tables else need


def _teacher_worker(settings: Settings, sizes: Sizes, blocks: Blocks, most: Blocks) -> Need:
    if settings.cluster.engine == "full":
        return needs.full_teacher(settings, sizes)
    moments = [needs.sampled_teacher(settings, sizes, estimate) for estimate in (blocks, most)]
    mapped, setting = (
        needs.mapped_files(settings, sizes, needs.final_size(settings, sizes)),
        "sampling.fan_outs, teacher.train.batch_size or teacher.dim",
    )
    return _with_bound("teacher worker", moments, setting, mapped)


def _student_worker(settings: Settings, sizes: Sizes, blocks: Blocks, most: Blocks, with_teacher: bool) -> Need:
    if settings.cluster.engine == "full":
        need = needs.full_student(settings, sizes)
        parts = {**need.parts, **(needs.inline_teacher(settings, sizes) if with_teacher else {})}
        return replace(need, parts=parts, bound=need.base + sum(parts.values()))
    moments = [needs.sampled_student(settings, sizes, estimate) for estimate in (blocks, most)]
    mapped, setting = (
        needs.mapped_files(settings, sizes, settings.student.dim),
        "sampling.fan_outs, student.train.batch_size or student.dim",
    )
    return _with_bound("student worker", moments, setting, mapped)


def _with_bound(role: str, moments: list, setting: str, mapped: float) -> Need:
    found, bound = (Need.of(role, "worker", each, setting, mapped) for each in moments)
    return replace(found, bound=bound.total)


def choose_engine(settings: Settings, dataset: Dataset, available: int | None) -> Choice:
    """As set; with auto full where structure, features, tables and activations fit, else sampled, or the one that the settings need."""
    if settings.cluster.engine != "auto":
        return Choice(settings.cluster.engine, f"cluster.engine={settings.cluster.engine}")
    if settings.needs_full_engine is not None:
        return Choice("full", f"{settings.needs_full_engine} keeps the teacher whole in every worker")
    if settings.needs_sampled_engine is not None:
        return Choice("sampled", f"{settings.needs_sampled_engine} is a setting of neighbour blocks")
    if available is None:
        return Choice("full", "the memory of the cluster's hosts is not known; cluster.host_memory says it")
    full = replace(settings, cluster=replace(settings.cluster, engine="full"))
    stages = [s for s in stages_of(full, _sizes(settings, dataset), _no_blocks, _no_blocks) if s.name in ("train-teacher", "distill")]
    most_of = max(stages, key=lambda stage: stage.total)
    needed = f"the full engine needs {most_of.total / GIB:.1f} GiB in {most_of.name}, and a host has {available / GIB:.1f} GiB"
    return Choice("full" if most_of.total <= available else "sampled", needed)


def _sizes(settings: Settings, dataset: Dataset) -> Sizes:
    """The catalog's, as the run's teacher sees it."""
    return Sizes.of(dataset, settings.graph.features).read_by(settings.teacher)


def _no_blocks(seeds: Seeds, fan_outs: list[int]) -> BlockSizes:
    raise AssertionError("the full engine has no blocks")


def engine_of(settings: Settings, dataset: Dataset, verb: str) -> Choice:
    """The engine of a run: as set, else what a stage was started with here, else what plan chose for these settings, else chosen now.

    Args:
        verb: A stage's own start comes first; plan chooses anew where no stage has started.
    """
    if settings.cluster.engine != "auto":
        return choose_engine(settings, dataset, None)
    for stage in sorted(("train-teacher", "distill"), key=lambda stage: stage != verb):
        record = read_record(settings.dir, stage)
        if record is not None and "engine" in record["made_with"]:  # version 0.1.0 wrote none
            return Choice(record["made_with"]["engine"]["engine"], f"{stage} was started here with it")
    url = join(settings.dir, "plan.json")
    if verb != "plan" and exists(url):
        plan = read_json(url)
        if not differences(plan.get("made_with"), _made_with(settings, dataset)):
            return Choice(plan["engine"], plan["reason"])
    return choose_engine(settings, dataset, available_memory(settings))


def with_engine(settings: Settings, choice: Choice) -> Settings:
    """The settings with the chosen engine in place of `auto`."""
    return replace(settings, cluster=replace(settings.cluster, engine=choice.engine))


def _made_with(settings: Settings, dataset: Dataset) -> dict:
    """What a plan depends on, beside the machine."""
    sections = ("teacher", "student", "distill", "labels", "sampling", "graph", "cluster")
    found: dict[str, Any] = {name: as_dict(getattr(settings, name)) for name in sections}
    for name in ("address", "cache_dir", "start_timeout", "max_failures", "threads"):
        del found["cluster"][name]
    return {"dataset": dataset.digest, **found}


def still_holds(plan: dict, settings: Settings, dataset: Dataset, available: int | None, choice: Choice) -> bool:
    """Whether an earlier plan is of the same settings, engine and memory; measured again, its rates would differ a little."""
    same = plan.get("engine") == choice.engine and plan.get("available_bytes") == available
    return same and not differences(plan.get("made_with"), _made_with(settings, dataset))


def make_plan(settings: Settings, dataset: Dataset, available: int | None, choice: Choice | None = None) -> dict:
    """The plan: engine, memory of every role and host, bytes that a worker sends in a step, and bounds on its time.

    Args:
        available: Bytes of memory of the smallest host that runs workers, None where it is not known yet (an idle autoscaled cluster).
        choice: The engine where it is known already.

    Raises:
        InputError: a role, or what shares a host, needs more than that; the message has the largest number and the setting that changes it.
    """
    choice = choice or choose_engine(settings, dataset, available)
    asked, settings, sizes = settings, with_engine(settings, choice), _sizes(settings, dataset)

    @functools.cache
    def cached(seeds: Seeds, fan_outs: tuple[int, ...]) -> BlockSizes:
        return block_sizes.expected(dataset, seeds, fan_outs)

    def blocks(seeds: Seeds, fan_outs: list[int]) -> BlockSizes:
        return cached(seeds, tuple(fan_outs))

    stages = stages_of(settings, sizes, blocks, lambda seeds, fan_outs: block_sizes.most(dataset, seeds, fan_outs))
    _refuse(stages, available)
    count, labelled = len(sizes.dims), needs.wants_teacher(settings, sizes)
    rates = step_costs.Rates.of(settings.cluster)
    return {
        "engine": choice.engine,
        "reason": choice.reason,
        "made_with": _made_with(asked, dataset),
        "available_bytes": available,
        "roles": {need.role: _describe(need) for stage in stages for need, _ in stage.roles},
        "hosts": {stage.name: {"bytes": stage.total, "processes": {n.role: c for n, c in stage.roles}} for stage in stages},
        "rates": {"memory": rates.memory, "multiply_adds": rates.compute, "network": rates.network},
        "steps": {name: _describe_step(costs, rates) for name, costs in _steps(settings, sizes, blocks, labelled).items()},
        "label_bytes_an_epoch": sizes.edges * needs.label_row(settings, sizes) if labelled else 0,
        "raw_row_ratios": step_costs.raw_row_ratios(settings, dataset) if labelled and count else {},
    }


def _describe(need: Need) -> dict:
    return {
        "bytes": need.total, "at_most_bytes": need.bound, "mapped_bytes": need.mapped, "base_bytes": need.base, "moment": need.moment,
        "parts": need.parts,
    }  # fmt: skip


def _steps(settings: Settings, sizes: Sizes, blocks: Blocks, taught: bool) -> dict[str, step_costs.StepCosts]:
    """Costs of a teacher's and a student's step."""
    found = {}
    if settings.cluster.engine == "sampled":
        fan_outs = settings.sampling.fan_outs_of
        if taught:
            of_step = blocks(needs.teacher_seeds(settings), fan_outs(num_hops(settings.teacher))).times(settings.cluster.micro_batches)
            found["teacher"] = step_costs.sampled_teacher_step(settings, sizes, of_step)
        of_step = blocks(needs.student_seeds(settings, sizes), fan_outs(needs.student_hops(settings)))
        return {**found, "student": step_costs.sampled_student_step(settings, sizes, of_step)}
    if taught:
        found["teacher"] = step_costs.full_teacher_step(settings, sizes)
    return {**found, "student": step_costs.full_student_step(settings, sizes)}


def _describe_step(costs: step_costs.StepCosts, rates: step_costs.Rates) -> dict[str, Any]:
    bounds = rates.bounds(costs)
    return {
        "sent_bytes": costs.sent, "exchanged_bytes": costs.exchanged, "multiply_adds": costs.multiply_adds, "moved_bytes": costs.moved,
        "seconds_at_least": max(bounds.values()), "seconds_by": bounds,
    }  # fmt: skip


def _refuse(stages: list[Stage], available: int | None) -> None:
    if available is None:
        return
    for stage in stages:
        for need, _ in stage.roles:
            if need.parts and need.total > available:
                part, size = max(need.parts.items(), key=lambda p: p[1])
                raise InputError(
                    f"plan: a {need.role} needs {need.total / GIB:.1f} GiB and the smallest host has {available / GIB:.1f} GiB; most of it "
                    f"is {part} ({size / GIB:.1f} GiB). Change {need.setting}, or run on larger hosts"
                )
    for stage in stages:
        if stage.total > available:
            need, count = max((role for role in stage.roles if role[0].parts), key=lambda role: role[0].total * role[1])
            raise InputError(
                f"plan: {stage.name} needs {stage.total / GIB:.1f} GiB on one host, which has {available / GIB:.1f} GiB; most of it is "
                f"{count} x {need.role} ({need.total / GIB:.1f} GiB each). Change {need.setting}, or run on more or larger hosts"
            )


def describe_plan(plan: dict) -> str:
    """The plan as tables for people."""

    def mib(size: float) -> str:
        return f"{size / MIB:>10,.1f}"

    lines = [f"engine: {plan['engine']} ({plan['reason']})"]
    lines.append(f"{'MiB of a process':<28} {'expected':>10} {'at most':>10} {'mapped':>10}   largest part")
    for role, need in plan["roles"].items():
        part, size = max(need["parts"].items(), key=lambda p: p[1], default=("libraries", need["base_bytes"]))
        sizes = " ".join(map(mib, (need["bytes"], need["at_most_bytes"], need["mapped_bytes"])))
        lines.append(f"{role:<28} {sizes}   {part}: {size / MIB:,.1f} ({need['moment']})")
    known = f" of {plan['available_bytes'] / MIB:,.0f}" if plan["available_bytes"] else ""
    lines.append(f"{'MiB on the fullest host':<28}")
    for stage, host in plan["hosts"].items():
        what = " + ".join(f"{count} x {role}" if count > 1 else role for role, count in host["processes"].items())
        lines.append(f"{stage:<28} {mib(host['bytes'])}{known}   {what}")
    rates = plan["rates"]
    lines.append(
        f"a worker's step, at {rates['memory'] / 1e9:.1f} GB/s of memory, {rates['multiply_adds'] / 1e9:.1f} 10^9 multiply-adds/s and "
        f"{rates['network'] / 1e9:.2f} GB/s of network:"
    )
    for name, step in plan["steps"].items():
        sent = ", ".join(f"{what} {size / MIB:.1f}" for what, size in step["sent_bytes"].items()) or "nothing"
        limit = max(step["seconds_by"], key=step["seconds_by"].__getitem__)
        lines.append(f"{name:<28} at least {1e3 * step['seconds_at_least']:.1f} ms ({limit}); sends, MiB: {sent}")
    lines.append(f"{'labels':<28} {mib(plan['label_bytes_an_epoch'])} MiB an epoch")
    for modality, ratio in plan["raw_row_ratios"].items():
        dearer = "; reduced rows cost more than raw rows would" if ratio < 1 else ""
        lines.append(f"{modality}: a raw row has d_m / 2d = {ratio:.2f} times the numbers of a reduced row with its gradient{dearer}")
    return "\n".join(lines)
