"""Everything Paceline refuses, as a tree.

PacelineError            exit code 2; its message is one sentence that names the mend
|-- ConfigError          a config.json (or an option) holds something unknown or impossible
|-- CheckpointError      a file, tensor or pairing of checkpoints is not what it must be
|-- PromptError          a prompt or a prompt file cannot be used
|-- UsageError           a flag or argument is out of range
`-- RollbackError        the cache was asked to take back more than it keeps room for
"""


class PacelineError(Exception):
    """Base of all errors that are the input's fault: shown as one sentence, without a traceback."""

    exit_code = 2


class ConfigError(PacelineError):
    """A configuration holds an unknown, missing or unsupported value."""


class CheckpointError(PacelineError):
    """A checkpoint is incomplete, damaged, or does not belong to its partner."""


class PromptError(PacelineError):
    """A prompt is empty, too long, or a prompt file has a malformed line."""


class UsageError(PacelineError):
    """An option or argument is out of range."""


class RollbackError(PacelineError):
    """The cache cannot take back that many tokens; continuing would change the text."""
