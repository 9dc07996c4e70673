"""What the parts say, as answers to commands say it."""

from collections.abc import Sequence

from connectors import requests as wire
from daemon.banks import BankRow
from daemon.recipes import RecipeView
from daemon.teacher import Registered


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
    )
