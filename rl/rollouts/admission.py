"""How many groups are in flight in an asynchronous run?

At most P * (1 + max_staleness): in start order none is then older than `max_staleness` updates when it is trained. As
many only while the learner would wait otherwise. Where sampling is quicker than training, more groups only end earlier
and grow old in the line: with P * (1 + max_staleness) in flight every token has the greatest age that is allowed.

At least P, or where a step looks for groups with a signal, those of all its rounds as far as the bound allows: it takes
them from the groups in flight, and how long the learner waited does not tell that there were too few of them.
"""

WAIT_SHARE = 0.05
"""Share of its time that the learner may wait for groups: above it more are started, below half of it fewer."""
MOST_SHARE = 0.15
"""Of a single step, however long it waited: one group that takes very long does not tell that more would help."""
NEWEST_SHARE = 0.3
"""Weight of a step in the running mean of that share; single steps are noisy where some groups take much longer."""


class Admission:
    """Starts at the most, and follows the learner's waiting from step to step."""

    def __init__(self, num_prompts: int, max_staleness: int, max_sampling_rounds: int = 1) -> None:
        self._num_prompts, self._most = num_prompts, num_prompts * (1 + max_staleness)
        self._fewest = min(self._most, num_prompts * max_sampling_rounds)
        self.num_in_flight = self._most
        """Groups to be in flight when the next step's are collected, these included."""
        self._wait_share: float | None = None

    def follow(self, waited_s: float, step_s: float) -> None:
        """Account for a step of so many seconds, during which the learner waited for groups so long."""
        share = min(MOST_SHARE, waited_s / step_s) if step_s > 0 else 0.0
        before = share if self._wait_share is None else self._wait_share
        self._wait_share = before + NEWEST_SHARE * (share - before)
        if self._wait_share > WAIT_SHARE:
            wanted = self.num_in_flight + max(1, self._num_prompts // 4)
        elif self._wait_share < WAIT_SHARE / 2:
            # fast down to this step's groups and the next one's, so that a large bound costs a few steps of old tokens
            surplus = self.num_in_flight - 2 * self._num_prompts
            wanted = self.num_in_flight - max(1, self._num_prompts // 8, surplus // 4)
        else:
            return
        self.num_in_flight = min(self._most, max(self._fewest, wanted))
