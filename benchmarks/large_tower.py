"""Memory of a worker that trains large reduction towers, by DeepSpeed mode: parameters, peak of a step and of a checkpoint.

    python benchmarks/large_tower.py [--hidden 16384 2048] [--rows 2048] [--steps 3] [--workers 2] [--limit-gib 6]

Worker processes in a gloo group hold the project's reduction layers and prompt in its DeepSpeed engine, with the environment of a real
worker; features are read from memory-mapped files, as in the sampled engine, and pulled towards random targets: no graph, no ID tables.
The parent reads RssAnon + RssShmem of every worker from /proc every 5 ms (mapped file pages are apart) and reports the largest worker;
"built" is the peak until the first step, with Adam's state there; the checkpoint is written to a file. Fails where one needs more than
the limit.
"""

import argparse
import itertools
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time

import memory
import numpy as np

DIMS, DIM, NUM_ITEMS = {"visual": 4096, "textual": 1024}, 64, 8192
OFFLOAD = {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}
MODES: dict[str, tuple[str, dict]] = {
    "ZeRO 0": ("float32", {}),
    "ZeRO 3": ("float32", {"zero_stage": 3}),
    "ZeRO 3, offload": ("float32", OFFLOAD),
    "ZeRO 3, offload, bfloat16": ("bfloat16", OFFLOAD),
    "ZeRO 3, offload, bfloat16, activation checkpointing": ("bfloat16", {**OFFLOAD, "checkpoint_activations": True}),
}
SECONDS = 1200


def work(options) -> None:
    """One worker: builds, trains and makes the whole state, saying which it is at."""
    import torch
    from promptmm.core.config import TeacherConfig
    from promptmm.core.features import LazyRows
    from promptmm.core.teacher.reduction import PromptConstants, build_reduction
    from promptmm.distributed.config import ClusterConfig
    from promptmm.distributed.engines.reduction.deepspeed import DeepSpeedReduction
    from promptmm.distributed.loop.checkpoints import Checkpoints
    from promptmm.distributed.worker import Worker

    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(options.threads)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    worker = Worker(rank, world_size, torch.device("cpu"), ("here",) * world_size)
    dtype, cluster = MODES[options.mode]
    config = TeacherConfig(dim=DIM, hidden=options.hidden, dropout=0.0, reduction_dtype=dtype)
    files = {m: np.memmap(f"{options.folder}/{m}", np.float32, "r", shape=(NUM_ITEMS, dim)) for m, dim in DIMS.items()}
    generator = torch.Generator().manual_seed(0)
    targets, tokens = (torch.randn(NUM_ITEMS, DIM, generator=generator) for _ in range(2))
    gram = {m: torch.randn(DIM, dim, generator=generator) for m, dim in DIMS.items()}
    sums = {m: torch.zeros(dim) for m, dim in DIMS.items()}

    def inputs(items):
        def lazy(modality, dim):
            def read(places):
                return torch.from_numpy(files[modality][places.numpy()]), torch.ones(places.numel(), dtype=torch.bool)

            return LazyRows(read, items, torch.zeros(dim), torch.full((dim,), dim**-0.5))

        features = {m: lazy(m, dim) for m, dim in DIMS.items()}
        return PromptConstants(tokens[items], tokens[:8], gram, sums), torch.arange(items.numel()), features, None

    def say(phase: str, **facts) -> None:
        worker.barrier()
        print(json.dumps({"phase": phase, **facts}), flush=True)

    say("build")
    reduction = build_reduction(DIMS, config, 0, ClusterConfig(**cluster).checkpoint_activations)
    engine = DeepSpeedReduction(reduction, 1e-4, config.tower_dtype, ClusterConfig(**cluster), worker, inputs(torch.arange(0)))
    say("train", num_parameters=sum(getattr(p, "ds_numel", p.numel()) for p in reduction.parameters()))
    items = torch.randperm(NUM_ITEMS, generator=generator)[rank::world_size][: options.rows]  # the same in every step, so the loss falls
    losses, seconds = [], []
    for _ in range(options.steps):
        started = time.monotonic()
        out = engine(*inputs(items))
        loss = torch.stack([(out[f"reduced.{m}"] - targets[items]).square().mean() for m in DIMS]).mean()
        engine.backward(loss)
        engine.step()
        losses.append(float(loss))
        seconds.append(time.monotonic() - started)
        del out, loss
    say("rest", losses=losses, seconds=seconds)
    time.sleep(0.5)
    say("checkpoint")
    state = engine.stream_state()  # written as the sampled engine writes it
    if worker.is_first:
        checkpoints = Checkpoints(f"{options.folder}/checkpoints")
        writer = checkpoints.shard_writer(1)
        checkpoints.add_tensors(writer, "dense", state)
        checkpoints.publish(1, {}, writer.files)
    else:
        for _ in state:
            pass
    say("end")
    if worker.is_first:
        checkpoints.clear()


