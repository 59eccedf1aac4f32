"""Adds finished teachers up to one (stage 1, `teacher.kind=ensemble`): reads vectors, chooses weights, writes the sum (docs/method.md 7.2).

A component that the run trains is a teacher artifact of its own below `components/<name>/` in the run's folder, with its training beside
it, so that an interrupted run goes on with the component that was in work.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...core.artifact import has_artifact, read_manifest
from ...core.config import TeacherConfig, as_dict
from ...core.ensemble import ChoiceSize, Mixture, Weights, choose_weights, contributions, sample_users
from ...core.errors import InputError
from ...core.graph import Csr
from ...core.histories import HistoryScores, deviations, history_rows
from ...core.redaction import redacted_tree
from ...core.sides import ITEMS, USERS
from ...core.standard_scores import moments_of, score_deviation
from ...core.storage import JsonObject, join
from ...core.students.warm_start import warm_start_maps
from ...core.teacher.ensemble import alike, artifact_of, component_configs, component_seed, given_weights, outside, temperature_sources
from ...graph_store.dataset import Dataset
from ...graph_store.external import scratch
from ..artifacts.output import HistoryPart, Output, Rows
from ..artifacts.teacher import FinalScores, RowShards, final_scores, modal_rows, revision_digest, revision_url, write_teacher
from ..loop.selection import START, Selection
from ..messages import TeacherJob
from ..worker import Worker

CHUNK_ROWS = 1 << 14
Show = Callable[[str], None]


def component_jobs(job: TeacherJob) -> dict[str, TeacherJob]:
    """Returns the jobs of the components that the run trains, by name; each has a folder of its own in the run's."""
    configs, left_out = component_configs(job.config), outside(job.config)
    return {
        name: replace(
            job,
            config=config,
            seed=component_seed(job.config, name, job.seed),
            run_url=join(job.run_url, "components", name),
            lineage={of: checksum for of, checksum in job.lineage.items() if of in ("dataset", *config.vectors.urls)},
            ends_early=name in left_out,
        )
        for name, config in configs.items()
    }


def with_temperature(job: TeacherJob, name: str, jobs: Mapping[str, TeacherJob]) -> TeacherJob:
    """Returns the job of a component; one whose temperature is null gets that of the best finished component of `temperature_sources`.

    Without a validation split it gets that of the first.

    Args:
        job: The ensemble's job.
        name: The component.
        jobs: The jobs of the components up to it.
    """
    sources = temperature_sources(job.config, name, {each: known.config for each, known in jobs.items()})
    values = {each: read_manifest(jobs[each].teacher_url, "teacher")["best_value"] for each in sources}
    if not values:
        return jobs[name]
    best = max(sources, key=lambda each: values[each] or 0.0)
    return replace(jobs[name], config=replace(jobs[name].config, temperature=jobs[best].config.temperature))


def is_finished(job: TeacherJob) -> bool:
    """Whether a component has been trained already, with the same settings, seed and dataset."""
    if not has_artifact(job.teacher_url) or not has_artifact(revision_url(job.teacher_url, 0)):
        return False
    manifest = read_manifest(job.teacher_url, "teacher")
    return [manifest["config"], manifest["seed"], manifest["lineage"]] == redacted_tree([as_dict(job.config), job.seed, job.lineage])


def check_of_dataset(url: str, manifest: JsonObject, dataset: Dataset) -> None:
    """Raises InputError where a teacher, whose manifest this is, was trained on another dataset."""
    if manifest["lineage"].get("dataset") != dataset.digest:
        raise InputError(f"{url}: this teacher was trained on another dataset than the run's; name one of the same dataset/")


