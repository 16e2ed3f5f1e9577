"""Workers: other processes, one thread each, that train trials side by side.

The parent writes a line of JSON per trial to a worker's standard input and reads lines of JSON back. One thread per
worker makes the results the same for any number of workers. A worker ends when its parent does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

from locant.compare.settings import Settings
from locant.tasks.task import Refusal

Tell = Callable[[dict[str, Any]], None]


class Pool:
    """`count` workers. `submit` hands over a trial; `wait` returns when one has ended.

    The parent never holds more than the small JSON that is said about a trial: weights and answers stay in files.
    """

    def __init__(self, count: int, settings: Settings, folder: Path, fingerprints: dict[str, str]) -> None:
        start = {
            "settings": settings.flags(),
            "folder": str(folder),
            "fingerprints": fingerprints,
            "sources": settings.digests(),
        }
        self.heard: Queue[tuple[_Worker, dict[str, Any] | None]] = Queue()
        self.workers = [_Worker(start, self.heard) for _ in range(count)]
        self.idle = list(self.workers)

    def submit(self, job: dict[str, Any]) -> None:
        """Hand a trial to an idle worker; there must be one."""
        self.idle.pop().send(job)

    def wait(self, tell: Tell) -> dict[str, Any]:
        """What is said about the next trial that ends; `tell` hears looks at validation until then."""
        while True:
            worker, event = self.heard.get()
            if event is None:
                raise worker.died()
            if "refused" in event:
                raise Refusal(event["refused"])
            if "done" in event:
                self.idle.append(worker)
                return dict(event["done"])
            tell(event)

    def close(self) -> None:
        for worker in self.workers:
            worker.end()


class _Worker:
    def __init__(self, start: dict[str, Any], heard: Queue[Any]) -> None:
        self.errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (lives as long as the worker)
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "locant.compare.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
            env={**os.environ, **threads}, start_new_session=True,
        )  # fmt: skip
        self.listener = Thread(target=self._listen, args=(heard,), daemon=True)
        self.listener.start()
        self.send(start)

    def send(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # its death is heard by the listener
            print(json.dumps(message), file=self.process.stdin, flush=True)

    def end(self) -> None:
        self.process.kill()
        self.listener.join()
        self.process.communicate()  # closes its pipes
        self.errors.close()

    def died(self) -> RuntimeError:
        self.process.wait()
        self.errors.seek(0)
        last = "\n".join(self.errors.read().splitlines()[-20:])
        return RuntimeError(
            f"a worker ended with status {self.process.returncode} (out of memory, or killed?); what was saved is "
            f"whole, and --resume with the folder of the run goes on from it. It last said:\n{last}"
        )

    def _listen(self, heard: Queue[Any]) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            heard.put((self, json.loads(line)))
        heard.put((self, None))


def main() -> None:
    """The worker's side."""
    say = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints must not break the line protocol
    Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()

    def tell(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=say, flush=True)

    try:
        _serve(tell)
    except Refusal as refusal:
        tell({"refused": str(refusal)})


def _end_with(parent: int) -> None:
    """A killed parent can't say goodbye: leave when it is no longer there."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _serve(tell: Tell) -> None:
    import torch

    from locant.compare.opening import open_tasks
    from locant.compare.trial import Job, train
    from locant.compare.world import World

    torch.set_num_threads(1)
    start = json.loads(sys.stdin.readline())
    settings = Settings.of_flags(start["settings"])
    for name, digest in settings.digests().items():
        if digest != start["sources"][name]:
            raise Refusal(f"{name} must stay as it is during a run; it changed. Start again.")
    tasks = open_tasks(settings)
    for kind, task in tasks.items():
        if task.fingerprint != start["fingerprints"][kind]:
            raise Refusal(f"the data of {kind} must stay as they are during a run; they changed. Start again.")
    for line in sys.stdin:
        job = Job(**json.loads(line))
        recipe = settings.recipes[job.kind]
        about = train(job, tasks[job.kind], recipe, Path(start["folder"]), World(device=settings.device), tell)
        tell({"done": about})


if __name__ == "__main__":
    main()
