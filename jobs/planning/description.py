"""A plan as tables for people."""

from .record import Plan
from .units import MIB


def describe_plan(plan: Plan) -> str:
    """Describes a plan: memory of every process and host, and a worker's step."""
    return "\n".join(
        [
            f"engine: {plan.engine} ({plan.reason})",
            *_processes(plan),
            *_hosts(plan),
            *_steps(plan),
            f"{'labels':<28} {_mib(plan.user_label_bytes)} MiB a revision"
            if plan.user_label_bytes
            else f"{'labels':<28} {_mib(plan.label_bytes_an_epoch)} MiB an epoch",
            *([f"{'rankings':<28} {_mib(plan.rankings_bytes)} MiB a revision"] if plan.rankings_bytes else []),
            *_labelling(plan),
            *_raw_rows(plan),
        ]
    )


def _mib(size: float) -> str:
    return f"{size / MIB:>10,.1f}"


def _processes(plan: Plan) -> list[str]:
    lines = [f"{'MiB of a process':<28} {'expected':>10} {'at most':>10} {'mapped':>10}   largest part"]
    for role, need in plan.roles.items():
        part, size = max(need.parts.items(), key=lambda entry: entry[1], default=("libraries", need.base_bytes))
        sizes = " ".join(map(_mib, (need.bytes, need.at_most_bytes, need.mapped_bytes)))
        lines.append(f"{role:<28} {sizes}   {part}: {size / MIB:,.1f} ({need.moment})")
    return lines


def _hosts(plan: Plan) -> list[str]:
    known = f" of {plan.available_bytes / MIB:,.0f}" if plan.available_bytes else ""
    lines = [f"{'MiB on the fullest host':<28}"]
    for stage, host in plan.hosts.items():
        processes = " + ".join(f"{count} x {role}" if count > 1 else role for role, count in host.processes.items())
        lines.append(f"{stage:<28} {_mib(host.bytes)}{known}   {processes}")
    return lines


def _steps(plan: Plan) -> list[str]:
    rates = plan.rates
    lines = [
        f"a worker's step, at {rates.memory / 1e9:.1f} GB/s of memory, {rates.multiply_adds / 1e9:.1f} 10^9 multiply-adds/s and "
        f"{rates.network / 1e9:.2f} GB/s of network:"
    ]
    for name, step in plan.steps.items():
        sent = ", ".join(f"{purpose} {size / MIB:.1f}" for purpose, size in step.sent_bytes.items()) or "nothing"
        limit = max(step.seconds_by, key=step.seconds_by.__getitem__)
        lines.append(f"{name:<28} at least {1e3 * step.seconds_at_least:.1f} ms ({limit}); sends, MiB: {sent}")
    return lines


def _labelling(plan: Plan) -> list[str]:
    what = {"rank": "ranking all users", "label": "all labels by user" if plan.user_label_bytes else "labels of an epoch"}
    return [f"{what[name]:<28} at least {step.seconds_at_least / 3600:.3g} hours of every labeler" for name, step in plan.labelling.items()]


def _raw_rows(plan: Plan) -> list[str]:
    lines = []
    for modality, ratio in plan.raw_row_ratios.items():
        dearer = "; reduced rows cost more than raw rows would" if ratio < 1 else ""
        lines.append(f"{modality}: a raw row has d_m / 2d = {ratio:.2f} times the numbers of a reduced row with its gradient{dearer}")
    return lines
