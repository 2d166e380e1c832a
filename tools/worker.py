#!/usr/bin/env python3
"""A worker without dependencies: FATHOM_ENGINE=tools/worker.py fathom sweep run FILE. It minimizes x * x instead of a model's loss."""
import json, math, os, pathlib, signal, sys, time

run, began, stop = pathlib.Path(sys.argv[2]), time.monotonic(), []  # called as: worker.py run FOLDER
signal.signal(signal.SIGTERM, lambda *_: stop.append("asked by a signal"))  # also what a dying supervisor sends
config, path = {}, []
for line in (run / "config.yaml").read_text().splitlines():  # block mappings of scalars: all of YAML that is needed here
    key, colon, value = line.strip().partition(":")
    if colon and not key.startswith("-"):
        path = path[: (len(line) - len(line.lstrip())) // 2] + [key]
        config[".".join(path)] = value.strip()
train = lambda key: float(config["train." + key])
per_step = int(train("sequence_length") * train("micro_batch_size") * train("gradient_accumulation_steps"))
steps, rung = math.ceil(train("total_tokens") / per_step), float(os.environ.get("FATHOM_STOP_AT_TOKENS", "inf"))

log = open(run / "events.jsonl", "a+b")
log.seek(0)
lines = [line for line in log.readlines() if line.endswith(b"\n")]
log.truncate(sum(map(len, lines)))  # a torn last line is of a writer that was killed
def event(kind, durable=False, **fields):
    lines.append({"v": 1, "seq": len(lines), "time": time.time(), "elapsed_seconds": time.monotonic() - began, "kind": kind, **fields})
    log.write(json.dumps(lines[-1]).encode() + b"\n")
    log.flush()
    durable and os.fsync(log.fileno())

saves = config["train.save_checkpoints"] == "true"
commands = {"save": saves, "stop": True, "save-stop": saves, "abort": True}  # start-annealing: there is no schedule
def checkpoint():
    part, whole = (run / "checkpoints" / f"step-{step:08}{end}" for end in (".part", ""))
    if saves and not whole.exists():
        part.mkdir(parents=True, exist_ok=True)
        (part / "state.json").write_text(json.dumps([step, x]))
        part.rename(whole)  # whole or not at all
        event("checkpoint", durable=True, step=step, path=f"checkpoints/{whole.name}", bytes=0)
def obey(file):
    text, command = file.read_bytes(), ""
    file.unlink()
    try:
        command = str(json.loads(text if len(text) <= 4096 else "")["command"])
    except (ValueError, LookupError, TypeError):
        event("warning", message=f"control/{file.name}: expected a command, found none")
    can = commands.get(command, False)
    if can and command != "abort":
        checkpoint()
    stop.extend([f"{command} was asked for"] if can and command != "save" else [])
    event("control", command=command, outcome=f"did {command}" if can else "refused: this run can't", request=file.stem)

checkpoints = sorted(p for p in run.glob("checkpoints/step-*") if not p.suffix)
step, x = json.loads((checkpoints[-1] / "state.json").read_text()) if checkpoints else (0, 1.0 + train("seed"))
event("started", attempt=1 + sum(b'"kind": "started"' in line for line in lines if isinstance(line, bytes)), resumed_from_step=step, pid=os.getpid(), code_version="worker.py", git_commit=None, git_dirty=None, host=os.uname().nodename, device="cpu", device_name="", driver=None, libtorch="", threads=1, seed=int(train("seed")), environment={})
while step < steps and not stop and step * per_step < rung:
    step, x, loss = step + 1, x - train("learning_rate") * 2 * x, x * x
    event("step", step=step, tokens=step * per_step, loss=loss, learning_rate=train("learning_rate"), grad_norm=abs(2 * x), step_seconds=0.001, tokens_per_second=1000.0 * per_step, peak_allocated=0, peak_reserved=0)
    for file in sorted(run.glob("control/*.json")):
        obey(file)
is_aborted = "abort was asked for" in stop
if not is_aborted:
    checkpoint()
event("finished", True, step=step, tokens=step * per_step, seconds=time.monotonic() - began) if step == steps and not is_aborted else event("stopped", True, step=step, reason=(stop + ["at its rung"])[0])
