"""What differs between the configuration that runs and a file that was read again, and what of it can change at run time."""

from dataclasses import dataclass

from config.schema import Config, RecipeConfig, StationConfig

FIXED = ("store", "mqtt", "sparkplug", "http", "inference", "archive")
"""Sections that are taken at the start only."""
OF_THE_CAMERA = ("camera", "frames", "queue_frames")
"""Keys of a station whose change starts its camera anew: its ring, and what its frames are to the station, depend on them."""


@dataclass(frozen=True)
class Changes:
    """`config`: what is to run: the new stations, cameras and recipes with the sections that ran before.

    `recipes`: new ones, and those with other settings. `camera_anew`: of `changed`, the stations whose camera is started anew.
    `needs_restart`: keys of FIXED that the file has otherwise, as "mqtt.port".
    """

    config: Config
    recipes: tuple[RecipeConfig, ...]
    recipes_gone: tuple[str, ...]
    added: tuple[StationConfig, ...]
    changed: tuple[StationConfig, ...]
    camera_anew: frozenset[str]
    removed: tuple[str, ...]
    needs_restart: tuple[str, ...]

    def __str__(self) -> str:
        """In one line, for the log."""
        named = {
            "stations added": [own.name for own in self.added],
            "changed": [own.name for own in self.changed],
            "removed": list(self.removed),
            "recipes new or changed": [recipe.name for recipe in self.recipes],
            "recipes gone": list(self.recipes_gone),
        }
        return "; ".join(f"{what}: {', '.join(names)}" for what, names in named.items() if names) or "nothing is otherwise"


def compare(running: Config, file: Config) -> Changes:
    """From what runs to what the file says."""
    before = {own.name: own for own in running.stations}
    after = {own.name: own for own in file.stations}
    kept = [own for own in file.stations if own.name in before]
    anew = {own.name for own in kept if _camera_differs(running, file, before[own.name], own)}
    recipes = {recipe.name: recipe for recipe in running.recipes}
    return Changes(
        config=running.model_copy(update={key: getattr(file, key) for key in ("cameras", "recipes", "stations")}),
        recipes=tuple(recipe for recipe in file.recipes if recipes.get(recipe.name) != recipe),
        recipes_gone=tuple(sorted(recipes.keys() - {recipe.name for recipe in file.recipes})),
        added=tuple(own for own in file.stations if own.name not in before),
        changed=tuple(own for own in kept if own.name in anew or own != before[own.name]),
        camera_anew=frozenset(anew),
        removed=tuple(name for name in before if name not in after),
        needs_restart=tuple(_fixed_that_differ(running, file)),
    )


def _camera_differs(running: Config, file: Config, before: StationConfig, after: StationConfig) -> bool:
    if any(getattr(before, key) != getattr(after, key) for key in OF_THE_CAMERA):
        return True
    return running.camera(before.camera) != file.camera(after.camera)


def _fixed_that_differ(running: Config, file: Config) -> list[str]:
    keys = []
    for section in FIXED:
        before, after = getattr(running, section), getattr(file, section)
        if before is None or after is None:
            keys += [section] if before is not after else []
            continue
        keys += [f"{section}.{key}" for key in type(before).model_fields if getattr(before, key) != getattr(after, key)]
    return keys
