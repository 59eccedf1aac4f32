"""What is for large reduction towers: offloading, bfloat16, micro-batches and recomputed activations, at every ZeRO stage.

This file is also the program of a worker: plain gloo processes train the reduction layers alone.
"""

import os
import socket
import subprocess
import sys

import pytest
import torch

ITEMS, DIMS, STEPS = 26, {"visual": 20, "textual": 12}, 3
SHARDED = {f"zero {stage}": {"zero_stage": stage} for stage in (0, 1, 2, 3)}
OFFLOADED = {f"zero {stage}, offload": {"zero_stage": stage, "offload_optimizer": True} for stage in (1, 2, 3)}
OFFLOADED["zero 3, offload all"] = {"zero_stage": 3, "offload_optimizer": True, "offload_parameters": True}
OFFLOADED["zero 3, offload parameters"] = {"zero_stage": 3, "offload_parameters": True}
WHOLE = {**SHARDED, **OFFLOADED}
RECOMPUTED = {f"{name}, recompute": {**mode, "checkpoint_activations": True} for name, mode in WHOLE.items()}
ONCE = {**WHOLE, **RECOMPUTED}
CUT = {f"{name}, micro-batches": {**mode, "engine": "sampled", "micro_batches": 3} for name, mode in ONCE.items()}
FLOAT32 = {**ONCE, **CUT}
MODES = {**FLOAT32, **{f"{name}, bfloat16": mode for name, mode in FLOAT32.items() if mode["zero_stage"]}}
FEW = [
    "zero 0",
    "zero 0, recompute",
    "zero 1, offload",
    "zero 2, micro-batches",
    "zero 3, offload all",
    "zero 3, offload all, recompute",
    "zero 3, offload, micro-batches",
    "zero 1, bfloat16",
    "zero 2, offload, bfloat16",
    "zero 3, offload all, recompute, micro-batches, bfloat16",
]
SECONDS = 300


class Towers:
    """An engine with reduction layers and prompt, trained towards fixed targets on this worker's share of each batch."""

    def __init__(self, name, worker):
        from promptmm.core.config import TeacherConfig
        from promptmm.core.teacher.reduction import PromptConstants, build_reduction
        from promptmm.distributed.config import ClusterConfig
        from promptmm.distributed.engines.reduction.deepspeed import DeepSpeedReduction

        generator = torch.Generator().manual_seed(1)

        def draw(*shape):
            return torch.randn(*shape, generator=generator)

        self.features = {m: draw(ITEMS, dim) / dim**0.5 for m, dim in DIMS.items()}
        self.targets, tokens = draw(ITEMS, 8), draw(ITEMS, 8)
        gram = {m: tokens.T @ x for m, x in self.features.items()}
        self.constants = PromptConstants(tokens, draw(5, 8), gram, {m: x.sum(0) for m, x in self.features.items()})
        self.config = TeacherConfig(dim=8, hidden=[24, 16], dropout=0.0, reduction_dtype="bfloat16" if "bfloat16" in name else "float32")
        self.cluster, self.worker = ClusterConfig(**MODES[name]), worker
        reduction = build_reduction(DIMS, self.config, 0, self.cluster.checkpoint_activations)
        example = self.inputs(torch.arange(0))
        self.engine = DeepSpeedReduction(reduction, 0.01, self.config.tower_dtype, self.cluster, worker, example)

    def inputs(self, rows):
        return self.constants, rows, {m: x[rows] for m, x in self.features.items()}, None

    def step(self, number):
        """The global loss of one batch of 14 items, in as many micro-batches as are set."""
        from promptmm.core.sampling import share_of_part

        total, parts = 0.0, self.cluster.micro_batches
        batch = torch.randperm(ITEMS, generator=torch.Generator().manual_seed(number))[:14]
        for part in range(parts):
            rows = batch[share_of_part(14, part, parts, self.worker.rank, self.worker.world_size)]
            out = self.engine(*self.inputs(rows))
            assert {value.dtype for value in out.values()} == {torch.float32}
            errors = [(out[f"reduced.{m}"] - self.targets[rows]).square().sum() for m in DIMS]
            loss = (errors[0] + errors[1] + out["user"].square().sum() / parts / self.worker.world_size) / 14
            self.engine.backward(loss * self.worker.world_size, part + 1 == parts)
            total += loss.detach()
        self.engine.step()
        loss = [total.double()[None]]
        self.worker.sum_(loss)
        return float(loss[0])

    def train(self, first):
        losses = [self.step(first + number) for number in range(STEPS)]
        return {**dict(self.engine.stream_state()), "losses": torch.tensor(losses)}

    def check_weights(self):
        """The whole float32 weights are the model: a plain module with them gives what the engine gives, but for what the dtype rounds."""
        from promptmm.core.teacher.reduction import FeatureReduction

        plain = FeatureReduction(DIMS, self.config)
        plain.load_state_dict(self.engine.weights())
        with torch.no_grad():
            ours, expected = self.engine(*self.inputs(torch.arange(ITEMS))), plain(*self.inputs(torch.arange(ITEMS)))
        for name, value in expected.items():
            error = float((ours[name] - value).abs().max() / value.abs().max())
            assert error < (2e-6 if self.config.tower_dtype == torch.float32 else 2e-2), (name, error)