@dataclass(frozen=True)
class _Component:
    """Holds a finished component.

    Attributes:
        manifest: The manifest of its artifact.
        digest: Checksum of its vectors.
        final: Final vectors of users and items, and scores from histories.
        modal: Vectors by modality, of users and items.
        mean: Mean of the final item vectors, float64 [d], which is taken from them: it adds the same to all scores of a user.
        covariance: Their covariance, float64 [d, d].
        known: Standard deviations of users' scores that are computed from whole rows, kept for the next time, float64 [num_users]; NaN
            where they have not been asked for.
    """

    manifest: JsonObject
    digest: str
    final: FinalScores
    modal: dict[str, list[RowShards]]
    mean: Tensor
    covariance: Tensor
    known: Tensor

    @staticmethod
    def read(url: str, dataset: Dataset, train: Callable[[], Csr], cache_dir: str | None) -> "_Component":
        """Verifies and opens a component.

        Raises:
            InputError: it is missing or damaged, or of another dataset.
        """
        manifest = read_manifest(url, "teacher")
        check_of_dataset(url, manifest, dataset)
        final = final_scores(url, 0, train, cache_dir)
        items = final.rows[ITEMS]
        moments = moments_of((items[ids] for ids in _chunks(dataset.num_items)), items.dim)
        known = torch.full((dataset.num_users if final.histories else 0,), torch.nan, dtype=torch.float64)
        return _Component(manifest, revision_digest(url, 0), final, modal_rows(url, 0, cache_dir), *moments, known)

    def users(self, ids: Tensor) -> Tensor:
        """Returns users' vectors whose scores have the standard deviation 1 over all items, float32 [n, d]; 0 where all are equal."""
        rows = self.final.rows[USERS][ids]
        return self._factors(ids, rows)[:, None] * rows if rows.shape[1] else rows

    def items(self, ids: Tensor) -> Tensor:
        """Returns items' vectors without their mean, float32 [n, d]."""
        return (self.final.rows[ITEMS][ids].double() - self.mean).float()

    def histories(self, ids: Tensor) -> list[HistoryScores]:
        """Returns users' scores from histories in the same units as `users`."""
        if not self.final.histories:
            return []
        factors = self._factors(ids, self.final.rows[USERS][ids])
        own = [part.select(ids) for part in self.final.histories]
        return [replace(part, weights=factors * part.weights) for part in own]

    def scorer(self, users: Tensor, num_items: int) -> Callable[[Tensor], Tensor]:
        """Returns the function from rows of `users`, int64 [m], to these users' scores of all items in these units, float32 [m, num_items].

        The items' vectors are mapped from a scratch file, whose pages count as cache.
        """
        items = torch.from_numpy(scratch(np.float32, self.final.rows[ITEMS].dim, num_items))
        for some in _chunks(num_items):
            items[:, some] = self.items(some).T
        parts = self.histories(users)

        def scores(rows: Tensor) -> Tensor:
            found, of_histories = self.users(users[rows]) @ items, history_rows(parts, rows)
            return found if of_histories is None else found.add_(of_histories)

        return scores

    def _factors(self, ids: Tensor, rows: Tensor) -> Tensor:
        """Returns 1 / the standard deviation over all items of users' scores, float32 [n]; 0 where all are equal."""
        if self.final.histories:
            new = self.known[ids].isnan().nonzero().squeeze(1)
            if new.numel():
                parts = [part.select(ids[new]) for part in self.final.histories]
                self.known[ids[new]] = deviations(rows[new], self.final.rows[ITEMS][torch.arange(parts[0].num_items)], parts)
            deviation = self.known[ids]
        else:
            deviation = score_deviation(rows, self.covariance)
        return torch.where(deviation > 0, 1 / deviation, 0.0).float()


@dataclass(frozen=True)
class _Sum:
    """Holds the weighted sum's vectors of one side as rows that are computed when they are asked for; a `Rows`.

    Attributes:
        parts: Functions from dataset indices to the components' vectors, each with its factor.
        map: Matrix that the joined vectors are multiplied by, float64 [Σ d, dim]; None where they stay as they are.
        dim: Columns.
    """

    parts: Sequence[tuple[Callable[[Tensor], Tensor], float]]
    map: Tensor | None
    dim: int

    def pull(self, ids: Tensor) -> Tensor:
        """See `Rows`."""
        joined = torch.cat([factor * rows(ids) for rows, factor in self.parts], 1)
        return joined if self.map is None else (joined.double() @ self.map).float()


@dataclass(frozen=True)
class _Weights:
    """Holds the weights of one of a component's scores from histories, times the component's own; a `Rows` of one column."""

    component: _Component
    number: int
    weight: float
    dim: int = 1

    def pull(self, ids: Tensor) -> Tensor:
        """See `Rows`."""
        return self.weight * self.component.histories(ids)[self.number].weights[:, None]


@dataclass(frozen=True)
class _Stored:
    """Reads rows of an artifact; a `Rows`."""

    rows: RowShards

    @property
    def dim(self) -> int:
        return self.rows.dim

    def pull(self, ids: Tensor) -> Tensor:
        """See `Rows`."""
        return self.rows[ids]


def _chunks(count: int) -> Iterator[Tensor]:
    return iter(torch.arange(count).split(CHUNK_ROWS))


