"""Submit runs to SLURM through submitit: one array per stage, resources and dependency, split at the cluster's limits.

Submission never does a thing twice: under a lock that launchers share, the runs' states are read again, the intent is recorded,
and only then sbatch is called; when that fails or times out, the array is looked up by its name before anything else. Nothing
is pickled: a task finds its run by its index in the array's record.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, FailedSubmissionError
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from hicmae.errors import HicmaeError, UsageError
from hicmae.record import RunRecord
from slurm import arrays, scheduler
from slurm.arrays import Array
from slurm.local import Job
from slurm.profiles import Profile, as_json
from slurm.state import RunState, read_states

ATTEMPTS = 4  # of one sbatch call that the controller did not answer
OUT_OF_MEMORY = "OUT_OF_MEMORY"
_TRANSIENT = ("timed out", "unable to contact", "connection refused", "communication", "temporarily", "try again")


@dataclass(frozen=True)
class Target:
    """Where and how to submit: the profile of each stage, the folder of the code, a name for people, variables, a cap."""

    profiles: Mapping[str, Profile]
    code: Path
    label: str
    environment: Mapping[str, str]
    max_parallel: int | None = None
    profile: str = ""  # by which name the profiles are found again, for another attempt


@dataclass(frozen=True)
class Report:
    """What a submission did: arrays with their job ids, and the runs that were left out, with the reason."""

    arrays: tuple[Array, ...]
    left_out: Mapping[str, str]


class _Refused(HicmaeError):
    """SLURM refused a submission, for a reason that waiting does not mend."""


class _Unanswered(scheduler.SilentSchedulerError):
    """The controller did not answer and has no such job: sbatch may be called again."""


def submit(runs_root: Path, jobs: Sequence[Job], target: Target) -> Report:
    """Submit every job that nobody works on; dependants after what they need.

    Raises HicmaeError when SLURM refuses or does not answer; what was submitted before that stays submitted.
    """
    with arrays.launching(runs_root):
        return _Submission(runs_root, jobs, target).run()


def submit_workers(
    runs_root: Path, name: str, studies: Sequence[str], module: str, arguments: Sequence[str], count: int, target: Target
) -> Array:
    """Submit one array whose `count` tasks all execute `python -m MODULE --array FOLDER`; the record has their arguments.

    With the profile of fine-tuning; `studies` says whose workers they are. To be called under `arrays.launching`. Raises
    HicmaeError when SLURM refuses or does not answer.
    """
    profile = target.profiles["finetune"]
    resources = {**as_json(profile), "workers_of": list(studies), "arguments": list(arguments), "count": count}
    array = arrays.create(runs_root, f"workers-{name}", [], resources)
    array.set_job_id(_sbatch(array, target, profile, "", count, f"{module} --array", count))
    return array


def submit_after(
    runs_root: Path,
    label: str,
    module: str,
    arguments: Sequence[str],
    job_ids: Sequence[str],
    target: Target,
    keeper_of: Sequence[str] = (),
) -> Array:
    """Submit one small task that executes `python -m MODULE --array FOLDER` when the jobs have ended, however that was.

    Its folder, with the arguments, can be read by nobody else; `keeper_of` names the studies whose workers it submits again.
    Raises HicmaeError when SLURM refuses or does not answer.
    """
    alone = replace(target.profiles["finetune"], nodes=1, gpus_per_node=0, tasks_per_node=1, cpus_per_task=1)
    profile = replace(alone, memory_gb=1.0, time_h=0.2)
    resources = {**as_json(profile), "arguments": list(arguments), "count": 1, "keeper_of": list(keeper_of)}
    array = arrays.create(runs_root, label, [], resources)
    dependency = f"afterany:{':'.join(dict.fromkeys(job_ids))}"
    array.set_job_id(_sbatch(array, target, profile, dependency, 1, f"{module} --array", 1))
    return array


class _Submission:
    """One submission: stages in order, so that the ids of what is needed are known."""

    def __init__(self, runs_root: Path, jobs: Sequence[Job], target: Target) -> None:
        self.root, self.target = runs_root, target
        self.jobs = {job.run_id: job for job in jobs}
        needed = [name for job in jobs for name in job.depends_on]
        self.states = read_states(runs_root, dict.fromkeys([*self.jobs, *needed]))
        self.job_ids = {run_id: state.job for run_id, state in self.states.items() if state.is_active and state.job}
        self.left_out: dict[str, str] = {}
        self.done: list[Array] = []

    def run(self) -> Report:
        todo = [job for job in self.jobs.values() if not self.states[job.run_id].is_active and self._state(job.run_id) != "done"]
        first = [job for job in todo if not job.depends_on]
        self._submit_all(first)
        self._submit_all([job for job in todo if job.depends_on and self._can_wait(job)], beside=first)
        return Report(tuple(self.done), self.left_out)

    def _state(self, run_id: str) -> str:
        return self.states[run_id].state

    def _can_wait(self, job: Job) -> bool:
        """Whether everything that a job needs is done or in the scheduler, so that SLURM can wait for it."""
        for name in job.depends_on:
            if self._state(name) != "done" and name not in self.job_ids:
                self.left_out[job.run_id] = f"needs {name}, which is not in the scheduler; launch again when it is done"
        return job.run_id not in self.left_out

    def _submit_all(self, jobs: Sequence[Job], beside: Sequence[Job] = ()) -> None:
        """Submit jobs under what those of `beside`, submitted just before, leave of the cap."""
        plan, earlier = list(self._planned(jobs)), list(self.done)
        for number, (members, profile, memory_gb, dependency) in enumerate(plan):
            cap, in_turn = self._cap(profile), False
            if cap is not None and {self._cap(self.target.profiles[job.stage]) for job in beside} == {cap}:
                cap, in_turn = _beside(cap, len(beside))
            share, after = _lane(number, len(plan), cap)
            ends = [self.done[-after]] if after else earlier if in_turn else []
            chained = [f"afterany:{':'.join(str(array.job_id) for array in ends)}"] if ends else []
            self._submit(members, profile, memory_gb, [*dependency, *chained], share)

    def _cap(self, profile: Profile) -> int | None:
        return self.target.max_parallel or profile.max_parallel

    def _planned(self, jobs: Sequence[Job]) -> Iterator[tuple[list[Job], Profile, float, list[str]]]:
        """Groups of jobs that can be one array, within the cluster's limit: one for each stage, memory and what is awaited.

        What is awaited is part of it because SLURM knows dependencies of whole arrays alone (`aftercorr` pairs tasks by index,
        one with one): in one array with others' a failed pre-training would block all fine-tunings, not its own. That costs few
        calls: main_results, with 363 runs or with 1,083 of three seeds, is 4 arrays; ablation_masking, with the most
        pre-trainings, 10.
        """
        groups: dict[tuple[str, float, tuple[str, ...]], list[Job]] = {}
        for job in jobs:
            waits_for = tuple(sorted(self.job_ids[name] for name in job.depends_on if self._state(name) != "done"))
            memory_gb = self.target.profiles[job.stage].memory_after(_memory_failures(job, self.states[job.run_id]))
            groups.setdefault((job.stage, memory_gb, waits_for), []).append(job)
        for (stage, memory_gb, waits_for), members in groups.items():
            profile = self.target.profiles[stage]
            size = profile.array_size or self.max_array_size
            dependency = [f"afterok:{':'.join(waits_for)}"] if waits_for else []
            for start in range(0, len(members), size):
                yield members[start : start + size], profile, memory_gb, dependency

    @cached_property
    def max_array_size(self) -> int:
        return scheduler.max_array_size()

    def _submit(self, members: list[Job], profile: Profile, memory_gb: float, dependency: list[str], share: int) -> None:
        for job in members:
            _note_end(job, self.states[job.run_id])
        resources = {
            **as_json(profile),
            "memory_gb": memory_gb,
            "dependency": ",".join(dependency),
            "profile": self.target.profile,
        }
        label = f"{self.target.label}-{members[0].stage}"
        array = arrays.create(self.root, label, [job.run_id for job in members], resources)
        try:
            job_id = _sbatch(array, self.target, replace(profile, memory_gb=memory_gb), ",".join(dependency), share)
        except _Refused as refused:
            for job in members:
                RunRecord(job.path).append_event("planned", reason=str(refused))
            raise
        array.set_job_id(job_id)
        self.done.append(array)
        self.job_ids.update({job.run_id: f"{job_id}_{index}" for index, job in enumerate(members)})


def _lane(number: int, count: int, cap: int | None) -> tuple[int, int]:
    """How many tasks of array `number` of `count` may run at once, and how many arrays back the one is that it must wait for.

    The cap holds over all arrays: it is divided among them, and where there are more arrays than that they take turns.
    """
    if cap is None:
        return 1_000_000, 0
    lanes = min(cap, count)
    lane = number % lanes
    return cap // lanes + (lane < cap % lanes), lanes if number >= lanes else 0


def _beside(cap: int, busy: int) -> tuple[int, bool]:
    """What a cap leaves to runs beside `busy` others; where that is less than half of it, they go after these, with all of it."""
    left = cap - min(cap, busy)
    return (left, False) if 2 * left >= cap else (cap, True)


def _memory_failures(job: Job, state: RunState) -> int:
    """Attempts that ran out of memory, the last one, which is not noted yet, included."""
    noted = sum(event.get("cause") == OUT_OF_MEMORY for event in RunRecord(job.path).events())
    return noted + (state.cause == OUT_OF_MEMORY)


def _note_end(job: Job, state: RunState) -> None:
    """Write down how the last job ended: the scheduler forgets it."""
    if state.cause:
        RunRecord(job.path).append_event("ended", cause=state.cause, reason=state.reason, job=state.job)


def _sbatch(
    array: Array, target: Target, profile: Profile, dependency: str, share: int, module: str = "slurm.task", count: int = 0
) -> str:
    """Submit one array and return its id; after an error it is looked up by name before it is submitted again."""
    executor = submitit.SlurmExecutor(folder=array.folder, python=profile.python)
    executor.update_parameters(**_parameters(array, target, profile, dependency, share))
    executor.parameters["map_count"] = count or len(array.run_ids)
    command = f'{executor.python} -u -m {module} "$HICMAE_ARRAY"'
    waiting = wait_exponential(multiplier=2, max=30)
    for attempt in Retrying(
        retry=retry_if_exception_type(_Unanswered), stop=stop_after_attempt(ATTEMPTS), wait=waiting, reraise=True
    ):
        with attempt:
            return _submit_once(executor, command, array.name)
    raise AssertionError("unreachable: the last attempt returns or raises")


def _submit_once(executor: Any, command: str, name: str) -> str:
    try:
        return str(executor._submit_command(command).job_id)  # an array without pickles: submitit's own way to submit a command
    except (FailedJobError, FailedSubmissionError, OSError) as error:
        words = " ".join(str(error).split())
    found = scheduler.find_job(name)  # raises when the scheduler stays silent: then the intent stands, and states say unknown
    if found is not None:
        return found
    if any(sign in words.lower() for sign in _TRANSIENT):
        raise _Unanswered(f"sbatch: {words[-300:]}")
    raise _Refused(f"SLURM refused the array: {words[-300:]}; mend the profile (see slurm/profiles.toml) and launch again")


def _parameters(array: Array, target: Target, profile: Profile, dependency: str, share: int) -> dict[str, Any]:
    environment = [f"export {name}={shlex.quote(value)}" for name, value in {**target.environment, **profile.environment}.items()]
    threads = [] if profile.gpus_per_node else [f"export OMP_NUM_THREADS={profile.cpus_per_task}"]
    places = [f"export HICMAE_ARRAY={shlex.quote(str(array.folder))}", f"cd {shlex.quote(str(target.code))}"]
    wanted = {
        "job_name": array.name,
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "nodes": profile.nodes,
        "gpus_per_node": profile.gpus_per_node or None,
        "ntasks_per_node": profile.tasks,
        "cpus_per_task": profile.cpus_per_task,
        "mem": f"{round(profile.memory_gb * 1024)}M",
        "time": max(1, round(profile.time_h * 60)),
        "signal_delay_s": profile.signal_delay_s,
        "dependency": dependency or None,
        "array_parallelism": share,
        "stderr_to_stdout": True,
        "srun_args": ["--kill-on-bad-exit=1", *profile.srun_args],
        "setup": [*profile.setup, *environment, *threads, *places],
        "additional_parameters": {"kill-on-invalid-dep": "yes", "requeue": True},
    }
    return {name: value for name, value in wanted.items() if value is not None}


def check_here() -> None:
    """Raise UsageError where there is no SLURM to submit to."""
    if submitit.SlurmExecutor.affinity() < 0:
        raise UsageError("--cluster slurm: no SLURM commands here; call this on a login node, or use --cluster local")
