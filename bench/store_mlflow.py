"""MLflow's SQLite store, timed with the same scalars as bench/store.rs logs: ten a step.

    python bench/store_mlflow.py [FOLDER]      needs mlflow (mlflow-skinny, sqlalchemy, alembic and pandas do)

With FATHOM_BENCH naming the built example (target/release/examples/bench_store) it is run right after, on the same disk, and
the ratio is printed.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

try:
    import mlflow
    from mlflow.entities import Metric
except ImportError:
    sys.exit("store_mlflow.py: expected mlflow, found none\n  help: pip install mlflow")

STEPS = 300


def main():
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp())
    folder.mkdir(parents=True, exist_ok=True)
    mlflow.set_tracking_uri(f"sqlite:///{folder.resolve()}/mlflow.db")
    mlflow.set_experiment("bench")
    client = mlflow.MlflowClient()
    names = [f"scalar_{n}" for n in range(10)]

    with mlflow.start_run() as run:
        mlflow.log_metrics({name: 1.0 for name in names}, step=0)  # the first makes tables and connections
        empty = os.path.getsize(folder / "mlflow.db")
        begun = time.perf_counter()
        for step in range(1, STEPS + 1):
            mlflow.log_metrics({name: 1.0 / (step + n) for n, name in enumerate(names)}, step=step)
        api = STEPS * len(names) / (time.perf_counter() - begun)
        print(f"mlflow {mlflow.__version__}: log_metrics, 10 scalars a step: {api:,.0f} scalars/s")

        # The most that its API takes at once: what nobody does while a run goes on, but the fairest to it.
        now = int(time.time() * 1000)
        batch = [Metric(names[n % 10], 0.5, now, STEPS + 1 + n // 10) for n in range(1000)]
        begun = time.perf_counter()
        client.log_batch(run.info.run_id, metrics=batch)
        batched = len(batch) / (time.perf_counter() - begun)
        print(f"mlflow {mlflow.__version__}: log_batch of 1,000: {batched:,.0f} scalars/s")
    grown = os.path.getsize(folder / "mlflow.db") - empty
    print(f"mlflow {mlflow.__version__}: {grown / (10 * STEPS + 1000):.0f} bytes a scalar, what the file has grown by")

    bench = os.environ.get("FATHOM_BENCH")
    if bench:
        out = subprocess.run([bench, str(folder / "fathom")], check=True, capture_output=True, text=True).stdout
        print(out, end="")
        line = next(line for line in out.splitlines() if line.startswith("durable logging"))
        ours = float(line.split("step")[1].split()[0])
        print(f"durable logging: {ours / api:.0f} times log_metrics, {ours / batched:.1f} times log_batch (at least 80 times)")


if __name__ == "__main__":
    main()