def add_up(job: TeacherJob, worker: Worker, dataset: Dataset, show: Show) -> None:
    """Chooses the components' weights on validation and writes the ensemble's artifact; a collective call.

    Weights that the settings give are taken, and without them and without a validation split all components have the same. Components that
    are `outside` the sum are not read. Rank 0 chooses, and every worker writes its share of the vectors.

    Args:
        job: The ensemble's job; the components that the run trains are finished.
        worker: This worker.
        dataset: The run's dataset.
        show: Shows a line to the person who started the run.

    Raises:
        InputError: a component that is taken as an artifact is missing, damaged, or of another dataset.
    """
    trained = {name: each.teacher_url for name, each in component_jobs(job).items()}
    left_out = outside(job.config)
    urls = {name: trained.get(name) or artifact_of(own) for name, own in job.config.components.items() if name not in left_out}
    train = functools.cache(lambda: dataset.csr("train"))
    components = {name: _Component.read(str(url), dataset, train, job.cluster.cache_dir) for name, url in urls.items()}
    metric = job.evaluation.select_by if dataset.has_split("validation") else None
    given = given_weights(job.config)
    chosen = worker.share(_choose(components, dataset, job, given) if worker.is_first and metric else None)
    weights = chosen[0] if chosen is not None else Weights(given or {name: 1 / len(components) for name in components}, 0.0, 0)
    selection = Selection(metric, job.train.patience)
    selection.observe(START, None if metric is None else {metric: weights.value})
    rows = _summed(components, weights, dataset, job.config)
    modal = next((each for each in components.values() if each.modal), None)
    vectors: dict[str, tuple[Rows, Rows]] = {"final": rows}
    for modality, sides in (modal.modal if modal is not None else {}).items():
        vectors[f"modal.{modality}"] = _Stored(sides[USERS]), _Stored(sides[ITEMS])
    dims = {name: dim for name, dim in modal.manifest["modalities"]} if modal is not None else {}
    used = {name: each for name, each in components.items() if weights.by_name[name]}
    of_components = chosen[1] if chosen is not None else {name: {"weight": weights.by_name[name]} for name in components}
    values = {name: read_manifest(trained[name], "teacher")["best_value"] for name in left_out}
    facts: JsonObject = {
        "components": of_components | {name: {"weight": 0.0, "alone": value} for name, value in values.items()},
        "component_order": list(job.config.components),  # a manifest's keys are sorted, and a temperature may be that of one before it
        "component_digests": {name: each.digest for name, each in components.items()},
        "trials": weights.trials,
    }
    histories = tuple(
        HistoryPart(_Weights(each, number, weights.by_name[name]), part.similarities)
        for name, each in used.items()
        for number, part in enumerate(each.final.histories)
    )
    parameters = sum(each.manifest["num_parameters"] for each in used.values())
    output = Output(worker, dataset.num_users, dataset.num_items, {}, None, vectors, {}, dims, histories)
    write_teacher(job, output, selection, {}, parameters, facts)
    if worker.is_first:
        show(f"[teacher] ensemble: {_in_words(facts['components'], metric, weights, given is not None)}")


def _choose(
    components: dict[str, _Component], dataset: Dataset, job: TeacherJob, given: dict[str, float] | None
) -> tuple[Weights, JsonObject]:
    """Chooses the weights, or measures those that are given; returns them and what each component brings."""
    held_out = dataset.csr("validation")
    metric = job.evaluation.select_by
    size = ChoiceSize.of(int(held_out.degrees.count_nonzero()), dataset.num_items, len(components), metric)
    users = sample_users(held_out, size.users)
    scorers = {name: each.scorer(users, dataset.num_items) for name, each in components.items()}
    exclude = dataset.csr_of("train", users)
    mixture = Mixture.gather(scorers, held_out.select(users), exclude, metric, size.depth)
    weights = (
        choose_weights(mixture, alike(job.config))
        if given is None
        else Weights(given, float(mixture.values(mixture.lists(given)).mean()), 1)
    )
    return weights, contributions(mixture, weights.by_name, exclude.degrees, dataset.degrees("train", ITEMS))


def _summed(components: dict[str, _Component], weights: Weights, dataset: Dataset, config: TeacherConfig) -> tuple[_Sum, _Sum]:
    """Returns the vectors of users and items whose dot products are the weighted sum, or come closest to it with fewer columns."""
    used = [(each, weights.by_name[name]) for name, each in components.items() if weights.by_name[name]]
    users = _Sum([(each.users, weight) for each, weight in used], None, sum(each.mean.numel() for each, _ in used))
    items = _Sum([(each.items, 1.0) for each, _ in used], None, users.dim)
    if users.dim <= config.ensemble_rank:
        return users, items
    sides = ((users.pull(ids) for ids in _chunks(dataset.num_users)), (items.pull(ids) for ids in _chunks(dataset.num_items)))
    maps = warm_start_maps(sides, config.ensemble_rank)
    first, second = (replace(side, map=each, dim=config.ensemble_rank) for side, each in zip((users, items), maps))
    return first, second


def _in_words(components: JsonObject, metric: str | None, weights: Weights, are_given: bool) -> str:
    """Returns the weights and what each component does, in words."""
    if metric is None and are_given:
        return f"the given weights {', '.join(f'{name} {weight:.2f}' for name, weight in weights.by_name.items())}"
    if metric is None:
        return f"no validation split, so the scores of {', '.join(components)} have the same weight"
    parts = [f"{name} {facts['weight']:.2f} (alone {facts['alone']:.4f})" for name, facts in components.items()]
    return f"validation {metric} {weights.value:.4f} with the weights {', '.join(parts)}"
