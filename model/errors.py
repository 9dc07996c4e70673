"""The errors of the library. Each message names the thing, what was expected, what was got, and the mend.

ModelError
├── WeightsError     weights that cannot be read or do not fit: mend the model preset or the file
├── ConversionError  a backbone that another runtime than torch cannot run: use torch
├── BankError        a bank that is corrupt or made by another model: build it again from its shots
├── ShotsError       too few or unsuitable reference shots: register others
├── DatasetError     a data set in another layout or with files missing: mend its folders
└── CheckpointError  a training cut off with other settings, or damaged: go on with those, or remove its file
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


class DatasetError(ModelError):
    """A data set that is laid out in no known way, or lacks what it should hold."""


class CheckpointError(ModelError):
    """A checkpoint that was made by another training, or is damaged."""
