"""Which Ray cluster does a run use, and how are learner and engines placed on it?"""

from typing import Annotated, Literal

from pydantic import Field

from rl.config.section import Positive, Section


class RayConfig(Section):
    """The Ray cluster."""

    address: str = "auto"
    """`auto` joins the cluster in RAY_ADDRESS, otherwise the cluster that runs on this machine, and starts a local one
    if there is none. `local` always starts one. `host:port` or `ray://host:port` joins that cluster."""
    local_cpus: Positive | None = None
    """CPUs of a cluster that is started here; null uses what the learner and the workers reserve."""
    object_store_mib: Annotated[int, Field(ge=80)] | None = None
    """Size of the object store of a cluster that is started here. null uses what the run needs, at least 128: three
    versions of the published weights, an adapter's base, and the samples of a step at full length."""
    placement: Literal["separate", "colocated"] = "separate"
    """`separate` places the learner's ranks close together and spreads the engines. `colocated` places one rank and one
    engine together, on one card if they reserve fractions of a GPU."""
    network_interface: str | None = None
    """Network device over which the learner's ranks exchange data, and send weights to engines with
    `weights.transport: nccl`, such as `eth0`; null uses the one that has the address of the Ray node."""
