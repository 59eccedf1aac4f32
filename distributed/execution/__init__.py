"""Executors: how a job's loops are run, on Ray's workers or in this process. They know jobs, and no model and no rows."""
