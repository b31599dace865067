"""How does a run serve a judge for its environments? An OpenAI-compatible endpoint in a Ray actor of its own."""

import contextlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import httpx

from envs.judge_client import MODEL, URL
from rl.cluster.actors import ActorDied, Deadline, start_actor
from rl.cluster.address import ClusterError
from rl.cluster.network import meeting_point
from rl.cluster.own_folder import own_folder
from rl.cluster.reserve import Place
from rl.config.experiment import ExperimentConfig
from rl.config.judge import JudgeConfig
from rl.engine.arguments import GPU_MEMORY_SHARE
from rl.engine.protocol import EngineError
from rl.run_log import join_run_log
from rl.stop import end_with_parent

logger = logging.getLogger(__name__)
NAME = "judge"
"""What environments call the model."""
EXPORTED = "judge_export_"
"""How the folder begins, in that of the run, of the policy of a run that is its judge."""
POLL_S = 0.5
STOP_S = 8.0
"""For the endpoint to end by itself; less than what an actor has to clean up."""
TAIL = 2000
"""Characters of the endpoint's output in an error."""
NOWHERE = "http://127.0.0.1:9/v1"
"""Where nothing answers: the judge's address until it is served."""


class JudgeServer:
    """The Ray actor that keeps the endpoint up: one that ends is started again, at the same address."""

    def __init__(self, run_dir: Path, judge: JudgeConfig, gpus: float, gpu_memory_share: float | None) -> None:
        join_run_log(run_dir, "judge")
        self._address = meeting_point()
        host, _, port = self._address.rpartition(":")
        options = {"--host": host.strip("[]"), "--port": port, "--name": NAME, "--max-tokens": judge.max_tokens}
        options |= {"--max-in-flight": judge.max_in_flight, "--gpus": max(1, int(gpus))}
        if gpus:
            options["--gpu-memory-share"] = gpu_memory_share or GPU_MEMORY_SHARE * min(1.0, gpus)
        if judge.kv_cache_gib is not None:
            options["--kv-cache-gib"] = judge.kv_cache_gib
        told = [part for name, value in options.items() for part in (name, str(value))]
        self._output = tempfile.TemporaryFile()  # noqa: SIM115
        self._is_stopping = False
        # An endpoint would export a run by itself, but one that is killed would leave that behind: each start another.
        self._exported: Path | None = None
        folder, self._export = judge.path, list[str]()
        if judge.path.is_dir() and not (judge.path / "config.json").is_file():
            # Of this process alone: an evaluation of the run may have another at the same time.
            self._exported = own_folder(run_dir, EXPORTED)
            folder = self._exported / "policy"
            self._export = [sys.executable, "-m", "rl", "export", str(judge.path), str(folder)]
        self._command = [sys.executable, "-m", "rl", "serve", str(folder), *told]
        self._process = self._started(self._export or self._command)

    def wait_until_ready(self, timeout_s: float) -> str:
        """The endpoint's URL, once it answers. Raises `EngineError` if it ends before, or does not answer in time."""
        deadline = time.monotonic() + timeout_s
        if self._export:
            with contextlib.suppress(subprocess.TimeoutExpired):
                if self._process.wait(timeout_s) == 0:
                    self._process = self._started(self._command)
        while time.monotonic() < deadline and self._process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                # Not through a proxy: it is this node.
                httpx.get(f"http://{self._address}/health", timeout=5, trust_env=False).raise_for_status()
                threading.Thread(target=self._keep_up, daemon=True).start()
                return f"http://{self._address}/v1"
            time.sleep(POLL_S)
        code, said = self._process.poll(), self._said()
        self.shutdown()
        how = "did not start" if code is not None else f"did not answer within {timeout_s:g} s"
        raise EngineError(f"the judge's endpoint {how} ({' '.join(self._running)}):\n{said}")

    def _said(self) -> str:
        """The end of what the endpoint has written, which goes on from there."""
        end = os.fstat(self._output.fileno()).st_size
        return os.pread(self._output.fileno(), TAIL, max(0, end - TAIL)).decode(errors="replace").strip()

    def _started(self, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        self._running = command
        return subprocess.Popen(command, stdout=self._output, stderr=subprocess.STDOUT, preexec_fn=end_with_parent)

    def _keep_up(self) -> None:
        while True:
            code = self._process.wait()
            if self._is_stopping:
                return
            logger.warning("the judge's endpoint ended with exit code %s and is started again: %s", code, self._said())
            time.sleep(POLL_S)
            if not self._is_stopping:  # else it would outlive this actor's clean end
                self._process = self._started(self._command)

    def shutdown(self) -> None:
        self._is_stopping = True
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_S)
        self._process.kill()
        self._process.wait()
        self._output.close()
        if self._exported is not None:
            shutil.rmtree(self._exported, ignore_errors=True)


def announce(config: ExperimentConfig) -> None:
    """Let environments that ask a judge be opened in this process, before the run's judge is served."""
    if config.judge is not None:
        os.environ |= {URL: NOWHERE, MODEL: NAME}


@contextlib.contextmanager
def served_judge(config: ExperimentConfig, places: Sequence[Place]) -> Iterator[Mapping[str, str]]:
    """Serve the run's judge inside the block; the variables by which environments find it. None without a judge.

    Raises `ClusterError` if it cannot be served.
    """
    if config.judge is None:
        yield {}
        return
    rollout, limit_s = config.rollout, config.train.start_timeout_s
    (place,) = places
    cpus, gpus = rollout.cpus_per_worker, rollout.gpus_per_worker
    server = start_actor(JudgeServer, cpus, gpus, place, config.run_dir, config.judge, gpus, rollout.gpu_memory_share)
    try:
        deadline = Deadline(2 * limit_s, "starting the judge", "train.start_timeout_s")
        try:
            url = server.call(JudgeServer.wait_until_ready, limit_s).wait(deadline)
        except (ActorDied, EngineError) as error:
            raise ClusterError(f"judge.path {config.judge.path}: {error}") from error
        host = url.partition("//")[2].rpartition(":")[0].strip("[]")
        direct = ",".join(filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), host]))
        yield {URL: url, MODEL: NAME, "NO_PROXY": direct, "no_proxy": direct}
    finally:
        server.stop(JudgeServer.shutdown)
