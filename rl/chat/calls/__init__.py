"""In which styles can a policy write tool calls? One file a family, registered in `CALL_STYLES`."""

from rl.chat.calls.json_calls import BareCalls, HermesCalls
from rl.chat.calls.style import CallStyle
from rl.chat.calls.xml import XmlCalls

CALL_STYLES: dict[str, CallStyle] = {"xml": XmlCalls(), "hermes": HermesCalls(), "bare": BareCalls()}
"""By name. The style of a checkpoint is the one that its template writes calls in."""