def work(folder, rank, world_size, resume_from, *names):
    """For every mode some steps, a state and further steps; and, from the state of `resume_from` workers, the further steps again."""
    from promptmm.distributed.worker import Worker
    from safetensors.torch import load_file, save_file

    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    worker = Worker(rank, world_size, torch.device("cpu"), ("here",) * world_size)
    for name in names:
        towers = Towers(name, worker)
        found = {"first": towers.train(0), "then": towers.train(STEPS)}
        towers.check_weights()
        if resume_from:
            towers.engine.load_state(load_file(f"{folder}/{resume_from} first {name}.safetensors"))
            found["resumed"] = towers.train(STEPS)
        if worker.is_first:
            for part, state in found.items():
                save_file(state, f"{folder}/{world_size} {part} {name}.safetensors")
        worker.barrier()


def run(folder, names, world_size, resume_from):
    """Worker processes of this file; fails with what they say."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    environment |= {"DS_ACCELERATOR": "cpu", "WORLD_SIZE": str(world_size)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, folder, str(rank), str(world_size), str(resume_from), *names],
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world_size)
    ]  # fmt: skip
    try:
        for process in processes:
            said, _ = process.communicate(timeout=SECONDS)
            assert process.returncode == 0, said[-4000:]
    finally:
        for process in processes:
            process.kill()


def check_modes(folder, names):
    from safetensors.torch import load_file

    run(folder, names, 1, 0)
    run(folder, names, 2, 1)
    run(folder, names, 1, 2)  # its first steps are the same once more

    def found(world_size, part, name):
        return load_file(f"{folder}/{world_size} {part} {name}.safetensors")

    plain = {part: found(1, part, "zero 0") for part in ("first", "then")}
    assert plain["then"]["losses"][-1] != plain["first"]["losses"][-1]
    for name in names:
        rounded = "bfloat16" in name
        for world_size in (1, 2):
            for part in ("first", "then"):
                state = found(world_size, part, name)
                assert {value.dtype for value in state.values()} == {torch.float32}
                assert set(state) == set(plain[part])
                assert int(state["step"]) == (STEPS if part == "first" else 2 * STEPS)
                torch.testing.assert_close(state["losses"], plain[part]["losses"], rtol=2e-3 if rounded else 1e-6, atol=0, msg=name)
                if rounded:  # Adam's first steps are as long for a small gradient as for a large one, whatever rounding makes of its sign
                    assert far(state, plain[part]) < 2 * 0.01 * int(state["step"])
                else:
                    assert far(state, plain[part]) < 1e-6, (name, world_size, part)
            resumed, went_on = found(world_size, "resumed", name), found(3 - world_size, "then", name)
            assert int(resumed["step"]) == 2 * STEPS
            torch.testing.assert_close(resumed["losses"], went_on["losses"], rtol=1e-3 if rounded else 1e-6, atol=0, msg=name)
            assert far(resumed, went_on) < (2 * 0.01 * STEPS if rounded else 1e-6), (name, world_size)
            if ", recompute" in name and name.replace(", recompute", "") in names:  # the same bits
                same = found(world_size, "then", name.replace(", recompute", ""))
                assert all(torch.equal(value, same[key]) for key, value in found(world_size, "then", name).items())


def far(state, other):
    """The largest difference of a weight; weights are of order 1."""
    return max(float((value - other[name]).abs().max()) for name, value in state.items() if name.startswith("weight."))


def test_modes_train_the_same_towers_and_resume_with_other_numbers_of_workers(tmp_path):
    """Offloading, micro-batches and recomputed activations: weights to 1e-6, losses to 1e-6. bfloat16: losses to 2e-3."""
    check_modes(str(tmp_path), FEW)


@pytest.mark.slow
def test_every_combination_of_modes(tmp_path):
    check_modes(str(tmp_path), list(MODES))


if __name__ == "__main__":
    work(sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:])