class Watched:
    """A worker process, the phase it is in, and the peak of each phase."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.phase, self.facts, self.peaks, self.errors = "start", {}, {}, ""  # type: ignore[var-annotated]
        self.threads = [threading.Thread(target=reads, daemon=True) for reads in (self._listen, self._listen_to_errors)]
        for thread in self.threads:
            thread.start()

    def _listen(self) -> None:
        for line in self.process.stdout:  # type: ignore[union-attr]
            if line.startswith("{"):
                said = json.loads(line)
                self.phase = said.pop("phase")
                self.facts.update(said)

    def _listen_to_errors(self) -> None:
        for line in self.process.stderr:  # type: ignore[union-attr]
            self.errors = (self.errors + line)[-4000:]

    def look(self) -> bool:
        """Takes a sample; False when the process has ended."""
        phase = self.phase
        self.peaks[phase] = max(self.peaks.get(phase, 0), int(memory.anonymous_and_shared(self.process.pid) * 2**20))
        return self.process.poll() is None


def measure(options, mode: str, folder: str) -> dict:
    """Runs one mode and returns the largest worker's peaks, and what the first one said."""
    from promptmm.distributed.config import ClusterConfig
    from promptmm.distributed.execution.session import worker_environment

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        **worker_environment(ClusterConfig(**MODES[mode][1])),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    environment |= {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": str(options.threads), "WORLD_SIZE": str(options.workers)}
    command = [sys.executable, "-W", "ignore", *sys.argv, "--mode", mode, "--folder", folder]
    workers = [Watched(command, {**environment, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(options.workers)]
    deadline = time.monotonic() + SECONDS
    try:
        while any([worker.look() for worker in workers]):
            if time.monotonic() > deadline:
                raise SystemExit(f"{mode}: no end after {SECONDS} seconds")
            failed = [worker for worker in workers if worker.process.poll()]
            if failed:
                raise SystemExit(f"{mode}: a worker failed:\n{failed[0].errors}")
            time.sleep(0.005)
    finally:
        for worker in workers:
            worker.process.kill()
    for worker in workers:
        worker.threads[0].join(timeout=10)
    return {**workers[0].facts, "peaks": {phase: max(worker.peaks[phase] for worker in workers) for phase in workers[0].peaks}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hidden", type=int, nargs="*", default=[16_384, 2048], help="hidden sizes of both towers")
    parser.add_argument("--rows", type=int, default=2048, help="items a worker reduces in a step")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1, help="of a worker")
    parser.add_argument("--limit-gib", type=float, default=6.0, help="largest memory of a worker")
    parser.add_argument("--modes", nargs="*", default=list(MODES), choices=list(MODES))
    parser.add_argument("--mode", choices=list(MODES), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.mode is not None:
        work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        rng = np.random.default_rng(0)
        for modality, dim in DIMS.items():
            rng.standard_normal((NUM_ITEMS, dim), np.float32).tofile(f"{folder}/{modality}")
        sizes = [[dim, *options.hidden, DIM] for dim in DIMS.values()]
        counts = " and ".join(f"{sum(a * b + b for a, b in itertools.pairwise(s)) / 1e6:.1f}" for s in sizes)
        print(f"towers of {counts} million parameters, {options.workers} workers, {options.rows} rows a worker and step\n")
        print("| | built, GiB | at rest, GiB | peak of a step, GiB | peak of a checkpoint, GiB | s a step | loss, first and last step |")
        print("|---|---:|---:|---:|---:|---:|---:|", flush=True)
        largest = 0.0
        for mode in options.modes:
            found = measure(options, mode, folder)
            peaks = {phase: size / 2**30 for phase, size in found["peaks"].items()}
            largest = max(largest, *peaks.values())
            shown = " | ".join(f"{peaks[phase]:.2f}" for phase in ("build", "rest", "train", "checkpoint"))
            seconds, losses = float(np.median(found["seconds"])), found["losses"]
            print(f"| {mode} | {shown} | {seconds:.1f} | {losses[0]:.4f}, {losses[-1]:.4f} |", flush=True)
    if largest > options.limit_gib:
        raise SystemExit(f"a worker took {largest:.2f} GiB, more than {options.limit_gib} GiB")


if __name__ == "__main__":
    main()
