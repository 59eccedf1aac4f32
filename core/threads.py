"""Says how long the threads of torch's operations spin while they wait for the next operation.

A training step is many short operations. To put a thread to sleep between them costs nearly half of the speed where a process has its cores
to itself; to let it spin as long as libgomp does by default makes it several times slower where it has not (benchmarks/README.md).
"""

SPINS = {"GOMP_SPINCOUNT": "3000"}  # environment that libgomp reads when torch is imported
SLEEP = {"OMP_WAIT_POLICY": "passive"}  # for processes that always share their cores
