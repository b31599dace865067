"""Which experts did each token of a request go to? Recorded where vLLM's model runs, and collected request by request.

vLLM returns them itself (`enable_return_routed_experts`), but only from its second model runner, which does not run on
CPUs and takes logits processors of another kind than the thinking budget's (`rl.engine.arguments`). Here its recorder
of one step, `RoutedExpertsCapturer`, serves its first runner: it is bound to every router when the model is loaded,
before graphs are captured, and what it holds is taken after each step.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

ASKED = "polygym_routes"
ARGUMENTS = {
    "additional_config": {ASKED: True},
    "enable_prefix_caching": False,  # tokens that are found in a cache went through no router
}
"""Of vLLM's `EngineArgs`, for engines that record."""
RECORDER = "polygym_recorder"
"""Attribute of a model runner."""


class Part(NamedTuple):
    """What one step recorded of one request."""

    request_id: str
    """vLLM's own."""
    first: int
    """Place of the first token, counted from the beginning of the prompt."""
    routes: np.ndarray
    """[tokens, mixture layers, experts a token]"""


class StepRecorder:
    """Belongs to a model runner that has loaded its model."""

    def __init__(self, runner: "GPUModelRunner") -> None:
        from vllm.distributed import get_tensor_model_parallel_rank
        from vllm.model_executor.layers.fused_moe import routed_experts_capturer as of_vllm
        from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

        config, model = runner.vllm_config, runner.get_model()
        self._is_first = get_tensor_model_parallel_rank() == 0
        """All ranks send tokens to the same experts, and one tells it."""
        self._capturer = of_vllm.RoutedExpertsCapturer(config.scheduler_config.max_num_batched_tokens, config)
        of_vllm.bind_routed_experts_capturer(model, self._capturer)
        # vLLM numbers all layers, and other layers have no experts.
        self._layers = sorted(module.layer_id for module in model.modules() if isinstance(module, MoERunner))
        self._parts: list[Part] = []

    def after_step(self, runner: "GPUModelRunner", scheduled: "SchedulerOutput") -> None:
        """Keep what the step recorded, whose tokens stand request after request."""
        if not self._is_first:
            return
        data = self._capturer.snapshot_routing_data(scheduled.total_num_scheduled_tokens)
        routes = data.cpu().numpy()[:, self._layers]
        batch, start = runner.input_batch, 0
        for request_id, first in zip(batch.req_ids, batch.num_computed_tokens_cpu.tolist(), strict=False):
            end = start + scheduled.num_scheduled_tokens[request_id]
            self._parts.append(Part(request_id, first, routes[start:end]))
            start = end

    def take(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts


def recording(runner_class: type[Any]) -> None:
    """Make runners of this class record if they are asked to (`ARGUMENTS`)."""
    load_model, execute_model = runner_class.load_model, runner_class.execute_model

    def load_and_bind(self: Any, *arguments: Any, **more: Any) -> None:
        load_model(self, *arguments, **more)
        if self.vllm_config.additional_config.get(ASKED):
            setattr(self, RECORDER, StepRecorder(self))

    def execute_and_record(self: Any, scheduler_output: "SchedulerOutput", *arguments: Any, **more: Any) -> Any:
        output = execute_model(self, scheduler_output, *arguments, **more)
        recorder = getattr(self, RECORDER, None)
        if recorder is not None and scheduler_output.total_num_scheduled_tokens:
            recorder.after_step(self, scheduler_output)
        return output

    runner_class.load_model, runner_class.execute_model = load_and_bind, execute_and_record


def take_parts(worker: Any) -> list[Part]:
    """What a worker of vLLM recorded since the last call; runs in its process. The first worker has all."""
    return getattr(worker.model_runner, RECORDER).take()


class Routes:
    """The routes of requests that are being sampled."""

    def __init__(self, take: Callable[[], list[Part]]) -> None:
        """`take` is `take_parts` of the first worker."""
        self._take = take
        self._routes: dict[str, list[np.ndarray]] = defaultdict(list)
        self._num: dict[str, int] = defaultdict(int)

    def collect(self) -> None:
        """After each step. Tokens that are computed again (`rollout.cache_on_update`) keep the routes with which the
        token after them was sampled."""
        for request_id, first, routes in self._take():
            new = routes[self._num[request_id] - first :]
            self._routes[request_id].append(new)
            self._num[request_id] += len(new)

    def pop(self, request_id: str) -> np.ndarray | None:
        """The routes of a request that has ended: of each of its tokens but the last. None if nothing was recorded."""
        self._num.pop(request_id, None)
        parts = self._routes.pop(request_id, None)
        return np.concatenate(parts) if parts else None
