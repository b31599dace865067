"""An actor that tells its place; in a module of its own, so that its processes import little."""

import ray


class Card:
    def numbers(self) -> tuple[str, list[str]]:
        """The node and its cards that this actor may use."""
        return ray.get_runtime_context().get_node_id(), [str(card) for card in ray.get_gpu_ids()]
