"""How a mask is told: one picture of a defect, in the form that the station's readers want.

Only the messages differ. Verdict, score, regions and what is archived are the same whatever the form.
"""

import base64
import hashlib
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from connectors.contract import MaskOut, RunLengths
from daemon.outbox import Message
from model.regions import encode_mask_png, run_lengths

Form = Literal["topic", "inline", "polygon", "rle", "none"]


def tell_mask(mask: NDArray[np.uint8], form: Form, topic: str) -> tuple[MaskOut | None, tuple[Message, ...]]:
    """(what the result says of it, what is published before the result) of a mask (H x W, nonzero = anomalous).

    topic: where its PNG goes, with form `topic`.
    """
    height, width = mask.shape
    match form:
        case "topic" | "inline":
            png = encode_mask_png(mask)
            sha256 = hashlib.sha256(png).hexdigest()
            if form == "topic":
                return MaskOut(form=form, width=width, height=height, topic=topic, sha256=sha256), (Message(topic, png),)
            text = base64.b64encode(png).decode()
            return MaskOut(form=form, width=width, height=height, png=text, sha256=sha256), ()
        case "rle":
            rle = RunLengths(size=(height, width), counts=run_lengths(mask))
            return MaskOut(form=form, width=width, height=height, rle=rle), ()
        case "polygon":
            return MaskOut(form=form, width=width, height=height), ()
        case "none":
            return None, ()
