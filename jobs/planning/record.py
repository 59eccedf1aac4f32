"""A plan as plan.json has it."""

from dataclasses import asdict, dataclass, fields

from ...core.storage import JsonObject, exists, join, read_json, write_json


@dataclass(frozen=True)
class RolePlan:
    """Memory of one process, in bytes.

    Attributes:
        bytes: In all, expected.
        at_most_bytes: In all, at most.
        mapped_bytes: Pages of memory-mapped files, apart from these.
        base_bytes: Of its libraries.
        moment: When it needs most.
        parts: What it holds then, by purpose.
    """

    bytes: int
    at_most_bytes: int
    mapped_bytes: int
    base_bytes: int
    moment: str
    parts: dict[str, int]


@dataclass(frozen=True)
class HostPlan:
    """What a stage takes on the fullest host: bytes, and the number of its processes by role."""

    bytes: int
    processes: dict[str, int]


@dataclass(frozen=True)
class RatePlan:
    """What a worker can do in a second: bytes of memory, multiply-adds, bytes over the network."""

    memory: float
    multiply_adds: float
    network: float


@dataclass(frozen=True)
class StepPlan:
    """A step of one worker.

    Attributes:
        sent_bytes: What it sends, by purpose.
        exchanged_bytes: What of that is the row exchange, which training reports.
        multiply_adds: Forward and backward.
        moved_bytes: Bytes of memory that it reads or writes at least.
        seconds_at_least: How long it takes at least.
        seconds_by: The same by what limits it.
    """

    sent_bytes: dict[str, int]
    exchanged_bytes: int
    multiply_adds: int
    moved_bytes: int
    seconds_at_least: float
    seconds_by: dict[str, float]


@dataclass(frozen=True)
class Plan:
    """What a run will need.

    Attributes:
        engine, reason: The engine, and why it is that one.
        made_with: What the plan depends on, beside the machine.
        available_bytes: Memory of the smallest host that runs workers, None where it is not known.
        roles: Every process, by its role.
        hosts: Every stage, by its name.
        rates: Of a worker.
        steps: Of the teacher, where there is one, and of the student.
        labelling: What a labeler has to do: its share of ranking all users, where they are ranked, and of an epoch of labels or of all
            labels by user.
        label_bytes_an_epoch: Labels by example, on disk without compression or on the wire; 0 where labels are kept by user.
        user_label_bytes: Labels by user on disk, for each revision; 0 where labels are made by example.
        rankings_bytes: The teacher's rankings of all users on disk, for each revision; 0 where no candidates are drawn from them.
        raw_row_ratios: d_m / 2d by modality (see `step_costs.raw_row_ratios`).
    """

    engine: str
    reason: str
    made_with: JsonObject
    available_bytes: int | None
    roles: dict[str, RolePlan]
    hosts: dict[str, HostPlan]
    rates: RatePlan
    steps: dict[str, StepPlan]
    labelling: dict[str, StepPlan]
    label_bytes_an_epoch: int
    user_label_bytes: int
    rankings_bytes: int
    raw_row_ratios: dict[str, float]


def read_plan(run_dir: str) -> Plan | None:
    """Reads the run's plan.json; None where there is none, or one of an earlier version, which lacks some of it."""
    url = join(run_dir, "plan.json")
    values = read_json(url) if exists(url) else {}
    if any(field.name not in values for field in fields(Plan)):
        return None
    return Plan(
        **{
            **values,
            "roles": {role: RolePlan(**need) for role, need in values["roles"].items()},
            "hosts": {stage: HostPlan(**host) for stage, host in values["hosts"].items()},
            "rates": RatePlan(**values["rates"]),
            "steps": {name: StepPlan(**step) for name, step in values["steps"].items()},
            "labelling": {name: StepPlan(**step) for name, step in values["labelling"].items()},
        }
    )


def write_plan(run_dir: str, plan: Plan) -> None:
    """Writes the run's plan.json."""
    write_json(join(run_dir, "plan.json"), asdict(plan))
