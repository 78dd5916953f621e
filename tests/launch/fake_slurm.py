#!/usr/bin/env python3
"""Slurm's commands over a folder: jobs are written down and wait until a test says otherwise.

Called by the name of the command. In $FAKE_SLURM lie ``jobs.jsonl`` (what was submitted),
``states.jsonl`` (what a test, or scancel, has made of a job), ``calls`` (a line per call) and
``limits.json``. The answers have the form of Slurm 22.05's.
"""

# pathlib would double what a call costs.
# ruff: noqa: PTH110, PTH118, PTH119, PTH123, SIM115
import fcntl
import json
import os
import sys

FOLDER = os.environ["FAKE_SLURM"]


def lines(name):
    path = os.path.join(FOLDER, name)
    if not os.path.exists(path):
        return []
    with open(path) as stream:
        return [json.loads(line) for line in stream]


def append(name, row):
    with open(os.path.join(FOLDER, name), "a") as stream:
        stream.write(json.dumps(row) + "\n")


def indices(text):
    for part in text.partition("%")[0].split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def options(words):
    found, rest = {}, []
    while words:
        word = words.pop(0)
        if rest or not word.startswith("-"):
            rest.append(word)
        elif word in ("-h", "-o"):
            found[word] = words.pop(0) if word == "-o" else ""
        else:
            name, _, value = word.partition("=")
            found[name] = value
    return found, rest


def tasks():
    states = {row["id"]: row["state"] for row in lines("states.jsonl")}
    for job in lines("jobs.jsonl"):
        for index in job["indices"] or [None]:
            name = str(job["id"]) if index is None else f"{job['id']}_{index}"
            default = "PENDING|Dependency" if job["dependency"] else "PENDING|Priority"
            default = "PENDING|JobHeldUser" if job["hold"] else default
            state = states.get(name, states.get(str(job["id"]), default))
            yield name, job, *state.partition("|")[::2]


def fail(*messages):
    for message in messages:
        print(f"{COMMAND}: error: {message}", file=sys.stderr)
    sys.exit(1)


def sbatch(words):
    given, rest = options(words)
    job = {
        "name": given.get("--job-name", ""),
        "comment": given.get("--comment", ""),
        "indices": list(indices(given["--array"])) if "--array" in given else [],
        "dependency": given.get("--dependency", ""),
        "hold": "--hold" in given,
        "options": given,
        "script": rest[0],
        "arguments": rest[1:],
    }
    with open(os.path.join(FOLDER, "lock"), "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        limit = LIMITS.get("submit")
        if limit is not None:
            live = sum(state in ("PENDING", "RUNNING") for _, _, state, _ in tasks())
            if live + max(1, len(job["indices"])) > limit:
                policy = "(job submit limit, user's size and/or time limits)"
                fail(
                    "AssocMaxSubmitJobLimit",
                    f"Batch job submission failed: Job violates accounting/QOS policy {policy}",
                )
        if LIMITS.get("refuse") and LIMITS["refuse"] in open(rest[0]).read():
            fail("Batch job submission failed: Invalid account or account/partition combination")
        lock.seek(0)
        number = int(lock.read() or 100) + 1
        lock.truncate(0)
        lock.write(str(number))
        append("jobs.jsonl", {"id": number, **job})
    print(number)


def squeue(words):
    given, _ = options(words)
    wanted = set(given["--jobs"].split(",")) if "--jobs" in given else None
    form = "|".join(("%i", "%T", "%S", "%r", "%j", "%k"))
    assert given["--format"] == form, given
    rows = [row for row in tasks() if wanted is None or str(row[1]["id"]) in wanted]
    if wanted and len(wanted) == 1 and not rows:
        print("slurm_load_jobs error: Invalid job id specified", file=sys.stderr)
        sys.exit(1)
    for name, job, state, reason in rows:
        if state != "GONE":
            print("|".join((name, state, "N/A", reason or "None", job["name"], job["comment"])))


def sacct(words):
    given, _ = options(words)
    wanted = given["--jobs"].split(",")
    for name, state in json.loads(os.environ.get("FAKE_ACCOUNTING", "{}")).items():
        if name.partition("_")[0] in wanted:
            print(f"{name}|{state}")


def scancel(words):
    for word in words:
        append("states.jsonl", {"id": word, "state": "CANCELLED|None"})


def scontrol(words):
    if words[:2] == ["show", "config"]:
        print(f"MaxArraySize            = {LIMITS.get('array', 1001)}")
        print(f"MaxJobCount             = {LIMITS.get('jobs', 10000)}")
    if words[0] == "release":
        append("states.jsonl", {"id": words[1], "state": "PENDING|Dependency"})


def sinfo(_):
    print("low*\nhigh")


COMMAND = os.path.basename(sys.argv[0])
with open(os.path.join(FOLDER, "limits.json")) as limits:
    LIMITS = json.load(limits)
append("calls", [COMMAND, *sys.argv[1:]])
globals()[COMMAND](sys.argv[1:])
