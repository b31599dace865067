"""How does the vLLM engine sample replies? vLLM runs in this process, on CPUs and GPUs, and one thread steps it."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rl.config.experiment import ExperimentConfig
from rl.config.rollout import RolloutConfig
from rl.engine.arguments import ENVIRONMENT, engine_arguments, prefix_caching
from rl.engine.columns import COLUMNS
from rl.engine.core import StepOutput
from rl.engine.protocol import EngineError, SamplingParams
from rl.engine.routes import ARGUMENTS, Part, Routes, take_parts
from rl.engine.thread import ThreadedEngine
from rl.engine.vllm_plugin import register
from rl.engine.weight_loader import VllmClient, WeightLoader
from rl.importing import without_collector
from rl.tokens import ROUTES
from rl.weights.source import WeightSource

if TYPE_CHECKING:
    from vllm import LLMEngine


UNPUBLISHED = -1
"""The version of an engine that must not sample yet."""


class VllmEngine(ThreadedEngine):
    """The engine of `rl.engine.protocol`. It serves the checkpoint at `policy_path` as policy version 0.

    A policy with quantised precision must be published before anything is sampled, also as version 0: only the learner
    knows the quantised values of the checkpoint's weights. Until then the version is `UNPUBLISHED`.

    Made for a process of its own, whose environment variables and random state vLLM changes. On CPUs torch's compiler
    is switched off in that process.
    """

    def __init__(self, policy_path: Path, config: ExperimentConfig, lockstep_steps: int) -> None:
        """For `lockstep_steps` see `rl.engine.clock`. Raises `EngineError` when vLLM cannot serve that."""
        lane_timeout_s = longest_silence_s(config.rollout)
        version = UNPUBLISHED if config.precision.is_quantised else 0
        try:
            super().__init__(
                lambda: VllmCore(policy_path, config),
                lockstep_steps,
                config.rollout.max_in_flight,
                lane_timeout_s,
                version,
                config.rollout.sleep,
            )
        except Exception as error:
            raise EngineError(f"vLLM cannot serve {policy_path}: {type(error).__name__}: {error}") from error


def longest_silence_s(rollout: RolloutConfig) -> float:
    """Maximum seconds without a request from any lane and without the end of any, if everything meets its deadlines.

    Calls that wait for a thread or a process do not count: what they wait for are calls of other lanes, each of which
    ends in a request or in the end of its lane. A call has its deadline twice if it returns something to await.
    """
    return 2 * (rollout.reset_timeout_s + rollout.step_timeout_s)


class VllmCore:
    """vLLM's synchronous engine as a `rl.engine.core.Core`."""

    def __init__(self, policy_path: Path, config: ExperimentConfig) -> None:
        self._config = config
        self._max_tokens = config.policy.max_tokens
        self._columns = {name: COLUMNS[name] for name in config.columns}
        preload = os.environ.get("LD_PRELOAD")
        self._llm = start_vllm(policy_path, config, **(ARGUMENTS if config.learner.routing_replay else {}))
        self._routes = Routes(self._take_parts) if config.learner.routing_replay else None
        self._names: dict[str, str] = {}
        self._weights = ""
        self._loader = WeightLoader(config, VllmClient(self._llm))
        names = set(self._llm.collective_rpc(_shared_memory_name))
        self._left_behind = [name for name in names if name.startswith("vllm_dist_")]
        # vLLM sets it for workers it would start; processes that environments start must not inherit it.
        os.environ.pop("LD_PRELOAD", None) if preload is None else os.environ.update(LD_PRELOAD=preload)
        self._vocab_size = self._llm.model_config.get_vocab_size()

    def check(self, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        if not prompt_ids or len(prompt_ids) + 1 > self._max_tokens:
            raise EngineError(
                f"a prompt of {len(prompt_ids)} tokens and one token of reply do not fit policy.max_tokens"
                f" ({self._max_tokens})"
            )
        if min(prompt_ids) < 0 or max(prompt_ids) >= self._vocab_size:
            raise EngineError(f"the prompt has token ids outside the policy's vocabulary of {self._vocab_size}")
        if params.max_reply_tokens < 1 or params.temperature <= 0:
            raise EngineError(f"a reply needs at least one token and a temperature above 0: {params}")

    def add(self, request_id: str, prompt_ids: Sequence[int], params: SamplingParams) -> None:
        import vllm
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        from rl.engine.budget_processor import as_argument

        self._wake()
        sampling = vllm.SamplingParams(
            max_tokens=min(params.max_reply_tokens, self._max_tokens - len(prompt_ids)),
            temperature=params.temperature,
            top_p=params.top_p,
            seed=params.seed,
            stop_token_ids=list(params.stop_ids),
            ignore_eos=True,  # the checkpoint's own end token stops only if it is among stop_ids
            logprobs=0,  # of the sampled token only
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=as_argument(params.thinking) if params.thinking else None,
        )
        # Cached states are of the same weights; and of one group, so that what is found does not depend on others.
        group_id = params.name.rsplit("/", 3)[0]
        prompt = tokens_input(list(prompt_ids), cache_salt=f"{self._weights}/{group_id}")
        self._names[request_id] = self._llm.add_request(request_id, prompt, sampling)

    def abort(self, request_id: str) -> None:
        self._llm.abort_request([request_id])
        self._context(request_id)

    def step(self) -> list[StepOutput]:
        from vllm import RequestOutput

        sampled = []
        outputs = self._llm.step()
        if self._routes is not None:
            self._routes.collect()
        for output in outputs:
            assert isinstance(output, RequestOutput)
            (reply,) = output.outputs
            columns = {name: column.read(reply) for name, column in self._columns.items()}
            context = self._context(output.request_id) if reply.finish_reason else {}
            sampled.append(StepOutput(output.request_id, list(reply.token_ids), columns, reply.finish_reason, context))
        return sampled

    def _context(self, request_id: str) -> dict[str, np.ndarray]:
        """The columns of all tokens of a request that has ended; they are forgotten here."""
        name = self._names.pop(request_id, None)
        found = self._routes.pop(name) if self._routes is not None and name is not None else None
        return {} if found is None else {ROUTES: found}

    def _take_parts(self) -> list[Part]:
        return self._llm.collective_rpc(take_parts)[0]

    def load(self, source: WeightSource) -> str:
        self._wake()
        digest = self._loader.load(source)
        self._weights = f"{source.epoch}.{source.version}"  # a learner that was started again counts versions again
        if self._config.rollout.cache_on_update == "recompute":
            self._llm.reset_prefix_cache(reset_running_requests=True)
        return digest

    def rest(self) -> None:
        """Weights go to the CPU's memory, caches are dropped (vLLM's sleep mode, level 1)."""
        self._llm.sleep(level=1)

    def _wake(self) -> None:
        if self._llm.is_sleeping():
            self._llm.wake_up()

    def shutdown(self) -> None:
        self._llm.engine_core.shutdown()
        for name in self._left_behind:
            for file in Path("/dev/shm").glob(f"*{name}-*"):
                file.unlink(missing_ok=True)


def _set_environment() -> None:
    """Must come before vLLM is imported."""
    os.environ |= {**ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    # With more threads than one, small policies run several times slower.
    defaults = {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


def start_vllm(policy_path: Path, config: ExperimentConfig, **others: Any) -> "LLMEngine":
    """vLLM with the arguments of the experiment, or `others` in their place. Prefixes are cached if the policy's layers
    allow it, unless `others` say.
    """
    _set_environment()
    with without_collector():
        from vllm import EngineArgs, LLMEngine
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.platforms import current_platform

    register()  # also if VLLM_PLUGINS excludes our entry point
    is_cpu = current_platform.is_cpu()
    if is_cpu:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        # vLLM compiles one helper of its sampler even in eager mode: 15 s and a C++ compiler for nothing.
        torch.compiler.set_stance("force_eager")
    arguments = EngineArgs(
        model=str(policy_path),
        weight_transfer_config=WeightTransferConfig(backend=config.weights.backend),
        **{name: value for column in config.columns for name, value in COLUMNS[column].engine_arguments.items()},
        **engine_arguments(config, is_cpu) | others,
    )
    if "enable_prefix_caching" not in others and arguments.create_model_config().attn_type == "decoder":
        for name, value in prefix_caching(is_cpu).items():
            setattr(arguments, name, value)
    return LLMEngine.from_engine_args(arguments)


def _shared_memory_name(worker: object) -> str:
    """Part of the names of files over which the processes of one engine exchange data on CPUs; vLLM never removes them.
    Runs in each of these processes.
    """
    return os.environ.get("VLLM_DIST_IDENT", "")
