"""A result without what cannot go with it: its mask's own message, its polygons."""

from pydantic import ValidationError

from connectors.contract import MaskOut, ResultOut


def read_result(payload: bytes) -> ResultOut | None:
    """A published result as it was written; None when it is not one."""
    try:
        return ResultOut.model_validate_json(payload)
    except ValidationError:
        return None


def told_by_polygons(result: ResultOut) -> ResultOut:
    """The same, its mask told by the regions' polygons."""
    if result.mask is None:
        return result
    mask = MaskOut(form="polygon", width=result.mask.width, height=result.mask.height)
    return result.model_copy(update={"mask": mask})


def without_polygons(result: ResultOut) -> ResultOut:
    """The same, each region with its box alone. A mask that only they told is told no more."""
    regions = tuple(region.model_copy(update={"polygon": ()}) for region in result.regions)
    mask = None if result.mask is None or result.mask.form == "polygon" else result.mask
    return result.model_copy(update={"regions": regions, "mask": mask})


def abridged(result: ResultOut, most_bytes: int) -> tuple[ResultOut, bytes] | None:
    """The fullest form that is no larger than that, with its JSON; None when there is none."""
    forms = [result, without_polygons(result)]
    if result.mask is not None and result.mask.form not in ("topic", "polygon"):
        lean = told_by_polygons(result)
        forms[1:] = [lean, without_polygons(lean)]
    for form in forms:
        if len(payload := form.encode()) <= most_bytes:
            return form, payload
    return None
