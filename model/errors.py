"""The errors of the library. Each message names the thing, what was expected, what was got, and the mend.

ModelError
├── WeightsError     weights that cannot be read or do not fit: mend the model preset or the file
├── ConversionError  a backbone that another runtime than torch cannot run: use torch
├── BankError        a bank that is corrupt or made by another model: build it again from its shots
└── ShotsError       too few or unsuitable reference shots: register others
"""


class ModelError(Exception):
    """Base of every error the library raises on purpose."""


class WeightsError(ModelError):
    """Weights that cannot be read or do not fit the backbone."""


class ConversionError(ModelError):
    """A backbone that cannot be converted to another runtime, or gives other features there."""


class BankError(ModelError):
    """A bank that is corrupt or was made by another model."""


class ShotsError(ModelError):
    """Too few or unsuitable reference shots."""
