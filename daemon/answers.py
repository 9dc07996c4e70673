"""What the parts say, as answers to commands say it."""

from collections.abc import Sequence

from connectors import requests as wire
from daemon.archive_rows import Archived
from daemon.banks import BankRow
from daemon.ledger import Shot
from daemon.marks import Mark
from daemon.recipes import RecipeView
from daemon.teacher import Registered
from model.labelled import Labelled
from model.rate import Rate


def registered(recipe: str, done: Sequence[Registered]) -> wire.RegisterAnswer:
    """Of pictures that were registered."""
    shots = tuple(
        wire.RegisteredOut(
            shot=one.shot,
            new=one.new,
            held=wire.HeldOut(score=held.score, threshold=held.threshold, limit=held.limit) if (held := one.held) else None,
            warnings=tuple(one.warnings),
            build=one.build,
        )
        for one in done
    )
    return wire.RegisterAnswer(recipe=recipe, shots=shots)


def recipe_out(view: RecipeView) -> wire.RecipeOut:
    """Of a recipe."""
    recipe, override = view.recipe, view.override
    return wire.RecipeOut(
        recipe=recipe.name,
        object=recipe.object,
        mode=recipe.mode,
        region=recipe.region,
        configured=view.configured,
        stations=view.stations,
        shots=view.shots,
        bank=view.bank,
        threshold=view.threshold,
        threshold_stale=view.threshold_stale,
        override=wire.OverrideOut(threshold=override.threshold, factor=override.factor) if override else None,
    )


def shot_out(shot: Shot, score: float | None) -> wire.ShotOut:
    """Of a reference shot. score: left out of the bank that judges."""
    return wire.ShotOut(shot=shot.shot, file=shot.file, width=shot.width, height=shot.height, score=score)


def bank_out(row: BankRow) -> wire.BankOut:
    """Of a bank."""
    calibration = row.calibration
    return wire.BankOut(
        bank=row.bank,
        built_at=row.built_at,
        current=row.current,
        shots=calibration.shots,
        threshold=calibration.threshold,
        provisional=calibration.provisional,
        advice=calibration.advice,
        false_reject=_rate_out(calibration.false_reject),
        marks=_marks_out(row.labelled) if row.labelled is not None else None,
    )


def _rate_out(rate: Rate | None) -> wire.RateOut | None:
    return wire.RateOut(expected=rate.expected, low=rate.low, high=rate.high) if rate is not None else None


def _marks_out(labelled: Labelled) -> wire.MarksOut:
    return wire.MarksOut(
        good=labelled.good,
        bad=labelled.bad,
        shots_threshold=labelled.shots_threshold,
        false_reject=_rate_out(labelled.false_reject),
        escape=_rate_out(labelled.escape),
        rejected=len(labelled.rejected),
        escaped=len(labelled.escaped),
    )


def result_out(kept: Archived, mark: Mark | None, picture: str) -> wire.KeptResultOut:
    """Of an archived result. picture: its path in the state folder."""
    return wire.KeptResultOut(
        result_id=kept.result_id,
        station=kept.station,
        recipe=kept.recipe,
        bank=kept.bank,
        verdict=kept.verdict,
        reason=kept.reason,
        score=kept.score,
        threshold=kept.threshold,
        created_at=kept.created_at,
        mark=mark,
        picture=picture,
        bytes=kept.bytes,
    )
